"""Grants of the code flow in views: from the sign-in on, whatever happens before the exchange, judged at any moment."""

from pathlib import Path
from random import Random
from typing import Literal

import pytest

from ledger import times
from ledger.answers import AuthorizationAnswer, GrantAct
from ledger.grant import Grant
from ledger.recorders.rows import Reads
from ledger.refusals import Refused
from projections.as_of import Outside, aggregate, stored_events
from projections.current_tokens import Row, folded, one, page
from projections.grant_history import row_then
from projections.grant_views import judge, live_count
from tests.ledgers import SECURITY, Opened, check_ledger, open_ledger
from tests.sign_ins import app, exchanged, sign_in

pytestmark = pytest.mark.anyio

ACTS: tuple[GrantAct | Literal["subject", "client"], ...] = ("suspend", "reinstate", "revoke", "subject", "client")
MOMENTS = (0, 1, 30, 59, 60, 61, 3600, 31 * 86_400, 400 * 86_400)


async def lived(opened: Opened, chance: Random, count: int) -> list[str]:
    """Sign-ins of three persons: left alone, acted on, exchanged in time, late or twice, refreshed; their ids."""
    for _ in range(count):
        person = chance.choice(("ann", "bob", "eve"))
        code = await sign_in(opened, person)
        rows = opened.rows("SELECT grant_id FROM current_tokens_v1 ORDER BY position DESC LIMIT 1")
        grant_id = str(rows[0][0])
        for _ in range(chance.randrange(3)):
            opened.clock.pass_seconds(chance.choice((0, 1, 10)))
            await act(opened, chance, grant_id, person)
        for _ in range(chance.choice((0, 1, 1, 1, 2))):
            opened.clock.pass_seconds(chance.choice((0, 5, 20, 60)))
            await bought(opened, code, refresh=chance.random() < 0.5)
        if chance.random() < 0.3:
            await act(opened, chance, grant_id, person)
    await exchanged(opened, await sign_in(opened, "joe"))  # whatever came before, this one lives
    return [str(row[0]) for row in opened.rows("SELECT grant_id FROM current_tokens_v1 ORDER BY position")]


async def act(opened: Opened, chance: Random, grant_id: str, person: str) -> None:
    what = chance.choice(ACTS)
    before = chance.choice((None, opened.clock.now - 15 * times.SECOND))
    try:
        if what == "subject":
            await opened.ledger.operators.revoke_subject(SECURITY, person, None, before)
        elif what == "client":
            await opened.ledger.operators.revoke_client(SECURITY, "app", None, opened.clock.now - 30 * times.SECOND)
        else:
            await opened.act(what, grant_id, trust="current" if what == "reinstate" else None)
    except Refused:
        pass


async def bought(opened: Opened, code: AuthorizationAnswer, *, refresh: bool) -> None:
    try:
        answer = await exchanged(opened, code)
        if refresh:
            await opened.refresh(answer, client_id="app")
    except Refused:
        pass


@pytest.mark.parametrize("seed", range(4))
async def test_row_and_aggregate_agree_about_a_sign_in(tmp_path: Path, seed: int) -> None:
    """I-13, I-16: at any moment the same status, end and event; a row folded anew is the row that was written."""
    async with open_ledger(tmp_path, clients=(app(),), seed=seed) as opened:
        ids = await lived(opened, Random(seed), 60)
        assert 61 == len(ids)
        statuses, generations = set(), set()
        with opened.store.reader() as reads:
            for grant_id in ids:
                row = one(reads, grant_id)
                assert row is not None
                assert row == folded(stored_events(reads, f"grant:{grant_id}"))
                grant = aggregate(reads, f"grant:{grant_id}", Grant)
                assert (row.generation, row.issued_at_us) == (grant.generation, grant.issued_at)
                assert (row.scope, row.granted_scope) == (" ".join(grant.carried), " ".join(grant.granted))
                for seconds in MOMENTS:
                    moment = opened.clock.now + seconds * times.SECOND
                    passed = Outside(reads, moment).ended_by(row)
                    end = None if passed is None else passed.end
                    assert end == opened.ledger.authority.rules(grant).epoch_end
                    assert grant.judge(moment, end) == judge(reads, row, moment, end)
                    statuses.add(judge(reads, row, moment, end).status)
                generations.add(row.generation)
            living = [row for row in page(reads, limit=1000) if _lives(reads, row, opened.clock.now)]
            assert len(living) == live_count(reads, "app", opened.clock.now)
        assert {"active", "revoked", "expired"} <= statuses
        assert {None, 0, 1} <= generations
    check_ledger(opened.path)


def _lives(reads: Reads, row: Row, now: int) -> bool:
    passed = Outside(reads, now).ended_by(row)
    return judge(reads, row, now, None if passed is None else passed.end).status == "active"


@pytest.mark.parametrize("seed", range(2))
async def test_a_sign_in_is_told_as_it_was(tmp_path: Path, seed: int) -> None:
    """The row as of each event of a grant is what those events alone come to; before the first there is none."""
    async with open_ledger(tmp_path, clients=(app(),), seed=seed) as opened:
        ids = await lived(opened, Random(100 + seed), 30)
        with opened.store.reader() as reads:
            for grant_id in ids:
                row = one(reads, grant_id)
                assert row is not None
                stored = list(stored_events(reads, f"grant:{grant_id}"))
                events = opened.events(f"grant:{grant_id}")
                for number, event in enumerate(events, 1):
                    at = times.micros(event.at)
                    last = max(n for n, other in enumerate(events, 1) if other.at <= event.at)
                    assert number <= last
                    assert folded(stored[:last]) == row_then(reads, row, at)
                assert row_then(reads, row, times.micros(events[0].at) - 1) is None
