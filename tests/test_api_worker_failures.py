"""What one worker hears of another's failed authentications (TE-8)."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from api.throttle import FREE_FAILURES, Throttle
from api.worker_failures import Failures, pairs

pytestmark = pytest.mark.anyio

ADDRESS = "192.0.2.1"


class Three:
    """The ends of three workers."""

    def __init__(self) -> None:
        made = pairs(3)
        self.hearing = [hearing for hearing, _ in made]
        self.telling = [telling for _, telling in made]
        self.failures = [Failures(self.hearing[number], self._others(number)) for number in range(3)]

    def _others(self, number: int) -> list[socket.socket]:
        return self.telling[:number] + self.telling[number + 1 :]


@pytest.fixture
async def three() -> AsyncIterator[Three]:
    made = Three()
    yield made
    for sock in (*made.hearing, *made.telling):
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()


async def test_a_guess_counts_whoever_it_reached(three: Three) -> None:
    """Nine failures over three workers, then the tenth is the tenth for all; nobody hears their own twice."""
    throttles = [Throttle(lambda: 0.0, tell=each.tell) for each in three.failures]
    for each, throttle in zip(three.failures, throttles, strict=True):
        each.follow(throttle.heard)
    for number in range(FREE_FAILURES):
        assert 0 == throttles[number % 3].failed("www", ADDRESS)
        await asyncio.sleep(0.01)
    assert [0, 0, 0] == [each.wait_seconds("www", ADDRESS) for each in throttles]
    assert 1 == throttles[0].failed("www", ADDRESS)
    await asyncio.sleep(0.01)
    assert [1, 1, 1] == [each.wait_seconds("www", ADDRESS) for each in throttles]


async def test_who_does_not_listen_holds_nobody_up(three: Three) -> None:
    """A worker that is frozen, or gone: what finds no room is dropped. What is no message counts nothing."""
    three.telling[1].send(b"no message")
    for number in range(5_000):
        three.failures[0].tell("x" * 255, f"192.0.2.{number}")
    heard: list[tuple[str, str]] = []
    three.failures[1].follow(lambda who, address: heard.append((who, address)))
    await asyncio.sleep(0.05)
    assert 0 < len(heard) < 5_000
    assert {"x" * 255} == {who for who, _ in heard}
