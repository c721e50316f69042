"""What grants and refreshes take on PostgreSQL: bytes of each table, of its log, CPU seconds, and a rebuild's time.

`python -m tests.benchmarks.sizes --grants 100000`. In process, without HTTP, 64 refreshes at a time, every grant once
in a shuffled order: what is counted is the store's share. Then a few that are far from each other, right after a
check-point: the page of nearly each of their heads goes into the log as a whole. The figures of the guide to scaling
were made with it.
"""

import argparse
import asyncio
import random
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import uvloop

from api.clients_file import parsed
from ledger.answers import Caller, Source
from ledger.application import Ledger, Options
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.randomness import system_randomness
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.rows import Reads
from projections import INLINE
from projections.rebuild import Heal, rebuild
from tests.benchmarks.clients import CLIENTS, SCOPE
from tests.bulk import issue_many, persons
from tests.postgres import Server, running

AT_ONCE = 64
FAR_APART = 50
"""One grant in so many is refreshed after a check-point: as many as in half an hour, where each is once a day."""

_TABLES = "SELECT relname, pg_total_relation_size(relid) FROM pg_stat_user_tables ORDER BY relname"
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
_HEAP = "SELECT pg_relation_size('events')"
_UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'streams'"


class Database:
    """What is asked of the database server beside the ledger."""

    def __init__(self, server: Server, url: str) -> None:
        self._server = server
        self._url = url

    def asked(self, statement: str) -> list[tuple[object, ...]]:
        with closing(psycopg.connect(self._url, autocommit=True)) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def tables(self) -> dict[str, int]:
        return {str(name): int(str(size)) for name, size in self.asked(_TABLES)}

    def wal(self) -> int:
        return int(str(self.asked(_WAL)[0][0]))

    def cpu_seconds(self) -> float:
        """CPU of all of the server's processes that still run."""
        assert self._server.process is not None
        first = self._server.process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        ticks = 0
        for pid in (first, *children):
            with suppress(FileNotFoundError, ProcessLookupError):  # one that has ended just now
                told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(told[11]) + int(told[12])
        return ticks / 100


def shown(what: str, before: Mapping[str, int], after: Mapping[str, int], count: int) -> None:
    grown = {name: (size - before.get(name, 0)) / count for name, size in after.items()}
    print(f"{what}: {sum(grown.values()):,.0f} bytes each, all indexes included")
    for name, each in sorted(grown.items(), key=lambda item: -item[1]):
        if each >= 1:
            print(f"    {name:<20} {each:8,.0f}")


async def measured(server: Server, grants: int, rounds: int) -> None:
    """Issue grants, then refresh each of them once a round."""
    url = server.create_database()
    asked = Database(server, url)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        ring = KeyRing.create(keys)
        store = PostgresStore(url, INLINE)
        store.init(ring.ring_id)
        store.open(ring.ring_id)
        ledger = await Ledger.open(
            *(store, ring, keys, HeadFile(Path(folder) / "head"), Options(request_timeout_seconds=60)),
            clock=lambda: time.time_ns() // 1000,
            randomness=system_randomness(),
        )
        await ledger.operators.apply(parsed(CLIENTS).clients, [])
        asked.asked("CHECKPOINT")
        before, wal = asked.tables(), asked.wal()
        made = [t async for some in issue_many(ledger, persons(grants, client_id="www", scope=SCOPE)) for t in some]
        asked.asked("VACUUM")
        shown(f"{grants:,} grants", before, asked.tables(), grants)
        print(f"    log of the server    {(asked.wal() - wal) / grants:8,.0f}")
        for number in range(1, rounds + 1):
            random.Random(number).shuffle(made)
            asked.asked("CHECKPOINT")
            before, wal, ours, theirs = asked.tables(), asked.wal(), _own_seconds(), asked.cpu_seconds()
            began = time.monotonic()
            made = await _refreshed(ledger, made)
            seconds = time.monotonic() - began
            theirs, ours = asked.cpu_seconds() - theirs, _own_seconds() - ours
            shown(f"round {number}", before, asked.tables(), grants)
            print(f"    log of the server    {(asked.wal() - wal) / grants:8,.0f}")
            print(
                f"    CPU ms a refresh     {ours / grants * 1000:8.3f} ledger, {theirs / grants * 1000:.3f} PostgreSQL"
            )
            print(f"    refreshes a second   {grants / seconds:8,.0f}, heads (updated, of them in place):", end=" ")
            print(*asked.asked(_UPDATES), flush=True)
        ((heap,),) = asked.asked(_HEAP)
        print(f"events, without indexes: {int(str(heap)) / asked.tables()['events']:.3f} of their bytes")
        await _far_apart(asked, ledger, made[: max(1, grants // FAR_APART)])
        await _rebuilt(asked, store)
        await ledger.close()


async def _far_apart(asked: Database, ledger: Ledger, some: list[str]) -> None:
    asked.asked("CHECKPOINT")
    wal = asked.wal()
    await _refreshed(ledger, some)
    print(f"{len(some):,} grants far apart: {(asked.wal() - wal) / len(some):,.0f} bytes of log a refresh")


async def _rebuilt(asked: Database, store: PostgresStore) -> None:
    """Nothing differs, so nothing is healed: this is what looking at everything takes."""
    ours, theirs, began = _own_seconds(), asked.cpu_seconds(), time.monotonic()
    found = await asyncio.to_thread(rebuild, store.settled, store.inline, _nothing_to_heal)
    seconds, ours, theirs = time.monotonic() - began, _own_seconds() - ours, asked.cpu_seconds() - theirs
    assert not found.difference_count, found.differences
    cores = f"{ours / seconds:.2f} cores of ours, {theirs / seconds:.2f} of PostgreSQL"
    print(f"rebuild: {found.events:,} events, {found.events / seconds:,.0f} a second, with {cores}")


def _nothing_to_heal(derive: Callable[[Reads], Heal]) -> None:
    raise AssertionError("something differs from what was recorded")


async def _refreshed(ledger: Ledger, made: list[str]) -> list[str]:
    caller = Caller(client_id="www", authenticated=True, auth_method="client_secret_post")
    source = Source("127.0.0.1", "sizes")
    found: list[str] = []
    for start in range(0, len(made), AT_ONCE):
        some = made[start : start + AT_ONCE]
        answers = await asyncio.gather(*(ledger.refresh(caller, source, each, None, None) for each in some))
        found += [answer.refresh_token or "" for answer in answers]
    return found


def _own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure on a PostgreSQL of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grants", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--wal-compression", choices=["off", "on"], default="off")
    told = parser.parse_args(arguments)
    if told.grants < 1:
        parser.error(f"argument --grants: at least one is needed, not {told.grants}")
    settings = {"fsync": "on", "full_page_writes": "on", "max_wal_size": "4GB", "shared_buffers": "512MB"}
    with running(**settings, wal_compression=told.wal_compression) as server:
        uvloop.run(measured(server, told.grants, told.rounds))


if __name__ == "__main__":
    main()
