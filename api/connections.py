"""One connection: what both parsers share. Deadlines, limits, refusals on the protocol's level, and how it all ends.

A connection is always in one of five states, each with its own bound:

- opened, nothing received yet: REQUEST_TIMEOUT_SECONDS from accept, the TLS handshake included
- receiving a request: REQUEST_TIMEOUT_SECONDS from its first byte to its last
- answering: the application's own time; but what it has written must be read within REQUEST_TIMEOUT_SECONDS
- idle between requests: KEEP_ALIVE_SECONDS, less where more than a thousand are idle, or half of all that there may be
- closing: a moment for the rest of what the client sends, so that it gets to read why, then nothing

One sweep over all connections (`Server`) looks at the deadlines; no request costs a timer.
"""

import array
import asyncio
import contextlib
import fcntl
import http
import math
import termios
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from api.answers import CLOSE, Answer, Header, oauth_error
from api.certificates import DER
from api.heads import parts_of
from api.logs import Log

HEAD_BYTES_MAX: Final = 65_536
LINGER_SECONDS: Final = 2.0
STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %s\r\n" % (status, http.HTTPStatus(status).phrase.encode("ascii") if known else b"")
    for status in range(200, 600)
    for known in (status in {*http.HTTPStatus},)
}
COUNTS: Final = ("malformed", "head_too_large", "body_too_large", "too_slow", "idle_closed", "too_many")
"""What is counted about connections: refused for form, size or number, closed for their slowness or while idle."""

NOT_HTTP: Final = "the request is not HTTP/1.1 as this server speaks it"

_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_NEVER: Final = math.inf

log = Log("api.server")


@dataclass(slots=True, eq=False)
class Listener:
    """What all connections of one listening socket share. Owned by the event loop."""

    app: Any
    state: ServerState
    body_bytes_max: int
    request_seconds: float
    keep_alive_seconds: float
    counts: dict[str, int]
    connections_max: int = 1_000_000
    local: bool = False
    access_log: bool = False
    draining: bool = False
    date_line: bytes = b""
    body_wire_bytes_max: int = field(init=False)

    def __post_init__(self) -> None:
        # A body may come in chunks of one byte each, six bytes on the wire; beyond that it is padding.
        self.body_wire_bytes_max = 8 * self.body_bytes_max + HEAD_BYTES_MAX


class Connection(asyncio.Protocol, ABC):
    """The part of a connection that does not depend on the parser; mixed into uvicorn's two protocols."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    server_state: ServerState
    server: tuple[str, int | None] | None
    client: tuple[str, int] | None
    scheme: Any
    cycle: Any  # the exchange of the newest request whose head is whole

    listener: Listener
    running: Any  # the exchange that is being answered
    refusal: tuple[int, str] | None  # to be written when what came before it has been answered
    began_at: float
    deadline: float
    write_deadline: float
    receiving: bool
    idle: bool
    closing: bool  # our last byte is written; what the client still sends is dropped
    half_closed: bool  # the client's last byte is read; it still reads
    wire_bytes: int  # of the request being received
    extensions: dict[str, Any] | None  # of every scope of this connection, where it has any

    def set_up(self, listener: Listener) -> None:
        """Begin the life of a connection: called when it is accepted, before a TLS handshake."""
        self.listener = listener
        self.running = self.refusal = None
        self.began_at = self.loop.time()
        self.deadline = self.began_at + listener.request_seconds
        self.write_deadline = _NEVER
        self.receiving = self.idle = self.closing = self.half_closed = False
        self.wire_bytes = 0
        self.extensions = None

    def connection_made(self, transport: Any) -> None:
        """Take the connection, unless its client has left already, or files are running short: the store needs some,
        and it comes first."""
        super().connection_made(transport)
        if self.client is None and not self.listener.local:
            # The client has reset it, so nobody waits for an answer. What it sent can be read even now; but where it
            # came from can not, and no address is that of the socket beside the database.
            transport.abort()
            return
        if self.scheme == "https":
            self.extensions = _peer_certificate(transport)
        # Not the operator's, who may come to end this very rush: what is kept for the store has room for that.
        if not self.listener.local and len(self.server_state.connections) > self.listener.connections_max:
            self.listener.counts["too_many"] += 1
            transport.abort()

    # -- the course of a request -----------------------------------------------------------------------------------

    def request_begins(self) -> None:
        """Start the clock: a request's first byte is here."""
        self.receiving = True
        self.idle = False
        self.wire_bytes = 0
        self.began_at = self.loop.time()
        if self.running is None:
            self.deadline = self.began_at + self.listener.request_seconds

    def request_ends(self) -> None:
        """Stop the clock: its last byte is here."""
        self.receiving = False
        if self.running is not None:
            self.deadline = _NEVER
        else:
            self._becomes_idle()

    def start(self, exchange: Any) -> None:
        """Let the application answer."""
        self.running = exchange
        exchange.run(self.listener.app)

    def on_response_complete(self) -> None:
        """Go on after an answer: end, next request, refusal that waited, or idle."""
        exchange, self.running = self.running, None
        self.server_state.total_requests += 1
        if self.listener.access_log:
            exchange.log_access()
        if self.transport.is_closing():
            self.deadline = self.loop.time() + LINGER_SECONDS
        elif not exchange.keep_alive:
            self._finish(linger=exchange.more_body)
        elif not self.next_exchange():
            if self.refusal is not None:
                self._write_refusal(*self.refusal)
                return
            if not self.receiving:
                self._becomes_idle()
            elif not exchange.more_body:  # the next request has begun behind this one; its time runs from now
                self.deadline = self.loop.time() + self.listener.request_seconds
            self.flow.resume_reading()
        elif self.running is not None and self.running.more_body:  # as above, with its head whole
            self.deadline = self.loop.time() + self.listener.request_seconds

    @abstractmethod
    def next_exchange(self) -> bool:
        """Start the next request that waits behind the one answered, if there is one."""

    @abstractmethod
    def drop_newest(self) -> None:
        """Forget the newest request, which waits behind others and turned out broken."""

    def body_received(self, data: bytes) -> None:
        """Add to the newest request's body, unless it has more than is read or its answer is out already."""
        exchange = self.cycle
        if exchange.response_complete:
            return
        exchange.received += len(data)
        if exchange.received > self.listener.body_bytes_max:
            self.body_too_large(exchange)
        else:
            exchange.body += data
            exchange.message_event.set()

    def body_too_large(self, exchange: Any) -> None:
        """Stop reading; the application learns it from `receive` and answers 413 itself, so with its own headers."""
        if not exchange.over_limit:
            self.listener.counts["body_too_large"] += 1
            exchange.over_limit = True
            exchange.keep_alive = False
            exchange.message_event.set()
        self.flow.pause_reading()

    def whole_body_received(self) -> None:
        """Tell the newest request that its body is whole."""
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self.request_ends()

    def wire_bytes_received(self, length: int) -> None:
        """Bound what the parser keeps for itself: long heads, trailers, chunk extensions."""
        self.wire_bytes += length
        head_whole = self.cycle is not None and self.cycle.more_body
        if self.wire_bytes > (self.listener.body_wire_bytes_max if head_whole else HEAD_BYTES_MAX):
            self.refuse(431, "the request's head or its trailers are too long")

    def _becomes_idle(self) -> None:
        self.idle = True
        self.deadline = self.loop.time() + self.listener.keep_alive_seconds

    # -- the scope that the application sees -------------------------------------------------------------------------

    def scope_of(
        self, method: str, target: bytes, version: str, headers: list[Header], names_origin: bool
    ) -> dict[str, Any]:
        """Return the ASGI scope. In `state`: `local`, whether it came through the socket beside the database;
        `draining`, whether the server is ending; `names_origin`, whether there is an Origin header; `body`, where it
        was there with a head that repeats.

        Where the peer has shown a certificate (RFC 8705), it stands in `extensions["tls"]`. Raises Malformed.
        """
        path, raw_path, query = parts_of(method, target)
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "state": {
                "local": self.listener.local,
                "draining": self.listener.draining,
                "names_origin": names_origin,
            },
        }
        if self.extensions is not None:
            scope["extensions"] = self.extensions
        return scope

    # -- the end -------------------------------------------------------------------------------------------------------

    def refuse(self, status: int, description: str, *, count: str = "malformed", linger: bool = True) -> None:
        """Refuse the request being received, in the shape of RFC 6749 5.2, and end the connection.

        What came whole before it is answered first. An application that waits for its body learns that nobody is there.
        """
        self.receiving = False
        self.listener.counts["head_too_large" if status == 431 else count] += 1
        broken = self.cycle if self.cycle is not None and self.cycle.more_body else None
        if broken is None and self.running is not None:
            self.refusal = (status, description)
            self.flow.pause_reading()
        elif broken is not None and broken is not self.running and self.running is not None:
            self.drop_newest()
            self.refusal = (status, description)
            self.flow.pause_reading()
        elif broken is not None and broken.response_complete:
            self._finish(linger=linger)  # its answer is out: a second one would be taken for the next request's
        elif broken is not None and broken.response_started:
            self.transport.abort()
        else:
            if broken is not None:
                broken.disconnected = True
                broken.message_event.set()
                self.running = None
            self._write_refusal(status, description, linger=linger)

    def _write_refusal(self, status: int, description: str, *, linger: bool = True) -> None:
        answer = oauth_error(status, "invalid_request", description, headers=(CLOSE,))
        self.transport.write(bytes_of(answer, self.listener.date_line))
        self._finish(linger=linger)

    def _finish(self, *, linger: bool) -> None:
        """End the connection; where the client is still sending, read on for a moment.

        Closing a socket with bytes unread resets it, and a reset may overtake the answer (RFC 9112 9.6).
        """
        self.idle = self.receiving = False
        self.closing = True
        self.deadline = self.loop.time() + LINGER_SECONDS
        if not linger or self.half_closed or self.transport.is_closing():
            self.transport.close()
            return
        if self.transport.can_write_eof():  # not on TLS, where the client ends it after reading the length it was told
            with contextlib.suppress(OSError):  # the client has reset it just now
                self.transport.write_eof()
        self.flow.resume_reading()

    def close(self) -> None:
        """End the connection in order; what is written and unread gets a moment."""
        self._finish(linger=False)

    def expire(self) -> None:
        """End the connection because its deadline has passed: with 408 where a request had begun."""
        if self.closing or self.transport.is_closing() or self.write_deadline <= self.loop.time():
            if not self.closing:
                self.listener.counts["too_slow"] += 1
            self.transport.abort()
        elif self.receiving:
            self.refuse(408, "the request was not whole in time", count="too_slow", linger=False)
        else:
            self.listener.counts["idle_closed" if self.idle else "too_slow"] += 1
            self.close()

    def drain(self) -> None:
        """End the connection if nothing has begun on it, not even in bytes that wait to be read."""
        busy = self.running is not None or self.receiving or self.closing
        if not busy and not _unread_bytes(self.transport):
            self.close()

    # -- what the transport tells ------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self.write_deadline = self.loop.time() + self.listener.request_seconds

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        self.write_deadline = _NEVER

    def eof_received(self) -> bool:
        """Keep the way back open for a client that has said everything and waits for its answer (RFC 9112 9.6)."""
        # What has begun behind the request that is answered will never be whole; the one before it is all the same.
        if self.running is None or self.running.more_body or self.closing or self.scheme == "https":
            return False
        self.half_closed = True
        self.cycle.keep_alive = False
        return True


def bytes_of(answer: Answer, date_line: bytes, *, body: bool = True) -> bytes:
    """Return an answer as it goes over the wire, for the places where no parser has a say."""
    lines = b"".join(b"%s: %s\r\n" % header for header in answer.headers)
    return STATUS_LINES[answer.status] + date_line + lines + b"\r\n" + (answer.body if body else b"")


def _peer_certificate(transport: asyncio.Transport) -> dict[str, Any] | None:
    """The certificate that the peer has proved to hold the key of: now, or when this session of TLS began."""
    der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return None if der is None else {"tls": {DER: der}}


def _unread_bytes(transport: asyncio.Transport) -> int:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0  # it has just gone
    waiting = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, waiting)
    return waiting[0]
