"""One refresh by itself on PostgreSQL: which batch that is, and who else of it is told what became of it."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from ledger.recorders import postgres_refresh
from ledger.recorders.premises import CheckedWork
from ledger.waiting import nothing
from projections import INLINE
from tests.ledgers import open_ledger, two_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]


def moved(events: int, *streams: str, unit: int = 0) -> CheckedWork:
    """A batch that moves streams, with so many events."""
    work = CheckedWork(INLINE)
    for stream in streams:
        work.add_head(stream, f"grant:{stream}", 3, 7, b"h" * 32, b"s\0\0", (1, 2, None), 1)
        work.names[stream], work.unit_of[f"grant:{stream}"] = f"grant:{stream}", unit
    work.events = [(n, streams[0], 2 + n, 6 + n, f"body {n}") for n in range(events)]
    return work


def test_what_is_one_refresh_by_itself() -> None:
    """One stream, two events; what follows from the version before is not sent, nor the room behind a snapshot."""
    call = cast(postgres_refresh.Refresh, postgres_refresh.refresh(moved(2, "a" * 32, unit=4)))
    assert 4 == call.unit
    eight, four = (6).to_bytes(8), (1).to_bytes(4)
    expected = [
        *(bytes(8), bytes(8), b"\xaa" * 16, four, eight, b"h" * 32, b"s", four, (2).to_bytes(8), None),
        *(b"body 0", b"body 1"),
    ]
    assert expected == call._parameters
    assert [None] * 4 == [
        postgres_refresh.refresh(work)
        for work in (moved(1, "a" * 32), moved(4, "a" * 32), moved(2, "a" * 32, "b" * 32), CheckedWork(INLINE))
    ]


async def test_who_has_used_nothing_is_not_lost_with_it(tmp_path: Path) -> None:
    """Who comes first in a batch uses no stream; the refresh behind, whose grant has moved elsewhere, is the one that
    is decided again."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await other.refresh(await other.issue())
        elsewhere = await one.refresh(answer)
        commits = other.ledger.commits
        await asyncio.gather(
            *(commits.submit(nothing, ours=True) for _ in range(2))
        )  # more than one: it waits for more
        batches = commits.batches
        _, again = await asyncio.gather(commits.submit(nothing, ours=True), other.refresh(answer))
        assert (elsewhere.refresh_token, elsewhere.position) == (again.refresh_token, again.position), "a retry"
        assert batches + 2 == commits.batches


async def test_one_refresh_by_itself_goes_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each in one call."""
    read = postgres_refresh.Refresh._read
    told: list[object] = []

    def counted(self: postgres_refresh.Refresh, row: object) -> object:
        told.append(read(self, row))  # type: ignore[arg-type]  # whatever libpq gives
        return told[-1]

    async with open_ledger(tmp_path) as opened:
        answer = await opened.refresh(await opened.issue())
        monkeypatch.setattr(postgres_refresh.Refresh, "_read", counted)
        await opened.chain(answer, 5)
    assert 5 == len(told)
