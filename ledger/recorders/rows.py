"""What one transaction writes, and what reading gives back: plain values between the commit path and a recorder."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

from ledger.events import AnyEvent
from ledger.inline import Inline, heeded
from ledger.private import PrivateGrant
from ledger.snapshots import Asked

StreamKey = int | str
"""What a store calls a stream by, known to it alone: in SQLite a number, which grows with the ids of grants; in
PostgreSQL the 32 hex digits of a uuid that follows from the stream's name."""

GrantsOf = Literal["client_id", "subject_id"]
"""Whose grants are asked for: a client's or a person's."""


class Head(NamedTuple):
    """The head of a stream: its key, the version, position and hash (32 bytes) of its last event, and its snapshot."""

    id: StreamKey
    v: int
    position: int
    head: bytes
    state: bytes


class GrantsFound(NamedTuple):
    """Grants by the names of their streams, each with its private row (None: erased), and by subject id the heads of
    their persons' streams, None where nothing ever happened to one."""

    grants: dict[str, tuple[Head, PrivateGrant | None]]
    subjects: dict[str, Head | None]


class StoredEvent(NamedTuple):
    """An event as it lies in the store: `body` the stored bytes as text, `back` the position before it (0: none)."""

    position: int
    stream: StreamKey
    v: int
    back: int
    body: str


class RawEvent(NamedTuple):
    """A stored event whose bytes may be none of a text any more."""

    position: int
    stream: StreamKey
    v: int
    back: int
    body: bytes


class Piece(NamedTuple):
    """A run of a stream's events that lie in the archive: which, and where: in the block that begins at a byte of a
    segment, from a line of it on. `back` is the position of the event before it, `head` the hash of its last and `at`
    its time. `said` is the last of its events that a standing follows from, which is there also once the lines are
    `withheld`. `state`, `reason` and `generation` are what the stream had come to when the piece moved."""

    stream: StreamKey
    from_v: int
    to_v: int
    from_position: int
    to_position: int
    back: int
    head: bytes
    segment: int
    name: str
    at_byte: int
    line: int
    withheld: int
    said_v: int | None
    said_position: int | None
    said: str | None
    at: str
    state: str
    reason: str | None
    generation: int | None


class Work:
    """Everything that one transaction is to write. Filled by the commit path, emptied by nobody: one a batch."""

    __slots__ = ("control", "events", "inline", "made", "moved", "private", "rows", "serial")

    def __init__(self, inline: tuple[Inline, ...]) -> None:
        self.inline = inline
        self.events: list[tuple[int, StreamKey, int, int, str]] = []
        self.made: list[tuple[object, ...]] = []
        self.moved: list[tuple[object, ...]] = []
        # By the inline projection's number and the kind of write.
        self.rows: dict[tuple[int, int], list[tuple[object, ...]]] = {}
        self.private: list[tuple[str, tuple[object, ...]]] = []
        self.control: int | None = None
        self.serial: int | None = None

    @property
    def writes(self) -> bool:
        """Whether anything is to be written."""
        return bool(self.events or self.private or self.control is not None or self.serial is not None)

    def add_head(
        self, id: StreamKey, name: str, v: int, position: int, head: bytes, state: bytes, asked: Asked, v_before: int
    ) -> None:
        """Write the head of a stream, `state` and `asked` as `snapshots` makes them. `v_before` is the version it is
        believed to have now; 0 makes the stream."""
        if v_before:
            self.moved.append((v, position, head, state, *asked, id, v_before))
        else:
            self.made.append((id, name, v, position, head, state, *asked))

    def project(self, events: Sequence[AnyEvent], positions: Sequence[int]) -> None:
        """Add the inline projections' rows for one command's events of one stream."""
        if heeded(self.inline).isdisjoint(map(type, events)):  # nearly every command
            return
        for number, each in enumerate(self.inline):
            for kind, parameters in each.rows(events, positions):
                self.add_row(number, kind, events[0].stream, parameters)

    def add_row(self, number: int, kind: int, stream: str, parameters: tuple[object, ...]) -> None:
        """Add what one inline projection has written for a stream."""
        self.rows.setdefault((number, kind), []).append(parameters)


class Reads(Protocol):
    """Reading that a query needs. Answers come from one committed moment, acknowledged writes included.

    Below the position `horizon` nothing can appear any more: whoever leads on from a position looks no further.
    """

    @property
    def horizon(self) -> int: ...
    def select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]: ...
    def stream(self, name: str) -> Head | None: ...
    def heads(self, names: Sequence[str]) -> dict[str, Head]: ...
    def headless(self, names: Sequence[str]) -> str | None: ...
    def headless_persons(self) -> list[str]: ...
    def grants(self, names: Sequence[str]) -> GrantsFound: ...
    def events(self, name: str, from_v: int, to_v: int) -> list[StoredEvent]: ...
    def event_at(self, name: str, v: int) -> StoredEvent | None: ...
    def event_at_position(self, name: str, position: int) -> StoredEvent | None: ...
    def after(self, position: int, limit: int) -> list[StoredEvent]: ...
    def raw_after(self, position: int, limit: int) -> list[RawEvent]: ...
    def told(self, first: int, last: int, topics: Sequence[str], limit: int) -> list[tuple[int, str, int, str]]: ...
    def newest_grant(self, column: GrantsOf, value: str) -> str | None: ...
    def grant_of_key(self, idempotency_mac: bytes) -> str | None: ...
    def reason(self, event_id: str) -> tuple[bytes, str] | None: ...
    def pieces(self, after: tuple[StreamKey, int] | None, above: int, limit: int) -> list[Piece]: ...
    def of_segment(self, segment: int) -> list[Piece]: ...
    def lines(self, piece: Piece) -> list[bytes]: ...
    def check_segment(self, name: str) -> None: ...
    def damage(self, step: Callable[[], None]) -> list[str]: ...


class Lends(Protocol):
    """Readers of one store, lent to one thread at a time."""

    def reader(self) -> AbstractContextManager[Reads]: ...
    def holds_ledger(self) -> bool: ...
    def close(self) -> None: ...
