"""Two nodes on one PostgreSQL: what a node does not know, or not any more, is fetched in one question."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_reading import PostgresReader
from ledger.recorders.rows import GrantsFound
from ledger.refusals import Refusal, Refused
from tests.ledgers import LOCAL_OPERATOR, SECURITY, open_ledger, two_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]


def questions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """All that stores are asked from now on."""
    asked: list[object] = []
    real = PostgresStore._answer

    def counted(self: PostgresStore, question: Callable[[object], object]) -> object:
        asked.append(question)
        return real(self, question)

    monkeypatch.setattr(PostgresStore, "_answer", counted)
    return asked


async def test_cold_grants_are_fetched_in_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of grants that are not in memory costs one question, whatever their number, and one append."""
    async with two_nodes(tmp_path) as (one, other):
        answers = [await one.issue(f"person-{n}") for n in range(20)]
        await other.refresh(await other.issue())
        asked = questions(monkeypatch)
        batches = other.ledger.commits.batches
        await asyncio.gather(*(other.refresh(each) for each in answers))
        assert (1, batches + 1) == (len(asked), other.ledger.commits.batches)


@pytest.mark.parametrize("about", [False, True])
async def test_what_a_decision_asks_for_by_itself_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: bool
) -> None:
    """A decision on many grants, as archiving has them, costs one question, and no further one where the batch has read
    one of them before."""
    async with two_nodes(tmp_path) as (one, other):
        names = [f"grant:{(await one.issue(f'person-{n}')).grant_id}" for n in range(5)]
        await other.refresh(await other.issue())

        def of_all(batch: Batch) -> list[bool]:
            batch.ask_for(names)
            return [batch.load(name) is not None for name in names]

        asked = questions(monkeypatch)
        found = other.ledger.commits.submit(of_all, ours=True, about=names[0] if about else "")
        assert [True] * 5 == await found
        assert 1 + about == len(asked)


async def test_grants_that_the_other_node_has_moved_are_fetched_in_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of grants that were refreshed elsewhere meanwhile costs as little as one of grants never seen."""
    async with two_nodes(tmp_path) as (one, other):
        answers = [await other.refresh(await other.issue(f"person-{n}")) for n in range(20)]
        answers = [await one.refresh(each) for each in answers]
        asked = questions(monkeypatch)
        batches = other.ledger.commits.batches
        answers = await asyncio.gather(*(other.refresh(each) for each in answers))
        assert (1, batches + 1) == (len(asked), other.ledger.commits.batches)
        assert [3] * 20 == [one.topics(each).count("token_rotated") for each in answers]


@pytest.mark.usefixtures("nobody_looks")
async def test_persons_are_asked_for_in_one_question_once_an_end_was_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was ended, what is known of anybody's epoch counts no more: of grants that are in memory all the same it
    is read together. Who was ended is refused among all others."""
    async with two_nodes(tmp_path) as (one, other):
        answers = [await other.refresh(await other.issue(f"person-{n}")) for n in range(20)]
        bystander, ended = await other.issue(), answers[7]
        await one.ledger.operators.revoke_subject(SECURITY, "person-7", None, None)
        await other.refresh(bystander)
        asked = questions(monkeypatch)
        await asyncio.gather(*(other.refresh(each) for each in answers if each is not ended))
        assert 1 == len(asked)
        await one.ledger.operators.revoke_subject(SECURITY, "person-8", None, None)
        await other.refresh(bystander)
        found = await asyncio.gather(*(other.refresh(each) for each in answers), return_exceptions=True)
        told = {n: each.refusal for n, each in enumerate(found) if isinstance(each, Refused)}
        assert {7: Refusal.REVOKED_BY_SUBJECT, 8: Refusal.REVOKED_BY_SUBJECT} == told
        assert 18 == sum(isinstance(each, TokenAnswer) for each in found)


async def test_an_unknown_grant_is_asked_for_once(tmp_path: Path) -> None:
    """A genuine token of a grant that is not here: refused, and no endless fetching."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await one.issue()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PostgresReader, "grants", lambda self, names: GrantsFound({}, {}))
            assert Refusal.UNKNOWN_TOKEN is (await other.refused(answer)).refusal
        await other.refresh(answer)


async def test_what_a_remembered_grant_handed_out_last_is_introspected_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resource server asks for each request that it gets. The store still checks what is told (I-06): an end, or an
    erasure, on another node is heard, and no name is remembered after it."""
    async with two_nodes(tmp_path) as (one, other):
        first = await one.issue()
        assert await one.ledger.introspect(SECURITY, first.access_token) is not None  # who it is has to be read once
        second, again = await one.refresh(first), await one.refresh(first)
        asked = questions(monkeypatch)
        for answer in (second, again):
            found = await one.ledger.introspect(SECURITY, answer.access_token)
            assert found is not None
            assert "alice" == found.subject
        assert [] == asked
        one.ledger.memory.streams.clear()
        assert await one.ledger.introspect(SECURITY, second.access_token) is not None
        assert 1 == len(asked), "of the grant, whose state holds the token that a retry may ask for"
        assert await one.ledger.introspect(SECURITY, first.access_token) is not None
        assert 4 == len(asked), "an older one is its event's to tell"
        await other.ledger.operators.erase(LOCAL_OPERATOR, "alice")
        assert await one.ledger.introspect(SECURITY, second.access_token) is None
        assert {} == one.ledger.memory.subjects


async def test_who_was_erased_is_not_remembered_by_who_erased_them(tmp_path: Path) -> None:
    """Nor by what was asked in the same batch."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        assert await opened.ledger.introspect(SECURITY, answer.access_token) is not None
        assert ["alice"] == [*opened.ledger.memory.subjects.values()]
        await asyncio.gather(
            opened.ledger.operators.erase(LOCAL_OPERATOR, "alice"),
            opened.ledger.introspect(SECURITY, answer.access_token),
        )
        assert {} == opened.ledger.memory.subjects
