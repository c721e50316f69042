"""Two nodes on one PostgreSQL: clients that change and ends of all kinds on the one rule on the other (I-06)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from api import rebuilding
from ledger import authority, batch
from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.optimistic import OptimisticBatch, W
from ledger.recorders import postgres_append, postgres_reading
from ledger.recorders.postgres import PostgresStore
from ledger.refusals import LedgerError, Refusal, Refused, Unavailable
from ledger.times import SECOND
from ledger.waiting import nothing
from tests.appending import Appending
from tests.engines import alter
from tests.ledgers import (
    OPERATORS,
    SECURITY,
    START,
    Clock,
    Opened,
    check_ledger,
    client,
    open_ledger,
    two_nodes,
    with_policy,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]


@pytest.mark.usefixtures("appending")
@pytest.mark.parametrize("how", ["grant", "subject", "client", "disabled"])
async def test_an_end_on_one_node_stops_the_other(tmp_path: Path, how: str) -> None:
    """I-06: after the acknowledgement nothing succeeds, though the other node has all it needs in memory."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        await _end(one, answer, how)
        assert await other.ledger.introspect(SECURITY, answer.access_token) is None
        assert (await other.refused(answer)).refusal in _ENDED[how]
        assert 1 == other.topics(answer).count("token_rotated")


async def test_an_end_in_a_batch_that_loses_a_grant_is_heard_all_the_same(tmp_path: Path) -> None:
    """I-06: the control counter moves with all of a batch or not at all; an end that was written without it would be
    acknowledged here and unknown there."""
    async with two_nodes(tmp_path) as (one, other):
        held = await other.refresh(await other.issue("bob"))
        contested = await one.refresh(await one.issue("alice"))
        won = await other.refresh(contested)
        batches = one.ledger.commits.batches
        again, _ = await asyncio.gather(
            one.refresh(contested), one.ledger.operators.revoke_subject(SECURITY, "bob", None, None)
        )
        assert won.refresh_token == again.refresh_token
        assert batches + 2 == one.ledger.commits.batches, "one that lost a grant, one that decided both again"
        assert Refusal.REVOKED_BY_SUBJECT is (await other.refused(held)).refusal


async def test_a_clients_end_in_a_batch_that_loses_a_grant_is_written_all_the_same(tmp_path: Path) -> None:
    """I-06: what a lost batch has folded into the view of authority never happened. Compared with that the clients file
    would change nothing the second time: acknowledged here, and unknown there."""
    async with two_nodes(tmp_path) as (one, other):
        await other.apply(client(), client("leaves"), operators=OPERATORS)
        held = await other.refresh(await other.issue("bob", client_id="leaves"), client_id="leaves")
        contested = await one.refresh(await one.issue("alice"))
        won = await other.refresh(contested)
        batches = one.ledger.commits.batches
        again, _ = await asyncio.gather(one.refresh(contested), one.apply(client(), operators=OPERATORS))
        assert won.refresh_token == again.refresh_token
        assert batches + 2 == one.ledger.commits.batches, "one that lost a grant, one that decided both again"
        assert Refusal.UNKNOWN_TOKEN is (await other.refused(held, client_id="leaves")).refusal


_ENDED = {
    "grant": {Refusal.REVOKED_BY_OPERATOR},
    "subject": {Refusal.REVOKED_BY_SUBJECT},
    "client": {Refusal.REVOKED_BY_OPERATOR},
    "disabled": {Refusal.UNKNOWN_TOKEN},
}


async def _end(node: Opened, answer: TokenAnswer, how: str) -> None:
    match how:
        case "grant":
            await node.act("revoke", answer.grant_id)
        case "subject":
            await node.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        case "client":
            await node.ledger.operators.revoke_client(SECURITY, "www", None, None)
        case _:
            await node.apply(client("another"), operators=OPERATORS)


@pytest.mark.usefixtures("nobody_looks")
async def test_an_end_of_a_person_makes_no_other_node_read_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node does for each end elsewhere does not grow with the clients there are: with a thousand, a site whose
    persons end their sessions would keep all others busy reading."""
    read: list[str] = []
    aggregate = authority._aggregate

    def noted(reads: Any, name: str, head: Any, kind: Any) -> Any:
        read.append(name)
        return aggregate(reads, name, head, kind)

    monkeypatch.setattr(authority, "_aggregate", noted)
    async with two_nodes(tmp_path) as (one, other):
        await one.apply(client(), client("another"), operators=OPERATORS)
        answer = await other.refresh(await other.issue("bob"))
        await one.issue("alice")
        read.clear()
        await one.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        answer = await other.refresh(answer)
        assert not read
        known = other.ledger.authority.client("another")
        await one.apply(client(scope=("read",)), client("another"), operators=OPERATORS)
        assert ("read",) == (await other.refresh(answer)).scope
        assert ["client:www"] == read
        assert other.ledger.authority.client("another") is known


@pytest.mark.usefixtures("nobody_looks")
@pytest.mark.parametrize("how", ["subject", "client", "disabled"])
async def test_without_the_control_counter_an_end_would_not_be_heard_of(
    tmp_path: Path, how: str, appending: Appending
) -> None:
    """The broken twin of the test above, for what is no event of the grant: the check of the counter left out."""
    appending.let("IF told_control <> p_control OR told_serial <> p_serial THEN", "IF false THEN")

    async def misled() -> None:
        async with two_nodes(tmp_path) as (one, other):
            answer = await other.refresh(await other.issue())
            await _end(one, answer, how)
            await other.refresh(answer)

    with pytest.raises(AssertionError, match="control"):
        await misled()


@pytest.mark.usefixtures("nobody_looks")
async def test_without_the_premises_a_dead_token_would_look_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin for what is only read: an answer from memory that nobody has checked."""
    Appending(postgres_append, monkeypatch).let("IF cardinality(p_read_id) > 0 THEN", "IF false THEN")
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        await one.act("revoke", answer.grant_id)
        assert await other.ledger.introspect(SECURITY, answer.access_token) is not None


async def _ended_once_more(folder: Path) -> Refusal | None:
    """A person is ended, has a new grant by a node whose clock is behind, and is ended again: how it is refused then,
    None where it lives."""
    async with (
        open_ledger(folder, clock=Clock(START + 10 * SECOND)) as one,
        open_ledger(folder, clock=Clock(START), seed=2, clients=None) as other,
    ):
        first = await one.issue("alice")
        await one.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        second = await other.issue("alice")
        assert second.grant_id < first.grant_id, "by its id it is the older one"
        await one.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        try:
            await other.refresh(second)
        except Refused as refused:
            return refused.refusal
        return None


async def test_what_was_issued_last_is_told_by_the_log_and_by_no_clock(tmp_path: Path) -> None:
    """I-06: an end that comes after an issue ends it, whatever the two nodes' clocks say."""
    assert Refusal.REVOKED_BY_SUBJECT == await _ended_once_more(tmp_path)


async def test_grants_in_the_order_of_their_ids_leave_one_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: the newest by its id is an older one, so nothing seems to be left to end."""
    by_id = postgres_reading._NEWEST_GRANT["subject_id"].replace("p.begun DESC", "p.stream DESC")
    monkeypatch.setitem(postgres_reading._NEWEST_GRANT, "subject_id", by_id)
    monkeypatch.setattr(batch, "_NEWEST", batch._NEWEST.replace("position DESC", "grant_id DESC"))
    assert await _ended_once_more(tmp_path) is None


@pytest.mark.usefixtures("nobody_looks")
@pytest.mark.parametrize("erased", [False, True])
async def test_a_grant_whose_end_took_its_nonce_along_is_refused(tmp_path: Path, erased: bool) -> None:
    """I-06: a node that fetches it, and has not heard of the end of its person, cannot make its tokens: it hears of the
    end then, and says so."""
    async with two_nodes(tmp_path) as (one, other):
        await other.refresh(await other.issue())  # so it knows her, and that nothing has happened to her
        answer = await one.issue()
        await one.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        await one.refused(answer)
        if erased:
            await one.ledger.operators.erase(SECURITY, "alice")
        held = (
            "SELECT 1 FROM private_grants p JOIN streams s ON s.id = p.stream WHERE p.nonce IS NOT NULL AND s.name = ?"
        )
        assert [] == one.rows(held, f"grant:{answer.grant_id}")
        assert Refusal.REVOKED_BY_SUBJECT is (await other.refused(answer)).refusal


@pytest.mark.usefixtures("nobody_looks")
async def test_a_grant_whose_person_was_erased_elsewhere_gets_no_jwt(tmp_path: Path) -> None:
    """I-06: the node that has the grant in memory, and has not heard of the erasure, cannot say whose token it would
    be: it hears of the end then, and says so."""
    async with two_nodes(tmp_path) as (one, other):
        await one.apply(client(policy=with_policy(access_token_format="jwt")), operators=OPERATORS)
        answer = await other.refresh(await other.issue())
        await one.ledger.operators.erase(SECURITY, "alice")
        assert Refusal.REVOKED_BY_SUBJECT is (await other.refused(answer)).refusal


async def test_clients_that_one_node_changes_rule_on_the_other(tmp_path: Path) -> None:
    """A cut of scope binds on the other node's next decision (I-06, I-08)."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        await one.apply(client(scope=("read",)), operators=OPERATORS)
        assert ("read",) == (await other.refresh(answer)).scope


async def test_a_clients_file_of_yesterday_is_refused_by_whichever_node(tmp_path: Path) -> None:
    """The last serial stands in the store: a node that has not heard of it decides again."""
    async with two_nodes(tmp_path) as (one, other):
        await one.apply(client(), operators=OPERATORS, serial=7)
        with pytest.raises(Exception, match="serial"):
            await other.apply(client(), operators=OPERATORS, serial=6)


async def _yesterdays_file_beside_a_refresh(folder: Path) -> None:
    """A node tries a file, in one batch with a refresh, while nobody has told it that the other one has applied a later
    file in which nothing else was new."""
    async with two_nodes(folder) as (one, other):
        answer = await other.refresh(await other.issue())
        commits = other.ledger.commits
        await asyncio.gather(*(commits.submit(nothing, ours=True) for _ in range(2)))  # now it waits for more than one
        await one.apply(client(), operators=OPERATORS, serial=7)
        assert one.ledger.authority.control == other.ledger.authority.control
        batches = commits.batches
        tried = other.ledger.operators.apply((client(),), OPERATORS, serial=6, dry_run=True)
        refreshing = asyncio.ensure_future(other.refresh(answer))
        try:
            await tried
        finally:
            await refreshing
            assert 2 >= commits.batches - batches, "not in one batch"


@pytest.mark.usefixtures("appending", "nobody_looks")
async def test_a_clients_file_of_yesterday_is_refused_where_only_its_serial_has_moved(tmp_path: Path) -> None:
    """A batch stands on the serial too, whatever it writes: here it is decided again."""
    with pytest.raises(LedgerError, match="serial: 6 is lower than 7"):
        await _yesterdays_file_beside_a_refresh(tmp_path)


@pytest.mark.usefixtures("nobody_looks")
async def test_without_the_serial_a_clients_file_of_yesterday_would_pass(tmp_path: Path, appending: Appending) -> None:
    """The broken twin of the test above: the check of the serial left out, that of the counter in its place."""
    appending.let(" OR told_serial <> p_serial THEN", " THEN")
    await _yesterdays_file_beside_a_refresh(tmp_path)


async def test_who_authenticates_while_a_node_reads_authority_anew_meets_all_of_it(tmp_path: Path) -> None:
    """The store is asked on a thread meanwhile: nobody is told that their client does not exist."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.issue()
        authority, missed, passes = other.ledger.authority, 0, 0
        for n in range(5):
            await one.apply(client(), client(f"another-{n}"), operators=OPERATORS)
            refreshing = asyncio.ensure_future(other.refresh(answer))
            while not refreshing.done():
                known = authority.client("www"), authority.operators.get("soc"), authority.keys.created_at
                missed, passes = missed + (not all(known)), passes + 1
                await asyncio.sleep(0)
            answer = await refreshing
        assert passes > 5 * 5
        assert 0 == missed


async def test_an_idle_node_hears_of_a_change_by_itself(tmp_path: Path) -> None:
    """Who authenticates is decided before a batch: within about a second the clients are those of now."""
    async with two_nodes(tmp_path) as (one, other):
        await one.apply(client(), client("another"), operators=OPERATORS)
        for _ in range(400):
            if other.ledger.authority.client("another") is not None:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the other node has not heard of the client")


async def test_a_connection_made_anew_while_deciding_makes_nothing_true(tmp_path: Path) -> None:
    """What a new connection hears of the control counter is not what the batch was decided on: it is decided again."""
    async with two_nodes(tmp_path) as (one, other):
        stood_on: list[int] = []

        def decide(batch: Batch) -> None:
            stood_on.append(batch.control)
            store = batch.store
            assert isinstance(store, PostgresStore)
            store._drop()
            assert [(1,)] == store.within().select("SELECT 1 FROM control")

        await other.ledger.commits.submit(decide)
        await one.apply(client(), client("another"), operators=OPERATORS)
        await other.ledger.commits.submit(decide)
        assert stood_on[0] == stood_on[1] < stood_on[2]
        assert 3 == len(stood_on)


@pytest.mark.usefixtures("nobody_looks")
async def test_who_showed_a_secret_that_was_taken_back_has_to_say_again_who_they_are(tmp_path: Path) -> None:
    """A client authenticates before its request is in line: what counted then, and no more, buys nothing. A change that
    has nothing to do with it stands in nobody's way, and the ledger's own work goes on."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        await one.apply(client(scope=("read", "openid")), client("another"), operators=OPERATORS)
        answer = await other.refresh(answer)
        await one.apply(client(scope=("read", "openid"), secret="Changed!"), client("another"), operators=OPERATORS)
        own = other.ledger.commits.submit(lambda batch: batch.control, ours=True)
        with pytest.raises(Unavailable):
            await other.refresh(answer)
        assert await own == one.ledger.authority.control
        assert 2 == other.topics(answer).count("token_rotated")
        await other.refresh(answer)


@pytest.mark.usefixtures("nobody_looks")
async def test_nor_does_it_after_a_step_of_healing(tmp_path: Path) -> None:
    """Memory is forgotten then, before the batch of whoever is in line."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.issue()
        await one.apply(client(secret="Changed!"), operators=OPERATORS)
        waiting = asyncio.ensure_future(other.refresh(answer))
        await asyncio.sleep(0)
        healing = rebuilding._Work(other.ledger, asyncio.get_running_loop(), print)
        await other.ledger.commits.exclusively(healing._forget)
        with pytest.raises(Unavailable):
            await waiting
        await other.refresh(answer)


async def present_while_authority_moves(folder: Path) -> None:
    """Present a token of a grant that is over to a node that has not heard yet what the other has changed."""
    async with two_nodes(folder) as (one, other):
        dead = await other.issue()
        await other.act("revoke", dead.grant_id)
        await one.apply(client(), client("another"), operators=OPERATORS)
        assert Refusal.REVOKED_BY_OPERATOR is (await other.refused(dead)).refusal
        told = other.ledger.desk.presentations.waiting(dead.grant_id, ended=True)
        assert 1 == told, "noted with a batch that was not written"


@pytest.mark.usefixtures("nobody_looks")
async def test_what_a_batch_would_have_noted_is_noted_by_the_one_that_is_written(tmp_path: Path) -> None:
    """I-21: authority had moved, so it was decided again: what was presented once is counted once."""
    await present_while_authority_moves(tmp_path)


@pytest.mark.usefixtures("nobody_looks")
async def test_notes_of_a_batch_that_was_not_written_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above: a batch keeps its notes, whatever became of it."""
    settle = OptimisticBatch.settle

    def kept(batch: OptimisticBatch, done: list[tuple[W, Any, bool]]) -> tuple[list[tuple[W, Any, bool]], list[W]]:
        notes = [*batch.when_done]
        settled = settle(batch, done)
        batch.when_done = notes
        return settled

    monkeypatch.setattr(OptimisticBatch, "settle", kept)
    with pytest.raises(AssertionError, match="not written"):
        await present_while_authority_moves(tmp_path)


async def test_many_new_clients_cost_a_few_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, thousands take longer than a request may: a first file of them would never be applied."""
    asked: list[str] = []
    ask = PostgresStore._asked

    def counted(self: PostgresStore, question: Any) -> Any:
        asked.append(repr(question))
        return ask(self, question)

    async with open_ledger(tmp_path) as opened:
        with monkeypatch.context() as patched:
            patched.setattr(PostgresStore, "_asked", counted)
            patched.setattr(postgres_reading, "STREAMS_AT_ONCE", 10)
            await opened.apply(client(), *(client(f"new-{number}") for number in range(40)), operators=OPERATORS)
        assert 4 + 4 == len(asked), "which heads are there, and whether events of those that are not"
        await opened.refresh(await opened.issue(client_id="new-39"), client_id="new-39")
    check_ledger(opened.path)


async def test_of_many_clients_the_one_that_has_lost_its_head_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the file is recorded then, whichever question finds it."""
    monkeypatch.setattr(postgres_reading, "STREAMS_AT_ONCE", 2)
    async with open_ledger(tmp_path, clients=(client(), client("app"))) as opened:
        before = opened.last_position()
    assert 1 == alter(opened.path, "DELETE FROM streams WHERE name = 'client:app'")
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        with pytest.raises(Unavailable, match=r"^client:app: there are events that no stream's head speaks of"):
            await opened.apply(*map(client, ("a", "b", "c", "app", "d")), operators=OPERATORS)
        assert before == opened.store.end()
