"""What anyone can check on a grant's history alone: links, order, generations (I-01, I-04, I-07, I-14)."""

import hashlib
import itertools
import json
from collections.abc import Sequence

from tests.wire import Json

_BESIDE_DATA = ("topic", "stream", "v", "at", "command_id", "prev")
_ENDS = ("grant.revoked", "grant.expired")
_AFTER_THE_END = ("grant.presentations_counted", "grant.foreign_client_presented", "grant.access_token_revoked")


def stored_bytes(event: Json) -> bytes:
    """Return the bytes that were stored, made anew from what is told: one flat object in the form of RFC 8785."""
    members = {name: event[name] for name in _BESIDE_DATA if name in event} | event["data"]
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def check_history(events: Sequence[Json]) -> None:
    """Assert that one grant's events are linked, in order and without gap, and that nothing follows the end.

    Epochs of other streams stand between them, at their place by position.
    """
    positions = [int(event["position"]) for event in events]
    assert sorted(set(positions)) == positions, f"positions do not increase: {positions}"
    own = [event for event in events if event["topic"].startswith("grant.")]
    assert list(range(1, len(own) + 1)) == [event["v"] for event in own], "a version is missing"
    assert own[0]["topic"] in ("grant.issued", "grant.authorized")
    assert 1 >= sum(event["topic"] == "grant.issued" for event in own), "issued twice"
    assert "prev" not in own[0]
    for before, event in itertools.pairwise(own):
        assert hashlib.sha256(stored_bytes(before)).hexdigest() == event["prev"], f"{event['event_id']}: a broken link"
        assert before["at"] <= event["at"], f"{event['event_id']}: time runs back"
    _check_generations(own)


def _check_generations(own: Sequence[Json]) -> None:
    current, ended = 0, False
    for event in own:
        topic, data = event["topic"], event["data"]
        assert not ended or topic in _AFTER_THE_END, f"{event['event_id']}: {topic} after the end"
        if topic == "grant.token_redeemed":
            assert current == data["generation"], f"{event['event_id']}: a retired token bought something"
        elif topic == "grant.token_rotated":
            assert current + 1 == data["generation"], f"{event['event_id']}: a generation is missing or doubled"
            current += 1
        elif topic == "grant.retry_served":
            assert current - 1 == data["presented_generation"], f"{event['event_id']}: a retry of an older generation"
        ended = ended or topic in _ENDS
