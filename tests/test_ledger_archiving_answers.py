"""A ledger that was archived answers as one that never was (I-23), whatever happened and wherever a run is cut."""

import copy
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger import times
from ledger.owner import OwnerLock
from ledger.recorders.archived import Archived
from ledger.recorders.errors import EventsMissing
from ledger.recorders.rows import Piece, StoredEvent
from ledger.segments import folder_of
from projections import current_tokens
from tests.archived_twins import archived_twin, asked, cut_at_every_step, lived, log_of, rebuilt, taken_over
from tests.archives import archive, differing, past, reopened, twin
from tests.engines import alter, only_on_sqlite, url_of
from tests.ledger_check import check_ledger, copied
from tests.ledgers import Clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

SEEDS = (1, 8, 21)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("made_small")
async def test_an_archived_ledger_answers_as_its_twin_does(
    tmp_path: Path, seed: int, count: Callable[[int, int], int]
) -> None:
    """I-23: views, lists, histories at any moment, incidents, explanations, introspection; then every token presented
    again, with the events that this records."""
    for one in range(seed, seed + count(1, 60)):
        given, clock = await lived(tmp_path / f"lived-{one}", one)
        folder = tmp_path / f"lived-{one}"
        before = check_ledger(folder / "ledger.db")
        other, report = await archived_twin(folder, clock)
        assert report.events > 30
        assert before == check_ledger(other / "ledger.db")
        assert before.events == rebuilt(other).events
        assert {} == differing(await asked(folder, given, clock), await asked(other, given, clock))
        check_ledger(other / "ledger.db")


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
async def test_the_space_that_was_freed_can_be_given_back(tmp_path: Path) -> None:
    """As the guide says, with nobody at work: the file is smaller, and the ledger is as it was."""
    given, clock = await lived(tmp_path / "lived", 8)
    folder, _ = await archived_twin(tmp_path / "lived", clock)
    database = folder / "ledger.db"
    before, size = check_ledger(database), database.stat().st_size
    with OwnerLock.take(database), closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM")
    assert database.stat().st_size < size
    assert before == check_ledger(database)
    assert before.events == rebuilt(folder).events
    assert {} == differing(await asked(tmp_path / "lived", given, clock), await asked(folder, given, clock))
    check_ledger(database)


def _without_archive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Archived, "events", lambda *_: [])


def _with_what_is_said_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(current_tokens, "_SELECT", current_tokens._SELECT.replace("coalesce(e.body, a.said)", "e.body"))


def _with_one_version_too_few(patch: pytest.MonkeyPatch) -> None:
    def too_few(self: Archived, piece: Piece) -> list[StoredEvent]:
        return stored(self, piece)[:-1]

    stored = Archived._stored
    patch.setattr(Archived, "_stored", too_few)


def _with_another_position(patch: pytest.MonkeyPatch) -> None:
    def moved(self: Archived, piece: Piece) -> list[StoredEvent]:
        return [each._replace(position=each.position + 1) for each in stored(self, piece)]

    stored = Archived._stored
    patch.setattr(Archived, "_stored", moved)


def _without_incidents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Archived, "at_position", lambda *_: None)


TWINS = (
    _without_archive,
    _with_what_is_said_left_out,
    _with_one_version_too_few,
    _with_another_position,
    _without_incidents,
)


@only_on_sqlite  # what is broken is the same code on either store
@pytest.mark.parametrize("breaking", TWINS, ids=lambda twin: twin.__name__)
@pytest.mark.usefixtures("made_small")
async def test_a_ledger_that_reads_its_archive_wrongly_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaking: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The broken twins of the test above."""
    given, clock = await lived(tmp_path / "lived", 9)  # where an end in the archive has a reason
    other, _ = await archived_twin(tmp_path / "lived", clock)
    expected = await asked(tmp_path / "lived", given, clock)
    breaking(monkeypatch)
    try:
        found = await asked(other, given, clock)
    except Exception:
        return  # a reader that misses what it must find fails loudly too
    assert differing(expected, found)


def checked(folder: Path) -> Any:
    """What is in order, as far as two ledgers can have it in common."""
    found = msgspec.to_builtins(check_ledger(folder / "ledger.db"))
    return found if url_of(folder / "ledger.db") is None else {**found, "position": None}


@pytest.mark.usefixtures("made_small")
async def test_archiving_while_things_go_on_changes_nothing(
    tmp_path: Path, count: Callable[[int, int], int], each_store: str
) -> None:
    """I-23: a ledger that is archived again and again, to any moment, goes on like one that never is."""
    for seed in range(count(2, 40) if each_store == "sqlite" else count(1, 10)):
        one = tmp_path / f"{seed}" / "ledger"
        one.parent.mkdir()
        mine, clock = await lived(one, seed, 20)
        other = twin(one)
        given = {one: mine, other: copy.deepcopy(mine)}
        for phase in range(3):
            now = clock.now
            for folder in (one, other):
                async with reopened(folder, Clock(now), f"{seed} {phase}") as opened:
                    await past(opened, Random(f"{seed} {phase}"), 20, given[folder])
                    clock = opened.clock
            async with reopened(other, clock, f"{seed} {phase} archiver") as opened:
                days = Random(f"{seed} {phase} before").choice((0, 0, 3, 20))
                await archive(opened, clock.now + 1 - days * 86_400 * times.SECOND)
                opened.check_memory()
        assert given[one] == given[other]
        assert checked(one) == checked(other)
        assert {} == differing(await asked(one, given[one], clock), await asked(other, given[other], clock))
        check_ledger(other / "ledger.db")
        assert [] == rebuilt(other).differences


# ------------------------------------------------------------ cut anywhere


@pytest.mark.usefixtures("made_small")
async def test_a_run_that_is_killed_anywhere_loses_nothing_and_is_finished_by_the_next(
    tmp_path: Path, count: Callable[[int, int], int], each_store: str
) -> None:
    """I-09, I-23: after SIGKILL at each step every event is there, in one place or in both; the next run leaves what an
    undisturbed one leaves."""
    _, clock = await lived(tmp_path / "lived", 21, 35)
    expected, before = log_of(tmp_path / "lived"), check_ledger(tmp_path / "lived" / "ledger.db")
    stride = count(3 if each_store == "sqlite" else 5, 1)
    copies = cut_at_every_step(tmp_path / "lived", clock, tmp_path / "cut", stride)
    *killed, (undisturbed, was_killed) = copies
    assert not was_killed
    assert len(killed) > 20 // stride
    assert all(each for _, each in killed)
    left = shape(undisturbed)
    for cut, _ in killed:
        assert before == check_ledger(cut / "ledger.db"), cut
        assert expected == log_of(cut), cut
        taken_over(cut)
        async with reopened(cut, clock, "next") as opened:
            await archive(opened)
        assert left == shape(cut), cut
        assert before == check_ledger(cut / "ledger.db"), cut
        assert not left_over(cut), cut


def left_over(folder: Path) -> bool:
    """Whether anything lies there of a segment that never became whole."""
    if url_of(folder / "ledger.db") is None:
        return (folder_of(folder / "ledger.db") / "segment.new").exists()
    unnamed = "DELETE FROM segment_pages WHERE segment NOT IN (SELECT id FROM whole_segments)"
    return alter(folder / "ledger.db", unnamed) > 0


def shape(folder: Path) -> tuple[Any, ...]:
    """What a run leaves: the events that stay, and which pieces there are."""
    with copied(folder / "ledger.db") as connection:
        return (
            connection.execute("SELECT position FROM events ORDER BY position").fetchall(),
            connection.execute("SELECT stream, from_v, to_v, head, state FROM archived ORDER BY 1, 3").fetchall(),
            connection.execute("SELECT count(*) FROM segments WHERE NOT finished").fetchall(),
        )


async def test_deleting_before_the_pieces_are_durable_is_caught(tmp_path: Path) -> None:
    """The broken twin of the test above: events leave in a transaction before the one that writes their pieces."""
    _, clock = await lived(tmp_path / "lived", 21, 35)
    expected = log_of(tmp_path / "lived")
    copies = cut_at_every_step(tmp_path / "lived", clock, tmp_path / "cut", 3, "deletes first")
    assert any(lacks_events(cut) or expected != log_of(cut) for cut, killed in copies if killed)


def lacks_events(folder: Path) -> bool:
    """Whether a store knows that events of it are gone, and says so instead of a log with holes."""
    try:
        log_of(folder)
    except EventsMissing:
        return True
    return False
