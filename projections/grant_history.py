"""What happened to this grant, in order? A question to the events themselves; there is no table.

What is told of an event is what was stored, so its hash can be recomputed: `data` holds the members that do not stand
beside it; `event_id`, `position` and `disclosed` are not stored. The epoch that ended the grant stands at its place.

Nothing is told of an event but what the next one, or the stream's head, holds the hash of (I-14).
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ledger import times
from ledger.events import AnyEvent, decode
from ledger.grant import Grant
from ledger.recorded import recorded
from ledger.recorders.errors import HeadMissing, Withheld
from ledger.recorders.rows import Reads, StoredEvent
from projections.as_of import PAGE_EVENTS, Outside, Passed, aggregate, last_reached
from projections.current_tokens import Row, folded, one
from projections.disclosure import Disclosed, Disclosure
from projections.grant_views import Discloses, GrantView, judge, view

_Entry = tuple[StoredEvent, AnyEvent] | str
"""An event as it lies in the store and what it says; of a withheld one no more than its id."""

_BESIDE = ("topic", "stream", "v", "at", "command_id", "prev")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it is shown. `prev` is absent in a stream's first.

    Of an event that the archive's own time is over for no more is told than which it was, and that it is `withheld`.
    """

    event_id: str
    stream: str
    topic: str | UnsetType = UNSET
    v: int
    at: str | UnsetType = UNSET
    position: str | UnsetType = UNSET
    command_id: str | UnsetType = UNSET
    prev: str | UnsetType = UNSET
    data: dict[str, Any] | UnsetType = UNSET
    disclosed: dict[str, Disclosed] | UnsetType = UNSET
    withheld: bool | UnsetType = UNSET


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a grant's history, oldest first, and where a moment was asked about the grant as it was then.

    `cursor` leads on from here at any time, `next_cursor` says that there is more now.
    """

    grant_id: str
    events: list[Told]
    cursor: str
    next_cursor: str | UnsetType = UNSET
    state: GrantView | UnsetType = UNSET


def history(
    reads: Reads,
    grant_id: str,
    now: int,
    *,
    at: int | None = None,
    after: int = 0,
    limit: int,
    discloses: Discloses,
) -> History | None:
    """A grant's events after a cursor, and its state `at` a moment not later than `now` (microseconds).

    None where there is no such grant, or none at that moment yet. Raises Withheld where the archive's own time is over
    for what was true then, HistoryBroken where what it would be told from is not what was recorded. A page costs the
    same whatever the grant's age; the state at a moment that something happened after is folded anew from the first
    event.
    """
    row = one(reads, grant_id)
    if row is None:
        return None
    disclosure = Disclosure(reads) if discloses(row) else None
    state: GrantView | UnsetType = UNSET
    if at is not None:
        then = row_then(reads, row, at)
        if then is None:
            return None
        state = view(then, Outside(reads, at, then=True), disclosure)
    passed = _ended_by(reads, row, now)
    stream = _Stream(reads, grant_id)
    count = stream.last_v + (passed is not None)
    last = min(after + limit, count)
    told = [_told(each, disclosure) for each in stream.between(after, last, passed)]
    cursor = str(max(after, last))
    return History(
        grant_id=grant_id,
        events=told,
        cursor=cursor,
        next_cursor=cursor if last < count else UNSET,
        state=state,
    )


def row_then(reads: Reads, row: Row, at: int) -> Row | None:
    """A grant's row as it was at a moment (microseconds); None where it was not issued yet. Constant memory.

    Found by halving how far the stream had come; where nothing happened later that is the row as it is.
    Raises Withheld, HistoryBroken.
    """
    stream = _Stream(reads, row.grant_id)
    last = times.text(at)
    try:
        last_v = stream.last(lambda stored: decode(stored.body).at <= last)
    except Withheld:
        if aggregate(reads, stream.name, Grant).at > at:
            raise
        return row
    return row if last_v == stream.last_v else folded(_linked_events(reads, stream.name, last_v))


def _ended_by(reads: Reads, row: Row, now: int) -> Passed | None:
    """The epoch that ended the grant: the one that its end names, not one that came when it had ended already."""
    outside = Outside(reads, now)
    passed = outside.ended_by(row)
    if passed is None or judge(reads, row, now, passed.end).event_id != passed.event.event_id:
        return None
    return passed


class _Stream:
    """A grant's own events, and among them the epoch that ended it."""

    def __init__(self, reads: Reads, grant_id: str) -> None:
        self.name = f"grant:{grant_id}"
        self._reads = reads
        head = reads.stream(self.name)
        if head is None:  # a row comes with its first event
            raise HeadMissing(self.name)
        self.last_v = head.v

    def last(self, reached: Callable[[StoredEvent], bool]) -> int:
        """The last version for which `reached` holds."""
        return last_reached(self.last_v, reached, self._event_at)

    def between(self, after: int, last: int, passed: Passed | None) -> list[_Entry]:
        """The entries numbered above `after` up to `last`, in the order of positions. Numbers never change: whatever
        happens later is entered later."""
        if passed is None:
            return self._own(after + 1, last)
        try:
            before = self.last(lambda stored: stored.position < passed.position)
        except Withheld:  # nobody can tell any more where it stands among the others
            before = self.last_v
        entries = self._own(after + 1, min(last, before))
        if after <= before < last:
            entries.append(self._epoch(passed))
        return entries + self._own(max(after, before + 1), last - 1) if last > before + 1 else entries

    def _own(self, from_v: int, to_v: int) -> list[_Entry]:
        try:
            return [(stored, decode(stored.body)) for stored in recorded(self._reads, self.name, from_v, to_v)]
        except Withheld:
            return [self._one(v) for v in range(from_v, to_v + 1)]

    def _one(self, v: int) -> _Entry:
        try:
            stored = self._event_at(v)
        except Withheld:
            return f"{self.name}/{v}"
        return stored, decode(stored.body)

    def _epoch(self, passed: Passed) -> tuple[StoredEvent, AnyEvent]:
        (stored,) = recorded(self._reads, passed.event.stream, passed.event.v, passed.event.v)
        return stored, passed.event

    def _event_at(self, v: int) -> StoredEvent:
        (stored,) = recorded(self._reads, self.name, v, v)
        return stored


def _linked_events(reads: Reads, name: str, to_v: int) -> Iterator[StoredEvent]:
    """A stream's events up to a version, oldest first, read in pages."""
    for from_v in range(1, to_v + 1, PAGE_EVENTS):
        yield from recorded(reads, name, from_v, min(from_v + PAGE_EVENTS - 1, to_v))


def _told(entry: _Entry, disclosure: Disclosure | None) -> Told:
    if isinstance(entry, str):
        stream, _, v = entry.rpartition("/")
        return Told(event_id=entry, stream=stream, v=int(v), withheld=True)
    stored, event = entry
    data: dict[str, Any] = msgspec.json.decode(stored.body)
    for member in _BESIDE:
        data.pop(member, None)
    disclosed = {} if disclosure is None else disclosure.of(event)
    return Told(
        event_id=event.event_id,
        stream=event.stream,
        topic=event.topic,
        v=event.v,
        at=event.at,
        position=str(stored.position),
        command_id=event.command_id,
        prev=UNSET if event.prev is None else event.prev,
        data=data,
        disclosed=disclosed or UNSET,
    )
