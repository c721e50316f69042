"""The socket beside the database, and the same application in process."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from api import local, sockets
from ledger.owner import Owned, OwnerLock
from ledger.refusals import LedgerError
from tests.servers import running

Message = MutableMapping[str, Any]


async def echo(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer with what was asked; `/lines` in three parts that do not end where lines end."""
    if scope["type"] != "http":
        return
    asked = (await receive())["body"]
    told = {"path": scope["path"], "query": scope["query_string"].decode(), "body": asked.decode()}
    told |= {"client": scope["client"], "agent": dict(scope["headers"]).get(b"user-agent", b"").decode()}
    parts = [b'{"done": 1}\n{"do', b'ne": 2}\n', b'{"result": 3}'] if scope["path"] == "/lines" else []
    kind = (b"content-type", b"application/json")
    await send({"type": "http.response.start", "status": 404 if scope["path"] == "/no" else 200, "headers": [kind]})
    for part in parts or [json.dumps(told).encode()]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def listening(path: Path) -> socket.socket:
    """The socket as a server opens it."""
    opened = sockets.bind_local(path)
    opened.listen()
    return opened


def one_answer(listener: socket.socket, answer: bytes) -> threading.Thread:
    """Serve one connection on the socket with a fixed answer, then close it."""

    def serve() -> None:
        listener.setblocking(True)
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_socket_lies_beside_the_database_by_whatever_link_it_is_reached(tmp_path: Path) -> None:
    """Server and command find one another with nothing configured but the database."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    real = Path(os.path.realpath(tmp_path))
    assert real / "data" / "a.db.sock" == local.socket_path(tmp_path / "data" / "a.db")
    assert real / "data" / "a.db.sock" == local.socket_path(tmp_path / "link" / "a.db")


def test_a_long_name_of_a_database_gets_a_short_socket_of_its_own(tmp_path: Path) -> None:
    """File names may have 255 bytes, a unix socket's address about a hundred."""
    first, second = (local.socket_path(tmp_path / f"{'x' * 240}{number}.db") for number in (1, 2))
    assert first != second
    assert all(len(path.name) <= 40 for path in (first, second))


def test_a_socket_under_a_deep_folder_is_reached(tmp_path: Path) -> None:
    """A path may be longer than the address of a socket."""
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    path = local.socket_path(deep / "token-ledger.db")
    with listening(path) as listener:
        connected = local.connect(path)
        assert connected is not None
        connected.close()
        listener.close()
    assert local.connect(path) is None


def test_a_socket_that_a_killed_server_left_is_no_server_and_is_replaced(tmp_path: Path) -> None:
    """SIGKILL removes nothing."""
    path = tmp_path / "token-ledger.db.sock"
    program = f"from api.sockets import bind_local as bind; from pathlib import Path; s = bind(Path({str(path)!r})); "
    program += "s.listen(); print(1, flush=True); input()"
    left = subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1)
    with left:
        assert left.stdout is not None
        left.stdout.readline()
        left.send_signal(signal.SIGKILL)
    assert path.is_socket()
    assert local.connect(path) is None
    with listening(path):
        connected = local.connect(path)
        assert connected is not None
        connected.close()


def test_an_answer_over_the_socket_is_read_whole(tmp_path: Path) -> None:
    """Plain HTTP/1.1, as over any other connection."""
    path = tmp_path / "a.sock"
    with listening(path) as listener:
        thread = one_answer(listener, b'HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\nX-A: b\r\n\r\n{"a":1}')
        connected = local.connect(path)
        assert connected is not None
        over = local.OverSocket(connected, path)
        assert (404, {"a": 1}) == ((answer := over.request("GET", "/")).status, answer.json())
        assert "b" == answer.headers["x-a"]
        over.close()
        thread.join()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"])
def test_a_server_that_goes_away_leaves_the_outcome_unknown(tmp_path: Path, answer: bytes) -> None:
    """I-10: a lost answer is neither a yes nor a no."""
    path = tmp_path / "a.sock"
    with listening(path) as listener:
        thread = one_answer(listener, answer)
        connected = local.connect(path)
        assert connected is not None
        over = local.OverSocket(connected, path)
        with pytest.raises(LedgerError, match="whether it did what was asked is unknown"):
            over.request("POST", "/subjects/revoke", {"subject": "a"})
        over.close()
        thread.join()


def test_who_reads_a_list_slowly_is_told_its_next_page(tmp_path: Path) -> None:
    """A history in a pager asks for no more while somebody reads it, and a server closes who asks nothing."""
    with running(tmp_path / "server", settings={"KEEP_ALIVE_SECONDS": "0.2"}) as server:
        path = local.socket_path(server.database)
        connected = local.connect(path)
        assert connected is not None
        with closing(local.OverSocket(connected, path)) as over:
            assert 200 == over.request("GET", "/grants").status
            assert select.select([connected], [], [], 20)[0], "the server has closed it"
            assert 200 == over.request("GET", "/grants").status
            server.stop()
            with pytest.raises(LedgerError, match="gave no answer"):
                over.request("GET", "/grants")


async def test_the_application_in_process_sees_the_request_that_a_server_would_hand_it() -> None:
    """One way to do a thing, two ways to reach it: no peer address, as over the socket, and the path decoded."""
    answer = await local.exchange(echo, "POST", "/a/b%20%3F%2541?c=%64", b"{}", {"User-Agent": "token-ledger"})
    expected = {"path": "/a/b ?%41", "query": "c=%64", "body": "{}", "client": None, "agent": "token-ledger"}
    assert (200, expected) == (answer.status, answer.json())


async def test_lines_are_handed_over_as_they_come_and_the_last_one_is_the_body() -> None:
    """Progress first, the result last, wherever the parts of the answer were cut."""
    lines: list[bytes] = []
    answer = await local.exchange(echo, "POST", "/lines", b"", {}, lines.append)
    assert [b'{"done": 1}\n', b'{"done": 2}\n'] == lines[:2]
    assert {"result": 3} == answer.json()
    assert {"result": 3} == json.loads(lines[-1])


async def test_an_error_is_no_line_of_progress() -> None:
    """A refusal has a body of its own, also where lines were expected."""
    lines: list[bytes] = []
    answer = await local.exchange(echo, "GET", "/no", b"", {}, lines.append)
    assert (404, []) == (answer.status, lines)
    assert "/no" == answer.json()["path"]


@asynccontextmanager
async def opened(database: Path, log: list[str]) -> AsyncIterator[local.Asgi]:
    """An application that owns its database while it is open, as the real one does."""
    lock = OwnerLock.take(database)
    log.append("open")
    try:
        yield echo
        log.append("close")  # not where the end of the loop throws it out: then nobody hears what goes wrong
    finally:
        lock.release()


def test_without_a_server_the_application_is_opened_and_closed(tmp_path: Path) -> None:
    """The database is given back, whatever the command did with it."""
    database, log = tmp_path / "a.db", list[str]()

    def command() -> None:
        with local.reach(database, lambda: opened(database, log)) as reached:
            assert isinstance(reached, local.InProcess)
            assert "/x" == reached.request("GET", "/x").json()["path"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()
    assert ["open", "close"] == log
    OwnerLock.take(database).release()


def test_a_command_waits_for_an_owner_that_only_passes(tmp_path: Path) -> None:
    """A server that is starting owns the database before it listens: the command finds its socket a moment later."""
    database, log = tmp_path / "a.db", list[str]()
    lock = OwnerLock.take(database)
    listeners: list[socket.socket] = []
    timer = threading.Timer(0.3, lambda: listeners.append(listening(local.socket_path(database))))
    timer.start()
    with local.reach(database, lambda: opened(database, log)) as reached:
        assert isinstance(reached, local.OverSocket)
    assert [] == log
    timer.join()
    listeners[0].close()
    lock.release()


def test_an_owner_that_stays_and_does_not_listen_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command at work, or a server that hangs or whose socket is gone: after a while that is said, with its
    process id and what helps."""
    monkeypatch.setattr(local, "OWNER_SECONDS_MAX", 0.2)
    database = tmp_path / "a.db"
    says = rf"process {os.getpid()} already has .*; nothing listens on \S*/a\.db\.sock: .*, restart a server$"
    with (
        OwnerLock.take(database),
        pytest.raises(Owned, match=says),
        local.reach(database, lambda: opened(database, [])),
    ):
        raise AssertionError
