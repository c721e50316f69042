"""A pooler in front of the tests' PostgreSQL, as small as one can be: it lends the server's processes to clients.

In transaction pooling all clients are lent one and the same, each for a transaction; in session pooling each has one of
its own until it leaves. In both a client is told another process id than the server's, as by PgBouncer.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.postgres import Server

_KEY, _READY, _LEAVE, _IDLE = b"K", b"Z", b"X", b"I"


class _Lent:
    """A process of the server, and what it said when it was begun."""

    def __init__(self, server: Server, startup: bytes) -> None:
        self.free = threading.Lock()
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(f"{server.folder}/.s.PGSQL.{server.port}")
        self.server.sendall(startup)
        self.greeting = b""
        while (message := _message(self.server))[:1] != _READY:
            self.greeting += message if message[:1] != _KEY else message[:5] + bytes(8)
        self.greeting += message

    def serve_transaction(self, client: socket.socket) -> bool:
        """Serve a client until its transaction is over; False where it has left instead of beginning one."""
        first = _message(client)
        if first[:1] in (b"", _LEAVE):
            return False
        with self.free:
            self.server.sendall(first)
            while True:
                for readable in select.select([client, self.server], [], [])[0]:
                    message = _message(readable)
                    (client if readable is self.server else self.server).sendall(message)
                    if readable is self.server and message[:1] == _READY and message[-1:] == _IDLE:
                        return True


def _message(sock: socket.socket) -> bytes:
    """One message whole; nothing where nobody is there any more."""
    head = _exactly(sock, 5)
    return head + _exactly(sock, int.from_bytes(head[1:], "big") - 4) if head else b""


def _exactly(sock: socket.socket, count: int) -> bytes:
    return sock.recv(count, socket.MSG_WAITALL) if count else b""


@contextmanager
def pooled(server: Server, url: str, *, by_transaction: bool) -> Iterator[str]:
    """The URL by which a database is reached through a pooler until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    shared: list[_Lent] = []
    one_at_a_time = threading.Lock()

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            length = _exactly(client, 4)
            startup = length + _exactly(client, int.from_bytes(length, "big") - 4)
            with one_at_a_time:
                lent = shared[0] if shared and by_transaction else _Lent(server, startup)
                shared.append(lent)
            client.sendall(lent.greeting)
            while lent.serve_transaction(client):
                pass
            if not by_transaction:
                lent.server.close()
        client.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    database = url.partition("?")[0].rpartition("/")[2]
    try:
        yield (
            f"postgresql://postgres@127.0.0.1:{listener.getsockname()[1]}/{database}?sslmode=disable&gssencmode=disable"
        )
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in shared:
            each.server.close()
