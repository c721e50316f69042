"""Holding a closed segment against the store: which of its pieces may take the place of their events now."""

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from ledger import snapshots
from ledger.events import AnyEvent, GrantExpired, GrantReinstated, GrantRevoked, GrantSuspended, decode
from ledger.grant import Grant
from ledger.movable import Judging
from ledger.recorders import archived
from ledger.recorders.errors import HistoryBroken
from ledger.recorders.rows import Reads
from ledger.recorders.store import Store
from ledger.segments import Block, event_of, number_of

EVENTS_A_STEP: Final = 250
"""What one transaction takes out of the store: a few milliseconds, in which refreshes wait."""

SAYING: Final = (GrantSuspended, GrantReinstated, GrantRevoked, GrantExpired)
"""What a standing follows from. The last one in a piece is written down beside it."""


class Moving(NamedTuple):
    """One piece on its way: its row, the positions that leave `events`, and the grant whose nonce is to be forgotten
    with it, None where there is none."""

    row: tuple[object, ...]
    positions: list[int]
    over: str | None


class _Run(NamedTuple):
    """Consecutive events of one stream in one block: what a piece is made from. Lines are (position, stored bytes)."""

    stream: str
    from_v: int
    at_byte: int
    line: int
    lines: list[tuple[int, bytes]]
    events: list[AnyEvent]

    @property
    def to_v(self) -> int:
        return self.from_v + len(self.lines) - 1


def _runs(block: Block) -> Iterator[_Run]:
    run: _Run | None = None
    for number, line in enumerate(block.lines):
        read = event_of(line)
        if read is None:  # of a segment that was to replace another one, which then has its lines
            continue
        event = decode(read[1])
        if run is None or (event.stream, event.v) != (run.stream, run.to_v + 1):
            if run is not None:
                yield run
            run = _Run(event.stream, event.v, block.at_byte, number, [], [])
        run.lines.append(read)
        run.events.append(event)
    if run is not None:
        yield run


def _several(runs: Iterator[_Run]) -> Iterator[list[_Run]]:
    """Runs for one step each."""
    several: list[_Run] = []
    events = 0
    for run in runs:
        several.append(run)
        events += len(run.lines)
        if events >= EVENTS_A_STEP:
            yield several
            several, events = [], 0
    if several:
        yield several


class Checking:
    """Reads a closed segment back from where it lies and holds it against the store. In threads."""

    def __init__(self, store: Store, name: str, before: int) -> None:
        self.foreign = 0
        self._store = store
        self._name = name
        self._number = number_of(name)
        self._before = before
        self._moved_to: dict[str, int] = {}

    def steps(self) -> Iterator[list[Moving]]:
        """Pieces that may take the place of their events now, for one transaction each. Raises StoreError.

        None where the store knows another segment by this number: pieces name a segment by its number alone, so they
        would lead to that one's lines.
        """
        if self._is_anothers_number():
            return
        segments = self._store.segments
        segments.settle(self._name)
        segments.check(self._name)
        runs = (run for block in segments.blocks(self._name) for run in _runs(block))
        for several in _several(runs):
            with self._store.reader() as reads:
                judging = Judging(reads, self._before)
                step = [moving for run in several if (moving := self._moving(reads, judging, run)) is not None]
            if step:
                yield step

    def _is_anothers_number(self) -> bool:
        with self._store.reader() as reads:
            return any(name != self._name for (name,) in reads.select(archived.NAME, (self._number,)))

    def of_this_log(self) -> bool:
        """Whether anything of the segment has taken the place of events."""
        with self._store.reader() as reads:
            return bool(reads.select(archived.ANY_OF_SEGMENT, (self._name,)))

    def _moving(self, reads: Reads, judging: Judging, run: _Run) -> Moving | None:
        """What lets a run take the place of its events; None where it has already, or must not: another history stands
        there, or the way to it is not the archive's."""
        head = reads.stream(run.stream)
        rows = reads.select(archived.LAST_MOVED, (run.stream,))
        moved_v = rows[0][0] if rows else 0
        if head is not None and run.to_v <= int(str(moved_v)):
            return None
        expected_v = self._moved_to.get(run.stream, moved_v)
        try:
            stored = reads.events(run.stream, run.from_v, run.to_v)
        except HistoryBroken:
            stored = []
        same = [(each.position, each.body.encode()) for each in stored] == run.lines
        if head is None or expected_v != run.from_v - 1 or not same or stored[-1].position >= judging.last_position:
            self.foreign += 1
            return None
        aggregate = snapshots.decode(head.state, run.stream, head.v, head.head, snapshots.kind_of(run.stream))
        if aggregate is None:  # what its row is to say nobody knows: it stays until there is another snapshot
            return None
        self._moved_to[run.stream] = run.to_v
        state, reason, over = judging.standing(aggregate) if isinstance(aggregate, Grant) else ("active", None, False)
        said = next((at for at in reversed(range(len(stored))) if isinstance(run.events[at], SAYING)), None)
        row = (
            head.id, run.to_v, run.from_v, stored[0].position, stored[-1].position, stored[0].back,
            hashlib.sha256(run.lines[-1][1]).digest(), run.events[-1].at, state, reason,
            aggregate.generation if isinstance(aggregate, Grant) else None, self._number, run.at_byte, run.line,
            *((None, None, None) if said is None else (stored[said].v, stored[said].position, stored[said].body)),
        )  # fmt: skip
        # What only the clock says may be wrong, and a grant that is used again then needs its nonce (`presenting.py`).
        by_clock = isinstance(aggregate, Grant) and aggregate.end is None and state == "expired"
        has_nonce = over and not by_clock and reads.select(archived.HAS_NONCE, (head.id,))
        return Moving(row, [each.position for each in stored], run.stream if has_nonce else None)
