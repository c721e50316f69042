"""What stands between a ledger and its PostgreSQL, and does what networks do: loses answers, falls silent, parts."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

ROTATION = b"grant.token_rotated"


@dataclass
class Proxy:
    """A TCP proxy in threads. `cuts`: so many times the next batch that rotates a token loses its connection: `after`
    it was answered, which nobody hears then, `during` its work, or `before` it reached anybody. `parted`: nobody gets
    through, and who was through is cut off. `silent`: bytes are kept back in both directions, as by a network that
    drops them, and come late; `mute`: those from the server alone; `bytewise`: those come one by one; `catches`:
    batches that rotate a token, of which so many were `held`."""

    to_port: int
    port: int = 0
    cuts: int = 0
    cut_when: Literal["before", "during", "after"] = "after"
    cut: int = 0
    parted: bool = False
    silent: threading.Event = field(default_factory=threading.Event)
    mute: threading.Event = field(default_factory=threading.Event)
    bytewise: threading.Event = field(default_factory=threading.Event)
    catches: threading.Event = field(default_factory=threading.Event)
    held: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listener: socket.socket | None = None
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.part()

    def part(self) -> None:
        """Let nobody through from here on."""
        self.parted = True
        for pair in self._pairs:
            _close(*pair)
        self._pairs.clear()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.parted:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.to_port))
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            lost = threading.Event()
            threading.Thread(target=self._ask, args=(client, server, lost), daemon=True).start()
            threading.Thread(target=self._answer, args=(client, server, lost), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                rotates = ROTATION in data
                self._keep_back(self.silent)
                if rotates and self.catches.is_set():
                    self.held += 1
                    self._keep_back(self.catches)
                when = self._cut() if rotates else None
                if when == "after":
                    lost.set()
                if when != "before":
                    server.sendall(data)
                if when in ("before", "during"):
                    break
        _close(client, server)

    def _cut(self) -> Literal["before", "during", "after"] | None:
        """Whether this batch loses its connection, and when."""
        with self._lock:
            if self.cuts == 0:
                return None
            self.cuts -= 1
            self.cut += self.cut_when != "after"
            return self.cut_when

    def _answer(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                self._keep_back(self.silent)
                self._keep_back(self.mute)
                if lost.is_set():
                    self.cut += 1
                    break
                for piece in self._pieces(data):
                    client.sendall(piece)
        _close(client, server)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if not self.bytewise.is_set():
            yield data
            return
        for each in data:
            yield bytes((each,))
            time.sleep(0.001)

    def _keep_back(self, while_set: threading.Event) -> None:
        while while_set.is_set() and not self.parted:
            threading.Event().wait(0.01)


def _close(*those: socket.socket) -> None:
    for each in those:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    """A proxy in front of a port of this machine until the block ends."""
    proxy = Proxy(port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
