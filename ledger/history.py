"""Finding one moment in a grant's own history: how a generation came to be redeemed, and what retired it; and when an
access token was given back.

Generations grow with `v`, so a search that doubles its steps back from the end and then halves finds any of them.
The work grows with the logarithm of how far back it lies, never with the grant's age (I-22); events that say nothing of
a generation are asked for once at most, however many stand in a row: a client may give all its access tokens back.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ledger import times
from ledger.commands import FirstRedemption
from ledger.events import (
    AccessTokenRevoked,
    AnyEvent,
    GrantIssued,
    RetryServed,
    ReuseDetected,
    RollbackDetected,
    TokenRedeemed,
    TokenRotated,
)


class Events(Protocol):
    """Where one event of a stream can be asked for."""

    def event_at(self, name: str, v: int) -> AnyEvent:
        """The event of that version. It must exist."""
        ...


class Pages(Events, Protocol):
    """Where a page of them can be asked for, too."""

    def page(self, name: str, from_v: int) -> Sequence[AnyEvent]:
        """Stored events of a stream from that version on, oldest first, as many as a page has."""
        ...


def first_redemption(events: Events, stream: str, last_v: int, generation: int) -> FirstRedemption | None:
    """How a generation of a grant was first redeemed; None where it never was, or never existed.

    `stream` is the grant's, `last_v` its last version. The event that retired the generation is its rotation, and
    where it was never rotated (reuse mode), its redemption.
    """
    search = _Search(events, stream, last_v)
    if not 0 <= generation <= search.current(last_v):
        return None
    redeemed = search.next_redemption(search.reaching(generation))
    if redeemed is None or redeemed.generation != generation:
        return None
    retired_by: AnyEvent = redeemed
    if search.current(last_v) > generation:
        retired_by = events.event_at(stream, search.reaching(generation + 1))
    return FirstRedemption(
        context=redeemed.context, at=times.micros(redeemed.at), rotation_event_id=retired_by.event_id
    )


def revocation(events: Pages, stream: str, last_v: int, issued_v: int, at: int | None) -> AccessTokenRevoked | None:
    """The event by which the access token that event `issued_v` of a grant minted was given back; None where it is not
    found.

    `at` is when (microseconds), as far as the grant remembers, and then it is found by halving: no event of a stream is
    earlier than one before it. Else it is looked for in one page of what followed the issuance, and no further.
    """
    if at is not None:
        later = range(issued_v + 1, last_v + 1)
        first = bisect_left(later, at, key=lambda v: times.micros(events.event_at(stream, v).at))
        found: Iterable[AnyEvent] = (events.event_at(stream, v) for v in later[first:])
    else:
        found = events.page(stream, issued_v + 1)
    return next((each for each in found if isinstance(each, AccessTokenRevoked) and each.issued_v == issued_v), None)


class _Search:
    """One search through a stream up to a version, which remembers what it has learnt of others."""

    def __init__(self, events: Events, stream: str, last_v: int) -> None:
        self._events = events
        self._stream = stream
        self._last_v = last_v
        self._known: dict[int, int] = {0: -1}

    def reaching(self, generation: int) -> int:
        """The version that made a generation, which must exist: its rotation, or for 0 the issuance."""
        return _first(lambda v: self.current(v) >= generation, self._last_v)

    def current(self, v: int) -> int:
        """The generation that was current after version `v`, -1 before the issuance."""
        passed = []
        while v not in self._known:
            passed.append(v)
            said = _generation_after(self._events.event_at(self._stream, v))
            if said is not None:
                self._known[v] = said
            else:
                v -= 1
        found = self._known[v]
        self._known.update(dict.fromkeys(passed, found))
        return found

    def next_redemption(self, v: int) -> TokenRedeemed | None:
        """The first redemption after version `v`."""
        while v < self._last_v:
            v += 1
            event = self._events.event_at(self._stream, v)
            if isinstance(event, TokenRedeemed):
                return event
        return None


def _generation_after(event: AnyEvent) -> int | None:
    """The generation that was current after this event, None where it does not say."""
    match event:
        case TokenRotated() | TokenRedeemed() | GrantIssued():
            return event.generation
        case RetryServed():
            return event.presented_generation + 1
        case ReuseDetected() | RollbackDetected():
            return event.current_generation
    return None


def _first(reached: Callable[[int], bool], last_v: int) -> int:
    """The lowest version that is reached; `last_v` is, 0 is not, and all above a reached one are."""
    high, low, step = last_v, last_v - 1, 1
    while reached(low):
        high, low, step = low, max(0, low - 2 * step), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high
