"""Moving what is over out of the store, and keeping every answer (I-23).

Streams of grants that have ended move whole; of every other stream, once it is long, what is old: all of it lies behind
the snapshot in the stream's head. A run copies events as export lines into a segment, closes it, reads it back from the
disk, holds every line against the store, and only then lets a piece's row take the place of its events, a few hundred
at a time, in the transactions of the refreshes themselves. No event is rewritten, no table is locked for longer than
such a step takes.

A crash at any line leaves an event in the store, or in the store and in a segment: the next run finishes that segment
first. What remains of a moved event is its piece's row; reading follows it by itself.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from ledger import movable, snapshots
from ledger.batch import Batch
from ledger.decisions import Decisions
from ledger.events import (
    AnyEvent,
    GrantExpired,
    GrantReinstated,
    GrantRevoked,
    GrantSuspended,
    decode,
)
from ledger.grant import Grant
from ledger.movable import Judging, Movable
from ledger.presenting import Desk, forget_nonce_if_over
from ledger.recorders import archived
from ledger.recorders.rows import Reads
from ledger.recorders.sqlite import SQLiteStore
from ledger.segments import Block, SegmentWriter, event_of, line_of, number_of

EVENTS_A_SEGMENT: Final = 20_000
EVENTS_A_STEP: Final = 250
"""What one transaction takes out of the store: a few milliseconds, in which refreshes wait."""

PAUSE_SECONDS: Final = 0.01
"""Between two steps, so that no refresh meets more than one."""

EVENTS_A_PAGE: Final = 1_000

_SAYING: Final = (GrantSuspended, GrantReinstated, GrantRevoked, GrantExpired)

T = TypeVar("T")

log = logging.getLogger("ledger")

Progress = Callable[[int], None]
"""Told how many events have moved so far."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to: events and pieces that moved, the segments they lie in and their bytes on the disk, and the
    pieces of segments left behind that are not of this log."""

    events: int = 0
    pieces: int = 0
    segments: int = 0
    bytes: int = 0
    foreign: int = 0


class Moving(NamedTuple):
    """One piece on its way: its row, the positions that leave `events`, and the grant whose nonce is to be forgotten
    with it, None where there is none."""

    row: tuple[object, ...]
    positions: list[int]
    over: str | None


class Archiving:
    """Moves events of one store, one run at a time. Made and used on the event loop; reading and writing files happens
    in threads."""

    def __init__(self, store: SQLiteStore, decisions: Decisions, desk: Desk) -> None:
        self._store = store
        self._segments = store.segments
        self._decisions = decisions
        self._desk = desk
        self._one_at_a_time = asyncio.Lock()

    async def run(self, before: int, progress: Progress = lambda events: None) -> Report:
        """Move whatever may move of what happened earlier than `before` (microseconds). What a crash has left half done
        is finished first. Whatever moved stays moved where a run breaks off.

        Raises StoreError, OSError where the folder cannot be written, Unavailable.
        """
        async with self._one_at_a_time:
            await self._decisions.decided(lambda batch: None)  # not while the log has lost something
            found = _Found(progress)
            for name in await _in_thread(self._unfinished):
                await self._move(name, before, found)
            copying = _Copying(self._store, before)
            while (copied := await _in_thread(copying.segment)) is not None:
                await self._move(copied, before, found)
            return found.report()

    def _unfinished(self) -> list[str]:
        """Segments that are whole, and whose lines may still lie in the store too."""
        with self._store.reader() as reads:
            finished = {name for (name,) in reads.select("SELECT name FROM segments WHERE finished = 1")}
        return [name for name in self._segments.names() if name not in finished]

    async def _move(self, name: str, before: int, found: "_Found") -> None:
        """Let a closed segment's pieces take the place of their events."""
        number, size = number_of(name), self._segments.bytes_of(name)
        checking = _Checking(self._store, name, before)
        steps = checking.steps()
        while (step := await _in_thread(next, steps, None)) is not None:
            await self._switch((number, name, size, None), step)
            found.moved(step)
            await asyncio.sleep(PAUSE_SECONDS)
        found.foreign += checking.foreign
        if not await _in_thread(checking.of_this_log):
            await _in_thread(self._segments.put_aside, name)
            log.error("archive_segment_of_another_log", extra={"fields": {"segment": name}})
            return
        await self._decisions.decided(lambda batch: batch.private(None, archived.FINISH_SEGMENT, number))
        found.segments += 1
        found.bytes += size or 0

    async def _switch(self, segment: tuple[object, ...], step: list[Moving]) -> None:
        # A crash before this is durable leaves the step's events in both places, and after it in the segment alone.
        await self._decisions.decided(partial(self._moved, segment, step))

    def _moved(self, segment: tuple[object, ...], step: list[Moving], batch: Batch) -> None:
        batch.private(None, archived.ADD_SEGMENT, *segment)
        for piece in step:
            batch.private(None, archived.ADD_PIECE, *piece.row)
            batch.private(None, archived.DELETE_EVENTS, msgspec.json.encode(piece.positions).decode())
            if piece.over is not None:
                known = piece.over in batch.memory.streams
                loaded = batch.load(piece.over)
                assert loaded is not None
                forget_nonce_if_over(batch, self._desk, loaded)
                if not known:  # grants that are over shall not push others out of memory
                    del batch.memory.streams[piece.over]


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns. Where the run is broken off it ends only when the thread has: no two shall ever write."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


class _Found:
    """What a run has come to so far."""

    def __init__(self, progress: Progress) -> None:
        self.segments = self.bytes = self.foreign = 0
        self._events = self._pieces = 0
        self._progress = progress

    def moved(self, step: list[Moving]) -> None:
        self._pieces += len(step)
        self._events += sum(len(each.positions) for each in step)
        self._progress(self._events)

    def report(self) -> Report:
        return Report(
            events=self._events, pieces=self._pieces, segments=self.segments, bytes=self.bytes, foreign=self.foreign
        )


class _Copying:
    """One pass over all streams, which copies what may move into one segment after the other. In threads."""

    def __init__(self, store: SQLiteStore, before: int) -> None:
        self._store = store
        self._before = before
        self._after = 0
        self._over = False

    def segment(self) -> str | None:
        """The next segment, closed and on the disk; None where nothing more may move."""
        writer: SegmentWriter | None = None
        try:
            while not self._over and (writer is None or writer.events < EVENTS_A_SEGMENT):
                with self._store.reader() as reads:
                    writer = self._page(reads, writer)
        except BaseException:
            if writer is not None:
                writer.abandon()
            raise
        if writer is None:
            return None
        if not writer.events:
            writer.abandon()
            return None
        return writer.close()

    def _page(self, reads: Reads, writer: SegmentWriter | None) -> SegmentWriter | None:
        page = movable.streams(reads, self._after)
        self._over = not page
        judging = Judging(reads, self._before)
        for stream in page:
            to_v = judging.to_v(stream)
            if to_v > stream.moved_v:
                writer = writer or self._store.segments.write(_next_number(self._store, reads))
                room = EVENTS_A_SEGMENT - writer.events
                _copy(reads, stream, min(to_v, stream.moved_v + room), writer)
                if writer.events >= EVENTS_A_SEGMENT:
                    return writer  # the next segment begins with this stream again
            self._after = stream.id
        return writer


def _next_number(store: SQLiteStore, reads: Reads) -> int:
    last = reads.select("SELECT ifnull(max(id), 0) FROM segments")[0][0]
    assert isinstance(last, int)
    return max(last, store.segments.last_number()) + 1


def _copy(reads: Reads, stream: Movable, to_v: int, writer: SegmentWriter) -> None:
    """Add a stream's lines up to a version. Where the history does not hold nothing more is moved: it is to be found
    where it was altered."""
    head, from_v = stream.head, stream.moved_v + 1
    while from_v <= to_v:
        page = reads.events(stream.name, from_v, min(to_v, from_v + EVENTS_A_PAGE - 1))
        for stored in page:
            body = stored.body.encode()
            event = _linked(stream.name, from_v, head, body)
            if event is None:
                log.error("history_does_not_hold", extra={"fields": {"event": f"{stream.name}/{from_v}"}})
                return
            writer.add(line_of(stored.position, body))
            head, from_v = hashlib.sha256(body).digest(), from_v + 1
        if not page:
            return


def _linked(name: str, v: int, head: bytes | None, body: bytes) -> AnyEvent | None:
    """The event of these bytes where it is the one that follows; None where it is not."""
    try:
        event = decode(body)
    except msgspec.MsgspecError:
        return None
    fits = (event.stream, event.v, event.prev) == (name, v, None if head is None else head.hex())
    return event if fits else None


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
        assert read is not None, "only a segment that replaces another has withheld lines"
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


class _Checking:
    """Reads a closed segment back from the disk and holds it against the store. In threads."""

    def __init__(self, store: SQLiteStore, name: str, before: int) -> None:
        self.foreign = 0
        self._store = store
        self._name = name
        self._number = number_of(name)
        self._before = before
        self._moved_to: dict[str, int] = {}

    def steps(self) -> Iterator[list[Moving]]:
        """Pieces that may take the place of their events now, for one transaction each. Raises StoreError."""
        segments = self._store.segments
        segments.check(self._name)
        runs = (run for block in segments.blocks(self._name) for run in _runs(block))
        for several in _several(runs):
            with self._store.reader() as reads:
                judging = Judging(reads, self._before)
                step = [moving for run in several if (moving := self._moving(reads, judging, run)) is not None]
            if step:
                yield step

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
        stored = reads.events(run.stream, run.from_v, run.to_v)
        same = [(each.position, each.body.encode()) for each in stored] == run.lines
        if head is None or expected_v != run.from_v - 1 or not same or stored[-1].position >= judging.last_position:
            self.foreign += 1
            return None
        self._moved_to[run.stream] = run.to_v
        aggregate = snapshots.decode(head.state, head.v, bytes.fromhex(head.head), snapshots.kind_of(run.stream))
        state, reason, over = judging.standing(aggregate) if isinstance(aggregate, Grant) else ("active", None, False)
        said = next((at for at in reversed(range(len(stored))) if isinstance(run.events[at], _SAYING)), None)
        row = (
            head.id, run.to_v, run.from_v, stored[0].position, stored[-1].position, stored[0].back,
            hashlib.sha256(run.lines[-1][1]).digest(), run.events[-1].at, state, reason,
            aggregate.generation if isinstance(aggregate, Grant) else None, self._number, run.at_byte, run.line,
            *((None, None, None) if said is None else (stored[said].v, stored[said].position, stored[said].body)),
        )  # fmt: skip
        has_nonce = over and reads.select(archived.HAS_NONCE, (head.id,))
        return Moving(row, [each.position for each in stored], run.stream if has_nonce else None)
