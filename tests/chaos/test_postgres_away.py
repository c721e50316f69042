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
from tests.engines import standing_for
from tests.postgres import Server as Postgres
from tests.postgres import running
from tests.servers import Server, eventually

SEED = 20_261_126
CHAINS = 24
BACK_WITHIN_SECONDS = 10.0
_CUT = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE application_name LIKE 'token-ledger%' AND backend_type = 'client backend'"
)


@contextmanager
def served(
    folder: Path, after: Callable[[str], object] = lambda url: None
) -> Iterator[tuple[Postgres, Server, list[Chain]]]:
    """A PostgreSQL, two workers on it, and clients; at the end every client asks once more, and the store is whole.
    `after` is done to the database before it is looked at."""
    with running() as postgres:
        url = postgres.create_database()
        settings = {"DATABASE_URL": postgres.over_tcp(url), "WORKERS": "2", "LOG_LEVEL": "info"}
        server = Server(folder, settings=settings)
        try:
            server.start()
            eventually(lambda: server.log().count(" event=serving ") >= 2, what="both workers")
            chains = chains_of(server, CHAINS)
            yield postgres, server, chains
            eventually(lambda: {200} == {server.health("/readyz") for _ in range(6)}, what="readiness")
            converge(chains)
            report(faults_of(chains))
            assert 0 == server.terminate(), server.tail()
        finally:
            server.kill()
        server.check_log()
        after(url)
        with standing_for(server.database, url):
            check_files(server.database, chains)


def goes_on(load: Load) -> None:
    """Refreshes succeed again, by themselves, in time (I-24)."""
    before = load.refreshes
    eventually(lambda: load.refreshes > before + CHAINS, within_seconds=BACK_WITHIN_SECONDS, what="refreshes")


def test_a_killed_server_that_comes_back(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """I-09, I-10, I-24: no acknowledged rotation is lost, no client is refused, refreshes succeed within 10 s."""
    with served(tmp_path) as (postgres, _, chains), Load(chains) as load:
        chance = Random(SEED)
        for _ in range(count(2, 20)):
            time.sleep(chance.uniform(0.2, 0.6))
            postgres.kill()
            time.sleep(chance.uniform(0.0, 1.0))
            postgres.start()
            goes_on(load)


def test_connections_that_are_cut_at_any_moment(
    tmp_path: Path, count: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """I-10, I-11: whether a batch happened whose answer was lost is found out; nobody has two successors."""
    with served(tmp_path) as (postgres, _, chains), Load(chains) as load:
        chance, cut = Random(SEED), 0
        with closing(psycopg.connect(postgres.url("postgres"), autocommit=True)) as connection:
            for _ in range(count(20, 200)):
                time.sleep(chance.uniform(0.01, 0.2))
                ((ended,),) = connection.execute(_CUT).fetchall()
                cut += ended
        goes_on(load)
        record_property("connections cut", cut)
        assert cut > 10


def test_a_frozen_worker_holds_nobody_else_up(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """Whatever it held when it was frozen: those who are served by the other one go on, and so does it afterwards."""
    with served(tmp_path) as (_, server, chains), Load(chains) as load:
        assert server.process is not None
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        for number in range(count(4, 30)):
            frozen = int(children[number % 2])
            time.sleep(0.2)
            os.kill(frozen, signal.SIGSTOP)
            try:
                before = load.refreshes
                time.sleep(1.5)
                assert load.refreshes > before + 2, "the other worker waited for the frozen one"
            finally:
                with suppress(ProcessLookupError):
                    os.kill(frozen, signal.SIGCONT)
        goes_on(load)


def test_a_rotation_that_is_lost_is_caught(tmp_path: Path) -> None:
    """The broken twin: one client's last redemption is not there, as if it had never been made durable."""

    def lose(url: str) -> None:
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            connection.execute("DELETE FROM events WHERE position >= (SELECT max(position) FROM streams WHERE v > 9)")

    def load_and_lose() -> None:
        with served(tmp_path, lose) as (_, _, chains), Load(chains) as load:
            eventually(lambda: load.refreshes > 10 * CHAINS, what="refreshes")

    with pytest.raises(AssertionError):
        load_and_lose()
