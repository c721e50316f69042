"""Persons: known by a private row, ended by an epoch, and erased so that no file knows them any more."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ledger.answers import Source, TokenAnswer
from ledger.events import SubjectErased, SubjectRevoked
from ledger.recorders.errors import StoreFull
from ledger.refusals import Refusal, Refused, Unavailable
from tests.engines import alter, only_on_sqlite
from tests.faulty_store import FaultyStore, faulty, instead
from tests.ledgers import LOCAL_OPERATOR, SECURITY, Opened, caller, check_ledger, client, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

PERSON = ("alice-in-wonderland@example.com", "Alice’s white telephone", "session-of-the-white-rabbit")
PLACE = Source("2001:db8:1234:5678::", "LookingGlass/1.0 (very particular)")
REASON = "she asked for it on the telephone"


def files_that_hold(folder: Path, *texts: str) -> list[str]:
    """The files beside the database (its log and its index too) in which one of these texts can be found."""
    return [
        f"{path.name}: {text}"
        for path in sorted(folder.iterdir())
        for text in texts
        if text.encode() in path.read_bytes()
    ]


async def issued(opened: Opened) -> TokenAnswer:
    return await opened.issue(PERSON[0], device=PERSON[1], session=PERSON[2], key="order-4711")


async def refused_by(waiting: Awaitable[object], refusal: Refusal) -> Refused:
    with pytest.raises(Refused) as caught:
        await waiting
    assert refusal is caught.value.refusal
    return caught.value


async def test_a_person_is_known_by_a_random_id_and_found_again(tmp_path: Path) -> None:
    """One person has one id, whoever issues; events hold that id and never the subject."""
    async with open_ledger(tmp_path) as opened:
        first, second, other = await issued(opened), await opened.issue(PERSON[0]), await opened.issue("bob")
        ids = [opened.issuance(answer).subject_id for answer in (first, second, other)]
        assert ids[0] == ids[1] != ids[2]
        assert ids[0] == await opened.ledger.operators.subject_id(PERSON[0])
        assert await opened.ledger.operators.subject_id("nobody") is None
        bodies = "".join(str(body) for (body,) in opened.rows("SELECT body FROM events"))
        assert not [text for text in PERSON if text in bodies]
    check_ledger(opened.path)


async def test_two_first_grants_of_one_person_in_one_batch_share_the_id(tmp_path: Path) -> None:
    """The row that this batch is about to write counts as written."""
    async with open_ledger(tmp_path) as opened:
        answers = await asyncio.gather(opened.issue("alice"), opened.issue("alice"), opened.issue("alice"))
        assert 1 == len({opened.issuance(answer).subject_id for answer in answers})
        assert [(1,)] == opened.rows("SELECT count(*) FROM private_subjects")
    check_ledger(opened.path)


async def test_a_refused_issuance_leaves_nobody_behind(tmp_path: Path) -> None:
    """A refusal records nothing: the person was never seen."""
    async with open_ledger(tmp_path) as opened:
        await refused_by(opened.issue("alice", scope=("admin",)), Refusal.INVALID_SCOPE)
        assert [] == opened.rows("SELECT * FROM private_subjects")
        answer = await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        assert (False, 0) == (answer.known, answer.epoch)


@only_on_sqlite
async def test_erasing_leaves_no_trace_in_any_file(tmp_path: Path) -> None:
    """I-20: subject, device, session, address, user agent and reasons are gone from pages, free pages and the log."""
    async with open_ledger(tmp_path) as opened:
        grant = await issued(opened)
        await opened.refresh(grant, source=PLACE)
        await opened.act("suspend", grant.grant_id, reason=REASON)
        await opened.ledger.operators.revoke_subject(SECURITY, PERSON[0], REASON, None)
        everything = (*PERSON, PLACE.address, PLACE.user_agent, REASON)
        held = "".join(files_that_hold(tmp_path, *everything))
        assert not [text for text in everything if text not in held], "the search finds what is there"
        assert await opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0])
        assert [] == files_that_hold(tmp_path, *everything)
        checked = check_ledger(opened.path)
    assert [] == files_that_hold(tmp_path, *everything)
    assert (1, 1) == (checked.topics["subject.revoked"], checked.topics["subject.erased"])


@only_on_sqlite
async def test_what_is_only_deleted_is_still_in_the_files(tmp_path: Path) -> None:
    """The broken twin of the test above: without `secure_delete` and an emptied log the rows' text stays."""
    async with open_ledger(tmp_path) as opened:
        await issued(opened)
        opened.connection.execute("PRAGMA secure_delete=OFF")
        opened.connection.execute("DELETE FROM private_subjects")
        assert files_that_hold(tmp_path, PERSON[0])


async def test_erasing_ends_the_persons_grants_at_once(tmp_path: Path) -> None:
    """I-06: their tokens are refused as the person's own end, and the erasure's raise says who asked for what."""
    async with open_ledger(tmp_path) as opened:
        grant, kept = await issued(opened), await opened.issue("bob")
        await opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0])
        refusal = await opened.refused(grant)
        subject_id = opened.issuance(grant).subject_id
        assert (Refusal.REVOKED_BY_SUBJECT, f"subject:{subject_id}/1") == (refusal.refusal, refusal.event_id)
        raised, erased = opened.events(f"subject:{subject_id}")
        assert isinstance(raised, SubjectRevoked)
        assert isinstance(erased, SubjectErased)
        assert ("ledger:erase", "operator:local") == (raised.requested_by, erased.requested_by)
        await opened.refresh(kept)
    check_ledger(opened.path)


# What an accident on the disk makes of a grant's private row.
ALTERED = (
    "UPDATE private_grants SET subject_id = 'somebody' WHERE {}",
    "UPDATE private_grants SET subject_id = 'somebody', client_id = 'something' WHERE {}",
    "DELETE FROM private_grants WHERE {}",
)


def alter_row(opened: Opened, grant: TokenAnswer, change: str) -> None:
    alter(opened.path, change.format(f"stream = (SELECT id FROM streams WHERE name = 'grant:{grant.grant_id}')"))
    opened.ledger.memory.forget_everything()


@pytest.mark.parametrize("change", ALTERED)
async def test_erasing_finds_a_grant_whose_private_row_says_otherwise(tmp_path: Path, change: str) -> None:
    """I-20: whose a grant is its events say, so nothing of the person is left behind a row that was altered or lost;
    nothing of anybody else goes."""
    async with open_ledger(tmp_path) as opened:
        grants = [await issued(opened), await opened.issue(PERSON[0], device=PERSON[1]), await opened.issue("bob")]
        for grant in grants:
            await opened.refresh(grant, source=PLACE)
            await opened.act("suspend", grant.grant_id, reason=REASON)
        alter_row(opened, grants[0], change)
        assert await opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0])
        bob = [(f"grant:{grants[2].grant_id}",)]
        for table in ("private_grants", "private_contexts"):
            assert bob == opened.rows(f"SELECT DISTINCT s.name FROM {table} p JOIN streams s ON s.id = p.stream"), table
        assert [(f"{bob[0][0]}/4", REASON)] == opened.rows("SELECT event_id, text FROM private_reasons")
        assert [("bob",)] == opened.rows("SELECT subject FROM private_subjects")
        assert Refusal.REVOKED_BY_SUBJECT is (await opened.refused(grants[0])).refusal


@pytest.mark.parametrize("erases", [False, True])
async def test_nobody_is_said_to_be_ended_or_erased_by_an_id_that_no_grant_has(tmp_path: Path, erases: bool) -> None:
    """I-06, I-20: where the row that leads from a person to their id was altered, nobody can tell which grants are
    theirs: the answer is an error, and the row stays. Whoever the row of is whole is ended, also in its own batch."""
    async with open_ledger(tmp_path) as opened:
        operators = opened.ledger.operators

        def act(subject: str) -> Awaitable[object]:
            if erases:
                return operators.erase(LOCAL_OPERATOR, subject)
            return operators.revoke_subject(SECURITY, subject, None, None)

        grant = await issued(opened)
        alter(opened.path, "UPDATE private_subjects SET subject_id = 'somebody'")
        opened.ledger.memory.forget_everything()
        with pytest.raises(Unavailable, match="no grant is of the id that is stored for this person"):
            await act(PERSON[0])
        assert [(PERSON[0], "somebody")] == opened.rows("SELECT subject, subject_id FROM private_subjects")
        await opened.refresh(grant)
        other, _ = await asyncio.gather(opened.issue("bob"), act("bob"))
        assert Refusal.REVOKED_BY_SUBJECT is (await opened.refused(other)).refusal


@pytest.mark.parametrize("change", ALTERED)
async def test_an_end_reaches_a_grant_whose_private_row_says_otherwise(tmp_path: Path, change: str) -> None:
    """I-06: a further end is recorded for the grant that was issued after the one before, whoever its row names."""
    async with open_ledger(tmp_path) as opened:
        operators = opened.ledger.operators
        ends: list[Callable[[], Awaitable[object]]] = [
            lambda: operators.revoke_subject(SECURITY, PERSON[0], None, None),
            lambda: operators.revoke_client(SECURITY, "www", None, None),
        ]
        for end in ends:
            await opened.issue(PERSON[0])
            await end()
            grant = await opened.issue(PERSON[0])
            alter_row(opened, grant, change)
            await end()
            assert (await opened.refused(grant)).refusal in {Refusal.REVOKED_BY_SUBJECT, Refusal.REVOKED_BY_OPERATOR}


async def test_an_erased_person_who_comes_back_is_somebody_new(tmp_path: Path) -> None:
    """The same subject gets another id, and their Idempotency-Key is as new as they are."""
    async with open_ledger(tmp_path) as opened:
        first = await issued(opened)
        assert await opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0])
        assert await opened.ledger.operators.subject_id(PERSON[0]) is None
        assert not await opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0])
        second = await issued(opened)
        assert first.grant_id != second.grant_id
        ids = [opened.issuance(answer).subject_id for answer in (first, second)]
        assert ids[0] != ids[1]
        await opened.refresh(second)
    check_ledger(opened.path)


async def test_after_an_erasure_its_own_batch_knows_the_person_no_more(tmp_path: Path) -> None:
    """Whoever is decided behind the erasure, in the same transaction, meets the same as an hour later."""
    async with open_ledger(tmp_path, clients=[client()]) as opened:
        first = await issued(opened)
        batches = opened.ledger.commits.batches
        erased, second, refusal = await asyncio.gather(
            opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0]),
            issued(opened),
            opened.refresh(first, source=PLACE),
            return_exceptions=True,
        )
        assert batches + 1 == opened.ledger.commits.batches, "all three in one batch"
        assert erased is True
        assert isinstance(second, TokenAnswer)
        assert isinstance(refusal, Refused)
        ids = [opened.issuance(answer).subject_id for answer in (first, second)]
        assert ids[0] != ids[1] == await opened.ledger.operators.subject_id(PERSON[0])
        assert [] == files_that_hold(tmp_path, PLACE.user_agent)
        opened.check_memory()
        await opened.refresh(second)
    check_ledger(opened.path)


async def test_what_was_said_of_a_grant_in_the_batch_that_erases_its_person_is_erased(tmp_path: Path) -> None:
    """I-20: on every store, and whatever the batch appends before the erasure. What was said of others stays."""
    async with open_ledger(tmp_path) as opened:
        operators = opened.ledger.operators
        hers, other = await issued(opened), await opened.issue("bob")
        batches = opened.ledger.commits.batches
        await asyncio.gather(
            opened.act("suspend", hers.grant_id, reason=REASON),
            opened.act("suspend", other.grant_id, reason="he lost it"),
            operators.revoke_subject(SECURITY, PERSON[0], REASON, None),
            operators.erase(LOCAL_OPERATOR, PERSON[0]),
        )
        assert batches + 1 == opened.ledger.commits.batches, "all of it in one batch"
        assert ["issued", "suspended"] == opened.topics(hers)
        assert [("he lost it",)] == opened.rows("SELECT text FROM private_reasons")
        assert [] == files_that_hold(tmp_path, *PERSON, REASON)
    check_ledger(opened.path)


async def test_a_late_presentation_brings_no_erased_context_back(tmp_path: Path) -> None:
    """An expiry is put on record with the presenter's context, but not for somebody who was just erased."""
    async with open_ledger(tmp_path) as opened:
        grant = await issued(opened)
        opened.clock.pass_seconds(31 * 86400)
        erased, refusal = await asyncio.gather(
            opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0]),
            opened.refresh(grant, source=PLACE),
            return_exceptions=True,
        )
        assert erased is True
        assert isinstance(refusal, Refused)
        assert "expired" == opened.topics(grant)[-1]
        assert [] == files_that_hold(tmp_path, *PERSON, PLACE.user_agent)
    check_ledger(opened.path)


async def test_an_erasure_whose_batch_failed_has_erased_nothing(tmp_path: Path) -> None:
    """I-12: memory has the person back, as the store has them."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        grant = await issued(opened)
        faulty(opened).on_write.append(instead(StoreFull("no room")))
        with pytest.raises(Unavailable):
            await opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0])
        opened.check_memory()
        await opened.refresh(grant, source=PLACE)
        assert await opened.ledger.introspect(caller(), grant.access_token) is not None
        assert await opened.ledger.operators.erase(LOCAL_OPERATOR, PERSON[0])
    check_ledger(opened.path)
