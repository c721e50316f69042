"""Hostile requests are refused in one shape, on both parsers, and leave no word in the log (H18, H28)."""

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from tests.serving import HOST, PARSERS, Lines, Running, check_quiet, check_refused, exchange, logged, serving_with
from tests.wire import request_bytes


@pytest.fixture(scope="module", params=PARSERS)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving_with(request.param) as server:
        yield server


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as found:
        yield found


MALFORMED = {
    "a length and a transfer coding": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a transfer coding and a length": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "one length twice": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "one length twice in a line": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a negative length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "a signed length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc",
    "a hexadecimal length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x3\r\n\r\nabc",
    "a length of 23 digits": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "an empty length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n",
    "line feeds alone": b"GET / HTTP/1.1\nHost: x\n\n",
    "one line feed alone": b"GET / HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "one host twice": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "a host that is none": b"GET / HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "a header on two lines": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n c\r\n\r\n",
    "a chunk's last line feed alone": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\n",
    "a transfer coding in the trailers": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a length in the trailers": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n" + HOST + b": x\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
    "a NUL in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\0c\r\n\r\n",
    "a NUL in a name": b"GET / HTTP/1.1\r\n" + HOST + b"X\0A: b\r\n\r\n",
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a control in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\x01c\r\n\r\n",
    "a carriage return in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\rX-B: c\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in the target": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is no path": b"GET a HTTP/1.1\r\n" + HOST + b"\r\n",
    "another scheme": b"GET ftp://a/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a user in the target": b"GET http://me:pw@a/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a chunk size that is none": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a chunk without its end": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n",
    "a chunk size of 20 digits": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff1\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a lower-case method": b"get\x00 / HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version that is none": b"GET / HTTP/x.y\r\n" + HOST + b"\r\n",
    "another protocol": b"EHLO localhost\r\n\r\n",
    "a TLS handshake": bytes.fromhex("16030100c8010000c40303") + b"\0" * 64 + b"\r\n\r\n",
    "random bytes": bytes(range(256)) + b"\r\n\r\n",
}
# Status by name where it is not 400.
OTHER = {"HTTP/0.9": {400, 505}, "HTTP/2 with prior knowledge": {400, 505}}
NOT_SERVED = {
    "a transfer coding unknown here": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        {501},
    ),
    "a proxy's method": (b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 501}),
    "another version": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", {400, 505}),
    "a head of 80 KiB": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"b" * 80_000 + b"\r\n\r\n", {431}),
    "a head of 80 KiB without an end": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"b" * 80_000, {431}),
    "a target of 80 KiB": (b"GET /" + b"b" * 80_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {431}),
    "a head of 1 MB": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"b" * 1_000_000 + b"\r\n\r\n", {431}),
    "20,000 headers": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n" * 20_000 + b"\r\n", {431}),
    "trailers of 300 KiB": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"b" * 300_000,
        {400, 431},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_refused_in_one_shape(running: Running, lines: Lines, name: str) -> None:
    """H28: 400 with the body of RFC 6749 5.2, `Date`, the connection closed, no word in the log, nothing served."""
    served = len(running.server.app.bodies)
    with running.connect() as connection:
        check_refused(connection.exchange(MALFORMED[name]), OTHER.get(name, {400}))
        assert connection.closed_by_peer(3)
    assert served == len(running.server.app.bodies)
    check_quiet(lines)


@pytest.mark.parametrize("name", NOT_SERVED)
def test_what_is_too_much_or_not_served_is_refused_in_one_shape(running: Running, lines: Lines, name: str) -> None:
    """H18: a limit on everything, at once, also for what a parser would keep for itself."""
    raw, statuses = NOT_SERVED[name]
    with running.connect() as connection:
        check_refused(connection.exchange(raw), statuses)
        assert connection.closed_by_peer(3)
    check_quiet(lines)


def test_the_head_may_be_long_but_not_longer_than_its_limit(running: Running) -> None:
    """64 KiB: what is just within is served, also when earlier requests came in the same bytes."""
    within = b"GET /a HTTP/1.1\r\n" + HOST + b"X-A: " + b"b" * 60_000 + b"\r\n\r\n"
    with running.connect() as connection:
        connection.send(request_bytes("GET", "/1") * 100 + within * 2)
        statuses = [connection.answer().status for _ in range(102)]
    assert 102 * [200] == statuses


def test_many_small_pipelined_requests_are_no_long_head(running: Running) -> None:
    """Bytes are counted for the request that they belong to."""
    count = 3000
    with running.connect(timeout_seconds=20) as connection:
        raw = request_bytes("GET", "/1") * count
        for start in range(0, len(raw), 10_007):
            connection.send(raw[start : start + 10_007])
        assert count * [200] == [connection.answer().status for _ in range(count)]


def test_a_broken_request_behind_a_good_one_is_refused_after_its_answer(running: Running) -> None:
    """RFC 9112 9.3.2: answers keep the order of requests, refusals too."""
    server = running.server.app
    server.release.clear()
    for broken in (b"garbage\r\n\r\n", MALFORMED["a chunk size that is none"]):
        with running.connect() as connection:
            connection.send(request_bytes("POST", "/held", body=b"first") + broken)
            time.sleep(0.1)
            server.release.set()
            assert "first" == connection.answer().json()["body"]
            check_refused(connection.answer(), {400})
            assert connection.closed_by_peer(3)


def test_a_body_that_breaks_off_its_framing_reaches_no_application(running: Running, lines: Lines) -> None:
    """The application that waits for the rest learns that nobody is there, and the client why."""
    with running.connect() as connection:
        connection.send(b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        time.sleep(0.05)
        connection.send(b"zz\r\n")
        check_refused(connection.answer(), {400})
        assert connection.closed_by_peer(3)
    check_quiet(lines)


# -- bodies too large --------------------------------------------------------------------------------------------------


CHUNKED = b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("/a", request_bytes("POST", "/a", body=b"x" * 8193)),
        ("/unlimited", request_bytes("POST", "/unlimited", body=b"x" * 8193)),
        ("/a", request_bytes("POST", "/a", body=b"x" * 2_000_000)),
        ("/a", CHUNKED + chunked(b"x" * 8193, 100)),
        ("/a", CHUNKED + chunked(b"x" * 500_000, 50_000)),
    ],
)  # fmt: skip
def test_a_body_over_the_cap_is_refused_and_the_connection_closed(
    running: Running, lines: Lines, path: str, raw: bytes
) -> None:
    """H18, V33: 413 invalid_request, bytes as decoded, also where the application knows of no cap."""
    with running.connect() as connection:
        check_refused(connection.exchange(raw), {413})
        assert connection.closed_by_peer(3)
    check_quiet(lines)


def test_a_body_at_the_cap_is_served(running: Running) -> None:
    """8192 bytes as decoded, though they are many more on the wire."""
    whole = request_bytes("POST", "/a", body=b"x" * 8192)
    in_chunks = CHUNKED + chunked(b"x" * 8192, 1)
    for raw in (whole, in_chunks):
        assert 8192 == len(exchange(running, raw).json()["body"])


def test_a_client_that_asks_with_a_body_too_large_is_not_asked_to_send_it(running: Running) -> None:
    """RFC 9110 10.1.1: the final answer in place of 100 Continue."""
    raw = request_bytes("POST", "/a", headers={"Expect": "100-continue"}, body=b"x" * 9000)
    with running.connect() as connection:
        connection.send(raw[:-9000])
        line = connection._stream.readline()
        assert b"HTTP/1.1 413 " == line[:13]


def test_a_hundred_megabytes_cost_nothing(running: Running) -> None:
    """H18: announced and sent as fast as the network takes it; the answer comes through the noise."""
    raw = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 100000000\r\n\r\n"
    with running.connect() as connection:
        connection.send(raw + b"x" * 3_000_000)
        check_refused(connection.answer(), {413})


# -- any bytes --------------------------------------------------------------------------------------------------------

LAWFUL = (
    request_bytes("POST", "/a", body=b"abc"),
    CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
    b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n\r\n",
    b"POST /early HTTP/1.0\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    request_bytes("GET", "/a") * 2,
)
SERVED = {200, 401}
NOTHING_AFTER_SIZE = re.compile(rb"\n[0-9a-f]+[ \t;]+\r\n")
TROUBLE = (
    *(b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b",", b";", b"\t", b"\xff", b"\x0b"),
    *(b"%", b"#", b"?", b"/", b"*", b"0", b"-1", b"chunked", b"close", b"HTTP/1.1"),
    *(b"Content-Length: 4\r\n", b"Host: y\r\n", b"Transfer-Encoding: gzip\r\n"),
)


def mutated(random: Random) -> bytes:
    """Return a lawful request with one to three wounds."""
    raw = bytearray(random.choice(LAWFUL))
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(raw) + 1)
        kind = random.random()
        if kind < 0.4:
            raw[place:place] = random.choice(TROUBLE)
        elif kind < 0.7:
            del raw[place : place + random.randint(1, 4)]
        elif kind < 0.9:
            raw[place : place + 1] = bytes([random.randrange(256)])
        else:
            other = random.randrange(len(raw) + 1)
            raw[place:place] = raw[min(place, other) : max(place, other)][:60]
    return bytes(raw)


def outcome(server: Running, raw: bytes) -> tuple[int, Any]:
    """Return the status, 0 where the server just closes, and what the application saw of a request that was served."""
    with server.connect() as connection:
        connection.send(raw)
        with contextlib.suppress(OSError):
            connection.socket.shutdown(socket.SHUT_WR)
        try:
            answer = connection.answer("GET" if raw.startswith(b"GET") else "POST")
        except ConnectionError:
            return 0, None
    assert answer.status != 500, raw
    told = answer.json() if answer.status == 200 else {}
    return answer.status, [told.get(name) for name in ("method", "path", "query", "body")]


def disagreements(number: int) -> list[bytes]:
    """Return the wounded requests that one parser serves and the other does not, or not alike.

    But for methods that nobody has registered, which llhttp does not know, and for space that moves no boundary: more
    than one between the parts of a request line, which llhttp forgives (RFC 9112 3), and what says nothing after a
    chunk's size, which h11 does.
    """
    random = Random(20)
    found = []
    with serving_with("httptools") as first, serving_with("h11") as second:
        for _ in range(number):
            raw = mutated(random)
            one, other = outcome(first, raw), outcome(second, raw)
            line = raw.lstrip(b"\r\n").partition(b"\r\n")[0]
            known = line.split(b" ")[0] in (b"GET", b"POST") and b"  " not in line
            if known and one != other and SERVED & {one[0], other[0]} and not NOTHING_AFTER_SIZE.search(raw):
                found.append(raw)
    return found


def test_both_parsers_agree_on_any_bytes_and_neither_fails(lines: Lines, count: Callable[[int, int], int]) -> None:
    """H28: 10,000 wounded requests in the full tier: no 500, no traceback, and both serve the same alike."""
    assert [] == disagreements(count(400, 10_000))
    check_quiet(lines)


def test_a_parser_that_forgives_more_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: h11 as it comes."""
    monkeypatch.setattr("api.h11_protocol._NOT_IN_A_HEAD", re.compile(rb"(?!)"))
    assert [] != disagreements(400)
