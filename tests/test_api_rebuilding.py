"""Rebuilds beside the ledger's work: one at a time, broken off when nobody listens, told when the store fails."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from api import rebuilding
from api.rebuilding import Rebuilding
from ledger.recorders.errors import StoreFull
from ledger.refusals import Refused
from projections.rebuild import Rebuilt
from tests.asking import asking

NOTHING = Rebuilt(events=0, streams=0, rows={}, differences=[], difference_count=0, history_holds=True, healed=True)


class Slow:
    """Stands in for a rebuild of a long log: it runs until it is told to end, or its progress is refused."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.go_on = True

    def __call__(self, readers: Any, inline: Any, apply_heal: Any, progress: Any, lookup: Any, at: Any) -> Rebuilt:
        self.begun += 1
        try:
            while self.go_on:
                progress(1, 2)
        finally:
            self.ended += 1
        return NOTHING


async def _sent(lines: Any, sent: list[Any]) -> None:
    async def send(message: Any) -> None:
        sent.append(message)

    await lines.send(send)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_second_rebuild_is_refused_while_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would only read the same log twice at once."""
    slow = Slow()
    monkeypatch.setattr(rebuilding, "rebuild", slow)
    async with asking(tmp_path) as ledger:
        rebuilds = Rebuilding(ledger.ledger)
        sent: list[Any] = []
        first = asyncio.create_task(_sent(rebuilds.start(), sent))
        await _until(lambda: slow.begun)
        with pytest.raises(Refused):
            rebuilds.start()
        slow.go_on = False
        await first
        assert [{"done": 1, "total": 2}, True] == [json.loads(sent[1]["body"]), json.loads(sent[-2]["body"])["healed"]]
        assert {"type": "http.response.body", "body": b""} == sent[-1]
        rebuilds.start()


async def test_a_rebuild_ends_when_nobody_listens_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops, or a person who presses Ctrl-C, waits for no log of an hour."""
    slow = Slow()
    monkeypatch.setattr(rebuilding, "rebuild", slow)
    async with asking(tmp_path) as ledger:
        rebuilds = Rebuilding(ledger.ledger)
        task = asyncio.create_task(_sent(rebuilds.start(), []))
        await _until(lambda: slow.begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _until(lambda: slow.ended)


async def test_a_store_that_fails_midway_is_told_in_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is out already, so the line says it."""

    def failing(*_: Any) -> Rebuilt:
        raise StoreFull("no room left on the disk")

    monkeypatch.setattr(rebuilding, "rebuild", failing)
    async with asking(tmp_path) as ledger:
        sent: list[Any] = []
        await _sent(Rebuilding(ledger.ledger).start(), sent)
        told = json.loads(sent[-2]["body"])
        assert "temporarily_unavailable" == told["error"]
        assert "no room left on the disk" in told["error_description"]


async def test_what_was_found_is_the_last_line_however_soon_the_thread_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has ended before anybody waits, as it may from Python 3.14 on, its progress waits for the loop still."""

    def short(readers: Any, inline: Any, apply_heal: Any, progress: Any, lookup: Any, at: Any) -> Rebuilt:
        progress(2, 2)
        return NOTHING

    async def ended_already(work: Any) -> Any:
        return work()

    monkeypatch.setattr(rebuilding, "rebuild", short)
    async with asking(tmp_path) as ledger:
        sent: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "to_thread", ended_already)
            await _sent(Rebuilding(ledger.ledger).start(), sent)
    told = [json.loads(each["body"]) for each in sent[1:-1]]
    assert [{"done": 2, "total": 2}, True] == [told[0], told[1]["healed"]]


async def test_refreshes_go_on_beside_a_rebuild_that_heals(tmp_path: Path) -> None:
    """Healing takes its turns between batches, and whoever refreshes meanwhile notices nothing."""
    async with asking(tmp_path) as ledger:
        tokens = [(await ledger.issue("www"))["refresh_token"] for _ in range(5)]

        async def refreshing(token: str) -> None:
            for _ in range(10):
                answer = await ledger.refresh("www", token)
                assert 200 == answer.status_code, answer.text
                token = answer.json()["refresh_token"]

        rebuilt, _ = await asyncio.gather(
            ledger.ask("POST", "/local/rebuild", local=True, json={}), asyncio.gather(*map(refreshing, tokens))
        )
        assert [] == json.loads(rebuilt.text.splitlines()[-1])["differences"]
        ledger.opened.check_memory()
