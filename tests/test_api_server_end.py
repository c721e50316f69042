"""The end: what was begun is answered, what is idle is closed, nothing takes longer than a request may."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.accepting import Acceptor
from api.server import Parser, Server
from api.settings import Settings
from tests.server_process import free_port
from tests.serving import PARSERS, QUICK, Running, Shower, check_quiet, connect_soon, logged, serving
from tests.wire import Connection, request_bytes

PLAIN = Settings(port=0, allow_plain_http=True)
PROJECT = Path(__file__).parent.parent


@pytest.fixture(params=PARSERS)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(Shower(), parser=request.param, fast_loop=request.param == "httptools", settings=PLAIN) as server:
        yield server


def ended(running: Running, within_seconds: float = 8.0) -> float:
    """Wait until the server has ended and return how long that took."""
    started = time.monotonic()
    while running.exit_code is None:
        assert time.monotonic() - started < within_seconds, "the server did not end"
        time.sleep(0.01)
    return time.monotonic() - started


def test_what_was_begun_is_answered_and_the_connection_closed(running: Running) -> None:
    """Whole requests, half ones, and those that come while others are being answered; then exit code 0."""
    server: Shower = running.server.app
    with running.connect() as held, running.connect() as half, running.connect() as idle:
        _end_with_three(running, server, held, half, idle)
    ended(running)
    assert 0 == running.exit_code
    with pytest.raises(ConnectionRefusedError):
        running.connect()


def _end_with_three(running: Running, server: Shower, held: Connection, half: Connection, idle: Connection) -> None:
    held.send(request_bytes("POST", "/held", body=b"abc"))
    half.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
    assert 200 == idle.exchange(request_bytes("GET", "/a")).status
    time.sleep(0.1)
    running.stop()
    time.sleep(0.1)
    with running.connect() as late:
        answer = late.exchange(request_bytes("GET", "/readyz"))
        assert (True, "close") == (answer.json()["state"]["draining"], answer.header("Connection"))
    half.send(b"cd")
    answer = half.answer()
    assert ("abcd", "close") == (answer.json()["body"], answer.header("Connection"))
    assert half.closed_by_peer(3)
    assert idle.closed_by_peer(3)
    assert 0 < running.server.connections  # still waiting for the one that is held
    server.release.set()
    answer = held.answer()
    assert ("abc", "close") == (answer.json()["body"], answer.header("Connection"))
    assert held.closed_by_peer(3)


def test_streams_say_that_the_connection_closes_too(running: Running) -> None:
    """The other way that answers go."""
    with running.connect() as connection:
        connection.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n")
        time.sleep(0.1)
        running.stop()
        time.sleep(0.1)
        connection.send(b"\r\n")
        answer = connection.answer()
        assert ("close", b"one,two,") == (answer.header("Connection"), answer.body)
        assert connection.closed_by_peer(3)


def test_nobody_there_is_nobody_to_wait_for(running: Running) -> None:
    """Without connections the end is immediate."""
    running.stop()
    assert ended(running) < 0.4


def test_a_silent_connection_holds_nothing_up(running: Running) -> None:
    """Opened, never used."""
    with running.connect():
        time.sleep(0.05)
        running.stop()
        assert ended(running) < 3


def test_asked_twice_it_ends_at_once(running: Running) -> None:
    """Whoever presses the key again is in a hurry."""
    with running.connect() as connection:
        connection.send(request_bytes("POST", "/held", body=b"abc"))
        time.sleep(0.1)
        running.stop()
        time.sleep(0.7)
        running.stop()
        assert ended(running) < 2


def test_an_application_that_hangs_is_cut_off_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes within REQUEST_TIMEOUT_SECONDS, and says what it cost; the task is over before `on_shutdown`."""
    seen: list[Any] = []

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("task over")

    async def shutdown(server: Server) -> None:
        seen.append("shutdown")

    with (
        logged() as lines,
        serving(hang, settings=QUICK, on_shutdown=shutdown) as running,
        running.connect() as connection,
    ):
        connection.send(request_bytes("GET", "/a"))
        time.sleep(0.1)
        running.stop()
        assert ended(running) < 1.5
        assert connection.closed_by_peer(2)
    assert ["task over", "shutdown"] == seen
    assert "cut_off" in lines.events
    assert [] == [record.msg for record in lines.records if record.exc_info]


def test_an_exit_code_is_kept() -> None:
    """Whoever asks for the end may say that it is for a failure; a later, quiet wish does not hide that."""
    with serving(Shower()) as running:
        running.loop.call_soon_threadsafe(running.server.request_stop, 2)
        running.stop()
        ended(running)
        assert 2 == running.exit_code


def block(running: Running, seconds: float, then: Callable[[], None]) -> None:
    """Keep the loop busy from the moment this returns, and then do something in it before it looks at any socket."""
    busy_now = threading.Event()

    def busy() -> None:
        busy_now.set()
        time.sleep(seconds)
        then()

    running.loop.call_soon_threadsafe(busy)
    assert busy_now.wait(5)


@pytest.mark.parametrize("parser", PARSERS)
def test_who_waits_to_be_accepted_is_served(parser: Parser) -> None:
    """Closing a listening socket resets what the kernel has accepted behind it, requests and all."""
    assert 200 == _ask_at_the_last_moment(parser)


def test_a_server_that_just_closes_its_socket_resets_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the above."""

    async def accept_none(self: Acceptor, *, wait: bool) -> list[Any]:
        return []

    monkeypatch.setattr(Acceptor, "accept_rest", accept_none)
    with pytest.raises(ConnectionError):
        _ask_at_the_last_moment("h11")  # on asyncio, which looks at its tasks before it looks at its sockets


def _ask_at_the_last_moment(parser: Parser) -> int:
    """Connect and ask while the loop is busy; without others the sockets are closed right after."""
    with serving(Shower(), parser=parser, fast_loop=parser == "httptools") as running:
        block(running, 0.4, running.server.request_stop)
        with Connection(("127.0.0.1", running.port), timeout_seconds=5) as connection:
            connection.send(request_bytes("GET", "/a"))
            return connection.answer().status


def test_an_idle_connection_with_a_request_on_its_way_in_is_not_closed(running: Running) -> None:
    """Bytes that lie in the kernel are a request begun."""
    with running.connect() as connection:
        assert 200 == connection.exchange(request_bytes("GET", "/a")).status

        def drain_now() -> None:
            for each in running.server._open():
                each.drain()

        block(running, 0.3, drain_now)
        connection.send(request_bytes("GET", "/b"))
        assert "/b" == connection.answer().json()["path"]


# -- the process -----------------------------------------------------------------------------------------------------

SERVE = """
import sys
from pathlib import Path
from api import logs
from api.server import run
from api.settings import Settings
from tests.serving import Shower
logs.configure("info")
async def again(server):
    print("again", flush=True)
settings = Settings(port=int(sys.argv[1]), allow_plain_http=True, request_timeout_seconds=4.0)
sys.exit(run(Shower(), settings, parser=sys.argv[2], on_reload=again))
"""


@pytest.fixture(params=PARSERS)
def process(request: pytest.FixtureRequest) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A server process and its port."""
    port = free_port()
    started = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port), request.param],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        with connect_soon(port):
            pass
        yield started, port
    finally:
        started.kill()
        started.communicate()


def test_sigterm_ends_the_process_with_exit_code_0(process: tuple["subprocess.Popen[bytes]", int]) -> None:
    """And SIGHUP does not; both leave log lines on standard output and nothing on standard error."""
    server, port = process
    with connect_soon(port) as connection:
        server.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert 200 == connection.exchange(request_bytes("GET", "/a")).status
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=10)
    assert (0, b"") == (server.returncode, err)
    assert b"again\n" in out
    assert b"event=draining" in out
    assert b"event=stopped" in out


def test_sigterm_under_load_leaves_no_request_unanswered(process: tuple["subprocess.Popen[bytes]", int]) -> None:
    """Connections that live long and connections for one request; a request sent whole gets its answer or a refusal to
    connect, never a reset.
    """
    server, port = process
    failures: list[str] = []
    served = [0]
    stopping = threading.Event()

    def lasting() -> None:
        with Connection(("127.0.0.1", port), timeout_seconds=10) as connection:
            ask_until_told_to_close(connection)

    def ask_until_told_to_close(connection: Connection) -> None:
        while True:
            try:
                connection.socket.sendall(request_bytes("POST", "/a", body=b"x" * 100))
                answer = connection.answer()
            except OSError as error:
                # Closed while idle, before this request was sent: only possible once the end has begun.
                if not stopping.is_set():
                    failures.append(f"lasting: {error!r}")
                return
            served[0] += answer.status == 200
            if answer.header("Connection") == "close":
                return

    def brief() -> None:
        while True:
            try:
                connection = Connection(("127.0.0.1", port), timeout_seconds=10)
            except (ConnectionRefusedError, ConnectionResetError):
                return  # no connection came to be
            except OSError as error:
                failures.append(f"connect: {error!r}")
                return
            with connection:
                try:
                    connection.socket.sendall(request_bytes("POST", "/a", body=b"x" * 100))
                    served[0] += connection.answer().status == 200
                except OSError as error:
                    failures.append(f"brief: {error!r}")
                    return

    threads = [threading.Thread(target=target) for target in (lasting, lasting, brief, brief, brief)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    stopping.set()
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    assert [] == failures
    assert served[0] > 50
    assert 0 == server.wait(10)


def test_a_start_that_fails_is_one_line_on_standard_error_and_exit_code_2() -> None:
    """No traceback for what a person has to put right."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "-c", SERVE, str(port), "auto"], cwd=PROJECT, capture_output=True, timeout=30, check=False
        )
    line = f"127.0.0.1 port {port} is taken: another process listens there; stop it, or set TOKEN_LEDGER_PORT"
    said = f"token-ledger: {line}\n".encode()
    assert (2, said) == (run.returncode, run.stderr)


def test_an_end_is_quiet(running: Running) -> None:
    """Two lines at info, nothing else."""
    with logged() as lines, running.connect() as connection:
        connection.exchange(request_bytes("GET", "/a"))
        running.stop()
        ended(running)
    assert ["draining", "stopped"] == lines.events
    check_quiet(lines)


def test_settings_of_the_test_are_settings_of_the_server() -> None:
    """A port that the system chose is known from there on."""
    with serving(Shower(), settings=replace(QUICK, port=0)) as running:
        assert running.server.settings.port > 0
        assert f"http://localhost:{running.port}" == running.server.settings.issuer
