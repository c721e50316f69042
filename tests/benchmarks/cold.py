"""Very many grants that no memory holds, beside what the bare store makes of them: `python -m tests.benchmarks.cold`.

In each round, on a store of few grants and on one of very many, with all of their grants in random order: our refreshes
by servers that remember none, over 64 connections; and, without request and rule, bare durable transactions of 64, by
plain SQL on one connection to a copy. A transaction reads what a refresh of a forgotten grant reads, head and private
row, and writes what it writes: two events, and the head. Where there are two cores, servers and transactions run on the
first, the client and PostgreSQL on the second. The files are in the system's memory, page by page (`page_cache.py`).

Before anything counts, each grant is refreshed once on either. Quote, for either, how much of the refreshes a second of
few grants is left with very many: what the store loses by itself is lost to whoever stands on it. After each run the
store must hold two events for each refresh.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import psycopg

from ledger.recorders.rows import StreamKey
from tests.benchmarks.clients import CLIENTS
from tests.benchmarks.latency import on_first_core
from tests.benchmarks.latency_rows import BareOnSQLite, events_on
from tests.benchmarks.load import ALL_SECONDS_MAX
from tests.benchmarks.nodes import DURABLE, spread
from tests.benchmarks.page_cache import DATABASE_FOLDER, Files, files_in, read_in, read_in_anew
from tests.benchmarks.peers_processes import pin
from tests.benchmarks.peers_sides import TOKENS, Stage, fill, taken
from tests.benchmarks.refresh import CONNECTIONS, by_secret, check_events, drive, events_in, ledger
from tests.postgres import Server as Postgres
from tests.postgres import running
from tests.servers import Server

BODIES = ("r" * 540, "s" * 520)
"""As long as the two events of a refresh are."""

GRANTS = "SELECT id FROM streams WHERE name >= 'grant:' AND name < 'grant;'"
FOUND = (
    "SELECT s.id, s.v, s.position, s.state, p.nonce, p.salt FROM streams s"
    " LEFT JOIN private_grants p ON p.stream = s.id WHERE s.id "
)


class Bare(Protocol):
    """A connection that refreshes grants without any rule: all of them in one durable transaction."""

    def grants(self) -> list[StreamKey]: ...
    def refresh(self, grants: Sequence[StreamKey]) -> int: ...
    def close(self) -> None: ...


class SQLiteAlone(BareOnSQLite):
    """One connection to a file, with our settings."""

    def grants(self) -> list[StreamKey]:
        return [id for (id,) in self._connection.execute(GRANTS)]

    def refresh(self, grants: Sequence[StreamKey]) -> int:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        position = connection.execute("SELECT max(position) FROM events").fetchone()[0]
        found = connection.execute(f"{FOUND}IN (SELECT value FROM json_each(?))", (json.dumps(grants),)).fetchall()
        events, heads = [], []
        for id, v, back, state, _, _ in found:
            first, second = position + 1, position + 2
            events += [(first, id, v + 1, back, BODIES[0]), (second, id, v + 2, first, BODIES[1])]
            heads.append((v + 2, second, random.randbytes(32), state, id))
            position = second
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", events)
        connection.executemany("UPDATE streams SET v = ?, position = ?, head = ?, state = ? WHERE id = ?", heads)
        connection.execute("COMMIT")
        return len(found)


class PostgreSQLAlone:
    """One connection to a database. A transaction is two prepared statements, one that reads and one that writes."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("SET plan_cache_mode = force_generic_plan")
        self._connection.execute("SET enable_seqscan = off")

    def grants(self) -> list[StreamKey]:
        return [str(id) for (id,) in self._connection.execute(GRANTS)]

    def refresh(self, grants: Sequence[StreamKey]) -> int:
        connection = self._connection
        found = connection.execute(f"{FOUND}= ANY (%s::uuid[])", (list(grants),), prepare=True).fetchall()
        ids, versions, backs, states = zip(*(each[:4] for each in found), strict=True)
        heads = [random.randbytes(32) for _ in found]
        done = connection.execute(
            "WITH given AS (SELECT * FROM unnest(%s::uuid[], %s::int[], %s::bigint[], %s::bytea[], %s::bytea[])"
            " AS given (id, v, back, state, head)), written AS (INSERT INTO events (position, stream, v, back, body)"
            " SELECT back + n, id, v + n, back + n - 1, CASE n WHEN 1 THEN %s ELSE %s END"
            " FROM given, generate_series(1, 2) n)"
            " UPDATE streams s SET v = given.v + 2, position = given.back + 2, head = given.head, state = given.state"
            " FROM given WHERE s.id = given.id",
            (list(ids), list(versions), list(backs), list(states), heads, *BODIES),
            prepare=True,
        )
        return done.rowcount

    def close(self) -> None:
        self._connection.close()


@dataclass
class Stock:
    """A store of so many grants, and a copy of it for the bare transactions. `figures` are refreshes a second, round by
    round: ours and bare ones; `files` those of both."""

    grants: int
    server: Server
    tokens: list[str]
    events: Callable[[], int]
    bare: Bare
    bare_events: Callable[[], int]
    files: Files
    waiting: deque[StreamKey] = field(default_factory=deque)
    figures: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def ours(self, seconds: float, answers_max: int | None = None) -> float:
        read_in(self.files())
        before = self.events()
        job = by_secret(self.server, self.tokens, min(CONNECTIONS, self.grants), seconds)
        found = drive(replace(job, answers_max=answers_max))
        check_events(self.events() - before, found.answers)
        self.tokens = found.tokens
        return found.per_second

    def alone(self, seconds: float, refreshes_max: int | None = None) -> float:
        if not self.waiting:
            grants = self.bare.grants()
            random.shuffle(grants)
            self.waiting.extend(grants)
        read_in(self.files())
        before, done, began = self.bare_events(), 0, time.perf_counter()
        with on_first_core():
            while time.perf_counter() - began < seconds and (refreshes_max is None or done < refreshes_max):
                some = [self.waiting.popleft() for _ in range(min(CONNECTIONS, self.grants))]
                done += self.bare.refresh(some)
                self.waiting.extend(some)
        ended = time.perf_counter()
        check_events(self.bare_events() - before, done)
        return done / (ended - began)


@contextmanager
def on_sqlite(folder: Path, grants: int) -> Iterator[Stock]:
    stage = Stage(0, f"cold-{grants}", grants, is_remembered=False)
    place, copy = folder / "token-ledger-sqlite" / stage.name, folder / f"bare-{grants}"
    if stage.begin(place):
        fill(Server(place, clients=CLIENTS), stage)
    copy.mkdir()
    try:
        for file in place.glob("token-ledger.db*"):
            shutil.copy(file, copy)
        files = [place / "token-ledger.db", copy / "token-ledger.db"]
        read_in_anew(files)
        with ledger(place, twin=stage.twin) as server, closing(SQLiteAlone(copy / "token-ledger.db")) as bare:
            tokens = taken(place)
            stock = Stock(
                grants, server, tokens, lambda: events_in(place), bare, lambda: events_in(copy), lambda: files
            )
            yield stock
        (place / TOKENS).write_text("\n".join(stock.tokens) + "\n", "ascii")
    finally:
        shutil.rmtree(copy)


@contextmanager
def on_postgres(folder: Path, grants: int, postgres: Postgres) -> Iterator[Stock]:
    stage, place = Stage(0, "cold", grants, is_remembered=False), folder / f"pg-{grants}"
    url = postgres.create_database()
    settings = {"DATABASE_URL": postgres.over_tcp(url)}
    stage.begin(place)
    fill(Server(place, clients=CLIENTS, settings=settings), stage)
    copy = postgres.create_database(url.partition("?")[0].rpartition("/")[2])
    files = files_in(*(_folder_of(each) for each in (url, copy)))
    read_in_anew(files())
    with (
        ledger(place, settings=settings, twin=stage.twin) as server,
        closing(PostgreSQLAlone(postgres.over_tcp(copy))) as bare,
    ):
        tokens = taken(place)
        yield Stock(grants, server, tokens, lambda: events_on(url), bare, lambda: events_on(copy), files)


def _folder_of(url: str) -> Path:
    with closing(psycopg.connect(url)) as connection:
        return Path(*connection.execute(DATABASE_FOLDER).fetchone() or ())


def measure(name: str, few: Stock, many: Stock, rounds: int, seconds: float) -> list[str]:
    """All rounds on one kind of store, after each grant was refreshed once: what is to be said of them. The first
    change of a row, of a page that was read in, or after PostgreSQL's last check-point costs what no later one does."""
    for stock in (few, many):
        stock.ours(ALL_SECONDS_MAX, stock.grants)
        stock.alone(ALL_SECONDS_MAX, stock.grants)
    for number in range(1, rounds + 1):
        for stock in (few, many) if number % 2 else (many, few):
            for kept, figure in zip(stock.figures, (stock.ours(seconds), stock.alone(seconds)), strict=True):
                kept.append(figure)
        print(f"round {number}:", *lines(name, few, many, -1), sep="\n  ", flush=True)
    return lines(name, few, many)


def lines(name: str, few: Stock, many: Stock, first: int = 0) -> list[str]:
    found = []
    for what, in_few, in_many in zip(("refreshes", "bare transactions of 64"), few.figures, many.figures, strict=True):
        one, other = (sorted(each[first:])[len(each[first:]) // 2] for each in (in_few, in_many))
        ratio = spread(in_many[first:], in_few[first:])
        found.append(
            f"{name}, {what}: {one:,.0f}/s of {few.grants:,} grants, {other:,.0f}/s of {many.grants:,}: {ratio}"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure on the stores that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run: %(default)s")
    parser.add_argument("--grants", type=int, nargs=2, default=[1000, 1_000_000], metavar=("FEW", "MANY"))
    parser.add_argument("--stores", nargs="+", choices=["sqlite", "postgres"], default=["sqlite", "postgres"])
    parser.add_argument("--folder", type=Path, help="SQLite's stores are kept there: it may be that of `peers`")
    asked = parser.parse_args(arguments)
    for name in asked.stores:
        with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as scratch, ExitStack() as stack:
            if name == "sqlite":
                few, many = (
                    stack.enter_context(on_sqlite(asked.folder or Path(scratch), grants)) for grants in asked.grants
                )
            else:
                postgres = stack.enter_context(running(**DURABLE))
                assert postgres.process is not None
                pin(postgres.process.pid, 1)
                few, many = (
                    stack.enter_context(on_postgres(Path(scratch), grants, postgres)) for grants in asked.grants
                )
            print(*measure(name, few, many, asked.rounds, asked.seconds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
