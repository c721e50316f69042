"""Batches of plain refreshes on PostgreSQL: which they are, and that their own ways write what the general one does."""

import asyncio
import shutil
from pathlib import Path
from typing import cast

import pytest

from ledger.recorders import postgres_moves, postgres_refresh
from ledger.recorders.postgres_calls import Call
from ledger.recorders.premises import CheckedWork
from ledger.recorders.private_rows import FORGET_NONCE, KEEP_CONTEXT
from ledger.refusals import Refused, Unavailable
from projections import INLINE
from tests.engines import alter
from tests.ledgers import ELSEWHERE, SECURITY, Opened, check_ledger, open_ledger, two_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

STREAMS = "SELECT name, v, head, state, generation, last_redeemed_at, idle_expires_at FROM streams ORDER BY name"
CONTEXTS = (
    "SELECT s.name, c.commitment, c.address, c.user_agent FROM private_contexts c JOIN streams s ON s.id = c.stream"
    " ORDER BY s.name, c.commitment"
)
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
    """Each stream for a request of its own, none made, none only read, no row beside them but of their contexts."""
    two = moved("0")
    add(two, "1", "b" * 32)
    assert [0, 1] == cast(postgres_moves.Moves, postgres_moves.moves(two)).units
    two.private.append((KEEP_CONTEXT, ("b" * 32, "c", "192.0.2.1", "app/1")))
    assert [0, 1] == cast(postgres_moves.Moves, postgres_moves.moves(two)).units
    two.private.append((KEEP_CONTEXT, ("c" * 32, "c", "192.0.2.1", "app/1")))
    assert postgres_moves.moves(two) is None

    both = moved("0")
    add(both, "0", "b" * 32)
    read, private, authority, projected, made = (moved("0") for _ in range(5))
    read.read.append(("c" * 32, 4, 1))
    private.private += [(KEEP_CONTEXT, ("a" * 32, "c", "192.0.2.1", "app/1")), (FORGET_NONCE, ("a" * 32,))]
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
    elsewhere = [opened.refresh(answer, source=ELSEWHERE) for answer in answers[2:]]
    answers[2:] = await asyncio.gather(*elsewhere)
    await opened.refused(first)
    await opened.refused(last)
    await opened.ledger.operators.revoke_subject(SECURITY, "person-2", None, None)
    await asyncio.gather(*map(opened.refresh, answers[3:]), opened.refused(answers[2]))


async def test_all_ways_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers alike live alike, with shorter ways and without: the same heads, the same events in their order, and the
    same contexts."""
    calls: list[Call | None] = []
    moves, refresh = postgres_moves.moves, postgres_refresh.refresh

    def counted(work: CheckedWork) -> Call | None:
        calls.append(moves(work))
        return calls[-1]

    def never(work: CheckedWork) -> None:
        return None

    found: list[tuple[list[tuple[object, ...]], ...]] = []
    for way, plain, alone in (("alone", counted, refresh), ("plain", counted, never), ("general", never, never)):
        monkeypatch.setattr(postgres_moves, "moves", plain)
        monkeypatch.setattr(postgres_refresh, "refresh", alone)
        folder = tmp_path / way / "ledger"  # one name, one seed
        folder.mkdir(parents=True)
        if found:
            shutil.copy(tmp_path / "alone" / "ledger" / "ledger.keys", folder)
        async with open_ledger(folder) as opened:
            await a_life(opened)
            found.append((opened.rows(STREAMS), opened.rows(EVENTS), opened.rows(CONTEXTS)))
    assert found[0] == found[1] == found[2]
    assert len(found[0][2]) > 8
    kinds = [type(call) for call in calls]
    assert kinds.count(postgres_refresh.Refresh) > 70
    assert kinds.count(postgres_moves.Moves) > 70
    assert any(isinstance(call, postgres_moves.Moves) and len(call.units) > 2 for call in calls)
    # The issues, one that is refused, and an end: whoever comes from another place is written like all others.
    assert calls.count(None) < 25


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
    leave_out(
        monkeypatch,
        "SELECT array_agg(held.place ORDER BY nth) INTO _places",
        "PERFORM array_agg(held.place ORDER BY nth)",
    )
    with pytest.raises(Unavailable):
        await moved_by_another(tmp_path)


IN_FULL = "WHERE (lost IS NULL OR stream = ANY (_held))\n          AND EXISTS"
OF_THE_ERASED = "AND EXISTS (SELECT FROM private_grants AS g WHERE g.stream = m.stream)"


def leave_out(monkeypatch: pytest.MonkeyPatch, right: str, other: str) -> None:
    """Let stores be made whose function says something else."""
    assert 1 == postgres_moves._FUNCTION.count(right)
    monkeypatch.setattr(postgres_moves, "_FUNCTION", postgres_moves._FUNCTION.replace(right, other))


async def from_elsewhere(folder: Path) -> None:
    """One batch from another place, of which another node has just suspended the third grant."""
    async with two_nodes(folder) as (one, other):
        answers = [await other.refresh(await other.issue(f"person-{n}")) for n in range(5)]
        await one.act("suspend", answers[2].grant_id)
        acts = [other.refresh(answer, source=ELSEWHERE) for answer in answers]
        found = await asyncio.gather(*acts, return_exceptions=True)
        assert [2] == [number for number, each in enumerate(found) if isinstance(each, Refused)]
        assert [(4,)] == other.rows(f"SELECT count(*) FROM ({CONTEXTS}) AS c WHERE address = ?", ELSEWHERE.address)
        check_ledger(other.path)


async def test_who_is_lost_leaves_no_place_behind(tmp_path: Path) -> None:
    """A context is kept with an event that names it, or not at all."""
    await from_elsewhere(tmp_path)


async def test_a_place_that_no_event_names_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above: contexts of the lost are kept, too."""
    leave_out(monkeypatch, IN_FULL, "WHERE EXISTS")
    with pytest.raises(AssertionError):
        await from_elsewhere(tmp_path)


async def without_private_row(folder: Path) -> int:
    """How many places are kept of two grants that come from another place at once, when the private row of one is gone
    and nobody has noticed yet."""
    async with open_ledger(folder) as opened:
        answers = [await opened.refresh(await opened.issue(f"person-{n}")) for n in range(2)]
        alter(opened.path, f"DELETE FROM private_grants WHERE stream = '{answers[0].grant_id}'")
        await asyncio.gather(*(opened.refresh(answer, source=ELSEWHERE) for answer in answers))
        return len(opened.rows(f"SELECT 1 FROM ({CONTEXTS}) AS c WHERE address = ?", ELSEWHERE.address))


async def test_no_place_is_kept_of_who_was_erased(tmp_path: Path) -> None:
    """I-20: what is erased on one node does not come back through another's memory."""
    assert 1 == await without_private_row(tmp_path)


async def test_a_place_of_who_was_erased_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above: nobody looks whether the grant's own row is there."""
    leave_out(monkeypatch, OF_THE_ERASED, "")
    assert 2 == await without_private_row(tmp_path)
