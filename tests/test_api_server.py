"""The server shell itself: how it starts, what it does when the application fails, what a request costs and logs."""

import gc
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import logs
from api.server import protocol_class
from api.settings import Settings, SettingsError
from api.sockets import StartError
from tests.server_process import free_port
from tests.serving import (
    HOST,
    PARSERS,
    QUICK,
    Lines,
    Running,
    Shower,
    connect_soon,
    exchange,
    logged,
    serving,
    serving_with,
)
from tests.wire import request_bytes


@pytest.fixture(scope="module", params=PARSERS)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving_with(request.param) as server:
        yield server


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as found:
        yield found


# -- what the application does wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/boom", "/nothing", "/started", "/split", "/lie"])
def test_a_defect_is_logged_and_answered_with_server_error(running: Running, lines: Lines, path: str) -> None:
    """The last resort: JSON, no detail outside, one event in the log, the connection closed, the server alive."""
    with running.connect() as connection:
        answer = connection.exchange(request_bytes("GET", path))
        assert (500, "server_error") == (answer.status, answer.json()["error"])
        assert b"defect" not in answer.body
        assert answer.header("Date")
        assert "close" == answer.header("Connection")
        assert "x-b" not in {name.lower() for name, _ in answer.headers}
        assert connection.closed_by_peer(3)
    assert ["request_failed"] == [record.msg for record in lines.records if record.exc_info]
    assert 200 == exchange(running, request_bytes("GET", "/a")).status


def test_half_an_answer_never_looks_whole(running: Running, lines: Lines) -> None:
    """Where the length was told, the connection ends before it."""
    with running.connect() as connection:
        connection.send(request_bytes("GET", "/half"))
        with pytest.raises((ConnectionResetError, AssertionError)):
            connection.answer()
    assert "request_failed" in lines.events


# -- cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parser", PARSERS)
def test_requests_leave_nothing_to_the_garbage_collector(parser: Any) -> None:
    """A reference cycle a request makes the collector stop the loop for tens of milliseconds at a time."""
    with serving(Shower(), parser=parser) as running, running.connect() as connection:
        raw = request_bytes("POST", "/a", headers={"User-Agent": "x"}, body=b"a=b")
        for _ in range(100):
            connection.exchange(raw)
        gc.collect()
        gc.disable()
        try:
            for _ in range(1000):
                connection.exchange(raw)
            found = gc.collect()
        finally:
            gc.enable()
    assert found < 100


def test_a_cycle_a_request_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: an application that ties a knot with each request."""
    shower = Shower()

    async def knotted(scope: Any, receive: Any, send: Any) -> None:
        knot: dict[str, Any] = {}
        knot["self"] = knot
        await shower.do_echo(scope, receive, send)

    with serving(knotted) as running, running.connect() as connection:
        gc.collect()
        gc.disable()
        try:
            for _ in range(1000):
                connection.exchange(request_bytes("GET", "/a"))
            found = gc.collect()
        finally:
            gc.enable()
    assert found >= 1000


def test_header_and_body_leave_in_one_write(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes are two system calls and, on some networks, two packets."""
    for path, writes in (("/a", 1), ("/stream", 2)):
        with running.connect() as connection:
            connection.exchange(request_bytes("GET", "/a"))
            counted = running.do(_count_writes(running, monkeypatch))
            answer = connection.exchange(request_bytes("GET", path))
            assert 200 == answer.status
            assert (counted[0] == writes) if writes == 1 else counted[0] >= writes


async def _count_writes(running: Running, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what the only open connection writes from now on."""
    (connection,) = running.server._open()
    counted = [0]
    write = connection.transport.write

    class Counting:
        def write(self, data: bytes) -> None:
            counted[0] += 1
            write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

    transport = connection.transport
    monkeypatch.setattr(connection, "transport", Counting())
    return counted


# -- what is logged ----------------------------------------------------------------------------------------------------


def test_the_access_log_is_for_debugging_and_carries_no_query(lines: Lines) -> None:
    """I-20: one line a request at the level debug; no query, no unknown path, which may be anything, no address."""
    settings = Settings(port=0, allow_plain_http=True, log_level="debug")
    with serving(Shower(), settings=settings) as running, running.connect() as connection:
        connection.exchange(request_bytes("GET", "/a?refresh_token=rt1_secret"))
    (record,) = [record for record in lines.records if record.msg == "request"]
    assert {"method": "GET", "path": "/a", "status": 200} == record.__dict__["fields"]
    assert "secret" not in logs._Console().format(record)


def test_at_info_a_request_is_no_line(running: Running, lines: Lines) -> None:
    """The log of a service at work is quiet."""
    exchange(running, request_bytes("GET", "/a"))
    assert [] == [record.getMessage() for record in lines.records]


def test_refusals_are_counted() -> None:
    """What leaves no line leaves a number."""
    with serving(Shower(), settings=QUICK) as running:
        exchange(running, b"GET / HTTP/1.1\r\n\r\n")
        exchange(running, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"b" * 80_000)
        exchange(running, request_bytes("POST", "/a", body=b"x" * 9000))
        exchange(running, request_bytes("POST", "/a", body=b"abc")[:-1])
        counts = {
            "malformed": 1,
            "head_too_large": 1,
            "body_too_large": 1,
            "too_slow": 1,
            "idle_closed": 0,
            "too_many": 0,
        }
        assert counts == running.server.counts


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_one_line() -> None:
    """Exit code 2 and what is wrong, before anything was opened."""
    opened: list[Any] = []

    async def note(server: Any) -> None:
        opened.append(server)

    said = r"^127\.0\.0\.1 port \d+ is taken: another process listens there; stop it, or set TOKEN_LEDGER_PORT$"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(port=taken.getsockname()[1], allow_plain_http=True)
        with pytest.raises(StartError, match=said), serving(Shower(), settings=settings, on_startup=note):
            pass
    assert [] == opened


def test_a_host_that_is_none_is_one_line() -> None:
    """HOST is named."""
    settings = Settings(port=0, allow_plain_http=True, host="no such host")
    said = "TOKEN_LEDGER_HOST: no such host is no address of this machine"
    with pytest.raises(StartError, match=said), serving(Shower(), settings=settings):
        pass
    settings = Settings(port=0, allow_plain_http=True, host="192.0.2.1")
    with pytest.raises(StartError, match=r"192\.0\.2\.1"), serving(Shower(), settings=settings):
        pass


def test_localhost_listens_on_both_families_at_one_port() -> None:
    """A client that resolves the name to ::1 finds the same server."""
    with serving(Shower(), settings=Settings(port=0, allow_plain_http=True, host="localhost")) as running:
        assert 200 == exchange(running, request_bytes("GET", "/a")).status
        if any(info[0] == socket.AF_INET6 for info in socket.getaddrinfo("localhost", 80)):
            with socket.create_connection(("::1", running.port), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"200" in connection.recv(100)


def test_what_serves_may_be_made_when_the_port_is_bound() -> None:
    """The order of start-up: port, store, requests."""
    shower = Shower()
    order: list[str] = []

    async def startup(server: Any) -> None:
        order.append("startup")
        server.app = shower

    async def ready(server: Any) -> None:
        order.append(f"ready {server.settings.port > 0}")

    async def shutdown(server: Any) -> None:
        order.append(f"shutdown {server.draining} {server.connections}")

    hooks: dict[str, Any] = {"on_startup": startup, "on_ready": ready, "on_shutdown": shutdown}
    with serving(None, **hooks) as running:
        assert 200 == exchange(running, request_bytes("GET", "/a")).status
    assert ["startup", "ready True", "shutdown True 0"] == order


def test_a_start_that_fails_gives_the_port_back() -> None:
    """What a hook raises passes, and nothing stays bound."""

    async def refuse(server: Any) -> None:
        raise RuntimeError("no store")

    port = free_port()
    settings = Settings(port=port, allow_plain_http=True)
    with pytest.raises(RuntimeError, match="no store"), serving(Shower(), settings=settings, on_startup=refuse):
        pass
    with serving(Shower(), settings=settings) as running:
        assert port == running.port


def test_a_start_that_fails_late_closes_what_was_opened(tmp_path: Path) -> None:
    """The store is open when the socket beside it cannot be bound."""
    order: list[str] = []

    async def note(server: Any) -> None:
        order.append("startup" if not order else "shutdown")

    settings = Settings(port=0, allow_plain_http=True)
    hooks: dict[str, Any] = {"on_startup": note, "on_shutdown": note, "local_path": tmp_path / "missing" / "socket"}
    with pytest.raises(StartError), serving(Shower(), settings=settings, **hooks):
        pass
    assert ["startup", "shutdown"] == order


def test_several_workers_are_started_by_the_command() -> None:
    """A server in a process of somebody else's is one: it starts no others behind their back."""
    settings = Settings(port=0, allow_plain_http=True, workers=2, database_url="postgresql://db/x")
    said = "TOKEN_LEDGER_WORKERS: this is one process"
    with pytest.raises(SettingsError, match=said), serving(Shower(), settings=settings):
        pass


def test_the_faster_parser_is_chosen_where_it_is_installed() -> None:
    """And the other one where it is not."""
    assert "HttptoolsConnection" == getattr(protocol_class("auto"), "__name__", "")
    assert "H11Connection" == getattr(protocol_class("h11"), "__name__", "")


def test_neither_httptools_nor_uvloop_is_needed() -> None:
    """A process without both serves the same answers."""
    port = free_port()
    script = (
        "import sys\n"
        "sys.modules['httptools'] = sys.modules['uvloop'] = None\n"
        "from api.server import run\n"
        "from api.settings import Settings\n"
        "from tests.serving import Shower\n"
        f"sys.exit(run(Shower(), Settings(port={port}, allow_plain_http=True)))\n"
    )
    project = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", script], cwd=project, stderr=subprocess.PIPE)
    try:
        with connect_soon(port) as connection:
            assert "abc" == connection.exchange(request_bytes("POST", "/a", body=b"abc")).json()["body"]
        process.terminate()
        assert 0 == process.wait(10)
        assert process.stderr is not None
        assert b"" == process.stderr.read()
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
