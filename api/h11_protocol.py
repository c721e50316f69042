"""HTTP/1.1 parsed by h11, for platforms where httptools does not install: uvicorn's protocol with our limits.

h11 forgives more than llhttp, as RFC 9112 lets it (bare line feeds, a length told twice, a length beside a transfer
coding). Here the stricter reading counts: somewhere in front stands a proxy with a reading of its own.
"""

import asyncio
import re
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from api.answers import CLOSE
from api.connections import HEAD_BYTES_MAX, NOT_HTTP, Connection, Listener
from api.exchanges import Exchange
from api.heads import Malformed, check_head

# A line feed or a carriage return alone, a line that goes on in the next one, any other control but the tab.
_NOT_IN_A_HEAD: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_LENGTH_LINE: Final = re.compile(rb"\ncontent-length[ \t]*:([^\r]*)", re.IGNORECASE)


class H11Exchange(Exchange, RequestResponseCycle):
    """An exchange on a connection that h11 parses."""

    def joined(self, start: Any, body: bytes) -> bytes | None:
        status = start["status"]
        headers = [*self.listener.state.default_headers, *start.get("headers", ())]
        if not self.keep_alive and CLOSE not in headers:
            headers.append(CLOSE)
        reason = STATUS_PHRASES[status]
        events = (h11.Response(status_code=status, headers=headers, reason=reason), h11.Data(data=body))
        data = b"".join(self.conn.send(event) or b"" for event in (*events, h11.EndOfMessage()))
        self.keep_alive = self.keep_alive and self.conn.our_state is not h11.MUST_CLOSE
        return data

    async def send_as_uvicorn(self, message: Any) -> None:
        await RequestResponseCycle.send(self, message)

    def ask_for_body(self) -> None:
        told = self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        self.transport.write(told or b"")


class H11Connection(Connection, H11Protocol):  # type: ignore[misc]  # what its eof_received returns, uvicorn leaves open
    """A connection parsed by h11, which is slower and runs everywhere."""

    def __init__(self, listener: Listener, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        H11Protocol.__init__(self, config, listener.state, {}, loop)
        self.access_log = False
        self.head = bytearray()  # as it came, because h11 forgives what the other parser does not
        self.recent = b""  # the last piece received, with the four bytes before it
        self.in_chunks = False
        self.set_up(listener)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        if self.conn.their_state is h11.IDLE:
            if not self.receiving:
                data = data.lstrip(b"\r\n")  # an empty line before a request is nothing (RFC 9112 2.2)
                if not data:
                    return
                self.request_begins()
            self.head += data
        self.recent = self.recent[-4:] + data
        self.conn.receive_data(data)
        self.handle_events()
        if self.receiving:
            self.wire_bytes_received(len(data))

    def handle_events(self) -> None:
        while not self.closing and self.refusal is None:
            try:
                event = self.conn.next_event()
                if event is h11.NEED_DATA:
                    return
                if event is h11.PAUSED:
                    self.flow.pause_reading()
                    return
                if isinstance(event, h11.Request):
                    self._request_received(event)
                elif isinstance(event, h11.EndOfMessage) and self.in_chunks:
                    self._check_end_of_chunks(event)
            except h11.RemoteProtocolError as error:
                self.refuse(error.error_status_hint, NOT_HTTP)
                return
            except Malformed as error:
                self.refuse(error.status, error.description)
                return
            if isinstance(event, h11.Data):
                self.body_received(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.whole_body_received()
                if self.conn.our_state is h11.DONE:
                    self._next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return

    def _request_received(self, event: h11.Request) -> None:
        consumed = len(self.head) - len(self.conn.trailing_data[0])
        raw, self.head = bytes(self.head[:consumed]), bytearray()
        if consumed > HEAD_BYTES_MAX:
            raise Malformed(431, "the request's head is too long")
        lengths = _LENGTH_LINE.findall(raw)
        if _NOT_IN_A_HEAD.search(raw) or len(lengths) > 1 or (lengths and b"," in lengths[0]):
            raise Malformed(400, NOT_HTTP)
        headers = [(bytes(name), bytes(value)) for name, value in event.headers]
        version = event.http_version.decode("ascii")
        framing = check_head(version, headers)
        length = framing.length
        self.in_chunks = any(name == b"transfer-encoding" for name, _ in headers)
        if length is not None and self.in_chunks:
            raise Malformed(400, NOT_HTTP)
        method = event.method.decode("ascii")
        if method == "CONNECT":
            raise Malformed(501, "this server is no proxy")
        self.cycle = H11Exchange(
            scope=self.scope_of(method, bytes(event.target), version, headers, framing.names_origin),  # type: ignore[arg-type]  # a TypedDict there
            conn=self.conn,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        self.cycle.listener = self.listener
        self.cycle.waiting_for_100_continue = framing.expects_continue
        self.cycle.keep_alive = version == "1.1"
        if length is not None and length > self.listener.body_bytes_max:
            self.body_too_large(self.cycle)
        self.start(self.cycle)

    def _check_end_of_chunks(self, event: h11.EndOfMessage) -> None:
        if any(name in _FRAMING for name, _ in event.headers):  # trailers frame nothing (RFC 9110 6.5.1)
            raise Malformed(400, NOT_HTTP)
        end = len(self.recent) - len(self.conn.trailing_data[0])
        if end >= 4 and self.recent[end - 4 : end] != b"\r\n\r\n":
            raise Malformed(400, NOT_HTTP)

    def _next_cycle(self) -> None:
        self.conn.start_next_cycle()
        received = self.conn.trailing_data[0]
        self.head = bytearray(received.lstrip(b"\r\n"))
        if len(self.head) != len(received):  # as above; h11 has these bytes already, so another one gets the rest
            self.conn = h11.Connection(h11.SERVER, HEAD_BYTES_MAX)
            if self.head:  # no bytes would mean that the client has closed
                self.conn.receive_data(bytes(self.head))
        if self.head:
            self.request_begins()

    def next_exchange(self) -> bool:
        """Go on with what has been received behind the request answered; h11 keeps it unparsed until then."""
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self._next_cycle()
            self.handle_events()
        return self.running is not None or self.closing

    def drop_newest(self) -> None:
        raise AssertionError("h11 reads one request at a time")
