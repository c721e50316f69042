"""Events of version 1: stored bytes that decode for ever, are canonical, and are linked (RFC 8785, I-13, I-14)."""

import hashlib
import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from ledger.events import AnyEvent, Event, GrantEvent, GrantRevoked, RefreshTokenWithheld, decode, encode, linked

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.v1.json"))
# Every topic that version 1 may write. A topic is on disk for ever: names are added here, none is ever taken away.
TOPICS = {
    "grant.authorized", "grant.issued", "grant.token_redeemed", "grant.token_rotated", "grant.scope_reduced",
    "grant.scope_restored", "grant.retry_served", "grant.reuse_detected", "grant.suspended", "grant.reinstated",
    "grant.revoked", "grant.expired", "grant.refresh_token_withheld", "grant.access_token_revoked",
    "grant.foreign_client_presented", "grant.presentations_counted", "grant.rollback_detected",
    "client.registered", "client.changed", "client.disabled", "client.revoked",
    "subject.revoked", "subject.erased",
    "operator.registered", "operator.changed", "operator.removed",
    "keys.rotated", "keys.activated", "keys.distrusted",
    "ledger.started", "ledger.stopped", "ledger.restored",
    "audit.read",
}  # fmt: skip
ADDED_LATER: dict[str, set[str]] = {"keys.rotated": {"fingerprint"}}
"""Members that the golden file of a topic lacks, as events of its time do."""

REVOKED = GrantRevoked(
    stream="grant:019abd0e0e107d708000123456789abc",
    v=7,
    at="2026-11-25T17:18:50.123456Z",
    command_id="c0" * 16,
    control=3,
    reason_class="termination",
    requested_by="operator:ops",
)


def canonical(stored: bytes) -> bytes:
    """RFC 8785 by another road, for what events hold: members sorted, no spaces, UTF-8, the shortest escapes."""
    return json.dumps(json.loads(stored), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def test_every_topic_has_a_golden_file_and_a_class() -> None:
    """An event type, once released, decodes for ever."""
    assert TOPICS == {path.name.removesuffix(".v1.json") for path in FILES}
    assert TOPICS == {kind.__struct_config__.tag for kind in get_args(AnyEvent)}
    assert len(TOPICS) == len(get_args(AnyEvent))
    assert set(get_args(GrantEvent)) < set(get_args(AnyEvent))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".v1.json"))
def test_a_golden_file_decodes_to_every_member_and_encodes_to_the_same_bytes(path: Path) -> None:
    """What was once written is read in full and would be written alike: no member lost, renamed or reshaped."""
    stored = path.read_bytes()
    event = decode(stored)
    assert path.name == f"{event.topic}.v1.json"
    assert stored == encode(event)
    members = json.loads(stored)
    later = ADDED_LATER.get(event.topic, set())
    assert {"topic", *(field.name for field in msgspec.structs.fields(event))} - later == set(members)
    assert f"{members['stream']}/{members['v']}" == event.event_id


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".v1.json"))
def test_stored_bytes_are_canonical_and_flat(path: Path) -> None:
    """Whoever has the event can recompute its hash (RFC 8785): strings, integers, booleans, lists of strings."""
    stored = path.read_bytes()
    assert canonical(stored) == stored
    for value in json.loads(stored).values():
        assert isinstance(value, str | int) or all(isinstance(word, str) for word in value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".v1.json"))
def test_what_is_null_is_left_out(path: Path) -> None:
    """Every member that may be missing is missing from the bytes where it is null, and comes back as null."""
    full = decode(path.read_bytes())
    optional = [field.name for field in msgspec.structs.fields(full) if not field.required]
    bare = msgspec.structs.replace(full, **dict.fromkeys(optional))
    stored = encode(bare)
    assert "prev" in optional
    later = ADDED_LATER.get(full.topic, set())
    assert set(json.loads(path.read_bytes())) - set(json.loads(stored)) == set(optional) - later
    assert b"null" not in stored
    assert bare == decode(stored)


def test_a_member_that_got_lost_is_caught(tmp_path: Path) -> None:
    """The broken twin of the golden files: bytes with a member that no class knows do not come back."""
    stored = (GOLDEN / "grant.revoked.v1.json").read_bytes()
    grown = stored.replace(b'{"at"', b'{"a_member_of_tomorrow":1,"at"')
    assert grown != stored
    assert encode(decode(grown)) != grown


@pytest.mark.parametrize(
    "stored",
    [b"", b"{}", b"[]", b'{"topic":"grant.unknown"}', b'{"topic":"grant.revoked","v":"1"}', b'{"topic":"grant.revoked'],
)
def test_what_is_no_event_is_refused(stored: bytes) -> None:
    """Stored bytes of no version are an error, never a guess."""
    with pytest.raises(msgspec.DecodeError):
        decode(stored)


@pytest.mark.parametrize("text", ["ä€😀", 'quote " and \\', "\b\t\n\f\r", "\x00\x01\x1f", "\x7f\u2028", "/</&>"])
def test_texts_are_escaped_as_rfc_8785_says(text: str) -> None:
    """Only what must be is escaped, in its shortest form; everything else is itself in UTF-8."""
    event = msgspec.structs.replace(REVOKED, requested_by=text)
    assert canonical(encode(event)) == encode(event)
    assert event == decode(encode(event))


def test_an_empty_scope_is_an_empty_list() -> None:
    """Left out would be null; a grant without scope has one, and it is empty."""
    stored = (GOLDEN / "grant.scope_reduced.v1.json").read_bytes()
    event = msgspec.structs.replace(decode(stored), scope_after=())
    assert [] == json.loads(encode(event))["scope_after"]


def test_linked_chains_the_hash_of_the_very_bytes() -> None:
    """`prev` is SHA-256 of the stored bytes before, absent in a stream's first event (I-14)."""
    first = RefreshTokenWithheld(stream="grant:00", v=1, at=REVOKED.at, command_id="c0" * 16, control=3)
    stored, digest = linked(first, None)
    assert (
        b'{"at":"2026-11-25T17:18:50.123456Z","command_id":"c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0","control":3,'
        b'"stream":"grant:00","topic":"grant.refresh_token_withheld","v":1}'
    ) == stored
    assert hashlib.sha256(stored).hexdigest() == digest
    second = msgspec.structs.replace(first, v=2)
    after, _ = linked(second, digest)
    assert digest == json.loads(after)["prev"] == second.prev
    assert canonical(after) == after


def test_a_changed_byte_breaks_the_link() -> None:
    """The twin of the one above: another byte, another hash."""
    stored, digest = linked(msgspec.structs.replace(REVOKED), None)
    assert digest != hashlib.sha256(stored.replace(b'"v":7', b'"v":8')).hexdigest()


def test_events_are_frozen() -> None:
    """A fact does not change: only `linked` writes, once, and only the link."""
    for field in msgspec.structs.fields(REVOKED):
        with pytest.raises(AttributeError):
            setattr(REVOKED, field.name, getattr(REVOKED, field.name))
    assert issubclass(GrantRevoked, Event)
