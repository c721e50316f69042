"""What every list takes: a cursor, a limit, and moments (RFC 3339)."""

from typing import Final

from api.answers import BadRequest
from ledger import times

LIMIT: Final = 100
LIMIT_MAX: Final = 1000
_POSITION_MAX: Final = (1 << 63) - 1
_DIGITS_MAX: Final = 19


def limit_of(given: str | int | None) -> int:
    """Read `limit`: 1–1000, 100 where left out, more is clamped. Raises BadRequest for anything else."""
    if given is None:
        return LIMIT
    if isinstance(given, str):
        given = int(given[:_DIGITS_MAX]) if given.isascii() and given.isdigit() else 0
    if given < 1:
        raise BadRequest(f"limit is a whole number from 1 to {LIMIT_MAX}")
    return min(given, LIMIT_MAX)


def cursor_of(given: str | None) -> int:
    """Read a cursor that an earlier page gave; 0, the beginning, where left out. Raises BadRequest."""
    if given is None:
        return 0
    if not (given.isascii() and given.isdigit() and len(given) <= _DIGITS_MAX) or int(given) > _POSITION_MAX:
        raise BadRequest("cursor is none that a page gave")
    return int(given)


def moment_of(name: str, given: str | None) -> int | None:
    """Read a time of the query in microseconds. Raises BadRequest where it is none, or lacks its offset."""
    if given is None:
        return None
    # In a query an unescaped "+" reads as a space, which stands nowhere else in such a time.
    moment = times.parse(given.replace(" ", "+"))
    if moment is None:
        raise BadRequest(f"{name} is a time of RFC 3339 with its offset, such as 2026-11-26T12:00:00Z")
    return moment
