"""SIGKILL under load: whatever was acknowledged is there, and every honest client goes on (I-02, I-03, I-09, I-13)."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.chaos.canary import check_left
from tests.chaos.chains import Chain, chains_of, faults_of
from tests.chaos.conftest import SQLITE, Place
from tests.chaos.ends import Ender
from tests.chaos.files import check_files, report
from tests.chaos.load import Load, converge
from tests.chaos.processes import TroubledServer
from tests.server_process import eventually

SEED = 20_261_125
CHAINS = 64
KILLS_A_LIFE = 3
"""How often one and the same database is killed; recovered files are killed again."""
MOMENT_SECONDS_MAX = 0.8


def kill_under_load(server: TroubledServer, chains: list[Chain], ender: Ender, after_seconds: float) -> None:
    """Kill the server, all its processes at once, while everybody is at work, look at what it left, start it again, and
    let everybody go on."""
    with Load(chains, [ender]) as load:
        time.sleep(after_seconds)
        server.kill()
        load.stop()
    check_files(server.database, chains, [ender])
    server.start()
    converge(chains, [ender])
    report(faults_of(chains) + ender.faults)


def kill_a_worker(server: TroubledServer, chains: list[Chain], ender: Ender, after_seconds: float) -> None:
    """Kill one of two workers while everybody is at work. The other one goes on, its parent starts another."""
    with Load(chains, [ender]) as load:
        time.sleep(after_seconds)
        killed = server.workers[int(after_seconds * 1000) % 2]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: killed not in server.workers and len(server.workers) == 2, what="another worker")
        before = load.refreshes
        eventually(lambda: load.refreshes > before + len(chains) // 2, what="refreshes")
        load.stop()
    converge(chains, [ender])
    report(faults_of(chains) + ender.faults)


def lives(
    folder: Path,
    kills: int,
    *,
    twin: str | None = None,
    chain_count: int = CHAINS,
    place: Place = SQLITE,
    begin: int = 0,
) -> int:
    """Kill servers so many times, from the kill of a number on, two workers one at a time and then together; every few
    kills a new database begins. Returns the refreshes acknowledged."""
    acknowledged = 0
    for first in range(begin, begin + kills, KILLS_A_LIFE):
        settings = {"LOG_LEVEL": "info", **place.settings(folder / str(first))}
        server = TroubledServer(folder / str(first), twin=twin, settings=settings)
        try:
            server.start()
            chains = chains_of(server, chain_count)
            ender = Ender(server, Random(f"{SEED} {first}"))
            for number in range(first, min(first + KILLS_A_LIFE, begin + kills)):
                chance = Random(f"{SEED} kill {number}")
                kill = kill_a_worker if place.processes > 1 and number % KILLS_A_LIFE < 2 else kill_under_load
                kill(server, chains, ender, chance.uniform(0.02, MOMENT_SECONDS_MAX))
            if place.processes > 1:
                check_rebuild(server)
            server.kill()
            check_files(server.database, chains, [ender])
            acknowledged += sum(chain.acknowledged for chain in chains)
        finally:
            server.kill()
        check_left(server)
    return acknowledged


def check_rebuild(server: TroubledServer) -> None:
    """The command that proves projections and snapshots equal to a replay says so, and changes nothing."""
    rebuilt = server.command("rebuild")
    assert 0 == rebuilt.returncode, rebuilt


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The kills of the full tier come in four parts."""
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", range(4 if metafunc.config.option.full else 1))


def test_what_was_acknowledged_outlives_the_process(
    tmp_path: Path,
    each_place: Place,
    part: int,
    count: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    """No acknowledged rotation or end is lost, no token has a second successor, no honest family dies (I-09, I-10)."""
    kills, chains = count(6 // each_place.processes, 60 // 4), CHAINS // each_place.processes
    acknowledged = lives(tmp_path, kills, place=each_place, chain_count=chains, begin=part * kills)
    record_property("kills", kills)
    record_property("refreshes acknowledged", acknowledged)


@pytest.mark.usefixtures("needs_strace")
def test_what_was_acknowledged_outlives_a_kill_at_the_very_sync(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The same with SIGKILL in the n-th fdatasync itself, when the log is written and not yet told to be safe."""
    server = TroubledServer(tmp_path / "server", settings={"LOG_LEVEL": "info"})
    try:
        server.start()
        chains = chains_of(server, 16)
        for number in range(1, 31):
            with Load(chains) as load:
                tracer = server.inject(f"fdatasync:signal=KILL:when={number}")
                assert server.process is not None
                assert -signal.SIGKILL == server.process.wait(20)
                load.stop()
            tracer.wait(10)
            check_files(server.database, chains)
            server.start()
            converge(chains)
            report(faults_of(chains))
    finally:
        server.kill()
    check_left(server)
    record_property("kills", 30)
    record_property("refreshes acknowledged", sum(chain.acknowledged for chain in chains))


@pytest.mark.parametrize(
    ("twin", "caught_by"),
    [("answers_before_the_commit", "is lost|were asked for|not on record"), ("mints_siblings", "two successors")],
)
def test_a_broken_server_is_caught(tmp_path: Path, twin: str, caught_by: str) -> None:
    """The broken twins: one answers before its commit, one mints a new successor for every retry."""
    with pytest.raises(AssertionError, match=caught_by):
        lives(tmp_path, 6, twin=twin, chain_count=16)


@pytest.mark.parametrize("each_place", ["two-workers"], indirect=True)
def test_workers_that_answer_before_their_commit_are_caught(tmp_path: Path, each_place: Place) -> None:
    """The broken twin on PostgreSQL: it sends a batch to the server a moment after it has told everybody. Both workers
    are killed at once, so that nobody is left who could be asked before the files are."""
    both_at_once = KILLS_A_LIFE - 1  # the number of the first such kill
    with pytest.raises(AssertionError, match=r"is lost|were asked for|not on record"):
        lives(tmp_path, 4, twin="answers_before_the_commit", chain_count=16, place=each_place, begin=both_at_once)
