"""Two nodes on one PostgreSQL: whatever the one has done, the other decides on it, or decides again."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from ledger import operating
from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.commits import Commits
from ledger.log_end import LogEnd
from ledger.recorders import postgres_append, postgres_reading
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_reading import PostgresReader
from ledger.recorders.premises import BASE
from ledger.recorders.rows import GrantsFound
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.single_use import SingleUse
from ledger.times import SECOND
from tests.appending import Appending
from tests.engines import url_of
from tests.ledgers import (
    ELSEWHERE,
    HOME,
    SECURITY,
    START,
    Clock,
    Opened,
    caller,
    client,
    open_ledger,
    operator,
    two_nodes,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]


OPERATORS = (operator(), operator("soc", ("security",)))
"""As there are from the beginning."""


@pytest.fixture
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node hears of what others do by nothing but its own batches."""
    monkeypatch.setattr(Commits, "look", lambda self: None)


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
            assert all(before[1] < after[1] for before, after in pairwise(rows))  # type: ignore[operator]  # whole numbers


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


async def test_an_unknown_grant_is_asked_for_once(tmp_path: Path) -> None:
    """A genuine token of a grant that is not here: refused, and no endless fetching."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await one.issue()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PostgresReader, "grants", lambda self, names: GrantsFound({}, {}))
            assert Refusal.UNKNOWN_TOKEN is (await other.refused(answer)).refusal
        await other.refresh(answer)


async def test_of_two_copies_of_a_proof_one_is_taken(tmp_path: Path) -> None:
    """What may be used once is used once, on whatever node (RFC 9449 11.1)."""
    async with two_nodes(tmp_path) as (one, other):
        first = await one.issue()
        proof = SingleUse(kind="dpop", owner="key", identifier="x", expires_at=START + 60_000_000)
        who = caller()
        with_proof = type(who)(client_id="www", authenticated=True, auth_method="none", single_use=(proof,))
        asked = [
            node.ledger.refresh(with_proof, HOME, first.refresh_token or "", None, None) for node in (one, other) * 4
        ]
        told = await asyncio.gather(*asked, return_exceptions=True)
        taken = [answer for answer in told if isinstance(answer, TokenAnswer)]
        refused = [answer.refusal for answer in told if isinstance(answer, Refused)]
        assert (1, [Refusal.ALREADY_USED] * 7) == (len(taken), refused)


async def test_one_key_and_one_person_on_two_nodes_at_once(tmp_path: Path) -> None:
    """An Idempotency-Key makes one grant, and a person is one, whoever is asked."""
    async with two_nodes(tmp_path) as (one, other):
        for n in range(5):
            both = await asyncio.gather(*(node.issue(f"new-{n}", key=f"key-{n}") for node in (one, other)))
            assert both[0].refresh_token == both[1].refresh_token
            apart = await asyncio.gather(*(node.issue(f"newer-{n}") for node in (one, other)))
            assert apart[0].grant_id != apart[1].grant_id
            assert one.issuance(apart[0]).subject_id == one.issuance(apart[1]).subject_id


async def _issued_at_once(one: Opened, other: Opened, key: str) -> set[str]:
    """Both nodes issue for a person whom both know, with one Idempotency-Key; the ids of what they issued."""
    both = await asyncio.gather(*(node.issue("known", key=key) for node in (one, other)))
    return {answer.grant_id for answer in both}


async def test_one_key_on_two_nodes_at_once_where_nothing_else_is_new(tmp_path: Path) -> None:
    """Only the key itself says that the two are one: it is unique over all grants, in a table of its own."""
    async with two_nodes(tmp_path) as (one, other):
        await one.issue("known")
        for n in range(5):
            assert 1 == len(await _issued_at_once(one, other, f"key-{n}"))
        rows = one.rows("SELECT count(*), count(idempotency_mac) FROM private_grants")
        assert [(6, 5)] == rows


async def test_keys_that_nothing_holds_to_be_unique_issue_twice(tmp_path: Path) -> None:
    """The broken twin: without that table's key, two nodes issue two grants."""
    clock = Clock()
    async with (
        open_ledger(tmp_path, clock=clock) as one,
        open_ledger(tmp_path, clock=clock, seed=2, clients=None) as other,
    ):
        await one.issue("known")
        url = url_of(one.path)
        assert url is not None
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey")
        assert 2 in [len(await _issued_at_once(one, other, f"key-{n}")) for n in range(10)]


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
    assert await _ended_once_more(tmp_path) is None


async def test_a_crowd_with_one_token_over_two_nodes(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """However many come at once with one token: one successor, no refusal, three events (I-03, I-21)."""
    async with two_nodes(tmp_path) as (one, other):
        for n in range(count(2, 20)):
            first = await one.issue(f"person-{n}")
            crowd = count(200, 1000)
            answers = await asyncio.gather(*((one, other)[i % 2].refresh(first) for i in range(crowd)))
            assert 1 == len({answer.refresh_token for answer in answers})
            assert len(one.grant_events(first)) <= 1 + 3


@pytest.mark.parametrize("erased", [False, True])
async def test_a_grant_whose_end_took_its_nonce_along_is_refused(
    tmp_path: Path, erased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-06: a node that fetches it, and has not heard of the end of its person, cannot make its tokens: it hears of the
    end then, and says so."""
    monkeypatch.setattr(Commits, "look", lambda self: None)
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


async def test_clients_that_one_node_changes_rule_on_the_other(tmp_path: Path) -> None:
    """A cut of scope binds on the other node's next decision (I-06, I-08)."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        await one.apply(client(scope=("read",)), operators=OPERATORS)
        assert ("read",) == (await other.refresh(answer)).scope


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
    monkeypatch.setattr(Commits, "look", lambda self: None)
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        await one.apply(client(), client("another"), operators=OPERATORS)
        assert (await other.refresh(answer)).position == told[-1]
        assert max(told) < BASE


async def test_a_clients_file_of_yesterday_is_refused_by_whichever_node(tmp_path: Path) -> None:
    """The last serial stands in the store: a node that has not heard of it decides again."""
    async with two_nodes(tmp_path) as (one, other):
        await one.apply(client(), operators=OPERATORS, serial=7)
        with pytest.raises(Exception, match="serial"):
            await other.apply(client(), operators=OPERATORS, serial=6)


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
        assert 1 == ends[1] - ends[0], "next to each other, in one transaction"  # type: ignore[operator]  # whole numbers


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


async def test_who_showed_a_secret_that_was_taken_back_has_to_say_again_who_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client authenticates before its request is in line: what counted then, and no more, buys nothing. A change that
    has nothing to do with it stands in nobody's way, and the ledger's own work goes on."""
    monkeypatch.setattr(Commits, "look", lambda self: None)
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
