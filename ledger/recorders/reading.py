"""Reading a store: heads, a stream's events by version, all events by position. One connection, one moment.

`StoreReader` is what both engines' readers have in common, `Reader` is SQLite's.

A stream's events are found without an index on every one of them: the nearest mark at or above the version wanted (an
index entry every 64 versions), or the head, and from there back along `back`. A page of n events costs n + 64 steps
whatever the stream's length (I-22). Where that way ends before the version wanted, what is older lies in the archive.
"""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from ledger.private import PrivateGrant
from ledger.recorders.archived import Archived
from ledger.recorders.errors import EventsAltered, EventsMissing
from ledger.recorders.rows import GrantsFound, GrantsOf, Head, Piece, RawEvent, StoredEvent, StreamKey
from ledger.recorders.schema import MARK_EVERY_V
from ledger.recorders.sqlite_errors import translated
from ledger.recorders.sqlite_keys import COUNTED_BELOW, number_of
from ledger.segments import Segments

# The term `v % 64 = 1` must stand here as in the index's definition, or the index is not used.
MARK = (
    "SELECT position, v FROM events WHERE stream = ? AND v >= ?"  # noqa: S608  # names of ours alone
    f" AND v % {MARK_EVERY_V} = 1 ORDER BY v LIMIT 1"
)
_WALK = (
    "WITH RECURSIVE chain (position, stream, v, back, body) AS ("
    " SELECT position, stream, v, back, body FROM events WHERE position = ?"
    " UNION ALL"
    " SELECT e.position, e.stream, e.v, e.back, e.body FROM chain c JOIN events e ON e.position = c.back"
    " WHERE c.v > ? AND c.back > 0"
    ") SELECT position, stream, v, back, CAST(body AS BLOB) FROM chain WHERE v <= ?"
)
_HEAD = "SELECT id, v, position, head, state FROM streams WHERE name = ?"
_HEADLESS = (
    "SELECT 1 FROM events e WHERE e.v % 64 = 1 AND e.v = 1 AND e.stream < ?"
    " AND NOT EXISTS (SELECT 1 FROM streams s WHERE s.id = e.stream)"
    " UNION ALL SELECT 1 FROM archived a WHERE a.from_v = 1 AND a.stream < ?"
    " AND NOT EXISTS (SELECT 1 FROM streams s WHERE s.id = a.stream) LIMIT 1"
)
_HEADLESS_PERSONS = (
    "SELECT json_extract(e.body, '$.stream') FROM events e LEFT JOIN streams s ON s.id = e.stream"
    ' WHERE e.v % 64 = 1 AND e.v = 1 AND e.stream < ? AND e.body LIKE \'%"stream":"subject:%\' AND json_valid(e.body)'
    " AND s.name IS NOT json_extract(e.body, '$.stream') LIMIT 1"
)
_AT_POSITION = (
    "SELECT e.position, e.stream, e.v, e.back, CAST(e.body AS BLOB) FROM events e JOIN streams s ON s.id = e.stream"
    " WHERE e.position = ? AND s.name = ?"
)
AFTER = (
    "SELECT position, stream, v, back, body FROM events WHERE position > ? AND position < ? ORDER BY position LIMIT ?"
)
_TOLD = (
    "SELECT e.position, s.name, e.v, e.body FROM events e JOIN streams s ON s.id = e.stream"
    " WHERE e.position >= ? AND e.position <= ?"
)
OF_GRANT = "SELECT s.name FROM private_grants p JOIN streams s ON s.id = p.stream"
# The newest by its id, which is what a clock said. What the log says the projection tells, which is asked too (I-06).
_NEWEST_GRANT: Final[dict[GrantsOf, str]] = {
    "client_id": f"{OF_GRANT} WHERE p.client_id = ? ORDER BY p.stream DESC LIMIT 1",
    "subject_id": f"{OF_GRANT} WHERE p.subject_id = ? ORDER BY p.stream DESC LIMIT 1",
}

GRANTS = (
    "SELECT s.name, s.id, s.v, s.position, s.head, s.state, p.subject_id, p.nonce, p.salt, p.body_mac,"
    " e.id, e.v, e.position, e.head, e.state FROM streams s"
    " LEFT JOIN private_grants p ON p.stream = s.id LEFT JOIN streams e ON e.name = 'subject:' || p.subject_id"
)
_RAW_GRANTS = GRANTS.replace("p.subject_id", "CAST(p.subject_id AS BLOB)", 1)

POSITION_MAX = 2**63 - 1
LAST_POSITION_MAX: Final = POSITION_MAX - 2**32
"""Above it nothing is appended. No log comes so far: where one seems to, somebody has altered a position."""
DAMAGE_MAX: Final = 100
_STEPS: Final = 100_000  # of SQLite's own, some milliseconds


class StoreReader(ABC):
    """Questions to one connection. Lists are oldest first. Raises StoreError.

    `horizon`: below this position nothing can appear any more. What begins with `_sql` is a statement in the dialect
    that `_rows` runs. What a flipped bit has made of a text may be none any more: the raw one gives bodies as bytes,
    and that of grants the ids of persons.
    """

    __slots__ = ()
    horizon: int
    _sql_head: ClassVar[str]
    _sql_grants: ClassVar[str]
    _sql_mark: ClassVar[str]
    _sql_walk: ClassVar[str]
    _sql_at_position: ClassVar[str]
    _sql_after: ClassVar[str]
    _sql_raw_after: ClassVar[str]
    _sql_newest_grant: ClassVar[dict[GrantsOf, str]]
    _sql_grant_of_key: ClassVar[str]

    def select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Run one SELECT written with `?`, all rows at once: bound it."""
        return self._rows(sql, parameters)

    @abstractmethod
    def _rows(self, sql: str, parameters: Sequence[object]) -> list[Any]: ...

    def _called(self, name: str) -> str:
        """What statements find a stream by."""
        return name

    @abstractmethod
    def _keys(self, names: Sequence[str]) -> str:
        """What statements find many streams by."""

    # ------------------------------------------------------------ streams

    def stream(self, name: str) -> Head | None:
        """The head of a stream, None where nothing ever happened to it."""
        for row in self._rows(self._sql_head, (self._called(name),)):
            return Head(*row)
        return None

    def heads(self, names: Sequence[str]) -> dict[str, Head]:
        """The heads of many streams. Those to which nothing ever happened are left out."""
        return {name: head for name in names if (head := self.stream(name)) is not None}

    @abstractmethod
    def headless(self, names: Sequence[str]) -> str | None:
        """One of these streams, none of a grant, of which the log may have events and has no head."""

    @abstractmethod
    def headless_persons(self) -> list[str]:
        """A stream of a person of which the log has events and no head of that name. Whom such a stream has ended would
        seem never to have been ended. To be asked at a start."""

    def grants(self, names: Sequence[str]) -> GrantsFound:
        """Many grants in one question, with what is needed to decide on them. Those that do not exist are left out."""
        grants: dict[str, tuple[Head, PrivateGrant | None]] = {}
        subjects: dict[str, Head | None] = {}
        for (
            name, id, v, position, head, state,
            raw_subject_id, nonce, salt, body_mac,
            ended, ended_v, ended_position, ended_head, ended_state,
        ) in self._grant_rows(names):  # fmt: skip
            private = None
            if raw_subject_id is not None:
                private = PrivateGrant(nonce, salt, body_mac)
                # Where this is nobody's id, the person whom the events name is asked for once the grant is decided on.
                subjects[raw_subject_id.decode(errors="replace")] = (
                    None if ended is None else Head(ended, ended_v, ended_position, ended_head, ended_state)
                )
            grants[name] = Head(id, v, position, head, state), private
        return GrantsFound(grants, subjects)

    def events(self, name: str, from_v: int, to_v: int) -> list[StoredEvent]:
        """A stream's events from `from_v` to `to_v`, both included, oldest first.

        Raises Withheld where the bytes of one were given up, HistoryBroken where one is gone against all rules, or is
        no text any more.
        """
        head, from_v = self.stream(name), max(1, from_v)
        if head is None or from_v > head.v or to_v < from_v:
            return []
        start, to_v = head.position, min(to_v, head.v)
        for position, _ in self._rows(self._sql_mark, (head.id, to_v)):
            start = position
        found = [_stored(name, *row) for row in reversed(self._rows(self._sql_walk, (start, from_v, to_v)))]
        lacking_to_v = found[0].v - 1 if found else to_v
        if from_v <= lacking_to_v:
            found = self._archived().events(head.id, from_v, lacking_to_v) + found
        if len(found) != to_v - from_v + 1:
            raise EventsMissing(name, from_v, to_v)
        return found

    def event_at(self, name: str, v: int) -> StoredEvent | None:
        """One event of a stream."""
        found = self.events(name, v, v)
        return found[0] if found else None

    def event_at_position(self, name: str, position: int) -> StoredEvent | None:
        """One event of a stream by its position."""
        for row in self._rows(self._sql_at_position, (position, self._called(name))):
            return _stored(name, *row)
        return self._archived().at_position(name, position)

    def newest_grant(self, column: GrantsOf, value: str) -> str | None:
        """The stream of the grant of a client or person that was issued last."""
        for (name,) in self.select(self._sql_newest_grant[column], (value,)):
            return str(name)
        return None

    def grant_of_key(self, idempotency_mac: bytes) -> str | None:
        """The stream of the grant that was issued under an Idempotency-Key."""
        for (name,) in self._rows(self._sql_grant_of_key, (idempotency_mac,)):
            return str(name)
        return None

    def _grant_rows(self, names: Sequence[str]) -> list[Any]:
        return self._rows(self._sql_grants, (self._keys(names),))

    # ------------------------------------------------------------ the log

    def after(self, position: int, limit: int) -> list[StoredEvent]:
        """All streams' events after a position and below the horizon, in log order, of those that are not archived."""
        return [StoredEvent(*row) for row in self._rows(self._sql_after, (position, self.horizon, limit))]

    def raw_after(self, position: int, limit: int) -> list[RawEvent]:
        """As `after`, bodies as the bytes that lie there."""
        return [RawEvent(*row) for row in self._rows(self._sql_raw_after, (position, self.horizon, limit))]

    # ------------------------------------------------------------ the archive

    @abstractmethod
    def _archived(self) -> Archived: ...

    def pieces(self, after: tuple[StreamKey, int] | None, above: int, limit: int) -> list[Piece]:
        """What lies in the archive, by stream and version after (stream, version), None for the first: the pieces with
        an event above a position."""
        return self._archived().pieces(after, above, limit)

    def of_segment(self, segment: int) -> list[Piece]:
        """All pieces that lie in a segment, in its order."""
        return self._archived().of_segment(segment)

    def lines(self, piece: Piece) -> list[bytes]:
        """The lines of an archived piece, oldest first, withheld or not."""
        return self._archived().lines(piece)

    @abstractmethod
    def check_segment(self, name: str) -> None:
        """Read a whole segment and compare its bytes with its name. Raises ArchiveDamaged."""

    def damage(self, step: Callable[[], None]) -> list[str]:
        """What is wrong with the files beneath the tables, as far as that can be asked for; a line each, the first
        DAMAGE_MAX of them. `step` is called now and then, and may raise."""
        return []


def _stored(name: str, position: int, stream: StreamKey, v: int, back: int, body: bytes) -> StoredEvent:
    try:
        return StoredEvent(position, stream, v, back, body.decode())
    except UnicodeDecodeError:
        raise EventsAltered(f"{name}/{v}") from None


class Reader(StoreReader):
    """SQLite's. One writer gives positions in the order of commits, so there is no horizon."""

    __slots__ = ("_connection", "_segments")
    horizon = POSITION_MAX
    _sql_head = _HEAD
    _sql_grants = f"{_RAW_GRANTS} WHERE s.name IN (SELECT value FROM json_each(?))"  # noqa: S608  # words of ours alone
    _sql_grants_by_number = _sql_grants.replace("s.name IN", "s.id IN")
    _sql_mark = MARK
    _sql_walk = _WALK
    _sql_at_position = _AT_POSITION
    _sql_after = AFTER
    _sql_raw_after = AFTER.replace("body", "CAST(body AS BLOB)", 1)
    _sql_newest_grant = _NEWEST_GRANT
    _sql_grant_of_key = f"{OF_GRANT} WHERE p.idempotency_mac = ?"

    def __init__(self, connection: sqlite3.Connection, segments: Segments) -> None:
        self._connection = connection
        self._segments = segments

    def _rows(self, sql: str, parameters: Sequence[object]) -> list[Any]:
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translated(error) from None

    def _keys(self, names: Sequence[str]) -> str:
        return msgspec.json.encode(names).decode()

    def _grant_rows(self, names: Sequence[str]) -> list[Any]:
        """By their numbers; by their names those that do not lie there (`sqlite_keys.py`)."""
        numbers = msgspec.json.encode([*filter(None, map(number_of, names))]).decode()
        lacking = set(names)
        found = [row for row in self._rows(self._sql_grants_by_number, (numbers,)) if row[0] in lacking]
        lacking.difference_update([row[0] for row in found])
        return found + super()._grant_rows([*lacking]) if lacking else found

    def headless(self, names: Sequence[str]) -> str | None:
        """Here nobody knows what number a stream had: the first, where any that was counted has lost its head. It looks
        at the first event of each, so ask seldom."""
        return names[0] if self._rows(_HEADLESS, (COUNTED_BELOW, COUNTED_BELOW)) else None

    def headless_persons(self) -> list[str]:
        """It looks at the first event of each stream that is none of a grant, so ask at a start."""
        return [name for (name,) in self._rows(_HEADLESS_PERSONS, (COUNTED_BELOW,))]

    def reason(self, event_id: str) -> tuple[bytes, str] | None:
        """The salt and the text of the reason that an event holds a commitment to; None once it was erased."""
        for salt, text in self._rows("SELECT salt, text FROM private_reasons WHERE event_id = ?", (event_id,)):
            return salt, text
        return None

    def told(self, first: int, last: int, topics: Sequence[str], limit: int) -> list[tuple[int, str, int, str]]:
        """Position, stream, version and body of events from position `first` to `last`, in log order; `topics` limits
        to some, none given lets all pass."""
        of_topics = f" AND json_extract(e.body, '$.topic') IN ({', '.join('?' * len(topics))})" if topics else ""
        return self._rows(f"{_TOLD}{of_topics} ORDER BY e.position LIMIT ?", (first, last, *topics, limit))

    def _archived(self) -> Archived:
        return Archived(self._rows, lambda piece: self._segments.lines(piece.name, piece.at_byte))

    def check_segment(self, name: str) -> None:
        """Read a whole segment and compare its bytes with its name. Raises ArchiveDamaged."""
        self._segments.check(name)

    def damage(self, step: Callable[[], None]) -> list[str]:
        """Pages that cannot be read, and indexes that lack rows, which whoever asks by them would not be told of."""
        stopped: list[BaseException] = []

        def go_on() -> bool:  # what it raises SQLite would swallow
            try:
                step()
            except BaseException as error:
                stopped.append(error)
            return bool(stopped)

        self._connection.set_progress_handler(go_on, _STEPS)
        try:
            found = self._connection.execute(f"PRAGMA integrity_check({DAMAGE_MAX})").fetchall()
        except sqlite3.DatabaseError as error:
            if stopped:
                raise stopped[0] from None
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise translated(error) from None
            found = [(str(error),)]
        finally:
            self._connection.set_progress_handler(None, 0)
        lines = [line for (told,) in found for line in str(told).splitlines() if not line.startswith("***")]
        return [] if lines == ["ok"] else lines
