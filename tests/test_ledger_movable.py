"""Which events may leave the store: of grants that are over, and the old part of what is long."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ledger import movable
from ledger.answers import TokenAnswer
from ledger.grant import Grant
from ledger.movable import PART_EVENTS_MIN, Judging
from tests.engines import alter
from tests.ledgers import LOCAL_OPERATOR, Opened, client, open_ledger, with_policy
from tests.sign_ins import app, sign_in

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

DAY = 86_400
Act = Callable[[Opened, TokenAnswer], Coroutine[Any, Any, object]]


def movable_to(opened: Opened, name: str, before: int) -> int:
    """How far a stream may move."""
    with opened.store.reader() as reads:
        judging, after = Judging(reads, before), None
        while page := movable.streams(reads, after):
            for stream in page:
                if stream.name == name:
                    return judging.to_v(stream)
            after = page[-1].id
    return 0


async def _revoked(opened: Opened, answer: TokenAnswer) -> None:
    await opened.act("revoke", answer.grant_id)


async def _suspended(opened: Opened, answer: TokenAnswer) -> None:
    await opened.act("suspend", answer.grant_id)


async def _person_ended(opened: Opened, answer: TokenAnswer) -> None:
    await opened.ledger.operators.revoke_subject(LOCAL_OPERATOR, "alice", None, None)


async def _client_ended(opened: Opened, answer: TokenAnswer) -> None:
    await opened.ledger.operators.revoke_client(LOCAL_OPERATOR, "www", None, None)


async def _client_ended_before(opened: Opened, answer: TokenAnswer) -> None:
    await opened.ledger.operators.revoke_client(LOCAL_OPERATOR, "www", None, opened.clock.now - 3600 * 10**6)


async def _nothing(opened: Opened, answer: TokenAnswer) -> None:
    pass


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (_revoked, (1 + 2 + 1, "revoked", "termination")),
        (_suspended, (0, "suspended", "termination")),
        (_person_ended, (1 + 2, "revoked", None)),
        (_client_ended, (1 + 2, "revoked", None)),
        (_client_ended_before, (0, "active", None)),
        (_nothing, (0, "active", None)),
    ],
)
async def test_a_grant_moves_whole_once_it_is_over(
    tmp_path: Path, act: Act, expected: tuple[int, str, str | None]
) -> None:
    """By an event of its own or by an epoch; suspended is not over, and an epoch ends only what it hits."""
    async with open_ledger(tmp_path) as opened:
        opened.clock.pass_seconds(7200)
        answer = await opened.issue()
        await opened.chain(answer, 1)
        await act(opened, answer)
        await opened.issue("bob")
        opened.clock.pass_seconds(1)
        to_v, state, reason = expected
        assert to_v == movable_to(opened, f"grant:{answer.grant_id}", opened.clock.now)
        loaded = opened.ledger.memory.streams[f"grant:{answer.grant_id}"]
        with opened.store.reader() as reads:
            assert isinstance(loaded.aggregate, Grant)
            assert (state, reason, to_v > 0) == Judging(reads, opened.clock.now).standing(loaded.aggregate)


async def test_a_grant_that_no_event_says_is_expired_moves_once_its_time_was_long_over(tmp_path: Path) -> None:
    """Frozen moments count (I-16): before the one that is asked about, never by today's clock."""
    policy = with_policy("standard", refresh_token_ttl_seconds=10 * DAY)
    async with open_ledger(tmp_path, clients=[client(policy=policy), app()]) as opened:
        answer, _ = await opened.issue(), await sign_in(opened, "bob")
        code = opened.rows("SELECT name FROM streams WHERE name LIKE 'grant:%' ORDER BY position DESC")[0][0]
        await opened.issue("carol")
        issued = opened.clock.now
        opened.clock.pass_seconds(100 * DAY)
        for days, expected in ((0, 0), (9.9, 0), (10, 1), (50, 1)):
            assert expected == movable_to(opened, f"grant:{answer.grant_id}", issued + int(days * DAY * 10**6))
        assert 1 == movable_to(opened, str(code), issued + 3600 * 10**6)


async def test_the_old_part_of_a_long_history_moves_and_no_more(tmp_path: Path) -> None:
    """To the version that happened last before the moment; less than a piece is worth stays."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        name = f"grant:{answer.grant_id}"
        begun = opened.clock.now
        await opened.chain(answer, PART_EVENTS_MIN, every_seconds=10)
        await opened.issue("bob")
        for refreshes in (0, 10, PART_EVENTS_MIN // 2 - 1):
            assert 0 == movable_to(opened, name, begun + refreshes * 10**7 + 1)
        for refreshes in (PART_EVENTS_MIN // 2, PART_EVENTS_MIN // 2 + 1, PART_EVENTS_MIN):
            assert 1 + 2 * refreshes == movable_to(opened, name, begun + refreshes * 10**7 + 1)


async def test_what_is_said_of_nobody_stays_when_it_cannot_be_read(tmp_path: Path, each_store: str) -> None:
    """A snapshot that is none ends nobody, and a stream whose snapshot is none does not move."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.act("revoke", answer.grant_id)
        await opened.issue("bob")
        opened.clock.pass_seconds(1)
        name = f"grant:{answer.grant_id}"
        assert 2 == movable_to(opened, name, opened.clock.now)
        zero = "x'00'" if each_store == "sqlite" else r"'\x00'"
        assert 1 == alter(opened.path, f"UPDATE streams SET state = {zero} WHERE name = '{name}'")
        assert 0 == movable_to(opened, name, opened.clock.now)
