"""What is counted instead of recorded one by one (I-21), and how fast unauthenticated clients may redeem."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from ledger import redeeming, times
from ledger.answers import Source, TokenAnswer
from ledger.batch import Batch
from ledger.events import PresentationsCounted
from ledger.policy import Rotation
from ledger.presentations import BURST_GRANTS_MAX, COUNTED_GRANTS_MAX, Bursts, Presentations
from ledger.private import commitment, context_value
from ledger.recorders.errors import StoreFull
from ledger.refusals import Refusal, Refused, Unavailable
from tests.committing import fault_after
from tests.faulty_store import FaultyStore, faulty, instead
from tests.ledger_check import copied
from tests.ledgers import (
    ELSEWHERE,
    HOME,
    LOCAL_OPERATOR,
    OPTIONS,
    SECURITY,
    Opened,
    check_ledger,
    client,
    open_ledger,
    with_policy,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

SECOND = times.SECOND


def due(counts: Presentations, now: int, *, stop: bool = False) -> list[tuple[str, int]]:
    return [(grant_id, counted.count) for grant_id, counted in counts.due(now, all_of_them=stop)]


def test_a_grant_is_due_at_once_and_then_once_a_minute() -> None:
    """At most one flush a minute and grant."""
    counts = Presentations()
    counts.count("a", 3, HOME, 100 * SECOND)
    assert [("a", 1)] == due(counts, 100 * SECOND)
    counts.flushed("a", 1, 100 * SECOND)
    assert 0 == counts.waiting("a")
    counts.count("a", 3, HOME, 101 * SECOND)
    assert [] == due(counts, 159 * SECOND)
    assert [("a", 1)] == due(counts, 160 * SECOND)
    assert [("a", 1)] == due(counts, 159 * SECOND, stop=True)


def test_what_was_declined_is_not_asked_about_again_before_more_was_counted() -> None:
    """A grant whose count passes no power of two costs nothing while nobody presents its tokens."""
    counts = Presentations()
    counts.count("a", 3, HOME, 0)
    counts.flushed("a", 0, 100 * SECOND)
    assert [] == due(counts, 300 * SECOND)
    counts.count("a", 3, HOME, 301 * SECOND)
    assert [("a", 2)] == due(counts, 301 * SECOND)


def test_what_was_counted_during_a_flush_stays_counted() -> None:
    """Nothing is lost, nothing told twice."""
    counts = Presentations()
    for _ in range(5):
        counts.count("a", 3, HOME, 0)
    counts.flushed("a", 3, 0)
    assert 2 == counts.waiting("a")


def test_a_clock_that_was_put_back_does_not_hold_a_flush_up_for_long() -> None:
    """I-16: times of the wall clock may run back."""
    counts = Presentations()
    counts.count("a", 3, HOME, 1000 * SECOND)
    counts.flushed("a", 1, 1000 * SECOND)
    counts.count("a", 3, HOME, 10 * SECOND)
    assert [("a", 1)] == due(counts, 10 * SECOND)


def test_the_map_is_bounded_and_who_was_heard_of_least_recently_leaves() -> None:
    """However many dead grants somebody has tokens of, memory is bounded."""
    counts = Presentations()
    for n in range(COUNTED_GRANTS_MAX):
        counts.count(str(n), 0, HOME, n)
    counts.count("0", 0, HOME, COUNTED_GRANTS_MAX)
    counts.count("one more", 0, HOME, COUNTED_GRANTS_MAX)
    assert (2, 0, 1) == (counts.waiting("0"), counts.waiting("1"), counts.waiting("one more"))


def test_a_bucket_is_full_at_first_and_fills_by_the_second() -> None:
    """`REFRESH_BURST` at once, then `REFRESH_PER_SECOND`; the wait is a whole number of seconds, at least one."""
    bursts = Bursts(3, 0.5)
    for _ in range(3):
        assert bursts.retry_after_seconds("a", 0) is None
        bursts.spend("a", 0)
    assert 2 == bursts.retry_after_seconds("a", 0)
    assert 1 == bursts.retry_after_seconds("a", 1 * SECOND)
    assert bursts.retry_after_seconds("a", 2 * SECOND) is None
    assert bursts.retry_after_seconds("b", 0) is None
    assert 2 == bursts.retry_after_seconds("a", -5 * SECOND), "a clock that was put back fills nothing"
    assert (None, 2) == tuple(bursts.retry_after_seconds("c", 0, under_way) for under_way in (2, 3))
    assert not Bursts(10, 0).limited


def test_a_clock_that_was_put_back_keeps_no_grant_waiting() -> None:
    """I-16: an empty bucket fills from there on."""
    bursts = Bursts(2, 1)
    for _ in range(2):
        bursts.spend("a", 1_000 * SECOND)
    assert 1 == bursts.retry_after_seconds("a", 10 * SECOND)
    assert bursts.retry_after_seconds("a", 11 * SECOND) is None


def test_buckets_are_bounded() -> None:
    """A grant that is forgotten starts with a full bucket again."""
    bursts = Bursts(1, 1)
    for n in range(BURST_GRANTS_MAX + 1):
        bursts.spend(str(n), 0)
    assert bursts.retry_after_seconds("0", 0) is None
    assert 1 == bursts.retry_after_seconds(str(BURST_GRANTS_MAX), 0)


# ---------------------------------------------------------------- in a ledger


async def flush(opened: Opened, *, stop: bool = False) -> None:
    """What the ledger does by itself once a second, and at a stop."""
    await opened.ledger.afterwards.flush_presentations(opened.clock.now, at_stop=stop)


def counted(opened: Opened, answer: TokenAnswer) -> list[int]:
    return [event.count for event in opened.grant_events(answer) if isinstance(event, PresentationsCounted)]


async def test_hundreds_of_presentations_after_the_end_make_a_few_events(tmp_path: Path) -> None:
    """I-21: at most one event a minute, and each time a power of two must have been passed."""
    async with open_ledger(tmp_path) as opened:
        dead = await opened.issue()
        await opened.act("revoke", dead.grant_id)
        for _ in range(520):
            assert Refusal.REVOKED_BY_OPERATOR is (await opened.refused(dead)).refusal
            opened.clock.pass_seconds(0.5)
            await flush(opened)
        assert [1, 121, 241, 361, 512] == counted(opened, dead)
        assert 8 == opened.ledger.desk.presentations.waiting(dead.grant_id, ended=True)
    assert [1, 121, 241, 361, 512, 520] == counted_in(tmp_path, dead), "and the rest at the stop"
    check_ledger(opened.path)


def counted_in(folder: Path, answer: TokenAnswer) -> list[int]:
    with copied(folder / "ledger.db") as connection:
        rows = connection.execute(
            "SELECT body ->> 'count' FROM events WHERE body ->> 'topic' = 'grant.presentations_counted'"
            " AND body ->> 'stream' = ? ORDER BY position",
            (f"grant:{answer.grant_id}",),
        )
        return [count for (count,) in rows]


async def test_a_crash_loses_the_tail_of_a_count_and_no_fact(tmp_path: Path) -> None:
    """Counting goes on from what an event said."""
    async with open_ledger(tmp_path) as opened:
        dead = await opened.issue()
        await opened.act("revoke", dead.grant_id)
        await opened.refused(dead)
        await flush(opened)
        await opened.refused(dead)
        opened.ledger.desk.presentations.flushed(dead.grant_id, 1, opened.clock.now)  # as if it had never been counted
    async with open_ledger(tmp_path, seed=2) as opened:
        opened.clock.pass_seconds(3600)
        for _ in range(3):
            await opened.refused(dead)
        await flush(opened)
        assert [1, 4] == counted(opened, dead)
    check_ledger(opened.path)


async def test_the_event_names_when_which_generation_and_from_where(tmp_path: Path) -> None:
    """Whoever looks into it finds the last presenter's address: its context is new, so it has a private row."""
    async with open_ledger(tmp_path) as opened:
        dead = await opened.issue()
        await opened.refresh(dead)
        await opened.act("revoke", dead.grant_id)
        opened.clock.pass_seconds(5)
        await opened.refused(dead)
        opened.clock.pass_seconds(5)
        await opened.refused(dead, source=ELSEWHERE)
        await flush(opened)
        event = opened.grant_events(dead)[-1]
        assert isinstance(event, PresentationsCounted)
        start = opened.clock.now - 10 * SECOND
        assert (times.text(start + 5 * SECOND), times.text(start + 10 * SECOND)) == (event.first_at, event.last_at)
        assert (2, 0) == (event.count, event.last_generation)
        rows = opened.rows("SELECT address FROM private_contexts WHERE commitment = ?", event.last_context)
        assert [(ELSEWHERE.address,)] == rows
    check_ledger(opened.path)


async def test_a_count_that_outlives_an_erasure_brings_no_address_back(tmp_path: Path) -> None:
    """What was counted before it is told without its place."""
    async with open_ledger(tmp_path) as opened:
        dead = await opened.issue()
        await opened.act("revoke", dead.grant_id)
        await opened.refused(dead, source=Source("192.0.2.99", "left-behind/1"))
        await opened.ledger.operators.erase(LOCAL_OPERATOR, "alice")
        await flush(opened)
        assert [1] == counted(opened, dead)
        assert [] == opened.rows("SELECT * FROM private_contexts")
    check_ledger(opened.path)


@pytest.mark.parametrize("epoch", [False, True])
async def test_what_came_before_the_end_is_not_told_as_coming_after_it(tmp_path: Path, epoch: bool) -> None:
    """Counts begin anew at the end: what was not told by then is dropped, whether anything comes later or not."""
    async with open_ledger(tmp_path, clients=[client(policy=with_policy(on_reuse="alert"))]) as opened:
        presented, quiet = await opened.issue("bob"), await opened.issue("bob")
        for answer in (presented, quiet):
            await opened.chain(answer, 4, every_seconds=100_000)
        for _ in range(6):  # the first is an event of its own, and the next is flushed
            await opened.refused(presented)
            await opened.refused(quiet)
            await flush(opened)
            opened.clock.pass_seconds(1)
        if epoch:
            await opened.ledger.operators.revoke_subject(SECURITY, "bob", None, None)
        else:
            await opened.act("revoke", presented.grant_id)
            await opened.act("revoke", quiet.grant_id)
        ended_at = times.text(opened.clock.now)
        opened.clock.pass_seconds(1)
        explained = await opened.ledger.operators.explain(quiet.refresh_token or "")
        assert explained.presentations_counted is None
        for _ in range(2):
            await opened.refused(presented)
        assert 2 == (await opened.ledger.operators.explain(presented.refresh_token or "")).presentations_counted
        await flush(opened, stop=True)
        assert [1] == counted(opened, quiet)
        assert [1, 2] == counted(opened, presented)
        last = opened.grant_events(presented)[-1]
        assert isinstance(last, PresentationsCounted)
        assert ended_at < last.first_at
    check_ledger(opened.path)


async def test_a_stop_is_the_last_thing_on_record(tmp_path: Path) -> None:
    """Nothing follows `ledger.stopped` but the next start: a count and a foreign presentation come before it."""
    async with open_ledger(tmp_path, clients=[client(), client("oth")]) as opened:
        answer = await opened.issue()
        await opened.ledger.started()
        await opened.act("revoke", answer.grant_id)
        await opened.refused(answer)
        await opened.refused(answer, client_id="oth")
        await opened.ledger.stopped()
    with copied(tmp_path / "ledger.db") as connection:
        rows = connection.execute("SELECT body ->> 'topic' FROM events ORDER BY position DESC LIMIT 3").fetchall()
    assert "ledger.stopped" == rows[0][0]
    assert {"grant.presentations_counted", "grant.foreign_client_presented"} == {topic for (topic,) in rows[1:]}


async def test_many_grants_are_flushed_together(tmp_path: Path) -> None:
    """Upkeep never holds the line up: all that is due is one batch, not one commit after the other."""
    async with open_ledger(tmp_path) as opened:
        dead = await asyncio.gather(*(opened.issue(str(n)) for n in range(50)))
        await asyncio.gather(*(opened.act("revoke", answer.grant_id) for answer in dead))
        await asyncio.gather(*map(opened.refused, dead))
        before = opened.ledger.commits.batches
        await flush(opened)
        assert before + 1 == opened.ledger.commits.batches
        before = opened.ledger.commits.batches
        await flush(opened)
        assert before == opened.ledger.commits.batches, "nothing is due, so nobody is asked"
    assert 50 == check_ledger(opened.path).topics["grant.presentations_counted"]


async def test_explaining_adds_what_is_still_in_memory(tmp_path: Path) -> None:
    """Told and untold presentations together, counted from the end on, an epoch's end too."""
    async with open_ledger(tmp_path, clients=[client(policy=with_policy(on_reuse="alert"))]) as opened:
        first = await opened.issue()
        last = await opened.chain(first, 4, every_seconds=100_000)
        for _ in range(3):
            await opened.refused(first)
        explanation = await opened.ledger.operators.explain(last.refresh_token or "")
        assert 2 == explanation.presentations_counted, "the first is an event of its own"
        await flush(opened)
        assert 2 == (await opened.ledger.operators.explain(last.refresh_token or "")).presentations_counted
        opened.clock.pass_seconds(1)
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        assert (await opened.ledger.operators.explain(last.refresh_token or "")).presentations_counted is None
        await opened.refused(last)
        assert 1 == (await opened.ledger.operators.explain(last.refresh_token or "")).presentations_counted
    check_ledger(opened.path)


async def test_only_redemptions_of_public_clients_are_limited(tmp_path: Path) -> None:
    """Beyond the burst TOO_FAST with a wait, before any append; retries and reuse are bounded by their events."""
    public = client("app", auth="none")
    limited = msgspec.structs.replace(OPTIONS, refresh_burst=2, refresh_per_second=1)
    async with open_ledger(tmp_path, options=limited, clients=[public, client()]) as opened:
        own = await opened.issue(client_id="www")
        for _ in range(5):
            own = await opened.refresh(own)
        first = await opened.issue(client_id="app")
        answer = first
        for _ in range(2):
            answer = await opened.refresh(answer, client_id="app", authenticated=False)
        before = opened.last_position()
        with pytest.raises(Refused) as caught:
            await opened.refresh(answer, client_id="app", authenticated=False)
        assert (Refusal.TOO_FAST, 1) == (caught.value.refusal, caught.value.retry_after_seconds)
        assert before == opened.last_position()
        with pytest.raises(Refused) as caught:
            await opened.refresh(first, client_id="app", authenticated=False)
        assert Refusal.ROTATED is caught.value.refusal, "a straggler of the very context that redeemed it"
        opened.clock.pass_seconds(1)
        await opened.refresh(answer, client_id="app", authenticated=False)
    check_ledger(opened.path)


@asynccontextmanager
async def limited_to(folder: Path, burst: int, rotation: Rotation) -> AsyncIterator[tuple[Opened, TokenAnswer]]:
    """A ledger whose public client may redeem a grant so often at once, then hardly ever, and a grant of its."""
    options = msgspec.structs.replace(OPTIONS, refresh_burst=burst, refresh_per_second=0.01)
    public = client("app", auth="none", policy=with_policy(rotation=rotation))
    public = msgspec.structs.replace(
        public, settings=msgspec.structs.replace(public.settings, allow_unbound_reuse=rotation == "reuse" or None)
    )
    async with open_ledger(folder, options=options, clients=[public, client()]) as opened:
        yield opened, await opened.issue(client_id="app")
    check_ledger(opened.path)


async def redeemed(opened: Opened, *those: TokenAnswer) -> list[TokenAnswer | Refusal]:
    """What a public client is told that redeems these together."""
    told: list[TokenAnswer | Refusal] = []
    asked = (opened.refresh(each, client_id="app", authenticated=False) for each in those)
    for each in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(each, TokenAnswer | Refused)
        told.append(each.refusal if isinstance(each, Refused) else each)
    return told


async def sink_a_redemption(folder: Path) -> None:
    """Somebody's defect sinks the batch of a redemption, which is decided again. It is the only one in the burst."""
    async with limited_to(folder, 1, "rotate") as (opened, token):

        async def behind() -> None:
            with pytest.raises(ZeroDivisionError):
                await opened.ledger.commits.submit(fault_after())

        redeeming = opened.refresh(token, client_id="app", authenticated=False)
        told, _ = await asyncio.gather(redeeming, behind(), return_exceptions=True)
        assert isinstance(told, TokenAnswer), "too fast, though nothing was redeemed"
        assert [Refusal.TOO_FAST] == await redeemed(opened, told)


async def test_a_redemption_that_is_decided_twice_is_spent_once(tmp_path: Path) -> None:
    """The burst is spent by what happened, not by what was decided."""
    await sink_a_redemption(tmp_path)


async def test_a_burst_that_is_spent_at_the_decision_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above."""

    def at_once(act: Callable[..., None], *arguments: object) -> Callable[[], None]:
        act(*arguments)
        return lambda: None

    monkeypatch.setattr(redeeming, "partial", at_once)
    with pytest.raises(AssertionError, match="too fast"):
        await sink_a_redemption(tmp_path)


async def redeem_together(folder: Path) -> None:
    """One token that is not rotated, more often in one batch than the burst is long."""
    async with limited_to(folder, 3, "reuse") as (opened, token):
        batches = opened.ledger.commits.batches
        told = await redeemed(opened, *[token] * 5)
        assert 2 == told.count(Refusal.TOO_FAST), "beyond the burst"
        assert batches + 1 == opened.ledger.commits.batches
        assert 3 == opened.topics(token).count("token_redeemed")
        assert [Refusal.TOO_FAST] == await redeemed(opened, token)


async def test_what_one_batch_redeems_counts_within_it(tmp_path: Path) -> None:
    """What is not spent yet is under way: of the redemptions that come together no more happen than one by one."""
    await redeem_together(tmp_path)


async def test_a_limit_that_sees_only_what_happened_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above."""
    limit = Bursts.retry_after_seconds
    monkeypatch.setattr(
        Bursts, "retry_after_seconds", lambda self, grant_id, now, under_way: limit(self, grant_id, now)
    )
    with pytest.raises(AssertionError, match="beyond the burst"):
        await redeem_together(tmp_path)


@pytest.mark.parametrize("of", ["www", "other"])
async def test_what_a_failed_erasure_saw_is_told_as_if_it_had_seen_nothing_else(tmp_path: Path, of: str) -> None:
    """A presentation in the batch of an erasure which did not happen is not counted, and where it is another client's
    its context is opened by the grant's own salt, as any other (I-20)."""
    async with open_ledger(tmp_path, store=FaultyStore, clients=(client(), client("other"))) as opened:
        dead = await opened.issue()
        await opened.refresh(dead)
        if of == "www":
            await opened.act("revoke", dead.grant_id)
        faulty(opened).on_commit.append(instead(StoreFull("no room")))
        erasing = opened.ledger.operators.erase(SECURITY, "alice")
        answers = await asyncio.gather(
            erasing, opened.refresh(dead, client_id=of, source=ELSEWHERE), return_exceptions=True
        )
        assert [Unavailable, Unavailable] == [type(answer) for answer in answers]
        opened.ledger.afterwards.record_foreign()
        await flush(opened)
        await opened.ledger.operators.record_read(SECURITY, "anything, behind what was put in line")
        named = opened.rows("SELECT commitment FROM private_contexts WHERE address = ?", ELSEWHERE.address)
        ((salt,),) = opened.rows("SELECT salt FROM private_grants")
        assert isinstance(salt, bytes)
        value = context_value(ELSEWHERE.address, ELSEWHERE.user_agent)
        assert ([(commitment(salt, "context", value),)] if of == "other" else []) == named
    check_ledger(opened.path)


async def test_a_presentation_that_was_decided_twice_is_counted_once(tmp_path: Path) -> None:
    """A batch that somebody else's defect has sunk is decided again, each alone."""

    def defect(batch: Batch) -> None:
        raise RuntimeError("a defect")

    async def behind() -> None:
        await opened.ledger.commits.submit(defect)

    async with open_ledger(tmp_path) as opened:
        dead = await opened.issue()
        await opened.act("revoke", dead.grant_id)
        refused, defective = await asyncio.gather(opened.refresh(dead), behind(), return_exceptions=True)
        assert (Refused, RuntimeError) == (type(refused), type(defective))
        assert 1 == opened.ledger.desk.presentations.waiting(dead.grant_id, ended=True)
        await flush(opened)
        assert [1] == counted(opened, dead)
