"""Reading a PostgreSQL store: the questions of `reading.py`, in one transaction that sees one committed moment.

A batch gets its positions when it begins and is seen when it commits: of two batches the later one may be seen first.
Whoever follows the log, or leads on from a position, may therefore only look below the horizon: nothing can appear
there any more. A stream's own events, and rows that are found by their key, are told as they are.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import psycopg

from ledger.recorders.archived import Archived
from ledger.recorders.postgres_archive import PAGES, joined
from ledger.recorders.postgres_connections import Connection
from ledger.recorders.postgres_errors import translated
from ledger.recorders.postgres_keys import key_of
from ledger.recorders.postgres_sql import numbered
from ledger.recorders.reading import MARK
from ledger.recorders.rows import GrantsOf, Head, Piece, RawEvent, StoredEvent, StreamKey
from ledger.segments import BlocksInMemory, block_at

PAGES_A_BLOCK: Final = 3
"""A block nearly always lies in so many pages of its segment: one question."""

# One row a step, by the index, whatever the planner believes of a table that it has not counted yet.
_WALK = (
    "WITH RECURSIVE chain (position, stream, v, back, body) AS ("
    " SELECT position, stream, v, back, body FROM events WHERE position = $1"
    " UNION ALL"
    " SELECT e.position, e.stream, e.v, e.back, e.body FROM chain c CROSS JOIN LATERAL"
    " (SELECT * FROM events WHERE position = c.back LIMIT 1) e WHERE c.v > $2 AND c.back > 0"
    ") SELECT position, stream, v, back, body FROM chain WHERE v <= $3"
)
_HEAD = "SELECT id, v, position, head, state FROM streams WHERE id = $1"
_AT_POSITION = "SELECT position, stream, v, back, body FROM events WHERE position = $1 AND stream = $2"
_AFTER = (
    "SELECT position, stream, v, back, body FROM events WHERE position > $1 AND position < $2"
    " ORDER BY position LIMIT $3"
)
# `textsend` gives the bytes as they lie there: what a flipped bit has made of a text may be none any more.
_RAW_AFTER = _AFTER.replace("body", "textsend(body)", 1)
_TOLD = (
    "SELECT e.position, s.name, e.v, e.body FROM events e JOIN streams s ON s.id = e.stream"
    " WHERE e.position >= $1 AND e.position <= $2 AND e.position < $3"
)
_OF_GRANT = "SELECT s.name FROM private_grants p JOIN streams s ON s.id = p.stream"
_NEWEST_GRANT: Final[dict[GrantsOf, str]] = {
    "client_id": f"{_OF_GRANT} WHERE p.client_id = $1 ORDER BY p.begun DESC LIMIT 1",
    "subject_id": f"{_OF_GRANT} WHERE p.subject_id = $1 ORDER BY p.begun DESC LIMIT 1",
}
_GRANT_OF_KEY = "SELECT s.name FROM idempotency_keys k JOIN streams s ON s.id = k.stream WHERE k.mac = $1"
_REASON = "SELECT salt, text FROM private_reasons WHERE stream = $1 AND v = $2"
_TOPIC = " AND e.body::json ->> 'topic' = ANY($5)"


class PostgresReader:
    """Questions to one connection. Lists are oldest first. Raises StoreError.

    `horizon`: below this position nothing can appear any more.
    """

    __slots__ = ("_connection", "_in_memory", "horizon")

    def __init__(self, connection: Connection, horizon: int, in_memory: BlocksInMemory | None = None) -> None:
        """`in_memory` are blocks of the archive that others have asked for."""
        self._connection = connection
        self._in_memory = BlocksInMemory() if in_memory is None else in_memory
        self.horizon = horizon

    def select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Run one SELECT written with `?`, all rows at once: bound it."""
        return self._found(numbered(sql), parameters)

    def _found(self, sql: str, parameters: Sequence[object]) -> list[Any]:
        """As `_rows`; a text with NUL, which PostgreSQL cannot store, is not there, and is not asked for."""
        if any(isinstance(each, str) and "\0" in each for each in parameters):
            return []
        return self._rows(sql, parameters)

    def _rows(self, sql: str, parameters: Sequence[object]) -> list[Any]:
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except psycopg.Error as error:
            raise translated(error) from None

    def stream(self, name: str) -> Head | None:
        """The head of a stream, None where nothing ever happened to it."""
        for id, v, position, head, state in self._rows(_HEAD, (key_of(name),)):
            return Head(id, v, position, head.hex(), state)
        return None

    def events(self, name: str, from_v: int, to_v: int) -> list[StoredEvent]:
        """A stream's events from `from_v` to `to_v`, both included, oldest first.

        Raises Withheld where the bytes of one were given up.
        """
        heads = self._rows("SELECT id, v, position FROM streams WHERE id = $1", (key_of(name),))
        if not heads or from_v > heads[0][1] or to_v < from_v:
            return []
        stream, last_v, start = heads[0]
        to_v = min(to_v, last_v)
        for position, _ in self._rows(numbered(MARK), (stream, to_v)):
            start = position
        found = [StoredEvent(*row) for row in reversed(self._rows(_WALK, (start, from_v, to_v)))]
        lacking_to_v = found[0].v - 1 if found else to_v
        return self._archived().events(stream, from_v, lacking_to_v) + found if from_v <= lacking_to_v else found

    def event_at(self, name: str, v: int) -> StoredEvent | None:
        """One event of a stream."""
        found = self.events(name, v, v)
        return found[0] if found else None

    def event_at_position(self, name: str, position: int) -> StoredEvent | None:
        """One event of a stream by its position."""
        for row in self._rows(_AT_POSITION, (position, key_of(name))):
            return StoredEvent(*row)
        return self._archived().at_position(name, position)

    def newest_grant(self, column: GrantsOf, value: str) -> str | None:
        """The stream of the grant of a client or person that was issued last."""
        for (name,) in self._found(_NEWEST_GRANT[column], (value,)):
            return str(name)
        return None

    def grant_of_key(self, idempotency_mac: bytes) -> str | None:
        """The stream of the grant that was issued under an Idempotency-Key."""
        for (name,) in self._rows(_GRANT_OF_KEY, (idempotency_mac,)):
            return str(name)
        return None

    def reason(self, event_id: str) -> tuple[bytes, str] | None:
        """The salt and the text of the reason that an event holds a commitment to; None once it was erased."""
        stream, _, v = event_id.rpartition("/")
        for salt, text in self._rows(_REASON, (key_of(stream), int(v))):
            return salt, text
        return None

    # ------------------------------------------------------------ the archive

    def _archived(self) -> Archived:
        return Archived(self.select, self._block)

    def _block(self, piece: Piece) -> list[bytes]:
        """The lines of the block that a piece lies in, of the same moment as its row."""
        lines = self._in_memory.get(piece.name, piece.at_byte)
        if lines is None:
            lines = block_at(partial(self._bytes, piece.segment), piece.name, piece.at_byte)[0].lines
            self._in_memory.keep(piece.name, piece.at_byte, lines)
        return lines

    def _bytes(self, segment: int, at_byte: int) -> bytes:
        return joined(self._rows(PAGES, (segment, at_byte, PAGES_A_BLOCK)), at_byte)

    def pieces(self, after: tuple[StreamKey, int] | None, above: int, limit: int) -> list[Piece]:
        """What lies in the archive, by stream and version after (stream, version), None for the first: the pieces with
        an event above a position."""
        return self._archived().pieces(after, above, limit)

    def of_segment(self, segment: int) -> list[Piece]:
        """All pieces that lie in a segment, in its order."""
        return self._archived().of_segment(segment)

    def lines(self, piece: Piece) -> list[tuple[int, bytes]]:
        """The positions and stored bytes of an archived piece that is not withheld, oldest first."""
        return self._archived().lines(piece)

    # ------------------------------------------------------------ the log

    def after(self, position: int, limit: int) -> list[StoredEvent]:
        """All streams' events after a position and below the horizon, in log order."""
        return [StoredEvent(*row) for row in self._rows(_AFTER, (position, self.horizon, limit))]

    def raw_after(self, position: int, limit: int) -> list[RawEvent]:
        """As `after`, bodies as the bytes that lie there."""
        return [RawEvent(*row) for row in self._rows(_RAW_AFTER, (position, self.horizon, limit))]

    def told(self, first: int, last: int, topics: Sequence[str], limit: int) -> list[tuple[int, str, int, str]]:
        """Position, stream, version and body of events from position `first` to `last` and below the horizon, in log
        order; `topics` limits to some, none given lets all pass."""
        of_topics = _TOPIC if topics else ""
        found: Sequence[object] = (first, last, self.horizon, limit, *([list(topics)] if topics else []))
        return self._rows(f"{_TOLD}{of_topics} ORDER BY e.position LIMIT $4", found)
