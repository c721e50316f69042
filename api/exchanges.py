"""One request and its answer: uvicorn's, with header and body in one write, and with an answer for every mishap.

An answer in the usual shape (a start that knows the length, then one body) is joined here and leaves in one write;
everything else (streams, HEAD, no length) goes uvicorn's own way. What the application does wrong is logged and
answered with 500; that a client has left is no event at all.
"""

import asyncio
import logging
from abc import abstractmethod
from typing import Any

from starlette.requests import ClientDisconnect

from api.answers import CLOSE, Answer, TakesWhole, oauth_error
from api.connections import Listener, bytes_of, log
from api.forms import ClientGone, TooLarge


def _nothing() -> None: ...


class Exchange(TakesWhole):
    """What is alike for both parsers. Raises TooLarge from `receive` once the body is longer than this server reads."""

    scope: Any
    transport: asyncio.Transport
    flow: Any
    message_event: asyncio.Event
    on_response: Any
    disconnected: bool
    keep_alive: bool
    waiting_for_100_continue: bool
    body: bytearray
    more_body: bool
    response_started: bool
    response_complete: bool

    listener: Listener
    task: asyncio.Task[None] | None = None
    whole: bytes | None = None  # a body that was there with the head, until it is asked for
    held: Any = None  # a start that waits for its body
    status: int = 0
    received: int = 0
    over_limit: bool = False
    over: bool = False  # answered by `reply`, at once: nobody has to do with this request any more

    def run(self, app: Any) -> None:
        """Run the application for this request in a task of its own."""
        self.task = asyncio.get_running_loop().create_task(self.run_asgi(app))
        self.listener.state.tasks.add(self.task)

    def reply(self, answer: Answer) -> None:
        """Send the answer of an application that took the request without a task."""
        if self.take(answer):
            self.on_response = _nothing
            self.over = True
        else:
            self.run(answer)

    async def run_asgi(self, app: Any) -> None:
        """Run the application for this request, and answer in its place where it does not."""
        try:
            await app(self.scope, self.receive, self)
            if not (self.response_complete or self.disconnected):
                raise RuntimeError("the application returned without a whole answer")
        except (ClientGone, ClientDisconnect):
            if not (self.disconnected or self.response_complete):
                self.transport.abort()
        except TooLarge as error:
            self._answer_for_the_application(error.answer())
        except Exception as error:  # the last resort: a defect of ours, told to the log and not to the client
            log.exception("request_failed", error, method=self.scope["method"])
            answer = oauth_error(500, "server_error", "something unforeseen happened here", headers=(CLOSE,))
            self._answer_for_the_application(answer)
        finally:
            # What refers back to the connection goes, so that no request leaves a cycle to the garbage collector.
            self.on_response = _nothing
            self.held = None
            if self.task is not None:
                self.listener.state.tasks.discard(self.task)
                self.task = None

    def _answer_for_the_application(self, answer: Answer) -> None:
        """Answer past the parser, which may be in no state to; where half an answer is out, just end."""
        self.held = None
        if self.disconnected or self.response_complete:
            return
        if self.response_started:
            self.transport.abort()  # the end of what is out must not look like the end of the whole
            return
        self.status = answer.status
        self.response_started = self.response_complete = True
        self.keep_alive = False
        self.message_event.set()
        self.transport.write(bytes_of(answer, self.listener.date_line, body=self.scope["method"] != "HEAD"))
        self.on_response()

    async def receive(self) -> Any:
        """Give the next part of the body (ASGI). Asks for it with 100 Continue where the client waits to be asked."""
        whole = self.whole
        if whole is not None:
            self.whole = None
            return {"type": "http.request", "body": whole, "more_body": False}
        if self.over_limit:
            raise TooLarge(self.listener.body_bytes_max)
        if self.more_body and not self.disconnected and not self.response_complete:
            if self.waiting_for_100_continue and not self.transport.is_closing():
                self.waiting_for_100_continue = False
                self.ask_for_body()
            self.flow.resume_reading()
        if not self.disconnected and not self.response_complete:
            await self.message_event.wait()
            self.message_event.clear()
        if self.over_limit:
            raise TooLarge(self.listener.body_bytes_max)
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """Take one message of the answer (ASGI); a start waits for the body, so that both leave together. Raises
        ClientGone where an answer is to go on that nobody reads any more: whoever makes it would do so for nobody."""
        if self.disconnected and message.get("more_body"):
            raise ClientGone
        held = self.held
        if held is None:
            if message["type"] == "http.response.start" and not self.response_started:
                self.held = message
            else:
                await self.send_as_uvicorn(message)
            return
        if message["type"] != "http.response.body":
            raise RuntimeError("an answer starts once")
        self.held = None
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.status = held["status"]
        if self.listener.draining or self.waiting_for_100_continue:
            # A client that was never asked for its body may leave it out: what comes next could not be told apart.
            self.keep_alive = False
        joined = None
        if not message.get("more_body") and self.scope["method"] != "HEAD":
            joined = self.joined(held, message.get("body", b""))
        if joined is None:
            if not self.keep_alive and CLOSE not in held.get("headers", ()):
                held = {**held, "headers": [*held.get("headers", ()), CLOSE]}
            await self.send_as_uvicorn(held)
            await self.send_as_uvicorn(message)
            return
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        self.transport.write(joined)
        self.on_response()

    async def __call__(self, message: Any) -> None:
        """What the application knows as `send`."""
        await self.send(message)

    def take(self, answer: Answer) -> bool:
        return False

    @abstractmethod
    def joined(self, start: Any, body: bytes) -> bytes | None:
        """Return head and body as one piece; None where uvicorn's own way is the right one.

        Raises for a header or a length that would make another answer of it; then nothing is out yet.
        """

    @abstractmethod
    async def send_as_uvicorn(self, message: Any) -> None:
        """Take one message of the answer as uvicorn does."""

    @abstractmethod
    def ask_for_body(self) -> None:
        """Write 100 Continue (RFC 9110 10.1.1)."""

    def log_access(self) -> None:
        """Write one line about this request, without its query, which may hold what belongs into no log."""
        if log.enabled(logging.DEBUG):
            # An unknown path may be anything, a misplaced token as well, and so may what stands for a parameter; of one
            # that a router has found its pattern is told, and the other known ones are ours.
            route = self.scope.get("route")
            path = route.path if route is not None else self.scope["path"] if self.status != 404 else None
            # Nor the peer: an address is a person's, and what is erased must not live on in a log.
            log.debug("request", method=self.scope["method"], path=path, status=self.status)
