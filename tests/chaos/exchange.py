"""HTTP for many clients in one event loop, each on connections of its own."""

import asyncio

from tests.servers import Server
from tests.wire import Answer

ANSWER_SECONDS_MAX = 30.0


class Unanswered(Exception):
    """The connection ended, or could not be made, before an answer was whole: its outcome is unknown."""


class NotBegun(Unanswered):
    """There was no connection to send the request on: nothing was asked."""


class Line:
    """One connection to a server, made again when it has gone."""

    def __init__(self, server: Server, *, source: str = "127.0.0.1") -> None:
        self._server = server
        self._source = source
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, raw: bytes, *, dribble_seconds: float = 0.0, check: bool = True) -> Answer:
        """Send a request and read its answer; a dribbled one has its second half sent later. Not checked: one of so
        many at once that its Date is long past when its turn comes to be read.

        Raises NotBegun, Unanswered.
        """
        try:
            reader, writer = await self._connect()
        except OSError as error:
            raise NotBegun(str(error)) from None
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                middle = len(raw) // 2 if dribble_seconds else len(raw)
                writer.write(raw[:middle])
                if dribble_seconds:
                    await writer.drain()
                    await asyncio.sleep(dribble_seconds)
                    writer.write(raw[middle:])
                answer = await _read(reader)
        except (OSError, EOFError) as error:
            self.close()
            raise Unanswered(f"{type(error).__name__}: {error}") from None
        if answer.header("Connection") == "close":
            self.close()
        return self._server.checked(raw, answer) if check else answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # ended between two requests, as it may be
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._server.port, local_addr=(self._source, 0))
        return self._streams

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as is known."""
        return self._streams is not None

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.split("\r\n")[:-2]
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    return Answer(int(status_line.split(" ")[1]), headers, await reader.readexactly(length))
