"""Real `token-ledger serve` processes for black-box tests: started, driven, killed, started again on their files."""

import base64
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from tests import signers
from tests.commands import run_here
from tests.postgres import Server as Postgres
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
    secrets_in,
    target_of,
)

PROJECT = Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 30.0

FIXTURES = Path(__file__).with_name("transcripts") / "clients.toml"
_TABLES: Mapping[str, Json] = tomllib.loads(FIXTURES.read_text("utf-8"))
CALLBACK = "https://app.example/callback"
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
"""Where the clients of the code flow are answered, and verifier and challenge of RFC 7636 appendix B."""

SECRETS: Mapping[str, str | None] = {client["id"]: client.get("secret") for client in _TABLES["client"]}
OPERATORS: Mapping[str, str] = {operator["roles"][0]: operator["token"] for operator in _TABLES["operator"]}

_T = TypeVar("_T")


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


def eventually(ask: Callable[[], _T], *, within_seconds: float = 10.0, what: str = "the condition") -> _T:
    """Ask again every 50 ms until the answer is true; fail with the last answer when the time is up."""
    deadline = time.monotonic() + within_seconds
    while True:
        found = ask()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {within_seconds} s; last seen: {found!r}"
        time.sleep(0.05)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago, below those that outgoing connections are given."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", random.SystemRandom().randrange(10_240, 32_768))) as found,
        ):
            return int(found.getsockname()[1])


def basic(client: str, secret: str) -> str:
    """Return the value of a Basic Authorization header with id and secret raw, as cURL sends them."""
    return "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode("ascii")


def program() -> list[str]:
    """Return how the command is run: the installed script beside this interpreter, else the package."""
    script = Path(sys.executable).with_name("token-ledger")
    return [str(script)] if script.exists() else [sys.executable, "-m", "api"]


class Server:
    """One `token-ledger serve` process and its files in a folder of its own.

    Every exchange goes through `check_answer`; every token and secret that passed is remembered, and `stop` asserts
    that the log holds none of them and no traceback. Source addresses are loopback addresses, so a test can be
    another caller (`new_address`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        clients: str | None = None,
        settings: Mapping[str, str] | None = None,
        tls: bool = False,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.database = folder / "token-ledger.db"
        self.keys_file = folder / "token-ledger.keys"
        self.clients_file = folder / "clients.toml"
        self.log_file = folder / "server.log"
        self.error_file = folder / "server.err"
        self.port = free_port()
        self.settings = dict(settings or {})
        self.secrets: list[str] = [*filter(None, SECRETS.values()), *OPERATORS.values(), VERIFIER]
        self.tokens: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.client_tls = self._make_certificate() if tls else None
        self._addresses = itertools.count(1)
        self._subjects = itertools.count(1)
        self.write_clients(clients if clients is not None else clients_toml())

    # -- files and process -------------------------------------------------------------------------------------------

    def write_clients(self, text: str) -> None:
        """Write the clients file; a running server reads it on `hangup`."""
        self.clients_file.write_text(text, encoding="utf-8")
        self.clients_file.chmod(0o600)

    def _make_certificate(self) -> ssl.SSLContext:
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        leaf.private_key_pem.write_to_path(self.folder / "tls.key")
        (self.folder / "tls.key").chmod(0o600)
        for number, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(self.folder / "tls.pem", append=number > 0)
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    @property
    def issuer(self) -> str:
        return f"{'https' if self.client_tls else 'http'}://localhost:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the environment of the server and of commands beside it: the caller's, our settings on top."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TOKEN_LEDGER_")}
        path = os.pathsep.join([str(PROJECT), *filter(None, [inherited.get("PYTHONPATH")])])
        settings = {
            "DATABASE_URL": f"sqlite:///{self.database}",
            "KEYS_FILE": str(self.keys_file),
            "CLIENTS_FILE": str(self.clients_file),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "REFRESH_PER_SECOND": "0",
            "REFRESH_BURST": "0",
            "LOG_LEVEL": "debug",
        }
        if self.client_tls:
            settings |= {"TLS_CERT": str(self.folder / "tls.pem"), "TLS_KEY": str(self.folder / "tls.key")}
        else:
            settings["ALLOW_PLAIN_HTTP"] = "1"
        settings |= self.settings
        return inherited | {"PYTHONPATH": path} | {f"TOKEN_LEDGER_{key}": value for key, value in settings.items()}

    def serve_command(self) -> list[str]:
        """Return how the process is started; trials put another program, or a wrapper that execs it, in its place."""
        return [*program(), "serve"]

    def start(self, *, wait: bool = True) -> "Server":
        """Start the process on its files and, unless told otherwise, wait until `/readyz` is 200. On PostgreSQL the
        tables are made before its first start."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        if self.settings.get("DATABASE_URL", "").startswith("postgresql:") and not self.keys_file.exists():
            self.init()
        with self.log_file.open("ab") as log, self.error_file.open("ab") as errors:
            self.process = subprocess.Popen(
                self.serve_command(),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
            )
        if wait:
            self.wait_ready()
        return self

    def init(self) -> None:
        """Make key ring and database as the command does, in this process."""
        made = run_here(("init",), self.folder, self.environment())
        assert 0 == made.exit_code, made

    def wait_ready(self, within_seconds: float = START_SECONDS_MAX) -> None:
        """Wait until `/readyz` is 200; a process that ends before fails the test with what it said."""

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"serve ended: {self.tail()}"
            return self.health("/readyz") == 200

        eventually(ready, within_seconds=within_seconds, what="/readyz 200")

    def health(self, path: str, timeout_seconds: float = 2.0) -> int | None:
        """Return the status of a health path; None where no answer came in time."""
        try:
            with self.connect(timeout_seconds=timeout_seconds) as connection:
                return connection.exchange(request_bytes("GET", path)).status
        except (OSError, ssl.SSLError):
            return None

    def tail(self) -> str:
        """Return the ends of the log and of what went to standard error."""
        return self.log()[-1500:] + self.errors()[-1500:]

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def errors(self) -> str:
        return self.error_file.read_text("utf-8", "replace") if self.error_file.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def hangup(self, clients: str | None = None) -> None:
        """Send SIGHUP, with a new clients file before it where one is given; its effect shows from outside only."""
        if clients is not None:
            self.write_clients(clients)
        self.signal(signal.SIGHUP)

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self, within_seconds: float = 20.0) -> int:
        """End the process with SIGTERM and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(within_seconds)

    def restart(self, *, kill: bool = False) -> None:
        """End the process, by SIGKILL or in order, and start it again on the same files."""
        if kill:
            self.kill()
        else:
            assert 0 == self.terminate(), f"a clean stop exits 0: {self.tail()}"
        self.start()

    def stop(self) -> None:
        """End the process and assert that its log is clean; safe where it has ended already."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"SIGTERM did not end the server: {self.tail()}") from None
        self.check_log()

    def check_log(self) -> None:
        """Assert that neither log nor standard error holds a token, a secret or a traceback (V96, I-20)."""
        said = b"".join(path.read_bytes() for path in (self.log_file, self.error_file) if path.exists())
        encoded = [basic(client, secret).split()[1] for client, secret in SECRETS.items() if secret]
        found = secrets_in(said, self.tokens, [*self.secrets, *encoded])
        assert not found, f"the log of {self.folder} holds {found[:5]}"
        assert b"Traceback (most recent call last)" not in said, f"a traceback in the log: {self.tail()}"

    def command(
        self, *arguments: str, stdin: str | bytes = b"", timeout_seconds: float = 60.0, **settings: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run another `token-ledger` command with the server's environment; settings come on top of it."""
        return subprocess.run(
            [*program(), *arguments],
            cwd=self.folder,
            env=self.environment() | {f"TOKEN_LEDGER_{key}": value for key, value in settings.items()},
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
        )

    # -- exchanges ---------------------------------------------------------------------------------------------------

    def new_address(self) -> str:
        """Return a loopback source address that no caller of this server has had."""
        number = next(self._addresses)
        return f"127.{1 + number // 65000}.{number // 250 % 250}.{1 + number % 250}"

    def new_subject(self) -> str:
        return f"person-{next(self._subjects)}"

    def connect(self, *, source: str = "127.0.0.1", timeout_seconds: float = 30.0) -> Connection:
        return Connection(("127.0.0.1", self.port), source=source, tls=self.client_tls, timeout_seconds=timeout_seconds)

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
