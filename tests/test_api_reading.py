"""Questions to the store in threads: what they see, and what happens when the store does not answer."""

import asyncio
import gc
import threading
import time
from pathlib import Path

import pytest

from api.reading import AT_ONCE_MAX, Reading
from ledger.recorders.errors import StoreBusy
from ledger.refusals import Unavailable
from tests.asking import asking


async def test_a_question_sees_what_was_acknowledged(tmp_path: Path) -> None:
    """Issue, look, without a pause, over and over: never a moment too old."""
    async with asking(tmp_path) as ledger:
        reading = Reading(ledger.ledger.store, 10)
        for number in range(1, 21):
            await ledger.issue("www")
            rows = await reading.ask(lambda reader: reader.select("SELECT count(*) FROM current_tokens_v1"))
            assert [(number,)] == rows


async def test_a_store_that_fails_or_hangs_is_unavailable(tmp_path: Path) -> None:
    """Never a fault, never for ever; the loop goes on meanwhile."""
    async with asking(tmp_path) as ledger:

        def busy(_: object) -> None:
            raise StoreBusy("somebody else has it")

        with pytest.raises(Unavailable):
            await Reading(ledger.ledger.store, 10).ask(busy)
        release = threading.Event()
        waiting = asyncio.create_task(Reading(ledger.ledger.store, 0.2).ask(lambda _: release.wait(20)))
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.005)
            ticks += 1
        release.set()
        assert ticks > 5
        with pytest.raises(Unavailable):
            await waiting


async def test_few_questions_run_at_once(tmp_path: Path) -> None:
    """The others wait for their turn, and get it."""
    async with asking(tmp_path) as ledger:
        reading = Reading(ledger.ledger.store, 20)
        lock, running, most = threading.Lock(), [0], [0]

        def question(_: object) -> None:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.01)
            with lock:
                running[0] -= 1

        await asyncio.gather(*(reading.ask(question) for _ in range(20)))
        assert 1 <= most[0] <= AT_ONCE_MAX


async def test_a_question_that_nobody_waits_for_any_more_has_its_place_until_it_ends(tmp_path: Path) -> None:
    """However often such a question is asked again, no more threads than ever take the interpreter from the commits,
    and those that the archiver needs are left."""
    async with asking(tmp_path) as ledger:
        reading, release = Reading(ledger.ledger.store, 0.1), threading.Event()
        lock, running, told = threading.Lock(), [0], list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        def question(_: object) -> None:
            with lock:
                running[0] += 1
            release.wait(20)
            raise StoreBusy("told to nobody")

        try:
            for _ in range(2):
                several = [reading.ask(question) for _ in range(AT_ONCE_MAX)]
                outcomes = await asyncio.gather(*several, return_exceptions=True)
                assert all(isinstance(each, Unavailable) for each in outcomes)
            assert AT_ONCE_MAX == running[0]
        finally:
            release.set()
        assert 1 == await Reading(ledger.ledger.store, 10).ask(lambda _: 1)
        assert 1 == await reading.ask(lambda _: 1)
        gc.collect()
        assert [] == told
