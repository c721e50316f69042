"""What a history says in plain words: nothing that happened is left out of its line, and nothing is said too much."""

from typing import Any

import pytest

from api.cli.told import opened, told

RETRY = {"presented_generation": 0, "kind": "concurrent", "counts": True}
AGAIN = "generation 0 again, a retry (concurrent): its successor again"


def event(topic: str, /, **data: Any) -> dict[str, Any]:
    return {"topic": topic, "data": data}


def disclosed(**texts: str) -> dict[str, Any]:
    return {"disclosed": {name: {"salt": "00", "name": name, "value": text} for name, text in texts.items()}}


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ("all grants ended by epoch 2, says operator:soc", {}),
        (
            "all grants issued before 2026-11-26T19:59:58.000000Z ended by epoch 2, says operator:soc",
            {"before": "2026-11-26T19:59:58.000000Z"},
        ),
    ],
)
@pytest.mark.parametrize("topic", ["client.revoked", "subject.revoked"])
def test_an_epoch_says_which_grants_it_ended(expected: str, said: dict[str, str], topic: str) -> None:
    """One with `before` left all later grants alone."""
    assert expected == told(event(topic, epoch=2, requested_by="operator:soc", **said))


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (AGAIN, {}),
        (f"{AGAIN}, an access token of its own for read", {"scope": ["read"]}),
        (f"{AGAIN}, an access token of its own for no scope", {"scope": []}),
    ],
)
def test_a_retry_says_what_was_obtained(expected: str, said: dict[str, Any]) -> None:
    """One that was served otherwise than the winner bought an access token that no other event names."""
    assert expected == told(event("grant.retry_served", **RETRY, **said))


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        ("", {}),
        (", from 198.51.100.7", disclosed(context="198.51.100.7\nokhttp/5.0")),
        (": stolen phone", disclosed(reason="stolen phone")),
        ("", disclosed(device="phone", session="s-1", reason="")),
    ],
)
def test_a_line_says_from_where_and_why(expected: str, shown: dict[str, Any]) -> None:
    """As long as the texts are there, and to whoever may read them; an erased person's lines end before."""
    assert expected == opened(event("grant.revoked") | shown)
