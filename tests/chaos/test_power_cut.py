"""Power cuts at the store: what was not synced is forgotten, and nothing that was acknowledged is (I-09).

Killing a process proves little about durability: what it wrote is still in the kernel. Here the disk itself forgets.
By default from a record of all that a process asked of its files, in the full tier on a file system of our own, too.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.chaos.disk import MODES, Disk, Record, records
from tests.chaos.mounted import GRANTS, SEED, WORKER, Mounted
from tests.chaos.shims import compiled
from tests.chaos.store_after import Told, check_found
from tests.server_process import PROJECT

REFRESHES = 640
CUTS_A_STORE = 10
LOST = r"^cut \d.*(lost|does not open|damaged|behind)"
"""How a store tells that it has lost something."""

Counts = Callable[[int, int], int]
RecordProperty = Callable[[str, object], None]


def placed(folder: Path, found: dict[str, bytes]) -> Path:
    """Make a folder hold what a cut has left."""
    folder.mkdir()
    for name, content in found.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    return folder


# -- from a record of what a process asked of its files ----------------------------------------------------------------


def recorded(folder: Path, synchronous: str) -> list[Record]:
    """Let a worker run to its end, and return all that it asked of its files, and all that it told."""
    place = folder.resolve() / "place"
    place.mkdir()
    environment = os.environ | {
        "LD_PRELOAD": str(compiled("record", folder)),
        "RECORD_FOLDER": str(place),
        "RECORD_LOG": str(folder / "record.log"),
    }
    command = [*WORKER, str(place), synchronous, str(GRANTS), str(REFRESHES)]
    subprocess.run(command, cwd=PROJECT, env=environment, check=True)
    found = list(records(folder / "record.log"))
    whole = Disk()
    for record in found:
        whole.apply(record)
    on_disk = {path.name: path.read_bytes() for path in place.iterdir()}
    assert on_disk == whole.as_written(), "the record does not tell all that was written: it proves nothing"
    return found


def cut_record(folder: Path, record: list[Record], cuts: int) -> tuple[int, int]:
    """Cut the power at so many moments of the record, and look at each disk that is left.

    Returns how many acknowledgements stood before the cuts, all together, and how many syncs the whole record has.
    """
    chance = Random(SEED)
    moments = sorted(chance.sample(range(len(record)), cuts))
    disk, told, tried, stood = Disk(), Told(), 0, 0
    for number, one in enumerate(record):
        if number in moments[tried : tried + 1]:
            mode = MODES[tried % len(MODES)]
            place = placed(folder / f"cut-{tried}", disk.cut(mode, chance))
            with naming(f"cut {tried} ({mode}), before record {number} of {len(record)}"):
                check_found(place, told)
            stood += told.count
            tried += 1
        disk.apply(one)
        if one.kind == "A":
            told.take(one.data)
    return stood, disk.syncs


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Say where an assertion failed."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from None


def test_what_was_acknowledged_outlives_a_power_cut(
    tmp_path: Path, count: Counts, record_property: RecordProperty
) -> None:
    """Cut at any moment, unsynced writes dropped, kept by chance, or torn: the store opens and nothing is lost."""
    cuts = count(15, 150)
    stood, syncs = cut_record(tmp_path, recorded(tmp_path, "FULL"), cuts)
    record_property("cuts", cuts)
    record_property("acknowledgements before them", stood)
    record_property("syncs", syncs)


def test_a_store_that_does_not_wait_for_the_disk_is_caught(tmp_path: Path) -> None:
    """The broken twin: the same run with `synchronous=OFF` loses what it acknowledged."""
    with pytest.raises(AssertionError, match=LOST):
        cut_record(tmp_path, recorded(tmp_path, "OFF"), 15)


# -- on a file system of our own -------------------------------------------------------------------------------------


@pytest.fixture
def needs_fuse(full: bool) -> None:
    if not full:
        pytest.skip("power cuts on a file system of our own belong to --full")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse that may be opened here")
    probe = subprocess.run([sys.executable, "-c", "import mfusepy"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no FUSE: {probe.stderr.strip().splitlines()[-1]} (package mfusepy, library libfuse)")


def cut_mounted(mounted: Mounted, cuts: int, synchronous: str) -> int:
    """Cut the power so many times, a new store every few cuts; how many acknowledgements stood before the cuts."""
    chance = Random(SEED)
    stood = 0
    for number in range(cuts):
        if number % CUTS_A_STORE == 0:
            mounted.work(synchronous)
        mounted.listen(chance.uniform(0.2 if number % CUTS_A_STORE == 0 else 0.0, 0.4))
        if number % CUTS_A_STORE:
            mounted.hear()  # the first cut may come before anything is durable; no other one would prove much then
        mode = MODES[number % len(MODES)]
        place = mounted.cut(number, mode)
        with naming(f"cut {number} ({mode})"):
            check_found(place, mounted.told)
        stood += mounted.told.count
        if number % CUTS_A_STORE == CUTS_A_STORE - 1:
            mounted.rest()
    return stood


@pytest.mark.usefixtures("needs_fuse")
def test_what_was_acknowledged_outlives_a_cut_of_a_mounted_disk(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    """The same on a file system that the kernel mounts: 50 cuts each with writes dropped, kept by chance, and torn."""
    with Mounted(tmp_path.resolve()) as mounted:
        record_property("cuts", 150)
        record_property("acknowledgements before them", cut_mounted(mounted, 150, "FULL"))


@pytest.mark.usefixtures("needs_fuse")
def test_a_store_that_does_not_wait_for_a_mounted_disk_is_caught(tmp_path: Path) -> None:
    """The broken twin: `synchronous=OFF` on that file system loses what it acknowledged."""
    with Mounted(tmp_path.resolve()) as mounted, pytest.raises(AssertionError, match=LOST):
        cut_mounted(mounted, 15, "OFF")
