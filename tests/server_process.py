"""A real `token-ledger serve` process with its files: started, signalled, killed, started again on them."""

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import trustme

from tests.commands import run_here
from tests.forking import forking
from tests.wire import Connection, request_bytes, secrets_in

PROJECT = Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 30.0

_T = TypeVar("_T")


def eventually(ask: Callable[[], _T], *, within_seconds: float = 10.0, what: str = "the condition") -> _T:
    """Ask again, every 10 ms at first and then every 50, until the answer is true; fail with the last answer when the
    time is up."""
    began = time.monotonic()
    deadline = began + within_seconds
    while True:
        found = ask()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {within_seconds} s; last seen: {found!r}"
        time.sleep(0.01 if time.monotonic() - began < 0.5 else 0.05)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago, below those that outgoing connections are given."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", random.SystemRandom().randrange(10_240, 32_768))) as found,
        ):
            return int(found.getsockname()[1])


def program() -> list[str]:
    """Return how the command is run: the installed script beside this interpreter, else the package."""
    script = Path(sys.executable).with_name("token-ledger")
    return [str(script)] if script.exists() else [sys.executable, "-m", "api"]


def run_program(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    given: bytes,
    seconds: float,
    *,
    by_command: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own to its end."""
    if not by_command and (by := forking(environment)) is not None:
        return by.run(arguments, folder, environment, given, seconds)
    return subprocess.run(
        [*program(), *arguments],
        cwd=folder,
        env=environment,
        input=given,
        capture_output=True,
        timeout=seconds,
        check=False,
    )


class ServerProcess:
    """One `token-ledger serve` process and its files in a folder of its own.

    Of what has passed it knows `secrets` and `tokens`: `stop` asserts that the log holds none of them and no traceback.
    `by_command`: it is started as a person starts it, where `tests.forking` would do otherwise.
    """

    def __init__(
        self, folder: Path, clients: str, settings: Mapping[str, str] | None = None, *, tls: bool = False
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
        self.secrets: list[str] = []
        self.tokens: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.by_command = False
        self.client_tls = self._make_certificate() if tls else None
        self.write_clients(clients)

    # -- files -------------------------------------------------------------------------------------------------------

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

    # -- the process -------------------------------------------------------------------------------------------------

    def serve_command(self) -> list[str]:
        """Return how the process is started; trials put another program, or a wrapper that execs it, in its place."""
        return [*program(), "serve"]

    def start(self, *, wait: bool = True) -> Self:
        """Start the process on its files and, unless told otherwise, wait until `/readyz` is 200. On PostgreSQL the
        tables are made before its first start."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        if self.settings.get("DATABASE_URL", "").startswith("postgresql:") and not self.keys_file.exists():
            self.init()
        with self.log_file.open("ab") as log, self.error_file.open("ab") as errors:
            command, environment = self.serve_command(), self.environment()
            plain = command[:-1] == program() and not self.by_command
            if plain and (by := forking(environment)) is not None:
                with open(os.devnull, "rb") as nothing:
                    files = nothing.fileno(), log.fileno(), errors.fileno()
                    self.process = by.start(command[-1:], self.folder, environment, files)
            else:
                self.process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=environment,
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

    def connect(self, *, source: str = "127.0.0.1", timeout_seconds: float = 30.0) -> Connection:
        return Connection(("127.0.0.1", self.port), source=source, tls=self.client_tls, timeout_seconds=timeout_seconds)

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
        found = secrets_in(said, self.tokens, self.secrets)
        assert not found, f"the log of {self.folder} holds {found[:5]}"
        assert b"Traceback (most recent call last)" not in said, f"a traceback in the log: {self.tail()}"

    def command(
        self, *arguments: str, stdin: str | bytes = b"", timeout_seconds: float = 60.0, **settings: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run another `token-ledger` command with the server's environment; settings come on top of it."""
        environment = self.environment() | {f"TOKEN_LEDGER_{key}": value for key, value in settings.items()}
        given = stdin.encode() if isinstance(stdin, str) else stdin
        return run_program(arguments, self.folder, environment, given, timeout_seconds, by_command=self.by_command)
