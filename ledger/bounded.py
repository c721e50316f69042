"""Memory that is bounded: where it is full, those that came first leave, and are read again when they are asked for."""

from itertools import islice
from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

AT_ONCE: Final = 256
"""How many leave together. Looking for the first steps over whatever has left since the dict last grew: for each alone
that comes to a walk over most of the dict. More of them would keep everybody waiting while they are freed."""


def make_room(kept: dict[K, V], at_most: int) -> None:
    """Let one more in: of `at_most` or more, those beyond it leave, and an eighth with them, up to `AT_ONCE`."""
    beyond = len(kept) - at_most + 1
    if beyond > 0:
        for key in list(islice(kept, beyond + min(AT_ONCE, at_most // 8))):
            del kept[key]
