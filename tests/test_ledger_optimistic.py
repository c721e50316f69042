"""Two nodes on one PostgreSQL that refresh the same grants: what the one has done the other decides on, or again."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from ledger import operating
from ledger.batch import Batch
from ledger.log_end import LogEnd
from ledger.recorders.premises import BASE
from ledger.refusals import Refusal
from tests.appending import Appending
from tests.ledgers import ELSEWHERE, HOME, OPERATORS, SECURITY, client, two_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]


@pytest.mark.usefixtures("appending")
async def test_a_grant_that_both_refresh_in_turn_has_one_chain(tmp_path: Path) -> None:
    """I-01, I-03: each node finds that the other has moved the grant, and decides on what is true now."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await one.issue()
        for node in (one, other) * 5:
            answer = await node.refresh(answer)
        assert 10 == one.topics(answer).count("token_rotated")
        again = await one.refresh(answer)
        assert again.refresh_token == (await other.refresh(answer)).refresh_token, "a retry anywhere: one successor"


async def test_reuse_is_found_by_whichever_node_it_comes_to(tmp_path: Path) -> None:
    """I-04, I-05: a token that the other node has retired is retired here, and the end holds on both."""
    async with two_nodes(tmp_path) as (one, other):
        first = await one.issue()
        await other.refused("rt1_nonsense")
        last = await one.chain(first, 3)
        assert Refusal.REUSE_DETECTED is (await other.refused(first)).refusal
        assert Refusal.REUSE_DETECTED is (await one.refused(last)).refusal
        assert ["reuse_detected", "revoked"] == one.topics(first)[-2:]


@pytest.mark.usefixtures("nobody_looks")
async def test_without_the_versions_a_chain_would_fork(tmp_path: Path, appending: Appending) -> None:
    """The broken twin for what is written: the condition on the version left out."""
    appending.forget_versions()

    async def forked() -> None:
        async with two_nodes(tmp_path) as (one, other):
            second = await one.refresh(await one.refresh(await one.issue()))
            await other.refresh(second)
            await one.refresh(second, source=HOME if appending.plain else ELSEWHERE)

    with pytest.raises(AssertionError):
        await forked()


@pytest.mark.usefixtures("appending")
async def test_who_is_not_contested_does_not_wait(tmp_path: Path) -> None:
    """One grant of a batch has moved: that batch answers all others, and only its own requests are decided again."""
    async with two_nodes(tmp_path) as (one, other):
        answers = [await other.issue(f"person-{n}") for n in range(8)]
        contested = await one.refresh(answers[3])
        batches = other.ledger.commits.batches
        done = await asyncio.gather(*(other.refresh(each) for each in answers))
        assert contested.refresh_token == done[3].refresh_token, "the other node's redemption: a retry here"
        assert batches + 2 == other.ledger.commits.batches
        places = [answer.position >> 16 for n, answer in enumerate(done) if n != 3]
        assert 1 == len(set(places)), "all of them in one transaction"


@pytest.mark.usefixtures("appending")
async def test_a_batch_is_written_in_the_order_of_its_log(tmp_path: Path) -> None:
    """Each event of a stream stands above the one before it, whichever node wrote it."""
    async with two_nodes(tmp_path) as (one, other):
        newest = {n: await one.issue(f"person-{n}") for n in range(6)}

        async def walk(n: int) -> None:
            for step in range(12):
                newest[n] = await (one if (n + step) % 2 else other).refresh(newest[n])

        await asyncio.gather(*map(walk, newest))
        for answer in newest.values():
            rows = one.rows(
                "SELECT e.v, e.position FROM events e JOIN streams s ON s.id = e.stream WHERE s.name = ? ORDER BY e.v",
                f"grant:{answer.grant_id}",
            )
            assert all(before[1] < after[1] for before, after in pairwise(rows))


@pytest.mark.usefixtures("nobody_looks")
async def test_with_positions_taken_ahead_a_log_would_run_backwards(tmp_path: Path, appending: Appending) -> None:
    """The broken twin of the test above: a node that has its positions before it reads what it decides on."""
    taken = "base := (pg_current_xact_id()::text::bigint << {bits}) + _offset;"
    appending.let(taken, "base := nextval('ahead') << {bits};")
    made = f"CREATE OR REPLACE FUNCTION {appending.name}("
    appending.let(made, f"CREATE SEQUENCE IF NOT EXISTS ahead CACHE 1000; {made}")

    async def backwards() -> None:
        async with two_nodes(tmp_path) as (one, other):
            answer = await one.issue()
            for node in (other, one, other):
                answer = await node.refresh(answer)

    with pytest.raises(AssertionError, match="names itself"):
        await backwards()


async def test_a_crowd_with_one_token_over_two_nodes(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """However many come at once with one token: one successor, no refusal, three events (I-03, I-21)."""
    async with two_nodes(tmp_path) as (one, other):
        for n in range(count(2, 20)):
            first = await one.issue(f"person-{n}")
            crowd = count(200, 1000)
            answers = await asyncio.gather(*((one, other)[i % 2].refresh(first) for i in range(crowd)))
            assert 1 == len({answer.refresh_token for answer in answers})
            assert len(one.grant_events(first)) <= 1 + 3


@pytest.mark.usefixtures("nobody_looks")
async def test_what_is_acknowledged_is_never_a_place_in_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is decided again was not written: a head file that named its end would say of every log that it had
    lost its own."""
    told: list[int] = []
    acknowledge = LogEnd.acknowledge

    def noted(self: LogEnd, position: int, at: str) -> None:
        told.append(position)
        acknowledge(self, position, at)

    monkeypatch.setattr(LogEnd, "acknowledge", noted)
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        await one.apply(client(), client("another"), operators=OPERATORS)
        assert (await other.refresh(answer)).position == told[-1]
        assert max(told) < BASE


async def test_a_command_that_touches_two_streams_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """Streams that one request used are one unit: where one of them had moved, neither is written."""
    async with two_nodes(tmp_path) as (one, other):
        answers = [await other.issue(f"person-{n}") for n in range(2)]
        await one.refresh(answers[1])

        def both(batch: Batch) -> None:
            for answer in answers:
                operating.act_on_grant(batch, other.ledger.desk, SECURITY, answer.grant_id, "revoke", None, None)

        batches = other.ledger.commits.batches
        await other.ledger.commits.submit(both)
        assert batches + 2 == other.ledger.commits.batches
        ends = [one.rows("SELECT max(e.position) FROM events e JOIN streams s ON s.id = e.stream WHERE s.name = ?",
                         f"grant:{answer.grant_id}")[0][0] for answer in answers]  # fmt: skip
        assert 1 == ends[1] - ends[0], "next to each other, in one transaction"


async def test_a_token_that_memory_has_not_heard_of_is_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I-15: only a token that the store does not account for is ahead of the log; a retired one of the other node's
    making is judged by what the store says."""
    async with two_nodes(tmp_path) as (one, other):
        first = await other.issue()
        answer = await one.refresh(first)
        await other.refresh(answer)
        far = await one.chain(answer, 3)
        farther = await one.chain(far, 3)
        assert Refusal.REUSE_DETECTED is (await other.refused(far)).refusal
        assert Refusal.REUSE_DETECTED is (await one.refused(farther)).refusal
        assert {0} == {*one.ledger.desk.alarms.values(), *other.ledger.desk.alarms.values()}
    assert "ahead_of_log" not in [record.getMessage() for record in caplog.records]
