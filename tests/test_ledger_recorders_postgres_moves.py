"""Batches of plain refreshes on PostgreSQL: which they are, and that their own ways write what the general one does."""

import asyncio
import shutil
from pathlib import Path
from typing import cast

import pytest

from ledger.recorders import postgres_moves, postgres_refresh
from ledger.recorders.postgres_calls import Call
from ledger.recorders.premises import CheckedWork
from ledger.refusals import Unavailable
from projections import INLINE
from tests.ledgers import ELSEWHERE, SECURITY, Opened, check_ledger, open_ledger, two_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

STREAMS = "SELECT name, v, head, state, generation, last_redeemed_at, idle_expires_at FROM streams ORDER BY name"
EVENTS = (
    "SELECT s.name, e.v, e.body, p.v AS back FROM events e JOIN streams s ON s.id = e.stream"
    " LEFT JOIN events p ON p.position = e.back ORDER BY e.position"
)


def moved(unit: str, *, stream: str = "a" * 32) -> CheckedWork:
    """A batch that moves one stream, for a request called by its number."""
    work = CheckedWork(INLINE)
    add(work, unit, stream)
    return work


def add(work: CheckedWork, unit: str, stream: str) -> None:
    name = f"grant:{stream}"
    work.add_head(stream, name, 3, 7, b"h" * 32, b"s", (1, 2, 3), 1)
    work.names[stream], work.unit_of[name] = name, int(unit)
    work.units = max(work.units, int(unit) + 1)


def test_what_is_a_batch_of_moves() -> None:
    """Each stream for a request of its own, none made, none only read, no row beside them."""
    two = moved("0")
    add(two, "1", "b" * 32)
    assert [0, 1] == cast(postgres_moves.Moves, postgres_moves.moves(two)).units

    both = moved("0")
    add(both, "0", "b" * 32)
    read, private, authority, projected, made = (moved("0") for _ in range(5))
    read.read.append(("c" * 32, 4, 1))
    private.private.append(("", ()))
    authority.control = 5
    projected.projected["reuse/0"] = {}
    made.add_head("d" * 32, "grant:d", 1, 1, b"h", b"s", (1, 2, 3), 0)
    assert [None] * 6 == [postgres_moves.moves(work) for work in (both, read, private, authority, projected, made)]
    assert postgres_moves.moves(CheckedWork(INLINE)) is None


async def a_life(opened: Opened) -> None:
    """Many at once, one at a time, from another place, told again, and one come back that was retired."""
    answers = [await opened.issue(f"person-{n}") for n in range(5)]
    first = answers[0]
    for _ in range(4):
        opened.clock.pass_seconds(40)
        answers = [*await asyncio.gather(*map(opened.refresh, answers))]
    last = await opened.chain(answers[0], 70)
    again = await opened.refresh(answers[1], source=ELSEWHERE)
    assert again.refresh_token != (await opened.refresh(again)).refresh_token
    await opened.refused(first)
    await opened.refused(last)
    await opened.ledger.operators.revoke_subject(SECURITY, "person-2", None, None)
    await asyncio.gather(*map(opened.refresh, answers[3:]), opened.refused(answers[2]))


async def test_all_ways_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers alike live alike, with shorter ways and without: the same heads, and the same events in their order."""
    calls: list[Call | None] = []
    moves, refresh = postgres_moves.moves, postgres_refresh.refresh

    def counted(work: CheckedWork) -> Call | None:
        calls.append(moves(work))
        return calls[-1]

    def never(work: CheckedWork) -> None:
        return None

    found: list[tuple[object, object]] = []
    for way, plain, alone in (("alone", counted, refresh), ("plain", counted, never), ("general", never, never)):
        monkeypatch.setattr(postgres_moves, "moves", plain)
        monkeypatch.setattr(postgres_refresh, "refresh", alone)
        folder = tmp_path / way / "ledger"  # one name, one seed
        folder.mkdir(parents=True)
        if found:
            shutil.copy(tmp_path / "alone" / "ledger" / "ledger.keys", folder)
        async with open_ledger(folder) as opened:
            await a_life(opened)
            found.append((opened.rows(STREAMS), opened.rows(EVENTS)))
    assert found[0] == found[1] == found[2]
    kinds = [type(call) for call in calls]
    assert kinds.count(postgres_refresh.Refresh) > 70
    assert kinds.count(postgres_moves.Moves) > 70
    assert any(isinstance(call, postgres_moves.Moves) and len(call.units) > 2 for call in calls)


async def moved_by_another(folder: Path) -> None:
    """One batch moves five grants, of which another node has just moved the third: it is decided again."""
    async with two_nodes(folder) as (one, other):
        answers = [await other.refresh(await other.issue(f"person-{n}")) for n in range(5)]
        third = await one.refresh(answers[2])
        found = await asyncio.gather(*map(other.refresh, answers))
        assert found[2].refresh_token == third.refresh_token
        await asyncio.gather(*map(other.refresh, found))
        check_ledger(other.path)


async def test_who_is_lost_leaves_their_rows_to_the_others(tmp_path: Path) -> None:
    """Each head that is written is that of its own stream, whichever of the batch had moved."""
    await moved_by_another(tmp_path)


async def test_rows_that_are_taken_for_each_others_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above: places stay in the order of those that were held."""
    right = "SELECT array_agg(held.place ORDER BY nth) INTO _places"
    assert 1 == postgres_moves._FUNCTION.count(right)
    other = postgres_moves._FUNCTION.replace(right, "PERFORM array_agg(held.place ORDER BY nth)")
    monkeypatch.setattr(postgres_moves, "_FUNCTION", other)
    with pytest.raises(Unavailable):
        await moved_by_another(tmp_path)
