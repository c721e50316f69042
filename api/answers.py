"""What goes back over HTTP: JSON answers that are never stored, errors in the shape of RFC 6749 5.2.

An `Answer` is complete when it is made: status, headers with the length, body. `await answer.send(send)` is all that an
endpoint does with it; header and body leave in one write (see `api/exchanges.py`). The server adds `Date`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

from ledger.answers import TokenAnswer

Header = tuple[bytes, bytes]
Send = Callable[[Any], Awaitable[None]]

JSON: Final = (b"content-type", b"application/json")
VARIES: Final = (b"vary", b"Origin")
"""What an answer that pages of some origins may read tells caches, to whomever it goes (CORS)."""

NOT_STORED: Final = ((b"cache-control", b"no-store"), (b"pragma", b"no-cache"), VARIES)
"""What answers tell caches: keep nothing; and to those that keep it all the same, that the Origin counts."""

CLOSE: Final = (b"connection", b"close")
BASIC_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="token-ledger"')
BEARER_CHALLENGE: Final = (b"www-authenticate", b"Bearer")

_TOKEN_LINES: Final = b"".join(b"%b: %b\r\n" % header for header in (JSON, *NOT_STORED)) + b"content-length: %d\r\n"
_TOKEN_REST: Final = _TOKEN_LINES + b"\r\n%b"
_TOKEN_REST_AND_POSITION: Final = _TOKEN_LINES + b"ledger-position: %d\r\n\r\n%b"
_FOREIGN: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")  # RFC 6749 5.2: what error_description may not hold


class TakesWhole(ABC):
    """A `send` that may take an answer in one piece instead of two ASGI messages: this server's own."""

    @abstractmethod
    async def __call__(self, message: Any) -> None:
        """Take one ASGI message."""

    @abstractmethod
    def take(self, answer: "Answer") -> bool:
        """Write the whole answer; False where it must go message by message, and nothing was written."""


class Replies(Protocol):
    """A request that its application has taken without waiting; it is answered later, once."""

    def reply(self, answer: "Answer") -> None:
        """Send the answer. Whether it reaches the client is unknown, as always."""
        ...


class Answer:
    """One whole HTTP answer. Also an ASGI application, so it can stand wherever a Starlette response can."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: list[Header]) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    async def send(self, send: Send) -> None:
        """Hand the answer to the server. Whether it reached the client is unknown, as always."""
        if isinstance(send, TakesWhole) and send.take(self):
            return
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})

    async def __call__(self, scope: object, receive: object, send: Send) -> None:
        await self.send(send)

    def __repr__(self) -> str:
        return f"<Answer {self.status}, {len(self.body)} bytes>"  # a body may hold tokens


class TokenResponse(Answer):
    """A token response, whose headers are always the same but for two numbers: `rest` is how they and the body go over
    the wire."""

    __slots__ = ("position",)

    def __init__(self, status: int, body: bytes, position: int | None) -> None:
        self.status = status
        self.body = body
        self.position = position

    @property
    def headers(self) -> list[Header]:  # type: ignore[override]  # made when somebody asks, which is seldom
        """The same as in `rest`."""
        headers = [JSON, *NOT_STORED, (b"content-length", b"%d" % len(self.body))]
        if self.position is not None:
            headers.append((b"ledger-position", b"%d" % self.position))
        return headers

    @property
    def rest(self) -> bytes:
        """The headers, each with its line end, and the body."""
        body = self.body
        if self.position is None:
            return _TOKEN_REST % (len(body), body)
        return _TOKEN_REST_AND_POSITION % (len(body), self.position, body)


class BadRequest(Exception):
    """The request itself is malformed (RFC 6749 5.2 invalid_request): one line that says what would be right.

    The description never repeats what was sent, beyond the name of a parameter. `close` asks for the connection to be
    ended with the answer.
    """

    def __init__(
        self, description: str, *, error: str = "invalid_request", status: int = 400, close: bool = False
    ) -> None:
        super().__init__(description)
        self.description = description
        self.error = error
        self.status = status
        self.close = close

    def answer(self) -> Answer:
        """Return the answer that this error is; it can be sent any number of times."""
        return oauth_error(self.status, self.error, self.description, headers=(CLOSE,) if self.close else ())


def with_body(status: int, body: bytes, headers: Sequence[Header]) -> Answer:
    """Return an answer of any kind: the caller's headers and the length of the body."""
    return Answer(status, body, [*headers, (b"content-length", b"%d" % len(body))])


def json_answer(status: int, value: object, *, headers: Sequence[Header] = ()) -> Answer:
    """Return a JSON answer that no cache keeps (RFC 6749 5.1, TE-10). Members are written in the order given."""
    return with_body(status, msgspec.json.encode(value), (JSON, *NOT_STORED, *headers))


def empty_answer() -> Answer:
    """Return an answer without a body, as a revocation's 200 is (RFC 7009 2.2)."""
    return with_body(200, b"", NOT_STORED)


def oauth_error(
    status: int,
    error: str,
    description: str | None = None,
    *,
    headers: Sequence[Header] = (),
    retry_after_seconds: int | None = None,
    **members: str | int | None,
) -> Answer:
    """Return an error in the shape of RFC 6749 5.2; a member that is None is left out, never null (TE-11)."""
    body: dict[str, str | int] = {"error": error}
    if description is not None:
        body["error_description"] = describable(description)
    body |= {name: value for name, value in members.items() if value is not None}
    if retry_after_seconds is not None:
        headers = (*headers, (b"retry-after", b"%d" % retry_after_seconds))
    return json_answer(status, body, headers=headers)


def describable(text: str) -> str:
    """Return the text within the characters of an error_description (TE-12): no quote, no backslash, ASCII only."""
    return _FOREIGN.sub("?", text.replace('"', "'"))


def invalid_client(header_used: bool) -> Answer:
    """Refuse a client (RFC 6749 5.2): with a challenge where it came with an Authorization header, else a plain 400."""
    status, challenge = (401, (BASIC_CHALLENGE,)) if header_used else (400, ())
    return oauth_error(status, "invalid_client", "client authentication failed", headers=challenge)


def invalid_token() -> Answer:
    """Refuse an operator without a token that is known (RFC 6750 3.1)."""
    return oauth_error(401, "invalid_token", "a valid operator token is needed", headers=(BEARER_CHALLENGE,))


def method_not_allowed(allow: str) -> Answer:
    """Refuse a method (TE-1); `allow` is the list for the header, such as `POST`."""
    return oauth_error(405, "invalid_request", f"allowed here: {allow}", headers=((b"allow", allow.encode("ascii")),))


def token_answer(
    found: TokenAnswer, position: int | None, *, grant_id: str | None = None, status: int = 200
) -> TokenResponse:
    """Return a token response (RFC 6749 5.1); what is None is left out. `position` becomes the header Ledger-Position.

    Filled into a template, which costs a fraction of an encoder: tokens and ids are of letters that JSON does not
    escape, and the scope is encoded, once for each that there is.
    """
    token, timeout, ends_in = found.refresh_token, found.refresh_token_timeout, found.authorization_expires_in
    refresh = "" if token is None else f'"refresh_token":"{token}",'
    idle = "" if timeout is None else f',"refresh_token_timeout":{timeout}'
    total = "" if ends_in is None else f',"authorization_expires_in":{ends_in}'
    grant = "" if grant_id is None else f',"grant_id":"{grant_id}"'
    body = (
        f'{{"access_token":"{found.access_token}",{refresh}"scope":{_scope_literal(found.scope)},'
        f'"token_type":"{found.token_type}","expires_in":{found.expires_in}{idle}{total}{grant}}}'
    ).encode("ascii")
    return TokenResponse(status, body, position)


@lru_cache(maxsize=1024)
def _scope_literal(words: tuple[str, ...]) -> str:
    """A scope as a JSON string. Its words are ASCII (RFC 6749 3.3)."""
    return msgspec.json.encode(" ".join(words)).decode("ascii")
