"""Random bytes, drawn from the operating system in large pieces. Passed in wherever something random is made."""

import os
from collections.abc import Callable

Randomness = Callable[[int], bytes]
"""Gives that many unguessable bytes."""

_DRAW_BYTES = 4096


def system_randomness() -> Randomness:
    """Bytes of the kernel's generator, each given out once. Not for sharing between threads or across a fork."""
    store = bytearray()

    def draw(count: int) -> bytes:
        nonlocal store
        if len(store) < count:
            store = bytearray(os.urandom(max(_DRAW_BYTES, count)))
        taken = bytes(store[-count:])
        del store[-count:]
        return taken

    return draw
