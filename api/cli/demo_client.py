"""The demo's client: a web application that sends people to the sign-in page, exchanges the code, and refreshes.

It keeps its secret and its tokens on its own side, as such a client does; that it shows them is for the demo.
"""

import hashlib
import json
from base64 import urlsafe_b64encode
from html import escape
from typing import Any, Final
from urllib.parse import urlencode

from api.answers import Answer
from api.cli import demo_html as html
from api.cli import demo_signin
from api.cli.curl import Answer as Answered
from api.cli.curl import Https, Request, typed
from api.cli.demo_site import Visit, cookie, new_secret, same, sent
from api.cli.demo_walk import (
    AUDITOR_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    NARROWED,
    SCOPE,
    TOKEN_PATH,
    callback_of,
    refresh_request,
)
from api.cli.told import told

PATH: Final = "/demo"
START: Final = "/demo/start"
REFRESH: Final = "/demo/refresh"
COOKIE: Final = "__Host-demo-client"
VISITORS_MAX: Final = 100
TOKENS_MAX: Final = 200

ACTS: Final[dict[str, str]] = {
    "refresh": "Refresh",
    "again": "Send the last request again, as if its answer was lost",
    "narrow": f"Refresh, asking for less: {NARROWED}",
    "restore": f"Refresh, asking for all again: {SCOPE}",
    "thief": "Present R0 from another machine, as a thief would",
}
"""What a person can do once they have signed in."""


class Visitor:
    """One browser: what its sign-in was begun with, its refresh tokens in the order they came, what was last sent."""

    def __init__(self) -> None:
        self.csrf = new_secret()
        self.state = ""
        self.verifier = ""
        self.tokens: list[str] = []
        self.grant_id = ""
        self.problem = ""
        self.last: tuple[Request, Answered] | None = None


class Client:
    """The pages. `url` is the ledger's, and in this demo the client's too."""

    def __init__(self, url: str, certificate: str, https: Https) -> None:
        self._url = url
        self._certificate = certificate
        self._https = https
        self._callback = callback_of(url)
        self._visitors: dict[str, Visitor] = {}

    # ------------------------------------------------------------ signing in

    async def start(self, visit: Visit) -> Answer:
        """Send the person to the sign-in page, with a challenge whose verifier stays here (RFC 7636 4.1)."""
        while len(self._visitors) >= VISITORS_MAX:
            del self._visitors[next(iter(self._visitors))]
        name, visitor = new_secret(), Visitor()
        self._visitors[name] = visitor
        visitor.state, visitor.verifier = new_secret(), new_secret()
        challenge = urlsafe_b64encode(hashlib.sha256(visitor.verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": self._callback,
            "scope": SCOPE,
            "state": visitor.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return html.redirect(f"{self._url}{demo_signin.PATH}?{urlencode(asked)}", cookie(COOKIE, name))

    async def callback(self, visit: Visit) -> Answer:
        """Take the code, exchange it, and leave the address that holds it."""
        visitor = self._visitor(visit)
        if visitor is None or not same(visit.query.get("state"), visitor.state):
            return _lost("This answer belongs to no sign-in that was begun here.")
        visitor.state, verifier = "", visitor.verifier
        if visit.query.get("iss") != self._url:  # another server's answer must not get our code (RFC 9207)
            return _lost("This answer comes from another server.")
        if "code" not in visit.query:
            visitor.problem = f"The sign-in page says: {visit.query.get('error', 'nothing')}."
            return html.redirect(self._url + PATH)
        form = {
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "grant_type": "authorization_code",
            "code": visit.query["code"],
            "redirect_uri": self._callback,
            "code_verifier": verifier,
        }
        body = await self._ask(visitor, Request(TOKEN_PATH, form=form))
        if "access_token" in body:
            form = {"token": body["access_token"], "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
            introspected = await sent(self._https, Request("/introspect", form=form))
            visitor.grant_id = str(introspected.body.get("grant_id", ""))
        return html.redirect(self._url + PATH)

    # ------------------------------------------------------------ refreshing

    async def refresh(self, visit: Visit) -> Answer:
        """Do one of `ACTS`."""
        visitor = self._visitor(visit)
        if visitor is None or not same(visit.form.get("csrf"), visitor.csrf):
            return _lost("This form was not shown here.")
        if visitor.tokens and len(visitor.tokens) < TOKENS_MAX:
            await self._ask(visitor, self._request(visitor, visit.form.get("act", "")))
        return html.redirect(self._url + PATH)

    def _request(self, visitor: Visitor, act: str) -> Request:
        newest = visitor.tokens[-1]
        if act == "narrow":
            return refresh_request(newest, NARROWED)
        if act == "restore":
            return refresh_request(newest, SCOPE)
        if act == "thief":
            return refresh_request(visitor.tokens[0], agent="another-machine")
        if act == "again" and visitor.last is not None and "refresh_token" in visitor.last[0].form:
            return visitor.last[0]
        return refresh_request(newest)

    async def _ask(self, visitor: Visitor, request: Request) -> Any:
        answer = await sent(self._https, request)
        visitor.last, visitor.problem = (request, answer), ""
        token = answer.body.get("refresh_token")
        if token is not None and token not in visitor.tokens:
            visitor.tokens.append(str(token))
        return answer.body

    # ------------------------------------------------------------ the page

    async def show(self, visit: Visit) -> Answer:
        """Everything about this visitor: tokens, the last request with its answer, and what the ledger recorded."""
        visitor = self._visitor(visit)
        if visitor is None or visitor.last is None:
            problem = [html.paragraph(visitor.problem)] if visitor is not None and visitor.problem else []
            return html.page(
                "A client of the token ledger",
                *problem,
                html.paragraph("This page stands for an application that wants to act for you. Sign in, and it gets an"
                               " access token and a refresh token; then see what becomes of the refresh token."),
                self._link("Sign in"),
            )  # fmt: skip
        return html.page(
            _title(visitor),
            self._tokens_of(visitor),
            self._last_of(visitor),
            await self._history_of(visitor),
            self._link("Sign in anew"),
        )

    def _tokens_of(self, visitor: Visitor) -> str:
        if not visitor.tokens:
            return ""
        last = len(visitor.tokens) - 1
        names = "".join(
            f"<li><code>R{n}</code> <code>{escape(token)}</code>{' (the newest)' if n == last else ''}</li>"
            for n, token in enumerate(visitor.tokens)
        )
        buttons = (html.button("act", act, text) for act, text in ACTS.items() if act != "thief" or last > 1)
        return f"<h2>Refresh tokens</h2><ul>{names}</ul>" + html.form(
            REFRESH, html.hidden("csrf", visitor.csrf), *buttons
        )

    def _last_of(self, visitor: Visitor) -> str:
        assert visitor.last is not None
        request, answer = visitor.last
        asked = "\n".join(typed(request, self._url, self._certificate))
        answered = f"{answer.status} {answer.reason}\n{json.dumps(answer.body, indent=1)}"
        return f"<h2>The last request</h2>{html.listing(asked)}<h2>Its answer</h2>{html.listing(answered)}"

    async def _history_of(self, visitor: Visitor) -> str:
        if not visitor.grant_id:
            return ""
        asked = Request(f"/grants/{visitor.grant_id}/events", bearer=AUDITOR_TOKEN)
        answer = await sent(self._https, asked)
        if answer.status != 200:
            return ""
        events = "".join(
            f"<li><code>{escape(event['topic'])}</code> {escape(told(event))}</li>" for event in answer.body["events"]
        )
        return f"<h2>What the ledger recorded, as an auditor reads it</h2><ol>{events}</ol>"

    def _link(self, text: str) -> str:
        """A whole address: a cookie that was set for 127.0.0.1 would not come back to localhost."""
        return f'<p><a href="{escape(self._url + START)}">{escape(text)}</a></p>'

    def _visitor(self, visit: Visit) -> Visitor | None:
        return self._visitors.get(visit.cookies.get(COOKIE, ""))


def _title(visitor: Visitor) -> str:
    if not visitor.tokens:
        return "The sign-in failed"
    refused = visitor.last is not None and visitor.last[1].body.get("error") == "invalid_grant"
    return "Refused: you must sign in anew" if refused else "You are signed in"


def _lost(text: str) -> Answer:
    return html.page(
        "Not from this page", html.paragraph(text), f'<p><a href="{PATH}">To the client</a></p>', status=403
    )
