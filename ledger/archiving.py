"""Moving what is over out of the store, and keeping every answer (I-23).

Streams of grants that have ended move whole; of every other stream, once it is long, what is old: all of it lies behind
the snapshot in the stream's head. A run copies events as export lines into a segment, closes it, reads it back from
where it lies, holds every line against the store, and only then lets a piece's row take the place of its events, a few
hundred at a time, in the transactions of the refreshes themselves. No event is rewritten, no table is locked for longer
than such a step takes.

A crash at any line leaves an event in the store, or in the store and in a segment: the next run finishes that segment
first. What remains of a moved event is its piece's row; reading follows it by itself. So a run under a wrong clock may
move what is young and what lives: that costs nobody an answer. What cannot be undone, the forgetting of a nonce and the
withholding of lines, no clock decides alone.

Whoever refreshes meanwhile, on whatever node, is in nobody's way: they append to a stream and move its head, and what
moves is older, and never changes. Of all processes that use a store one archives at a time (`SegmentStore.claim`); what
another one, that was frozen meanwhile, would still write changes nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from ledger.batch import Batch
from ledger.copying import Copying
from ledger.decisions import Decisions
from ledger.moving import Checking, Moving
from ledger.presenting import Desk, forget_nonces
from ledger.recorders import archived
from ledger.recorders.errors import ArchiveDamaged, StoreError
from ledger.recorders.store import Store
from ledger.refusals import Refusal, Refused
from ledger.segments import number_of
from ledger.threads import in_thread
from ledger.withholding import Withholding

PAUSE_SECONDS: Final = 0.01
"""Between two steps, so that no refresh meets more than one."""

REST_SECONDS: Final = 1800.0
"""So long after a regular run no process begins another one."""

_TAKEN: Final = "another process archives this store, or was killed at it less than a minute ago"

log = logging.getLogger("ledger")

Progress = Callable[[int], None]
"""Told how many events have moved so far."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to: events and pieces that moved, the segments they lie in and their bytes, and the pieces of
    segments left behind that are not of this log; `withheld` events whose time in the archive is over."""

    events: int = 0
    pieces: int = 0
    segments: int = 0
    bytes: int = 0
    foreign: int = 0
    withheld: int = 0


class Archiving:
    """Moves events of one store, one run at a time. Made and used on the event loop; reading and writing segments
    happens in threads."""

    def __init__(self, store: Store, decisions: Decisions, desk: Desk) -> None:
        self._store = store
        self._segments = store.segments
        self._decisions = decisions
        self._desk = desk
        self._withholding = Withholding(store, decisions, desk)
        self._one_at_a_time = asyncio.Lock()

    async def run(
        self,
        before: int,
        withhold_before: int | None = None,
        progress: Progress = lambda events: None,
        *,
        regular: bool = False,
    ) -> Report:
        """Move whatever may move of what happened earlier than `before` (microseconds); withhold the lines of grants
        that are over and to which nothing happened since `withhold_before` (None: keep all). What a crash has left half
        done is finished first. Whatever moved stays moved where a run breaks off. A `regular` run is one that every
        process begins by itself: it does nothing where another one archives, or has done so not long ago.

        Raises Refused (CONFLICT) where another process archives, StoreError, OSError where segments cannot be written,
        Unavailable.
        """
        async with self._one_at_a_time:
            await self._decisions.decided(lambda batch: None)  # not while the log has lost something
            try:
                if not await in_thread(partial(self._segments.claim, regular=regular)):
                    if regular:
                        return Report()
                    raise Refused(Refusal.CONFLICT, detail=_TAKEN)
                report = await self._run(before, withhold_before, progress, regular=regular)
            except BaseException:
                with contextlib.suppress(StoreError):  # then it is over a while after the last that was heard of it
                    await in_thread(self._segments.release, 0.0)
                raise
            await in_thread(self._segments.release, REST_SECONDS if regular else 0.0)
            return report

    async def _run(self, before: int, withhold_before: int | None, progress: Progress, *, regular: bool) -> Report:
        found = _Found(progress)
        await self._withholding.finish()
        for name in await in_thread(self._unfinished):
            await self._move(name, before, found)
        copying = Copying(self._store, before)
        while (copied := await self._copied(copying)) is not None:
            await self._move(copied, before, found)
        if withhold_before is not None:
            found.withheld = await self._withholding.run(before, withhold_before, regular=regular)
        self._withholding.say_damage()
        return found.report()

    async def _copied(self, copying: Copying) -> str | None:
        """The next segment, closed and durable; None where nothing more may move."""
        try:
            while not await in_thread(copying.go_on):
                pass
            return await in_thread(copying.segment)
        except BaseException:
            await in_thread(copying.abandon)
            raise

    def _unfinished(self) -> list[str]:
        """Segments that are whole, and whose lines may still lie in the store too."""
        with self._store.reader() as reads:
            known = {name for (name,) in reads.select(archived.NOT_TO_BE_MOVED)}
        return [name for name in self._segments.names() if name not in known]

    async def _move(self, name: str, before: int, found: "_Found") -> None:
        """Let a closed segment's pieces take the place of their events."""
        number, size = number_of(name), await in_thread(self._segments.bytes_of, name)
        checking = Checking(self._store, name, before)
        steps = checking.steps()
        try:
            while (step := await in_thread(next, steps, None)) is not None:
                await in_thread(self._segments.keep)
                await self._switch((number, name, size, None), step)
                found.moved(step)
                await asyncio.sleep(PAUSE_SECONDS)
        except ArchiveDamaged:
            if await in_thread(checking.of_this_log):
                raise
            # A part of a copy, for one: all that it was to hold is in the store.
        found.foreign += checking.foreign
        if not await in_thread(checking.of_this_log):
            await in_thread(self._segments.put_aside, name)
            log.error("archive_segment_of_another_log", extra={"fields": {"segment": name}})
            return
        await self._decisions.decided(lambda batch: batch.private(None, archived.FINISH_SEGMENT, number), ours=True)
        found.segments += 1
        found.bytes += size or 0

    async def _switch(self, segment: tuple[object, ...], step: list[Moving]) -> None:
        # A crash before this is durable leaves the step's events in both places, and after it in the segment alone.
        await self._decisions.decided(partial(self._moved, segment, step), ours=True)

    def _moved(self, segment: tuple[object, ...], step: list[Moving], batch: Batch) -> None:
        forget_nonces(batch, self._desk, [piece.over for piece in step if piece.over is not None])
        batch.private(None, archived.ADD_SEGMENT, *segment)
        for piece in step:
            stream, to_v, *_ = piece.row
            batch.private(None, archived.ADD_PIECE, *piece.row)
            batch.private(None, archived.DELETE_EVENTS, msgspec.json.encode(piece.positions).decode(), stream, to_v)


class _Found:
    """What a run has come to so far."""

    def __init__(self, progress: Progress) -> None:
        self.segments = self.bytes = self.foreign = self.withheld = 0
        self._events = self._pieces = 0
        self._progress = progress

    def moved(self, step: list[Moving]) -> None:
        self._pieces += len(step)
        self._events += sum(len(each.positions) for each in step)
        self._progress(self._events)

    def report(self) -> Report:
        return Report(
            events=self._events,
            pieces=self._pieces,
            segments=self.segments,
            bytes=self.bytes,
            foreign=self.foreign,
            withheld=self.withheld,
        )
