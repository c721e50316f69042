"""A disk that fails, a disk that is full, a database that somebody else has locked (I-10, I-12, I-24).

Never a false 200, never a 500, and no honest family dies of it. After an input/output error the process ends, because
nothing that it would read may be believed; from a full disk and a foreign lock it heals by itself.
"""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.canary import check_left
from tests.chaos.chains import Chain, chains_of, faults_of
from tests.chaos.files import check_files, report
from tests.chaos.load import Load, converge
from tests.chaos.processes import TroubledServer
from tests.chaos.shims import Faults
from tests.faulty_store import locked_by_another_process
from tests.server_process import PROJECT, eventually

CHAINS = 8
"""Few, so that sixty batches stay below one check-point."""
END_SECONDS_MAX = 15.0
HEAL_SECONDS_MAX = 10.0
UNREADY_SECONDS_MAX = 8.0

Counts = Callable[[int, int], int]
RecordProperty = Callable[[str, object], None]


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path, ".db")


def broken_server(folder: Path, faults: Faults, twin: str | None = None) -> TroubledServer:
    return TroubledServer(folder / "server", twin=twin, variables=faults.variables, settings={"LOG_LEVEL": "info"})


# -- input/output errors -----------------------------------------------------------------------------------------------


def end_by_an_error(server: TroubledServer, chains: list[Chain], fail: Callable[[], None], seconds: float) -> None:
    """Let a sync fail while everybody is at work: the process ends by itself, and a new one serves as before."""
    with Load(chains) as load:
        fail()
        process = server.process
        assert process is not None
        eventually(lambda: process.poll() is not None, within_seconds=seconds, what="the end of the process")
        load.stop()
    report(faults_of(chains))
    assert process.returncode == 2, f"exit code {process.returncode}: {server.tail()}"
    assert "store_broken" in server.log()
    check_files(server.database, chains)


def fail_each(
    server: TroubledServer,
    numbers: list[int],
    fail: Callable[[int], None],
    heal: Callable[[], None],
    *,
    seconds: float = END_SECONDS_MAX,
) -> int:
    """Let the n-th sync fail, for each n in turn, on one database. Returns the refreshes acknowledged."""
    try:
        server.start()
        chains = chains_of(server, CHAINS)
        for number in numbers:
            end_by_an_error(server, chains, partial(fail, number), seconds)
            heal()
            server.start()
            converge(chains)
            report(faults_of(chains))
    finally:
        server.kill()
    check_left(server)
    return sum(chain.acknowledged for chain in chains)


def test_an_error_at_the_nth_sync_ends_the_process_and_no_family(
    tmp_path: Path, faults: Faults, full: bool, record_property: RecordProperty
) -> None:
    """EIO at the n-th fdatasync under load: only 503 and silence, exit code 2; every retry converges (I-10, I-12)."""
    numbers = list(range(1, 61)) if full else [1, 5, 17]
    acknowledged = fail_each(
        broken_server(tmp_path, faults),
        numbers,
        lambda number: faults.fail_syncs(number, errno.EIO),
        lambda: faults.fail_syncs(0, 0, times=0),
    )
    assert len(numbers) == faults.failed
    record_property("errors", faults.failed)
    record_property("refreshes acknowledged", acknowledged)


@pytest.mark.usefixtures("needs_strace")
def test_an_error_from_the_kernel_ends_the_process_and_no_family(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    """The same with errors that the kernel's tracing puts in, n = 1…60 of the thread that commits."""
    server = TroubledServer(tmp_path / "server", settings={"LOG_LEVEL": "info"})
    tracers: list[subprocess.Popen[bytes]] = []

    def fail(number: int) -> None:
        tracers.append(server.inject(f"fdatasync:error=EIO:when={number}"))

    record_property("refreshes acknowledged", fail_each(server, list(range(1, 61)), fail, lambda: None))
    for tracer in tracers:
        tracer.wait(10)
    record_property("errors", len(tracers))


def test_a_start_that_meets_an_error_says_so_and_the_next_one_serves(
    tmp_path: Path, faults: Faults, full: bool, record_property: RecordProperty
) -> None:
    """EIO at the n-th sync from the first one on, until a start meets none: exit code 2, one line, nothing broken."""
    for number in range(1, 100) if full else (1, 4):
        server = broken_server(tmp_path / str(number), faults)
        faults.fail_syncs(number, errno.EIO)
        try:
            server.start(wait=False)
            if not _ended_at_start(server):
                assert faults.failed == number - 1, "a start has passed over an error"
                break
            assert 1 == server.errors().count("\n"), server.errors()
            faults.fail_syncs(0, 0, times=0)
            server.start()
            assert 200 == server.refresh("std", server.issue("std").refresh_token).status
        finally:
            server.kill()
        check_files(server.database, [])
        check_left(server)
    assert faults.failed >= 2
    record_property("errors", faults.failed)


def _ended_at_start(server: TroubledServer) -> bool:
    """Wait until it is either, with exit code 2 or ready."""
    process = server.process
    assert process is not None
    eventually(lambda: process.poll() is not None or server.health("/readyz") == 200, what="a start or an end")
    assert process.poll() in (None, 2), server.tail()
    return process.poll() is not None


def test_a_server_that_hides_errors_is_caught(tmp_path: Path, faults: Faults) -> None:
    """The broken twin: it believes that every commit has succeeded, and serves on."""
    with pytest.raises(AssertionError, match="the end of the process did not come"):
        fail_each(
            broken_server(tmp_path, faults, "hides_errors"),
            [5],
            lambda number: faults.fail_syncs(number, errno.EIO),
            lambda: None,
            seconds=2,
        )


def test_a_disk_that_takes_the_log_and_no_checkpoint_is_noticed(tmp_path: Path) -> None:
    """The log would grow for ever, and nobody would know (I-12): SQLite hides errors of its own check-points."""
    faults = Faults(tmp_path, "ledger.db$")
    place = tmp_path / "place"
    place.mkdir()
    faults.fail_syncs(3, errno.EIO, times=1_000_000)
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.store_worker", str(place), "FULL", "16", "1000000000"],
        cwd=PROJECT,
        env=os.environ | faults.variables,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Unavailable" in done.stderr.splitlines()[-1], done.stderr[-2000:]
    assert faults.failed >= 2
    assert 10_000_000 > (place / "ledger.db-wal").stat().st_size


# -- no room -----------------------------------------------------------------------------------------------------------


def until_unready(server: TroubledServer, load: Load) -> None:
    """Wait for /readyz to say 503, so long after the last refresh that has still found a little room."""
    while True:
        refreshes = load.refreshes
        try:
            eventually(lambda: server.health("/readyz") == 503, within_seconds=UNREADY_SECONDS_MAX, what="/readyz 503")
        except AssertionError:
            if refreshes == load.refreshes:
                raise
        else:
            return


def fill_and_heal(
    server: TroubledServer, chains: list[Chain], fill: Callable[[], None], free: Callable[[], None], *, at_all: bool
) -> None:
    """Take the room away under load until the server is unready, give it back: everybody goes on by themselves.
    `at_all`: not even the log, which was longer before, has room for a small batch."""
    process = server.process
    assert process is not None
    with Load(chains) as load:
        eventually(lambda: load.refreshes > 5 * len(chains), what="work")
        fill()
        eventually(lambda: all(chain.pending for chain in chains), within_seconds=3, what="503 for all")
        stuck = load.refreshes
        until_unready(server, load)
        assert 200 == server.health("/healthz")
        assert not at_all or stuck == load.refreshes, "a refresh was acknowledged for which there was no room"
        free()
        eventually(lambda: server.health("/readyz") == 200, within_seconds=HEAL_SECONDS_MAX, what="/readyz 200")
        eventually(lambda: not any(chain.pending for chain in chains), within_seconds=HEAL_SECONDS_MAX, what="healing")
        load.stop()
    report(faults_of(chains))
    assert process.poll() is None, f"it has ended: {server.tail()}"


def full_disk(
    server: TroubledServer, fill: Callable[[], None], free: Callable[[], None], *, at_all: bool = True
) -> int:
    """A server whose disk is full for a while. Returns how often its clients were told 503. Whatever was acknowledged
    meanwhile is found in the files."""
    try:
        server.start()
        chains = chains_of(server, 2 * CHAINS)
        fill_and_heal(server, chains, fill, free, at_all=at_all)
        converge(chains)
        report(faults_of(chains))
        assert 0 == server.terminate(), server.tail()
        check_files(server.database, chains)
    finally:
        server.kill()
    check_left(server)
    return sum(chain.statuses[503] for chain in chains)


def test_a_full_disk_heals_without_a_restart(tmp_path: Path, faults: Faults, record_property: RecordProperty) -> None:
    """ENOSPC at every write: 503, unready, alive; when there is room again every retry converges (I-12, I-24)."""
    told = full_disk(
        broken_server(tmp_path, faults), lambda: faults.fail_writes(errno.ENOSPC), lambda: faults.fail_writes(0)
    )
    record_property("answers 503", told)


def test_a_server_that_hides_a_full_disk_is_caught(tmp_path: Path, faults: Faults) -> None:
    """The broken twin: it acknowledges what there was no room for, or stumbles over what it believes to have stored."""
    with pytest.raises(AssertionError, match=r"503 for all did not come|500 to POST"):
        full_disk(
            broken_server(tmp_path, faults, "hides_errors"),
            lambda: faults.fail_writes(errno.ENOSPC),
            lambda: faults.fail_writes(0),
        )


@pytest.fixture
def small_disk(tmp_path: Path, full: bool) -> Iterator[Path]:
    """A file system of its own, of eight megabytes."""
    if not full:
        pytest.skip("a file system that fills up belongs to --full")
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_small_disk_that_fills_up_heals_without_a_restart(
    small_disk: Path, tmp_path: Path, record_property: RecordProperty
) -> None:
    """A real file system without room, key ring and head file on it too, ten times."""
    told = 0
    for number in range(10):
        folder = small_disk / str(number)
        server = TroubledServer(folder, settings={"LOG_LEVEL": "warning"})
        server.log_file = tmp_path / f"{number}.log"
        filler = small_disk / "filler"

        def fill(filler: Path = filler) -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

        told += full_disk(server, fill, filler.unlink, at_all=False)
        shutil.rmtree(folder)
    record_property("answers 503", told)


# -- a lock that is held elsewhere -------------------------------------------------------------------------------------


def test_a_lock_held_elsewhere_delays_and_loses_nothing(tmp_path: Path, count: Counts) -> None:
    """Another process holds the write lock for seconds: requests wait, or are told 503; then all go on (I-12)."""
    server = TroubledServer(tmp_path / "server", settings={"LOG_LEVEL": "info"})
    try:
        server.start()
        chains = chains_of(server, 4 * CHAINS)
        with Load(chains) as load:
            eventually(lambda: load.refreshes > len(chains), what="work")
            with locked_by_another_process(server.database):
                eventually(lambda: not _moves(load, 0.5), what="standstill")
                time.sleep(count(1, 15))  # beyond the requests' deadline in the full tier
                assert not _moves(load, 0.2), "a refresh was acknowledged while another held the lock"
                assert 200 == server.health("/healthz")
            eventually(lambda: not any(chain.pending for chain in chains), what="healing")
            eventually(lambda: _moves(load, 0.2), within_seconds=HEAL_SECONDS_MAX, what="going on")
            load.stop()
        converge(chains)
        report(faults_of(chains))
        assert 0 == server.terminate(), server.tail()
        check_files(server.database, chains)
    finally:
        server.kill()
    check_left(server)


def _moves(load: Load, seconds: float) -> bool:
    before = load.refreshes
    time.sleep(seconds)
    return load.refreshes > before
