"""What SQLite calls a stream by: a number. A grant's nearly always follows from its id, any other stream's is counted.

So a refresh of a grant that no memory holds finds its rows by that number, which keeps them in the order in which
grants began, and does not look through the index on names first. The number is no promise: two ids may come to the same
one, and grants of earlier releases were counted too. Whoever finds another name there, or none, asks by the name.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

# 48 bits milliseconds, and the last 24 of 50 random bits (`new_grant_id`).
_GRANT: Final = re.compile("grant:([0-9a-f]{12})[0-9a-f]{14}([0-9a-f]{6})")

COUNTED_BELOW: Final = 1 << 60
"""Numbers that follow from an id are not below this one (in ids since 1987); those that are counted are."""

_RANDOM_BITS: Final = 21
"""Among a thousand grants of one millisecond two come to the same number one time in four."""

_LAST: Final = (1 << 63) - (1 << _RANDOM_BITS)


def number_of(name: str) -> int | None:
    """The number that follows from a stream's name (63 bits); None where it is to be counted."""
    grant = _GRANT.fullmatch(name)
    if grant is None:
        return None
    number = int(grant[1], 16) << _RANDOM_BITS | int(grant[2], 16) & (1 << _RANDOM_BITS) - 1
    return number if COUNTED_BELOW <= number < _LAST else None


class Numbers:
    """Gives streams that begin in the open transaction their numbers, none of them twice. `select` asks the store."""

    __slots__ = ("_given", "_last_counted", "_select")

    def __init__(self, select: Callable[[str, Sequence[object]], list[Any]]) -> None:
        self._select = select
        self._given: set[int] = set()  # those that follow from names
        self._last_counted: int | None = None

    def begin(self) -> None:
        """A transaction begins, or has been rolled back: what no stream came to have is given again."""
        self._given.clear()
        self._last_counted = None

    def new(self, name: str) -> int:
        """The number of a stream that begins: the one that follows from its name or the next free one, or counted."""
        number = number_of(name)
        if number is None:
            return self._counted()
        while number in self._given or self._select("SELECT 1 FROM streams WHERE id = ?", (number,)):
            number += 1
        self._given.add(number)
        return number

    def _counted(self) -> int:
        if self._last_counted is None:
            ((last,),) = self._select("SELECT ifnull(max(id), 0) FROM streams WHERE id < ?", (COUNTED_BELOW,))
            self._last_counted = int(last)
        self._last_counted += 1
        return self._last_counted
