"""How a command reaches the ledger: through the socket beside the database where a server runs, else in process.
On PostgreSQL, which many may write to, always in process.

Both ways carry the same HTTP requests to the same application, so a command can do what a client or an operator can
do, and in the same words. What comes over the socket is the operator `local` with every role: the socket's mode (0600)
is its whole authentication, and it lies where only the owner of the database may look.

The socket's name follows from the database's, so there is nothing to configure; `api/server.py` opens it. One that a
killed server left behind refuses connections, which is how it is told from a live one; the next server replaces it.
"""

import contextlib
import hashlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

from api.sockets import short_address
from ledger.owner import Owned
from ledger.refusals import LedgerError

if TYPE_CHECKING:  # each way imports what it needs when it is taken: starting is most of a command's time
    import asyncio

NAME_BYTES_MAX = 64
ANSWER_SECONDS_MAX = 60.0
OWNER_SECONDS_MAX = 10.0
"""How long a command waits for a server that is starting or stopping, or for another command at work."""

Json = Any
Asgi = Callable[[MutableMapping[str, Any], Callable[..., Any], Callable[..., Any]], Any]
OnLine = Callable[[bytes], None]


class Answer(NamedTuple):
    """What came back. Header names in lower case; `body` is the last line only where lines were followed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Json:
        """The body as JSON, None where there is none."""
        return json.loads(self.body) if self.body else None


class Local(Protocol):
    """A way to the ledger."""

    def request(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        headers: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Answer:
        """Send one request; a body goes as JSON. With `on_line` the answer's lines are handed over as they come.

        Raises LedgerError where the server went away: whether the request took effect is then unknown.
        """
        ...


# ---------------------------------------------------------------- the socket


def socket_path(database: Path) -> Path:
    """Where the socket of a database lies: beside it, by whatever link the database is reached."""
    real = Path(os.path.realpath(database))
    name = real.name + ".sock"
    if len(os.fsencode(name)) > NAME_BYTES_MAX:
        name = f".{hashlib.blake2b(os.fsencode(real.name), digest_size=12).hexdigest()}.sock"
    return real.with_name(name)


def connect(path: Path) -> socket.socket | None:
    """Connect to the server that owns the database; None where none listens.

    Raises LedgerError where one may listen but not for us.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(path) as address:
            connection.connect(address)
        return connection
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise LedgerError(f"{path}: cannot reach the server: {error.strerror or error}") from None


class OverSocket:
    """Requests to a running server, one connection for all of them: another only where the server has closed it."""

    def __init__(self, connected: socket.socket, path: Path) -> None:
        from http.client import HTTPConnection

        self._path = path
        self._connection: HTTPConnection = HTTPConnection("localhost")
        self._connection.sock = connected
        self._connection.auto_open = 0  # a connection that is gone is not opened anew, to another place at that

    def request(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        headers: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Answer:
        from http.client import HTTPException

        content, fields = _encoded(body, headers)
        connection = self._connection
        self._connect_again()
        if connection.sock is not None:
            connection.sock.settimeout(None if on_line else ANSWER_SECONDS_MAX)
        try:
            connection.request(method, path, content, fields)
            response = connection.getresponse()
            if on_line and response.status == 200:
                last = b""
                for line in response:
                    last = line
                    on_line(line)
                text = last
            else:
                text = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, text)
        except (OSError, HTTPException) as error:
            detail = str(error) or type(error).__name__
            raise LedgerError(
                f"the server gave no answer ({detail}): whether it did what was asked is unknown"
            ) from None

    def _connect_again(self) -> None:
        """A server closes a connection that asks nothing for a while, and whoever reads a list page by page may take
        longer. Nothing was asked yet. (Where no server listens any more the request says so.)"""
        held = self._connection.sock
        if held is not None and not select.select([held], [], [], 0)[0]:
            return
        if (connected := connect(self._path)) is not None:
            self._connection.close()
            self._connection.sock = connected

    def close(self) -> None:
        self._connection.close()


def _encoded(body: Json, headers: Mapping[str, str] | None) -> tuple[bytes | None, dict[str, str]]:
    fields = {"User-Agent": "token-ledger", **(headers or {})}
    if body is None:
        return None, fields
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return content, {**fields, "Content-Type": "application/json"}


# ---------------------------------------------------------------- in process


class InProcess:
    """Requests to the application itself, on an event loop of our own that runs only while one is answered."""

    def __init__(self, runner: "asyncio.Runner", app: Asgi) -> None:
        self._runner = runner
        self._app = app

    def request(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        headers: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Answer:
        content, fields = _encoded(body, headers)
        return self._runner.run(exchange(self._app, method, path, content or b"", fields, on_line))


async def exchange(
    app: Asgi, method: str, path: str, content: bytes, headers: Mapping[str, str], on_line: OnLine | None = None
) -> Answer:
    """Ask an ASGI application one question, as a server would that got it over the socket beside the database."""
    import asyncio

    target, _, query = path.partition("?")
    fields = {"Host": "localhost", "Content-Length": str(len(content)), **headers}
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(target),
        "raw_path": target.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()],
        "client": None,
        "server": None,
        "state": {"local": True},
    }
    parts = [{"type": "http.request", "body": content, "more_body": False}]
    start: dict[str, Any] = {}
    received = bytearray()
    last = b""

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()  # nobody hangs up on themselves
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal last
        if message["type"] == "http.response.start":
            start.update(message)
            return
        received.extend(message.get("body", b""))
        while on_line and start["status"] == 200 and (end := received.find(b"\n") + 1):
            last = bytes(received[:end])
            del received[:end]
            on_line(last)

    await app(scope, receive, send)
    if on_line and received and start["status"] == 200:
        last = bytes(received)  # the last line needs no end
        on_line(last)
    found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], found, last or bytes(received))


# ---------------------------------------------------------------- whichever there is


@contextmanager
def reach(database: Path | None, open_app: Callable[[], AbstractAsyncContextManager[Asgi]]) -> Iterator[Local]:
    """Reach the ledger on this file: its server where one runs, else the application that `open_app` opens. A store
    that is no file (None) has no owner, so it is opened beside whoever serves it.

    Waits a while for an owner that is only passing: a server that starts or stops, another command at work.
    Raises LedgerError where neither way opens.
    """
    path = None if database is None else socket_path(database)
    deadline = time.monotonic() + OWNER_SECONDS_MAX
    with contextlib.ExitStack() as stack:
        runner: asyncio.Runner | None = None
        while True:
            if path is not None and (connected := connect(path)) is not None:
                yield stack.enter_context(contextlib.closing(OverSocket(connected, path)))
                return
            runner = runner or stack.enter_context(_new_runner())
            opened = open_app()
            try:
                app = runner.run(_entered(opened))
            except Owned as owned:
                if time.monotonic() > deadline:
                    told = f"{owned}; nothing listens on {path}: wait for a command, restart a server"
                    raise Owned(told) from None
                time.sleep(0.05)
                continue
            stack.callback(lambda loop, held: loop.run(_left(held)), runner, opened)
            yield InProcess(runner, app)
            return


def _new_runner() -> "asyncio.Runner":
    import asyncio

    return asyncio.Runner()


async def _entered(opened: AbstractAsyncContextManager[Asgi]) -> Asgi:
    return await opened.__aenter__()


async def _left(opened: AbstractAsyncContextManager[Asgi]) -> None:
    await opened.__aexit__(None, None, None)
