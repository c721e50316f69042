"""What is over moves into the archive: which events, what is left of them, what may go on beside it (I-14, I-23)."""

import asyncio
import contextlib
import time
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger import movable, times
from ledger.answers import Source
from ledger.archiving import Report
from ledger.movable import PART_EVENTS_MIN, Judging
from ledger.moving import Checking, Moving
from ledger.recorders.rows import Reads, StreamKey
from ledger.refusals import Unavailable
from projections import grant_history
from tests.archived_twins import lived, log_of, rebuilt
from tests.archives import archive, reopened
from tests.engines import alter
from tests.ledger_check import check_ledger
from tests.ledgers import HOME, LOCAL_OPERATOR, SECURITY, caller, client, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def test_an_ended_grant_leaves_one_row(tmp_path: Path) -> None:
    """State, reason class, last generation, hash of the last event, versions and positions, and where they lie."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        await opened.chain(first, 2)
        await opened.act("revoke", first.grant_id, reason="over")
        events = opened.grant_events(first)
        positions = [int(str(position)) for (position,) in opened.rows(_POSITIONS, f"grant:{first.grant_id}")]
        await opened.issue("bob")
        report = await archive(opened)
        assert (len(events), 1, 1, 0) == (report.events, report.pieces, report.segments, report.foreign)
        (row,) = opened.rows(
            "SELECT from_v, to_v, from_position, to_position, back, hex(head), at, state, reason, generation, withheld,"
            " said_v, said_position FROM archived"
        )
        head = opened.rows("SELECT hex(head) FROM streams WHERE name = ?", f"grant:{first.grant_id}")[0][0]
        last = events[-1]
        assert (1, last.v, positions[0], positions[-1], 0, head, last.at, "revoked", "termination", 2) == row[:10]
        assert (0, last.v, positions[-1]) == row[10:]
        assert [] == opened.rows(_POSITIONS, f"grant:{first.grant_id}")
        assert Report() == await archive(opened)


_POSITIONS = "SELECT e.position FROM events e JOIN streams s ON s.id = e.stream WHERE s.name = ? ORDER BY e.position"


async def test_a_short_grant_that_lives_stays_and_of_a_long_one_moves_what_is_old(tmp_path: Path) -> None:
    """Part of a stream moves only where the row that is left is worth it; nothing that is younger does."""
    async with open_ledger(tmp_path) as opened:
        short, long = await opened.issue("ann"), await opened.issue("bob")
        await opened.chain(short, 5)
        last = await opened.chain(long, 100)
        before = opened.clock.now
        opened.clock.pass_seconds(1)
        last = await opened.chain(last, 20)
        report = await archive(opened, before)
        moved = [event for event in opened.grant_events(long) if event.at < times.text(before)]
        assert [] == moved
        assert 200 > report.events > 150
        assert 11 == len(opened.grant_events(short))
        assert (await opened.refresh(last)).refresh_token is not None
        check_ledger(opened.path)


@pytest.mark.usefixtures("made_small")
async def test_the_last_event_of_the_log_stays(tmp_path: Path) -> None:
    """Positions go on above it: none is ever given twice, also when everything else has moved."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.act("revoke", answer.grant_id)
        last = opened.last_position()
        await archive(opened)
        assert last == opened.last_position()
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert last == opened.ledger.acknowledged_position
        await opened.issue("bob")
        assert last < opened.last_position()
        check_ledger(opened.path)


@pytest.mark.usefixtures("made_small")
async def test_what_happens_to_an_archived_grant_later_is_appended_and_archived_in_its_turn(tmp_path: Path) -> None:
    """A presentation after the end is counted in an event of its own, linked to one that lies in a segment."""
    async with open_ledger(tmp_path) as opened:
        assert opened.ledger._ticker is not None
        opened.ledger._ticker.cancel()
        answer = await opened.issue()
        await opened.act("revoke", answer.grant_id)
        await opened.issue("bob")
        await archive(opened)
        for _ in range(3):
            await opened.refused(answer)
        opened.clock.pass_seconds(61)
        await opened.ledger.afterwards.flush_presentations(opened.clock.now)
        assert ["presentations_counted"] == opened.topics(answer)
        await opened.issue("eve")
        check_ledger(opened.path)
        assert 1 == (await archive(opened)).events
        assert [] == opened.topics(answer)
        check_ledger(opened.path)
        assert [] == rebuilt(tmp_path).differences


@pytest.mark.usefixtures("made_small")
async def test_the_nonce_of_a_grant_that_an_epoch_ended_is_forgotten_with_it(tmp_path: Path) -> None:
    """Nobody shall be able to make its tokens; one that lives keeps it."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue("ann")
        lives = await opened.issue("bob")
        await opened.ledger.operators.revoke_subject(LOCAL_OPERATOR, "ann", None, None)
        opened.clock.pass_seconds(1)
        await opened.chain(lives, 6)
        await archive(opened)
        assert [(1, 0), (2, 1)] == opened.rows(
            "SELECT row_number() OVER (ORDER BY stream), nonce IS NOT NULL FROM private_grants ORDER BY stream"
        )
        opened.check_memory()


@pytest.mark.parametrize("broken", [False, True])
async def test_a_run_under_a_clock_that_was_wrong_costs_no_grant_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """I-24: what only the clock said was over goes on once the clock is right again. The twin that takes its word
    forgets the nonce, and no token of the grant is ever good again."""
    real = Checking._moving

    def believing(self: Checking, reads: Reads, judging: Judging, run: Any) -> Moving | None:
        found = real(self, reads, judging, run)
        return None if found is None else found._replace(over=run.stream)

    if broken:
        monkeypatch.setattr(Checking, "_moving", believing)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.chain(await opened.issue("ann"), 2)
        await opened.issue("bob")
        opened.clock.pass_seconds(YEARS)
        assert 5 == (await archive(opened, opened.clock.now - 90 * 86_400 * 10**6)).events
        opened.clock.pass_seconds(60 - YEARS)
        if broken:
            with pytest.raises(Unavailable):
                await opened.refresh(answer)
            return
        last = await opened.chain(answer, 3)
        assert (await opened.ledger.introspect(caller(), last.access_token)) is not None
        await archive(opened)
        await opened.chain(last, 1)
        check_ledger(opened.path)
    assert [] == rebuilt(tmp_path).differences


YEARS = 5 * 365 * 86_400


@pytest.mark.usefixtures("made_small")
async def test_erasing_a_person_works_on_what_is_archived(tmp_path: Path) -> None:
    """Private rows are in no segment: they go, and every event stays as it was hashed."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue("ann", device="Ann's phone")
        await opened.chain(answer, 3)
        await opened.act("revoke", answer.grant_id, reason="Ann has left")
        await opened.issue("bob")
        await archive(opened)
        kept = opened.store.segments
        lines = b"".join(line for name in kept.names() for block in kept.blocks(name) for line in block.lines)
        assert b"grant.issued" in lines
        for text in (b"Ann", b"ann", HOME.address.encode(), HOME.user_agent.encode()):
            assert text not in lines
        assert await opened.ledger.operators.erase(LOCAL_OPERATOR, "ann")
        assert [] == opened.rows("SELECT * FROM private_reasons WHERE event_id LIKE ?", f"grant:{answer.grant_id}/%")
        check_ledger(opened.path)
        with opened.store.reader() as reads:
            told = grant_history.history(reads, answer.grant_id, opened.clock.now, limit=100, discloses=lambda _: True)
        assert told is not None
        assert all(event.disclosed is msgspec.UNSET for event in told.events)


async def test_a_history_that_does_not_hold_is_not_buried(tmp_path: Path) -> None:
    """I-14: nothing moves from where a link is broken, and a rebuild finds it as before."""
    async with open_ledger(tmp_path) as opened:
        clock = opened.clock
        answer = await opened.issue()
        await opened.chain(answer, 3)
        await opened.act("revoke", answer.grant_id)
        await opened.issue("bob")
    sql = "UPDATE events SET body = replace(body, 'openid', 'banana') WHERE v = 4 AND body LIKE '%openid%'"
    assert 1 == alter(tmp_path / "ledger.db", sql)
    async with reopened(tmp_path, clock) as opened:
        assert 4 == (await archive(opened)).events
        assert 5 == opened.grant_events(answer)[0].v
    assert not rebuilt(tmp_path).history_holds


@pytest.mark.parametrize("whose", ["of a long history", "of a client's end"])
async def test_one_altered_event_keeps_no_other_history_from_moving(tmp_path: Path, whose: str) -> None:
    """One that is to say up to where a history is old, or how grants came to their end, and says nothing any more."""
    async with open_ledger(tmp_path, clients=(client(), client("other"))) as opened:
        await opened.issue()
        long, over = await opened.issue(client_id="other"), await opened.issue(client_id="other")
        await opened.ledger.operators.revoke_client(SECURITY, "www", None, None)
        await opened.act("revoke", over.grant_id)
        for _ in range(PART_EVENTS_MIN):
            long = await opened.refresh(long, client_id="other")
        opened.clock.pass_seconds(1)
        await opened.refresh(long, client_id="other")
        clock = opened.clock
    which = f"'%{long.grant_id}%' AND v > 1" if whose == "of a long history" else "'%client.revoked%'"
    assert alter(tmp_path / "ledger.db", f"UPDATE events SET body = '{{' || body WHERE body LIKE {which}")
    async with reopened(tmp_path, clock) as opened:
        await archive(opened, clock.now)
        moved = opened.rows("SELECT name FROM archived JOIN streams ON id = stream")
    assert (f"grant:{over.grant_id}",) in moved
    assert (whose != "of a long history") == ((f"grant:{long.grant_id}",) in moved)


# ------------------------------------------------------------ beside the work


@pytest.mark.usefixtures("made_small")
async def test_refreshes_go_on_while_a_run_moves_the_past(tmp_path: Path) -> None:
    """Bounded steps among the refreshes' own transactions; two runs at once are one after the other."""
    async with open_ledger(tmp_path) as opened:
        olds = [await opened.issue(f"old-{number}") for number in range(8)]
        for old in olds:
            await opened.chain(old, 4)
            await opened.act("revoke", old.grant_id)
        hot = await opened.issue("hot")
        before = opened.clock.now + 1
        opened.clock.pass_seconds(1)  # else what is refreshed meanwhile could move too, and would be run after for ever
        running = [asyncio.create_task(archive(opened, before)) for _ in range(2)]
        refreshed = 0
        while not all(task.done() for task in running):
            hot = await opened.refresh(hot)
            refreshed += 1
        reports = [await task for task in running]
        assert refreshed > 10
        assert sum(report.events for report in reports) >= 8 * 10
        check_ledger(opened.path)
        opened.check_memory()


@pytest.mark.usefixtures("made_small")
async def test_a_run_that_is_broken_off_is_finished_by_the_next(tmp_path: Path) -> None:
    """A command that is interrupted, a server that stops: whatever moved stays moved."""
    _, clock = await lived(tmp_path / "lived", 8)
    expected = log_of(tmp_path / "lived")
    async with reopened(tmp_path / "lived", clock) as opened:
        for passes in range(0, 60, 3):
            task = asyncio.create_task(archive(opened))
            for _ in range(passes):
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await archive(opened)
        assert Report() == await archive(opened)
    assert expected == log_of(tmp_path / "lived")
    check_ledger(tmp_path / "lived" / "ledger.db")


@pytest.mark.usefixtures("made_small")
async def test_a_run_is_broken_off_before_it_has_looked_at_every_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is told to stop waits for it, and no longer than a request may take; there may be millions."""
    pages: list[StreamKey | None] = []
    real = movable.streams

    def slow(reads: Reads, after: StreamKey | None) -> list[movable.Movable]:
        pages.append(after)
        time.sleep(0.05)
        return real(reads, after)

    async with open_ledger(tmp_path) as opened:
        for _ in range(60):
            over = await opened.issue()
        await opened.act("revoke", over.grant_id)
        await opened.issue()
        with monkeypatch.context() as patched:
            patched.setattr(movable, "streams", slow)
            task = asyncio.ensure_future(archive(opened))
            while not pages:
                await asyncio.sleep(0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert len(pages) < 5
        assert 2 == (await archive(opened)).events
    check_ledger(opened.path)


async def test_a_refresh_takes_at_most_300_bytes_in_the_archive(tmp_path: Path) -> None:
    """What the archive is for: a quarter of the JSON, the issuances and ends included."""
    async with open_ledger(tmp_path) as opened:
        chance, refreshes = Random(7), 0
        grants = [await opened.issue(f"person-{number}") for number in range(40)]
        for _ in range(12):
            for number, grant in enumerate(grants):
                opened.clock.pass_seconds(chance.random() * 1800)
                source = Source(f"198.51.100.{number}", chance.choice(("app/1", "app/2")))
                grants[number] = await opened.refresh(grant, source=source)
                refreshes += 1
        for grant in grants:
            await opened.act("revoke", grant.grant_id)
        await opened.issue("later")
        report = await archive(opened)
        assert report.events >= 2 * refreshes
        assert 300 >= report.bytes / refreshes
