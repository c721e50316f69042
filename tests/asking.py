"""The application over a real ledger, asked in process: who asks, what is kept in every answer, short ways to ask.

The clients and operators are those of the transcripts. Every answer is held against what all answers keep: JSON without
null, the shape and charset of errors, `no-store`, no token in an error, and the OpenAPI document.
"""

import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from api import clients_file
from api.app import App, create_app
from api.settings import Settings
from tests.described import check_described
from tests.ledgers import OPTIONS, Clock, Opened, check_ledger, open_ledger
from tests.servers import FIXTURES, OPERATORS, SECRETS

ISSUER_URL = "https://ledger.example"
HOME = "198.51.100.7"
ELSEWHERE = "203.0.113.9"

Json = Any

_ERROR_TEXT = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]*")
_OPEN = ("/docs", "/openapi.json", "/metrics", "/oauth/v2/jwks")

ASKED = {"client_id": "www", "subject": "alice", "scope": "read openid"}
SECOND_ISSUER = '\n[[operator]]\nname = "kiosk"\ntoken = "kiosk-token-6cc1"\nroles = ["issuer"]\nclients = ["www"]\n'
KIOSK = {"Authorization": "Bearer kiosk-token-6cc1"}
"""A grant that an issuer asks for; and one more issuer, who may issue for one client, with its credentials."""


class Seconds:
    """Seconds that only run forward, as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Served:
    """What a server that is asked for its figures tells of itself."""

    def __init__(self, certificate_expires_at: int | None) -> None:
        self.connections = 1
        self.counts: Mapping[str, int] = {}
        self.certificate_expires_at = certificate_expires_at


class Asking:
    """One application over one ledger, its clocks, and short ways to ask."""

    def __init__(self, opened: Opened, app: App, seconds: Seconds) -> None:
        self.opened = opened
        self.ledger = opened.ledger
        self.clock = opened.clock
        self.app = app
        self.seconds = seconds
        self._subjects = 0

    async def ask(
        self,
        method: str,
        path: str,
        *,
        address: str = HOME,
        local: bool = False,
        headers: Mapping[str, str] | list[tuple[bytes, bytes]] | None = None,
        **content: Any,
    ) -> httpx2.Response:
        """Ask once and check what every answer keeps."""
        app: Any = self.app.local if local else self.app
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True, client=(address, 40_000))
        async with httpx2.AsyncClient(transport=transport, base_url=ISSUER_URL) as client:
            answer = await client.request(method, path, headers=headers, **content)
        check(answer, local)
        return answer

    async def operator(
        self, role: str, method: str, path: str, body: Json = None, *, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Ask as the operator that has this role; a body goes as JSON."""
        content = {} if body is None else {"json": body}
        return await self.ask(method, path, headers={**bearer(role), **(headers or {})}, **content)

    async def form(
        self, path: str, fields: Mapping[str, Any], *, address: str = HOME, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Post a form."""
        return await self.ask("POST", path, address=address, headers=headers, data=fields)

    async def issue(self, client: str = "www", *, subject: str | None = None, **members: Json) -> Json:
        """Issue a grant, to a person of its own unless one is named."""
        self._subjects += 1
        asked = {
            "client_id": client,
            "subject": subject or f"person-{self._subjects}",
            "scope": "read openid profile",
            **members,
        }
        answer = await self.operator("issuer", "POST", "/grants", asked)
        assert 201 == answer.status_code, answer.text
        return answer.json()

    async def refresh(
        self, client: str, token: str, *, address: str = HOME, **more: str | list[str]
    ) -> httpx2.Response:
        """Refresh as this client, its credentials in the body."""
        fields = {"grant_type": "refresh_token", "refresh_token": token, **credentials(client), **more}
        return await self.form("/token", fields, address=address)

    def asked(self) -> list[tuple[str, str | None, str]]:
        """Every recorded question of operators: the question, the grant, who asked."""
        events: list[Any] = [event for event in self.opened.events() if event.topic == "audit.read"]
        return [(event.question, event.grant_id, event.requested_by) for event in events]

    async def scraped(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of /metrics: name and labels, value."""
        text = (await self.ask("GET", "/metrics")).text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def bearer(role: str) -> dict[str, str]:
    """The Authorization header of the operator with this role."""
    return {"Authorization": f"Bearer {OPERATORS[role]}"}


def basic(client: str, secret: str | None = None, *, scheme: str = "Basic", encoding: str = "utf-8") -> dict[str, str]:
    """The Authorization header of a client, with its own secret unless another is given."""
    text = f"{client}:{SECRETS[client] if secret is None else secret}"
    return {"Authorization": f"{scheme} {base64.b64encode(text.encode(encoding)).decode()}"}


def credentials(client: str) -> dict[str, str]:
    """A client's credentials as members of a form; a public one's is its id."""
    secret = SECRETS[client]
    return {"client_id": client} if secret is None else {"client_id": client, "client_secret": secret}


def check(answer: httpx2.Response, local: bool) -> None:
    """Hold an answer against what all answers keep (TE-10, TE-11, TE-12, V96)."""
    path = answer.request.url.path
    told = f"{answer.request.method} {path} {answer.status_code}: {answer.text[:300]}"
    assert "location" not in answer.headers, told
    if answer.status_code >= 400 or not path.startswith(_OPEN):
        assert "no-store" == answer.headers["cache-control"], told
        assert "no-cache" == answer.headers["pragma"], told
    if answer.request.method == "HEAD":
        return
    if answer.headers.get("content-type") == "application/json":
        body = json.loads(answer.content)
        assert path == "/openapi.json" or not _has_null(body), told
        if answer.status_code >= 400 and "status" not in body:
            assert re.fullmatch("[a-z_]+", body["error"]), told
            assert _ERROR_TEXT.fullmatch(body.get("error_description", "")), told
            assert not re.search("(rt1|at1|ac1)_", answer.text), told
        if not local and answer.status_code != 500:  # a fault of ours is described nowhere
            check_described(answer.request.method, path, answer.status_code, body)
    elif answer.status_code >= 400:
        raise AssertionError(f"an error is JSON: {told}")


def _has_null(value: Json) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


@asynccontextmanager
async def asking_two(folder: Path) -> AsyncIterator[tuple[Asking, Asking]]:
    """Two applications over one store that nobody is registered in, as two nodes have them."""
    clock, options = Clock(), msgspec.structs.replace(OPTIONS, issuer=ISSUER_URL)
    async with (
        open_ledger(folder, clock=clock, options=options, clients=None) as one,
        open_ledger(folder, clock=clock, seed=2, options=options, clients=None) as other,
    ):
        here, there = (
            Asking(each, create_app(each.ledger, Settings(issuer=ISSUER_URL), monotonic=Seconds()), Seconds())
            for each in (one, other)
        )
        yield here, there


@asynccontextmanager
async def asking(
    folder: Path,
    *,
    more: str = "",
    settings: Settings | None = None,
    server: Served | None = None,
    checked: bool = True,
    clock: Clock | None = None,
    seed: int = 1,
) -> AsyncIterator[Asking]:
    """Open a ledger with the clients of the transcripts, `more` of them in TOML, and the application over it.

    The same folder again is the same ledger: it wants the same clock, and another seed. At the end the whole store is
    checked.
    """
    file = folder / "clients.toml"
    file.write_text(FIXTURES.read_text("utf-8") + more, "utf-8")
    wanted = clients_file.load(file)
    options = msgspec.structs.replace(OPTIONS, issuer=ISSUER_URL)
    async with open_ledger(folder, clock=clock, seed=seed, options=options, clients=None) as opened:
        await opened.ledger.operators.apply(wanted.clients, wanted.operators, serial=wanted.serial)
        seconds = Seconds()
        settings = settings or Settings(issuer=ISSUER_URL)
        app = create_app(opened.ledger, settings, server=server, monotonic=seconds)
        yield Asking(opened, app, seconds)
    if checked:
        check_ledger(opened.path)
