"""What is taken back while a request is under way buys nothing (I-06): its body is still open, its keys are still on
their way, it stands in line."""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api import clients_file, rebuilding
from api.app import App, create_app
from api.endpoint import Call
from api.remote_keys import RemoteKeys
from api.settings import Settings
from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.client_keys import VerifyingKey, verifying_keys
from ledger.clients import Client
from ledger.credentials import CREDENTIALS
from ledger.refusals import Unavailable
from tests.asking import ASKED, HOME, ISSUER_URL, Asking, asking, asking_two, bearer
from tests.asking_with_proofs import shown
from tests.assertions import NOW
from tests.ledgers import OPERATORS, SECURITY, client, open_ledger
from tests.servers import FIXTURES
from tests.signers import Signer, derived_key

pytestmark = pytest.mark.anyio


async def apply(ledger: Asking, more: str = "", *, without: str = "") -> None:
    """Let the fixtures rule, with more entries or without one of them."""
    text = FIXTURES.read_text("utf-8").replace(without, "") if without else FIXTURES.read_text("utf-8")
    wanted = clients_file.parsed(text + more)
    await ledger.ledger.operators.apply(wanted.clients, wanted.operators)


# ---------------------------------------------------------------- a body that stays open


class Half:
    """A request whose body is still to come, over the application itself."""

    def __init__(self, app: App, path: str, body: object, role: str) -> None:
        self._app: Any = app
        self._rest = asyncio.Event()
        self._body = json.dumps(body).encode()
        self.began = asyncio.Event()
        headers = [(b"content-type", b"application/json"), (b"host", b"ledger"), *self._bearer(role)]
        self._scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": headers, "client": (HOME, 40_000), "scheme": "https", "state": {},
            "server": ("ledger", 443), "root_path": "",
        }  # fmt: skip

    @staticmethod
    def _bearer(role: str) -> list[tuple[bytes, bytes]]:
        return [(name.lower().encode(), value.encode()) for name, value in bearer(role).items()]

    async def sent(self) -> int:
        """Send it; the status of its answer."""
        told: list[int] = []

        async def receive() -> dict[str, object]:
            self.began.set()
            await self._rest.wait()
            return {"type": "http.request", "body": self._body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                told.append(message["status"])

        await self._app(self._scope, receive, send)
        return told[0]

    def end(self) -> None:
        self._rest.set()


ACTS = [
    ("issuer", "/grants", ASKED),
    ("issuer", "/subjects/revoke", {"subject": "alice", "reason": "r"}),
    ("security", "/clients/www/revoke", {"reason": "r"}),
    ("admin", "/explain", {"token": "rt1_nobody"}),
]


async def _held(folder: Path, role: str, path: str, body: object, *, removed: bool) -> int:
    folder.mkdir(exist_ok=True)
    async with asking(folder) as ledger:
        half = Half(ledger.app, path, body, role)
        under_way = asyncio.ensure_future(half.sent())
        await half.began.wait()
        if removed:
            await ledger.ledger.operators.apply([], [])
        half.end()
        return await under_way


@pytest.mark.parametrize(("role", "path", "body"), ACTS)
async def test_an_operator_removed_while_its_body_is_open_does_nothing(
    tmp_path: Path, role: str, path: str, body: object
) -> None:
    """A token that was taken back must not act for as long as somebody can keep a request open."""
    assert await _held(tmp_path / "stays", role, path, body, removed=False) in (200, 201)
    assert 401 == await _held(tmp_path / "removed", role, path, body, removed=True)


async def test_an_operator_asked_for_once_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: who asks is looked up when the request begins, and never again."""
    first: dict[Call, Any] = {}

    def once(call: Call) -> Any:
        return first[call]

    begun = Call.__init__

    def begin(call: Call, *given: Any) -> None:
        begun(call, *given)
        first[call] = given[0]()

    monkeypatch.setattr(Call, "__init__", begin)
    monkeypatch.setattr(Call, "operator", property(once))
    assert 401 != await _held(tmp_path, *ACTS[1], removed=True)


# ---------------------------------------------------------------- keys that are being fetched


class Slow(RemoteKeys):
    """Keys that come when they are let."""

    def __init__(self, jwk: dict[str, object]) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self._jwk = jwk

    async def fetched(self, uri: str) -> tuple[VerifyingKey, ...]:
        self.asked.set()
        await self.go.wait()
        return verifying_keys([self._jwk])


@pytest.mark.parametrize("withdrawn", [False, True])
async def test_keys_withdrawn_while_they_are_fetched_prove_nothing(tmp_path: Path, withdrawn: bool) -> None:
    """CA-9: the host of the old keys says how long it takes to fetch them. A change of something else is no matter."""
    old = Signer("far", derived_key("old"), ISSUER_URL)
    new = Signer("far", derived_key("new"), ISSUER_URL)
    listed = '"https://keys.example/old"'
    async with asking(tmp_path, more=old.toml(jwks_uri=listed)) as ledger:
        keys = Slow(old.public_jwk())
        settings = Settings(issuer=ISSUER_URL)
        ledger.app = create_app(ledger.ledger, settings, monotonic=ledger.seconds, remote_keys=keys)
        token = (await ledger.issue("far"))["refresh_token"]
        fields = {"grant_type": "refresh_token", "refresh_token": token, **old.form(now=NOW)}
        under_way = asyncio.ensure_future(ledger.form("/token", fields))
        await keys.asked.wait()
        await apply(ledger, new.toml() if withdrawn else old.toml(jwks_uri=listed, resource='["https://a.example"]'))
        keys.go.set()
        answer = await under_way
        assert (400 if withdrawn else 200) == answer.status_code
        assert not withdrawn or "invalid_client" == answer.json()["error"]


# ---------------------------------------------------------------- in line, on the node that changes it


async def _in_one_batch(folder: Path) -> tuple[Any, ...]:
    async with open_ledger(folder) as opened:
        first, second = await opened.issue("alice"), await opened.issue("bob")
        return await asyncio.gather(
            opened.refresh(first),
            opened.apply(client(secret="Changed!"), operators=OPERATORS),
            opened.refresh(second),
            return_exceptions=True,
        )


async def test_who_is_decided_after_a_change_of_secrets_says_again_who_they_are(tmp_path: Path) -> None:
    """No redemption follows in the log what forbids it, within a batch neither: who stood behind it showed the old
    secret. Who stood before it is served."""
    before, _, behind = await _in_one_batch(tmp_path)
    assert before.refresh_token
    assert isinstance(behind, Unavailable)


async def test_a_batch_that_passes_over_its_own_change_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above."""
    nothing: frozenset[str] = frozenset()
    monkeypatch.setattr(Batch, "credentials_moved", property(lambda batch: nothing, lambda batch, moved: None))
    _, _, behind = await _in_one_batch(tmp_path)
    assert not isinstance(behind, Unavailable)


async def test_who_is_in_line_behind_the_batch_says_again_who_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is bounded: who did not fit into that of the change was in line before it was acknowledged."""
    monkeypatch.setattr("ledger.waiting.BATCH_MAX", 2)
    _, _, behind = await _in_one_batch(tmp_path)
    assert isinstance(behind, Unavailable)


@pytest.mark.parametrize("taken_together", [2, 256])
async def test_who_showed_nothing_that_was_taken_back_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_together: int
) -> None:
    """Another client, and one that only has one more secret, in the batch of the change and behind it: there are
    programs to which any error is the end."""
    monkeypatch.setattr("ledger.waiting.BATCH_MAX", taken_together)
    more = msgspec.structs.replace(client(), secrets=("Changed!", "Secr3t!"))
    async with open_ledger(tmp_path) as opened:
        await opened.apply(client(), client("other"), client("changed"), operators=OPERATORS)
        names = ("www", "other", "changed")
        tokens = {name: await opened.issue(name, client_id=name) for name in names}
        _, *answers, taken_back = await asyncio.gather(
            opened.apply(more, client("other"), client("changed", secret="Changed!"), operators=OPERATORS),
            *(opened.refresh(tokens[name], client_id=name) for name in names),
            return_exceptions=True,
        )
        assert [TokenAnswer, TokenAnswer] == [type(answer) for answer in answers]
        assert isinstance(taken_back, Unavailable)


async def test_who_was_known_by_a_snapshot_that_was_healed_says_again_who_they_are(tmp_path: Path) -> None:
    """What memory held was wrong, so those in line may have shown a secret that was none of theirs."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        known: dict[str, Client] = opened.ledger.authority._clients
        right, wrong = known["www"], copy.copy(known["www"])
        wrong.settings = msgspec.structs.replace(right.settings, secret_hashes=("h1$" + "0" * 64,))
        known["www"] = wrong
        waiting = asyncio.ensure_future(opened.refresh(answer))
        await asyncio.sleep(0)
        healing = rebuilding._Work(opened.ledger, asyncio.get_running_loop(), print)
        await opened.ledger.commits.exclusively(healing._forget)
        with pytest.raises(Unavailable):
            await waiting
        await opened.refresh(answer)


# ---------------------------------------------------------------- on another node

ENTRY = '\n[[client]]\nid = "x"\nsecret = "xx-Secret"\nscope = "read openid profile"\n'
CODE = 'redirect_uris = ["https://a.example/cb"]\n'
CUTS = {
    "grant_types": (
        f'{ENTRY}{CODE}grant_types = ["refresh_token", "authorization_code"]\n',
        f'{ENTRY}{CODE}grant_types = ["authorization_code"]\n',
        "unauthorized_client",
    ),
    "dpop_nonce_required": (
        f"{ENTRY}dpop_bound_access_tokens = true\n",
        f"{ENTRY}dpop_bound_access_tokens = true\ndpop_nonce_required = true\n",
        "use_dpop_nonce",
    ),
}


async def _cut_elsewhere(folder: Path, cut: str) -> tuple[int, str]:
    """Cut it on one node, ask the other, which has heard nothing yet, twice: the first status, the second's error."""
    before, after, _ = CUTS[cut]
    async with asking_two(folder) as (here, there):
        await apply(here, before)
        issued = await here.issue("x")
        assert await there.ledger.introspect(SECURITY, issued["access_token"])
        await apply(here, after)
        fields = {
            "grant_type": "refresh_token", "refresh_token": issued["refresh_token"], "client_id": "x",
            "client_secret": "xx-Secret",
        }  # fmt: skip
        answers = [
            await there.form("/token", fields, headers={"DPoP": shown(there)} if "dpop" in cut else None)
            for _ in range(2)
        ]
        return answers[0].status_code, answers[1].json().get("error", "")


@pytest.mark.usefixtures("on_postgres", "nobody_looks")
@pytest.mark.parametrize("cut", CUTS)
async def test_what_is_looked_at_before_the_line_binds_on_every_node(tmp_path: Path, cut: str) -> None:
    """It is no rule of the grant's, so no decision looks at it again: a node that has not heard of it asks anew."""
    assert (503, CUTS[cut][2]) == await _cut_elsewhere(tmp_path, cut)


@pytest.mark.usefixtures("on_postgres", "nobody_looks")
@pytest.mark.parametrize("cut", CUTS)
async def test_a_setting_that_no_node_would_ask_anew_for_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """The broken twin of the test above."""
    monkeypatch.setattr("ledger.credentials.CREDENTIALS", tuple(name for name in CREDENTIALS if name != cut))
    status, _ = await _cut_elsewhere(tmp_path, cut)
    assert 200 == status


@pytest.mark.usefixtures("on_postgres", "nobody_looks")
@pytest.mark.parametrize("more", [ENTRY, ENTRY.replace('"xx-Secret"', '["Changed!", "xx-Secret"]')])
async def test_a_change_elsewhere_costs_nobody_who_showed_nothing_of_it_an_answer(tmp_path: Path, more: str) -> None:
    """CASES, a secret changed without an outage: the first refresh on a node that has heard nothing yet is served, of
    a client that has one more secret, and of one of which nothing was changed."""
    async with asking_two(tmp_path) as (here, there):
        oth = '\n[[client]]\nid = "y"\nsecret = "{}"\nscope = "read openid profile"\n'
        await apply(here, ENTRY + oth.format("yy-Secret"))
        issued = await here.issue("x")
        assert await there.ledger.introspect(SECURITY, issued["access_token"])
        await apply(here, more + oth.format("Changed!"))
        fields = {
            "grant_type": "refresh_token", "refresh_token": issued["refresh_token"], "client_id": "x",
            "client_secret": "xx-Secret",
        }  # fmt: skip
        assert 200 == (await there.form("/token", fields)).status_code


@pytest.mark.usefixtures("on_postgres", "nobody_looks")
async def test_a_sign_in_does_not_fail_for_a_secret_changed_elsewhere(tmp_path: Path) -> None:
    """The login page's own token is as good as before."""
    async with open_ledger(tmp_path) as one, open_ledger(tmp_path, seed=2, clients=None) as other:
        await other.issue("alice")
        await one.apply(client(secret="Changed!"), operators=OPERATORS)
        assert isinstance(await other.issue("bob"), TokenAnswer)
