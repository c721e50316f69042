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
    return int(datetime.strptime(text + "+0000", "%Y-%m-%dT%H:%M:%S%z").timestamp())


def text(microseconds: int) -> str:
    """Write a moment as `2026-11-25T17:18:50.000000Z`. Years 1970–9999; later moments read as the last one."""
    if microseconds > _MICROSECONDS_MAX:
        microseconds = _MICROSECONDS_MAX
    seconds, rest = divmod(microseconds, SECOND)
    return f"{_second_text(seconds)}.{rest:06d}Z"


def micros(stored: str) -> int:
    """Read back what `text` wrote. Stored texts only: anything else is a programmer's error."""
    return _second_value(stored[:19]) * SECOND + int(stored[20:26])


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
