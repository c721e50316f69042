"""The peers: other authorization servers, set up by a harness that lies outside the project.

The harness is a folder with `peers.sh`, which lists servers (`def NAME PORT/PATH MINT-COMMAND FORM USES-PG
START-COMMAND`), and `pg.sh`, which starts a private PostgreSQL with durable settings (`start`, `pid`, `createdb NAME`).
What it has installed is under its WORKDIR. Each stage of each peer gets a database and ports of its own.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.benchmarks.page_cache import DATABASE_FOLDER, Files, files_in
from tests.benchmarks.peers_load import Job, drive
from tests.benchmarks.peers_processes import allow, pin
from tests.benchmarks.peers_sides import PART, LeftOut, Running, Stage, rotated
from tests.benchmarks.refresh import _listens
from tests.server_process import eventually

PORT_BASE = 18_200
PORTS_A_STAGE = 100
START_SECONDS_MAX = 30.0
MINTED_AT_ONCE = 500
MINTING_IN_PARALLEL = 8
AGING_SECONDS_MAX = 3600.0
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
TOLD = (*DURABLE, "wal_sync_method", "shared_buffers", "max_wal_size", "checkpoint_timeout")
_LIST = (
    'source ./peers.sh >/dev/null && for name in "${!URL[@]}"; do printf \'%s\\0\' "$name" "${URL[$name]}"'
    ' "${MINT[$name]}" "${FORM[$name]}" "${PGUSE[$name]}" "${START[$name]}"; done'
)
_DATABASE = re.compile(r"(?<=postgres://)(\S+/)(\w+)")
_FILE = re.compile(r"(?<=DB=)\S+\.db\b")


@dataclass(frozen=True)
class Harness:
    """The folder of the harness and the one that it works in."""

    folder: Path
    workdir: Path

    def missing(self) -> str | None:
        """What keeps the peers from running at all, in one line; None where nothing does."""
        if not (self.folder / "peers.sh").is_file() or not (self.folder / "pg.sh").is_file():
            return f"no harness in {self.folder}: it has peers.sh and pg.sh"
        if not self.workdir.is_dir():
            return f"nothing is set up in {self.workdir}: run the harness's install.sh with this WORKDIR"
        return None

    def environment(self, stage_number: int = 0) -> dict[str, str]:
        own = {
            "WORKDIR": str(self.workdir),
            "PORT_BASE": str(PORT_BASE + stage_number * PORTS_A_STAGE),
            "PGPORT_PEERS": str(PORT_BASE + 10),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return {**os.environ, **own}

    def shell(self, command: str, stage_number: int = 0) -> str:
        """What a command of the harness prints. Raises LeftOut with the last line of what it complains."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment(stage_number),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LeftOut(_last_line(done.stderr + done.stdout) or f"{command.split()[0]} failed")
        return done.stdout

    @contextmanager
    def postgres(self) -> Iterator["Postgres"]:
        """Its PostgreSQL, started where it does not run and stopped again then. Raises LeftOut, also where a setting
        gives durability away."""
        started = not self._postgres_pid()
        if started:
            self.shell("./pg.sh start")
        cluster = Postgres(self, self._postgres_pid())
        try:
            weak = [name for name in DURABLE if cluster.settings()[name] != "on"]
            if weak:
                raise LeftOut(f"PostgreSQL is not durable: {weak[0]} is not on")
            pin(cluster.pid, 1)
            yield cluster
        finally:
            allow(cluster.pid, os.sched_getaffinity(0))
            if started:
                self.shell("./pg.sh stop")

    def _postgres_pid(self) -> int:
        try:
            pid = int(self.shell("./pg.sh pid"))
        except (LeftOut, ValueError):
            return 0
        return pid if Path(f"/proc/{pid}").exists() else 0

    def peers(self, cluster: "Postgres | None") -> dict[str, "Peer"]:
        """All that it lists, by name."""
        cells = self.shell(_LIST).split("\0")[:-1]
        return {name: Peer(self, cluster, name) for name in cells[::6]}


@dataclass(frozen=True)
class Postgres:
    """The harness's PostgreSQL, which all sides that need one share: same settings, same core."""

    harness: Harness
    pid: int

    def new_database(self, name: str) -> None:
        """A new, empty database, in place of one of that name."""
        self.harness.shell(f"./pg.sh createdb {name}")

    def url(self, name: str) -> str:
        """How a database is reached by its owner."""
        return f"postgresql://peers:peers@127.0.0.1:{PORT_BASE + 10}/{name}"

    def count(self, name: str, table: str) -> int:
        """The rows of a table."""
        return int(self._asked(name, f"SELECT count(*) FROM {table}"))

    def folder_of(self, name: str) -> Path:
        """Where the files of a database are."""
        return Path(self._asked(name, DATABASE_FOLDER).strip())

    def settings(self) -> dict[str, str]:
        """The version and what decides about durability and speed."""
        names = ", ".join(f"'{name}'" for name in ("server_version", *TOLD))
        sql = f"SELECT name, current_setting(name) FROM pg_settings WHERE name IN ({names})"
        return dict(line.split("=", 1) for line in self._asked("postgres", sql).splitlines())

    def _asked(self, database: str, sql: str) -> str:
        return self.harness.shell(f'source ./env.sh && psql_peers -d {database} -AtF = -c "{sql}"')


@dataclass(frozen=True)
class Peer:
    """One server of the harness."""

    harness: Harness
    cluster: Postgres | None
    name: str
    is_ours = False

    @property
    def store(self) -> str:
        return "PostgreSQL" if self._entry(0)[3] == "1" else "SQLite" if "sqlite" in self.name else "memory"

    def _entry(self, stage_number: int) -> list[str]:
        cells = self.harness.shell(_LIST, stage_number).split("\0")
        at = cells.index(self.name)
        return cells[at + 1 : at + 6]

    @contextmanager
    def serve(self, stage: Stage, folder: Path) -> Iterator[Running]:
        url, mint, form, uses_postgres, start = self._entry(stage.number)
        if uses_postgres == "1" and self.cluster is None:
            raise LeftOut("it needs PostgreSQL, which does not run")
        is_new = stage.begin(folder)
        start = self._on_a_store_of_its_own(start, stage, folder, is_new)
        store_pid = self.cluster.pid if uses_postgres == "1" and self.cluster is not None else None

        def mint_some(count: int) -> list[str]:
            made = self.harness.shell(mint.replace("{n}", str(count)), stage.number).split()
            if len(made) != count:
                raise LeftOut(f"it made {len(made)} grants of {count}")
            return made

        port = _port(url)
        with _process(self.harness, stage.number, start, folder / "log", port) as pid:
            path, files = urlsplit(url).path, self._files(start, folder)
            running = Running(port, path, form.lstrip("&"), pid, store_pid, folder, mint_some, files=files)
            if is_new:
                _stock(running, stage)
            pin(pid, 0)
            yield running

    def _on_a_store_of_its_own(self, start: str, stage: Stage, folder: Path, is_new: bool) -> str:
        """The command with another database in it, where it names one."""
        found = _DATABASE.search(start)
        if found is not None:
            name = f"{found[2]}_{stage.name}".replace("-", "_")
            if is_new and self.cluster is not None:
                self.cluster.new_database(name)
            start = _DATABASE.sub(rf"\g<1>{name}", start)
        return _FILE.sub(str(folder / "store.db"), start)

    def _files(self, start: str, folder: Path) -> Files:
        """The files of that store."""
        found = _DATABASE.search(start)
        if found is not None and self.cluster is not None:
            return files_in(self.cluster.folder_of(found[2]))
        return lambda: [folder / "store.db"]


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


@contextmanager
def _process(harness: Harness, stage_number: int, command: str, log: Path, port: int) -> Iterator[int]:
    """A server until the block ends; everything that it started ends with it. Raises LeftOut where it never listens."""
    if _listens(port):
        raise LeftOut(f"port {port} is taken")
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=harness.folder,
            env=harness.environment(stage_number),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        try:
            eventually(
                lambda: process.poll() is not None or _listens(port), within_seconds=START_SECONDS_MAX, what="the port"
            )
        except AssertionError:
            raise LeftOut(f"its server does not listen: {_last_line(log.read_text())}") from None
        if process.poll() is not None:
            raise LeftOut(f"its server ended: {_last_line(log.read_text())}")
        yield process.pid
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _stock(running: Running, stage: Stage) -> None:
    """Make a stage's grants by the peer's own means, and age chains as a client does: one refresh after the other."""
    sizes = [min(MINTED_AT_ONCE, stage.grants - start) for start in range(0, stage.grants, MINTED_AT_ONCE)]
    with ThreadPoolExecutor(MINTING_IN_PARALLEL) as pool, (running.folder / PART).open("w") as file:
        for tokens in pool.map(running.mint, sizes):
            file.write("\n".join(tokens) + "\n")
    for rotations in stage.histories:
        aging = running.folder / "aging.txt"
        aging.write_text(running.mint(1)[0] + "\n")
        drive(Job(running.port, running.path, running.form, str(aging), 0, 1, 1, AGING_SECONDS_MAX, rotations))
        aging.rename(running.folder / rotated(rotations))
    stage.end(running.folder)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
