"""HTTP/1.1 parsed by httptools (llhttp): uvicorn's protocol with our limits, deadlines and refusals.

It and `api/h11_protocol.py` serve and refuse the same requests, but for methods that nobody has registered: llhttp
calls those malformed, while h11 leaves it to the application to say 405. And each reads on where the other refuses:
llhttp where a request line ends with RTSP/ or ICE/ in place of HTTP/, which it frames alike and tells nobody of; h11
over controls and space behind a chunk's size, and over lines of trailers that are folded or end without a return.
"""

import asyncio
import math
import re
from collections.abc import Callable
from hmac import compare_digest
from typing import Any, Final, NamedTuple

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.answers import Answer, Header, Replies, TokenResponse
from api.connections import (
    HEAD_BYTES_MAX,
    NOT_HTTP,
    STATUS_LINES,
    Connection,
    Listener,
    log,
)
from api.exchanges import Exchange
from api.heads import Headers, Malformed, check_head
from api.tracing import TRACING

_NEVER: Final = math.inf
_TRACED: Final = re.compile(rb"(?im)^(?:" + b"|".join(sorted(TRACING)) + rb"):[ \t]*([!-~]+)\r$")
_VISIBLE: Final = re.compile(rb"[!-~]+")
_ALIKE_BYTES_MAX: Final = 16_384  # of a request that an idle connection keeps
_PIECE_BYTES: Final = 4_096  # that the parser gets at once: a hundred and fifty of the shortest requests
_WAITING_MAX: Final = 64  # requests behind the one that is being answered, before the rest stays unread


class HttptoolsExchange(Exchange, RequestResponseCycle):
    """An exchange on a connection that httptools parses."""

    # What uvicorn sets anew for each request and is the same at the beginning of all.
    access_log = False
    disconnected = False
    waiting_for_100_continue = False
    response_started = False
    response_complete = False
    chunked_encoding = None
    expected_content_length = 0

    _event: asyncio.Event | None = None

    def __init__(self, connection: "HttptoolsConnection", scope: Any, *, keep_alive: bool) -> None:
        self.scope = scope
        self.transport = connection.transport
        self.flow = connection.flow
        self.logger = connection.logger
        self.access_logger = connection.access_logger
        self.default_headers = connection.server_state.default_headers
        self.on_response = connection.on_response_complete
        self.listener = connection.listener
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]  # uvicorn's is made with each request
        """Set whenever there is news for `receive`; made when somebody asks, which most requests never do."""
        event = self._event
        if event is None:
            event = self._event = asyncio.Event()
        return event

    def joined(self, start: Any, body: bytes) -> bytes | None:
        headers = start.get("headers", ())
        known = dict(headers)
        length = known.get(b"content-length")
        if length is None or b"transfer-encoding" in known:
            return None
        if int(length) != len(body):
            raise RuntimeError("the length told is not the body's")
        parts = [
            STATUS_LINES[start["status"]],
            self.listener.date_line,
            *[b"%b: %b\r\n" % header for header in headers],
        ]
        if known.get(b"connection") == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            parts.append(b"connection: close\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts) or b"\0" in head:
            raise RuntimeError("a header holds a line end or a NUL")
        return head + b"\r\n" + body

    def take(self, answer: Answer) -> bool:
        listener = self.listener
        unusual = self.response_started or self.held is not None or self.disconnected or not self.keep_alive
        if (
            type(answer) is not TokenResponse
            or unusual
            or self.waiting_for_100_continue
            or self.flow.write_paused
            or listener.draining
        ):
            return False
        self.status = answer.status
        self.response_started = self.response_complete = True
        if self._event is not None:
            self._event.set()
        self.transport.write(STATUS_LINES[answer.status] + listener.date_line + answer.rest)
        self.on_response()
        return True

    async def send_as_uvicorn(self, message: Any) -> None:
        await RequestResponseCycle.send(self, message)

    def ask_for_body(self) -> None:
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


class Alike(NamedTuple):
    """The head of a connection's requests while they are alike: its bytes, where in them values stand that only trace a
    request (zeros in `head`), how long a whole request is, its scope, and what serves requests that repeat, if anything
    does."""

    head: bytes
    traced: tuple[tuple[int, int], ...]
    length: int
    scope: dict[str, Any]
    once_more: Callable[[Headers, bytes, Replies], bool] | None

    def opens(self, data: bytes) -> bool:
        """Whether a whole request, as long as this one, has this head."""
        head: bytes | bytearray = data[: len(self.head)]
        if self.traced:
            head = bytearray(head)
            for begin, end in self.traced:
                if not _VISIBLE.fullmatch(head, begin, end):
                    return False
                head[begin:end] = bytes(end - begin)
        # Behind a proxy one client's guess may meet another's secret here: how much of it is right, no time tells.
        return compare_digest(head, self.head)

    def __repr__(self) -> str:
        return f"<Alike {self.length} bytes>"  # a head may hold credentials


class HttptoolsConnection(Connection, HttpToolsProtocol):  # type: ignore[misc]  # as in api/h11_protocol.py
    """A connection parsed by httptools (llhttp)."""

    def __init__(self, listener: Listener, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        HttpToolsProtocol.__init__(self, config, listener.state, {}, loop)
        self.access_log = False
        self.in_head = self.is_traced = False
        self.upgrading = False
        self.kept_headers: Headers | None = None  # of the newest request; the next one's are the same nearly always
        self.kept_mark = 0
        self.headers_repeat = False
        self.alike: Alike | None = None
        self.ended = 0  # whole requests so far
        self.unread = b""  # received, and not yet given to the parser: requests wait before it
        self.feeding_bytes = 0  # of the piece that the parser is reading
        self.set_up(listener)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        at_rest = self.running is None and not self.receiving
        alike = self.alike
        if alike is not None and at_rest and len(data) == alike.length and alike.opens(data):
            self._serve_alike(alike, data)
            return
        ended_before = self.ended
        self.unread += data
        self._read_on()
        if self.headers_repeat and at_rest and self.ended == ended_before + 1:
            self._remember(data)

    def _read_on(self) -> None:
        """Let the parser have what is unread, a little at a time, until so many requests wait that it can wait as well.

        A request that waits takes forty times its bytes. Nothing more is received while any waits.
        """
        data, self.unread, at = self.unread, b"", 0
        while at < len(data) and len(self.pipeline) < _WAITING_MAX:
            piece = data[at : at + _PIECE_BYTES]
            at += _PIECE_BYTES
            while piece and not self.closing and self.refusal is None:
                piece = self._parse(piece)
        self.unread = data[at:]

    def _parse(self, data: bytes) -> bytes:
        """Let the parser read; return what it is to read after that: where an offer was ignored, the same without."""
        ended_before = self.ended
        self.feeding_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse_malformed(error)
        else:
            if self.receiving and self.ended == ended_before:
                self.wire_bytes_received(len(data))
        return b""

    def _remember(self, data: bytes) -> None:
        """Keep the head of a request that has come whole, in one piece and alone: the same bytes mean the same."""
        exchange, kept = self.cycle, self.kept_headers
        self.alike = None
        if kept is None or kept.framing is None or exchange.scope["headers"] is not kept:
            return
        length = kept.framing.length
        if not length or exchange.over_limit or not exchange.keep_alive or kept.framing.expects_continue:
            return
        head = data[:-length]
        if len(data) > _ALIKE_BYTES_MAX:
            return
        if head.startswith(b"POST ") and head.find(b"\r\n\r\n") == len(head) - 4 and b"\n\n" not in head:
            scope = exchange.scope  # copied before the application, which may add to its own, gets to run
            once_more = getattr(self.listener.app, "once_more", None)
            once_more = None if once_more is None else once_more(scope)
            traced, blank = tuple(match.span(1) for match in _TRACED.finditer(head)), bytearray(head)
            for begin, end in traced:
                blank[begin:end] = bytes(end - begin)
            self.alike = Alike(bytes(blank), traced, len(data), {**scope, "state": {**scope["state"]}}, once_more)

    def _serve_alike(self, alike: Alike, data: bytes) -> None:
        """Serve a whole request whose head was read before, byte for byte: the parser, at rest, need not see it."""
        self.idle = False
        self.began_at = self.loop.time()
        self.deadline = _NEVER
        body, scope = data[len(alike.head) :], alike.scope
        exchange = self.cycle
        if exchange.over:  # as good as new
            exchange.over = exchange.response_started = exchange.response_complete = False
            exchange.scope, exchange.on_response = scope, self.on_response_complete
        else:
            exchange = self.cycle = HttptoolsExchange(self, scope, keep_alive=True)
            exchange.more_body = False
        self.ended += 1
        self.running = exchange
        if alike.once_more is None or not alike.once_more(scope["headers"], body, exchange):
            state = {"draining": self.listener.draining, "body": body}
            exchange.scope = {**scope, "state": {**scope["state"], **state}}
            exchange.whole = body
            self.start(exchange)

    def _refuse_malformed(self, error: Any) -> None:
        cause = error.__context__
        if isinstance(cause, Malformed):
            self.refuse(cause.status, cause.description)
            return
        if cause is not None and isinstance(error, httptools.HttpParserCallbackError):
            log.exception("parser_callback_failed", cause)
        self.refuse(400, NOT_HTTP)

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Ignore an offer to change protocols (RFC 9110 7.8): return the same head without it, for a new parser.

        The parser leaves the body unread after such a head. Java's HttpClient offers h2c with every plain request.
        """
        self.upgrading = False
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self.refuse(501, "this server is no proxy")
            return b""
        lines = [b"%s %s HTTP/%s\r\n" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(
                    token for token in map(bytes.strip, value.split(b",")) if token.lower() != b"upgrade"
                )
            if name != b"upgrade":
                lines.append(b"%s: %s\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        return b"".join([*lines, b"\r\n", rest])

    # -- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.in_head, self.is_traced = True, False
        if not self.receiving:
            self.request_begins()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # trailers are read and dropped: nobody has checked them against anything
            name = name.lower()
            self.headers.append((name, value.rstrip(b" \t")))
            self.is_traced |= name in TRACING

    def on_headers_complete(self) -> None:
        self.in_head = False
        parser = self.parser
        if parser.should_upgrade():
            self.upgrading = True
            return
        headers = self.headers
        version = parser.get_http_version()
        if self.wire_bytes + self.feeding_bytes > HEAD_BYTES_MAX:
            self._check_length(headers)  # there may be more than this head among these bytes
        if self.is_traced:
            headers = [header for header in headers if header[0] not in TRACING]
        kept = self.kept_headers
        # A hash under a random key first: only what is the same, secrets and all, is compared byte by byte.
        mark = hash(tuple(headers))
        self.headers_repeat = kept is not None and mark == self.kept_mark and kept == headers
        if kept is None or not self.headers_repeat or kept.framing is None or kept.framing.version != version:
            kept = Headers(headers)
            kept.framing = check_head(version, headers)
            self.kept_headers, self.kept_mark = kept, mark
        _, length, expects_continue, names_origin = kept.framing
        method = parser.get_method().decode("ascii")
        scope = self.scope_of(method, self.url, version, kept, names_origin)
        exchange = HttptoolsExchange(self, scope, keep_alive=version == "1.1" and parser.should_keep_alive())
        exchange.waiting_for_100_continue = expects_continue
        self.cycle = exchange
        if length is not None and length > self.listener.body_bytes_max:
            self.body_too_large(exchange)
        if self.running is None:
            self.start(exchange)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _check_length(self, headers: list[Header]) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers) > HEAD_BYTES_MAX:
            raise Malformed(431, "the request's head is too long")

    def on_body(self, body: bytes) -> None:
        self.body_received(body)

    def on_message_complete(self) -> None:
        if not self.upgrading:
            self.ended += 1
            self.whole_body_received()

    # -- the order of answers ----------------------------------------------------------------------------------------

    def next_exchange(self) -> bool:
        if not self.pipeline:
            return False
        self.start(self.pipeline.pop()[0])
        if self.unread:  # only where requests wait
            self._read_on()
        return True

    def drop_newest(self) -> None:
        self.pipeline.popleft()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.running is not None and self.running is not self.cycle:
            self.running.disconnected = True
            self.running.message_event.set()
        self.pipeline.clear()
        self.unread = b""
        self.alike = self.kept_headers = None  # they may hold credentials
        super().connection_lost(exc)
