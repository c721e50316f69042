"""The demo's sign-in page: what your own login application does before and after `POST /authorizations`.

Before: it takes the client's request (RFC 6749 4.1.1, RFC 7636 4.3), signs the person in and asks for their consent.
After: it sends the person to where the answer says. Here anybody signs in as anybody, without a password.
"""

import time
from html import escape
from typing import Any, Final
from urllib.parse import urlencode

from api.answers import Answer
from api.cli import demo_html as html
from api.cli.curl import Https, Request
from api.cli.demo_site import Visit, cookie, new_secret, same, sent
from api.cli.demo_walk import CLIENT_ID, ISSUER_TOKEN, SUBJECT

PATH: Final = "/authorize"
COOKIE: Final = "__Host-demo-sign-in"
ASKED: Final = ("client_id", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method", "resource")
"""What is passed on from the client's request to the form, and from the form to the ledger."""

FOR_THE_CLIENT: Final = ("invalid_scope", "invalid_target", "unauthorized_client")
"""Refusals of the ledger that are told to the client; of others the person is told (RFC 6749 4.1.2.1)."""


class SignIn:
    """The page. `url` is what the ledger calls itself, `callback` the one address that it sends people to."""

    def __init__(self, url: str, callback: str, https: Https) -> None:
        self._url = url
        self._callback = callback
        self._https = https

    async def show(self, visit: Visit) -> Answer:
        """Ask the person who they are, and whether they agree."""
        asked = visit.query
        if (refusal := self._stranger(asked)) is not None:
            return refusal
        if asked.get("response_type") != "code":
            return self._back(asked, "unsupported_response_type")
        if asked.get("code_challenge_method") != "S256" or "code_challenge" not in asked:
            return self._back(asked, "invalid_request")
        token = new_secret()
        words = asked.get("scope", "").split()
        return html.page(
            "Sign in and agree",
            html.paragraph(f"The client {CLIENT_ID} asks to act for you. In this demo every name is somebody's."),
            html.form(
                PATH,
                html.hidden("csrf", token),
                *(html.hidden(name, asked[name]) for name in ASKED if name in asked),
                f'<label>Your name: <input type="text" name="subject" value="{escape(SUBJECT)}" maxlength="255"'
                ' required autofocus autocomplete="off"></label>',
                *map(_choice, words),
                html.button("answer", "allow", "Sign in and allow"),
                html.button("answer", "refuse", "Refuse"),
            ),
            cookie=cookie(COOKIE, token),
        )

    async def decide(self, visit: Visit) -> Answer:
        """Post what the person decided, and send them to the client."""
        form = visit.form
        # The cookie says that this browser was shown the form; another site can make it send one, and cannot read it.
        if not same(form.get("csrf"), visit.cookies.get(COOKIE)):
            text = "This form was not shown here, or too long ago. Begin again at the client."
            return html.page("Not from this page", html.paragraph(text), status=403)
        if (refusal := self._stranger(form)) is not None:
            return refusal
        if form.get("answer") != "allow":
            return self._back(form, "access_denied")
        body: dict[str, Any] = {name: form[name] for name in ASKED if name in form}
        words = form.get("scope", "").split()
        body["scope"] = " ".join(word for word in words if f"scope {word}" in form)
        body["subject"] = form.get("subject", "")
        body["auth_time"] = int(time.time())
        answer = await sent(self._https, Request("/authorizations", json=body, bearer=ISSUER_TOKEN))
        if answer.status == 201:
            return html.redirect(str(answer.body["redirect_to"]))
        if answer.body["error"] in FOR_THE_CLIENT:
            return self._back(form, str(answer.body["error"]))
        told = str(answer.body.get("error_description", answer.body["error"]))
        return html.page("That did not work", html.paragraph(f"The ledger says: {told}."), status=400)

    def _stranger(self, asked: Any) -> Answer | None:
        """Whoever is not the client, or is to be answered elsewhere, is told so here and redirected nowhere."""
        if asked.get("client_id") == CLIENT_ID and asked.get("redirect_uri") == self._callback:
            return None
        text = "Some other client sent you here, or one that wants its answer at an address which it never registered."
        return html.page("Unknown client", html.paragraph(text), status=400)

    def _back(self, asked: Any, error: str) -> Answer:
        """Tell the client that nothing comes of it (RFC 6749 4.1.2.1, RFC 9207 2)."""
        told = {"error": error, **({"state": asked["state"]} if "state" in asked else {}), "iss": self._url}
        return html.redirect(f"{self._callback}?{urlencode(told)}")


def _choice(word: str) -> str:
    return f'<label><input type="checkbox" name="scope {escape(word)}" value="1" checked> {escape(word)}</label>'
