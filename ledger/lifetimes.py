"""How long things live: each end is set once, in the event that sets it, and the least of all that apply wins.

Moments are microseconds, lifetimes whole seconds; None is unlimited (RFC 9700 2.2.2, 4.14.2).
"""

from functools import lru_cache

from ledger import times
from ledger.policy import SECONDS_MAX
from ledger.refusals import Refusal, Refused
from ledger.times import SECOND


def access_token_life(wall_clock: int, ttl_seconds: int, absolute_expires_at: int | None) -> tuple[int, int]:
    """Issue and expiry of an access token, both whole seconds of the wall clock, never beyond the grant's end.

    At least a second apart, provided that the grant has one left.
    """
    issued_at = wall_clock - wall_clock % SECOND
    expires_at = issued_at + ttl_seconds * SECOND
    if absolute_expires_at is not None and absolute_expires_at < expires_at:
        expires_at = absolute_expires_at - absolute_expires_at % SECOND
    return issued_at, expires_at


def idle_end(at: int, own_seconds: int | None, client_seconds: int | None, absolute: int | None) -> int | None:
    """When a refresh token that is not used expires: the grant's own lifetime, the client's, never past the absolute
    end (I-17)."""
    seconds = client_seconds if own_seconds is None else own_seconds
    if seconds is None:
        return absolute
    if client_seconds is not None and client_seconds < seconds:
        seconds = client_seconds
    idle = at + seconds * SECOND
    return idle if absolute is None or idle < absolute else absolute


def shortened(member: str, asked_seconds: int | None, policy_seconds: int | None) -> int | None:
    """The lifetime of a grant for which one was asked: never longer than its policy's. Raises Refused."""
    if asked_seconds is None:
        return policy_seconds
    if not 1 <= asked_seconds <= SECONDS_MAX or (policy_seconds is not None and asked_seconds > policy_seconds):
        raise Refused(Refusal.INVALID_REQUEST, detail=f"{member} must be at least 1 and no longer than the client's")
    return asked_seconds


@lru_cache(maxsize=256)
def windows(at: int, concurrent: int, retry: int, unconfirmed: int) -> tuple[str | None, str | None, str | None]:
    """The ends of a rotation's three windows as stored. Kept: all rotations of a batch share their moment."""
    return window_end(at, concurrent), window_end(at, retry), window_end(at, unconfirmed)


def window_end(at: int, seconds: int) -> str | None:
    """The last moment of a window as stored; None for one that is off."""
    return times.text(at + seconds * SECOND) if seconds else None
