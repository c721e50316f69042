"""Group commit: many decisions, one durable transaction, and nobody is answered before it or sunk by another."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ledger import commits as commits_module
from ledger import tokens
from ledger.answering import Unmade
from ledger.answers import TokenAnswer
from ledger.application import Ledger, Options
from ledger.batch import Batch
from ledger.head_file import HeadFile
from ledger.operating import record_read
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.registration import SettingsRefused
from tests.committing import HASTY, fault_after, grants, hanging, unavailable
from tests.faulty_store import FaultyStore, Held, Neighbour, faulty, locked_by_another_process
from tests.ledgers import OPERATORS, SECURITY, Opened, check_ledger, client, open_ledger

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- many in one, and none before it


async def test_concurrent_requests_share_one_durable_transaction(tmp_path: Path) -> None:
    """Group commit: a hundred refreshes that come together are one COMMIT; each has its own events."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 100)
        before = faulty(opened).commits
        answers = await asyncio.gather(*map(opened.refresh, issued))
        assert before + 1 == faulty(opened).commits
        assert 100 == len({answer.position for answer in answers})
        assert 100 == len({opened.grant_events(answer)[-1].command_id for answer in answers[:3]}) + 97
    assert 100 == check_ledger(opened.path).topics["grant.token_rotated"]


async def test_a_batch_is_bounded_and_the_rest_comes_next(tmp_path: Path) -> None:
    """No more than 256 decisions keep each other waiting, in the order they came."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        before = faulty(opened).commits
        answers = await grants(opened, 300)
        assert before + 2 == faulty(opened).commits
        assert sorted(answer.position for answer in answers) == [answer.position for answer in answers]
    check_ledger(opened.path)


async def test_one_after_the_other_each_has_its_own_commit(tmp_path: Path) -> None:
    """The twin of the two above: without company there is nothing to share."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        answer = await opened.issue()
        before = faulty(opened).commits
        await opened.chain(answer, 5)
        assert before + 5 == faulty(opened).commits


async def test_what_comes_during_a_commit_goes_into_the_next_together(tmp_path: Path) -> None:
    """While the disk is waited for the loop goes on, and a line forms."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 20)
        held, flying = await hanging(opened, issued[0])
        before = faulty(opened).commits
        rest = [asyncio.ensure_future(opened.refresh(answer)) for answer in issued[1:]]
        await asyncio.sleep(0.02)
        assert before == faulty(opened).commits
        held.go_on.set()
        await asyncio.gather(*flying, *rest)
        assert before + 1 == faulty(opened).commits
    check_ledger(opened.path)


def durable_when_told(opened: Opened, answer: "asyncio.Future[TokenAnswer]") -> list[bool]:
    """Look into the file, on a connection of one's own, at the moment an answer is given."""
    seen: list[bool] = []
    answer.add_done_callback(lambda done: seen.append(opened.last_position() >= done.result().position))
    return seen


async def test_no_answer_precedes_its_commit(tmp_path: Path) -> None:
    """I-02: while COMMIT waits for the disk nobody is answered and nothing is in the file; with the answer it is."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await opened.issue()
        before, held = opened.last_position(), Held()
        faulty(opened).on_commit.append(held)
        answer = asyncio.ensure_future(opened.refresh(issued))
        seen = durable_when_told(opened, answer)
        await held.arrival()
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert not answer.done()
            assert before == opened.last_position()
        held.go_on.set()
        assert before + 2 == (await answer).position
        assert [True] == seen


async def test_answers_are_made_while_the_disk_is_waited_for(tmp_path: Path) -> None:
    """While COMMIT hangs the new token is known to the process already, and told to nobody."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        held, (answer,) = await hanging(opened, await opened.issue())
        await asyncio.sleep(0.05)
        (made,) = opened.ledger.desk.handed_out.values()
        assert (1, False) == (made.generation, answer.done())
        held.go_on.set()
        assert made.text == (await answer).refresh_token


async def test_an_answer_that_cannot_be_made_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in making one answer: it is told to that one, whose events stay and whose retry is served."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 3)
        made = Unmade.made

        def but_one(self: Unmade) -> TokenAnswer:
            if self.grant_id == issued[1].grant_id:
                raise ZeroDivisionError
            return made(self)

        with monkeypatch.context() as patch:
            patch.setattr(Unmade, "made", but_one)
            told = await asyncio.gather(*(opened.refresh(each) for each in issued), return_exceptions=True)
        assert [True, False, True] == [isinstance(each, TokenAnswer) for each in told]
        assert isinstance(told[1], ZeroDivisionError)
        again = [
            tokens.parse(opened.ledger.desk.ring, (await opened.refresh(each)).refresh_token or "") for each in issued
        ]
        assert [1, 1, 1] == [each.generation for each in again if each is not None]
    check_ledger(opened.path)


async def test_a_store_that_says_durable_too_early_is_caught(tmp_path: Path) -> None:
    """The broken twin of the test above: COMMIT returns before it happened, and the answer is ahead of the file."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await opened.issue()
        late: list[Callable[[], object]] = []
        faulty(opened).on_commit.append(late.append)
        answer = asyncio.ensure_future(opened.refresh(issued))
        seen = durable_when_told(opened, answer)
        await answer
        late[0]()
        assert [False] == seen


# ---------------------------------------------------------------- one loser sinks nobody


@pytest.mark.parametrize("place", [0, 5, 11])
async def test_a_defect_in_one_decision_fails_that_one_alone(tmp_path: Path, place: int) -> None:
    """A decision that raises what nobody foresaw gets it back; the others of its batch are answered and durable."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 11)
        waiting: list[Awaitable[object]] = [opened.refresh(answer) for answer in issued]
        waiting.insert(place, opened.ledger.commits.submit(fault_after()))
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers.pop(place), ZeroDivisionError)
        assert all(isinstance(answer, TokenAnswer) for answer in answers)
        opened.check_memory()
    assert 11 == check_ledger(opened.path).topics["grant.token_rotated"]


async def test_a_defect_that_no_future_takes_is_told_too(tmp_path: Path) -> None:
    """`StopIteration` cannot be put into a future: whoever waits is told all the same, and the line goes on."""
    async with open_ledger(tmp_path) as opened:

        def decide(batch: Batch) -> None:
            next(iter(()))

        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(opened.ledger.commits.submit(decide), 5)
        await asyncio.wait_for(opened.issue(), 5)
    check_ledger(opened.path)


async def test_what_a_defect_appended_before_it_showed_is_gone(tmp_path: Path) -> None:
    """A command's events are recorded together or not at all, also where the command breaks off half way."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        stream = f"grant:{issued.grant_id}"

        def half(batch: Batch) -> None:
            record_read(batch, SECURITY, "half", None)

        answers = await asyncio.gather(
            opened.ledger.commits.submit(fault_after(half)), opened.refresh(issued), return_exceptions=True
        )
        assert isinstance(answers[0], ZeroDivisionError)
        assert isinstance(answers[1], TokenAnswer)
        assert [] == opened.events("audit")
        assert 3 == len(opened.events(stream))
        opened.check_memory()
    check_ledger(opened.path)


async def test_a_refusal_costs_the_others_nothing(tmp_path: Path) -> None:
    """Refused is an answer like any other: no second attempt, no second commit."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 5)
        before = faulty(opened).commits
        answers = await asyncio.gather(
            *map(opened.refresh, issued), opened.refresh(issued[0], scope=("admin",)), return_exceptions=True
        )
        assert isinstance(answers[-1], Refused)
        assert Refusal.INVALID_SCOPE is answers[-1].refusal
        assert before + 1 == faulty(opened).commits


async def test_a_clients_file_that_is_refused_costs_the_others_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A clients file that breaks a rule is refused alone: no defect, no log line, no second attempt."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await opened.issue()
        before = faulty(opened).commits
        answers = await asyncio.gather(
            opened.apply(client(auth="none"), client()), opened.refresh(issued), return_exceptions=True
        )
        assert isinstance(answers[0], SettingsRefused)
        assert isinstance(answers[1], TokenAnswer)
        assert before + 1 == faulty(opened).commits
        assert "decision_failed" not in [record.getMessage() for record in caplog.records]


async def test_one_lost_race_sinks_nobody(tmp_path: Path) -> None:
    """A grant that another node has rotated meanwhile is decided again, on what that node wrote: the same successor
    for both (I-03). Its batch commits all the same."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 12)
        async with neighbour(opened) as other:
            theirs = await other.refresh(issued[7])
        answers = await asyncio.gather(*map(opened.refresh, issued))
        assert theirs.refresh_token == answers[7].refresh_token
        assert theirs.access_token == answers[7].access_token
        assert "retry_served" == opened.topics(issued[7])[-1]
        opened.check_memory()
    assert 12 == check_ledger(opened.path).topics["grant.token_rotated"]


def neighbour(opened: Opened) -> "NeighbourOpened":
    return NeighbourOpened(opened)


class NeighbourOpened:
    """A second ledger on the same file, as another node would be one on a store that has many."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def __aenter__(self) -> Opened:
        first = self._opened.ledger
        store = Neighbour(self._opened.path)
        store.open(first.desk.ring.ring_id)
        self._ledger = await Ledger.open(
            store,
            first.desk.ring,
            self._opened.folder / "ledger.keys",
            HeadFile(None),
            first.options,
            clock=self._opened.clock,
            randomness=random.Random("neighbour").randbytes,
        )
        return Opened(self._ledger, self._opened.folder, self._opened.clock, [])

    async def __aexit__(self, *_: object) -> None:
        await self._ledger.close()


async def test_two_nodes_that_take_turns_converge(tmp_path: Path) -> None:
    """Whatever either believes to know, positions, versions and generations go on without gap or double."""
    async with open_ledger(tmp_path) as opened, neighbour(opened) as other:
        drawn = random.Random(6)
        newest = dict(enumerate(await grants(opened, 6)))
        for _ in range(30):
            chosen = drawn.sample(range(6), 3)
            answers = await asyncio.gather(
                *(drawn.choice((opened, other)).refresh(newest[n]) for n in chosen), other.issue(), opened.issue()
            )
            newest |= dict(zip(chosen, answers, strict=False))
    check_ledger(opened.path)


# ---------------------------------------------------------------- what stands outside the grants has moved


async def test_an_end_by_another_node_is_seen_by_the_next_decision(tmp_path: Path) -> None:
    """I-06: the control counter moved, so what was known of authority is read again before anything is decided."""
    async with open_ledger(tmp_path) as opened, neighbour(opened) as other:
        alice, bob = await opened.issue("alice"), await opened.issue("bob")
        await opened.refresh(bob)
        await other.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        assert Refusal.REVOKED_BY_SUBJECT is (await opened.refused(alice)).refusal
        await other.apply(client("other"), operators=OPERATORS, serial=3)
        assert opened.ledger.authority.client("www") is not None, "nothing was asked of this node yet"
        assert Refusal.UNKNOWN_TOKEN is (await opened.refused(bob)).refusal
        assert opened.ledger.authority.client("www") is None
        opened.check_memory()
    check_ledger(opened.path)


# ---------------------------------------------------------------- the connection for oneself, and the end


async def test_an_exclusive_act_goes_before_the_line(tmp_path: Path) -> None:
    """What needs the connection for itself (a checkpoint after an erasure, a rebuild's step) runs between two batches,
    before whoever is in line: steady load never keeps it waiting longer than one commit."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 4)
        first, (flying,) = await hanging(opened, issued[0])
        second = Held()
        faulty(opened).on_commit.append(second)
        in_line = [asyncio.ensure_future(opened.refresh(answer)) for answer in issued[1:]]
        exclusive = asyncio.ensure_future(
            opened.ledger.commits.exclusively(lambda: (opened.connection.in_transaction, opened.last_position()))
        )
        await asyncio.sleep(0.02)
        assert not exclusive.done(), "a batch is under way"
        first.go_on.set()
        async with asyncio.timeout(5):
            assert (False, (await flying).position) == await exclusive
        assert not any(each.done() for each in in_line)
        second.go_on.set()
        await asyncio.gather(*in_line)
    check_ledger(opened.path)


async def test_an_exclusive_act_that_fails_tells_its_caller_alone(tmp_path: Path) -> None:
    """What it raises is its caller's; the line goes on."""
    async with open_ledger(tmp_path) as opened:
        with pytest.raises(ZeroDivisionError):
            await opened.ledger.commits.exclusively(lambda: 1 // 0)
        await opened.issue()


async def test_closing_answers_who_is_in_line_and_takes_nobody_in(tmp_path: Path) -> None:
    """SIGTERM's part: what was begun is answered, durable; what comes later is told to go elsewhere."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await grants(opened, 5)
        held, flying = await hanging(opened, issued[0])
        rest = [asyncio.ensure_future(opened.refresh(answer)) for answer in issued[1:4]]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(opened.ledger.commits.close())
        await asyncio.sleep(0.01)
        await unavailable(opened.refresh(issued[4]))
        held.go_on.set()
        await asyncio.gather(*flying, *rest)
        assert await closing
    assert 4 == check_ledger(opened.path).topics["grant.token_rotated"]


async def test_closing_does_not_wait_for_a_store_that_stays_busy(tmp_path: Path) -> None:
    """Nobody waits longer than their deadline, the one who closes neither."""
    async with open_ledger(tmp_path, options=HASTY) as opened:
        issued = await opened.issue()
        with locked_by_another_process(opened.path):
            waiting = asyncio.ensure_future(opened.refresh(issued))
            await asyncio.sleep(0)
            async with asyncio.timeout(3):
                assert await opened.ledger.commits.close()
            await unavailable(waiting)


async def test_the_line_itself_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes when the line is full is told at once."""
    async with open_ledger(tmp_path) as opened:
        issued = await grants(opened, 5)
        monkeypatch.setattr(commits_module, "WAITING_MAX", 3)
        answers = await asyncio.gather(*map(opened.refresh, issued), return_exceptions=True)
        assert [TokenAnswer] * 3 + [Unavailable] * 2 == [type(answer) for answer in answers]


def test_options_say_how_long_a_request_may_wait() -> None:
    """The deadline of the line is the request's own."""
    assert 10 == Options().request_timeout_seconds
