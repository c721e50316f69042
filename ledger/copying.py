"""Copying what may move into archive segments: whole streams, or the old part of them, one after the other."""

import hashlib
import logging
from typing import Final

import msgspec

from ledger import movable
from ledger.events import AnyEvent, decode
from ledger.movable import Judging, Movable
from ledger.recorders.archived import next_number
from ledger.recorders.errors import HistoryBroken
from ledger.recorders.rows import Reads, StreamKey
from ledger.recorders.store import Store
from ledger.segments import SegmentWriter, line_of

EVENTS_A_SEGMENT: Final = 20_000
EVENTS_A_PAGE: Final = 1_000

log = logging.getLogger("ledger")


class Copying:
    """One pass over all streams, which copies what may move into one segment after the other. In threads."""

    def __init__(self, store: Store, before: int) -> None:
        self._store = store
        self._before = before
        self._after: StreamKey | None = None
        self._over = False
        self._writer: SegmentWriter | None = None

    def go_on(self) -> bool:
        """Look at some more streams: True where a segment is full, or there are no more. A little at a time, so that a
        run can be broken off within it, however many streams there are."""
        if not self._over and (self._writer is None or self._writer.events < EVENTS_A_SEGMENT):
            self._store.segments.keep()
            with self._store.reader() as reads:
                self._page(reads)
        return self._over or (self._writer is not None and self._writer.events >= EVENTS_A_SEGMENT)

    def segment(self) -> str | None:
        """The segment that has been begun, closed and durable; None where nothing more may move."""
        if self._writer is not None and not self._writer.events:
            self.abandon()
        writer, self._writer = self._writer, None
        return None if writer is None else writer.close()

    def abandon(self) -> None:
        """Let there be no segment of what was copied since the last one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()

    def _page(self, reads: Reads) -> None:
        page = movable.streams(reads, self._after)
        self._over = not page
        judging = Judging(reads, self._before)
        for stream in page:
            to_v = _to_v(judging, stream)
            if to_v > stream.moved_v:
                if self._writer is None:
                    self._writer = self._store.segments.write(next_number(reads, self._store.segments))
                room = EVENTS_A_SEGMENT - self._writer.events
                _copy(reads, stream, min(to_v, stream.moved_v + room), self._writer)
                if self._writer.events >= EVENTS_A_SEGMENT:
                    return  # the next segment begins with this stream again
            self._after = stream.id


def _to_v(judging: Judging, stream: Movable) -> int:
    """How far a stream may move; nowhere where an event that would tell is not as it was recorded."""
    try:
        return judging.to_v(stream)
    except (HistoryBroken, msgspec.DecodeError):
        _say_broken(stream.name, stream.moved_v + 1)
        return 0


def _copy(reads: Reads, stream: Movable, to_v: int, writer: SegmentWriter) -> None:
    """Add a stream's lines up to a version. Where the history does not hold nothing more is moved: it is to be found
    where it was altered."""
    head, from_v = stream.head, stream.moved_v + 1
    while from_v <= to_v:
        try:
            page = reads.events(stream.name, from_v, min(to_v, from_v + EVENTS_A_PAGE - 1))
        except HistoryBroken:
            _say_broken(stream.name, from_v)
            return
        for stored in page:
            body = stored.body.encode()
            event = _linked(stream.name, from_v, head, body)
            if event is None:
                _say_broken(stream.name, from_v)
                return
            writer.add(line_of(stored.position, body))
            head, from_v = hashlib.sha256(body).digest(), from_v + 1


def _say_broken(name: str, v: int) -> None:
    """Where it was seen that a history does not hold: at this version, or among those that follow in its page."""
    log.error("history_does_not_hold", extra={"fields": {"event": f"{name}/{v}"}})


def _linked(name: str, v: int, head: bytes | None, body: bytes) -> AnyEvent | None:
    """The event of these bytes where it is the one that follows; None where it is not."""
    try:
        event = decode(body)
    except msgspec.DecodeError:
        return None
    fits = (event.stream, event.v, event.prev) == (name, v, None if head is None else head.hex())
    return event if fits else None
