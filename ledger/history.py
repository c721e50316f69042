"""Finding one moment in a grant's own history: how a generation came to be redeemed, and what retired it.

Generations grow with `v`, so a search that doubles its steps back from the end and then halves finds any of them.
The work grows with the logarithm of how far back it lies, never with the grant's age (I-22).
"""

from collections.abc import Callable
from typing import Protocol

from ledger import times
from ledger.commands import FirstRedemption
from ledger.events import (
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


def first_redemption(events: Events, stream: str, last_v: int, generation: int) -> FirstRedemption | None:
    """How a generation of a grant was first redeemed; None where it never was, or never existed.

    `stream` is the grant's, `last_v` its last version. The event that retired the generation is its rotation, and
    where it was never rotated (reuse mode), its redemption.
    """
    if not 0 <= generation <= _current(events, stream, last_v):
        return None
    made_v = _first_reaching(events, stream, last_v, generation)
    redeemed = _next_redemption(events, stream, made_v, last_v)
    if redeemed is None or redeemed.generation != generation:
        return None
    retired_by: AnyEvent = redeemed
    if _current(events, stream, last_v) > generation:
        retired_by = events.event_at(stream, _first_reaching(events, stream, last_v, generation + 1))
    return FirstRedemption(
        context=redeemed.context, at=times.micros(redeemed.at), rotation_event_id=retired_by.event_id
    )


def _first_reaching(events: Events, stream: str, last_v: int, generation: int) -> int:
    """The version that made a generation, which must exist: its rotation, or for 0 the issuance."""

    def reached(v: int) -> bool:
        return v > 0 and _current(events, stream, v) >= generation

    return _first(reached, last_v)


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


def _current(events: Events, stream: str, v: int) -> int:
    """The generation that was current after version `v`, -1 before the issuance. Events that do not say are few in a
    row: what can be recorded between two redemptions is bounded (I-21)."""
    while v > 0:
        match events.event_at(stream, v):
            case TokenRotated(generation=generation) | TokenRedeemed(generation=generation):
                return generation
            case GrantIssued(generation=generation):
                return generation
            case RetryServed(presented_generation=presented):
                return presented + 1
            case ReuseDetected(current_generation=current) | RollbackDetected(current_generation=current):
                return current
            case _:
                v -= 1
    return -1


def _next_redemption(events: Events, stream: str, v: int, last_v: int) -> TokenRedeemed | None:
    """The first redemption after version `v`."""
    while v < last_v:
        v += 1
        event = events.event_at(stream, v)
        if isinstance(event, TokenRedeemed):
            return event
    return None
