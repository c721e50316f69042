"""What the event loop waits for is answered when it is durable, whoever has to wait in the end (I-02, I-11)."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import psycopg
import pytest
from psycopg import sql

from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.commits import Commits
from ledger.recorders import postgres_refresh
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_append import Told
from ledger.recorders.postgres_calls import Call
from ledger.refusals import Unavailable
from ledger.sent import PATIENCE_SECONDS, Sent
from tests.engines import url_of
from tests.ledgers import OPTIONS, Opened, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

WRITTEN = "  told := told || ' ' || base;\nEND\n"
"""How the function ends."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """What the thread was left, batch by batch: the error that the loop had met."""
    found: list[Exception | None] = []
    leave = Commits._leave

    def noted(self: Commits, batch: Batch, problem: Exception | None) -> None:
        found.append(problem)
        leave(self, batch, problem)

    monkeypatch.setattr(Commits, "_leave", noted)
    return found


class Begun(NamedTuple):
    """A ledger that has served a first refresh, and its answer."""

    opened: Opened
    answer: TokenAnswer


@pytest.fixture
async def begun(tmp_path: Path, left: list[Exception | None]) -> AsyncIterator[Begun]:
    """All that comes first is done: of it nothing is noted in `left`."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        left.clear()
        yield Begun(opened, answer)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits as long as it takes, however busy the machine is."""
    monkeypatch.setattr(Sent.leave, "__defaults__", (3600.0,))


def slow(opened: Opened, seconds: float) -> None:
    """Let the function that writes refreshes take its time from now on, once all is written."""
    at_its_end(opened, f"PERFORM pg_sleep({seconds});")


@contextmanager
def held(opened: Opened) -> Iterator[Callable[[], None]]:
    """Let the function sleep, once all is written, until this is called, or the block ends."""
    here = "(SELECT oid FROM pg_database WHERE datname = current_database())"
    is_held = (
        f"EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 7 AND objid = 7 AND database = {here})"
    )
    at_its_end(opened, f"WHILE {is_held} LOOP PERFORM pg_sleep(0.02); END LOOP;")
    with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(7, 7)")
        yield connection.close


def at_its_end(opened: Opened, statements: str) -> None:
    """Let the function that writes refreshes do this from now on, once all is written."""
    function = postgres_refresh.function()
    assert 1 == function.count(WRITTEN)
    slower = WRITTEN.replace("END\n", f"  {statements}\nEND\n")
    with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
        connection.execute(function.replace(WRITTEN, slower).encode())


async def sleeping(opened: Opened) -> int:
    """Wait until the function sleeps; the process of the server that does."""
    question = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
        async with asyncio.timeout(20):
            while (row := connection.execute(question).fetchone()) is None:
                await asyncio.sleep(0.01)
    return int(row[0])


async def test_a_plain_refresh_wakes_no_thread(begun: Begun, left: list[Exception | None]) -> None:
    """Its answer is waited for where it is told."""
    opened, answer = begun
    await opened.chain(answer, 5)
    assert [] == left


@pytest.mark.usefixtures("patient")
async def test_nobody_is_answered_before_it_is_durable(begun: Begun, left: list[Exception | None]) -> None:
    """I-02: written and not committed is nothing yet. Here the loop waits."""
    opened, answer = begun
    with held(opened):
        refreshing = asyncio.ensure_future(opened.refresh(answer))
        await sleeping(opened)
        assert not refreshing.done()
        assert 1 == opened.topics(answer).count("token_rotated")
    await refreshing
    assert 2 == opened.topics(answer).count("token_rotated")
    assert [] == left


async def test_what_takes_long_is_left_to_the_thread(begun: Begun, left: list[Exception | None]) -> None:
    """The thread goes on waiting for the very answer: nothing is sent twice."""
    opened, answer = begun
    slow(opened, PATIENCE_SECONDS * 1.7)
    again = await opened.refresh(answer)
    assert [None] == left
    assert again.refresh_token != answer.refresh_token
    assert 2 == opened.topics(answer).count("token_rotated")


@pytest.mark.usefixtures("patient")
async def test_a_connection_that_ends_meanwhile_is_the_threads(begun: Begun, left: list[Exception | None]) -> None:
    """I-11: what became of it is found out, here nothing; it is decided again, and answered once."""
    opened, answer = begun
    with held(opened), psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
        refreshing = asyncio.ensure_future(opened.refresh(answer))
        connection.execute("SELECT pg_terminate_backend(%s)", (await sleeping(opened),))
    await refreshing
    assert ["StoreUnreachable"] == [type(problem).__name__ for problem in left]
    assert 2 == opened.topics(answer).count("token_rotated")


@pytest.mark.usefixtures("patient")
async def test_who_ends_while_something_is_sent_waits_for_it(begun: Begun) -> None:
    """Closing answers who is in line, and leaves nothing on its way."""
    opened, answer = begun
    with held(opened) as let_go:
        refreshing = asyncio.ensure_future(opened.refresh(answer))
        await sleeping(opened)
        closing = asyncio.ensure_future(opened.ledger.commits.close())
        await asyncio.sleep(0)  # it has begun
        assert not refreshing.done()
        let_go()
        assert await closing
    assert (await refreshing).refresh_token != answer.refresh_token


async def test_who_ends_watches_no_longer(begun: Begun) -> None:
    """The descriptor of our own is given back."""
    opened, answer = begun
    await opened.refresh(answer)
    before = descriptors()
    assert await opened.ledger.commits.close()
    assert before - 1 == descriptors()


FAILS_LATE = """
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION late();
"""


@pytest.mark.usefixtures("appending")
async def test_a_commit_that_fails_answers_nobody(tmp_path: Path) -> None:
    """I-02: the server tells the row before it commits. What it says behind that counts, either way."""
    async with open_ledger(tmp_path, options=msgspec.structs.replace(OPTIONS, request_timeout_seconds=1)) as opened:
        answer = await opened.refresh(await opened.issue())
        with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
            connection.execute(FAILS_LATE)
            with pytest.raises(Unavailable):
                await opened.refresh(answer)
            assert 1 == opened.topics(answer).count("token_rotated")
            connection.execute("DROP TRIGGER late ON events")
        await opened.refresh(answer)
        assert 2 == opened.topics(answer).count("token_rotated")


async def test_whoever_believes_the_row_alone_answers_too_early(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above: the first result is taken for all of them."""
    outcome = Call._outcome

    def hasty(self: Call) -> Told:
        del self._results[1:]
        return outcome(self)

    monkeypatch.setattr(Call, "_outcome", hasty)
    opened, answer = begun
    with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
        connection.execute(FAILS_LATE)
    await opened.refresh(answer)
    assert 1 == opened.topics(answer).count("token_rotated"), "answered, and nothing is there"


async def test_a_defect_of_the_store_ends_the_process(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be told is unknown: nobody is left waiting, and nothing goes on."""

    def defect(self: PostgresStore) -> None:
        raise RuntimeError("defect")

    opened, answer = begun
    monkeypatch.setattr(PostgresStore, "arrived", defect)
    with pytest.raises(Unavailable):
        await opened.refresh(answer)
    assert ["the commit failed: RuntimeError"] == opened.fatal


async def test_where_the_loop_can_wait_for_no_more_the_thread_does(
    begun: Begun, left: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent all the same, and is answered when it is durable."""

    def none_left(*_: object) -> None:
        raise OSError("too many")

    opened, answer = begun
    of(opened)._forget()
    monkeypatch.setattr(of(opened), "_loop", Watching(none_left))
    before = descriptors()
    await opened.chain(answer, 3)
    assert [None] * 3 == left
    assert descriptors() <= before


class Watching:
    """The running loop, but for what it is to do in place of watching, or beside it."""

    def __init__(self, add_reader: Callable[..., None]) -> None:
        self._add_reader = add_reader
        self.time = asyncio.get_running_loop().time
        self.remove_reader = asyncio.get_running_loop().remove_reader
        self.watched = 0

    def add_reader(self, descriptor: int, *more: object) -> None:
        self.watched += 1
        self._add_reader(descriptor, *more)


def of(opened: Opened) -> Sent:
    """Who waits for what is sent."""
    sent = opened.ledger.commits._sent
    assert sent is not None
    return sent


def watching(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Watching:
    """Count from now on how often it begins to watch."""
    counted = Watching(asyncio.get_running_loop().add_reader)
    monkeypatch.setattr(of(opened), "_loop", counted)
    return counted


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def test_one_connection_is_watched_once(
    begun: Begun, left: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many batches go through it; what a thread has asked in between is nothing for the loop, which begins anew
    at most once where it has seen that there was an answer before the thread had read it."""
    opened, answer = begun
    answer = await opened.refresh(answer)
    counted = watching(opened, monkeypatch)
    answer = await opened.chain(answer, 20)
    assert (0, []) == (counted.watched, left)
    await opened.issue("another")
    answer = await opened.chain(answer, 5)
    assert counted.watched in (0, 1)
    assert [None] == left


async def test_a_connection_that_ends_while_nobody_waits_is_watched_no_longer(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end can be read without end. Our descriptor goes with it, and the next connection is watched in its place."""
    opened, answer = begun
    answer = await opened.refresh(answer)
    counted, before = watching(opened, monkeypatch), descriptors()
    assert isinstance(opened.store, PostgresStore)
    for turn in range(3):
        assert opened.store._connection is not None
        pid = opened.store._connection.info.backend_pid
        with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        async with asyncio.timeout(20):
            while of(opened)._wire is not None:
                await asyncio.sleep(0.01)
        answer = await opened.refresh(answer)
        answer = await opened.refresh(answer)
        assert 2 * turn + 2 == counted.watched  # nobody had told the store of the end
        assert descriptors() <= before


async def test_a_connection_that_was_given_up_is_watched_no_longer(begun: Begun, left: list[Exception | None]) -> None:
    """Its server is frozen, and says nothing of its end: the next connection is watched in its place all the same."""
    opened, answer = begun
    answer = await opened.refresh(answer)
    assert isinstance(opened.store, PostgresStore)
    assert opened.store._connection is not None
    pid, before = opened.store._connection.info.backend_pid, descriptors()
    os.kill(pid, signal.SIGSTOP)
    try:
        opened.store._drop()
        await opened.chain(answer, 3)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [] == left
    assert descriptors() <= before


async def test_a_descriptor_of_the_connections_own_may_become_another(begun: Begun) -> None:
    """A thread that has closed the connection gives its number to whoever opens something next: what is watched is
    still the connection's, and no event of the other is taken for it."""
    opened, answer = begun
    answer = await opened.refresh(answer)
    assert isinstance(opened.store, PostgresStore)
    assert opened.store._connection is not None
    number = opened.store._connection.pgconn.socket
    opened.store._drop()
    mine, others = socket.socketpair()
    with mine, others:
        assert number in (mine.fileno(), others.fileno())
        mine.send(b"x")
        others.send(b"x")
        answer = await opened.chain(answer, 3)
        assert (b"x", b"x") == (mine.recv(2), others.recv(2))
    assert 5 == opened.topics(answer).count("token_rotated")


async def test_a_batch_reads_what_is_true_behind_its_lock(tmp_path: Path) -> None:
    """I-06: READ COMMITTED, though somebody has set another level for the whole database."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
            ((name,),) = connection.execute("SELECT current_database()").fetchall()
            level = "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'"
            connection.execute(sql.SQL(level).format(sql.Identifier(name)))
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert isinstance(opened.store, PostgresStore)
        assert [("read committed",)] == opened.store._connected().execute("SHOW transaction_isolation").fetchall()
        await opened.refresh(answer)
