"""A line between clients and a server that can lose an answer; TLS runs through it end to end, unread."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.server_process import eventually

APPLICATION_DATA = 23
"""The type of the TLS records that carry a request (RFC 8446 5.1); the handshake's have others."""


class Records:
    """Follows one direction of a TLS connection from record to record."""

    def __init__(self) -> None:
        self._rest = b""

    def types_in(self, data: bytes) -> set[int]:
        """Return the types of the records that these next bytes complete."""
        self._rest += data
        found: set[int] = set()
        while len(self._rest) >= 5 and len(self._rest) >= (end := 5 + int.from_bytes(self._rest[3:5], "big")):
            found.add(self._rest[0])
            self._rest = self._rest[end:]
        return found


class Line:
    """Passes bytes between a port of its own and the server's; `lose` makes it lose the next answer."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.url = f"https://localhost:{self.port}"
        self.server_port = 0
        self.lost = 0
        self._committed: Callable[[], object] | None = None

    def lose(self, committed: Callable[[], object]) -> None:
        """Forward the next request, deliver nothing of its answer, and break its connection once it is committed."""
        self._committed = committed

    async def serve(self, stop: asyncio.Event) -> None:
        """Accept connections until the event is set."""
        server = await asyncio.start_server(self._connected, sock=self.listener)
        await stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        except OSError:
            writer.transport.abort()
            return
        deaf = asyncio.Event()
        answers = asyncio.create_task(self._answers(far_reader, writer, deaf))
        try:
            await self._requests(reader, writer, far_writer, deaf)
        finally:
            far_writer.close()
            await answers
            writer.close()

    async def _requests(
        self, reader: asyncio.StreamReader, near: asyncio.StreamWriter, far: asyncio.StreamWriter, deaf: asyncio.Event
    ) -> None:
        records = Records()
        breaking: asyncio.Task[None] | None = None
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if APPLICATION_DATA in records.types_in(data) and self._committed is not None:
                    deaf.set()  # before the request goes on, so that nothing of its answer slips through
                    committed, self._committed = self._committed, None
                    breaking = asyncio.create_task(self._break(near, committed))
                far.write(data)
                await far.drain()
        if breaking is not None:
            await breaking

    async def _break(self, near: asyncio.StreamWriter, committed: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(eventually, committed, what="the commit")
            self.lost += 1
        finally:
            near.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            near.transport.abort()

    async def _answers(self, far: asyncio.StreamReader, near: asyncio.StreamWriter, deaf: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await far.read(65536):
                if not deaf.is_set():
                    near.write(data)
                    await near.drain()
        if not deaf.is_set():
            near.close()


@contextmanager
def line() -> Iterator[Line]:
    """Run a line in a thread of its own; its `server_port` is set as soon as there is a server."""
    found = Line()
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        ready.set()
        await found.serve(stop)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait(10)
    try:
        yield found
    finally:
        ends[0]()
        thread.join(10)
    assert not thread.is_alive()
