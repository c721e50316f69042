"""Presentations that are counted instead of recorded one by one, and the burst limit. In memory, bounded.

Whoever presents a token of an ended grant a million times makes a few events, not a million (I-21): counts are kept
here and flushed as `grant.presentations_counted`, at most once a minute and grant, when they have passed a power of
two. A crash loses the tail of a count, never a fact.
"""

from collections import OrderedDict
from collections.abc import Iterator

from ledger.answers import Source
from ledger.times import SECOND

FLUSH_EVERY_SECONDS = 60
COUNTED_GRANTS_MAX = 10_000
BURST_GRANTS_MAX = 50_000


class Counted:
    """Presentations of one grant since the last flush. Times in microseconds; `declined` the count that the rules last
    wanted no event for; `ended` whether the grant was over."""

    __slots__ = (
        "count", "declined", "ended", "first_at", "flushed_at", "last_at", "last_generation", "last_source",
    )  # fmt: skip

    def __init__(self, at: int, source: Source) -> None:
        self.count = 0
        self.declined = 0
        self.ended = False
        self.first_at = at
        self.last_at = at
        self.last_generation = 0
        self.last_source = source
        self.flushed_at = 0


class Presentations:
    """What has been counted and not flushed, by grant."""

    def __init__(self) -> None:
        self._counted: OrderedDict[str, Counted] = OrderedDict()  # of this kind because the oldest leaves at once

    def count(self, grant_id: str, generation: int, source: Source, at: int, *, ended: bool = False) -> None:
        """One more presentation of a generation from a source; `ended` where its grant is over. Counts begin anew at
        the end: what was counted before it and is in no event yet is dropped."""
        counted = self._counted.pop(grant_id, None)
        if counted is None:
            if len(self._counted) >= COUNTED_GRANTS_MAX:  # the one heard of least recently leaves, its tail with it
                self._counted.popitem(last=False)
            counted = Counted(at, source)
        if ended and not counted.ended:
            counted.ended = True
            counted.count = counted.declined = 0
        if counted.count == 0:
            counted.first_at = at
        self._counted[grant_id] = counted
        counted.count += 1
        counted.last_at = at
        counted.last_generation = generation
        counted.last_source = source

    def waiting(self, grant_id: str, *, ended: bool = False) -> int:
        """How many presentations of a grant are counted and in no event yet. `ended`: of one that has ended."""
        counted = self._counted.get(grant_id)
        return counted.count if counted and counted.ended == ended else 0

    def due(self, now: int, *, all_of_them: bool = False) -> Iterator[tuple[str, Counted]]:
        """Grants whose count may be flushed now: a minute has passed since their last flush, and more were counted
        since the rules last declined. `all_of_them`: whatever is counted."""
        for grant_id, counted in list(self._counted.items()):
            waited = abs(now - counted.flushed_at) >= FLUSH_EVERY_SECONDS * SECOND and counted.count > counted.declined
            if counted.count and (waited or all_of_them):
                yield grant_id, counted

    def flushed(self, grant_id: str, count: int, at: int) -> None:
        """That many presentations of a grant stand in an event now; 0: the rules wanted none yet."""
        counted = self._counted.get(grant_id)
        if counted is None:
            return
        if count:
            counted.count -= min(count, counted.count)
            counted.flushed_at = at
        counted.declined = counted.count


class Bursts:
    """How fast unauthenticated clients may redeem one grant: a bucket each, full at first. 0 a second: no limit."""

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._per_second > 0 and self._burst > 0

    def _left(self, grant_id: str, now: int) -> float:
        left, at = self._buckets.get(grant_id, (float(self._burst), now))
        if now < at:  # a clock that was put back fills nothing, and keeps nobody waiting until it has caught up
            self._buckets[grant_id] = (left, now)
            return left
        return min(float(self._burst), left + (now - at) / SECOND * self._per_second)

    def retry_after_seconds(self, grant_id: str, now: int, under_way: int = 0) -> int | None:
        """Whole seconds until the grant may be redeemed again; None where it may be now. `under_way`: how many
        redemptions of it may happen yet, none of them spent."""
        left = self._left(grant_id, now) - under_way
        return None if left >= 1 else max(1, int((1 - left) / self._per_second + 0.999))

    def spend(self, grant_id: str, now: int) -> None:
        """A redemption happened: not before it is durable, for what is decided again would spend twice."""
        left = self._left(grant_id, now)
        self._buckets.pop(grant_id, None)
        if len(self._buckets) >= BURST_GRANTS_MAX:
            self._buckets.popitem(last=False)
        self._buckets[grant_id] = (left - 1, now)
