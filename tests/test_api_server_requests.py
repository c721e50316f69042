"""Lawful requests of every form are served, on both parsers (RFC 9110, RFC 9112)."""

import socket
import time
from collections.abc import Iterator

import pytest

from api.server import Parser
from tests.server_process import eventually
from tests.serving import HOST, PARSERS, Lines, Running, check_quiet, exchange, logged, serving_with
from tests.wire import check_answer, request_bytes


@pytest.fixture(scope="module", params=PARSERS)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving_with(request.param) as server:
        yield server


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as found:
        yield found


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "/a", "query": ""}),
        (b"GET /a?b=c HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "/a", "query": "b=c"}),
        (b"GET /a%20b%2F HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "/a b/"}),
        (b"GET //a/ HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "//a/"}),
        (b"GET http://other.example:80/a?b HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "/a", "query": "b"}),
        (b"GET HTTP://other.example HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "/"}),
        (b"GET http://other.example?b HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "/", "query": "b"}),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", {"method": "OPTIONS", "path": "*"}),
        (b"DELETE /a HTTP/1.1\r\nHost:\r\n\r\n", {"method": "DELETE"}),
        (b"GET /a HTTP/1.1\r\nhOsT: [::1]:8443\r\n\r\n", {"path": "/a"}),
        (b"\r\nGET /a HTTP/1.1\r\n" + HOST + b"\r\n", {"path": "/a"}),
        (b"GET /a HTTP/1.0\r\n\r\n", {"http_version": "1.0"}),
        (b"POST /a HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", {"body": "abc"}),
        (b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc", {"body": "abc"}),
        (b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n", {"body": ""}),
        (b"POST /a HTTP/1.1\r\n" + HOST + b"\r\n", {"body": ""}),
        (
            b"POST /a HTTP/1.1\r\n"
            + HOST
            + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\nT: 1\r\n\r\n",
            {"body": "abc"},
        ),
        (b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", {"body": ""}),
        # an offer to change protocols is ignored, with a body (Java's HttpClient) and without (WebSocket)
        (
            b"POST /a HTTP/1.1\r\n"
            + HOST
            + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
            + b"Content-Length: 3\r\n\r\nabc",
            {"body": "abc"},
        ),
        (
            b"POST /a HTTP/1.1\r\n"
            + HOST
            + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            {"body": "abc"},
        ),
        (
            b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            {"method": "GET", "path": "/a"},
        ),
    ],
)
def test_any_lawful_request_is_served(running: Running, lines: Lines, raw: bytes, expected: dict[str, str]) -> None:
    """RFC 9112: every form of target, both versions, chunks with all they may carry, an empty Host, offers ignored."""
    answer = exchange(running, raw)
    assert 200 == answer.status, answer.body
    check_answer(answer, "POST", "/explain")
    told = answer.json()
    assert expected == {name: told[name] for name in expected}
    check_quiet(lines)


@pytest.mark.parametrize(("parser", "expected"), [("httptools", (400, "close")), ("h11", (200, None))])
def test_a_method_that_is_on_no_list_is_the_parsers_to_take(
    lines: Lines, parser: Parser, expected: tuple[int, str | None]
) -> None:
    """RFC 9110 9.1: it may be any token. llhttp has a fixed list, as the guide for running the server says."""
    with serving_with(parser) as server:
        answer = exchange(server, b"FOO /a HTTP/1.1\r\n" + HOST + b"\r\n")
        assert expected == (answer.status, answer.header("Connection"))
    check_quiet(lines)


@pytest.mark.parametrize("piece_bytes", [1, 7, 50])
def test_a_request_may_come_in_pieces(running: Running, piece_bytes: int) -> None:
    """TCP has no messages."""
    raw = b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
    with running.connect() as connection:
        for start in range(0, len(raw), piece_bytes):
            connection.send(raw[start : start + piece_bytes])
            time.sleep(0.001)
        assert "abcdef" == connection.answer().json()["body"]


def test_header_values_come_without_the_space_around_them(running: Running) -> None:
    """RFC 9112 5: optional white space is not part of a value, whichever parser reads it."""
    answer = exchange(running, b"GET / HTTP/1.1\r\n" + HOST + b"X-A: \t b c \t \r\n\r\n")
    assert ["x-a", "b c"] in answer.json()["headers"]


def test_trailers_are_no_headers(running: Running) -> None:
    """RFC 9110 6.5: a field that comes after the body has been checked by nobody, so it authenticates nobody."""
    raw = b"POST /held HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    server = running.server.app
    server.release.clear()
    with running.connect() as connection:
        connection.send(raw)
        time.sleep(0.05)
        connection.send(b"0\r\nAuthorization: Basic eA==\r\n\r\n")
        time.sleep(0.05)
        server.release.set()
        assert "authorization" not in dict(connection.answer().json()["headers"])


def test_one_connection_serves_many_requests(running: Running) -> None:
    """RFC 9112 9.3: connections persist."""
    with running.connect() as connection:
        for number in range(20):
            answer = connection.exchange(request_bytes("POST", f"/{number}", body=b"x"))
            assert f"/{number}" == answer.json()["path"]
            assert answer.header("Connection") is None


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    """RFC 9112 9.3.2: even when the first takes long and the others are short."""
    server = running.server.app
    server.release.clear()
    with running.connect() as connection:
        first = request_bytes("POST", "/held", body=b"0")
        rest = [request_bytes("POST", f"/{number}", body=b"%d" % number) for number in range(1, 30)]
        connection.send(b"".join([first, *rest]))
        time.sleep(0.1)
        server.release.set()
        bodies = [connection.answer().json()["body"] for _ in range(30)]
        assert [str(number) for number in range(30)] == bodies


def test_pipelined_requests_survive_any_cut(running: Running) -> None:
    """A cut in the middle of the second request, at every place."""
    one = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nok"
    raw = one * 2
    for cut in range(len(one) - 3, len(raw) - 1, 4):
        with running.connect() as connection:
            connection.send(raw[:cut])
            time.sleep(0.002)
            connection.send(raw[cut:])
            assert ["ok", "ok"] == [connection.answer().json()["body"] for _ in range(2)]


def test_offers_to_change_protocols_may_be_pipelined(running: Running, lines: Lines) -> None:
    """RFC 9110 7.8: each is ignored, however many come in one piece."""
    one = request_bytes("GET", "/a", headers={"Connection": "upgrade", "Upgrade": "h2c"})
    with running.connect() as connection:
        connection.send(one * 1_000)
        assert 1_000 * [200] == [connection.answer().status for _ in range(1_000)]
    check_quiet(lines)


def test_an_empty_line_after_a_body_is_nothing(running: Running) -> None:
    """RFC 9112 2.2: old clients send one more than they counted."""
    raw = request_bytes("POST", "/a", body=b"abc")
    with running.connect() as connection:
        connection.send(raw + b"\r\n" + raw + b"\r\n\r\n")
        assert ["abc", "abc"] == [connection.answer().json()["body"] for _ in range(2)]
        assert "abc" == connection.exchange(raw).json()["body"]


def test_a_client_that_asks_before_it_sends_is_asked_to(running: Running) -> None:
    """RFC 9110 10.1.1: 100 Continue, once, and only where the body will be read."""
    raw = request_bytes("POST", "/a", headers={"Expect": "100-continue"}, body=b"abc")
    with running.connect() as connection:
        connection.send(raw[:-3])
        assert b"HTTP/1.1 100 Continue\r\n" == connection._stream.readline()
        assert b"\r\n" == connection._stream.readline()
        connection.send(b"abc")
        assert "abc" == connection.answer().json()["body"]
        assert 200 == connection.exchange(request_bytes("GET", "/b")).status


def test_a_client_that_was_not_asked_for_its_body_finds_the_connection_closed(running: Running) -> None:
    """RFC 9110 10.1.1: it may send the body or leave it out, and what comes next could not be told apart."""
    raw = request_bytes("POST", "/early", headers={"Expect": "100-continue"}, body=b"abc")
    with running.connect() as connection:
        connection.send(raw[:-3])
        answer = connection.answer()
        assert (401, "close") == (answer.status, answer.header("Connection"))
        assert connection.closed_by_peer(3)


def test_an_answer_before_the_body_keeps_the_connection_when_the_body_follows(running: Running) -> None:
    """The rest of a body that nobody wants is read and dropped."""
    raw = request_bytes("POST", "/early", body=b"x" * 4000)
    with running.connect() as connection:
        connection.send(raw[:-3000])
        assert 401 == connection.answer().status
        connection.send(raw[-3000:])
        assert "/b" == connection.exchange(request_bytes("GET", "/b")).json()["path"]


def test_http_1_0_and_connection_close_end_the_connection(running: Running) -> None:
    """RFC 9112 9.6: and the answer says so."""
    for raw in (b"GET /a HTTP/1.0\r\n\r\n", request_bytes("GET", "/a", headers={"Connection": "close"})):
        with running.connect() as connection:
            assert "close" == connection.exchange(raw).header("Connection")
            assert connection.closed_by_peer(3)


@pytest.mark.parametrize("behind", [b"", b"\r\n", b"P", b"POST /a HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_has_said_everything_still_gets_its_answer(running: Running, behind: bytes) -> None:
    """A half-closed connection (`nc -N`, old HTTP/1.0 clients) is not a client that has left, whatever it has begun to
    say behind the request."""
    server = running.server.app
    server.release.clear()
    with running.connect() as connection:
        connection.send(request_bytes("POST", "/held", body=b"abc") + behind)
        connection.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        server.release.set()
        answer = connection.answer()
        assert "abc" == answer.json()["body"]
        assert answer.header("Connection") == "close" or behind  # which h11 has not read by then
        assert connection.closed_by_peer(3)


def test_streams_empty_answers_and_head_go_their_own_way(running: Running) -> None:
    """One write is for the usual shape; the others are as lawful."""
    with running.connect() as connection:
        assert b"one,two," == connection.exchange(request_bytes("GET", "/stream")).body
        assert 204 == connection.exchange(request_bytes("GET", "/empty")).status
        head = connection.exchange(request_bytes("HEAD", "/a"))
        assert (200, True, b"") == (head.status, int(head.header("Content-Length") or 0) > 0, head.body)
        assert 200 == connection.exchange(request_bytes("GET", "/b")).status


def test_a_stream_ends_when_nobody_reads_it_any_more(running: Running, lines: Lines) -> None:
    """Whoever presses Ctrl-C in a rebuild waits for no log of an hour, and may begin another."""
    server = running.server.app
    gone = server.gone
    with socket.create_connection(("127.0.0.1", running.port), 5.0) as connection:
        connection.sendall(request_bytes("GET", "/endless"))
        assert connection.recv(4).startswith(b"HTTP")
        assert gone == server.gone
    eventually(lambda: server.gone > gone, what="the end of the stream")
    check_quiet(lines)


def test_what_is_kept_of_a_head_is_never_another_requests(running: Running) -> None:
    """Requests of one connection that differ in a header, or in the version alone, are told apart."""
    first = request_bytes("GET", "/a", headers={"User-Agent": "one"})
    other = request_bytes("GET", "/a", headers={"User-Agent": "two"})
    old = first.replace(b"HTTP/1.1", b"HTTP/1.0")
    with running.connect() as connection:
        seen = [
            dict(connection.exchange(data).json()["headers"])["user-agent"] for data in (first, first, other, first)
        ]
        assert ["one", "one", "two", "one"] == seen
        assert "close" == connection.exchange(old).header("Connection")


def test_a_head_that_repeats_is_read_once_and_means_the_same(running: Running) -> None:
    """However the next request is cut, whatever follows it, and whatever else changes in it."""
    first = request_bytes("POST", "/a", body=b"abc")
    with running.connect() as connection:

        def bodies(sent: bytes, count: int) -> list[str]:
            connection.send(sent)
            return [str(connection.answer().json()["body"]) for _ in range(count)]

        def repeat() -> None:
            for body in (b"one", b"two", b"six"):
                assert [body.decode()] == bodies(request_bytes("POST", "/a", body=body), 1)

        repeat()
        for cut in (1, 10, len(first) - 4, len(first) - 3, len(first) - 1):
            connection.send(first[:cut])
            time.sleep(0.01)
            assert ["abc"] == bodies(first[cut:], 1)
            repeat()
        assert ["abc", "xyz"] == bodies(first + request_bytes("POST", "/a", body=b"xyz"), 2)
        repeat()
        assert ["abc"] == bodies(b"\r\n" + first, 1)
        assert ["abcd"] == bodies(request_bytes("POST", "/a", body=b"abcd"), 1)
        repeat()
        chunked = first.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked")[:-3]
        assert ["ab"] == bodies(chunked + b"2\r\nab\r\n0\r\n\r\n", 1)
        repeat()
        connection.send(first[:-3] + b"ab")  # a byte is missing: nothing is answered before it is there
        assert ["abc"] == bodies(b"c", 1)
        connection.send(request_bytes("GET", "/early") + first)
        assert [401, 200] == [connection.answer().status, connection.answer().status]


@pytest.mark.parametrize("parser", PARSERS)
def test_who_leaves_before_it_is_met_has_asked_for_nothing(parser: Parser) -> None:
    """A request whose client has reset the connection before it was accepted has no address; it must not pass for one
    through the socket beside the database, which has none either."""
    with serving_with(parser) as running:

        async def sent_and_left() -> None:  # in the loop, so that nothing is accepted meanwhile
            connection = running.connect()
            connection.send(request_bytes("POST", "/a", body=b"abc"))
            connection.cut()

        for _ in range(5):
            running.do(sent_and_left())
        assert "met" == exchange(running, request_bytes("POST", "/a", body=b"met")).json()["body"]
        assert [b"met"] == running.server.app.bodies
        deadline = time.monotonic() + 5
        while running.server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 0 == running.server.connections
