"""PostgreSQL killed, connections cut, a worker frozen, under load of two workers: nothing acknowledged is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random

import psycopg
import pytest

from tests.chaos.chains import Chain, chains_of, faults_of
from tests.chaos.files import check_files, report
from tests.chaos.load import Load, converge
from tests.chaos.processes import TroubledServer
from tests.engines import standing_for
from tests.postgres import Server as Postgres
from tests.postgres import running
from tests.postgres_proxy import Proxy, proxied
from tests.server_process import eventually
from tests.servers import Server

SEED = 20_261_126
CHAINS = 24
BACK_WITHIN_SECONDS = 10.0
_CUT = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE application_name LIKE 'token-ledger%' AND backend_type = 'client backend'"
)


_SILENT = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'token-ledger%'"
    " AND state LIKE 'idle in transaction%' AND backend_xid IS NOT NULL AND state_change < now() - interval '0.5 s'"
)


@contextmanager
def served(
    folder: Path,
    postgres: Postgres,
    after: Callable[[str], object] = lambda url: None,
    *,
    twin: str | None = None,
    strict: int = 0,
) -> Iterator[tuple[Proxy, Server, list[Chain]]]:
    """Two workers on a new database by way of a proxy, and clients; at the end every client asks once more, and the
    store is whole. `after` is done to the database before it is looked at; `strict` clients may not even retry."""
    url = postgres.create_database()
    with proxied(postgres.port) as way:
        through = postgres.over_tcp(url).replace(f":{postgres.port}/", f":{way.port}/")
        settings = {"DATABASE_URL": through, "WORKERS": "2", "LOG_LEVEL": "info"}
        server = TroubledServer(folder, twin=twin, settings=settings)
        try:
            server.start()
            eventually(lambda: server.log().count(" event=serving ") >= 2, what="both workers")
            chains = chains_of(server, CHAINS) + [Chain(server, server.issue("www")) for _ in range(strict)]
            yield way, server, chains
            eventually(lambda: {200} == {server.health("/readyz") for _ in range(6)}, what="readiness")
            report(faults_of(chains))
            converge([chain for chain in chains if chain.grant.client != "www"])
            report(faults_of(chains))
            assert 0 == server.terminate(), server.tail()
        finally:
            server.kill()
        server.check_log()
        after(url)
        with standing_for(server.database, url):
            check_files(server.database, chains)


def goes_on(load: Load) -> float:
    """Refreshes succeed again, by themselves, in time (I-24). How long that took, in seconds."""
    began, before = time.monotonic(), load.refreshes
    eventually(lambda: load.refreshes > before, within_seconds=BACK_WITHIN_SECONDS, what="a refresh")
    first = time.monotonic() - began
    eventually(lambda: load.refreshes > before + CHAINS, within_seconds=BACK_WITHIN_SECONDS, what="refreshes")
    return first


def figures(record: Callable[[str, object], None], chains: list[Chain]) -> None:
    """What it came to. That nothing of it is lost is known when the store was looked at."""
    record("refreshes acknowledged", sum(chain.acknowledged for chain in chains))
    record("answers of 503", sum(chain.statuses[503] for chain in chains))
    record("unanswered", sum(chain.unanswered for chain in chains))


def test_a_killed_server_that_comes_back(
    tmp_path: Path, count: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """I-09, I-10, I-24: all its processes at once, or its postmaster alone. No acknowledged rotation is lost, no client
    is refused, refreshes succeed within 10 s."""
    kills, longest = count(2, 20), 0.0
    with running() as postgres, served(tmp_path, postgres) as (_, _, chains):
        with Load(chains) as load:
            chance = Random(SEED)
            for number in range(kills):
                time.sleep(chance.uniform(0.2, 0.6))
                if number % 2:
                    postgres.kill()
                    time.sleep(chance.uniform(0.0, 1.0))
                else:
                    postgres.kill_postmaster()
                postgres.start()
                longest = max(longest, goes_on(load))
        record_property("kills of PostgreSQL", kills)
        record_property("seconds at the longest until a refresh succeeded", round(longest, 2))
        figures(record_property, chains)


def cut_one(way: Proxy) -> None:
    """Cut the next connection that a batch is written on."""
    before, way.cuts = way.cut, 1
    eventually(lambda: way.cut > before, what="a batch to cut")


def cut_commits(way: Proxy, load: Load, cuts: int) -> None:
    """Let so many batches lose their connections while somebody waits for them: answered, under way, not begun."""
    chance = Random(SEED)
    for number in range(cuts):
        way.cut_when = ("after", "during", "before")[number % 3]
        cut_one(way)
        time.sleep(chance.uniform(0.0, 0.1))
    goes_on(load)


def test_commits_whose_answers_are_cut(
    tmp_path: Path, postgres: Postgres, count: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """I-10, I-11: two in three may have been durable. Whoever waits for one is told what became of it: nobody has two
    successors, and who is never served a retry (`strict`) is not taken for a thief."""
    cuts = count(18, 300)
    with served(tmp_path, postgres, strict=6) as (way, _, chains):
        with Load(chains) as load:
            cut_commits(way, load, cuts)
        assert cuts == way.cut
        record_property("commits cut, a third of them before they were sent", cuts)
        figures(record_property, chains)


def test_a_lost_answer_taken_for_a_failure_is_caught(tmp_path: Path, postgres: Postgres) -> None:
    """The broken twin: what was not answered is believed not to have happened, and is done again."""

    twin = "takes_silence_for_failure"

    def cut_some() -> None:
        with served(tmp_path, postgres, twin=twin, strict=24) as (way, _, chains), Load(chains) as load:
            cut_commits(way, load, 12)

    with pytest.raises(AssertionError, match=r"400 .*reuse_detected"):
        cut_some()


@pytest.mark.usefixtures("only_full")
def test_connections_that_are_cut_at_any_moment(
    tmp_path: Path, postgres: Postgres, count: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """I-10, I-11: whether a batch happened whose answer was lost is found out; nobody has two successors."""
    with served(tmp_path, postgres) as (_, _, chains), Load(chains) as load:
        chance, cut = Random(SEED), 0
        with closing(psycopg.connect(postgres.url("postgres"), autocommit=True)) as connection:
            for _ in range(count(20, 200)):
                time.sleep(chance.uniform(0.01, 0.2))
                ((ended,),) = connection.execute(_CUT).fetchall()
                cut += ended
        goes_on(load)
        record_property("connections cut", cut)
        assert cut > 10


def freeze_in_turn(postgres: Postgres, server: Server, load: Load, times: int) -> None:
    """Freeze one worker after the other, whatever it is at, and let the other one go on."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    with closing(psycopg.connect(postgres.url("postgres"), autocommit=True)) as connection:
        for number in range(times):
            frozen = int(children[number % 2])
            time.sleep(0.2)
            os.kill(frozen, signal.SIGSTOP)
            try:
                before = load.refreshes
                time.sleep(1.5)
                assert load.refreshes > before + 2, "the other worker waited for the frozen one"
                assert [(0,)] == connection.execute(_SILENT).fetchall(), "a transaction waits for a frozen worker"
            finally:
                with suppress(ProcessLookupError):
                    os.kill(frozen, signal.SIGCONT)


def test_a_frozen_worker_holds_nobody_else_up(
    tmp_path: Path, postgres: Postgres, count: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """Whatever it held when it was frozen, no lock was among it: those who are served by the other one go on, and so
    does it afterwards."""
    freezes = count(3, 30)
    with served(tmp_path, postgres) as (_, server, chains):
        with Load(chains) as load:
            freeze_in_turn(postgres, server, load, freezes)
            longest = goes_on(load)
        record_property("freezes of a worker", freezes)
        record_property("seconds until a refresh succeeded after the last", round(longest, 2))
        figures(record_property, chains)


@pytest.mark.usefixtures("only_full")
def test_a_worker_that_writes_step_by_step_is_caught(tmp_path: Path, postgres: Postgres) -> None:
    """The broken twin: it holds the lock on authority and the rows it writes while it is at something else."""

    def freeze_some() -> None:
        with served(tmp_path, postgres, twin="commits_in_steps") as (_, server, chains), Load(chains) as load:
            freeze_in_turn(postgres, server, load, 6)

    with pytest.raises(AssertionError, match="frozen"):
        freeze_some()


def test_a_rotation_that_is_lost_is_caught(tmp_path: Path, postgres: Postgres) -> None:
    """The broken twin: one client's last redemption is not there, as if it had never been made durable."""

    def lose(url: str) -> None:
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            connection.execute("DELETE FROM events WHERE position >= (SELECT max(position) FROM streams WHERE v > 9)")

    def load_and_lose() -> None:
        with served(tmp_path, postgres, lose) as (_, _, chains), Load(chains) as load:
            eventually(lambda: load.refreshes > 10 * CHAINS, what="refreshes")

    with pytest.raises(AssertionError):
        load_and_lose()
