"""What one refresh at a time takes beside its parts: `python -m tests.benchmarks.latency`.

One connection, one request after the other. In each round, on each store: our refresh; the same request to the bare
endpoint; and, without request and rule, a bare durable transaction of the very rows that a refresh writes: two events
and the head of the grant, by plain SQL on one connection. Between two of those the store rests for as long as a bare
request takes, as it does between two refreshes: a disk that is never left alone answers sooner. The rows are noted
while one copy of a store is refreshed, and written into another. Where there are two cores, servers and transactions
run on the first, client and PostgreSQL on the second.

Quote the ratio of the first to the sum of the other two. How much of it is only that one process does both is told by
the bare endpoint with that transaction in each request: a program that answers and writes in turn finds less of either
in the processor's caches. After each run the store must hold two events for each answer.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec
import uvloop

from ledger.answers import Caller, Source
from ledger.application import Ledger, Options
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.randomness import system_randomness
from tests.benchmarks.bare_durable import DATABASE, ROWS
from tests.benchmarks.clients import CLIENTS, FORM
from tests.benchmarks.latency_rows import (
    Noting,
    NotingPostgres,
    NotingSQLite,
    Rows,
    bare_on,
    events_on,
    rows_of,
)
from tests.benchmarks.load import ALL_SECONDS_MAX, Job, percentile_ms
from tests.benchmarks.nodes import DURABLE, spread
from tests.benchmarks.peers_processes import pin
from tests.benchmarks.peers_sides import TOKENS, Stage, fill
from tests.benchmarks.refresh import bare, by_secret, check_events, drive, events_in, ledger
from tests.postgres import Server as Postgres
from tests.postgres import running
from tests.servers import Server

KEYS = "token-ledger.keys"


class Bare(Protocol):
    """A connection that writes rows, each refresh's in one durable transaction."""

    def write(self, rows: Rows) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Copies:
    """Three copies of a store with one grant: `made` is served with these settings, `source` tells what a refresh
    writes, `twin`, a file or a URL, takes it. `count` says how many events lie in one."""

    name: str
    folder: Path
    settings: dict[str, str]
    noting: Callable[[], Noting]
    twin: str
    count: Callable[[str], int]

    def token(self) -> str:
        return (self.folder / "made" / TOKENS).read_text("ascii").strip()


def on_sqlite(folder: Path) -> Copies:
    made = _filled(folder, {})
    for name in ("source", "twin"):
        shutil.copytree(made, folder / name)
    return Copies(
        "SQLite",
        folder,
        {},
        lambda: NotingSQLite(folder / "source" / "token-ledger.db"),
        str(folder / "twin" / "token-ledger.db"),
        lambda name: events_in(folder / name),
    )


def on_postgres(folder: Path, postgres: Postgres) -> Copies:
    url = postgres.create_database()
    settings = {"DATABASE_URL": postgres.over_tcp(url)}
    _filled(folder, settings)
    template = url.partition("?")[0].rpartition("/")[2]
    urls = {name: postgres.create_database(template) for name in ("source", "twin")} | {"made": url}
    return Copies(
        "PostgreSQL",
        folder,
        settings,
        lambda: NotingPostgres(postgres.over_tcp(urls["source"])),
        postgres.over_tcp(urls["twin"]),
        lambda name: events_on(urls[name]),
    )


def _filled(folder: Path, settings: dict[str, str]) -> Path:
    made, stage = folder / "made", Stage(0, "one", 1)
    stage.begin(made)
    fill(Server(made, clients=CLIENTS, settings=settings), stage)
    return made


async def rows_of_refreshes(copies: Copies, count: int) -> list[Rows]:
    """What so many refreshes write, one after the other, each in a transaction of its own."""
    keys = copies.folder / "made" / KEYS
    ring, store = KeyRing.load(keys), copies.noting()
    store.open(ring.ring_id)
    head_file = Path(shutil.copy(f"{keys}.head", copies.folder / "source.head"))
    ledger = await Ledger.open(
        store,
        ring,
        keys,
        HeadFile(head_file),
        Options(refresh_per_second=0),
        clock=lambda: time.time_ns() // 1000,
        randomness=system_randomness(),
    )
    caller, source = Caller(client_id="www", authenticated=True, auth_method="client_secret_post"), Source("::1", "it")
    token, found = copies.token(), []
    for _ in range(count + 1):
        store.given.clear()
        token = (await ledger.refresh(caller, source, token, None, None)).refresh_token or ""
        found += [rows_of(work) for work in store.given]
    await ledger.close()
    assert len(found) == count + 1
    return found[1:]  # the first wrote where it came from, too


def taken(bare: Bare, rows: Sequence[Rows], pause_seconds: float) -> list[float]:
    """How many seconds each transaction took, with a pause before it."""
    found = []
    for each in rows:
        time.sleep(pause_seconds)
        began = time.perf_counter()
        bare.write(each)
        found.append(time.perf_counter() - began)
    return found


@contextmanager
def on_first_core() -> Iterator[None]:
    """Run where servers do."""
    allowed = os.sched_getaffinity(0)
    pin(os.getpid(), 0)
    try:
        yield
    finally:
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), allowed)


@dataclass(frozen=True)
class Round:
    """Medians of one round, in milliseconds."""

    refresh: float
    request: float
    transaction: float
    in_one: float

    @property
    def parts(self) -> float:
        return self.request + self.transaction


def measure(copies: Copies, rounds: int, seconds: float, transactions: int) -> list[Round]:
    """All rounds on one store, after one that is not counted."""
    rows, file = uvloop.run(rows_of_refreshes(copies, 2 * (rounds + 1) * transactions)), copies.folder / "rows"
    # In the order of their positions: those of a round that are written alone, then those that requests write.
    shares = [rows[begin : begin + transactions] for begin in range(0, len(rows), transactions)]
    file.write_bytes(msgspec.msgpack.encode([each for share in shares[1::2] for each in share]))
    tokens, found = [copies.token()], []
    with ExitStack() as stack:
        server = stack.enter_context(ledger(copies.folder / "made", settings=copies.settings))
        port, pid = stack.enter_context(bare())
        both_port, both_pid = stack.enter_context(
            bare("bare_durable:made --factory", {DATABASE: copies.twin, ROWS: str(file)})
        )
        twin = bare_on(copies.twin)
        stack.callback(twin.close)
        for number in range(rounds + 1):
            before = copies.count("made")
            ours = drive(by_secret(server, tokens, 1, seconds))
            check_events(copies.count("made") - before, ours.answers)
            tokens = ours.tokens
            request = drive(_bare_requests(port, pid, seconds))
            before = copies.count("twin")
            with on_first_core():
                alone = taken(twin, shares[2 * number], request.p50_ms / 1000)
            both = drive(replace(_bare_requests(both_port, both_pid, ALL_SECONDS_MAX), answers_max=transactions))
            check_events(copies.count("twin") - before, transactions + both.answers)
            if number:
                found.append(Round(ours.p50_ms, request.p50_ms, percentile_ms(alone, 0.5), both.p50_ms))
                print(f"round {number}: {line(copies.name, found[-1:])}", flush=True)
    return found


def _bare_requests(port: int, pid: int, seconds: float) -> Job:
    return Job(port, pid, ["rt1_" + "r" * 72], 1, seconds, form=FORM)


def line(name: str, rounds: Sequence[Round]) -> str:
    refresh, request, transaction, in_one = (
        statistics.median(getattr(each, part) for each in rounds)
        for part in ("refresh", "request", "transaction", "in_one")
    )
    ours = [each.refresh for each in rounds]
    return (
        f"{name:10} refresh {refresh:.3f} ms, bare request {request:.3f} ms, transaction {transaction:.3f} ms:"
        f" {spread(ours, [each.parts for each in rounds])} of the two together;"
        f" in one process {in_one:.3f} ms: {spread(ours, [each.in_one for each in rounds])}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure on the stores that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of requests, in each run: %(default)s")
    parser.add_argument("--transactions", type=int, default=2000, help="in each round: %(default)s")
    parser.add_argument("--stores", nargs="+", choices=["sqlite", "postgres"], default=["sqlite", "postgres"])
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as scratch, ExitStack() as stack:
        for name in asked.stores:
            if name == "sqlite":
                copies = on_sqlite(Path(scratch) / name)
            else:
                postgres = stack.enter_context(running(**DURABLE))
                assert postgres.process is not None
                pin(postgres.process.pid, 1)
                copies = on_postgres(Path(scratch) / name, postgres)
            print(line(copies.name, measure(copies, asked.rounds, asked.seconds, asked.transactions)), flush=True)


if __name__ == "__main__":
    main()
