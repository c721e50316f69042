"""Archiving from time to time where a server serves, as ARCHIVE_AFTER_DAYS says."""

import asyncio
import logging
from pathlib import Path

import pytest

from api import archiver
from api.archiver import Archiver
from api.settings import Settings
from ledger import archiving
from ledger.archiving import Archiving, Report
from ledger.refusals import Refused
from ledger.segments import folder_of
from tests.engines import archive_folder, only_on_sqlite
from tests.ledgers import open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def test_a_server_archives_every_hour_until_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way when it stops is broken off: nothing runs on a store that is being closed."""
    monkeypatch.setattr(archiver, "FIRST_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(archiver, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(archiving, "REST_SECONDS", 0.005)
    async with open_ledger(tmp_path) as opened:
        settings = Settings(archive_after_days=2, archive_retention_days=5)
        async with Archiver(opened.ledger, settings).from_time_to_time():
            for days in (0, 2.1, 0.9):
                opened.clock.pass_seconds(days * 86_400)
                answer = await opened.issue()
                await opened.act("revoke", answer.grant_id)
            await opened.issue("bob")
            async with asyncio.timeout(20):
                while [(2,)] != opened.rows("SELECT sum(to_v) FROM archived WHERE NOT withheld"):
                    await asyncio.sleep(0.01)
            opened.clock.pass_seconds(2.1 * 86_400)
            async with asyncio.timeout(20):
                while [(2,)] != opened.rows("SELECT sum(to_v) FROM archived WHERE withheld"):
                    await asyncio.sleep(0.01)
        with archive_folder(opened.path) as folder:
            names = {path.name for path in folder.iterdir()}
        opened.clock.pass_seconds(30 * 86_400)
        await asyncio.sleep(0.1)
        with archive_folder(opened.path) as folder:
            assert names == {path.name for path in folder.iterdir()}


@only_on_sqlite
async def test_a_failed_run_is_one_line_in_the_log_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk today does not end archiving for ever."""
    monkeypatch.setattr(archiver, "FIRST_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(archiver, "EVERY_SECONDS", 0.01)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.act("revoke", answer.grant_id)
        await opened.issue("bob")
        opened.clock.pass_seconds(2 * 86_400)
        folder_of(opened.path).write_text("no folder")
        with caplog.at_level(logging.ERROR):
            async with Archiver(opened.ledger, Settings(archive_after_days=1)).from_time_to_time():
                async with asyncio.timeout(20):
                    while not any("archiving_failed" in record.getMessage() for record in caplog.records):
                        await asyncio.sleep(0.01)
                folder_of(opened.path).unlink()
                async with asyncio.timeout(20):
                    while [(1,)] != opened.rows("SELECT count(*) FROM archived"):
                        await asyncio.sleep(0.01)


async def test_whatever_a_run_fails_with_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what nobody has thought of: one line says it, and nothing comes up as the server stops."""
    monkeypatch.setattr(archiver, "FIRST_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(archiver, "EVERY_SECONDS", 0.01)
    runs = 0

    async def failing(self: Archiving, *arguments: object, **named: object) -> Report:
        nonlocal runs
        runs += 1
        raise KeyError("of nobody's")

    monkeypatch.setattr(Archiving, "run", failing)
    async with open_ledger(tmp_path) as opened:
        with caplog.at_level(logging.ERROR):
            async with Archiver(opened.ledger, Settings(archive_after_days=1)).from_time_to_time():
                async with asyncio.timeout(20):
                    while runs < 3:
                        await asyncio.sleep(0.01)
        assert any("archiving_failed" in record.getMessage() for record in caplog.records)


async def test_without_a_number_of_days_nothing_is_archived(tmp_path: Path) -> None:
    """Off unless it is asked for."""
    async with open_ledger(tmp_path) as opened:
        with pytest.raises(Refused, match="TOKEN_LEDGER_ARCHIVE_AFTER_DAYS is off: say after how many days"):
            Archiver(opened.ledger, Settings()).after(None)
