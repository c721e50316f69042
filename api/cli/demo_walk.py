"""The demo's walk: the life of one refresh token in real requests, each shown as cURL with its answer and checked."""

import json
import re
from collections.abc import Mapping
from typing import Any

from api.cli.curl import LINE_CHARACTERS_MAX, Answer, Https, Request, paragraph
from api.cli.output import Failed, say, styled
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

[[operator]]
name = "login-app"
token = "{ISSUER_TOKEN}"
roles = ["issuer"]

[[operator]]
name = "auditor"
token = "{AUDITOR_TOKEN}"
roles = ["auditor"]
"""

_TOKEN = re.compile(r"\b[ra]t1_[A-Za-z0-9_-]{72}")
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue")


class Demo:
    """What the steps share: whom to ask, and the tokens that have been seen, each with its own colour."""

    def __init__(self, server: Https) -> None:
        self.server = server
        self._seen: list[str] = []
        self._step = 0

    # ------------------------------------------------------------ asking

    def issued(self) -> Json:
        """A grant as the login application gets it once the person has signed in."""
        return self._ok(self.server.send(self._issue_request()), 201)

    def refreshed(self, token: str) -> str:
        """The successor of a refresh token."""
        return str(self._ok(self.server.send(refresh_request(token)), 200)["refresh_token"])

    def _issue_request(self) -> Request:
        asked = {"client_id": CLIENT_ID, "subject": SUBJECT, "scope": SCOPE}
        return Request("/grants", json=asked, bearer=ISSUER_TOKEN)

    def _ok(self, answer: Answer, status: int) -> Json:
        if answer.status != status:
            raise Failed(f"the server answered {answer.status} where {status} was due: {json.dumps(answer.body)}", 1)
        return answer.body

    # ------------------------------------------------------------ showing

    def heading(self, title: str, *texts: str) -> None:
        """Begin a step: what it is about, in plain words."""
        print()
        print(styled(f"{self._step}  {title}", "bold"))
        self._step += 1
        for text in texts:
            print(indented(paragraph(text)))

    def say(self, text: str) -> None:
        """Say something between two requests."""
        print()
        print(indented(paragraph(text)))

    def show_request(self, request: Request) -> None:
        """Show a request as a person would type it."""
        print()
        for line in self.server.typed(request):
            print(f"{self.marked(line)}")

    def show_answer(self, answer: Answer) -> None:
        """Show an answer: its status, then its JSON as it came, one member a line."""
        print()
        print(styled(f"   {answer.status} {answer.reason}", "green" if answer.status < 400 else "red"))
        for name, value in answer.body.items():
            print(f"   {self.marked(f'{json.dumps(name)}: {json.dumps(value)}')}")

    def conclude(self, text: str) -> None:
        """Say what the answer shows."""
        print()
        print("\n".join(styled(line, "bold") for line in indented(paragraph(text), "=> ").splitlines()))

    def marked(self, line: str) -> str:
        """The line with every refresh token in its own colour, the same wherever it stands."""
        return _TOKEN.sub(lambda found: self._mark(found[0]), line)

    def _mark(self, token: str) -> str:
        if token.startswith("at1_"):
            return styled(token, "dim")
        if token not in self._seen:
            self._seen.append(token)
        return styled(token, _COLOURS[self._seen.index(token) % len(_COLOURS)])

    def exchange(self, request: Request, *, status: int = 200, **expected: Json) -> Json:
        """Show a request, send it, show its answer. Raises Failed where the answer is not what is due."""
        self.show_request(request)
        answer = self.server.send(request)
        self.show_answer(answer)
        self._ok(answer, status)
        for name, value in expected.items():
            if answer.body.get(name) != value:
                raise Failed(f"the answer's {name} is not {json.dumps(value)}, as it should be", 1)
        return answer.body


def refresh_request(token: str, scope: str | None = None, agent: str | None = None) -> Request:
    """The tutorial's request: a form with the client's id and secret in it (RFC 6749 6)."""
    form = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "grant_type": "refresh_token"}
    if scope is not None:
        form["scope"] = scope
    return Request(TOKEN_PATH, form={**form, "refresh_token": token}, agent=agent)


def indented(text: str, first: str = "   ") -> str:
    """The text under its heading."""
    return first + text.replace("\n", "\n   ")


def walk(demo: Demo) -> str:
    """Walk through the life of one grant; return its id. Raises Failed at the first step that goes another way."""
    demo.heading(
        "A person signs in",
        """The login application asks for a grant. It gets an access token, which works for five minutes, and a refresh
        token, R0, with which client www can get further access tokens while the person is away.""",
    )
    issued = demo.exchange(demo._issue_request(), status=201, scope=SCOPE)
    grant_id, r0 = str(issued["grant_id"]), str(issued["refresh_token"])
    demo.conclude("The client keeps R0. Every refresh token has its own colour here, where there is colour.")

    demo.heading(
        "Rotation",
        """A refresh token works once. The answer brings a new access token and the successor, R1, and R0 is retired.
        So a stolen copy cannot be used quietly for long.""",
    )
    r1 = str(demo.exchange(refresh_request(r0), scope=SCOPE)["refresh_token"])
    _differ(r0, r1)
    demo.conclude("R1 is current now, and the client stores it in place of R0.")

    r2 = _lost_answer(demo, r1)

    demo.heading(
        "Narrowing",
        "A refresh may ask for less scope. What it gets, every later token has too, until more is asked for.",
    )
    r3 = str(demo.exchange(refresh_request(r2, NARROWED), scope=NARROWED)["refresh_token"])
    demo.conclude("The grant carries read and profile now, no longer openid.")

    demo.heading(
        "Restoring", "A later refresh may ask for more again, but never for more than the person had granted at first."
    )
    r4 = str(demo.exchange(refresh_request(r3, SCOPE), scope=SCOPE)["refresh_token"])
    demo.conclude("The grant carries all of it again.")

    _reuse(demo, r0, r4)
    _history(demo, grant_id)
    return grant_id


def _differ(before: str, after: str) -> None:
    if before == after:
        raise Failed("the refresh token is the same as before, and it should have been rotated", 1)


def _lost_answer(demo: Demo, r1: str) -> str:
    demo.heading(
        "A lost answer, retried",
        """The client sends R1, the server rotates it, and then the connection breaks: the answer is lost. The client
        still has only R1. It sends the same request again.""",
    )
    request = refresh_request(r1)
    demo.show_request(request)
    demo.server.send_and_lose_the_answer(request)
    print()
    print(styled("   ... the connection breaks, nobody reads the answer. Once more:", "yellow"))
    r2 = str(demo.exchange(request, scope=SCOPE)["refresh_token"])
    _differ(r1, r2)
    demo.conclude(
        """A retry of the last request is no attack: it gets the answer that was lost, with the very same successor,
        R2. The history below shows one rotation for it, not two."""
    )
    return r2


def _reuse(demo: Demo, r0: str, r4: str) -> None:
    demo.heading(
        "Reuse is detected",
        """Somebody had copied R0 and tries it now, from a browser of their own. R0 was retired long ago and its
        successor was used, so two parties hold tokens of this grant. Which of them is the thief cannot be known.""",
    )
    stolen = refresh_request(r0, agent="copied-laptop")
    caught = demo.exchange(stolen, status=400, error="invalid_grant", reason="reuse_detected")
    demo.conclude("The thief gets nothing, and the whole grant is ended on the spot. The client's own R4 is dead too:")
    refused = demo.exchange(refresh_request(r4), status=400, error="invalid_grant", reason="reuse_detected")
    if refused["event_id"] != caught["event_id"]:
        raise Failed("both refusals should name the event that made them so", 1)
    demo.conclude("The person signs in again, which gives the client a new grant and the thief nothing.")


def _history(demo: Demo, grant_id: str) -> None:
    demo.heading(
        "The history that this left", "Nothing was overwritten. Each line is an event; the state follows from them."
    )
    request = Request(f"/grants/{grant_id}/events", bearer=AUDITOR_TOKEN)
    demo.show_request(request)
    print()
    events = demo._ok(demo.server.send(request), 200)["events"]
    for event in events:
        topic = event["topic"].removeprefix("grant.")
        say(f"{event['v']:>3}  {event['at'][11:23]}  {topic:16}  {told(event)}"[:LINE_CHARACTERS_MAX])
    _check_history(events)


EXPECTED: Mapping[str, int] = {
    "grant.issued": 1,
    "grant.token_redeemed": 4,
    "grant.token_rotated": 4,
    "grant.retry_served": 1,
    "grant.scope_reduced": 1,
    "grant.scope_restored": 1,
    "grant.reuse_detected": 1,
    "grant.revoked": 1,
}


def _check_history(events: list[Json]) -> None:
    topics = [event["topic"] for event in events]
    found = {topic: topics.count(topic) for topic in topics}
    if found != EXPECTED:
        raise Failed(f"the history holds other events than it should: {found}", 1)
