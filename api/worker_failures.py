"""Failed authentications, told to the other workers of the same server, so that a guess counts whoever it reached.

One datagram a failure to each of the others, through pairs of sockets that the parent makes: nobody waits for it, and
one that finds no room is not told. What it holds is a client id or what stands for none, and an address: no secret.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

_BETWEEN = "\0"  # in neither of the two
DATAGRAM_BYTES_MAX = 4096
HEARD_AT_ONCE_MAX = 100


def pairs(workers: int) -> list[tuple[socket.socket, socket.socket]]:
    """For each worker the socket that it hears on and the one that the others tell it by."""
    made = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(workers)]
    for sock in (end for pair in made for end in pair):
        sock.setblocking(False)
    return made


class Failures:
    """One worker's ends."""

    def __init__(self, hearing: socket.socket, telling: Sequence[socket.socket]) -> None:
        self._hearing = hearing
        self._telling = telling

    def tell(self, who: str, address: str) -> None:
        """Say that a caller failed to authenticate here."""
        message = f"{who}{_BETWEEN}{address}".encode()[:DATAGRAM_BYTES_MAX]
        for sock in self._telling:
            with contextlib.suppress(OSError):  # full, or its worker is just being started again
                sock.send(message)

    def follow(self, count: Callable[[str, str], object]) -> None:
        """Count what others say from now on, in the running loop."""
        asyncio.get_running_loop().add_reader(self._hearing, self._hear, count)

    def _hear(self, count: Callable[[str, str], object]) -> None:
        for _ in range(HEARD_AT_ONCE_MAX):
            try:
                message = self._hearing.recv(DATAGRAM_BYTES_MAX)
            except OSError:
                return
            who, between, address = message.decode("utf-8", "replace").partition(_BETWEEN)
            if between:
                count(who, address)
