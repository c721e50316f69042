"""The server shell in a thread of its own, with an application that shows what it got, and what tests say about it."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from api import answers
from api.answers import BadRequest, json_answer, oauth_error, with_body
from api.forms import read_body
from api.server import Parser, Server, loop_factory
from api.settings import Settings
from tests.wire import Answer, Connection, check_answer

PARSERS: tuple[Parser, ...] = ("httptools", "h11")
HOST = b"Host: localhost\r\n"
QUICK = Settings(port=0, allow_plain_http=True, request_timeout_seconds=1.0, keep_alive_seconds=1.0)
"""Deadlines long enough that a busy machine answers in time, and short enough that a test can wait for them."""


class Running:
    """A server that serves: its port, and a way to run code in its loop."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.exit_code: int | None = None

    @property
    def port(self) -> int:
        return self.server.settings.port

    def connect(self, **options: Any) -> Connection:
        return Connection(("127.0.0.1", self.port), **{"timeout_seconds": 5.0, **options})

    def do(self, coroutine: Any) -> Any:
        """Run a coroutine in the server's loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def stop(self) -> None:
        """Ask for the end in order, and return at once."""
        self.loop.call_soon_threadsafe(self.server.request_stop)


@contextmanager
def serving(
    app: Any, *, parser: Parser = "auto", fast_loop: bool = True, settings: Settings | None = None, **options: Any
) -> Iterator[Running]:
    """Serve an application on a free port of 127.0.0.1 until the block ends."""
    settings = settings or Settings(port=0, allow_plain_http=True)
    ready = threading.Event()
    running: list[Running] = []
    failed: list[BaseException] = []

    async def main() -> None:
        server = Server(app, settings, parser=parser, **options)
        await server.start()
        running.append(Running(server, asyncio.get_running_loop()))
        ready.set()
        running[0].exit_code = await server.wait()

    def thread_main() -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory() if fast_loop else None) as runner:
                runner.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=thread_main)
    thread.start()
    ready.wait(20)
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield running[0]
    finally:
        if thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it may end by itself right now
                running[0].stop()
                running[0].stop()  # a test that is over waits for nobody
        thread.join(20)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


@contextmanager
def serving_with(parser: Parser, settings: Settings | None = None) -> Iterator[Running]:
    """Serve a Shower: with httptools on uvloop, as everywhere, or with h11 on asyncio, where those do not install."""
    with serving(Shower(), parser=parser, fast_loop=parser == "httptools", settings=settings) as running:
        yield running


def exchange(server: Running, raw: bytes) -> Answer:
    """Send one request on a connection of its own."""
    with server.connect() as connection:
        return connection.exchange(raw)


def check_refused(answer: Answer, statuses: set[int]) -> None:
    """Assert that a request was refused by the shell: a status, the shape of RFC 6749 5.2, the connection closed."""
    assert answer.status in statuses, answer.body
    assert "close" == answer.header("Connection")
    assert "no-store" == answer.header("Cache-Control")
    check_answer(answer, "POST", "/explain")
    assert "invalid_request" == answer.json()["error"]


class Shower:
    """An application with one behaviour a path; `/echo` and every unknown one tell what arrived."""

    def __init__(self, limit: int = 8192) -> None:
        self.limit = limit
        self.release = threading.Event()
        self.bodies: list[bytes] = []
        self.gone = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        behaviour = getattr(self, "do_" + scope["path"].strip("/").replace("/", "_"), self.do_echo)
        try:
            await behaviour(scope, receive, send)
        except BadRequest as error:
            await error.answer().send(send)

    async def do_echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = await read_body(receive, self.limit)
        self.bodies.append(body)
        await _told(scope, body).send(send)

    async def do_held(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer when the test says so."""
        body = await read_body(receive, self.limit)
        while not self.release.is_set():
            await asyncio.sleep(0.005)
        await _told(scope, body).send(send)

    async def do_early(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer without a look at the body."""
        await oauth_error(401, "invalid_client").send(send)

    async def do_big(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with more than any socket buffers."""
        await with_body(200, b"x" * 32_000_000, []).send(send)

    async def do_stream(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer in parts, without a length."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for part in (b"one,", b"two,", b""):
            await send({"type": "http.response.body", "body": part, "more_body": bool(part)})

    async def do_endless(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer in parts until nobody reads them."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"one,", "more_body": True})
                await asyncio.sleep(0.01)
        finally:
            self.gone += 1

    async def do_empty(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 204."""
        await answers.Answer(204, b"", []).send(send)

    async def do_boom(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a defect\non two lines")

    async def do_half(self, scope: Any, receive: Any, send: Any) -> None:
        """Fail when half an answer is out."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        raise ValueError("half")

    async def do_nothing(self, scope: Any, receive: Any, send: Any) -> None:
        """Forget to answer."""

    async def do_started(self, scope: Any, receive: Any, send: Any) -> None:
        """Start to answer, and forget the rest."""
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def do_split(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with a header that would be two."""
        await with_body(200, b"", [(b"x-a", b"1\r\nx-b: 2")]).send(send)

    async def do_lie(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with a length that is not the body's."""
        await answers.Answer(200, b"abc", [(b"content-length", b"5")]).send(send)

    async def do_unlimited(self, scope: Any, receive: Any, send: Any) -> None:
        """Read whatever comes, and do not know of TooLarge."""
        more = True
        length = 0
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        await json_answer(200, {"length": length}).send(send)


def _told(scope: Any, body: bytes) -> answers.Answer:
    told = {name: scope[name] for name in ("method", "path", "http_version", "scheme")}
    told |= {
        "query": scope["query_string"].decode(),
        "body": body.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "state": {name: scope["state"][name] for name in ("local", "draining")},
    }
    return json_answer(200, told)


class Lines(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def events(self) -> list[str]:
        return [str(record.msg) for record in self.records]


@contextmanager
def logged() -> Iterator[Lines]:
    """Collect every log line of the process, of whatever level, while the block runs."""
    lines = Lines()
    root = logging.getLogger()
    before = root.level
    root.addHandler(lines)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(lines)
        root.setLevel(before)


def check_quiet(lines: Lines) -> None:
    """Assert that nothing above `info` and no traceback was logged: hostile input is no event."""
    assert [] == [record.getMessage() for record in lines.records if record.exc_info]
    assert [] == [record.getMessage() for record in lines.records if record.levelno > logging.INFO]


def connect_soon(port: int) -> Connection:
    """Connect to a server that is starting."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return Connection(("127.0.0.1", port), timeout_seconds=5)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
