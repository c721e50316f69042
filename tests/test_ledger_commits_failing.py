"""Commits where the store is busy, full, silent or broken: who is told what, and what memory holds (I-11, I-12)."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ledger import commits as commits_module
from ledger.answers import TokenAnswer
from ledger.recorders.errors import LostRace, StoreError
from ledger.recorders.rows import Work
from ledger.refusals import Unavailable
from ledger.waiting import nothing
from tests.committing import BROKEN, BUSY, FULL, HASTY, fault_after, grants, hanging, unavailable, until
from tests.faulty_store import Fault, FaultyStore, Held, after, faulty, instead, locked_by_another_process
from tests.ledgers import LOCAL_OPERATOR, SECURITY, Opened, check_ledger, client, open_ledger

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- busy


async def test_a_busy_store_is_waited_for(tmp_path: Path) -> None:
    """Another program holds the write lock: nobody is refused before the deadline, and nothing is lost."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 3)
        with locked_by_another_process(opened.path):
            waiting = [asyncio.ensure_future(opened.refresh(answer)) for answer in issued]
            await asyncio.sleep(0.3)
            assert not any(each.done() for each in waiting)
            assert opened.ledger.readiness() is None
        answers = await asyncio.gather(*waiting)
        assert len({answer.position for answer in answers}) == 3
        opened.check_memory()
    check_ledger(opened.path)


async def test_at_its_deadline_who_waits_for_a_busy_store_is_told(tmp_path: Path) -> None:
    """503 in the end, nothing recorded; the same request is good again as soon as the store is."""
    async with open_ledger(tmp_path, options=HASTY) as opened:
        issued = await opened.issue()
        before = opened.last_position()
        with locked_by_another_process(opened.path):
            started = asyncio.get_running_loop().time()
            await unavailable(opened.refresh(issued))
            assert 0.4 <= asyncio.get_running_loop().time() - started
        assert before == opened.last_position()
        await opened.refresh(issued)
        opened.check_memory()
    check_ledger(opened.path)


async def test_the_last_words_of_an_end_wait_for_its_time_all_together(tmp_path: Path) -> None:
    """What was counted, the record of the end, and whoever comes late: not each for as long as a request may take."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        await opened.act("revoke", issued.grant_id)
        await opened.refused(issued)
        commits, time = opened.ledger.commits, asyncio.get_running_loop().time
        with locked_by_another_process(opened.path):
            began = time()
            commits.end_within(0.5)
            await opened.ledger.stopped()
            await unavailable(commits.submit(nothing))
            assert await commits.close()
            assert 0.5 <= time() - began < 2.0
    check_ledger(opened.path)


async def test_a_store_that_stays_busy_makes_unready_and_heals_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """I-24: unready once no commit has succeeded for a while though one was asked for; ready again by itself. Of each
    such time the log says once why; of a moment nothing."""
    monkeypatch.setattr(commits_module, "UNREADY_AFTER_SECONDS", 0.6)
    held = "another process holds the write lock"
    async with open_ledger(tmp_path, options=HASTY) as opened:
        issued = await opened.issue()
        with locked_by_another_process(opened.path):
            await unavailable(opened.refresh(issued))
        await until(lambda: opened.ledger.commits.stalled_seconds == 0)
        assert "store_failed" not in caplog.messages
        for times in (1, 2):
            with locked_by_another_process(opened.path):
                await unavailable(opened.refresh(issued))
                await asyncio.sleep(0.5)
                assert held == opened.ledger.readiness()
            await until(lambda: opened.ledger.readiness() is None)
            issued = await opened.refresh(issued)
            told = [record for record in caplog.records if record.getMessage() == "store_failed"]
            assert [{"problem": held}] * times == [record.fields for record in told]  # type: ignore[attr-defined]
    check_ledger(opened.path)


# ---------------------------------------------------------------- full


def fill_up(opened: Opened) -> None:
    """Let the engine itself find no room: no page more than there are."""
    connection = opened.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")


async def test_a_full_disk_refuses_cleanly_and_heals_without_restart(tmp_path: Path) -> None:
    """I-12: no 200, no changed memory, nobody's token spent; with room again everything goes on."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 40)
        fill_up(opened)
        answers: list[object] = []
        while not any(isinstance(answer, Unavailable) for answer in answers):
            answers = await asyncio.gather(*map(opened.refresh, issued), return_exceptions=True)
            if all(isinstance(answer, TokenAnswer) for answer in answers):
                issued = [answer for answer in answers if isinstance(answer, TokenAnswer)]
        assert all(isinstance(answer, Unavailable) for answer in answers)
        opened.check_memory()
        assert [] == opened.fatal
        check_ledger(opened.path)
        opened.connection.execute("PRAGMA max_page_count=1000000")
        await asyncio.gather(*map(opened.refresh, issued))
        opened.check_memory()
    check_ledger(opened.path)


class LittleRoom(FaultyStore):
    """A disk with room for a page or two, and for no batch that has events."""

    has_room = True

    def write(self, work: Work) -> None:
        if work.events and not self.has_room:
            raise FULL
        super().write(work)


async def asked_all_along(opened: Opened, issued: TokenAnswer) -> list[str | None]:
    """What readiness says while a client tries again and again, and somebody reads in between."""
    said = []
    for _ in range(20):
        await unavailable(opened.refresh(issued))
        assert await opened.ledger.introspect(LOCAL_OPERATOR, issued.access_token) is not None
        said.append(opened.ledger.readiness())
        await asyncio.sleep(0.08)
    return said


async def test_room_for_little_is_none_for_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unready while all that is to be recorded is refused, whatever may be read, and whatever little could be written.
    One that nobody asks any more asks for itself, and says so when all is well."""
    monkeypatch.setattr(commits_module, "UNREADY_AFTER_SECONDS", 0.8)
    monkeypatch.setattr(commits_module, "PROBE_AFTER_SECONDS", 0.4)
    async with open_ledger(tmp_path, store=LittleRoom) as opened:
        issued = await opened.issue()
        monkeypatch.setattr(opened.store, "has_room", False)
        said = await asked_all_along(opened, issued)
        assert {"no room left on the disk"} == set(said[-5:])
        monkeypatch.setattr(opened.store, "has_room", True)
        await until(lambda: opened.ledger.readiness() is None)
        await opened.refresh(issued)
    check_ledger(opened.path)


async def test_asking_for_little_while_others_are_refused_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: what it asks for by itself has room, so it believes to be well."""
    monkeypatch.setattr(commits_module, "UNREADY_AFTER_SECONDS", 0.8)
    monkeypatch.setattr(commits_module, "PROBE_AFTER_SECONDS", 0.0)
    async with open_ledger(tmp_path, store=LittleRoom) as opened:
        issued = await opened.issue()
        monkeypatch.setattr(opened.store, "has_room", False)
        assert {None} == set(await asked_all_along(opened, issued))


async def test_a_new_ledger_that_cannot_record_its_keys_says_why(tmp_path: Path) -> None:
    """Whoever opens it is told what the store said; the next one opens it."""

    class Full(FaultyStore):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.on_commit.append(instead(FULL))

    with pytest.raises(StoreError, match=str(FULL)):
        async with open_ledger(tmp_path, store=Full):
            pass
    async with open_ledger(tmp_path) as opened:
        await opened.issue()


async def test_a_trouble_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line when it begins, not one a batch."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await opened.issue()
        faulty(opened).on_write.extend([instead(FULL)] * 5)
        for _ in range(5):
            await unavailable(opened.refresh(issued))
        await opened.refresh(issued)
        assert 1 == sum(record.getMessage() == "store_failed" for record in caplog.records)


# ---------------------------------------------------------------- own writes, and outcomes that nobody knows


@pytest.mark.parametrize("said", [BUSY, FULL, StoreError("the connection was lost")])
async def test_own_writes_are_recognised_after_a_commit_that_raised(tmp_path: Path, said: StoreError) -> None:
    """I-11: the transaction was durable though COMMIT said otherwise: a success, not a conflict, not a reuse."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 3)
        faulty(opened).on_commit.append(after(said))
        answers = await asyncio.gather(*map(opened.refresh, issued))
        assert max(answer.position for answer in answers) == opened.last_position()
        opened.check_memory()
        await asyncio.gather(*map(opened.refresh, answers))
    assert 6 == check_ledger(opened.path).topics["grant.token_rotated"]


@pytest.mark.parametrize("said", [BUSY, FULL, StoreError("the connection was lost")])
async def test_a_commit_that_did_not_happen_is_no_success(tmp_path: Path, said: StoreError) -> None:
    """The twin of the test above: nothing of ours is there, so nobody is told that it is."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 3)
        before = opened.last_position()
        faulty(opened).on_commit.append(instead(said))
        answers = await asyncio.gather(*map(opened.refresh, issued), return_exceptions=True)
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert before == opened.last_position()
        opened.check_memory()
        again = await asyncio.gather(*map(opened.refresh, issued))
        assert before + 6 == max(answer.position for answer in again)
    assert 3 == check_ledger(opened.path).topics["grant.token_rotated"]


async def test_who_gave_up_on_a_hanging_commit_gets_the_same_successor_later(tmp_path: Path) -> None:
    """I-10: at the deadline the outcome is unknown; when it turns out durable, the retry is served, no family dies."""
    async with open_ledger(tmp_path, store=FaultyStore, options=HASTY) as opened:
        issued = await opened.issue()
        held = Held()
        faulty(opened).on_commit.append(held)
        await unavailable(opened.refresh(issued))
        assert 0.3 < opened.ledger.commits.stalled_seconds
        held.go_on.set()
        await until(lambda: opened.ledger.commits.stalled_seconds == 0)
        again = await opened.refresh(issued)
        assert ["issued", "token_redeemed", "token_rotated", "retry_served"] == opened.topics(again)
        await opened.refresh(again)
    check_ledger(opened.path)


async def test_a_client_that_has_gone_leaves_its_decision_standing(tmp_path: Path) -> None:
    """Cancelled while COMMIT waits: what was decided becomes durable, and the others are answered."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        gone, kept = await opened.issue(), await opened.issue()
        held, (first, second) = await hanging(opened, gone, kept)
        first.cancel()
        held.go_on.set()
        await second
        assert ["issued", "token_redeemed", "token_rotated"] == opened.topics(gone)
        again = await opened.refresh(gone)
        await opened.refresh(again)
    check_ledger(opened.path)


async def test_a_client_that_has_gone_before_its_turn_changes_nothing(tmp_path: Path) -> None:
    """Cancelled in line: it is not decided at all."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        first, second = await opened.issue(), await opened.issue()
        held, (waiting,) = await hanging(opened, first)
        gone = asyncio.ensure_future(opened.refresh(second))
        await asyncio.sleep(0)
        gone.cancel()
        held.go_on.set()
        await waiting
        await opened.issue()
        assert ["issued"] == opened.topics(second)


# ---------------------------------------------------------------- broken


@pytest.mark.parametrize("fault", [instead(BROKEN), after(BROKEN)], ids=["not-durable", "durable"])
async def test_an_input_output_error_ends_everything(tmp_path: Path, fault: Fault) -> None:
    """I-12: no 200 whether it was durable or not, for nobody in the batch or in line; nothing is known any more; the
    process is told to end, once."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 6)
        held, flying = await hanging(opened, *issued[:3], then=fault)
        in_line = [asyncio.ensure_future(opened.refresh(answer)) for answer in issued[3:]]
        await asyncio.sleep(0)
        alone = asyncio.ensure_future(opened.ledger.commits.exclusively(lambda: None))
        await asyncio.sleep(0)
        held.go_on.set()
        answers = await asyncio.gather(*flying, *in_line, alone, return_exceptions=True)
        assert [Unavailable] * 7 == [type(answer) for answer in answers]
        assert [str(BROKEN)] == opened.fatal
        assert "the store failed" == opened.ledger.readiness()
        assert {} == opened.ledger.memory.streams
        await unavailable(opened.refresh(issued[0]))
        await unavailable(opened.ledger.commits.exclusively(lambda: None))
        assert [str(BROKEN)] == opened.fatal
    async with open_ledger(tmp_path, seed="again", clients=None) as opened:
        again = await asyncio.gather(*map(opened.refresh, issued))  # durable or not: an honest retry (I-10)
        await asyncio.gather(*map(opened.refresh, again))
    check_ledger(opened.path)


@pytest.mark.parametrize("step", ["on_begin", "on_write"])
async def test_an_input_output_error_before_the_commit_ends_everything_too(tmp_path: Path, step: str) -> None:
    """I-12, wherever the engine says it."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await opened.issue()
        getattr(faulty(opened), step).append(instead(BROKEN))
        await unavailable(opened.refresh(issued))
        assert [str(BROKEN)] == opened.fatal
        await unavailable(opened.refresh(issued))


async def test_an_input_output_error_inside_a_decision_ends_everything_too(tmp_path: Path) -> None:
    """I-12: reading is no safer than writing, and no defect of whoever asked."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        answers = await asyncio.gather(
            opened.ledger.commits.submit(lambda batch: batch.store.within().select("SELECT * FROM not_there")),
            opened.refresh(issued),
            return_exceptions=True,
        )
        assert [Unavailable] * 2 == [type(answer) for answer in answers]
        assert ["the database failed: SQLITE_ERROR"] == opened.fatal


async def test_a_batch_that_cannot_begin_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Authority that another node changed and that cannot be made out here: nothing can be decided, by nobody."""

    def no_sense(*_: object) -> None:
        raise ValueError("not to be made out")

    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 3)
        connection = opened.connection
        monkeypatch.setattr(opened.ledger.authority, "follow", no_sense)
        connection.execute("UPDATE control SET counter = counter + 1")
        answers = await asyncio.gather(*map(opened.refresh, issued), return_exceptions=True)
        assert [Unavailable] * 3 == [type(answer) for answer in answers]
        assert ["the authority cannot be read: ValueError"] == opened.fatal
        assert not connection.in_transaction


async def test_authority_that_was_altered_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is served, the log says which event it is, and once that is as it was, all are."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 3)
        connection = opened.connection
        connection.execute("UPDATE events SET body = replace(body, 'client.registered', 'client.unheard_of')")
        connection.execute("UPDATE streams SET state = x'00'")
        connection.execute("UPDATE control SET counter = counter + 1")
        answers = await asyncio.gather(*map(opened.refresh, issued), return_exceptions=True)
        assert [Unavailable] * 3 == [type(answer) for answer in answers]
        fields = [getattr(record, "fields", {}) for record in caplog.records]
        assert any("/1: what is stored is not what was recorded" in str(each.get("problem")) for each in fields)
        connection.execute("UPDATE events SET body = replace(body, 'client.unheard_of', 'client.registered')")
        connection.execute("UPDATE control SET counter = counter - 1")
        await opened.refresh(issued[0])
        assert [] == opened.fatal


async def test_what_cannot_be_read_again_after_a_failure_ends_everything(tmp_path: Path) -> None:
    """Memory that cannot be set right must not be used: the whole batch and the line are told."""

    def lost_and_closed(step: Callable[[], object]) -> None:
        store._connection.close()
        raise LostRace("somebody else")

    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        store = faulty(opened)
        issued = await grants(opened, 3)
        store.on_write.append(lost_and_closed)
        answers = await asyncio.gather(*map(opened.refresh, issued), return_exceptions=True)
        assert [Unavailable] * 3 == [type(answer) for answer in answers]
        (why,) = opened.fatal
        assert why.startswith("what a failed batch had touched cannot be read again: ")


# ---------------------------------------------------------------- whatever happens


async def test_after_any_failure_memory_is_the_store(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """I-01, I-10, I-12: through failures of every kind that heals, each grant has one current token, no generation is
    missing or doubled, and every honest client gets on with its retry."""
    drawn = random.Random(12)
    kinds: list[Callable[[], tuple[str, Fault]]] = [
        lambda: ("on_begin", instead(BUSY)),
        lambda: ("on_write", instead(FULL)),
        lambda: ("on_write", instead(LostRace("a stream had moved on"))),
        lambda: ("on_write", after(FULL)),
        lambda: ("on_commit", instead(FULL)),
        lambda: ("on_commit", instead(BUSY)),
        lambda: ("on_commit", after(FULL)),
        lambda: ("on_commit", after(StoreError("lost"))),
    ]
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        newest: list[TokenAnswer] = await grants(opened, 8)
        for _ in range(count(60, 600)):
            for _ in range(drawn.choice((0, 1, 1, 2))):
                step, fault = drawn.choice(kinds)()
                getattr(faulty(opened), step).append(fault)
            chosen = drawn.sample(range(8), drawn.randint(1, 5))
            waiting: list[Awaitable[object]] = [opened.refresh(newest[n]) for n in chosen]
            if drawn.random() < 0.2:
                waiting.append(opened.ledger.commits.submit(fault_after()))
            if drawn.random() < 0.2:
                waiting.append(opened.issue())
            if drawn.random() < 0.1:
                waiting.append(opened.ledger.operators.revoke_client(SECURITY, "www", None, opened.clock.now - 10**9))
            opened.clock.pass_seconds(drawn.choice((0, 0, 1)))
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            for n, answer in zip(chosen, answers, strict=False):
                if isinstance(answer, TokenAnswer):
                    newest[n] = answer
                else:
                    assert isinstance(answer, Unavailable), repr(answer)
            for faults in (faulty(opened).on_begin, faulty(opened).on_write, faulty(opened).on_commit):
                faults.clear()
            opened.check_memory()
            assert [] == opened.fatal
        await asyncio.gather(*map(opened.refresh, newest))
    checked = check_ledger(opened.path)
    assert 0 == checked.topics.get("grant.reuse_detected", 0)


async def test_positions_only_grow(tmp_path: Path) -> None:
    """A position that was durable once is never given again, whatever failed and whoever opened the file since."""
    seen: list[int] = []
    for life in range(4):
        async with open_ledger(
            tmp_path, seed=life, store=FaultyStore, clients=[client()] if life == 0 else None
        ) as opened:
            for n in range(3):
                faulty(opened).on_commit.append(instead(FULL) if n == 1 else lambda step: step())
                try:
                    answer = await opened.issue()
                except Unavailable:
                    continue
                seen.append(answer.position)
    assert sorted(set(seen)) == seen
    check_ledger(opened.path)
