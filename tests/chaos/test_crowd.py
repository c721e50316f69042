"""A thousand at once with one token, over two workers: one successor, few events, nobody waits long (I-03, I-21)."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.chains import generation_of
from tests.chaos.exchange import Line
from tests.chaos.nodes import versions_forgotten
from tests.engines import standing_for
from tests.histories import check_history
from tests.ledger_check import check_ledger
from tests.server_process import eventually
from tests.servers import Server, running
from tests.wire import Answer

SECONDS_MAX = 5.0
"""The longest of a round, from the moment that all are sent."""


pytestmark = pytest.mark.xdist_group("crowd")
"""Together: two more workers would start for them."""


@pytest.fixture(scope="module")
def crowded_server(
    tmp_path_factory: pytest.TempPathFactory, two_workers: Callable[[], dict[str, str]]
) -> Iterator[Server]:
    """Two workers behind one port."""
    folder = tmp_path_factory.mktemp("crowd")
    with running(folder, settings={**two_workers(), "LOG_LEVEL": "info"}) as server:
        eventually(lambda: server.log().count(" event=serving ") >= 2, what="both workers")
        yield server


class Crowd:
    """Connections that are open before the moment comes; the same ones in every round."""

    def __init__(self, server: Server, size: int) -> None:
        self.server = server
        self.lines = [Line(server) for _ in range(size)]
        self.longest_seconds = 0.0

    async def send(self, raw: bytes) -> list[Answer]:
        """Send the same request over all of them at once."""
        began = time.monotonic()
        answers = await asyncio.gather(*(line.ask(raw, check=False) for line in self.lines))
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
        self.server.tokens |= {answer.json()["refresh_token"] for answer in answers if answer.status == 200}
        return answers

    async def rounds(self, client: str, times: int, judge: Callable[[str, list[Answer]], None]) -> None:
        """Let a new grant be refreshed by all, so many times."""
        try:
            for line in self.lines:
                await line._connect()
            for _ in range(times):
                grant = self.server.issue(client)
                answers = await self.send(self.server.refresh_request(client, grant.refresh_token))
                judge(grant.grant_id, answers)
        finally:
            for line in self.lines:
                line.close()


def crowd_of(
    server: Server, client: str, size: int, times: int, judge: Callable[[list[str], list[Answer]], None]
) -> float:
    """Rounds of a crowd, each judged by what happened to its grant and by its answers. The longest, in seconds."""
    crowd = Crowd(server, size)

    def judged(grant_id: str, answers: list[Answer]) -> None:
        events = server.events(grant_id)
        check_history(events)
        judge([event["topic"].removeprefix("grant.") for event in events], answers)

    asyncio.run(crowd.rounds(client, times, judged))
    with standing_for(server.database, server.settings["DATABASE_URL"]):
        check_ledger(server.database)  # a second chain of events would hang together as well as the first
    return crowd.longest_seconds


def told(record: Callable[[str, object], None], size: int, times: int, longest_seconds: float, full: bool) -> None:
    """Say how long it took; with `--full` it may not be longer than was promised."""
    record("at once", size)
    record("rounds", times)
    record("seconds the longest", round(longest_seconds, 2))
    assert not full or longest_seconds <= SECONDS_MAX


def test_a_crowd_with_one_token_gets_one_successor(
    crowded_server: Server, full: bool, count: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """Whichever worker is asked: all are told the same, three events say so, and nobody meets a 5xx."""
    size, times = count(100, 1000), count(2, 20)

    def judge(topics: list[str], answers: list[Answer]) -> None:
        assert {200: size} == Counter(answer.status for answer in answers)
        assert 1 == len({(each.json()["access_token"], each.json()["refresh_token"]) for each in answers})
        assert 1 == generation_of(answers[0].json()["refresh_token"])
        assert ["issued", "token_redeemed", "token_rotated", "retry_served"] == topics

    told(record_property, size, times, crowd_of(crowded_server, "std", size, times, judge), full)


def test_where_nobody_may_retry_one_of_a_crowd_succeeds(
    crowded_server: Server, full: bool, count: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """`strict`: one 200, all others refused, four events; what was presented after the end is counted, not recorded."""
    size, times = count(100, 1000), count(2, 20)

    def judge(topics: list[str], answers: list[Answer]) -> None:
        assert {200: 1, 400: size - 1} == Counter(answer.status for answer in answers)
        assert {"reuse_detected"} == {each.json()["reason"] for each in answers if each.status == 400}
        assert ["issued", "token_redeemed", "token_rotated", "reuse_detected", "revoked"] == topics[:5]
        assert ["presentations_counted"] * len(topics[5:]) == topics[5:]
        assert 2 >= len(topics[5:]), "each worker counts for itself"

    told(record_property, size, times, crowd_of(crowded_server, "www", size, times, judge), full)


def test_a_crowd_that_finds_no_version_checked_is_caught(
    tmp_path: Path, two_workers: Callable[[], dict[str, str]]
) -> None:
    """The broken twin: each worker redeems the token for itself."""
    settings = two_workers()
    server = Server(tmp_path, settings={**settings, "LOG_LEVEL": "info"})

    def judge(topics: list[str], answers: list[Answer]) -> None:
        assert {200} == {answer.status for answer in answers}
        assert ["issued", "token_redeemed", "token_rotated", "retry_served"] == topics

    def crowds() -> None:
        crowd_of(server, "std", 60, 5, judge)

    try:
        server.init()
        versions_forgotten(settings["DATABASE_URL"])
        server.start()
        eventually(lambda: server.log().count(" event=serving ") >= 2, what="both workers")
        with pytest.raises(AssertionError):
            crowds()
    finally:
        server.kill()
