"""The sides that are ours: the ledger on each of its stores, and the bare endpoint. And what any side has to offer."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import uvloop

from api.clients_file import parsed
from api.settings import Settings, SettingsError, load
from api.wiring import open_ledger
from tests.benchmarks.bare import PATH
from tests.benchmarks.clients import CLIENTS, FORM, SCOPE
from tests.benchmarks.page_cache import Files, files_in
from tests.benchmarks.refresh import bare, events_in, ledger, pid_of
from tests.bulk import issue_many, persons, rotate_many
from tests.servers import Server

TOKENS = "tokens.txt"
PART = "tokens.part"
NEW = "new.txt"
FILLING_SECONDS_MAX = 3600
"""So long may a batch of a thousand take before it is given up: others may keep the machine busy meanwhile."""


def rotated(rotations: int) -> str:
    """The file with the token of a chain that was rotated so often."""
    return f"rotated-{rotations}.txt"


@dataclass(frozen=True)
class Stage:
    """A store of its own for each side: so many grants that were never used, and one each that was rotated so often.
    `number` keeps the ports of stages apart. What is not remembered our servers read anew for every refresh."""

    number: int
    name: str
    grants: int
    histories: tuple[int, ...] = ()
    is_remembered: bool = True

    def begin(self, folder: Path) -> bool:
        """Whether the folder of a side lacks this stage: then it is empty, whatever was left there by a run that was
        broken off, or asked for less."""
        if self._is_in(folder):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return True

    def _is_in(self, folder: Path) -> bool:
        if not all((folder / name).exists() for name in (TOKENS, *map(rotated, self.histories))):
            return False
        return len((folder / TOKENS).read_text("ascii").split()) >= self.grants

    @property
    def twin(self) -> str | None:
        """What of `tests.chaos.twins` serves it."""
        return None if self.is_remembered else "remembers_little"

    def end(self, folder: Path) -> None:
        """All of it is in the store, and the tokens of its grants in `part`."""
        (folder / PART).rename(folder / TOKENS)


def taken(folder: Path) -> list[str]:
    """The tokens of a stage, out of their file until they are put back: who breaks off has rotated some, and the next
    run fills the stage anew."""
    tokens = (folder / TOKENS).read_text("ascii").split()
    (folder / TOKENS).unlink()
    return tokens


@dataclass(frozen=True)
class Running:
    """A server that runs on a stage's store. `mint` makes new grants on it; `events` counts what its store holds, None
    where it keeps none; `store_pid` is the root of the store's processes where it has any, `files` are the store's."""

    port: int
    path: str
    form: str
    pid: int
    store_pid: int | None
    folder: Path
    mint: Callable[[int], Sequence[str]]
    events: Callable[[], int] | None = None
    files: Files = tuple


class LeftOut(Exception):
    """A side that cannot take part: why, in one line."""


class Side(Protocol):
    """One server on one kind of store. `is_ours`, else a peer or the bare endpoint."""

    @property
    def name(self) -> str: ...
    @property
    def store(self) -> str: ...
    @property
    def is_ours(self) -> bool: ...
    def serve(self, stage: Stage, folder: Path) -> AbstractContextManager[Running]:
        """Serve a stage, which is made where the folder does not have it yet. Raises LeftOut."""
        ...


class Bare:
    """The endpoint without store and rule."""

    name, store, is_ours = "bare Starlette endpoint", "none", False

    @contextmanager
    def serve(self, stage: Stage, folder: Path) -> Iterator[Running]:
        def mint(count: int) -> list[str]:
            return ["rt1_" + "r" * 72] * count

        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENS).write_text("\n".join(mint(stage.grants)) + "\n", "ascii")
        with bare() as (port, pid):
            yield Running(port, PATH, "", pid, None, folder, mint)


class OnSQLite:
    """The ledger on a file of its own."""

    name, store, is_ours = "token-ledger/sqlite", "SQLite", True

    @contextmanager
    def serve(self, stage: Stage, folder: Path) -> Iterator[Running]:
        if stage.begin(folder):
            fill(Server(folder, clients=CLIENTS), stage)
        with ledger(folder, twin=stage.twin) as server:
            yield running(server, None, lambda: events_in(folder), lambda: [folder / "token-ledger.db"])


class Cluster(Protocol):
    """A PostgreSQL that sides share. `pid` is the root of its processes."""

    @property
    def pid(self) -> int: ...
    def new_database(self, name: str) -> None: ...
    def url(self, name: str) -> str: ...
    def count(self, name: str, table: str) -> int: ...
    def folder_of(self, name: str) -> Path: ...


class OnPostgreSQL:
    """The ledger on a database of its own in the cluster that the peers use."""

    name, store, is_ours = "token-ledger/pg", "PostgreSQL", True

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @contextmanager
    def serve(self, stage: Stage, folder: Path) -> Iterator[Running]:
        cluster, database = self._cluster, f"ledger_{stage.name}".replace("-", "_")
        settings = {"DATABASE_URL": cluster.url(database)}
        kept = Server(folder, clients=CLIENTS, settings=settings)
        if stage.begin(folder):
            cluster.new_database(database)
            try:
                fill(kept, stage)
            except SettingsError as why:
                raise LeftOut(str(why)) from None
        elif (done := kept.command("init")).returncode:  # an earlier version may have made it
            raise LeftOut(done.stderr.decode().strip())
        with ledger(folder, settings=settings, twin=stage.twin) as server:
            files = files_in(cluster.folder_of(database))
            yield running(server, cluster.pid, lambda: cluster.count(database, "events"), files)


def running(server: Server, store_pid: int | None, events: Callable[[], int], files: Files) -> Running:
    """One of our servers, as sides are known."""

    def mint(count: int) -> list[str]:
        return [_issued(server) for _ in range(count)]

    return Running(server.port, PATH, FORM, pid_of(server), store_pid, server.folder, mint, events, files)


def _issued(server: Server) -> str:
    """A new grant while the server runs, by its own command."""
    arguments = ("--client", "www", "--subject", server.new_subject(), "--scope", " ".join(SCOPE), "--json")
    done = server.command("issue", *arguments)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["refresh_token"])


def fill(server: Server, stage: Stage) -> None:
    """Make the grants of a stage in the store that a server will be started on. Raises SettingsError where this version
    keeps none there."""
    settings = replace(load(server.environment()), request_timeout_seconds=FILLING_SECONDS_MAX)
    uvloop.run(_fill(settings, server.folder, stage))


async def _fill(settings: Settings, folder: Path, stage: Stage) -> None:
    async with open_ledger(settings, create=True) as opened:
        await opened.operators.apply(parsed(CLIENTS).clients, [])
        with (folder / PART).open("w", encoding="ascii") as file:
            async for tokens in issue_many(opened, persons(stage.grants, client_id="www", scope=SCOPE)):
                file.write("\n".join(tokens) + "\n")
        aged = persons(len(stage.histories), client_id="www", scope=SCOPE, first=stage.grants)
        async for tokens in issue_many(opened, aged):
            for token, rotations in zip(tokens, stage.histories, strict=True):
                last = await rotate_many(opened, token, rotations, client_id="www")
                (folder / rotated(rotations)).write_text(last + "\n", "ascii")
    stage.end(folder)
