"""Two nodes on one PostgreSQL: of what there may be one there is one: a use of a proof, a grant of a key, a person."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from ledger.answers import TokenAnswer
from ledger.refusals import Refusal, Refused
from ledger.single_use import SingleUse
from tests.engines import url_of
from tests.ledgers import HOME, START, Clock, Opened, caller, open_ledger, two_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]


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
        for n in range(200):  # until both were on their way at the same time: soon, but not on a busy machine
            if 2 == len(await _issued_at_once(one, other, f"key-{n}")):
                return
        pytest.fail("two hundred times one grant was issued, though nothing held the key to be unique")
