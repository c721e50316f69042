"""What operators and commands do: grants, ends by epoch, clients files, keys, and who looked."""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from ledger import times
from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.events import AuditRead, GrantFact, GrantRevoked, SubjectRevoked
from ledger.memory import Loaded
from ledger.refusals import LedgerError, Refusal, Refused
from tests.ledgers import (
    HOME,
    ISSUER,
    LOCAL_OPERATOR,
    OPERATORS,
    SECURITY,
    Opened,
    caller,
    check_ledger,
    client,
    open_ledger,
    operator,
    refused,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


# ---------------------------------------------------------------- one grant


@pytest.mark.parametrize(
    ("who", "reason_class"), [(SECURITY, "termination"), (ISSUER, "withdrawal"), (LOCAL_OPERATOR, "termination")]
)
async def test_a_grant_is_revoked_once_with_who_and_why(tmp_path: Path, who: Operator, reason_class: str) -> None:
    """An issuer gives back what its person gave, any other operator ends it on the house's account (I-07)."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        for _ in range(2):
            await opened.ledger.operators.act_on_grant(who, answer.grant_id, "revoke", "lost phone", None)
        _, event = opened.grant_events(answer)
        assert isinstance(event, GrantRevoked)
        assert (reason_class, who.requested_by) == (event.reason_class, event.requested_by)
        assert [(event.event_id, "lost phone")] == opened.rows("SELECT event_id, text FROM private_reasons")
        assert Refusal.REVOKED_BY_OPERATOR is (await opened.refused(answer)).refusal
    check_ledger(opened.path)


async def test_an_issuer_ends_only_what_it_issued(tmp_path: Path) -> None:
    """Of another's grant it learns nothing; suspending and reinstating are not its business at all."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        other = Operator(name="other-app", enabled=True, roles=("issuer",))
        assert Refusal.NOT_FOUND is await refused(
            opened.ledger.operators.act_on_grant(other, answer.grant_id, "revoke", None, None)
        )
        for act in ("suspend", "reinstate"):
            assert Refusal.FORBIDDEN is await refused(
                opened.ledger.operators.act_on_grant(ISSUER, answer.grant_id, act, None, None)
            )
        await opened.refresh(answer)


@pytest.mark.parametrize("roles", [("issuer",), ("issuer", "auditor")])
async def test_an_issuer_that_lost_a_client_does_not_end_its_grants(tmp_path: Path, roles: tuple[str, ...]) -> None:
    """Limited to other clients it has nothing to do with them any more, also where as an auditor it sees them."""
    limited = replace(ISSUER, roles=roles, clients=("www",))
    async with open_ledger(tmp_path, clients=(client(), client("app"))) as opened:
        kept, lost = await opened.issue(), await opened.issue(client_id="app")
        assert Refusal.NOT_FOUND is await refused(
            opened.ledger.operators.act_on_grant(limited, lost.grant_id, "revoke", None, None)
        )
        await opened.refresh(lost, client_id="app")
        await opened.ledger.operators.act_on_grant(limited, kept.grant_id, "revoke", None, None)
        assert "revoked" == opened.topics(kept)[-1]


async def test_acts_on_what_is_not_there_or_over_are_refused(tmp_path: Path) -> None:
    """404, 409, 400; nothing is written, no reason's text either."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        assert Refusal.NOT_FOUND is await refused(opened.act("revoke", "0" * 32, reason="r"))
        assert Refusal.INVALID_REQUEST is await refused(opened.act("suspend", answer.grant_id, reason="r" * 201))
        await opened.act("revoke", answer.grant_id)
        before = opened.last_position()
        for act in ("suspend", "reinstate"):
            assert Refusal.CONFLICT is await refused(opened.act(act, answer.grant_id, reason="r"))
        await opened.act("revoke", answer.grant_id, reason="r")
        assert before == opened.last_position()
        assert [] == opened.rows("SELECT * FROM private_reasons")
    check_ledger(opened.path)


@pytest.mark.parametrize("days", [31, 366], ids=["idle", "absolute"])
async def test_a_grant_that_was_revoked_while_the_clock_was_ahead_is_over_when_it_is_right(
    tmp_path: Path, days: int
) -> None:
    """I-06, I-16: it was past its end by that clock alone. Who revoked it was told 200, so an event says it, once."""
    async with open_ledger(tmp_path) as opened:
        of_client, of_operator, left = [await opened.issue(name) for name in ("alice", "bob", "carol")]
        opened.clock.pass_seconds(days * 86_400)
        for _ in range(2):
            await opened.ledger.revoke_token(caller(), HOME, of_client.refresh_token or "")
            await opened.act("revoke", of_operator.grant_id, reason="lost phone")
        opened.clock.pass_seconds(-days * 86_400)
        for answer, refusal in (
            (of_client, Refusal.REVOKED_BY_CLIENT),
            (of_operator, Refusal.REVOKED_BY_OPERATOR),
        ):
            assert refusal is (await opened.refused(answer)).refusal
            assert await opened.ledger.introspect(caller(), answer.access_token) is None
            assert ["issued", "revoked"] == opened.topics(answer)
        await opened.refresh(left)
    check_ledger(opened.path)


async def test_a_suspension_holds_until_it_is_reinstated(tmp_path: Path) -> None:
    """After reuse only with trust in the current token's holder (I-05)."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        await opened.act("suspend", first.grant_id)
        assert Refusal.SUSPENDED is (await opened.refused(first)).refusal
        await opened.act("reinstate", first.grant_id)
        await opened.act("reinstate", first.grant_id)
        await opened.refresh(first)
        assert ["issued", "suspended", "reinstated", "token_redeemed", "token_rotated"] == opened.topics(first)
    check_ledger(opened.path)


# ---------------------------------------------------------------- ends by epoch


async def test_a_person_who_was_never_seen_is_no_error(tmp_path: Path) -> None:
    """200 and known: false; nothing recorded, the reason neither."""
    async with open_ledger(tmp_path) as opened:
        before = opened.last_position()
        answer = await opened.ledger.operators.revoke_subject(SECURITY, "nobody", "why not", None)
        assert (False, 0) == (answer.known, answer.epoch)
        assert before == opened.last_position()
        assert [] == opened.rows("SELECT * FROM private_reasons")


async def test_ending_again_changes_nothing_until_there_is_something_to_end(tmp_path: Path) -> None:
    """A raise that would end nothing is not written; one after a new grant is."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        epochs = []
        for _ in range(2):
            epochs.append((await opened.ledger.operators.revoke_subject(SECURITY, "alice", "r", None)).epoch)
            epochs.append((await opened.ledger.operators.revoke_client(SECURITY, "www", "r", None)).epoch)
        await opened.issue()
        epochs.append((await opened.ledger.operators.revoke_subject(SECURITY, "alice", "r", None)).epoch)
        epochs.append((await opened.ledger.operators.revoke_client(SECURITY, "www", "r", None)).epoch)
        assert [1, 1, 1, 1, 2, 2] == epochs
        assert [(4,)] == opened.rows("SELECT count(*) FROM private_reasons")
    checked = check_ledger(opened.path)
    assert (2, 2) == (checked.topics["subject.revoked"], checked.topics["client.revoked"])


async def test_with_before_only_older_grants_end(tmp_path: Path) -> None:
    """To the microsecond; one in the future is refused."""
    async with open_ledger(tmp_path) as opened:
        old = await opened.issue()
        opened.clock.pass_seconds(60)
        moment = opened.clock.now
        new = await opened.issue()
        future = opened.ledger.operators.revoke_subject(SECURITY, "alice", None, moment + 1)
        assert Refusal.INVALID_REQUEST is await refused(future)
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, moment)
        assert Refusal.REVOKED_BY_SUBJECT is (await opened.refused(old)).refusal
        await opened.refresh(new)
        event = next(event for event in opened.events() if isinstance(event, SubjectRevoked))
        assert times.text(moment) == event.before
    check_ledger(opened.path)


async def test_a_disabled_client_can_be_ended_and_an_unknown_one_not(tmp_path: Path) -> None:
    """Its epoch outlives its absence: back in the file, its grants stay ended."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.apply(client("other"))
        await opened.ledger.operators.revoke_client(SECURITY, "www", None, None)
        assert Refusal.NOT_FOUND is await refused(opened.ledger.operators.revoke_client(SECURITY, "nobody", None, None))
        await opened.apply(client())
        assert Refusal.REVOKED_BY_OPERATOR is (await opened.refused(answer)).refusal
    check_ledger(opened.path)


async def race(opened: Opened, newest: TokenAnswer, subject: str, how: str, *, turns: int) -> None:
    """Refresh one grant over and over, and end it so many turns of the loop later."""
    grant_id, acknowledged = newest.grant_id, False

    async def refreshing(newest: TokenAnswer) -> None:
        for _ in range(20):
            begun_after = acknowledged
            try:
                newest = await opened.refresh(newest)
            except Refused:
                return
            assert not begun_after

    async def ending() -> None:
        nonlocal acknowledged
        for _ in range(turns):
            await asyncio.sleep(0)
        match how:
            case "grant":
                await opened.act("revoke", grant_id)
            case "subject":
                await opened.ledger.operators.revoke_subject(SECURITY, subject, None, None)
            case _:
                await opened.ledger.operators.revoke_client(SECURITY, "www", None, None)
        acknowledged = True

    await asyncio.gather(refreshing(newest), ending())


@pytest.mark.parametrize("how", ["grant", "subject", "client"])
async def test_an_end_that_races_refreshes_is_followed_by_none(
    tmp_path: Path, how: str, count: Callable[[int, int], int]
) -> None:
    """I-06: whatever is under way, no refresh succeeds after the acknowledgement, and none follows the end in log
    order: each event of the grant names a control counter from before it."""
    drawn = random.Random(how)
    async with open_ledger(tmp_path) as opened:
        for n in range(count(10, 170)):
            answer = await opened.issue(f"person-{n}")
            await race(opened, answer, f"person-{n}", how, turns=drawn.randrange(12))
            end = max(
                position
                for (position,) in opened.rows(
                    "SELECT position FROM events WHERE body ->> 'topic' IN"
                    " ('grant.revoked', 'subject.revoked', 'client.revoked')"
                )
                if isinstance(position, int)
            )
            redeemed = opened.rows(
                "SELECT count(*) FROM events WHERE position > ? AND body ->> 'topic' = 'grant.token_redeemed'", end
            )
            assert [(0,)] == redeemed
            assert "revoked" in (await opened.refused(answer)).refusal.value
    check_ledger(opened.path)


# ---------------------------------------------------------------- clients files


async def test_a_file_with_an_older_serial_is_refused_whole(tmp_path: Path) -> None:
    """No node brings back what another disabled; the serial stands beside the control counter and survives."""
    async with open_ledger(tmp_path, clients=None) as opened:
        await opened.apply(client(), client("b"), serial=7)
        await opened.apply(client("b"), serial=8)
        for serial in (7, None):
            with pytest.raises(LedgerError):
                await opened.apply(client(), client("b"), serial=serial)
        assert opened.ledger.authority.client("www") is None
        await opened.apply(client("b"), serial=8)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        with pytest.raises(LedgerError):
            await opened.apply(client(), serial=7)
        await opened.apply(client("b"), operators=[operator()], serial=9)
        assert [(9,)] == opened.rows("SELECT serial FROM control")
    check_ledger(opened.path)


async def test_a_dry_run_tells_the_same_and_records_nothing(tmp_path: Path) -> None:
    """The difference, and nothing but the difference; applied twice there is none."""
    async with open_ledger(tmp_path) as opened:
        before = opened.last_position()
        specs = [client(secret="another"), client("new")]
        dry = await opened.ledger.operators.apply(specs, [], serial=1, dry_run=True)
        assert before == opened.last_position()
        wet = await opened.ledger.operators.apply(specs, [], serial=1)
        assert dry.lines() == wet.lines() != ["nothing changes"]
        assert ["nothing changes"] == (await opened.ledger.operators.apply(specs, [], serial=1)).lines()
    check_ledger(opened.path)


async def test_each_client_of_a_file_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is asked for each that it does not have yet: of thousands over a network that takes seconds."""
    asked: list[list[str]] = []
    known = Batch.load_or_create_all

    def load_or_create_all(batch: Batch, names: Sequence[str]) -> list[Loaded]:
        asked.append([*names])
        return known(batch, names)

    async with open_ledger(tmp_path) as opened:
        with monkeypatch.context() as patched:
            patched.setattr(Batch, "load_or_create_all", load_or_create_all)
            await opened.apply(client(), *map(client, "abc"), operators=OPERATORS)
    assert [["client:a", "client:b", "client:c"]] == asked
    check_ledger(opened.path)


# ---------------------------------------------------------------- who looked


async def test_a_question_is_recorded_with_who_asked_and_never_what_was_sought(tmp_path: Path) -> None:
    """One `audit.read` a question, in a stream of its own whose times never run back."""
    async with open_ledger(tmp_path) as opened:
        await opened.ledger.operators.record_read(SECURITY, "grants")
        opened.clock.pass_seconds(-60)
        await opened.ledger.operators.record_read(ISSUER, "grant", "0" * 32)
        first, second = opened.events("audit")
        assert isinstance(first, AuditRead)
        assert isinstance(second, AuditRead)
        assert ("grants", None, "operator:soc") == (first.question, first.grant_id, first.requested_by)
        assert ("grant", "0" * 32, "operator:login-app") == (second.question, second.grant_id, second.requested_by)
        assert first.at == second.at
    check_ledger(opened.path)


async def test_every_event_of_a_grant_names_the_counter_it_was_decided_on(tmp_path: Path) -> None:
    """I-06: the counter moves with the events of authority before it in the log, within a batch too."""
    async with open_ledger(tmp_path) as opened:
        answers = await asyncio.gather(
            opened.issue("alice"),
            opened.ledger.operators.revoke_client(SECURITY, "www", None, 1),
            opened.issue("bob"),
            opened.apply(client(scope=("read", "openid", "profile")), operators=OPERATORS),
            opened.issue("carol"),
        )
        counters = [
            event.control
            for answer in (answers[0], answers[2], answers[4])
            if isinstance(answer, TokenAnswer)
            for event in opened.grant_events(answer)
            if isinstance(event, GrantFact)
        ]
        assert [counters[0], counters[0] + 1, counters[0] + 2] == counters
    check_ledger(opened.path)
