"""Which web pages may read an answer: the CORS protocol of the Fetch standard, for clients that live in a browser.

The origins that a client lists may call the token, revocation, metadata and key endpoints. Their answers, errors
included, name the origin and never `*`, and never allow credentials, for nothing here is told by a cookie. Every other
origin gets the same answers without a word for its browser. `Vary: Origin` stands on all of them (`api/answers.py`).

What is refused before it is a request (malformed, too slow, a head too long) carries nothing of this: a browser sends
no such thing, and a page whose request did not arrive is told of a network error, which it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from api.answers import NOT_STORED, Answer, Header, Send
from api.forms import Receive

ORIGIN: Final = b"origin"
EXPOSED: Final = b"DPoP-Nonce, WWW-Authenticate, Ledger-Position, Retry-After, Date"
"""Headers of an answer that a page may read beyond the harmless ones (RFC 9449 8.2, RFC 6750 3)."""

ALLOWED: Final = b"Authorization, Content-Type, DPoP"
"""Headers of a request that a page may set."""

PREFLIGHT_SECONDS: Final = 7200
"""How long a browser may remember that it may ask; what it may read is said anew with every answer."""

_METHOD_WANTED: Final = b"access-control-request-method"

Asgi = Callable[[Any, Receive, Send], Any]


class CrossOrigin:
    """Serves an endpoint to a request that has an Origin header. Which origins may read is asked with each request."""

    def __init__(self, lists_origin: Callable[[str], bool], methods: Mapping[str, str]) -> None:
        """`lists_origin` tells whether some enabled client has an origin; `methods` what pages may use, by path."""
        self._lists_origin = lists_origin
        self._methods = {path: allowed.encode("ascii") for path, allowed in methods.items()}

    async def serve(self, endpoint: Asgi, scope: Any, receive: Receive, send: Send) -> None:
        """Answer in the endpoint's place where a browser asks whether it may, else let it answer and say who may read.

        A path that no page may call, and an origin that no client lists, get the endpoint's answer as it is.
        """
        methods = self._methods.get(scope["path"])
        origin = self._listed(scope["headers"]) if methods is not None else None
        if methods is None or origin is None:
            await endpoint(scope, receive, send)
            return
        granted = ((b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED))
        if scope["method"] == "OPTIONS" and any(name == _METHOD_WANTED for name, _ in scope["headers"]):
            await _preflight(methods, granted).send(send)
            return

        async def send_granted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *granted]}
            await send(message)

        await endpoint(scope, receive, send_granted)

    def _listed(self, headers: list[Header]) -> bytes | None:
        """The request's origin if a client lists it. More than one is none: a browser names one."""
        origins = [value for name, value in headers if name == ORIGIN]
        if len(origins) == 1 and self._lists_origin(origins[0].decode("latin-1")):
            return origins[0]
        return None


def _preflight(methods: bytes, granted: tuple[Header, ...]) -> Answer:
    allowed = (
        (b"access-control-allow-methods", methods),
        (b"access-control-allow-headers", ALLOWED),
        (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
    )
    return Answer(204, b"", [*NOT_STORED, *granted, *allowed])  # no length: a 204 has no body (RFC 9110 8.6)
