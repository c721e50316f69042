"""Real `token-ledger serve` processes for black-box tests: who they know, how they are asked, and the fixtures."""

import base64
import itertools
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import signers
from tests.postgres import Server as Postgres
from tests.server_process import ServerProcess
from tests.wire import (
    FORM,
    INTROSPECT_PATH,
    REVOKE_PATH,
    TOKEN_PATH,
    Answer,
    Connection,
    Json,
    check_answer,
    form_bytes,
    request_bytes,
    target_of,
)

FIXTURES = Path(__file__).with_name("transcripts") / "clients.toml"
_TABLES: Mapping[str, Json] = tomllib.loads(FIXTURES.read_text("utf-8"))
CALLBACK = "https://app.example/callback"
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
"""Where the clients of the code flow are answered, and verifier and challenge of RFC 7636 appendix B."""

SECRETS: Mapping[str, str | None] = {client["id"]: client.get("secret") for client in _TABLES["client"]}
OPERATORS: Mapping[str, str] = {operator["roles"][0]: operator["token"] for operator in _TABLES["operator"]}


@dataclass(frozen=True)
class Grant:
    """One grant as the issuer got it; tokens stay out of the repr."""

    grant_id: str
    client: str
    subject: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


def clients_toml(*, window_seconds: int = 60, without: Iterable[str] = (), more: str = "") -> str:
    """Return the fixture clients file: `win`'s retry window set, some tables left out, some added."""
    text = FIXTURES.read_text("utf-8").replace("retry_window_seconds = 60", f"retry_window_seconds = {window_seconds}")
    tables = text.split("\n\n")
    dropped = {f'id = "{name}"' for name in without} | {f'name = "{name}"' for name in without}
    return "\n\n".join(table for table in tables if not dropped & set(table.splitlines())) + "\n" + more


def basic(client: str, secret: str) -> str:
    """Return the value of a Basic Authorization header with id and secret raw, as cURL sends them."""
    return "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode("ascii")


class Server(ServerProcess):
    """One `token-ledger serve` process, and what tests ask it all the time.

    Every exchange goes through `check_answer`; every token and secret that passed is remembered. Source addresses are
    loopback addresses, so a test can be another caller (`new_address`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        clients: str | None = None,
        settings: Mapping[str, str] | None = None,
        tls: bool = False,
    ) -> None:
        super().__init__(folder, clients if clients is not None else clients_toml(), settings, tls=tls)
        encoded = [basic(client, secret).split()[1] for client, secret in SECRETS.items() if secret]
        self.secrets += [*filter(None, SECRETS.values()), *encoded, *OPERATORS.values(), VERIFIER]
        self._addresses = itertools.count(1)
        self._subjects = itertools.count(1)

    # -- exchanges ---------------------------------------------------------------------------------------------------

    def new_address(self) -> str:
        """Return a loopback source address that no caller of this server has had."""
        number = next(self._addresses)
        return f"127.{1 + number // 65000}.{number // 250 % 250}.{1 + number % 250}"

    def new_subject(self) -> str:
        return f"person-{next(self._subjects)}"

    def exchange(self, raw: bytes, *, source: str = "127.0.0.1", over: Connection | None = None) -> Answer:
        """Send one request, on a connection of its own or over an open one, and check what every answer keeps."""
        if over is not None:
            return self.checked(raw, over.exchange(raw))
        with self.connect(source=source) as connection:
            return self.checked(raw, connection.exchange(raw))

    def checked(self, raw: bytes, answer: Answer) -> Answer:
        """Check an answer against its request and remember the tokens it carries."""
        method, path = target_of(raw)
        if answer.header("Content-Type") == "application/json" and answer.body:
            body = answer.json()
            if isinstance(body, dict):
                found = (body.get("access_token"), body.get("refresh_token"), body.get("code"))
                self.tokens.update(token for token in found if isinstance(token, str))
        check_answer(answer, method, path, self.secrets)
        return answer

    def form(
        self,
        path: str,
        fields: Mapping[str, str] | Iterable[tuple[str, str]],
        *,
        headers: Mapping[str, str] | None = None,
        source: str = "127.0.0.1",
        over: Connection | None = None,
    ) -> Answer:
        """POST a form."""
        raw = request_bytes("POST", path, headers={"Content-Type": FORM, **(headers or {})}, body=form_bytes(fields))
        return self.exchange(raw, source=source, over=over)

    def operator(
        self, role: str, method: str, path: str, body: Json = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask as the operator that has this role; a body is sent as JSON."""
        pairs = {"Authorization": f"Bearer {OPERATORS[role]}", **(headers or {})}
        content = b"" if body is None else json.dumps(body).encode()
        if content:
            pairs["Content-Type"] = "application/json"
        return self.exchange(request_bytes(method, path, headers=pairs, body=content))

    # -- what tests do all the time ----------------------------------------------------------------------------------

    def issue(
        self, client: str = "www", *, scope: str = "read openid profile", subject: str | None = None, **members: Json
    ) -> Grant:
        """Issue a grant through `POST /grants`, to a person of its own unless one is named."""
        subject = subject or self.new_subject()
        asked = {"client_id": client, "subject": subject, "scope": scope, **members}
        answer = self.operator("issuer", "POST", "/grants", asked)
        assert 201 == answer.status, answer.body
        body = answer.json()
        return Grant(body["grant_id"], client, subject, body["access_token"], body.get("refresh_token", ""))

    def authorize(
        self,
        client: str = "code",
        *,
        scope: str = "read openid profile",
        redirect_uri: str = CALLBACK,
        subject: str | None = None,
        **members: Json,
    ) -> Json:
        """Let a person sign in and agree through `POST /authorizations`; the answer's body, with the code."""
        asked = {
            "client_id": client,
            "subject": subject or self.new_subject(),
            "scope": scope,
            "redirect_uri": redirect_uri,
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
            **members,
        }
        answer = self.operator("issuer", "POST", "/authorizations", asked)
        assert 201 == answer.status, answer.body
        return answer.json()

    def exchange_request(self, client: str, code: str, **more: str) -> bytes:
        """Return the bytes of a code's exchange, credentials in the body."""
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": CALLBACK,
            "code_verifier": VERIFIER,
            **self.credentials(client),
            **more,
        }
        return request_bytes("POST", TOKEN_PATH, headers={"Content-Type": FORM}, body=form_bytes(fields))

    def credentials(self, client: str) -> dict[str, str]:
        """Return a client's credentials as form members; for a public one its id alone, for one that signs an assertion
        of its own."""
        if client in signers.REGISTERED:
            return signers.registered(client, self.issuer).form()
        secret = SECRETS[client]
        return {"client_id": client} if secret is None else {"client_id": client, "client_secret": secret}

    def refresh_request(self, client: str, token: str, *, agent: str | None = None, **more: str) -> bytes:
        """Return the bytes of a refresh request, credentials in the body unless the client takes Basic alone."""
        headers = {"Content-Type": FORM} | ({"User-Agent": agent} if agent is not None else {})
        fields = {"grant_type": "refresh_token", "refresh_token": token, **more}
        if client == "basic":
            headers["Authorization"] = basic(client, str(SECRETS[client]))
        else:
            fields |= self.credentials(client)
        return request_bytes("POST", TOKEN_PATH, headers=headers, body=form_bytes(fields))

    def refresh(
        self,
        client: str,
        token: str,
        *,
        source: str = "127.0.0.1",
        over: Connection | None = None,
        agent: str | None = None,
        **more: str,
    ) -> Answer:
        """Refresh as this client; further members (`scope`) by name."""
        raw = self.refresh_request(client, token, agent=agent, **more)
        return self.exchange(raw, source=source, over=over)

    def revoke(self, client: str, token: str, *, source: str = "127.0.0.1") -> Answer:
        return self.form(REVOKE_PATH, {"token": token, **self.credentials(client)}, source=source)

    def introspect(self, token: str, client: str | None = None) -> Json:
        """Return what introspection says, asked by a client or, without one, by the security operator."""
        fields = {"token": token, **(self.credentials(client) if client else {})}
        headers = {} if client else {"Authorization": f"Bearer {OPERATORS['security']}"}
        answer = self.form(INTROSPECT_PATH, fields, headers=headers)
        assert 200 == answer.status, answer.body
        return answer.json()

    def look(self, grant_id: str) -> Json:
        """Return a grant as the security operator sees it."""
        answer = self.operator("security", "GET", f"/grants/{grant_id}")
        assert 200 == answer.status, answer.body
        return answer.json()

    def events(self, grant_id: str) -> list[Json]:
        """Return a grant's whole history, all pages."""
        found: list[Json] = []
        cursor = ""
        while True:
            answer = self.operator("auditor", "GET", f"/grants/{grant_id}/events?limit=1000{cursor}")
            assert 200 == answer.status, answer.body
            page = answer.json()
            found += page["events"]
            if "next_cursor" not in page:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def topics(self, grant_id: str) -> list[str]:
        return [event["topic"] for event in self.events(grant_id)]


@contextmanager
def running(folder: Path, **options: Json) -> Iterator[Server]:
    """Run a server of one's own; it is stopped and its log checked at the end, killed where the test has failed."""
    server = Server(folder, **options)
    try:
        server.start()
        yield server
    except BaseException:
        server.kill()
        raise
    server.stop()


@pytest.fixture(scope="session")
def window_seconds(full: bool) -> int:
    """The retry window of client `win`: the vectors' minute in the full tier, four seconds in the default one."""
    return 60 if full else 4


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory, window_seconds: int) -> Iterator[Server]:
    """One plain-HTTP server for all tests of a worker that leave it as they found it: a fresh grant for each."""
    with running(tmp_path_factory.mktemp("shared"), clients=clients_toml(window_seconds=window_seconds)) as server:
        yield server


@pytest.fixture(scope="session")
def two_workers(postgres: Postgres) -> Callable[[], dict[str, str]]:
    """Makes settings of a server of two workers on a new PostgreSQL database."""
    return lambda: {"DATABASE_URL": postgres.over_tcp(postgres.create_database()), "WORKERS": "2"}


@pytest.fixture(scope="session")
def shared_workers(
    tmp_path_factory: pytest.TempPathFactory, window_seconds: int, two_workers: Callable[[], dict[str, str]]
) -> Iterator[Server]:
    """As `shared_server`: two workers on PostgreSQL."""
    clients = clients_toml(window_seconds=window_seconds)
    with running(tmp_path_factory.mktemp("workers"), clients=clients, settings=two_workers()) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A plain-HTTP server for one test that kills it, signals it or changes its clients."""
    with running(tmp_path / "server") as server:
        yield server
