"""What is over moves into the archive, and every answer stays (I-23), whatever happened and wherever a run is cut."""

import copy
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger import times
from ledger.archiving import Report
from ledger.recorders.archived import Archived
from ledger.recorders.readers import Readers
from ledger.recorders.rows import Piece, StoredEvent
from ledger.segments import folder_of
from projections import INLINE, current_tokens
from projections.rebuild import Rebuilt, rebuild
from tests.archives import CLIENTS, Given, answers, archive, differing, made_small, past, presented, reopened, twin
from tests.ledger_check import check_ledger
from tests.ledgers import Clock, open_ledger

__all__ = ["made_small"]

SEEDS = (1, 8, 21)


async def lived(folder: Path, seed: int, acts: int = 60) -> tuple[Given, Clock]:
    """A closed ledger with a past."""
    folder.mkdir()
    async with open_ledger(folder, clients=CLIENTS) as opened:
        assert opened.ledger._ticker is not None
        opened.ledger._ticker.cancel()
        given = await past(opened, Random(seed), acts)
        return given, opened.clock


async def asked(folder: Path, given: Given, clock: Clock) -> list[Any]:
    """All that can be asked, all tokens presented once more, and all asked again."""
    async with reopened(folder, clock) as opened:
        before = await answers(opened, given)
        outcomes = await presented(opened, given, Random("order"))
        return [before, outcomes, await answers(opened, given)]


async def archived_twin(folder: Path, clock: Clock) -> tuple[Path, Report]:
    """A copy of a closed ledger, archived."""
    other = twin(folder)
    async with reopened(other, clock, "archiver") as opened:
        return other, await archive(opened)


def rebuilt(folder: Path) -> Rebuilt:
    """A rebuild of a closed ledger, which must heal nothing."""

    def refuse(_: object) -> None:
        raise AssertionError("there is something to heal")

    with closing(Readers(folder / "ledger.db")) as readers:
        return rebuild(readers.reader, INLINE, refuse)


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


@pytest.mark.parametrize("breaking", TWINS, ids=lambda twin: twin.__name__)
@pytest.mark.usefixtures("made_small")
async def test_a_ledger_that_reads_its_archive_wrongly_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaking: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The broken twins of the test above."""
    given, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    expected = await asked(tmp_path / "lived", given, clock)
    breaking(monkeypatch)
    try:
        found = await asked(other, given, clock)
    except Exception:
        return  # a reader that misses what it must find fails loudly too
    assert differing(expected, found)


@pytest.mark.usefixtures("made_small")
async def test_archiving_while_things_go_on_changes_nothing(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """I-23: a ledger that is archived again and again, to any moment, goes on like one that never is."""
    for seed in range(count(2, 40)):
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
        assert check_ledger(one / "ledger.db") == check_ledger(other / "ledger.db")
        assert {} == differing(await asked(one, given[one], clock), await asked(other, given[other], clock))
        check_ledger(other / "ledger.db")
        assert [] == rebuilt(other).differences


# ------------------------------------------------------------ cut anywhere


def cut_at_every_step(folder: Path, clock: Clock, work: Path, way: str = "as it is") -> list[tuple[Path, bool]]:
    """Archive copies of a ledger, the n-th killed at the n-th thing that touches the disk: each copy, and whether it
    was killed. The last one was not."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.archive_worker", str(folder), str(work), str(clock.now), way],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == process.returncode, process.stderr
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    return [(Path(folder), status == -signal.SIGKILL) for folder, status in lines]


def log_of(folder: Path) -> list[tuple[str, int, str]]:
    """Every event of a closed ledger, wherever it lies: stream, version, bytes."""
    with closing(Readers(folder / "ledger.db")) as readers, readers.reader() as reads:
        names = [str(name) for (name,) in reads.select("SELECT name FROM streams ORDER BY id")]
        return [(name, each.v, each.body) for name in names for each in reads.events(name, 1, 1_000_000)]


@pytest.mark.usefixtures("made_small")
async def test_a_run_that_is_killed_anywhere_loses_nothing_and_is_finished_by_the_next(tmp_path: Path) -> None:
    """I-09, I-23: after SIGKILL at each step every event is there, in one place or in both; the next run leaves what an
    undisturbed one leaves."""
    _, clock = await lived(tmp_path / "lived", 21, 35)
    expected, before = log_of(tmp_path / "lived"), check_ledger(tmp_path / "lived" / "ledger.db")
    copies = cut_at_every_step(tmp_path / "lived", clock, tmp_path / "cut")
    *killed, (undisturbed, was_killed) = copies
    assert not was_killed
    assert len(killed) > 20
    assert all(each for _, each in killed)
    left = shape(undisturbed)
    for cut, _ in killed:
        assert before == check_ledger(cut / "ledger.db"), cut
        assert expected == log_of(cut), cut
        async with reopened(cut, clock, "next") as opened:
            await archive(opened)
        assert left == shape(cut), cut
        assert before == check_ledger(cut / "ledger.db"), cut
        assert not (folder_of(cut / "ledger.db") / "segment.new").exists()


def shape(folder: Path) -> tuple[Any, ...]:
    """What a run leaves: the events that stay, and which pieces there are."""
    with closing(sqlite3.connect(folder / "ledger.db")) as connection:
        return (
            connection.execute("SELECT position FROM events").fetchall(),
            connection.execute("SELECT stream, from_v, to_v, head, state FROM archived").fetchall(),
            connection.execute("SELECT count(*) FROM segments WHERE NOT finished").fetchall(),
        )


async def test_deleting_before_the_pieces_are_durable_is_caught(tmp_path: Path) -> None:
    """The broken twin of the test above: events leave in a transaction before the one that writes their pieces."""
    _, clock = await lived(tmp_path / "lived", 21, 35)
    expected = log_of(tmp_path / "lived")
    copies = cut_at_every_step(tmp_path / "lived", clock, tmp_path / "cut", "deletes first")
    assert any(expected != log_of(cut) for cut, killed in copies if killed)
