"""A process that was frozen does not decide what it was asked before."""

import asyncio
import time

import pytest

from ledger import awake
from ledger.awake import Awake

pytestmark = pytest.mark.anyio


async def test_who_stood_still_hears_nobody_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """I-10: neither what is read right after it has thawed, nor what comes in the second after it has noticed."""
    monkeypatch.setattr(awake, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(awake, "STOOD_STILL_SECONDS_MIN", 0.3)
    monkeypatch.setattr(awake, "LATE_SECONDS", 0.5)
    loop = asyncio.get_running_loop()
    heart = Awake(loop, 0.1)
    try:
        for _ in range(5):
            await asyncio.sleep(0.01)
            assert heart.hears(loop.time())
        time.sleep(0.6)
        await asyncio.sleep(0)
        heard = []
        for _ in range(20):
            heard.append(heart.hears(loop.time()))
            await asyncio.sleep(0.05)
        assert not any(heard[:5])
        assert heard[-1]
    finally:
        heart.close()


async def test_a_request_may_take_as_long_as_it_may() -> None:
    """Who stands still for less than that, or owns its store alone, hears whatever comes."""
    loop = asyncio.get_running_loop()
    for seconds in (60.0, float("inf")):
        heart = Awake(loop, seconds)
        assert heart.hears(loop.time() + 59)
        heart.close()
