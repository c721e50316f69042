"""The ledger as a whole: opening and closing, upkeep, and when it is ready."""

import asyncio
import logging
from pathlib import Path

import pytest

from ledger.head_file import HeadFile
from ledger.refusals import LedgerError
from tests.faulty_store import locked_by_another_process
from tests.ledgers import Clock, check_ledger, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


# ---------------------------------------------------------------- opening and closing


async def test_a_new_ledger_has_the_rings_key_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first events name the keys; a missing head file beside a new log is no reason to warn."""
    async with open_ledger(tmp_path, clients=None) as opened:
        assert ["keys.rotated", "keys.activated"] == [event.topic for event in opened.events()]
        assert [(1, "active")] == [(key.id, key.state) for key in opened.ledger.operators.keys_list()]
        assert opened.ledger.readiness() is None
    assert [] == [record.getMessage() for record in caplog.records]
    head = HeadFile(tmp_path / "ledger.head").read()
    assert head is not None
    assert opened.last_position() == head.position


async def test_opened_again_it_goes_on(tmp_path: Path) -> None:
    """Grants, retries and authority are where they were."""
    clock = Clock()
    async with open_ledger(tmp_path, clock=clock) as opened:
        first = await opened.issue()
        second = await opened.refresh(first)
    async with open_ledger(tmp_path, clock=clock, seed=2, clients=None) as opened:
        again = await opened.refresh(first)
        assert (second.refresh_token, second.access_token) == (again.refresh_token, again.access_token)
        await opened.refresh(second)
    check_ledger(opened.path)


async def test_a_server_says_when_it_serves(tmp_path: Path) -> None:
    """Two events a life in good order."""
    for seed in (1, 2):
        async with open_ledger(tmp_path, seed=seed) as opened:
            await opened.ledger.started()
            await opened.ledger.stopped()
    checked = check_ledger(opened.path)
    assert (2, 2) == (checked.topics["ledger.started"], checked.topics["ledger.stopped"])


async def test_a_ledger_that_cannot_open_gives_the_store_back(tmp_path: Path) -> None:
    """A store that stays busy, a head file that cannot be read: one line, and the file is free for the next."""
    async with open_ledger(tmp_path):
        pass
    (tmp_path / "ledger.head").write_text("garbage")
    with pytest.raises(LedgerError, match="no head file or a damaged one"):
        async with open_ledger(tmp_path):
            pass
    (tmp_path / "ledger.head").unlink()
    async with open_ledger(tmp_path, seed=2) as opened:
        await opened.issue()


async def test_closing_leaves_no_thread_and_no_answer_behind(tmp_path: Path) -> None:
    """Whoever was in line is answered before the store is given back."""
    async with open_ledger(tmp_path) as opened:
        answers = [asyncio.ensure_future(opened.issue(str(n))) for n in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(opened.ledger.close())
        await asyncio.gather(*answers, closing)
    assert 5 == check_ledger(opened.path).topics["grant.issued"]


# ---------------------------------------------------------------- upkeep


async def test_a_defect_in_one_round_of_upkeep_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next round writes the head file all the same; the defect is a log line."""
    async with open_ledger(tmp_path) as opened:
        write = HeadFile.write
        failed: list[int] = []

        def once(self: HeadFile, position: int, at: int) -> None:
            if not failed:
                failed.append(position)
                raise ZeroDivisionError
            write(self, position, at)

        monkeypatch.setattr(HeadFile, "write", once)
        answer = await opened.issue()
        head = None
        for _ in range(400):
            head = HeadFile(tmp_path / "ledger.head").read()
            if head is not None and head.position == answer.position:
                break
            await asyncio.sleep(0.01)
        assert head is not None
        assert answer.position == head.position
        assert "upkeep_failed" in [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_looking_is_never_kept_waiting_by_the_store(tmp_path: Path) -> None:
    """Readiness is answered from memory, whatever the store does."""
    async with open_ledger(tmp_path) as opened:
        with locked_by_another_process(opened.path):
            assert opened.ledger.readiness() is None
            assert opened.ledger.acknowledged_position == opened.last_position()
