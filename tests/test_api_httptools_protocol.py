"""What a connection remembers of its requests never changes an answer: held against one that remembers nothing.

The pieces are handed to the server's own side of a real connection, so each arrives exactly as it was cut, and the
loop gets as many turns between two of them as the stream says.
"""

import asyncio
import gc
import json
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from api.answers import TokenResponse, json_answer, oauth_error
from api.forms import TooLarge, read_body
from api.heads import Headers
from api.httptools_protocol import Alike, HttptoolsConnection
from api.settings import Settings
from tests.serving import QUICK, Running, check_quiet, logged, serving
from tests.wire import request_bytes

Stream = list[tuple[bytes, int]]
"""Pieces, each with the turns of the loop that pass after it."""

HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nAuthorization: Basic eA==\r\nContent-Length: 3\r\n\r\n"
ROOM = Settings(port=0, allow_plain_http=True, request_body_bytes_max=512)


class Telling:
    """Tells what it was asked, in a token response for `/token`; writes into its scope as a router does."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        told = {name: scope[name] for name in ("method", "path", "http_version", "type", "scheme", "root_path")}
        told |= {"names": sorted(scope), "names_origin": scope["state"]["names_origin"]}
        told |= {"query": scope["query_string"].decode(), "draining": scope["state"]["draining"]}
        told["headers"] = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        told["state"] = sorted(scope["state"].keys() - {"body"})
        scope["path_params"] = scope["state"]["params"] = {"of": "this request alone"}
        if scope["path"] == "/early":
            await oauth_error(401, "invalid_client").send(send)
            return
        try:
            told["body"] = (await read_body(receive, 512)).decode("latin-1")
        except TooLarge as error:
            await error.answer().send(send)
            return
        if scope["path"] == "/token":
            await TokenResponse(200, json.dumps(told).encode(), 7).send(send)
        else:
            await json_answer(200, told).send(send)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Telling(), parser="httptools", settings=ROOM) as server:
        yield server


def connection_of(server: Running) -> HttptoolsConnection:
    """The server's side of the only connection there is."""
    (found,) = server.server._state.connections
    assert isinstance(found, HttptoolsConnection)
    return found


async def fed(connection: HttptoolsConnection, stream: Stream, *, remembers: bool) -> int:
    """Hand over the pieces; how many requests were served without the parser."""
    served = 0

    def counted(*args: Any) -> None:
        nonlocal served
        served += 1
        HttptoolsConnection._serve_alike(connection, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_serve_alike", counted)
        for piece, turns in stream:
            if connection.transport.is_closing():
                break
            if not remembers:
                connection.alike = connection.kept_headers = None
            connection.data_received(piece)
            for _ in range(turns):
                await asyncio.sleep(0)
        for _ in range(200):  # more than an answer takes; where a body has no end yet there is none to wait for
            await asyncio.sleep(0)
    return served


def answered(server: Running, stream: Stream, *, remembers: bool) -> tuple[bytes, int]:
    """All that a client gets for these pieces until the connection ends, without dates; and as `fed`."""
    with server.connect() as client:
        while len(server.server._state.connections) != 1:
            time.sleep(0.001)
        served = server.do(fed(connection_of(server), stream, remembers=remembers))
        client.socket.shutdown(socket.SHUT_WR)
        got = b""
        while more := client.socket.recv(65_536):
            got += more
    while server.server._state.connections:
        time.sleep(0.001)
    return re.sub(rb"date: [^\r]*\r\n", b"", got), served


def requests(random: Random) -> list[bytes]:
    """One request, in the parts that it is mostly cut into. Nearly always the same head."""
    body = random.choice((b"one", b"two", b"\r\n\r", b"POS", b"{};"))
    usual, chunked = HEAD + body, HEAD.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked")
    other = random.choice(
        (
            [HEAD.replace(b"eA==", b"eB==") + body],
            [HEAD.replace(b"/a", b"/b") + body],
            [HEAD.replace(b"POST /a", b"PUT /ab") + body],
            [HEAD.replace(b"eA==\r\n", b"eA==\r\nOrigin: https://a.example\r\n") + body],
            [request_bytes("GET", "/a"), b""],
            [request_bytes("HEAD", "/a")],
            [HEAD.replace(b"Length: 3", b"Length: 0")],
            [b"\r\n", usual],
            [HEAD.replace(b"POST /a", b"POST /early"), body],
            # what looks like a request, as the body of one
            [HEAD.replace(b"Length: 3", b"Length: %d" % len(usual)), usual],
            [chunked, b"%x\r\n" % len(usual), usual, b"\r\n", b"0\r\n\r\n"],
            [chunked + b"0\r\nX: 1\r\n\r\n"],
            [HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"), body],
            [HEAD.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n") + body] * 4,
        )
    )
    last = random.choice(
        (
            [HEAD.replace(b"1.1", b"1.0") + body],
            [HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body],
            [HEAD.replace(b"Length: 3", b"Length: 600") + body * 200],
            [HEAD.replace(b"Length: 3", b"Length: 3\r\nContent-Length: 3") + body],
            [b"BLAH " + usual],
            [usual[:-1]],
        )
    )
    token = HEAD.replace(b"/a", b"/token") + body
    traced = [_traced(random, body) for _ in range(4)]
    return random.choices(([usual] * 4, [token] * 4, traced, other, last), (5, 4, 4, 6, 0.4))[0]


def _traced(random: Random, body: bytes) -> bytes:
    """A request that is followed through other systems, by another value each time; seldom one that is no value."""
    value = random.randbytes(8).hex().encode()
    if random.random() < 0.1:
        value = value[:4] + random.choice((b" ", b"\t", b"\r", b"\n", b"\0", b":", b"\r\nX: ", b"\xff")) + value[4:-1]
    return HEAD.replace(b"\r\n\r\n", b"\r\nX-Request-ID: %b\r\n\r\n" % value) + body


def stream_of(random: Random) -> Stream:
    """Requests one behind the other, mostly whole pieces, some glued to the next and some cut anywhere."""
    pieces = [b""]
    for part in (part for _ in range(random.randint(4, 16)) for part in requests(random)):
        if pieces[-1] and random.random() < 0.85:
            pieces.append(b"")
        pieces[-1] += part
    stream: Stream = []
    for piece in pieces:
        cut = random.randrange(len(piece)) if piece and random.random() < 0.1 else 0
        stream += [(each, random.choice((0, 1, 12, 12, 12))) for each in (piece[:cut], piece[cut:]) if each]
    return stream


def difference(server: Running, streams: list[Stream]) -> Stream | None:
    """The first of these streams that is answered otherwise where the connection remembers; None: there is none."""
    served = 0
    for stream in streams:
        forgetful, none = answered(server, stream, remembers=False)
        assert 0 == none
        remembering, count = answered(server, stream, remembers=True)
        served += count
        if forgetful != remembering:
            return stream
    assert served >= len(streams), "the short way was hardly taken"
    return None


def test_what_is_remembered_of_a_head_changes_no_answer(running: Running, count: Callable[[int, int], int]) -> None:
    """The same bytes, cut and timed alike, get the same bytes back (RFC 9112 9.3), whatever has been remembered."""
    streams = [stream_of(Random(f"stream {number}")) for number in range(count(100, 4_000))]
    with logged() as lines:
        assert None is difference(running, streams)
    assert [] == [record.getMessage() for record in lines.records if record.exc_info]


def anything_with_a_head(self: HttptoolsConnection, data: bytes) -> None:
    """Broken: whatever frames the body, and whatever follows it."""
    head = data[: data.find(b"\r\n\r\n") + 4]
    if head:
        self.alike = Alike(head, (), len(data), self.cycle.scope, None)


def at_any_value(self: HttptoolsConnection, data: bytes) -> None:
    """Broken: what traces a request may be anything, line ends included."""
    REMEMBER(self, data)
    if self.alike is not None:
        self.alike = AnyValue(*self.alike)


class AnyValue(Alike):
    def opens(self, data: bytes) -> bool:
        head = bytearray(data[: len(self.head)])
        for begin, end in self.traced:
            head[begin:end] = bytes(end - begin)
        return head == self.head


def without_a_copy(self: HttptoolsConnection, data: bytes) -> None:
    """Broken: the scope is the application's own, with all that it adds."""
    REMEMBER(self, data)
    if self.alike is not None:
        self.alike = self.alike._replace(scope=self.cycle.scope)


def in_the_midst(self: HttptoolsConnection, data: bytes) -> None:
    """Broken: what looks alike is a request, also in the midst of a body."""
    alike = self.alike
    if alike is not None and len(data) == alike.length and data.startswith(alike.head) and not self.closing:
        self._serve_alike(alike, data)
    else:
        RECEIVE(self, data)


REMEMBER = HttptoolsConnection._remember
RECEIVE = HttptoolsConnection.data_received


@pytest.mark.parametrize(
    ("place", "broken"),
    [
        ("_remember", anything_with_a_head),
        ("_remember", at_any_value),
        ("_remember", without_a_copy),
        ("data_received", in_the_midst),
    ],
)
def test_a_connection_that_remembers_too_much_is_caught(
    monkeypatch: pytest.MonkeyPatch, place: str, broken: Callable[[HttptoolsConnection, bytes], None]
) -> None:
    """The broken twins of the above."""
    streams = [stream_of(Random(f"stream {number}")) for number in range(100)]
    with logged(), serving(Telling(), parser="httptools", settings=ROOM) as server:
        monkeypatch.setattr(HttptoolsConnection, place, broken)
        assert None is not difference(server, streams)


def test_what_only_traces_a_request_does_not_make_it_another(running: Running) -> None:
    """Clients and meshes send another id with each request: nothing here reads it, so the heads are alike. Those of
    another length go the parser's way."""
    lines = (b"traceparent: 00-%b-01", b"X-Request-ID: %b", b"TraceState: a=%b")
    ids = [b"%032x" % number for number in range(6)]
    heads = [HEAD.replace(b"\r\n\r\n", b"".join(b"\r\n" + line % id for line in lines) + b"\r\n\r\n") for id in ids]
    got, served = answered(running, [(head + b"abc", 12) for head in heads], remembers=True)
    assert (6, 4) == (got.count(b"HTTP/1.1 200"), served)
    assert b"x-request-id" not in got
    longer = heads[-1].replace(ids[-1], ids[-1] * 2)
    _, served = answered(running, [(head + b"abc", 12) for head in (*heads[:3], longer, *heads[3:])], remembers=True)
    assert 3 == served


def test_a_long_request_is_not_kept(running: Running) -> None:
    """An idle connection keeps no more of its last request than a usual one has."""
    long = HEAD.replace(b"\r\n\r\n", b"\r\nX-Long: " + b"x" * 17_000 + b"\r\n\r\n")
    with running.connect() as client:
        for _ in range(4):
            assert 200 == client.exchange(long + b"abc").status
        assert None is connection_of(running).alike
        for _ in range(4):
            assert 200 == client.exchange(HEAD + b"abc").status
        alike = connection_of(running).alike
        assert alike is not None
        assert "eA==" not in repr(alike)
    while running.server._state.connections:
        time.sleep(0.001)


def test_nothing_is_left_for_the_collector_and_nothing_behind_a_connection(running: Running) -> None:
    """A thousand requests leave no reference cycles; nothing stays of a connection that has ended."""

    async def found() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        connection = connection_of(running)
        return weakref.ref(connection), weakref.ref(connection.cycle)

    token = HEAD.replace(b"/a", b"/token") + b"abc"
    with running.connect() as client:
        for _ in range(20):
            assert 200 == client.exchange(token).status
        gc.collect()
        gc.disable()
        try:
            for _ in range(1_000):
                client.send(token)
                assert client.socket.recv(65_536).startswith(b"HTTP/1.1 200 ")
            assert gc.collect() < 100
        finally:
            gc.enable()
        connection, exchange = running.do(found())
        kept: Any = exchange()
        assert type(kept.scope["headers"]) is Headers
        del kept
    while running.server._state.connections:
        time.sleep(0.001)
    running.do(asyncio.sleep(0.01))
    gc.collect()
    assert (None, None) == (connection(), exchange())


class Gated:
    """Answers with a token response: `/held` when it is told to, `/big` with more than a socket takes."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive, 512)
        self.asked += 1
        while scope["path"] == "/held" and not self.release.is_set():
            await asyncio.sleep(0.002)
        body = b'"%s"' % (b"x" * 1_000_000) if scope["path"] == "/big" else b'"token"'
        await TokenResponse(200, body, 7).send(send)


def posted(path: str) -> bytes:
    return HEAD.replace(b"/a", path.encode()) + b"abc"


def test_a_server_that_ends_says_so_to_a_connection_that_it_knows() -> None:
    """A request that is being answered when the server begins to end is answered, and the connection closed."""
    app = Gated()
    with serving(app, parser="httptools", settings=ROOM) as server, server.connect() as client:
        app.release.set()
        for _ in range(4):
            assert None is client.exchange(posted("/held")).header("Connection")
        app.release.clear()
        client.send(posted("/held"))
        while app.asked < 5:
            time.sleep(0.002)
        assert connection_of(server).cycle.whole is None, "the body came without the parser and was read"
        server.stop()
        while not server.server.draining:
            time.sleep(0.002)
        app.release.set()
        answer = client.answer()
        assert (200, b'"token"', "close") == (answer.status, answer.body, answer.header("Connection"))
        assert client.closed_by_peer(2)


def test_a_reader_that_is_slow_gets_every_answer_whole() -> None:
    """What the socket does not take at once waits, and the next request with it."""
    app = Gated()
    with logged() as lines, serving(app, parser="httptools", settings=ROOM) as server, server.connect() as client:
        for _ in range(30):
            client.send(posted("/big"))
        time.sleep(0.1)
        assert app.asked < 20, "answers are not piled up for who does not read them"
        for _ in range(30):
            assert 1_000_002 == len(client.answer().body)
        assert b'"token"' == client.exchange(posted("/a")).body
    check_quiet(lines)


def test_most_of_what_is_pipelined_waits_as_the_bytes_that_it_is() -> None:
    """However many requests come in one piece, few are held while the first is answered, and all are in the end."""
    app = Gated()
    short = [b"GET /%d HTTP/1.1\r\nHost:a\r\n\r\n" % number for number in range(9_000)]
    offer = b"GET / HTTP/1.1\r\nHost:a\r\nConnection:upgrade\r\nUpgrade:h2c\r\n\r\n"
    raw = b"".join([posted("/held"), *short, *[posted("/a")] * 50, *[offer] * 500, b"NONSENSE\r\n\r\n"])
    with logged() as lines, serving(app, parser="httptools", settings=ROOM) as server, server.connect() as client:
        while len(server.server._state.connections) != 1:
            time.sleep(0.001)
        connection = connection_of(server)
        held = []

        async def give() -> None:
            connection.data_received(raw)
            held.append(len(connection.pipeline))

        server.do(give())
        assert 0 < held[0] < 250
        app.release.set()
        for _ in range(9_551):
            assert 200 == client.answer().status
            held.append(len(connection.pipeline))
        assert max(held) < 250
        assert 400 == client.answer().status
        assert client.closed_by_peer(3)
        assert 9_551 == app.asked
    check_quiet(lines)


def test_a_client_that_leaves_before_its_answer_is_no_event() -> None:
    """Nothing is written to a connection that is gone, and the next one is served."""
    app = Gated()
    with logged() as lines, serving(app, parser="httptools", settings=ROOM) as server:
        with server.connect() as client:
            app.release.set()
            for _ in range(4):
                client.exchange(posted("/held"))
            app.release.clear()
            client.send(posted("/held"))
            while app.asked < 5:
                time.sleep(0.002)
            client.cut()
        while server.server._state.connections:
            time.sleep(0.001)
        app.release.set()
        with server.connect() as client:
            assert 200 == client.exchange(posted("/held")).status
            assert 5 == server.server._state.total_requests, "an answer that nobody got is none"
        while server.server._state.connections or server.server._state.tasks:
            time.sleep(0.001)
    check_quiet(lines)


def test_the_clocks_of_a_connection_run_whether_the_parser_saw_its_requests_or_not() -> None:
    """Idle from the last answer on, and slow from the first byte on (RFC 9110 15.5.9)."""
    with serving(Telling(), parser="httptools", settings=QUICK) as server:
        with server.connect() as client:
            for _ in range(5):
                time.sleep(0.3)
                assert 200 == client.exchange(HEAD + b"abc").status
            started = time.monotonic()
            client.send(HEAD + b"ab")
            assert 408 == client.answer().status
            assert time.monotonic() - started > 0.8
        with server.connect() as client:
            for _ in range(5):
                assert 200 == client.exchange(HEAD + b"abc").status
            started = time.monotonic()
            assert client.closed_by_peer(4)
            assert time.monotonic() - started > 0.5
        assert 10 == server.server._state.total_requests
