"""Presenting a token: whose it is, whether it is genuine, and what private rows go with what is recorded."""

import asyncio
import hashlib
import json
import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from ledger import access_tokens, tokens
from ledger.answers import Caller, Introspection, Source, TokenAnswer
from ledger.events import ForeignClientPresented, GrantRevoked, TokenRedeemed
from ledger.head_file import Acknowledged
from ledger.refusals import Refusal, Refused
from ledger.single_use import SingleUse
from ledger.times import SECOND
from tests.ledgers import (
    ELSEWHERE,
    HOME,
    ISSUER,
    LOCAL_OPERATOR,
    SECURITY,
    Opened,
    caller,
    check_ledger,
    client,
    open_ledger,
    with_policy,
)
from tests.rings import known_ring

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


def private(opened: Opened, answer: TokenAnswer, column: str) -> object:
    ((found,),) = opened.rows(
        f"SELECT p.{column} FROM private_grants p JOIN streams s ON s.id = p.stream WHERE s.name = ?",
        f"grant:{answer.grant_id}",
    )
    return found


def forged(opened: Opened, answer: TokenAnswer, generation: int = 0) -> str:
    """A token with a good tag and a wrong secret: made by somebody who has the key ring and not the database."""
    return tokens.derive(opened.ledger.desk.ring, 1, answer.grant_id, generation, b"?" * 32)


async def revoke(opened: Opened, token: str | None, client_id: str = "www") -> None:
    assert token is not None
    await opened.ledger.revoke_token(caller(client_id), HOME, token)


async def introspected(opened: Opened, token: str | None, client_id: str | None = "www") -> Introspection | None:
    assert token is not None
    return await opened.ledger.introspect(SECURITY if client_id is None else caller(client_id), token)


# ---------------------------------------------------------------- whose, and genuine


async def test_whoever_is_not_the_owner_is_refused_alike(tmp_path: Path) -> None:
    """I-19: foreign, forged, unknown and malformed: one refusal, nothing appended before it, no event named."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        answer = await opened.issue()
        stranger = tokens.derive(opened.ledger.desk.ring, 1, "0" * 32, 0, b"?" * 32)
        before = opened.last_position()
        for text in (forged(opened, answer), stranger, "rt1_garbage", "", answer.access_token):
            refusal = await opened.refused(text)
            assert (Refusal.UNKNOWN_TOKEN, None) == (refusal.refusal, refusal.event_id)
        refusal = await opened.refused(answer, client_id="other")
        assert (Refusal.UNKNOWN_TOKEN, None) == (refusal.refusal, refusal.event_id)
        assert before == opened.last_position()
        assert {"unknown_grant": 1, "wrong_secret": 1, "ahead_of_log": 0} == opened.ledger.desk.alarms
    check_ledger(opened.path)


async def test_a_token_with_our_tag_that_the_log_does_not_know_is_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a ledger that has lost something, or a stolen key ring, makes such tokens; garbage is not told."""
    caplog.set_level(logging.DEBUG, "ledger")
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        stranger = tokens.derive(opened.ledger.desk.ring, 1, "0" * 32, 0, b"?" * 32)
        for text in (stranger, forged(opened, answer), "rt1_garbage"):
            await opened.refused(text)
    told = [(record.getMessage(), vars(record)["fields"]) for record in caplog.records if record.name == "ledger"]
    assert [("unknown_grant", {"grant": "0" * 32}), ("wrong_secret", {"grant": answer.grant_id})] == told


async def test_a_wrong_secret_is_no_reuse(tmp_path: Path) -> None:
    """Whoever knows a grant's id and has the ring, but not its nonce, ends nobody's family."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.chain(await opened.issue(), 3, every_seconds=100)
        for generation in range(5):
            assert Refusal.UNKNOWN_TOKEN is (await opened.refused(forged(opened, answer, generation))).refusal
        await opened.refresh(answer)
    check_ledger(opened.path)


async def test_a_foreign_client_is_recorded_once_and_after_its_answer(tmp_path: Path) -> None:
    """RFC 6749 10.4: no action, one event with its presenter's context, which has its private row."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        answer = await opened.issue()
        before = opened.last_position()
        refusal = await opened.refused(answer, client_id="other", source=ELSEWHERE)
        assert before == opened.last_position(), "told first, written afterwards"
        assert Refusal.UNKNOWN_TOKEN is refusal.refusal
        for _ in range(2):
            assert refusal.refusal is (await opened.refused(answer, client_id="other", source=ELSEWHERE)).refusal
        await asyncio.sleep(0.05)
        _, event = opened.grant_events(answer)
        assert isinstance(event, ForeignClientPresented)
        assert ("other", 0) == (event.presenter_client_id, event.presented_generation)
        assert [(ELSEWHERE.address, ELSEWHERE.user_agent)] == opened.rows(
            "SELECT address, user_agent FROM private_contexts WHERE commitment = ?", event.context
        )
        await opened.refused(answer, client_id="other", source=ELSEWHERE)
        await asyncio.sleep(0.05)
        assert 2 == len(opened.grant_events(answer))
        await opened.refresh(answer)
    check_ledger(opened.path)


async def test_a_stop_records_the_foreign_client_that_was_just_answered(tmp_path: Path) -> None:
    """A clean stop loses nothing that was to be written after an answer."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        await opened.refused(await opened.issue(), client_id="other")
    assert 1 == check_ledger(opened.path).topics["grant.foreign_client_presented"]


async def soon(
    opened: Opened, text: str | None, who: Caller, source: Source = HOME
) -> TokenAnswer | BaseException | None:
    """What a refresh without a task is told; None: it is none for that."""
    assert text is not None
    told: asyncio.Future[TokenAnswer | BaseException] = asyncio.get_running_loop().create_future()
    return await told if opened.ledger.refresh_soon(who, source, text, told.set_result, lambda answer: None) else None


async def test_an_answer_is_prepared_before_it_is_told(tmp_path: Path) -> None:
    """Shown while its batch is made durable, told afterwards, with the position that it has got by then (I-02)."""
    async with open_ledger(tmp_path) as opened:
        issued = await opened.issue()
        assert issued.refresh_token is not None
        told: asyncio.Future[TokenAnswer | BaseException] = asyncio.get_running_loop().create_future()
        shown: list[tuple[bool, TokenAnswer]] = []

        def prepare(answer: TokenAnswer) -> None:
            shown.append((told.done(), answer))

        assert opened.ledger.refresh_soon(caller(), HOME, issued.refresh_token, told.set_result, prepare)
        answer = await told
        assert [(False, answer)] == shown
        assert isinstance(answer, TokenAnswer)
        assert answer.position == opened.last_position()
    check_ledger(opened.path)


async def test_without_a_task_all_is_judged_counted_and_recorded_as_with_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I-05, I-19: a genuine token that this process never made is served where it comes in, and whatever is wrong with
    it has the same consequences there."""
    jwt = client("jwt", policy=with_policy(access_token_format="jwt"))
    async with open_ledger(tmp_path, clients=[client(), client("other"), jwt]) as opened:
        first = await opened.issue()
        last = await opened.chain(first, 3, every_seconds=100)
        opened.ledger.desk.handed_out.clear()
        foreign = await soon(opened, last.refresh_token, caller("other"), ELSEWHERE)
        stranger = await soon(opened, tokens.derive(opened.ledger.desk.ring, 1, "0" * 32, 0, b"?" * 32), caller())
        wrong = await soon(opened, forged(opened, last, 3), caller())
        assert [Refusal.UNKNOWN_TOKEN] * 3 == [
            each.refusal for each in (foreign, stranger, wrong) if isinstance(each, Refused)
        ]
        assert {"unknown_grant": 1, "wrong_secret": 1, "ahead_of_log": 0} == opened.ledger.desk.alarms
        await asyncio.sleep(0.05)
        assert "foreign_client_presented" == opened.topics(last)[-1]

        before = opened.ledger.refreshed
        signed = await soon(opened, (await opened.issue(client_id="jwt")).refresh_token, caller("jwt"))
        assert isinstance(signed, TokenAnswer)
        assert (3, None, before + 1) == (len(signed.access_token.split(".")), signed.unsigned, opened.ledger.refreshed)

        reused = await soon(opened, first.refresh_token, caller())
        assert isinstance(reused, Refused)
        assert Refusal.REUSE_DETECTED is reused.refusal
        assert 1 == sum(opened.ledger.reuse_detected.values())
        assert 1 == sum(record.getMessage() == "reuse_detected" for record in caplog.records)
    check_ledger(opened.path)


async def test_what_wants_more_than_a_decision_is_not_served_without_a_task(tmp_path: Path) -> None:
    """A proof that is used up by it, a key that the ring's file may have by now, a log that has lost something, and
    what is no token: nothing happens then."""
    async with open_ledger(tmp_path) as opened:
        issued, before = await opened.issue(), opened.last_position()
        once = SingleUse(kind="assertion", owner="www", identifier="jti", expires_at=opened.clock.now + 60 * SECOND)
        assert await soon(opened, issued.refresh_token, replace(caller(), single_use=(once,))) is None
        elsewhere = tokens.derive(known_ring(8), 8, issued.grant_id, 0, b"?" * 32)
        assert await soon(opened, elsewhere, caller()) is None
        assert await soon(opened, "rt1_garbage", caller()) is None
        opened.ledger.log_end.behind = Acknowledged(10**6, opened.clock.now)
        assert await soon(opened, issued.refresh_token, caller()) is None
        opened.ledger.log_end.behind = None
        assert before == opened.last_position()
        await opened.refresh(issued)
    check_ledger(opened.path)


async def test_a_forged_token_of_a_foreign_client_is_not_recorded(tmp_path: Path) -> None:
    """Only a genuine one names a grant."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        answer = await opened.issue()
        await opened.refused(forged(opened, answer), client_id="other")
        await asyncio.sleep(0.05)
        assert ["issued"] == opened.topics(answer)


# ---------------------------------------------------------------- private rows


def committed(salt: object, place: Source) -> str:
    assert isinstance(salt, bytes)
    value = [salt.hex(), "context", f"{place.address}\n{place.user_agent}"]
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


async def test_a_context_is_a_commitment_with_one_private_row(tmp_path: Path) -> None:
    """Equal contexts of one grant have equal commitments, those of another grant others; the row opens them."""
    async with open_ledger(tmp_path) as opened:
        first, second = await opened.issue(), await opened.refresh(await opened.issue())
        for source in (HOME, ELSEWHERE, HOME):
            opened.clock.pass_seconds(1)
            first = await opened.refresh(first, source=source)
        contexts = [event.context for event in opened.grant_events(first) if isinstance(event, TokenRedeemed)]
        salt = private(opened, first, "salt")
        assert [committed(salt, HOME), committed(salt, ELSEWHERE), committed(salt, HOME)] == contexts
        assert committed(private(opened, second, "salt"), HOME) not in contexts
        assert [(3,)] == opened.rows("SELECT count(*) FROM private_contexts")
    check_ledger(opened.path)


async def test_a_refusal_that_records_nothing_keeps_no_context(tmp_path: Path) -> None:
    """A context row is written only with an event that names it."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        with pytest.raises(Refused):
            await opened.refresh(answer, source=ELSEWHERE, scope=("admin",))
        assert [] == opened.rows("SELECT * FROM private_contexts")
        opened.check_memory()


async def test_many_contexts_of_one_grant_are_all_kept_and_few_remembered(tmp_path: Path) -> None:
    """What memory holds of a grant is bounded; a context that comes back has no second row."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        for n in [*range(40), *range(40)]:
            opened.clock.pass_seconds(1)
            answer = await opened.refresh(answer, source=Source(f"192.0.2.{n}", "app/1"))
        assert [(40,)] == opened.rows("SELECT count(*) FROM private_contexts")
        assert 0 < len(opened.ledger.memory.streams[f"grant:{answer.grant_id}"].contexts or ()) < 16
        opened.check_memory()
    check_ledger(opened.path)


# ---------------------------------------------------------------- the nonce


async def test_the_nonce_is_gone_with_the_end(tmp_path: Path) -> None:
    """Nobody, the operator included, can make a token of an ended grant again; a suspension is no end."""
    async with open_ledger(tmp_path) as opened:
        by_operator, by_client, by_reuse, suspended = [await opened.issue(str(n)) for n in range(4)]
        last = await opened.chain(by_reuse, 3, every_seconds=100_000)
        await opened.act("revoke", by_operator.grant_id)
        await revoke(opened, by_client.refresh_token)
        await opened.act("suspend", suspended.grant_id)
        assert Refusal.REUSE_DETECTED is (await opened.refused(by_reuse)).refusal
        assert [None] * 3 == [private(opened, answer, "nonce") for answer in (by_operator, by_client, by_reuse)]
        assert private(opened, suspended, "nonce") is not None
        assert Refusal.REUSE_DETECTED is (await opened.refused(last)).refusal, "the tag alone says that we made it"
        opened.check_memory()
    check_ledger(opened.path)


async def test_an_end_by_epoch_takes_the_nonce_when_a_token_comes_next(tmp_path: Path) -> None:
    """No event of the grant's own says it, so it goes with the first presentation after the end."""
    async with open_ledger(tmp_path) as opened:
        answer, unused = await opened.issue(), await opened.issue()
        await opened.ledger.operators.revoke_client(LOCAL_OPERATOR, "www", None, None)
        assert private(opened, answer, "nonce") is not None
        await opened.refused(answer)
        assert private(opened, answer, "nonce") is None
        assert private(opened, unused, "nonce") is not None
        assert Refusal.REVOKED_BY_OPERATOR is (await opened.refused(answer)).refusal
        opened.check_memory()
    check_ledger(opened.path)


# ---------------------------------------------------------------- revocation (RFC 7009)


async def test_the_client_gives_its_grant_back_by_any_of_its_tokens(tmp_path: Path) -> None:
    """RFC 7009 2.1: by a retired one as well; again is no error and writes nothing."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        last = await opened.refresh(first)
        await revoke(opened, first.refresh_token)
        event = opened.grant_events(first)[-1]
        assert isinstance(event, GrantRevoked)
        assert ("completion", "client:www") == (event.reason_class, event.requested_by)
        before = opened.last_position()
        for text in (first.refresh_token, last.refresh_token, "rt1_garbage", forged(opened, first)):
            await revoke(opened, text)
        assert before == opened.last_position()
        refusal = await opened.refused(last)
        assert (Refusal.REVOKED_BY_CLIENT, event.event_id) == (refusal.refusal, refusal.event_id)
        assert await introspected(opened, last.access_token) is None
    check_ledger(opened.path)


async def test_another_clients_token_cannot_be_given_back(tmp_path: Path) -> None:
    """I-18: refused, recorded as a foreign presentation, and the grant lives."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        answer = await opened.issue()
        for text in (answer.refresh_token, answer.access_token):
            with pytest.raises(Refused) as caught:
                await revoke(opened, text, "other")
            assert Refusal.UNKNOWN_TOKEN is caught.value.refusal
        await asyncio.sleep(0.05)
        assert ["issued", "foreign_client_presented"] == opened.topics(answer)
        await opened.refresh(answer)
    check_ledger(opened.path)


async def test_another_client_cannot_tell_from_a_token_that_its_grant_has_ended(tmp_path: Path) -> None:
    """I-18, I-19: giving back another's token is refused before the end and after it; its owner is told of no error."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        answer = await opened.issue()
        for _ in range(2):
            for text in (answer.refresh_token, answer.access_token):
                with pytest.raises(Refused) as caught:
                    await revoke(opened, text, "other")
                assert Refusal.UNKNOWN_TOKEN is caught.value.refusal
            await revoke(opened, answer.refresh_token)
            assert private(opened, answer, "nonce") is None
        await revoke(opened, answer.access_token)
    check_ledger(opened.path)


async def test_an_access_token_given_back_leaves_the_grant_alive(tmp_path: Path) -> None:
    """RFC 7009 2.1: that one alone is inactive; again writes nothing, and a forged one neither."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        second = await opened.refresh(first)
        await revoke(opened, first.access_token)
        await revoke(opened, first.access_token)
        await revoke(opened, access_tokens.derive(opened.ledger.desk.ring, 1, first.grant_id, 2, b"?" * 32))
        assert ["issued", "token_redeemed", "token_rotated", "access_token_revoked"] == opened.topics(first)
        assert await introspected(opened, first.access_token) is None
        assert await introspected(opened, second.access_token) is not None
        await opened.refresh(second)
    check_ledger(opened.path)


# ---------------------------------------------------------------- introspection (RFC 7662)


async def test_its_own_client_and_an_operator_learn_what_a_token_is_worth(tmp_path: Path) -> None:
    """RFC 7662 2.2, for both kinds; nobody else learns anything, and nothing is recorded."""
    async with open_ledger(tmp_path, clients=[client(), client("other")]) as opened:
        first = await opened.issue()
        answer = await opened.refresh(first, scope=("read",))
        before = opened.last_position()
        for client_id in ("www", None):
            access = await introspected(opened, answer.access_token, client_id)
            refresh = await introspected(opened, answer.refresh_token, client_id)
            assert access is not None
            assert refresh is not None
            assert ("access_token", ("read",), "alice") == (access.token_use, access.scope, access.subject)
            assert ("refresh_token", ("read",), "www") == (refresh.token_use, refresh.scope, refresh.client_id)
            assert opened.clock.now + 300_000_000 == access.expires_at
        for text in (answer.access_token, answer.refresh_token):
            assert await introspected(opened, text, "other") is None
        assert await introspected(opened, first.refresh_token) is None, "retired: `active` speaks of this very token"
        assert await introspected(opened, first.access_token) is not None
        assert await introspected(opened, forged(opened, first, 1)) is None
        assert await introspected(opened, "at1_garbage") is None
        assert before == opened.last_position()


async def test_an_access_token_is_what_the_event_that_minted_it_says(tmp_path: Path) -> None:
    """An event that minted none, a version that is not there and a wrong secret make no token."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        ring, nonce = opened.ledger.desk.ring, private(opened, answer, "nonce")
        assert isinstance(nonce, bytes)
        made = [access_tokens.derive(ring, 1, answer.grant_id, v, nonce) for v in (0, 1, 2, 3, 4)]
        assert [False, True, True, False, False] == [await introspected(opened, text) is not None for text in made]
        assert made[2] == answer.access_token
        assert await introspected(opened, access_tokens.derive(ring, 1, answer.grant_id, 1, bytes(32))) is None
        assert await introspected(opened, access_tokens.derive(ring, 1, "0" * 32, 1, nonce)) is None


@pytest.mark.parametrize("how", ["revoked", "suspended", "client", "subject", "disabled", "erased"])
async def test_nothing_of_a_grant_that_was_stopped_is_active(tmp_path: Path, how: str) -> None:
    """I-06: at once, both kinds, for everybody."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        match how:
            case "revoked":
                await opened.act("revoke", answer.grant_id)
            case "suspended":
                await opened.act("suspend", answer.grant_id)
            case "client":
                await opened.ledger.operators.revoke_client(SECURITY, "www", None, None)
            case "subject":
                await opened.ledger.operators.revoke_subject(ISSUER, "alice", None, None)
            case "disabled":
                await opened.apply(client("other"))
            case _:
                await opened.ledger.operators.erase(LOCAL_OPERATOR, "alice")
        assert await introspected(opened, answer.access_token, None) is None
        assert await introspected(opened, answer.refresh_token, None) is None
    check_ledger(opened.path)


# ---------------------------------------------------------------- what outside the grant bears on it


async def test_on_reuse_a_persons_other_grants_may_end_too(tmp_path: Path) -> None:
    """`revoke_subject`: the grant's own end and the person's epoch in one transaction; the others say reuse."""
    async with open_ledger(tmp_path, clients=[client(policy=with_policy(on_reuse="revoke_subject"))]) as opened:
        first, other = await opened.issue(), await opened.issue()
        last = await opened.chain(first, 3, every_seconds=100_000)
        before = opened.ledger.commits.batches
        assert Refusal.REUSE_DETECTED is (await opened.refused(first)).refusal
        assert before + 1 == opened.ledger.commits.batches
        assert Refusal.REUSE_DETECTED is (await opened.refused(last)).refusal
        refusal = await opened.refused(other)
        event_id = f"subject:{opened.issuance(first).subject_id}/1"
        assert (Refusal.REUSE_DETECTED, event_id) == (refusal.refusal, refusal.event_id)
        for answer, whose in ((first, "a retired token"), (other, "a retired token of another grant of this person")):
            text = (await opened.ledger.operators.explain(answer.refresh_token or "")).text
            assert text.endswith(f", because {whose} came back, by ledger:reuse.")
    check_ledger(opened.path)


async def test_a_clients_ceiling_that_was_cut_binds_the_next_refresh(tmp_path: Path) -> None:
    """I-06, I-08: at once, on what it may have now; back in the file it is all there again."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue(scope=("read", "write"))
        await opened.apply(client(scope=("read",)))
        answer = await opened.refresh(answer)
        assert ("read",) == answer.scope
        await opened.apply(client(scope=("profile",)))
        refusal = await opened.refused(answer)
        assert (Refusal.NO_SCOPE_LEFT, None) == (refusal.refusal, refusal.event_id)
        await opened.apply(client())
        assert ("read", "write") == (await opened.refresh(answer)).scope
    check_ledger(opened.path)


async def test_a_disabled_clients_grants_live_again_when_it_returns(tmp_path: Path) -> None:
    """Removed: answered as an unknown one; back in the file: as if nothing had been."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.apply(client("other"))
        assert Refusal.UNKNOWN_TOKEN is (await opened.refused(answer)).refusal
        opened.clock.pass_seconds(86_400)
        await opened.apply(client())
        await opened.refresh(answer)
    check_ledger(opened.path)
