"""The demo's own pages in front of the ledger: a sign-in page and a client, which a real ledger leaves to others."""

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from api import forms
from api.answers import Answer, BadRequest, Header, Send, method_not_allowed
from api.cli import demo_html as html
from api.cli.curl import Answer as Answered
from api.cli.curl import Https, Request
from api.forms import Receive

FORM_BYTES_MAX: Final = 8192


class Visit(NamedTuple):
    """One request for a page: the query, the form that was posted, the cookies."""

    query: Mapping[str, str]
    form: Mapping[str, str]
    cookies: Mapping[str, str]


Handler = Callable[[Visit], Awaitable[Answer]]
Asgi = Callable[[Any, Receive, Send], Awaitable[None]]


class Site:
    """An ASGI application: these pages, and for all other paths the one behind it."""

    def __init__(self, behind: Asgi, pages: Mapping[str, Mapping[str, Handler]]) -> None:
        """`pages`: path → method → who answers."""
        self._behind = behind
        self._pages = pages

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        methods = self._pages.get(scope.get("path")) if scope["type"] == "http" else None
        if methods is None:
            await self._behind(scope, receive, send)
            return
        handler = methods.get(scope["method"])
        if handler is None:
            answer = method_not_allowed(", ".join(methods))
        else:
            try:
                answer = await handler(await _visit(scope, receive))
            except BadRequest as error:
                answer = html.page("This request cannot be read", html.paragraph(error.description), status=400)
            except OSError:  # the server is being ended, or has all its connections in use
                answer = html.page("Nobody answers", html.paragraph("Go back and try again."), status=503)
        await answer.send(send)


async def _visit(scope: Any, receive: Receive) -> Visit:
    headers = scope["headers"]
    form = {}
    if scope["method"] == "POST":
        form = forms.parse(headers, await forms.read_body(receive, FORM_BYTES_MAX)).fields
    try:
        pairs = parse_qsl(scope["query_string"].decode("ascii"), errors="strict", max_num_fields=32)
    except ValueError:
        raise BadRequest("the query cannot be read") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise BadRequest("a parameter is given twice")
    return Visit(query, form, _cookies(headers))


def _cookies(headers: list[Header]) -> dict[str, str]:
    found: SimpleCookie = SimpleCookie()
    for name, value in headers:
        if name == b"cookie":
            try:
                found.load(value.decode("latin-1"))
            except CookieError:
                continue
    return {name: morsel.value for name, morsel in found.items()}


def cookie(name: str, value: str) -> Header:
    """A cookie for this host alone, which no script reads and no other site's form brings along (RFC 6265)."""
    return b"set-cookie", f"{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax".encode("ascii")


def new_secret() -> str:
    """Something unguessable, of 43 characters that need no escape anywhere."""
    return secrets.token_urlsafe(32)


def same(one: str | None, other: str | None) -> bool:
    """Whether two secrets are there and equal, in constant time."""
    if not one or not other:
        return False
    return hmac.compare_digest(one.encode(), other.encode())


async def sent(https: Https, request: Request) -> Answered:
    """Send a request to the ledger over real HTTPS, as somebody else's server would. Raises OSError."""
    return await asyncio.to_thread(https.send, request)
