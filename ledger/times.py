"""Times of the ledger: whole microseconds since 1970 inside, RFC 3339 UTC text with six digits and `Z` outside.

One form each, so that texts of events sort like the moments they name, and arithmetic never meets a float.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

SECOND = 1_000_000
"""One second in the ledger's unit, microseconds."""

_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:(?P<second>\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII
)  # the library's own parser takes more of ISO 8601, and each version of it something else
_MICROSECONDS_MAX = 253_402_300_799 * SECOND + 999_999  # the last moment of year 9999: the text form ends there


class NoTime(msgspec.DecodeError):
    """What is stored as a time is none: somebody has altered it, as they may an event until it cannot be read."""


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
    """Write a moment as `2026-11-25T17:18:50.000000Z`. Years 1970–9999; later moments read as the last one. Raises
    NoTime where it lies before all years."""
    if microseconds > _MICROSECONDS_MAX:
        microseconds = _MICROSECONDS_MAX
    seconds, rest = divmod(microseconds, SECOND)
    try:
        return _second_text(seconds) + _fraction_text(rest)
    except (ValueError, OverflowError, OSError):  # as the system's own calendar puts it
        raise NoTime("a time that tells it lies before all years") from None


@lru_cache(maxsize=4096)
def micros(stored: str) -> int:
    """Read back what `text` wrote. Stored texts only. Raises NoTime where somebody has altered one so that nothing can
    be made of it; `known` looks closer."""
    try:
        return _second_value(stored[:19]) * SECOND + _fraction_value(stored[20:])
    except ValueError:
        raise NoTime("a time that tells it is none") from None


def known(stored: str) -> int | None:
    """As `micros`, of a text that somebody may have altered: None where `text` cannot have written it."""
    try:
        moment = micros(stored)
        return moment if text(moment) == stored else None
    except NoTime:
        return None


def is_moment(microseconds: int) -> bool:
    """Whether a number can be a moment of the years that `text` writes."""
    return 0 <= microseconds <= _MICROSECONDS_MAX


def moment(stored: str | None) -> int | None:
    """As `micros`, of a time that an event need not have."""
    return None if stored is None else micros(stored)


def parse(given: str) -> int | None:
    """Read a time that somebody else wrote: RFC 3339 5.6 with any offset; None where it is none or lacks its offset.

    Digits beyond microseconds count for nothing. A leap second is the moment after it, for POSIX clocks have none; what
    lies before 1970 is the first moment of that year, for nothing here is older.
    """
    told = given.upper()
    found = _RFC_3339.fullmatch(told) if len(told) <= 64 else None
    if found is None:
        return None
    leap = found["second"] == "60"
    try:
        moment = datetime.fromisoformat(f"{told[:17]}59{told[19:]}" if leap else told)
        whole = int(moment.replace(microsecond=0).timestamp()) + leap
        if leap and not _second_text(whole).endswith("-01T00:00:00"):
            return None  # a month of UTC ends with it (RFC 3339 5.7)
    except ValueError:
        return None
    return whole * SECOND + moment.microsecond if whole >= 0 else 0
