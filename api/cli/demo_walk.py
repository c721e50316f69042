"""The demo's walk: the life of one refresh token in real requests, each shown with its answer, and checked."""

import json
from collections.abc import Mapping
from typing import Any

from api.cli.curl import LINE_CHARACTERS_MAX, Https, Request
from api.cli.demo_page import Page
from api.cli.output import Failed, say
from api.cli.told import told

Json = Any

CLIENT_ID = "www"
CLIENT_SECRET = "Secr3t!"
SCOPE = "read openid profile"
NARROWED = "read profile"
SUBJECT = "alice"
ISSUER_TOKEN = "demo-login-app"
AUDITOR_TOKEN = "demo-auditor"
TOKEN_PATH = "/oauth/v2/oauth-token"

CLIENTS_FILE = f"""\
# The demo's clients and operators. Change it and send the demo SIGHUP: what changed is an event from then on.
[[client]]
id = "{CLIENT_ID}"
secret = "{CLIENT_SECRET}"
auth = "client_secret"
scope = "read openid profile write"
policy = "standard"
grant_types = ["authorization_code", "refresh_token"]
redirect_uris = ["CALLBACK"]

[[operator]]
name = "login-app"
token = "{ISSUER_TOKEN}"
roles = ["issuer"]

[[operator]]
name = "auditor"
token = "{AUDITOR_TOKEN}"
roles = ["auditor"]
"""


def callback_of(url: str) -> str:
    """Where the client of the demo's own pages is answered."""
    return f"{url}/demo/callback"


HISTORY: Mapping[str, int] = {
    "grant.issued": 1,
    "grant.token_redeemed": 4,
    "grant.token_rotated": 4,
    "grant.retry_served": 1,
    "grant.scope_reduced": 1,
    "grant.scope_restored": 1,
    "grant.reuse_detected": 1,
    "grant.revoked": 1,
}
"""The events that the walk leaves, and how many of each."""


def issue_request() -> Request:
    """What the login application asks once the person has signed in."""
    asked = {"client_id": CLIENT_ID, "subject": SUBJECT, "scope": SCOPE}
    return Request("/grants", json=asked, bearer=ISSUER_TOKEN)


def refresh_request(token: str, scope: str | None = None, agent: str | None = None) -> Request:
    """The tutorial's request: a form with the client's id and secret in it (RFC 6749 6)."""
    form = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "grant_type": "refresh_token"}
    if scope is not None:
        form["scope"] = scope
    return Request(TOKEN_PATH, form={**form, "refresh_token": token}, agent=agent)


def accepted(https: Https, request: Request, status: int = 200) -> Json:
    """Send a request; return its answer's body. Raises Failed where the status is another than is due."""
    answer = https.send(request)
    if answer.status != status:
        raise Failed(f"the server answered {answer.status} where {status} was due: {json.dumps(answer.body)}", 1)
    return answer.body


class Walk:
    """The steps. Each raises Failed where an answer is not what it should be."""

    def __init__(self, https: Https, page: Page) -> None:
        self._https = https
        self._page = page

    def all(self) -> None:
        """Every step, in order."""
        grant_id, r0 = self._signs_in()
        r1 = self._rotates(r0)
        r2 = self._loses_an_answer(r1)
        r4 = self._narrows_and_restores(r2)
        self._detects_reuse(r0, r4)
        self._shows_the_history(grant_id)

    def _signs_in(self) -> tuple[str, str]:
        self._page.step(
            "A person signs in",
            """The login application asks for a grant. The client gets an access token, which works for five minutes,
            and a refresh token, R0, for getting the next access token without bothering the person again.""",
        )
        issued = self._exchange(issue_request(), "the login application asks for a grant", 201, scope=SCOPE)
        return str(issued["grant_id"]), str(issued["refresh_token"])

    def _rotates(self, r0: str) -> str:
        self._page.step(
            "Rotation",
            """A refresh token is redeemed once. The answer brings a new access token and a successor, R1; R0 is
            retired. Whoever steals a copy cannot use it unnoticed for long.""",
        )
        answer = self._refresh(r0, scope=SCOPE)
        self._page.conclude("R1 is current now. The client stores it in place of R0.")
        return self._successor(r0, answer)

    def _loses_an_answer(self, r1: str) -> str:
        self._page.step(
            "A lost answer, retried",
            """The client presents R1, the server rotates it, and then the connection breaks: nobody reads the answer.
            The client still has only R1, so it sends the same request again.""",
        )
        request = refresh_request(r1)
        self._page.request(request, "the client presents R1, and the connection breaks before the answer is read")
        self._https.send_and_lose_the_answer(request)
        answer = self._refresh(r1, what="the same line again", scope=SCOPE)
        self._page.conclude(
            """That is no attack but a retry: it gets the successor that was lost, R2, and no second one. The history
            below has one rotation for both requests."""
        )
        return self._successor(r1, answer)

    def _narrows_and_restores(self, r2: str) -> str:
        self._page.step(
            "Narrowing",
            "A refresh may ask for less scope. Every later token has that scope too, until more is asked for.",
        )
        r3 = self._successor(r2, self._refresh(r2, NARROWED, scope=NARROWED))
        self._page.conclude("The grant carries read and profile from here on, no longer openid.")
        self._page.step(
            "Restoring", "A later refresh may ask for more again, but never for more than was granted at the sign-in."
        )
        r4 = self._successor(r3, self._refresh(r3, SCOPE, scope=SCOPE))
        self._page.conclude("The grant carries all three again.")
        return r4

    def _detects_reuse(self, r0: str, r4: str) -> None:
        self._page.step(
            "Reuse is detected",
            """Somebody had copied R0 and presents it now, from another machine. R0 was retired long ago and its
            successor was used: so two parties hold tokens of this grant, and which is the thief cannot be told.""",
        )
        refusal = {"error": "invalid_grant", "reason": "reuse_detected"}
        request = refresh_request(r0, agent="another-machine")
        caught = self._exchange(request, "the thief presents R0", 400, **refusal)
        self._page.conclude("The thief gets nothing, and the grant is ended at once. The client's own R4 is dead too:")
        self._refresh(r4, status=400, event_id=caught["event_id"], **refusal)
        self._page.conclude("The client asks the person to sign in again. What the thief holds stays dead.")

    def _shows_the_history(self, grant_id: str) -> None:
        self._page.step(
            "The history that this left",
            """Nothing was overwritten: each line is an event, and what is true now follows from them. Generation 0 is
            R0, generation 1 is R1, and so on.""",
        )
        request = Request(f"/grants/{grant_id}/events", bearer=AUDITOR_TOKEN)
        self._page.request(request, "an auditor asks what happened")
        events = accepted(self._https, request)["events"]
        print()
        for event in events:
            topic = event["topic"].removeprefix("grant.")
            say(f"{event['v']:>3}  {event['at'][11:23]}  {topic:15} {told(event)}"[:LINE_CHARACTERS_MAX])
        topics = [event["topic"] for event in events]
        # R4, presented after the end, is only counted; that count may have been written down meanwhile, or not.
        found = {topic: topics.count(topic) for topic in topics if topic != "grant.presentations_counted"}
        if found != HISTORY:
            raise Failed(f"the history holds other events than it should: {json.dumps(found)}", 1)

    # ------------------------------------------------------------ one exchange

    def _refresh(
        self, token: str, asked: str | None = None, *, what: str = "", status: int = 200, **expected: Json
    ) -> Json:
        what = what or f"the client presents {self._page.name(token)}"
        return self._exchange(refresh_request(token, asked), what, status, **expected)

    def _exchange(self, request: Request, what: str, status: int, **expected: Json) -> Json:
        self._page.request(request, what)
        answer = self._https.send(request)
        self._page.answer(answer)
        if answer.status != status:
            told = answer.body.get("error_description", "no error") if isinstance(answer.body, dict) else "no JSON"
            raise Failed(f"the answer is {answer.status}, and {status} is due ({told})", 1)
        for name, value in expected.items():
            if answer.body.get(name) != value:
                raise Failed(f"the answer's {name} is not {json.dumps(value)}, as it should be", 1)
        return answer.body

    def _successor(self, before: str, answer: Json) -> str:
        after = str(answer["refresh_token"])
        if after == before:
            raise Failed("the refresh token is the same as before, and it should have been rotated", 1)
        return after
