"""Times of the ledger: whole microseconds since 1970 inside, RFC 3339 UTC text with six digits and `Z` outside.

One form each, so that texts of events sort like the moments they name, and arithmetic never meets a float.
"""

from datetime import UTC, datetime
from functools import lru_cache

SECOND = 1_000_000
"""One second in the ledger's unit, microseconds."""

_MICROSECONDS_MAX = 253_402_300_799 * SECOND + 999_999  # the last moment of year 9999: the text form ends there


@lru_cache(maxsize=4096)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=4096)
def _second_value(text: str) -> int:
    return _day_value(text[:10]) + 3600 * int(text[11:13]) + 60 * int(text[14:16]) + int(text[17:19])


# The events of one command share their fraction of a second: one of them is made, the others are remembered.


@lru_cache(maxsize=256)
def _fraction_text(microseconds: int) -> str:
    return f".{microseconds:06d}Z"


@lru_cache(maxsize=256)
def _fraction_value(text: str) -> int:
    return int(text[:6])


@lru_cache(maxsize=1024)
def _day_value(text: str) -> int:
    return int(datetime.fromisoformat(text + "T00:00:00+00:00").timestamp())


@lru_cache(maxsize=4096)  # a batch has one clock reading: its events share nearly all their times
def text(microseconds: int) -> str:
    """Write a moment as `2026-11-25T17:18:50.000000Z`. Years 1970–9999; later moments read as the last one."""
    if microseconds > _MICROSECONDS_MAX:
        microseconds = _MICROSECONDS_MAX
    seconds, rest = divmod(microseconds, SECOND)
    return _second_text(seconds) + _fraction_text(rest)


@lru_cache(maxsize=4096)
def micros(stored: str) -> int:
    """Read back what `text` wrote. Stored texts only: anything else is a programmer's error."""
    return _second_value(stored[:19]) * SECOND + _fraction_value(stored[20:])


def parse(given: str) -> int | None:
    """Read a time that somebody else wrote: RFC 3339 with any offset; None where it is none or lacks its offset."""
    if len(given) > 64 or "T" not in given.upper():
        return None
    try:
        moment = datetime.fromisoformat(given.upper())
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * SECOND + moment.microsecond if whole >= 0 else None
