"""How often authority has changed, held against what events of grants say of it, and the table `control` against both.

Each event of a client, an operator, a person or the keys moves the control counter by one, in its own transaction, and
each event of a grant says how far that was when it was decided (I-06). So a stream of theirs that is gone with its
head, or that stands elsewhere among the events of grants, shows here; its own links would tell nothing.

The clients file's last serial stands in the events of what it changed, and a file that changed nothing raises it all
the same: so only how low it may be is known. Positions go on above `position_floor` since a restore was acknowledged:
not below what was lost, and not above the event that says so.
"""

import sqlite3
from collections.abc import Iterator
from typing import Final

from ledger.batch import is_authority
from ledger.events import AnyEvent, GrantFact, LedgerRestored
from ledger.recorders.rows import Reads

CONTROL: Final = "control"
"""Stands for the event where the one row of that table does not fit."""

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
        self._serial = self._lost = self._restored = 0
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
            self._serial = max(self._serial, getattr(event, "serial", None) or 0)
        elif isinstance(event, LedgerRestored):
            self._restored = max(self._restored, position)
            if event.lost_position.isdecimal():  # it is no other but where somebody has altered it
                self._lost = max(self._lost, int(event.lost_position[:20]))

    def write(self) -> None:
        """Put aside what has come."""
        self._scratch.executemany("INSERT OR IGNORE INTO changes VALUES (?)", self._changed)
        self._scratch.executemany(_WIDEN, ((control, *places) for control, places in self._decided.items()))
        self._changed.clear()
        self._decided.clear()

    def problems(self, reads: Reads) -> Iterator[tuple[str, str, str]]:
        """What does not fit: the event, or `control`, the column, and what is wrong."""
        if (problem := self._problem(reads)) is not None:
            yield problem
        for serial, floor in reads.select("SELECT serial, position_floor FROM control"):
            if int(str(serial)) < self._serial:
                said = f"it says {serial}, and an event that a clients file with serial {self._serial} was applied"
                yield CONTROL, "serial", said
            if not self._lost <= int(str(floor)) <= self._restored:
                yield CONTROL, "position_floor", f"it says {floor}, and the log tells of no restore that left it there"

    def _problem(self, reads: Reads) -> tuple[str, str, str] | None:
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
        return CONTROL, "counter", f"{says}, and the log that it has changed {count} times"


def _next(positions: sqlite3.Cursor) -> int | None:
    row = positions.fetchone()
    return None if row is None else int(row[0])


def event_at(reads: Reads, position: int) -> str:
    """The id of the event at a position; of one in the archive, the position."""
    for name, v in reads.select(_EVENT_AT, (position,)):
        return f"{name}/{v}"
    return f"position {position}"
