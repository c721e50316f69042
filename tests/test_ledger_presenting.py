"""Presented tokens against a whole ledger: what is acknowledged stays so, whatever the clock and operators do later."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ledger import presenting
from ledger.answers import TokenAnswer
from ledger.refusals import Refusal
from tests.ledgers import HOME, OPERATORS, Opened, caller, client, open_ledger


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with open_ledger(tmp_path) as ledger:
        yield ledger


async def revoke_access(opened: Opened, answer: TokenAnswer) -> None:
    await opened.ledger.revoke_token(caller(), HOME, answer.access_token)


async def is_active(opened: Opened, answer: TokenAnswer) -> bool:
    return await opened.ledger.introspect(caller(), answer.access_token) is not None


async def test_an_access_token_given_back_during_a_suspension_is_dead_after_it(opened: Opened) -> None:
    """RFC 7009 2: the revocation was answered with 200, so a reinstatement gives the token no new life."""
    answer = await opened.issue()
    await opened.act("suspend", answer.grant_id)
    await revoke_access(opened, answer)
    await opened.act("reinstate", answer.grant_id)
    assert not await is_active(opened, answer)
    assert ["issued", "suspended", "access_token_revoked", "reinstated"] == opened.topics(answer)


async def test_an_access_token_given_back_while_the_clock_is_behind_is_dead_when_it_is_right(opened: Opened) -> None:
    """I-16: a token issued too far ahead of the wall clock is inactive for now, and not forgotten."""
    answer = await opened.issue()
    opened.clock.pass_seconds(-60)
    assert not await is_active(opened, answer)
    await revoke_access(opened, answer)
    opened.clock.pass_seconds(61)
    assert not await is_active(opened, answer)


@pytest.mark.parametrize("seconds", [1, 10, 11, 3600])
async def test_what_a_retry_is_given_lives_no_longer_than_it_says_when_the_clock_went_back(
    opened: Opened, seconds: int
) -> None:
    """RFC 6749 5.1: `expires_in` is never more than the lifetime that was set, and the token is good now (I-16)."""
    issued = await opened.issue()
    first = await opened.refresh(issued)
    opened.clock.pass_seconds(-seconds)
    again = await opened.refresh(issued)
    assert (first.refresh_token, 300) == (again.refresh_token, again.expires_in)
    assert await is_active(opened, again)


async def test_what_an_issuer_is_told_again_lives_no_longer_than_it_says_when_the_clock_went_back(
    opened: Opened,
) -> None:
    """The same answer again, and in it a lifetime that is never more than was set."""
    first = await opened.issue(key="k")
    opened.clock.pass_seconds(-5)
    again = await opened.issue(key="k")
    assert (first.access_token, 300) == (again.access_token, again.expires_in)


async def test_an_access_token_that_has_expired_is_given_back_without_a_trace(opened: Opened) -> None:
    """RFC 7009 2.2: nothing is left to take away, so nothing is recorded."""
    answer = await opened.issue()
    opened.clock.pass_seconds(300)
    await revoke_access(opened, answer)
    assert ["issued"] == opened.topics(answer)


async def test_a_refused_request_costs_no_grant_its_tokens_while_the_clock_is_ahead(opened: Opened) -> None:
    """Nothing was recorded, for a client that must show its certificate came without: so its grant, which only the
    clock said was over, serves when the clock is right again (I-07, I-16)."""
    answer = await opened.issue()
    settings = replace(client().settings, tls_client_certificate_bound_access_tokens=True)
    await opened.apply(replace(client(), settings=settings), operators=OPERATORS)
    opened.clock.pass_seconds(31 * 86_400)
    assert Refusal.INVALID_REQUEST is (await opened.refused(answer)).refusal
    opened.clock.pass_seconds(-31 * 86_400)
    await opened.apply(client(), operators=OPERATORS)
    await opened.refresh(answer)
    assert ["issued", "token_redeemed", "token_rotated"] == opened.topics(answer)


async def test_what_is_remembered_of_tokens_is_bounded_and_its_end_changes_nothing(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is not remembered any more is taken apart, and worth the same; the next of its grant replaces it."""
    monkeypatch.setattr(presenting, "HANDED_OUT_MAX", 3)
    desk = opened.ledger.desk
    known = desk.handed_out
    answers = [await opened.issue(subject) for subject in ("alice", "bob", "carol", "dave", "eve")]
    for _ in range(4):
        answers = [await opened.refresh(answer) for answer in answers]
        assert 0 < len(known) <= 3
    last = answers[-1].refresh_token or ""
    assert desk.made(last) is not None
    assert desk.made(last[:-1] + ("B" if last.endswith("A") else "A")) is None
    again = await opened.refresh(answers[-1])
    assert desk.made(last) is None
    assert desk.made(again.refresh_token or "") is not None
    assert again == await opened.refresh(answers[-1])
    assert "rt1_" not in repr(list(known.values()))
