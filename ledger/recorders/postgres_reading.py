"""Reading a PostgreSQL store: the questions of `reading.py`, in one transaction that sees one committed moment.

A batch gets its positions when it begins and is seen when it commits: of two batches the later one may be seen first.
Whoever follows the log, or leads on from a position, may therefore only look below the horizon: nothing can appear
there any more. A stream's own events, and rows that are found by their key, are told as they are.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import psycopg

from ledger.recorders.archived import Archived
from ledger.recorders.postgres_archive import PAGES, PAGES_AT_ONCE, joined
from ledger.recorders.postgres_connections import Connection
from ledger.recorders.postgres_errors import translated
from ledger.recorders.postgres_keys import key_of
from ledger.recorders.postgres_schema import SUBJECTS
from ledger.recorders.postgres_sql import numbered
from ledger.recorders.reading import AFTER, GRANTS, MARK, OF_GRANT, StoreReader
from ledger.recorders.rows import GrantsOf, Head, Piece
from ledger.segments import BlocksInMemory, block_at, check_digest, number_of

PAGES_A_BLOCK: Final = 3
"""A block nearly always lies in so many pages of its segment: one question."""

STREAMS_AT_ONCE: Final = 1000
"""Of so many one question asks: it is answered in some milliseconds, and its text and its answer stay small."""

# One row a step, by the index, whatever the planner believes of a table that it has not counted yet.
_WALK = (
    "WITH RECURSIVE chain (position, stream, v, back, body) AS ("
    " SELECT position, stream, v, back, body FROM events WHERE position = $1"
    " UNION ALL"
    " SELECT e.position, e.stream, e.v, e.back, e.body FROM chain c CROSS JOIN LATERAL"
    " (SELECT * FROM events WHERE position = c.back LIMIT 1) e WHERE c.v > $2 AND c.back > 0"
    ") SELECT position, stream, v, back, textsend(body) FROM chain WHERE v <= $3"
)
_HEAD = "SELECT id, v, position, head, state FROM streams WHERE id = $1"
_HEADS = "SELECT name, id, v, position, head, state FROM streams WHERE id = ANY ($1::uuid[])"
# Each by the index, too: what is asked for one row cannot become a walk through all of them.
_HEADLESS = (
    "SELECT n.place FROM unnest($1::uuid[]) WITH ORDINALITY AS n (id, place)"
    " WHERE (SELECT 1 FROM streams WHERE id = n.id LIMIT 1) IS NULL"
    " AND ((SELECT 1 FROM events WHERE stream = n.id AND v % 64 = 1 AND v = 1 LIMIT 1) IS NOT NULL"
    " OR (SELECT 1 FROM archived WHERE stream = n.id LIMIT 1) IS NOT NULL) LIMIT 1"
)
# Each event of authority moves the counter by one, so the versions of their heads come to it, of any one moment; and a
# head that was renamed stands at another key than its name's (`postgres_keys.py`).
_HEADS_LACK = (
    "SELECT (SELECT counter FROM control) > coalesce(sum(v), 0) OR coalesce(bool_or(renamed), false) FROM ("  # noqa: S608  # words of ours alone
    " SELECT v, false AS renamed FROM streams WHERE name = 'keys'"
    " UNION ALL SELECT v, false FROM streams WHERE name >= 'client:' AND name < 'client;'"
    " UNION ALL SELECT v, false FROM streams WHERE name >= 'operator:' AND name < 'operator;'"
    " UNION ALL SELECT v, uuid_send(id) <> set_byte(set_byte(hash, 6, get_byte(hash, 6) & 15 | 128),"
    " 8, get_byte(hash, 8) & 63 | 128) FROM"
    f" (SELECT id, v, substr(sha256(convert_to(name, 'UTF8')), 1, 16) AS hash FROM streams WHERE {SUBJECTS}) AS persons"
    ") AS heads"
)
_HEADLESS_PERSONS = (
    'SELECT person FROM (SELECT stream, substring(body from \'"stream":"(subject:[^"]*)"\') AS person FROM events'
    " WHERE v % 64 = 1 AND v = 1) AS e LEFT JOIN streams s ON s.id = e.stream"
    " WHERE person IS NOT NULL AND s.name IS DISTINCT FROM person LIMIT 1"
)
_AT_POSITION = "SELECT position, stream, v, back, textsend(body) FROM events WHERE position = $1 AND stream = $2"
_TOLD = (
    "SELECT e.position, s.name, e.v, e.body FROM events e JOIN streams s ON s.id = e.stream"
    " WHERE e.position >= $1 AND e.position <= $2 AND e.position < $3"
)
_NEWEST_GRANT: Final[dict[GrantsOf, str]] = {
    "client_id": f"{OF_GRANT} WHERE p.client_id = $1 ORDER BY p.begun DESC LIMIT 1",
    "subject_id": f"{OF_GRANT} WHERE p.subject_id = $1 ORDER BY p.begun DESC LIMIT 1",
}
_GRANT_OF_KEY = "SELECT s.name FROM idempotency_keys k JOIN streams s ON s.id = k.stream WHERE k.mac = $1"
_REASON = "SELECT salt, text FROM private_reasons WHERE stream = $1 AND v = $2"
_GRANTS: Final = GRANTS.replace("p.subject_id", "textsend(p.subject_id)", 1)
_ENDED: Final = SUBJECTS.replace("name", "e.name")
_TOPIC = " AND e.body::json ->> 'topic' = ANY($5)"


class PostgresReader(StoreReader):
    """PostgreSQL's, with a horizon."""

    __slots__ = ("_connection", "_in_memory", "horizon")
    _sql_head = _HEAD
    _sql_grants = f"{_GRANTS} AND {_ENDED} WHERE s.id = ANY ($1::uuid[])"
    _sql_mark = numbered(MARK)
    _sql_walk = _WALK
    _sql_at_position = _AT_POSITION
    _sql_after = numbered(AFTER)
    _sql_raw_after = _sql_after.replace("body", "textsend(body)", 1)
    _sql_newest_grant = _NEWEST_GRANT
    _sql_grant_of_key = _GRANT_OF_KEY

    def __init__(self, connection: Connection, horizon: int, in_memory: BlocksInMemory | None = None) -> None:
        """`in_memory` are blocks of the archive that others have asked for."""
        self._connection = connection
        self._in_memory = BlocksInMemory() if in_memory is None else in_memory
        self.horizon = horizon

    def select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Run one SELECT written with `?`, all rows at once: bound it. A text with NUL, which PostgreSQL cannot store,
        is not there, and is not asked for."""
        if any(isinstance(each, str) and "\0" in each for each in parameters):
            return []
        return self._rows(numbered(sql), parameters)

    def _rows(self, sql: str, parameters: Sequence[object]) -> list[Any]:
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except psycopg.Error as error:
            raise translated(error) from None

    def _called(self, name: str) -> str:
        return key_of(name)

    def _keys(self, names: Sequence[str]) -> str:
        return "{" + ",".join(map(key_of, names)) + "}"

    def heads(self, names: Sequence[str]) -> dict[str, Head]:
        """The heads of many streams, asked for together."""
        found: dict[str, Head] = {}
        for first in range(0, len(names), STREAMS_AT_ONCE):
            rows = self._rows(_HEADS, (self._keys(names[first : first + STREAMS_AT_ONCE]),))
            found |= {name: Head(*head) for name, *head in rows}
        return found

    def headless(self, names: Sequence[str]) -> str | None:
        """One of these streams of which the log has events and no head, both of one moment."""
        for first in range(0, len(names), STREAMS_AT_ONCE):
            for (place,) in self._rows(_HEADLESS, (self._keys(names[first : first + STREAMS_AT_ONCE]),)):
                return names[first + int(place) - 1]
        return None

    def headless_persons(self) -> list[str]:
        """All events are looked at where heads lack what the control counter counts, or one stands at another's key;
        else the heads of authority alone."""
        if self._rows(_HEADS_LACK, ()) != [(True,)]:
            return []
        return [name for (name,) in self._rows(_HEADLESS_PERSONS, ())]

    def reason(self, event_id: str) -> tuple[bytes, str] | None:
        """The salt and the text of the reason that an event holds a commitment to; None once it was erased."""
        stream, _, v = event_id.rpartition("/")
        for salt, text in self._rows(_REASON, (key_of(stream), int(v))):
            return salt, text
        return None

    def told(self, first: int, last: int, topics: Sequence[str], limit: int) -> list[tuple[int, str, int, str]]:
        """Position, stream, version and body of events from position `first` to `last` and below the horizon, in log
        order; `topics` limits to some, none given lets all pass."""
        of_topics = _TOPIC if topics else ""
        found: Sequence[object] = (first, last, self.horizon, limit, *([list(topics)] if topics else []))
        return self._rows(f"{_TOLD}{of_topics} ORDER BY e.position LIMIT $4", found)

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

    def check_segment(self, name: str) -> None:
        """Read a whole segment, of the same moment, and compare its bytes with its name. Raises ArchiveDamaged."""
        digest, at_byte = hashlib.sha256(), 0
        while chunk := joined(self._rows(PAGES, (number_of(name), at_byte, PAGES_AT_ONCE)), at_byte):
            digest.update(chunk)
            at_byte += len(chunk)
        check_digest(name, digest.hexdigest())
