"""Commits and the write-ahead log: it is moved after answers that are durable already, or cannot be (I-10, I-12)."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger import commits as commits_module
from ledger.answers import TokenAnswer
from ledger.recorders.errors import StoreError
from ledger.refusals import Unavailable
from tests.committing import BROKEN, FULL, HASTY, unavailable, until
from tests.faulty_store import Fault, FaultyStore, Held, faulty, instead
from tests.ledgers import Opened, check_ledger, open_ledger

pytestmark = pytest.mark.anyio


async def check_answered_before_the_checkpoint(opened: Opened, held: Held, within_seconds: float) -> None:
    issued = await opened.issue()
    faulty(opened).on_checkpoint.append(held)
    answer = await asyncio.wait_for(opened.refresh(issued), within_seconds)
    await held.arrival()
    commits = faulty(opened).commits
    following = asyncio.ensure_future(opened.refresh(answer))
    await asyncio.sleep(0.05)
    assert (answer.position, commits) == (opened.last_position(), faulty(opened).commits)
    assert not following.done()
    held.go_on.set()
    await following


async def test_nobody_who_was_committed_waits_for_the_log_to_be_moved(tmp_path: Path) -> None:
    """The check-point comes after the answer, which is durable before it; the next batch begins after it, for the
    connection is the check-point's until then."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        await check_answered_before_the_checkpoint(opened, Held(), 10)
    check_ledger(opened.path)


async def test_a_checkpoint_inside_the_commit_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: the log is moved before anybody is told."""
    commit = FaultyStore.commit

    def moving_the_log(self: FaultyStore) -> None:
        commit(self)
        if self.checkpoint_due():
            self.checkpoint()

    held = Held()
    monkeypatch.setattr(FaultyStore, "commit", moving_the_log)
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        with pytest.raises(TimeoutError):
            await check_answered_before_the_checkpoint(opened, held, 0.3)
        held.go_on.set()


async def check_heals(opened: Opened, issued: TokenAnswer) -> None:
    """Nobody has to ask: the store is served from again, as ready as before."""
    await until(lambda: opened.ledger.commits.stalled_seconds == 0)
    assert opened.ledger.readiness() is None
    await opened.refresh(issued)
    opened.check_memory()


async def test_nobody_waits_beyond_a_deadline_for_the_log_to_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs while the log is moved: who is in line is told at their deadline, whoever wants the connection
    for themselves too, and it is not used for them any more; the node is unready, and heals by itself."""
    monkeypatch.setattr(commits_module, "UNREADY_AFTER_SECONDS", 0.3)
    async with open_ledger(tmp_path, store=FaultyStore, options=HASTY) as opened:
        issued = await opened.issue()
        held, ran = Held(), list[int]()
        faulty(opened).on_checkpoint.append(held)
        answer = await opened.refresh(issued)
        await held.arrival()
        exclusive = asyncio.ensure_future(opened.ledger.commits.exclusively(lambda: ran.append(1)))
        async with asyncio.timeout(5):
            await unavailable(opened.refresh(answer))
            await unavailable(exclusive)
        assert "no commit has succeeded for 5 seconds" == opened.ledger.readiness()
        held.go_on.set()
        await check_heals(opened, answer)
        assert [] == ran
        await opened.ledger.commits.exclusively(lambda: ran.append(2))
        assert [2] == ran
    check_ledger(opened.path)


async def test_a_log_that_hangs_keeps_nobody_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in line is answered at their deadline, and the store is left alone: whoever touched it would hang too."""
    monkeypatch.setattr(commits_module, "HANGING_COMMIT_SECONDS", 0.2)
    async with open_ledger(tmp_path, store=FaultyStore, options=HASTY) as opened:
        held = Held()
        faulty(opened).on_checkpoint.append(held)
        answer = await opened.issue()
        await held.arrival()
        waiting = [
            asyncio.ensure_future(opened.ledger.commits.exclusively(lambda: None)),
            asyncio.ensure_future(opened.refresh(answer)),
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await opened.ledger.commits.close() is False
        assert [Unavailable] * 2 == [type(each.exception()) for each in waiting]
        held.go_on.set()
        await asyncio.sleep(0.05)
    check_ledger(opened.path)


async def test_nor_does_who_wanted_the_connection_and_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server's end does with whoever erases: nobody is left then who would give up at a deadline."""
    monkeypatch.setattr(commits_module, "HANGING_COMMIT_SECONDS", 0.2)
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        held, ran = Held(), list[int]()
        faulty(opened).on_checkpoint.append(held)
        await opened.issue()
        await held.arrival()
        cut_off = asyncio.ensure_future(opened.ledger.commits.exclusively(lambda: ran.append(1)))
        await asyncio.sleep(0)
        cut_off.cancel()
        opened.ledger.commits.end_within(0.2)
        try:
            async with asyncio.timeout(5):
                assert await opened.ledger.commits.close() is False
        finally:
            held.go_on.set()
        await asyncio.sleep(0.05)
    assert [] == ran
    check_ledger(opened.path)


@pytest.mark.parametrize("said", [FULL, BROKEN])
async def test_after_a_commit_that_failed_the_log_is_left_alone(tmp_path: Path, said: StoreError) -> None:
    """I-12: nothing is asked of a file that the system may lie about; and whoever was refused is not kept waiting."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued, held = await opened.issue(), Held()
        faulty(opened).on_commit.append(instead(said))
        faulty(opened).on_checkpoint.append(held)
        held.go_on.set()
        await unavailable(opened.refresh(issued))
        await asyncio.sleep(0.05)
        assert not held.reached.is_set()
        faulty(opened).on_checkpoint.clear()


class Failing:
    """A connection to a disk that fails everything alike."""

    def __init__(self, code: int) -> None:
        self.error = sqlite3.OperationalError("the disk says no")
        self.error.sqlite_errorcode = code

    def execute(self, sql: str) -> None:
        raise self.error


def failing_with(opened: Opened, code: int) -> Fault:
    """The check-point meets an error of the disk."""

    def fault(step: Callable[[], None]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faulty(opened), "_writer", Failing(code))
            step()

    return fault


async def test_a_log_that_cannot_be_moved_for_now_fails_nobody(tmp_path: Path) -> None:
    """A full disk, which may heal: what is durable stays so, and the log is moved later, by the same thread."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        answer = await opened.issue()
        for _ in range(3):
            faulty(opened).on_checkpoint.append(failing_with(opened, sqlite3.SQLITE_FULL))
            answer = await opened.refresh(answer)
        assert not faulty(opened).on_checkpoint
        await opened.refresh(answer)
    check_ledger(opened.path)


async def test_an_input_output_error_while_the_log_is_moved_ends_it(tmp_path: Path) -> None:
    """I-10: nothing that is read may be believed from then on, so nobody is answered any more; whoever was, was told
    the truth."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await opened.issue()
        faulty(opened).on_checkpoint.append(failing_with(opened, sqlite3.SQLITE_IOERR_FSYNC))
        answer = await opened.refresh(issued)
        with pytest.raises(Unavailable):
            await opened.refresh(answer)
        assert "the store failed" == opened.ledger.readiness()
    async with open_ledger(tmp_path) as again:
        assert answer.position <= again.last_position()
        await again.refresh(answer)
    check_ledger(again.path)
