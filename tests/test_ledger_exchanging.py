"""Codes on a real store: exchanged once, whoever races; ended with their person and client; nothing of them at rest."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ledger.answers import Caller, TokenAnswer
from ledger.exchanging import REUSE_REASON, challenge_of
from ledger.recorders.errors import StoreError, StoreFull
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.single_use import SingleUse
from ledger.times import SECOND
from tests.faulty_store import FaultyStore, faulty, instead
from tests.ledgers import ELSEWHERE, LOCAL_OPERATOR, SECURITY, Opened, check_ledger, client, open_ledger
from tests.sign_ins import CHALLENGE, VERIFIER, app, exchange_refused, exchanged, sign_in

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


def topics(opened: Opened, grant_id: str) -> list[str]:
    return [event.topic.removeprefix("grant.") for event in opened.events(f"grant:{grant_id}")]


@pytest.mark.parametrize(
    ("verifier", "challenge"),
    [
        (VERIFIER, CHALLENGE),
        ("a" * 43, "ZtNPunH49FD35FWYhT5Tv8I7vRKQJ8uxMaL0_9eHjNA"),
        ("~._-" * 32, "2u_m7DaM-b_h8GhNxUxhdLmXpDSbUbVyika2tMHCJ5s"),
        ("a" * 42, None),
        ("a" * 129, None),
        ("a" * 42 + "+", None),
        ("a" * 42 + "é", None),
        ("a" * 43 + "\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_verifier_comes_to_its_challenge(verifier: str | None, challenge: str | None) -> None:
    """RFC 7636 4.1, 4.2 and appendix B: 43 to 128 unreserved characters, S256 alone."""
    assert challenge == challenge_of(verifier)


async def test_a_sign_in_becomes_tokens(tmp_path: Path) -> None:
    """The whole way, then a refresh; the store holds together, replayed too (I-13)."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        assert 60 == code.expires_in
        opened.clock.pass_seconds(12)
        first = await exchanged(opened, code)
        assert (300, ("read", "openid", "profile"), "bearer") == (first.expires_in, first.scope, first.token_type)
        assert (opened.last_position(), 30 * 86_400) == (first.position, first.refresh_token_timeout)
        second = await opened.refresh(first, client_id="app")
        assert second.refresh_token != first.refresh_token
        assert ["authorized", "issued", "token_redeemed", "token_rotated"] == topics(opened, first.grant_id)
        opened.check_memory()
    check_ledger(opened.path)


async def test_nothing_of_a_code_is_at_rest(tmp_path: Path) -> None:
    """RFC 6749 10.5, I-20: neither the code nor a digest of it is in the file, its log or any text form."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        assert code.code not in repr(code)
        await exchanged(opened, code)
        written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
        assert code.code[4:40].encode() not in written
        assert VERIFIER.encode() not in written


async def test_a_code_outlives_a_restart(tmp_path: Path) -> None:
    """It follows from what is durable: a crash between sign-in and exchange loses nobody's sign-in (I-09)."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
    async with open_ledger(tmp_path, clients=(app(),), seed=2, clock=opened.clock) as opened:
        assert 300 == (await exchanged(opened, code)).expires_in
    check_ledger(opened.path)


@pytest.mark.parametrize("authenticated", [True, False])
async def test_many_exchanges_at_once_issue_once(
    tmp_path: Path, count: Callable[[int, int], int], authenticated: bool
) -> None:
    """V80 in a race: one issuance, one answer; the first loser ends the grant, once, whoever it was."""
    many = count(10, 100)
    auth = "client_secret" if authenticated else "none"
    async with open_ledger(tmp_path, clients=(app(auth=auth),)) as opened:
        code = await sign_in(opened)
        results = await asyncio.gather(
            *(exchanged(opened, code, authenticated=authenticated) for _ in range(many)), return_exceptions=True
        )
        (winner,) = [result for result in results if isinstance(result, TokenAnswer)]
        refusals = [result.refusal for result in results if isinstance(result, Refused)]
        assert [Refusal.REUSE_DETECTED] * (many - 1) == refusals
        assert ["authorized", "issued", "revoked"] == topics(opened, winner.grant_id)
        with pytest.raises(Refused):
            await opened.refresh(winner, client_id="app", authenticated=authenticated)
    check_ledger(opened.path)


@pytest.mark.parametrize("first", [True, False])
async def test_an_end_of_the_person_races_the_exchange(tmp_path: Path, first: bool) -> None:
    """I-06: whichever the log has first, after both are answered nothing of that sign-in works."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        end = opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        buy = exchanged(opened, code)
        one, two = await asyncio.gather(*((end, buy) if first else (buy, end)), return_exceptions=True)
        result = two if first else one
        if isinstance(result, TokenAnswer):
            assert not first
            with pytest.raises(Refused):
                await opened.refresh(result, client_id="app")
        else:
            assert isinstance(result, Refused)
            assert Refusal.REVOKED_BY_SUBJECT is result.refusal
    check_ledger(opened.path)


async def test_an_end_with_before_takes_the_code_by_the_sign_ins_time(tmp_path: Path) -> None:
    """A grant's `issued_at` is its first event's: what was agreed to before that moment ends, however late its code."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        old = await sign_in(opened)
        opened.clock.pass_seconds(5)
        before = opened.clock.now
        opened.clock.pass_seconds(5)
        new = await sign_in(opened)
        bought = await exchanged(opened, old)
        await opened.ledger.operators.revoke_client(SECURITY, "app", None, before)
        with pytest.raises(Refused, match="revoked_by_operator"):
            await opened.refresh(bought, client_id="app")
        assert 300 == (await exchanged(opened, new)).expires_in
    check_ledger(opened.path)


async def test_erased_between_sign_in_and_exchange(tmp_path: Path) -> None:
    """The code is dead, and its person in no row: nothing is asked of a private row that is gone."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        assert await opened.ledger.operators.erase(LOCAL_OPERATOR, "alice")
        assert Refusal.REVOKED_BY_SUBJECT is (await exchange_refused(opened, code)).refusal
        assert [(0,)] == opened.rows("SELECT count(*) FROM private_grants")
    check_ledger(opened.path)


async def test_a_client_that_returns_finds_its_codes_alive(tmp_path: Path) -> None:
    """Removed and back within the minute: blocked meanwhile, not ended; a `before` in between is another matter."""
    async with open_ledger(tmp_path, clients=(app(), client())) as opened:
        code = await sign_in(opened)
        await opened.apply(client())
        assert Refusal.UNKNOWN_TOKEN is (await exchange_refused(opened, code)).refusal
        assert ("suspended", "client_disabled") == (
            (found := await opened.ledger.operators.explain(code.code)).verdict, found.reason,
        )  # fmt: skip
        await opened.apply(app(), client())
        assert 300 == (await exchanged(opened, code)).expires_in
    check_ledger(opened.path)


async def test_another_client_is_told_nothing_and_ends_nothing(tmp_path: Path) -> None:
    """D6, I-18, I-19: recorded once, after the answer; the code lives, used or not."""
    async with open_ledger(tmp_path, clients=(app(), app("oth"))) as opened:
        code = await sign_in(opened)
        for _ in range(2):
            refusal = await exchange_refused(opened, code, client_id="oth", source=ELSEWHERE)
            assert (Refusal.UNKNOWN_TOKEN, None) == (refusal.refusal, refusal.event_id)
        await asyncio.sleep(0.05)
        bought = await exchanged(opened, code)
        assert ["authorized", "foreign_client_presented", "issued"] == topics(opened, bought.grant_id)
        await exchange_refused(opened, code, client_id="oth")
        await opened.refresh(bought, client_id="app")
    check_ledger(opened.path)


async def test_a_second_use_says_why_on_record_and_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is a text of ours, disclosed like an operator's; one log line, for whoever watches."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        bought = await exchanged(opened, code)
        with caplog.at_level(logging.WARNING, "ledger"):
            for _ in range(3):
                refusal = await exchange_refused(opened, code)
                assert (Refusal.REUSE_DETECTED, f"grant:{bought.grant_id}/3") == (refusal.refusal, refusal.event_id)
        assert ["code_reused"] == [record.message for record in caplog.records]
        assert {"exchanged": 1, "reused": 1} == opened.ledger.codes
        assert [(REUSE_REASON,)] == opened.rows("SELECT text FROM private_reasons")
        assert [(None,)] == opened.rows("SELECT nonce FROM private_grants")
        found = await opened.ledger.operators.explain(code.code)
        assert ("revoked", "reuse_detected", "ledger:reuse") == (found.verdict, found.reason, found.by)
        assert 2 == found.presentations_counted
        of_token = await opened.ledger.operators.explain(bought.refresh_token or "")
        for text in (found.text, of_token.text):
            assert text.endswith(f", because {REUSE_REASON}, by ledger:reuse.")
    check_ledger(opened.path)


async def test_what_explain_says_of_a_code(tmp_path: Path) -> None:
    """In plain words: not exchanged yet, exchanged, expired, never ours."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code, late = await sign_in(opened), await sign_in(opened)
        fresh = await opened.ledger.operators.explain(f" {code.code}\n")
        assert ("current", f"grant:{fresh.grant_id}/1", None) == (
            fresh.verdict, fresh.event_id, fresh.current_generation,
        )  # fmt: skip
        await exchanged(opened, code)
        used = await opened.ledger.operators.explain(code.code)
        assert ("retired", f"grant:{fresh.grant_id}/2", 0) == (used.verdict, used.event_id, used.current_generation)
        opened.clock.pass_seconds(60)
        over = await opened.ledger.operators.explain(late.code)
        assert ("expired", "expired_absolute") == (over.verdict, over.reason)
        for text in (fresh, used, over):
            assert text.text.startswith("An authorization code ")
        swapped = code.code[:-1] + ("A" if code.code[-1] != "A" else "B")
        assert "unknown" == (await opened.ledger.operators.explain(swapped)).verdict


async def test_unused_codes_end_by_themselves(tmp_path: Path) -> None:
    """Each abandoned sign-in is one event and one row; nothing has to come and end it, and no list calls it alive."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        for _ in range(5):
            await sign_in(opened)
        events = len(opened.events())
        opened.clock.pass_seconds(61)
        assert [(5, 5)] == opened.rows(
            "SELECT count(*), sum(generation IS NULL) FROM streams WHERE name LIKE 'grant:%'"
        )
        assert len(opened.events()) == events
        living = opened.rows(
            "SELECT count(*) FROM streams WHERE name LIKE 'grant:%' AND idle_expires_at > ?", opened.clock.now
        )
        assert [(0,)] == living
    check_ledger(opened.path)


async def test_a_clock_that_is_put_back_revives_no_code(tmp_path: Path) -> None:
    """I-16: once its owner was told that it has expired, it has."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        opened.clock.pass_seconds(61)
        assert Refusal.EXPIRED_ABSOLUTE is (await exchange_refused(opened, code)).refusal
        opened.clock.pass_seconds(-50)
        assert Refusal.EXPIRED_ABSOLUTE is (await exchange_refused(opened, code)).refusal
    check_ledger(opened.path)


async def test_a_wrong_secret_under_a_right_tag_is_an_alarm(tmp_path: Path) -> None:
    """Made by someone who has the ring and not the database: refused like any other, and counted."""
    from ledger import codes

    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        presented = codes.parse(opened.ledger.desk.ring, code.code)
        assert presented is not None
        forged = codes.derive(opened.ledger.desk.ring, 1, presented.grant_id, bytes(32))
        strange = codes.derive(opened.ledger.desk.ring, 1, "0" * 32, bytes(32))
        for text in (forged, strange):
            assert Refusal.UNKNOWN_TOKEN is (await exchange_refused(opened, text)).refusal
        assert (1, 1) == (opened.ledger.desk.alarms["wrong_secret"], opened.ledger.desk.alarms["unknown_grant"])
        issued = await opened.issue(client_id="app")
        of_no_code = codes.derive(opened.ledger.desk.ring, 1, issued.grant_id, bytes(32))
        assert Refusal.UNKNOWN_TOKEN is (await exchange_refused(opened, of_no_code)).refusal
        assert 300 == (await exchanged(opened, code)).expires_in


@pytest.mark.parametrize("error", [StoreFull])
async def test_a_store_that_cannot_answer_consumes_no_code(tmp_path: Path, error: type[StoreError]) -> None:
    """I-10, I-12: 503, nothing recorded, and the same request is served once the store is well."""
    async with open_ledger(tmp_path, clients=(app(),), store=FaultyStore) as opened:
        code = await sign_in(opened)
        events = len(opened.events())
        faulty(opened).on_commit.append(instead(error("no")))
        with pytest.raises(Unavailable):
            await exchanged(opened, code)
        assert events == len(opened.events())
        assert 300 == (await exchanged(opened, code)).expires_in
    check_ledger(opened.path)


async def test_an_assertion_is_spent_with_the_exchange(tmp_path: Path) -> None:
    """RFC 7523 3: one use, in the transaction of what it admits; refused, the code is as it was."""
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        once = SingleUse(kind="assertion", owner="app", identifier="jti-1", expires_at=opened.clock.now + 60 * SECOND)
        who = Caller(client_id="app", authenticated=True, auth_method="private_key_jwt", single_use=(once,))
        wrong = await exchange_refused(opened, code, who=who, verifier="a" * 43)
        assert Refusal.UNKNOWN_TOKEN is wrong.refusal
        assert Refusal.ALREADY_USED is (await exchange_refused(opened, code, who=who)).refusal
        fresh = msgspec.structs.replace(once, identifier="jti-2")
        await exchanged(opened, code, who=msgspec.structs.replace(who, single_use=(fresh,)))
    check_ledger(opened.path)
