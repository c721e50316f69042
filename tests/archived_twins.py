"""Closed ledgers with a past and their archived twins: what both are asked, and runs that are killed at every step."""

import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

from ledger.archiving import Report
from ledger.recorders.errors import Withheld
from projections import INLINE
from projections.rebuild import Rebuilt, rebuild
from tests.archives import CLIENTS, Given, answers, archive, past, presented, reopened, twin
from tests.engines import alter, readers_of, stand_for, url_of
from tests.ledgers import Clock, open_ledger


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
        after = await answers(opened, given)
    return compared(folder, 0, [before, outcomes, after])


def compared(folder: Path, since: int, told: list[Any]) -> list[Any]:
    """What was told, with the names of events after a position in place of theirs where positions follow from the
    transactions of a whole server: no two ledgers on one have the same."""
    if url_of(folder / "ledger.db") is None:
        return told
    events: dict[int, str] = {}
    with closing(readers_of(folder / "ledger.db")) as readers, readers.settled() as reads:
        for name, v in reads.select("SELECT name, v FROM streams WHERE position > ?", (since,)):
            for each in reversed(range(1, int(str(v)) + 1)):
                try:
                    stored = reads.event_at(str(name), each)
                except Withheld:
                    break
                if stored is None or stored.position <= since:
                    break
                events[stored.position] = f"{name}/{each}"
    return [renamed(each, events) for each in told]


def renamed(told: Any, events: dict[int, str]) -> Any:
    """The same with positions replaced, numbers and texts, at whatever depth."""
    if isinstance(told, dict):
        return {name: renamed(value, events) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return [renamed(each, events) for each in told]
    if isinstance(told, int) or (isinstance(told, str) and told.isdecimal()):
        return events.get(int(told), told)
    return told


async def archived_twin(folder: Path, clock: Clock) -> tuple[Path, Report]:
    """A copy of a closed ledger, archived."""
    other = twin(folder)
    async with reopened(other, clock, "archiver") as opened:
        return other, await archive(opened)


def rebuilt(folder: Path) -> Rebuilt:
    """A rebuild of a closed ledger, which must heal nothing."""

    def refuse(_: object) -> None:
        raise AssertionError("there is something to heal")

    with closing(readers_of(folder / "ledger.db")) as readers:
        return rebuild(readers.settled, INLINE, refuse)


def cut_at_every_step(
    folder: Path, clock: Clock, work: Path, stride: int, way: str = "as it is"
) -> list[tuple[Path, bool]]:
    """Archive copies of a ledger, the n-th killed at the n-th thing that touches the disk, for one n in `stride`: each
    copy, and whether it was killed. The last one was not."""
    url = url_of(folder / "ledger.db")
    asked = [str(folder), str(work), str(clock.now), way, str(stride), *([] if url is None else [url])]
    process = subprocess.run(
        [sys.executable, "-m", "tests.archive_worker", *asked], capture_output=True, text=True, check=False
    )
    assert 0 == process.returncode, process.stderr
    found = []
    for line in process.stdout.splitlines():
        copy, status, copy_url = json.loads(line)
        if copy_url is not None:
            stand_for(Path(copy) / "ledger.db", copy_url)
        found.append((Path(copy), status == -signal.SIGKILL))
    return found


def taken_over(folder: Path) -> None:
    """Let a minute have passed since a process was killed that archived: then others may."""
    if url_of(folder / "ledger.db") is not None:
        assert 1 == alter(folder / "ledger.db", "UPDATE archiver SET until = '-infinity'")


def log_of(folder: Path) -> list[tuple[str, int, str]]:
    """Every event of a closed ledger, wherever it lies: stream, version, bytes."""
    with closing(readers_of(folder / "ledger.db")) as readers, readers.reader() as reads:
        names = [str(name) for (name,) in reads.select("SELECT name FROM streams ORDER BY id")]
        return [(name, each.v, each.body) for name in names for each in reads.events(name, 1, 1_000_000)]
