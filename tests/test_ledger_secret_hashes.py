"""Client secrets and operator tokens at rest."""

import hmac
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.keyring import KeyRing
from ledger.secret_hashes import is_secret_hash, secret_hash, secret_matches
from tests.rings import CREATED_AT, known_ring, mac_by_hand

RING = known_ring()
GOLDEN = "h1$ee52fe43aa1cb2561b350b3473ad50f6dcaa4e97f5f06c845949feda2e5a252d"


def test_a_secrets_hash_is_the_same_for_ever() -> None:
    """Golden text, and by another road: what a clients file holds today must let its client in for ever."""
    assert GOLDEN == secret_hash(RING, "Secr3t!")
    by_hand = mac_by_hand(bytes(range(32)), "root", "client secret or operator token", b"Secr3t!", 32)
    assert GOLDEN == "h1$" + by_hand.hex()
    assert is_secret_hash(GOLDEN)


def test_a_hash_outlives_rotations_and_belongs_to_one_ring() -> None:
    """It is made under the root: no rotation locks a client out, no other ring's hash lets one in."""
    assert GOLDEN == secret_hash(RING.with_new_key(CREATED_AT), "Secr3t!")
    assert GOLDEN != secret_hash(KeyRing.new(CREATED_AT), "Secr3t!")


@pytest.mark.parametrize(
    "text",
    [
        "", "Secr3t!", "h1$", "h1$" + "0" * 63, "h1$" + "0" * 65, "h1$" + "A" * 64, "h2$" + "0" * 64, "0" * 67,
        "h1$" + "0" * 64 + "\n", " h1$" + "0" * 64, "h1$" + "\uff10" * 64,
    ],
)  # fmt: skip
def test_what_is_no_hash_is_told(text: str) -> None:
    """A plain secret put where a hash belongs must be found when the file is read, not when nobody gets in."""
    assert not is_secret_hash(text)


@pytest.mark.parametrize(
    ("expected", "candidates", "secrets"),
    [
        (0, ["a"], ["a"]),
        (2, ["c"], ["a", "b", "c"]),
        (1, ["b", "c"], ["a", "b"]),
        (1, ["x", "b"], ["a", "b"]),
        (None, ["x", "y"], ["a", "b", "c"]),
        (None, ["a"], []),
        (None, [], ["a"]),
        (None, ["A"], ["a"]),
        (None, ["a "], ["a"]),
        (None, [""], ["a"]),
        (None, ["\ud800"], ["a"]),
        (None, ["-" * 64], []),
    ],
)
def test_one_reading_of_the_secret_must_match(expected: int | None, candidates: list[str], secrets: list[str]) -> None:
    """RFC 6749 2.3.1: raw or form-decoded, against each secret that the client has while it changes them."""
    assert expected == secret_matches(RING, candidates, [secret_hash(RING, secret) for secret in secrets])


@given(st.text(), st.text())
def test_only_the_secret_itself_matches(one: str, other: str) -> None:
    """Any text can be presented, and only the same one lets in."""
    assert (0 if one == other else None) == secret_matches(RING, [one], [secret_hash(RING, other)])


Matches = Callable[[KeyRing, Sequence[str], Sequence[str]], int | None]


def comparisons(
    monkeypatch: pytest.MonkeyPatch, matches: Matches, candidates: list[str], hashes: list[str]
) -> list[int]:
    """How long the compared texts are, one number a comparison."""
    lengths: list[int] = []
    compare = hmac.compare_digest

    def counted(one: str, other: str) -> bool:
        assert len(one) == len(other)
        lengths.append(len(one))
        return compare(one, other)

    with monkeypatch.context() as patched:
        patched.setattr(hmac, "compare_digest", counted)
        matches(RING, candidates, hashes)
    return lengths


def eager(ring: KeyRing, candidates: Sequence[str], hashes: Sequence[str]) -> int | None:
    """The broken twin that stops where it knows, so that its time tells which clients there are."""
    for candidate in candidates:
        for index, stored in enumerate(hashes):
            if hmac.compare_digest(secret_hash(ring, candidate), stored):
                return index
    return None


def test_an_unknown_client_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons are as many and as long for a right secret, a wrong one and a client that nobody knows."""
    stored = [secret_hash(RING, secret) for secret in ("a", "b", "c")]
    cases = [(stored, "a"), (stored, "c"), (stored, "x"), (stored[:1], "a"), (stored[:1], "x"), ([], "a")]
    counts = [comparisons(monkeypatch, secret_matches, [secret], hashes) for hashes, secret in cases]
    assert [[67, 67, 67]] * len(cases) == counts
    assert [67] * 6 == comparisons(monkeypatch, secret_matches, ["a", "b"], [])
    assert 1 < len({len(comparisons(monkeypatch, eager, [secret], hashes)) for hashes, secret in cases})
