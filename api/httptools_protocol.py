"""HTTP/1.1 parsed by httptools (llhttp): uvicorn's protocol with our limits, deadlines and refusals.

It and `api/h11_protocol.py` serve and refuse the same requests, but for methods that nobody has registered: llhttp
calls those malformed, while h11 leaves it to the application to say 405.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.answers import Answer, Header, TokenResponse
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


class HttptoolsExchange(Exchange, RequestResponseCycle):
    """An exchange on a connection that httptools parses."""

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
        if (
            type(answer) is not TokenResponse
            or not self.keep_alive
            or self.response_started
            or self.disconnected
            or self.waiting_for_100_continue
            or self.held is not None
            or self.flow.write_paused
            or self.listener.draining
        ):
            return False
        self.status = answer.status
        self.response_started = self.response_complete = True
        self.message_event.set()
        self.transport.write(
            STATUS_LINES[answer.status] + self.listener.date_line + answer.lines + b"\r\n" + answer.body
        )
        self.on_response()
        return True

    async def send_as_uvicorn(self, message: Any) -> None:
        await RequestResponseCycle.send(self, message)

    def ask_for_body(self) -> None:
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


class HttptoolsConnection(Connection, HttpToolsProtocol):  # type: ignore[misc]
    """A connection parsed by httptools (llhttp)."""

    def __init__(self, listener: Listener, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        HttpToolsProtocol.__init__(self, config, listener.state, {}, loop)
        self.access_log = False
        self.in_head = False
        self.upgrading = False
        self.kept_headers: Headers | None = None  # of the newest request; the next one's are the same nearly always
        self.ended = 0  # whole requests so far
        self.feeding_bytes = 0  # of the piece that the parser is reading
        self.set_up(listener)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        ended_before = self.ended
        self.feeding_bytes = len(data)
        offered_at = None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            offered_at = upgrade.args[0]
        except httptools.HttpParserError as error:
            self._refuse_malformed(error)
        else:
            if self.receiving and self.ended == ended_before:
                self.wire_bytes_received(len(data))
        if offered_at is not None:
            self._serve_without_upgrade(data[offered_at:])

    def _refuse_malformed(self, error: Any) -> None:
        cause = error.__context__
        if isinstance(cause, Malformed):
            self.refuse(cause.status, cause.description)
            return
        if cause is not None and isinstance(error, httptools.HttpParserCallbackError):
            log.exception("parser_callback_failed", cause)
        self.refuse(400, NOT_HTTP)

    def _serve_without_upgrade(self, rest: bytes) -> None:
        """Ignore an offer to change protocols (RFC 9110 7.8): feed the same head without it to a new parser.

        The parser leaves the body unread after such a head. Java's HttpClient offers h2c with every plain request.
        """
        self.upgrading = False
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self.refuse(501, "this server is no proxy")
            return
        lines = [b"%s %s HTTP/%s\r\n" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(
                    token for token in map(bytes.strip, value.split(b",")) if token.lower() != b"upgrade"
                )
            if name != b"upgrade":
                lines.append(b"%s: %s\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*lines, b"\r\n", rest]))

    # -- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.in_head = True
        if not self.receiving:
            self.request_begins()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # trailers are read and dropped: nobody has checked them against anything
            self.headers.append((name.lower(), value.rstrip(b" \t")))

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
        kept = self.kept_headers
        if kept is None or kept != headers or kept.framing is None or kept.framing.version != version:
            kept = Headers(headers)
            kept.framing = check_head(version, headers)
            self.kept_headers = kept
        _, length, expects_continue, names_origin = kept.framing
        exchange = HttptoolsExchange(
            scope=self.scope_of(  # type: ignore[arg-type]
                parser.get_method().decode("ascii"), self.url, version, kept, names_origin
            ),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects_continue,
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        exchange.listener = self.listener
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
        return True

    def drop_newest(self) -> None:
        self.pipeline.popleft()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.running is not None and self.running is not self.cycle:
            self.running.disconnected = True
            self.running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
