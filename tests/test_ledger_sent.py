"""What the event loop waits for is answered when it is durable, whoever has to wait in the end (I-02, I-11)."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from ledger.batch import Batch
from ledger.commits import Commits
from ledger.recorders import postgres_moves
from ledger.recorders.errors import StoreError
from ledger.sent import PATIENCE_SECONDS
from tests.appending import Appending
from tests.engines import url_of
from tests.ledgers import Opened, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

WRITTEN = "      WHERE lost IS NULL OR stream = ANY (_held);\nEND\n"
"""How the function ends."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[StoreError | None]:
    """What the thread was left, batch by batch: the error that the loop had met."""
    found: list[StoreError | None] = []
    leave = Commits._leave

    def noted(self: Commits, batch: Batch, problem: StoreError | None) -> None:
        found.append(problem)
        leave(self, batch, problem)

    monkeypatch.setattr(Commits, "_leave", noted)
    return found


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the function that writes refreshes take its time once all is written."""
    slower = WRITTEN.replace("END\n", f"  PERFORM pg_sleep({seconds});\nEND\n")
    Appending(postgres_moves, monkeypatch).let(WRITTEN, slower)


async def sleeping(opened: Opened) -> int:
    """Wait until the function sleeps; the process of the server that does."""
    question = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
        async with asyncio.timeout(20):
            while (row := connection.execute(question).fetchone()) is None:
                await asyncio.sleep(0.01)
    return int(row[0])


async def test_a_plain_refresh_wakes_no_thread(tmp_path: Path, left: list[StoreError | None]) -> None:
    """Its answer is waited for where it is told."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        left.clear()
        await opened.chain(answer, 5)
        assert [] == left


async def test_nobody_is_answered_before_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[StoreError | None]
) -> None:
    """I-02: written and not committed is nothing yet. Here the loop waits."""
    slow(monkeypatch, PATIENCE_SECONDS / 4)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        left.clear()
        refreshing = asyncio.ensure_future(opened.refresh(answer))
        await sleeping(opened)
        assert not refreshing.done()
        assert 1 == opened.topics(answer).count("token_rotated")
        await refreshing
        assert 2 == opened.topics(answer).count("token_rotated")
        assert [] == left


async def test_what_takes_long_is_left_to_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[StoreError | None]
) -> None:
    """The thread goes on waiting for the very answer: nothing is sent twice."""
    slow(monkeypatch, PATIENCE_SECONDS * 1.7)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        left.clear()
        again = await opened.refresh(answer)
        assert [None] == left
        assert again.refresh_token != answer.refresh_token
        assert 2 == opened.topics(answer).count("token_rotated")


async def test_a_connection_that_ends_meanwhile_is_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[StoreError | None]
) -> None:
    """I-11: what became of it is found out, here nothing; it is decided again, and answered once."""
    slow(monkeypatch, PATIENCE_SECONDS / 2)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        left.clear()
        refreshing = asyncio.ensure_future(opened.refresh(answer))
        pid = await sleeping(opened)
        with psycopg.connect(url_of(opened.path) or "", autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        await refreshing
        assert ["StoreUnreachable"] == [type(problem).__name__ for problem in left]
        assert 2 == opened.topics(answer).count("token_rotated")


async def test_who_ends_while_something_is_sent_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing answers who is in line, and leaves nothing on its way."""
    slow(monkeypatch, PATIENCE_SECONDS / 4)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        refreshing = asyncio.ensure_future(opened.refresh(answer))
        await sleeping(opened)
        assert await opened.ledger.commits.close()
        assert (await refreshing).refresh_token != answer.refresh_token
