"""Grants made by the thousand are grants like any others: every event, row and link of them holds."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ledger import tokens
from tests.bulk import issue_many, persons, rotate_many
from tests.ledger_check import check_ledger
from tests.stocked import SCOPE, stocked


async def test_many_grants_in_few_batches_are_what_as_many_requests_would_have_made(tmp_path: Path) -> None:
    """Each grant has its person, its event and its current token, which refreshes (RFC 6749 6); the batches are few."""
    async with stocked(tmp_path) as at:
        batches = at.ledger.commits.batches
        made = [each async for each in issue_many(at.ledger, persons(2345, client_id="www", scope=SCOPE))]
        assert [1000, 1000, 345] == [len(each) for each in made]
        assert 3 == at.ledger.commits.batches - batches
        await at.refresh(made[2][344])
    checked = check_ledger(tmp_path / "ledger.db")
    assert (2345, 1) == (checked.topics["grant.issued"], checked.topics["grant.token_rotated"])
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        assert [(2345, 2345)] == database.execute(
            "SELECT count(*), count(DISTINCT subject_id) FROM private_grants"
        ).fetchall()


async def test_a_long_history_in_few_batches_is_a_chain_of_single_rotations(tmp_path: Path) -> None:
    """Two events for each rotation, each command with an id of its own (I-11); the last token is the current one."""
    async with stocked(tmp_path) as at:
        first = (await at.issue()).refresh_token or ""
        last = await rotate_many(at.ledger, first, 1234, client_id="www")
        presented = tokens.parse(at.ledger.desk.ring, last)
        assert presented is not None
        assert 1234 == presented.generation
        await at.refresh(last)
    checked = check_ledger(tmp_path / "ledger.db")
    assert (1235, 1235) == (checked.topics["grant.token_redeemed"], checked.topics["grant.token_rotated"])
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        ids = "SELECT count(DISTINCT body ->> 'command_id') FROM events WHERE body ->> 'topic' LIKE 'grant.token_r%'"
        assert [(1235,)] == database.execute(ids).fetchall()


@pytest.mark.parametrize("count", [0, 1])
async def test_none_and_one_are_made_too(tmp_path: Path, count: int) -> None:
    """Where nothing is asked for nothing is made, and a token that is not rotated stays."""
    async with stocked(tmp_path) as at:
        asked = persons(count, client_id="www", scope=SCOPE)
        made = [token async for some in issue_many(at.ledger, asked) for token in some]
        assert count == len(made)
        assert made == [await rotate_many(at.ledger, token, 0, client_id="www") for token in made]
