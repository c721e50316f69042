"""Refreshes over one connection, whose heads, forms and credentials repeat: each is answered as if it came alone.

Against real processes. What every piece in between remembers is tried here together; each has trials of its own too.
"""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qsl

import pytest

from api import clients_file, forms
from api.answers import Answer as Told
from api.answers import Replies
from api.client_auth import ClientAuth
from api.heads import Headers, Proven, Repeating
from api.token import TokenEndpoint
from ledger.head_file import Acknowledged
from tests.asking import Asking, asking
from tests.server_process import eventually
from tests.servers import SECRETS, Server, basic, clients_toml, running
from tests.wire import FORM, REVOKE_PATH, TOKEN_PATH, Answer, Connection, Json, form_bytes, request_bytes

OTHER_SECRET = "Secr3t?"
"""As long as the right one, so that head and form are as long, too."""

OF_STABLE = {"one": "Secr3t!", "two": "S3cret!", "pub": None}
STABLE = "".join(
    f'[[client]]\nid = "{name}"\n{credential}\nscope = "read openid profile"\npolicy = "stable"\n\n'
    for name, credential in (
        ("one", 'auth = "client_secret"\nsecret = "Secr3t!"'),
        ("two", 'auth = "client_secret"\nsecret = "S3cret!"'),
        ("pub", 'auth = "none"\nallow_unbound_reuse = true'),
    )
)
"""Clients whose refresh tokens stay: the same request means the same every time."""


KNOWN = {**SECRETS, **OF_STABLE}


def of_basic(client: str, secret: str | None, token: str, **more: str) -> bytes:
    """A refresh whose client authenticates in the header."""
    headers = {"Content-Type": FORM, "Authorization": basic(client, secret or str(KNOWN[client]))}
    fields = {"grant_type": "refresh_token", "refresh_token": token, **more}
    return request_bytes("POST", TOKEN_PATH, headers=headers, body=form_bytes(fields))


def of_body(client: str, secret: str | None, token: str, **more: str) -> bytes:
    """A refresh whose client authenticates in the body."""
    fields = {"grant_type": "refresh_token", "refresh_token": token, "client_id": client, **more}
    if secret or KNOWN[client]:
        fields["client_secret"] = secret or str(KNOWN[client])
    return request_bytes("POST", TOKEN_PATH, headers={"Content-Type": FORM}, body=form_bytes(fields))


def told(answer: Answer) -> tuple[int, Json]:
    """What an answer says for good: times pass between two of them."""
    if not answer.body:
        return answer.status, None
    body = answer.json()
    return answer.status, {name: body.get(name) for name in ("refresh_token", "scope", "token_type", "error")}


def check_heard_alike(server: Server, over: Connection, raw: bytes) -> Answer:
    """Send a request over a connection that knows much, and again over a new one: it means the same."""
    answer = server.exchange(raw, over=over)
    assert told(server.exchange(raw)) == told(answer)
    return answer


def test_requests_of_one_connection_are_answered_as_if_each_came_alone(
    tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    """Three clients behind one proxy's connection, right and wrong secrets, each other's tokens, other ways to
    authenticate: as over a connection of its own (RFC 6749 2.3, 6; I-19)."""
    draw = Random("repeats")
    statuses: Counter[int] = Counter()
    with running(tmp_path / "server", clients=clients_toml(more=STABLE)) as server, server.connect() as proxy:
        tokens = {client: server.issue(client).refresh_token for client in OF_STABLE}
        wrong = 0
        for _ in range(count(200, 3_000)):
            client = draw.choices(("one", "two", "pub"), (6, 3, 2))[0]
            token = tokens[client if draw.random() < 0.93 else draw.choice(list(tokens))]
            make = of_basic if client == "one" and draw.random() < 0.5 else of_body
            more: dict[str, str] = draw.choices(
                ({}, {"scope": "read openid"}, {"client_id": client}, {"x": "1"}, {"client_assertion": "x"}),
                (30, 2, 2, 2, 1),
            )[0]
            if draw.random() < 0.03 and make is of_basic:
                more = {"client_id": "two"}
            secret = None
            if client == "one" and not more and wrong < 4 and draw.random() < 0.05:
                secret, wrong = OTHER_SECRET, wrong + 1
            for _ in range(1 if secret else draw.choice((1, 1, 4))):
                statuses[check_heard_alike(server, proxy, make(client, secret, token, **more)).status] += 1
    assert {200, 400, 401} == statuses.keys()


@pytest.mark.parametrize("make", [of_basic, of_body])
def test_a_change_is_seen_by_a_connection_that_knows_its_client(own_server: Server, make: Callable[..., bytes]) -> None:
    """I-06: a secret taken away, an ended or suspended grant, a client that is no more, at once and wherever."""
    with own_server.connect() as connection:

        def refreshed(token: str, secret: str | None = None, times: int = 5) -> str:
            for _ in range(times):
                answer = own_server.exchange(make("www", secret, token), over=connection)
                assert 200 == answer.status, answer.body
                token = str(answer.json()["refresh_token"])
            return token

        def refused(token: str, secret: str | None = None) -> str:
            answer = own_server.exchange(make("www", secret, token), over=connection)
            assert answer.status in (400, 401), answer.body
            return str(answer.json()["error"])

        first, second = own_server.issue("www"), own_server.issue("www")
        token = refreshed(first.refresh_token)
        assert "invalid_client" == refused(token, OTHER_SECRET)
        token = refreshed(token)
        assert 200 == own_server.operator("security", "POST", f"/grants/{first.grant_id}/suspend").status
        assert "invalid_grant" == refused(token)
        assert 200 == own_server.operator("security", "POST", f"/grants/{first.grant_id}/reinstate").status
        token = refreshed(token)
        fields = {"token": token, **own_server.credentials("www")}
        given_back = request_bytes("POST", REVOKE_PATH, headers={"Content-Type": FORM}, body=form_bytes(fields))
        assert 200 == own_server.exchange(given_back, over=connection).status
        assert "invalid_grant" == refused(token)

        token = refreshed(second.refresh_token)
        assert 0 == own_server.command("keys", "rotate").returncode
        token = refreshed(token)
        assert 0 == own_server.command("keys", "activate", "2").returncode
        token = refreshed(token)
        assert 0 == own_server.command("keys", "distrust", "1").returncode
        token = refreshed(token)  # made by key 2 already

        table = 'id = "www"\nsecret = "Secr3t!"'
        text = clients_toml()
        assert table in text
        own_server.hangup(clients=text.replace(table, f'id = "www"\nsecret = "{OTHER_SECRET}"'))
        eventually(lambda: "invalid_grant" == heard(own_server, make), what="the other secret")
        assert "invalid_client" == refused(token)
        own_server.secrets.append(OTHER_SECRET)
        token = refreshed(token, OTHER_SECRET)
        own_server.hangup(clients=clients_toml(without=["www"]))
        eventually(lambda: "invalid_client" == heard(own_server, make), what="the end of the client")
        assert "invalid_client" == refused(token, OTHER_SECRET)


def heard(server: Server, make: Callable[..., bytes]) -> str:
    """What the client is told from an address of its own for a token that is none."""
    return str(server.exchange(make("www", OTHER_SECRET, "none"), source=server.new_address()).json()["error"])


# ---------------------------------------------------------------- without a task


def of_another_key(token: str) -> str:
    """A token that names a key which no ring here holds: the ring's file may have it by now, so it is read again."""
    raw = bytearray(base64.urlsafe_b64decode(token[4:]))
    raw[1] ^= 0x7F
    return token[:4] + base64.urlsafe_b64encode(raw).decode("ascii")


class Kept:
    """A request whose answer is kept."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[Told] = asyncio.get_running_loop().create_future()

    def reply(self, answer: Told) -> None:
        self.answered.set_result(answer)


class Repeated:
    """What one connection asks with heads that are the same."""

    def __init__(self, ledger: Asking) -> None:
        self.ledger = ledger
        self.headers = Headers([(b"content-type", FORM.encode()), (b"user-agent", b"again")])

    def scope(self, body: bytes = b"") -> Any:
        state = {"names_origin": False, "body": body}
        client = ("198.51.100.7", 40_000)
        return {
            "type": "http", "method": "POST", "path": "/token", "headers": self.headers, "state": state,
            "client": client,
        }  # fmt: skip

    async def asked(self, fields: dict[str, str]) -> Json:
        """What a task answers."""
        told: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body came with the head")

        async def send(message: Any) -> None:
            told.append(message)

        await self.ledger.app(self.scope(form_bytes(fields)), receive, send)
        return json.loads(told[1]["body"])

    async def once_more(self, fields: dict[str, str]) -> Json | None:
        """What is answered without a task, and its secret is counted; None: it is not, and nothing has happened."""
        serve, kept = self.ledger.app.once_more(self.scope()), Kept()
        assert serve is not None
        before, used_before = self.ledger.opened.last_position(), await self.secrets_used()
        if serve(self.headers, form_bytes(fields), kept):
            answer = await kept.answered
            assert 1 == await self.secrets_used() - used_before
            return {"status": answer.status, **json.loads(answer.body)}
        await asyncio.sleep(0.01)
        assert not kept.answered.done()
        assert before == self.ledger.opened.last_position()
        assert 0 == await self.secrets_used() - used_before, "whoever serves it counts its secret"
        return None

    async def secrets_used(self) -> float:
        """How often any client has authenticated by a secret."""
        samples = await self.ledger.scraped()
        return sum(value for (name, _), value in samples.items() if name == "token_ledger_client_secret_used_total")


async def trial_of_once_more(folder: Path) -> None:
    """What repeats is served, and nothing else: another secret, form, grant type, client or key goes the long way.
    What the ledger refuses is told as a task tells it."""
    async with asking(folder) as ledger:
        ticker = ledger.opened.ledger._ticker
        assert ticker is not None
        ticker.cancel()  # after a second it records who presented what: nothing that a request has done
        issued, other, fresh = [await ledger.issue("www") for _ in range(3)]
        repeated = Repeated(ledger)
        token = issued["refresh_token"]

        def fields(token: str, **more: str) -> dict[str, str]:
            known = {"client_id": "www", "client_secret": "Secr3t!", "grant_type": "refresh_token", **more}
            return {**known, "refresh_token": token}

        for _ in range(4):
            token = (await repeated.asked(fields(token)))["refresh_token"]
        for _ in range(3):
            answer = await repeated.once_more(fields(token))
            assert answer is not None
            assert (200, "read openid profile") == (answer["status"], answer["scope"])
            token = answer["refresh_token"]
        for expected in (
            (200, None),
            (400, "reuse_detected"),
            (400, "reuse_detected"),
        ):  # this client's policy is strict
            answer = await repeated.once_more(fields(fresh["refresh_token"]))  # made for nobody's connection
            assert answer is not None
            assert expected == (answer["status"], answer.get("reason"))
        assert await repeated.once_more(fields(token, client_secret=OTHER_SECRET)) is None
        assert await repeated.once_more(fields(token, scope="read")) is None
        assert await repeated.once_more(fields(token[:-1] + ("A" if token[-1] != "A" else "B"))) is None
        assert await repeated.once_more(fields(of_another_key(token))) is None
        assert await repeated.once_more({**fields(token), "grant_type": "refresh_tokem"}) is None

        ledger.ledger.log_end.behind = Acknowledged(position=1, at=1)
        assert await repeated.once_more(fields(token)) is None
        ledger.ledger.log_end.behind = None

        narrowing, narrowed = Repeated(ledger), (await ledger.issue("www"))["refresh_token"]
        for _ in range(4):
            narrowed = (await narrowing.asked(fields(narrowed, scope="read")))["refresh_token"]
        assert await narrowing.once_more(fields(narrowed, scope="read")) is None

        await ledger.operator("security", "POST", f"/grants/{issued['grant_id']}/suspend", {})
        answer = await repeated.once_more(fields(token))
        assert answer is not None
        assert (400, "invalid_grant", "suspended") == (answer["status"], answer["error"], answer["reason"])
        assert answer == await repeated.once_more(fields(token))

        second = (await repeated.asked(fields(other["refresh_token"])))["refresh_token"]
        text = (folder / "clients.toml").read_text("utf-8").replace('"Secr3t!"', f'"{OTHER_SECRET}"')
        (folder / "clients.toml").write_text(text, "utf-8")
        wanted = clients_file.load(folder / "clients.toml")
        await ledger.ledger.operators.apply(wanted.clients, wanted.operators)
        assert await repeated.once_more(fields(second)) is None
        assert "invalid_client" == (await repeated.asked(fields(second)))["error"]


async def test_what_repeats_is_served_without_a_task_and_nothing_else_is(tmp_path: Path) -> None:
    """RFC 6749 2.3, 6: the same answers as those of a task, and no other request takes this way."""
    await trial_of_once_more(tmp_path)


def whatever_was_proven(self: ClientAuth, proven: Proven, address: str) -> bool:
    """Broken: who proved it once has proved it for ever."""
    return True


def whatever_the_form(repeating: Repeating, body: bytes) -> str | None:
    """Broken: the secret beside the token is anybody's."""
    return body[repeating.begins : repeating.ends].decode("ascii")


def whatever_the_scope(self: TokenEndpoint, headers: Headers, body: bytes, request: Replies) -> bool:
    """Broken: what a form says beyond its token is left out."""
    token, known = dict(parse_qsl(body.decode("ascii")))["refresh_token"], headers.once_more
    around = body if known is None else known.form.around
    return ONCE_MORE(self, headers, around.replace(b"refresh_token=", b"refresh_token=" + token.encode(), 1), request)


def counted_whoever_serves_it(self: TokenEndpoint, headers: Headers, body: bytes, request: Replies) -> bool:
    """Broken: a secret is counted here, and again by the task that serves the request in the end."""
    served = ONCE_MORE(self, headers, body, request)
    if not served and headers.once_more is not None:
        self._clients.used_once_more(headers.once_more.proven)
    return served


def counted_by_nobody(self: ClientAuth, proven: Proven) -> None:
    """Broken: what is served without a task has used no secret."""


ONCE_MORE = TokenEndpoint.once_more


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (ClientAuth, "holds", whatever_was_proven),
        (forms, "repeated_token", whatever_the_form),
        (TokenEndpoint, "once_more", whatever_the_scope),
        (TokenEndpoint, "once_more", counted_whoever_serves_it),
        (ClientAuth, "used_once_more", counted_by_nobody),
    ],
)
async def test_a_way_that_serves_too_much_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, broken: Any
) -> None:
    """The trial's broken twins."""
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        await trial_of_once_more(tmp_path)
