"""Snapshots: what an aggregate came to, kept in the head of its stream and written with every append.

Latest only. A snapshot says its format, and which version and hash of the stream it stands for; one that does not match
is ignored and the stream is replayed: never trusted, never fatal. So loading is one row whatever a grant's age (I-22),
and `rebuild` proves every one of them equal to a replay (I-13).
"""

from typing import Any, ClassVar, Protocol, TypeVar

import msgspec

from ledger import earlier_snapshots, times
from ledger.clients import Client, Operator
from ledger.epochs import Subject
from ledger.events import AnyEvent
from ledger.grant import Grant
from ledger.keys import Keys

FORMAT = 3
"""Raise this when an aggregate's state changes its shape: what `earlier_snapshots` does not read is then replayed."""

ROOMS_BYTES = (448, 544, 688, 880, 1216)
ROOM_STEP_BYTES = 64
"""A snapshot is padded to the first of these that holds it, beyond them in steps, so that one that grows keeps its
length: a row that is longer than before splits the page that it is on, which costs as much as several refreshes. Seven
of the first, six of the second, … three of the last share SQLite's page, and leave the columns beside them room to
grow: where rows fill a page to the last bytes, the first redemptions split it."""

REDEMPTION_BYTES = 170
"""What a grant's first redemption adds to its snapshot, beside two lists of scopes, its resources and
the key that its tokens are bound to."""


class Journal(msgspec.Struct, array_like=True):
    """A stream that only tells (`ledger`, `audit`): nothing is ever decided on it."""

    v: int = 0
    at: int = 0

    def evolve(self, event: AnyEvent) -> None:
        self.v = event.v
        self.at = times.micros(event.at)


class Aggregate(Protocol):
    """A struct that follows the events of its own stream, and is given no others; `at` is the last one's time."""

    __struct_fields__: ClassVar[tuple[str, ...]]

    at: int

    def evolve(self, event: Any) -> None: ...


KINDS: dict[str, type[Aggregate]] = {
    "grant": Grant,
    "client": Client,
    "operator": Operator,
    "subject": Subject,
    "keys": Keys,
    "ledger": Journal,
    "audit": Journal,
}
"""The first word of a stream's name → its aggregate. The one place that knows all of them."""

_T = TypeVar("_T", bound=Aggregate)
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Aggregate], msgspec.msgpack.Decoder[tuple[int, int, bytes, Any, bool]]] = {
    kind: msgspec.msgpack.Decoder(tuple[int, int, bytes, kind, bool])  # type: ignore[valid-type]  # made as it runs
    for kind in KINDS.values()
}


def kind_of(stream: str) -> type[Aggregate]:
    """The aggregate class of a stream by its name."""
    return KINDS[stream.partition(":")[0]]


def encode(v: int, head: bytes, aggregate: object) -> bytes:
    """The snapshot of an aggregate at version `v`, whose last event's stored bytes hash to `head` (32 bytes)."""
    if not isinstance(aggregate, Grant):
        blob: bytes = _encoder.encode((FORMAT, v, head, aggregate, True))  # the last byte is none of the padding
        return _padded(blob, len(blob))
    name, aggregate.stream = aggregate.stream, ""  # it stands beside the snapshot, and would be a tenth of it
    blob = _encoder.encode((FORMAT, v, head, aggregate, True))
    aggregate.stream = name
    will_grow = aggregate.previous is None and aggregate.redeemed is None
    return _padded(blob, len(blob) + _redemption_bytes(aggregate) if will_grow else len(blob))


def _padded(blob: bytes, size: int) -> bytes:
    for room in ROOMS_BYTES:
        if size <= room:
            return blob.ljust(room, b"\0")
    return blob.ljust(size + -size % ROOM_STEP_BYTES, b"\0")


def _redemption_bytes(grant: Grant) -> int:
    bound = len(grant.bound_jkt or "") + len(grant.bound_x5t_s256 or "")
    resource = sum(len(each) + 2 for each in grant.resource or ())
    return REDEMPTION_BYTES + 2 * sum(len(word) + 1 for word in grant.carried) + bound + resource


Asked = tuple[int | None, int | None, int | None]


def asked(aggregate: object) -> Asked:
    """What questions ask about grants in SQL, beside each head: generation, last redemption, idle expiry, the last two
    in microseconds. Nothing of any other aggregate."""
    if type(aggregate) is Grant:
        return aggregate.generation, aggregate.last_redeemed_at, aggregate.idle_expires_at
    return None, None, None


def decode(blob: bytes, name: str, v: int, head: bytes, kind: type[_T]) -> _T | None:
    """Read the snapshot of a stream back; None where it is of another version or hash, or of a format that is not read
    any more, or cannot be read at all."""
    found = _decoded(blob.rstrip(b"\0"), kind)
    if found is None or found[0] != v or found[1] != head:
        return None
    aggregate = found[2]
    if isinstance(aggregate, Grant):
        aggregate.stream = name
    return aggregate


def _decoded(blob: bytes, kind: type[_T]) -> tuple[int, bytes, _T] | None:
    try:
        form, v, head, aggregate, _ = _decoders[kind].decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError):
        form = 0
    return (v, head, aggregate) if form == FORMAT else earlier_snapshots.decode(blob, kind)
