"""Sockets to listen on: the one beside the database is for its owner alone, and a crash leaves nothing in the way."""

import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from api.server import Parser
from api.settings import Settings
from api.sockets import StartError, bind_for_each, bind_local, bind_tcp, hang_up, hear_no_more, short_address
from tests.serving import PARSERS, Running, Shower, serving
from tests.wire import request_bytes

PLAIN = Settings(port=0, allow_plain_http=True)


def ask(path: Path, raw: bytes) -> bytes:
    """Send one HTTP/1.0 request through a local socket and return the whole answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, short_address(path) as address:
        connection.settimeout(5)
        connection.connect(address)
        connection.sendall(raw)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize("parser", PARSERS)
def test_a_request_through_the_local_socket_is_known_as_local(parser: Parser, tmp_path: Path) -> None:
    """The same application on both; only what came through the file says so."""
    path = tmp_path / "ledger.socket"
    fast = parser == "httptools"
    with serving(Shower(), settings=PLAIN, parser=parser, fast_loop=fast, local_path=path) as running:
        assert b'"local":true' in ask(path, b"GET /a HTTP/1.0\r\n\r\n")
        assert b'"local":false' in _over_tcp(running)
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert not path.exists()


@pytest.mark.parametrize("parser", PARSERS)
def test_a_rush_on_the_port_leaves_the_local_socket_open(parser: Parser, tmp_path: Path) -> None:
    """Who may open the file may have come to end the rush."""
    path = tmp_path / "ledger.socket"
    fast = parser == "httptools"
    with serving(Shower(), settings=PLAIN, parser=parser, fast_loop=fast, local_path=path) as running:
        for listener in running.server._listeners:
            listener.connections_max = 3
        with running.connect(), running.connect(), running.connect(), running.connect() as refused:
            assert refused.closed_by_peer(3)
            assert b'"local":true' in ask(path, b"GET /a HTTP/1.0\r\n\r\n")


def _over_tcp(running: Running) -> bytes:
    with running.connect() as connection:
        return connection.exchange(request_bytes("GET", "/a")).body


def test_a_command_may_send_more_than_a_client(tmp_path: Path) -> None:
    """A clients file is longer than any token request."""
    path = tmp_path / "ledger.socket"
    with serving(Shower(limit=1_000_000), settings=PLAIN, local_path=path):
        body = b"x" * 500_000
        assert b" 200 " in ask(path, b"POST /a HTTP/1.0\r\nContent-Length: 500000\r\n\r\n" + body)[:20]
        assert b" 413 " in ask(path, b"POST /a HTTP/1.0\r\nContent-Length: 20000000\r\n\r\n")[:20]


def test_the_socket_is_never_open_to_others_not_even_for_a_moment(tmp_path: Path) -> None:
    """The mode is there when the file is, whatever the umask says."""
    before = os.umask(0)
    try:
        with bind_local(tmp_path / "ledger.socket"):
            assert 0o600 == stat.S_IMODE((tmp_path / "ledger.socket").stat().st_mode)
    finally:
        os.umask(before)


def test_a_socket_left_by_a_crash_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    """SIGKILL leaves the file; nobody listens behind it."""
    path = tmp_path / "ledger.socket"
    bind_local(path).close()
    assert path.exists()
    with bind_local(path) as living:
        living.listen()
        with pytest.raises(StartError, match=r"ledger\.socket: another process serves there"):
            bind_local(path)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """Only a socket is ever replaced."""
    path = tmp_path / "ledger.socket"
    path.write_text("precious")
    with pytest.raises(StartError, match=r"ledger\.socket is in the way: it is no socket"):
        bind_local(path)
    assert "precious" == path.read_text()


def test_a_path_longer_than_an_address_works(tmp_path: Path) -> None:
    """A socket address holds about a hundred bytes; databases lie deeper."""
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    path = folder / "ledger.socket"
    with serving(Shower(), settings=PLAIN, local_path=path):
        assert b'"local":true' in ask(path, b"GET /a HTTP/1.0\r\n\r\n")
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """And the TCP port is given back."""
    path = tmp_path / "missing" / "ledger.socket"
    with pytest.raises(StartError, match=r"cannot listen on .*ledger\.socket: No such file or directory"):
        bind_local(path)


@pytest.mark.parametrize("host", ["a" * 70, "..", "a..b", "\udcff"])
def test_what_cannot_be_the_name_of_a_host_is_one_line(host: str) -> None:
    """No label is longer than 63 letters or empty (RFC 1035 2.3.4): nobody is asked for it."""
    with pytest.raises(StartError, match=r"^TOKEN_LEDGER_HOST: .* is no address of this machine$"):
        bind_tcp(host, 0)


def test_a_port_is_taken_once() -> None:
    """SO_REUSEADDR lets a restart take the port of connections that linger, never the port of a server that listens."""
    (first,) = bind_tcp("127.0.0.1", 0)
    with first:
        first.listen()
        with pytest.raises(StartError, match="is taken: another process listens there"):
            bind_tcp("127.0.0.1", first.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux's")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_begins_to_connect_is_not_heard_and_who_has_begun_is(host: str) -> None:
    """Connections made before go on; a new one hears nothing, not even a reset."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=8) as listening:
        address = listening.getsockname()[:2]
        with socket.create_connection(address, timeout=2) as early:
            hear_no_more(listening)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            early.sendall(b"x")
            accepted, _ = listening.accept()
            with accepted:
                assert b"x" == accepted.recv(1)
                accepted.sendall(b"y")
            assert b"y" == early.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all workers listen on one socket")
def test_who_hangs_up_leaves_its_callers_to_the_others_and_may_come_back() -> None:
    """However often it hangs up: nobody waits at its socket, and those who call later are heard as ever."""
    (own,), (other,) = bind_for_each("127.0.0.1", 0, 2)
    with own, other:
        own.listen(8)
        for _ in range(3):
            hang_up(own)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(own.getsockname(), timeout=2)
        own.listen(8)
        with socket.create_connection(own.getsockname(), timeout=2) as calling:
            own.setblocking(True)
            accepted, _ = own.accept()
            with accepted:
                calling.sendall(b"x")
                accepted.settimeout(2)
                assert b"x" == accepted.recv(1)
        other.listen(32)
        hang_up(own)
        for _ in range(16):
            socket.create_connection(own.getsockname(), timeout=2).close()


def test_a_socket_of_a_path_has_no_handshakes(tmp_path: Path) -> None:
    """Nothing is filtered there."""
    with bind_local(tmp_path / "a.sock") as listening:
        listening.listen(8)
        hear_no_more(listening)
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(tmp_path / "a.sock"))
