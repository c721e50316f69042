"""How often authority has changed, held against what events of grants say of it, and against the counter itself.

Each event of a client, an operator, a person or the keys moves the control counter by one, in its own transaction, and
each event of a grant says how far that was when it was decided (I-06). So a stream of theirs that is gone with its
head, or that stands elsewhere among the events of grants, shows here; its own links would tell nothing.
"""

import sqlite3
from typing import Final

from ledger.batch import is_authority
from ledger.events import AnyEvent, GrantFact
from ledger.recorders.rows import Reads

_WIDEN: Final = (
    "INSERT INTO controls VALUES (?, ?, ?) ON CONFLICT (control) DO UPDATE SET first = min(first, excluded.first),"
    " last = max(last, excluded.last)"
)
_EVENT_AT: Final = "SELECT s.name, e.v FROM events e JOIN streams s ON s.id = e.stream WHERE e.position = ?"


class AuthorityChanges:
    """Where authority changed, and between which positions grants were decided on under each number. Kept aside: there
    may be as many as persons ever were ended."""

    def __init__(self, scratch: sqlite3.Connection) -> None:
        self._scratch = scratch
        self._changed: list[tuple[int]] = []
        self._decided: dict[int, tuple[int, int]] = {}
        scratch.execute("CREATE TABLE changes (position INTEGER PRIMARY KEY) STRICT")
        scratch.execute(
            "CREATE TABLE controls (control INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL) STRICT"
        )

    def heed(self, event: AnyEvent, position: int) -> None:
        """Take an event in, in whatever order."""
        if isinstance(event, GrantFact):
            first, last = self._decided.get(event.control, (position, position))
            self._decided[event.control] = min(first, position), max(last, position)
        elif is_authority(event.stream):
            self._changed.append((position,))

    def write(self) -> None:
        """Put aside what has come."""
        self._scratch.executemany("INSERT OR IGNORE INTO changes VALUES (?)", self._changed)
        self._scratch.executemany(_WIDEN, ((control, *places) for control, places in self._decided.items()))
        self._changed.clear()
        self._decided.clear()

    def problem(self, reads: Reads) -> tuple[str, str, str] | None:
        """The first event that does not fit, the column, and what is wrong; None where all do, and the counter too.

        All others that do not fit are wrong by as much.
        """
        changes = self._scratch.execute("SELECT position FROM changes ORDER BY position")
        count, since, until = 0, 0, _next(changes)
        for control, first, last in self._scratch.execute("SELECT * FROM controls ORDER BY control"):
            while count < control and until is not None:
                count, since, until = count + 1, until, _next(changes)
            fits_first = count == control and first > since
            if not fits_first or (until is not None and last > until):
                said = f"it was decided when authority had changed {control} times, and the log says otherwise"
                return event_at(reads, last if fits_first else first), "control", said
        while until is not None:
            count, until = count + 1, _next(changes)
        counters = reads.select("SELECT counter FROM control")
        if counters == [(count,)]:
            return None
        says = f"it says that authority has changed {counters[0][0]} times"
        return "control", "counter", f"{says}, and the log that it has changed {count} times"


def _next(positions: sqlite3.Cursor) -> int | None:
    row = positions.fetchone()
    return None if row is None else int(row[0])


def event_at(reads: Reads, position: int) -> str:
    """The id of the event at a position; of one in the archive, the position."""
    for name, v in reads.select(_EVENT_AT, (position,)):
        return f"{name}/{v}"
    return f"position {position}"
