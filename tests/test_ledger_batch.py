"""One batch: what decisions read and append together, and that memory never knows more or less than the store."""

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path

import pytest

from ledger import issuing, memory, operating, redeeming, tokens
from ledger.answers import IssueRequest, TokenAnswer
from ledger.batch import Batch
from ledger.events import AnyEvent, TokenRedeemed, TokenRotated
from ledger.operating import record_read
from ledger.recorders.errors import StoreFull
from ledger.recorders.reading import StoreReader
from ledger.recorders.rows import GrantsFound
from ledger.recorders.sqlite_keys import number_of
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.subjects import end_subject
from tests.faulty_store import FaultyStore, faulty, instead
from tests.ledgers import (
    ELSEWHERE,
    HOME,
    ISSUER,
    SECURITY,
    Opened,
    caller,
    check_ledger,
    client,
    open_ledger,
    with_policy,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def in_one_batch(opened: Opened, *waiting: Awaitable[object]) -> list[object]:
    """Let requests that were just put in line be decided together."""
    before = opened.ledger.commits.batches
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert before + 1 == opened.ledger.commits.batches
    return list(answers)


async def test_the_same_token_twice_in_a_batch_is_one_redemption_and_its_retry(tmp_path: Path) -> None:
    """I-03: the second decision stands on what the first one appended, though nothing is durable yet."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        answers = await in_one_batch(opened, *(opened.refresh(issued) for _ in range(100)))
        assert all(isinstance(answer, TokenAnswer) for answer in answers)
        assert 1 == len({(a.refresh_token, a.access_token, a.position) for a in answers if isinstance(a, TokenAnswer)})
        assert ["issued", "token_redeemed", "token_rotated", "retry_served"] == opened.topics(issued)
    check_ledger(opened.path)


async def test_a_retry_of_what_the_same_batch_rotated_names_that_position(tmp_path: Path) -> None:
    """The position of an identical retry is the redemption's, also where that redemption is not durable yet."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        first, other, again = await in_one_batch(
            opened, opened.refresh(issued), opened.issue("bob"), opened.refresh(issued)
        )
        assert isinstance(first, TokenAnswer)
        assert isinstance(other, TokenAnswer)
        assert isinstance(again, TokenAnswer)
        assert first.position == again.position == other.position - 1


async def test_an_end_and_a_refresh_in_one_batch_follow_their_order(tmp_path: Path) -> None:
    """I-06: what is decided behind an end meets it, in the same transaction already; what came before it stands."""
    async with open_ledger(tmp_path) as opened:
        first, second = await opened.issue("alice"), await opened.issue("alice")
        answers = await in_one_batch(
            opened,
            opened.refresh(first),
            opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None),
            opened.refresh(second),
        )
        assert isinstance(answers[0], TokenAnswer)
        assert isinstance(answers[2], Refused)
        assert "revoked_by_subject" == answers[2].refusal.value
        assert answers[2].event_id == f"subject:{opened.issuance(second).subject_id}/1"
    check_ledger(opened.path)


async def test_a_grant_is_used_and_ended_in_the_batch_that_made_it(tmp_path: Path) -> None:
    """A stream that no look-up in the store can find yet."""
    async with open_ledger(tmp_path) as opened:

        def at_once(batch: Batch) -> list[AnyEvent]:
            desk = opened.ledger.desk
            request = IssueRequest(client_id="www", subject="alice", scope=("read",))
            issued = issuing.issue(batch, desk, ISSUER, request, "key", b"{}")
            assert issued.access_token == issuing.issue(batch, desk, ISSUER, request, "key", b"{}").access_token
            presented = tokens.parse(desk.ring, issued.refresh_token or "")
            assert presented is not None
            redeeming.redeem(batch, desk, caller(), HOME, presented, None, None)
            operating.act_on_grant(batch, desk, SECURITY, issued.grant_id, "revoke", "by mistake", None)
            name = f"grant:{issued.grant_id}"
            return [batch.event_at(name, v) for v in range(1, 5)]

        events = await opened.ledger.commits.submit(at_once)
        assert ["grant.issued", "grant.token_redeemed", "grant.token_rotated", "grant.revoked"] == [
            event.topic for event in events
        ]
        assert events == opened.events(events[0].stream)
        assert [("by mistake",)] == opened.rows("SELECT text FROM private_reasons")
        opened.check_memory()
    check_ledger(opened.path)


async def test_events_of_one_command_stand_together_with_its_id(tmp_path: Path) -> None:
    """I-11: a redemption's events bear one command id, which no other command has."""
    async with open_ledger(tmp_path) as opened:
        answers = await asyncio.gather(opened.issue(), opened.issue())
        await asyncio.gather(*map(opened.refresh, answers))
        seen: set[str] = set()
        for answer in answers:
            issued, redeemed, rotated = opened.grant_events(answer)
            assert isinstance(redeemed, TokenRedeemed)
            assert isinstance(rotated, TokenRotated)
            assert redeemed.command_id == rotated.command_id
            seen |= {issued.command_id, redeemed.command_id}
        assert 4 == len(seen)
        assert all(len(command_id) == 32 for command_id in seen)


async def test_a_command_keeps_its_id_when_it_is_decided_again(tmp_path: Path) -> None:
    """I-11: an outcome that looked unknown can be recognised as one's own, however often it was decided."""
    ids: list[str] = []

    def decide(batch: Batch) -> None:
        ids.append(batch.command_id)
        record_read(batch, SECURITY, "q", None)
        if len(ids) == 1:
            raise ZeroDivisionError

    async with open_ledger(tmp_path) as opened:

        async def ask() -> None:
            await opened.ledger.commits.submit(decide)

        await asyncio.gather(ask(), opened.issue())
        assert 2 == len(ids), "with others, and alone"
        assert [ids[0]] * 2 == [*ids[1:], *(event.command_id for event in opened.events("audit"))]


async def test_a_stream_that_was_asked_for_and_got_no_event_is_not_known(tmp_path: Path) -> None:
    """I-12: a decision that comes to nothing leaves nothing in memory, and no number that another stream gets too."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        grant = await opened.issue("alice")
        answer = await opened.ledger.operators.revoke_subject(SECURITY, "nobody", None, None)
        assert (False, 0) == (answer.known, answer.epoch)
        await opened.ledger.commits.submit(
            lambda batch: end_subject(batch, "00", requested_by="ledger:reuse", reason_class="reuse")
        )
        assert "subject:00" not in opened.ledger.memory.streams
        faulty(opened).on_write.append(instead(StoreFull("no room")))
        with pytest.raises(Unavailable):
            await opened.issue("bob")
        await opened.issue("carol")
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        assert "revoked_by_subject" == (await opened.refused(grant)).refusal.value
        opened.check_memory()
        numbers = [(number_of(name), id) for id, name in opened.rows("SELECT id, name FROM streams ORDER BY id")]
        counted = [id for follows, id in numbers if follows is None]
        assert [*range(1, len(counted) + 1)] == counted, "a number that no stream has"
        assert 2 == len([id for follows, id in numbers if follows == id]) == len(numbers) - len(counted)
    check_ledger(opened.path)


async def test_a_failed_batch_takes_contexts_and_nonces_back(tmp_path: Path) -> None:
    """I-12: what goes with a grant's private row is forgotten with the batch that did not happen."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        issued = await opened.issue()
        for act in (opened.refresh(issued, source=ELSEWHERE), opened.act("revoke", issued.grant_id)):
            faulty(opened).on_commit.append(instead(StoreFull("no room")))
            with pytest.raises(Unavailable):
                await act
            opened.check_memory()
        assert [] == opened.rows("SELECT * FROM private_contexts")
        answer = await opened.refresh(issued, source=ELSEWHERE)
        assert [(ELSEWHERE.address, ELSEWHERE.user_agent)] == opened.rows(
            "SELECT address, user_agent FROM private_contexts"
        )
        await opened.refresh(answer, source=ELSEWHERE)
        assert [(1,)] == opened.rows("SELECT count(*) FROM private_contexts"), "one row a context, not one a request"
    check_ledger(opened.path)


async def test_a_failed_change_of_authority_is_forgotten(tmp_path: Path) -> None:
    """I-12: clients, keys and epochs are again what the store says, and the counter with them."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        grant = await opened.issue()
        acts = (
            opened.apply(client("other")),
            opened.ledger.operators.revoke_client(SECURITY, "www", None, None),
            opened.ledger.operators.revoke_subject(SECURITY, "alice", "moved", None),
            opened.ledger.operators.keys_activate(1),
        )
        for act in acts[:3]:
            faulty(opened).on_commit.append(instead(StoreFull("no room")))
            with pytest.raises(Unavailable):
                await act
            opened.check_memory()
        await acts[3]
        assert opened.ledger.authority.client("www") is not None
        assert opened.ledger.authority.client("other") is None
        await opened.refresh(grant)
        assert [] == opened.rows("SELECT * FROM private_reasons")
        opened.check_memory()
    check_ledger(opened.path)


async def test_memory_is_bounded_and_what_left_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many grants there are, also where they are only looked at; whoever left is as good as new."""
    async with open_ledger(tmp_path) as opened:
        issued = [await opened.issue(f"person-{n}") for n in range(30)]
        monkeypatch.setattr(memory, "STREAMS_IN_MEMORY_MAX", 10)
        for answer in issued:
            assert "current" == (await opened.ledger.operators.explain(answer.refresh_token or "")).verdict
            assert len(opened.ledger.memory.streams) <= 10
        await asyncio.gather(*map(opened.refresh, issued))
        assert len(opened.ledger.memory.streams) <= 10
        opened.check_memory()
    assert 30 == check_ledger(opened.path).topics["grant.token_rotated"]


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many grants each question asks for, from now on."""
    asked: list[int] = []
    grants = StoreReader.grants

    def counted(self: StoreReader, names: Sequence[str]) -> GrantsFound:
        asked.append(len(names))
        return grants(self, names)

    monkeypatch.setattr(StoreReader, "grants", counted)
    return asked


async def test_grants_that_are_not_in_memory_are_read_in_one_question(tmp_path: Path, questions: list[int]) -> None:
    """Twenty that nobody has asked for since the start cost one question, and so does the one that comes alone; what
    is in memory costs none."""
    async with open_ledger(tmp_path) as opened:
        issued = [await opened.issue(f"person-{n}") for n in range(20)]
        opened.ledger.memory.forget_everything()
        answers = await in_one_batch(opened, *(opened.refresh(each) for each in issued))
        assert 20 == len({each.refresh_token for each in answers if isinstance(each, TokenAnswer)})
        assert [20] == questions
        opened.ledger.memory.forget_everything()
        for each in answers[:2]:
            assert isinstance(each, TokenAnswer)
            again = await opened.refresh(each)
            await opened.refresh(again)
        assert [20, 1, 1] == questions


async def test_whatever_a_token_is_presented_for_its_grant_is_read_with_the_others(
    tmp_path: Path, questions: list[int]
) -> None:
    """A refresh, a revocation (RFC 7009) and an introspection (RFC 7662): one question for all three."""
    async with open_ledger(tmp_path) as opened:
        tokens_of = [(await opened.issue(f"person-{n}")).refresh_token or "" for n in range(3)]
        opened.ledger.memory.forget_everything()
        await in_one_batch(
            opened,
            opened.refresh(tokens_of[0]),
            opened.ledger.revoke_token(caller(), HOME, tokens_of[1]),
            opened.ledger.introspect(caller(), tokens_of[2]),
        )
        assert [3] == questions


async def test_a_grant_that_was_read_ahead_is_erased_with_its_person(tmp_path: Path) -> None:
    """What was read before the batch began to decide does not outlive an erasure that the same batch decides first."""
    async with open_ledger(tmp_path) as opened:
        issued, newest = await opened.issue(), await opened.issue()
        opened.ledger.memory.forget_everything()
        await opened.refresh(newest)  # an end of a person looks at it: nothing is left to be read but the other one
        erased, refused = await in_one_batch(
            opened, opened.ledger.operators.erase(SECURITY, "alice"), opened.refresh(issued)
        )
        assert erased is True
        assert isinstance(refused, Refused)
        name = f"grant:{issued.grant_id}"
        with opened.store.reader() as reader:
            assert None is reader.grants([name]).grants[name][1]
        assert opened.ledger.memory.streams[name].private is None


async def test_what_was_read_ahead_does_not_undo_an_end_that_the_batch_has_decided(tmp_path: Path) -> None:
    """I-06: the head of a person's stream comes with every grant that is read, and is older than what this batch has
    decided of them: it is believed only where nothing is known."""
    async with open_ledger(tmp_path) as opened:
        first, second = await opened.issue(), await opened.issue()
        opened.ledger.memory.forget_everything()
        assert first.refresh_token is not None
        _, _, refused = await in_one_batch(
            opened,
            opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None),
            opened.ledger.operators.explain(first.refresh_token),
            opened.refresh(second),
        )
        assert isinstance(refused, Refused)
        assert Refusal.REVOKED_BY_SUBJECT is refused.refusal
    check_ledger(opened.path)


async def test_what_was_read_ahead_is_used_once(tmp_path: Path, questions: list[int]) -> None:
    """Whoever has to read a grant anew, because it may have moved, is not given what was read before."""
    async with open_ledger(tmp_path) as opened:
        name = f"grant:{(await opened.issue()).grant_id}"
        opened.ledger.memory.forget_everything()

        def anew(batch: Batch) -> bool:
            batch.ask_for([name])
            return batch.load(name) is not batch.reload(name)

        assert await opened.ledger.commits.submit(anew, ours=True)
        assert [1, 1] == questions


async def test_refreshes_without_a_task_are_read_in_one_question_too(tmp_path: Path, questions: list[int]) -> None:
    """As above, of requests that nobody waits for; each is told once."""
    async with open_ledger(tmp_path) as opened:
        issued = [await opened.issue(f"person-{n}") for n in range(20)]
        opened.ledger.memory.forget_everything()
        told: list[TokenAnswer | BaseException] = []
        prepared: list[TokenAnswer] = []
        for each in issued:
            assert each.refresh_token is not None
            assert opened.ledger.refresh_soon(caller(), HOME, each.refresh_token, told.append, prepared.append)
        await in_one_batch(opened, opened.ledger.commits.submit(lambda batch: None, ours=True))
        assert [True] * 20 == [isinstance(each, TokenAnswer) for each in told]
        assert prepared == told
        assert [20] == questions


@pytest.mark.parametrize("events", [61, 62, 63, 64, 65, 126, 127, 128, 129, 130])
async def test_a_history_is_walked_across_its_marks(tmp_path: Path, events: int) -> None:
    """I-04, I-22: the first redemption of any old generation is found in grants of 64 · n events and around, so that
    its reuse names who redeemed it and what retired it."""
    async with open_ledger(tmp_path, clients=[client(policy=with_policy(on_reuse="alert"))]) as opened:
        answers = [await opened.issue()]
        while len(answers) * 2 - 1 < events:
            opened.clock.pass_seconds(100_000)
            answers.append(await opened.refresh(answers[-1]))
        opened.ledger.memory.forget_everything()
        for generation in (0, 1, len(answers) // 2, len(answers) - 3):
            refusal = await opened.refused(answers[generation], source=ELSEWHERE)
            retired = opened.grant_events(answers[0])[2 * generation + 2]
            assert isinstance(retired, TokenRotated)
            assert (retired.event_id, generation + 1) == (refusal.event_id, retired.generation)
    check_ledger(opened.path)
