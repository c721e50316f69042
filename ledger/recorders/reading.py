"""Reading a store: heads, a stream's events by version, all events by position. One connection, one moment.

A stream's events are found without an index on every one of them: the nearest mark at or above the version wanted (an
index entry every 64 versions), or the head, and from there back along `back`. A page of n events costs n + 64 steps
whatever the stream's length (I-22).
"""

import sqlite3
from collections.abc import Sequence

from ledger.recorders.rows import Head, StoredEvent
from ledger.recorders.schema import MARK_EVERY_V

# The term `v % 64 = 1` must stand here as in the index's definition, or the index is not used.
_MARK = (
    "SELECT position, v FROM events WHERE stream = ? AND v >= ?"  # noqa: S608
    f" AND v % {MARK_EVERY_V} = 1 ORDER BY v LIMIT 1"
)
_WALK = (
    "WITH RECURSIVE chain (position, stream, v, back, body) AS ("
    " SELECT position, stream, v, back, body FROM events WHERE position = ?"
    " UNION ALL"
    " SELECT e.position, e.stream, e.v, e.back, e.body FROM chain c JOIN events e ON e.position = c.back"
    " WHERE c.v > ? AND c.back > 0"
    ") SELECT position, stream, v, back, body FROM chain WHERE v <= ?"
)


class Reader:
    """Questions to one connection. Lists are oldest first."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def select(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Run one SELECT, all rows at once: bound it."""
        return self._connection.execute(sql, parameters).fetchall()

    def stream(self, name: str) -> Head | None:
        """The head of a stream, None where nothing ever happened to it."""
        row = self._connection.execute(
            "SELECT id, v, position, head, state FROM streams WHERE name = ?", (name,)
        ).fetchone()
        return Head(row[0], row[1], row[2], row[3].hex(), row[4]) if row else None

    def events(self, name: str, from_v: int, to_v: int) -> list[StoredEvent]:
        """A stream's events from `from_v` to `to_v`, both included, oldest first."""
        head = self._connection.execute("SELECT id, v, position FROM streams WHERE name = ?", (name,)).fetchone()
        if head is None or from_v > head[1] or to_v < from_v:
            return []
        stream, last_v, start = head
        to_v = min(to_v, last_v)
        mark = self._connection.execute(_MARK, (stream, to_v)).fetchone()
        if mark is not None:
            start = mark[0]
        rows = self._connection.execute(_WALK, (start, from_v, to_v)).fetchall()
        return [StoredEvent(*row) for row in reversed(rows)]

    def event_at(self, name: str, v: int) -> StoredEvent | None:
        """One event of a stream."""
        found = self.events(name, v, v)
        return found[0] if found else None

    def after(self, position: int, limit: int) -> list[StoredEvent]:
        """All streams' events after a position, in log order."""
        rows = self._connection.execute(
            "SELECT position, stream, v, back, body FROM events WHERE position > ? ORDER BY position LIMIT ?",
            (position, limit),
        ).fetchall()
        return [StoredEvent(*row) for row in rows]
