"""Who is slow, silent or does not read is ended in time, and who leaves is no event (H19)."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server_process import free_port
from tests.serving import (
    HOST,
    PARSERS,
    QUICK,
    Lines,
    Running,
    Shower,
    check_quiet,
    check_refused,
    connect_soon,
    logged,
    serving,
    serving_with,
)
from tests.wire import Connection, request_bytes


@pytest.fixture(scope="module", params=PARSERS)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving_with(request.param) as server:
        yield server


@pytest.fixture(scope="module", params=PARSERS)
def quick(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving_with(request.param, QUICK) as server:
        yield server


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as found:
        yield found


def dribble(connection: Connection, head: bytes, piece: bytes, seconds: float) -> float:
    """Send a piece every 50 ms; return after how many seconds the server ended it, infinity if it did not."""
    started = time.monotonic()
    connection.send(head)
    while (passed := time.monotonic() - started) < seconds:
        connection.socket.settimeout(0.05)
        try:
            while connection.socket.recv(65536):
                pass
            return passed
        except TimeoutError:
            connection.send(piece)
        except ConnectionError:
            return passed
    return float("inf")


SLOW = {
    "silent": (b"", b""),
    "line ends": (b"\r\n", b"\r\n"),
    "request line": (b"GET /", b"a"),
    "header": (b"POST /a HTTP/1.1\r\n" + HOST + b"X-A: ", b"a"),
    "headers": (b"POST /a HTTP/1.1\r\n" + HOST, b"X-A: b\r\n"),
    "body": (b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 8000\r\n\r\n", b"a"),
    "body without a word": (b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 8000\r\n\r\n", b""),
    "chunks": (b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "trailers": (b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n"),
    "rest of a body answered": (b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 8000\r\n\r\n", b"a"),
    "second request's body": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"\r\nPOST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 8000\r\n\r\n",
        b"a",
    ),
    "second request": (b"GET /a HTTP/1.1\r\n" + HOST + b"\r\nGET /b", b"b"),
}


def test_slow_requests_are_ended_when_their_time_is_up(quick: Running, lines: Lines) -> None:
    """H19: from accept or a request's first byte to its last byte, however small the pieces are; all at once."""

    def seconds(name: str) -> float:
        with quick.connect() as connection:
            return dribble(connection, *SLOW[name], seconds=4.0)

    with ThreadPoolExecutor(len(SLOW)) as pool:
        lasted = dict(zip(SLOW, pool.map(seconds, SLOW), strict=True))
    assert {} == {name: seconds for name, seconds in lasted.items() if not 0.5 < seconds < 3.0}
    check_quiet(lines)


def test_a_slow_request_is_told_why(quick: Running) -> None:
    """408 where a request had begun (RFC 9110 15.5.9); a silent connection is simply closed."""
    with quick.connect() as connection:
        connection.send(SLOW["body"][0])
        check_refused(connection.answer(), {408})
    with quick.connect() as connection:
        assert b"" == connection.socket.recv(100)


def test_the_deadline_runs_from_the_first_byte_not_from_the_last_request(quick: Running) -> None:
    """A connection at work for longer than one request's time is not slow."""
    with quick.connect() as connection:
        for _ in range(6):
            time.sleep(0.4)
            assert 200 == connection.exchange(request_bytes("GET", "/a")).status


def test_an_idle_connection_is_closed_after_its_time(quick: Running) -> None:
    """KEEP_ALIVE_SECONDS, without a word."""
    with quick.connect() as connection:
        assert 200 == connection.exchange(request_bytes("GET", "/a")).status
        started = time.monotonic()
        assert connection.closed_by_peer(4)
        assert time.monotonic() - started > 0.5


def test_an_application_has_its_own_time(quick: Running) -> None:
    """A request received whole is not ended by the server, however long its answer takes."""
    server = quick.server.app
    server.release.clear()
    with quick.connect() as connection:
        connection.send(request_bytes("POST", "/held", body=b"abc"))
        time.sleep(1.6)
        server.release.set()
        assert "abc" == connection.answer().json()["body"]


def test_a_client_that_does_not_read_is_cut_off(quick: Running, lines: Lines) -> None:
    """H19: the slow reader; what the system buffers is all he gets."""
    with quick.connect() as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.send(request_bytes("GET", "/big"))
        deadline = time.monotonic() + 5
        while quick.server.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 0 == quick.server.connections
    check_quiet(lines)


def test_a_client_that_pipelines_and_never_reads_is_cut_off(quick: Running, lines: Lines) -> None:
    """Answers pile up for nobody: reading stops first, then the connection ends."""
    with quick.connect() as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.socket.settimeout(0.2)
        raw = request_bytes("POST", "/a", body=b"x" * 8000) * 50
        sent = 0
        deadline = time.monotonic() + 8
        while quick.server.connections and time.monotonic() < deadline:
            try:
                sent += connection.socket.send(raw)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        while quick.server.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 0 == quick.server.connections
    check_quiet(lines)


def test_a_reader_who_is_only_leisurely_gets_everything(quick: Running) -> None:
    """The deadline is for what is written and not read, not for the size of an answer."""
    with quick.connect() as connection:
        connection.send(request_bytes("GET", "/big"))
        assert 32_000_000 == len(connection.answer().body)


@pytest.mark.parametrize("few", ["idle ones", "files"])
def test_above_a_thousand_idle_connections_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch, few: str) -> None:
    """The number is the server's; the test takes a smaller one. Where files allow less, half of that: idle ones would
    else keep out whoever comes, for as long as they may stay."""
    with serving(Shower()) as running:
        if few == "files":
            running.server._listeners[0].connections_max = 10
        else:
            monkeypatch.setattr("api.server.IDLE_MAX", 5)
        connections = [running.connect() for _ in range(8)]
        for connection in connections:
            assert 200 == connection.exchange(request_bytes("GET", "/a")).status
            time.sleep(0.02)
        assert 3 * [True] == [connection.closed_by_peer(3) for connection in connections[:3]]
        assert 5 * [200] == [connection.exchange(request_bytes("GET", "/a")).status for connection in connections[3:]]
        for connection in connections:
            connection.close()
        assert 3 == running.server.counts["idle_closed"]


STOCK = """
import asyncio, sys
import uvicorn
from tests.serving import Shower
config = uvicorn.Config(
    Shower(), port=int(sys.argv[1]), http=sys.argv[2], lifespan="off", log_level="warning", timeout_keep_alive=1
)
asyncio.run(uvicorn.Server(config).serve())
"""


@pytest.mark.parametrize("parser", PARSERS)
def test_stock_uvicorn_does_not_end_a_slow_request(parser: str) -> None:
    """The broken twin of the deadlines: without ours the same dribbling client stays for as long as it likes."""
    port = free_port()
    project = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", STOCK, str(port), parser], cwd=project)
    try:
        connection = connect_soon(port)
        with connection:
            assert float("inf") == dribble(connection, *SLOW["body"], seconds=2.0)
    finally:
        process.kill()
        process.wait()


SHORT_OF_FILES = """
import asyncio, resource, sys
from api.server import Server, loop_factory
from api.settings import Settings
from tests.serving import Shower
async def main():
    server = Server(Shower(), Settings(port=int(sys.argv[1]), allow_plain_http=True, request_timeout_seconds=2.0))
    await server.start()
    server._listeners[0].connections_max = int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
    await server.wait()
with asyncio.Runner(loop_factory=loop_factory() if sys.argv[2] == "uvloop" else None) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize(("loop", "connections_max"), [("uvloop", 20), ("uvloop", 1000), ("asyncio", 1000)])
def test_more_connections_than_files_are_survived(loop: str, connections_max: int) -> None:
    """With our own limit, which leaves files to the store, and at the system's, where there is nothing left."""
    port = free_port()
    command = [sys.executable, "-c", SHORT_OF_FILES, str(port), loop, str(connections_max)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL)
    try:
        with connect_soon(port):
            pass
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
        time.sleep(0.3)
        for each in crowd:
            each.close()
        # asyncio accepts nothing for a second each time that it has no file left
        deadline = time.monotonic() + 20
        status = None
        while status != 200 and time.monotonic() < deadline:
            with contextlib.suppress(OSError), Connection(("127.0.0.1", port), timeout_seconds=2) as connection:
                status = connection.exchange(request_bytes("GET", "/a")).status
        assert 200 == status
    finally:
        process.kill()
        process.wait()


# -- clients that leave ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [True, False])
def test_a_client_that_leaves_midway_is_no_event(running: Running, lines: Lines, cut: bool) -> None:
    """RELIABILITY finding 6: a log line for each of them would be a way to fill a disk."""
    for head in (SLOW["header"][0], SLOW["body"][0], SLOW["chunks"][0] + b"3\r\nab"):
        connection = running.connect()
        connection.send(head)
        time.sleep(0.05)
        if cut:
            connection.cut()
        else:
            connection.close()
    deadline = time.monotonic() + 5
    while running.server.connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (0, 0) == (running.server.connections, len(running.server._state.tasks))
    check_quiet(lines)


def test_a_client_that_leaves_before_its_answer_is_no_event(running: Running, lines: Lines) -> None:
    """What was decided stands; the answer goes nowhere."""
    server = running.server.app
    server.release.clear()
    connection = running.connect()
    connection.send(request_bytes("POST", "/held", body=b"abc"))
    time.sleep(0.1)
    connection.cut()
    time.sleep(0.1)
    server.release.set()
    deadline = time.monotonic() + 5
    while running.server._state.tasks and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 0 == len(running.server._state.tasks)
    check_quiet(lines)
