"""The write-ahead log of the store on one SQLite file: when it is moved, by whom, and who holds it back."""

import shutil
import sqlite3
import struct
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ledger.recorders import sqlite_log
from ledger.recorders.errors import StoreBroken, StoreError
from ledger.recorders.rows import Reads
from ledger.recorders.sqlite import SQLiteStore
from ledger.recorders.sqlite_log import WriteAheadLog
from projections import INLINE
from tests.sqlite_stores import RING, append


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the log is fifty pages."""
    monkeypatch.setattr(sqlite_log, "CHECKPOINT_PAGES", 50)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is on the disk before the next commit."""
    start = threading.Thread.start

    def and_ended(thread: threading.Thread) -> None:
        start(thread)
        thread.join()

    monkeypatch.setattr(threading.Thread, "start", and_ended)


def log_pages(path: Path) -> int:
    """How long the write-ahead log has ever been since it was emptied."""
    return path.with_name(path.name + "-wal").stat().st_size // sqlite_log.PAGE_BYTES


def times_begun(path: Path) -> int:
    """How often the write-ahead log has begun anew, as its header says."""
    with path.with_name(path.name + "-wal").open("rb") as log:
        return int.from_bytes(log.read(16)[12:], "big")


def commit(store: SQLiteStore, batch: int, events: int) -> bool:
    """One batch, and what is to be moved after it: whether something was."""
    append(store, f"audit-{batch % 7}", events)
    if due := store.checkpoint_due():
        store.checkpoint()
    return due


@pytest.mark.parametrize("events", [1, 40])
@pytest.mark.usefixtures("short", "at_once")
def test_the_log_begins_anew_about_as_often_as_it_should(database: Path, events: int) -> None:
    """Whatever the batches are like, it is found out after how many rows a part of the log has its pages."""
    store, begun = SQLiteStore(database, INLINE), []
    store.open(RING)
    for batch in range(900):
        before = times_begun(database) if batch else 0
        commit(store, batch, events)
        if before != times_begun(database):
            begun.append(batch)
    assert 3 * 25 <= log_pages(database) <= 2 * 3 * 50 + 20  # SQLite itself moves what has become twice as long
    store.close()
    gaps = [later - sooner for sooner, later in pairwise(begun[3:])]
    assert gaps
    assert min(gaps) * 4 >= max(gaps)


@pytest.fixture
def moved_all(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has an item for each time that we have moved all of the log."""
    found: list[int] = []
    move_all = WriteAheadLog._move_all

    def counting(self: WriteAheadLog, connection: sqlite3.Connection) -> None:
        found.append(self._parts)
        move_all(self, connection)

    monkeypatch.setattr(WriteAheadLog, "_move_all", counting)
    return found


def huge(store: SQLiteStore) -> None:
    append(store, "huge", 5000)


def rolled_back(store: SQLiteStore) -> None:
    for _ in range(20):
        append(store, "never", 200, commit=False)
        store.rollback()


def many_large(store: SQLiteStore) -> None:
    for _ in range(100):
        commit(store, 0, 40)


@pytest.mark.parametrize("before", [huge, rolled_back, many_large])
@pytest.mark.usefixtures("short", "at_once")
def test_sqlite_does_not_go_on_moving_the_log_itself(
    database: Path, moved_all: list[int], before: Callable[[SQLiteStore], None]
) -> None:
    """What SQLite moves, whoever stands in the commit waits for. Where batches have changed, where one was huge, and
    where a full disk has let none be, it is found out again after how many rows a part of the log has its pages."""
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    append(store, "audit", 1)
    before(store)
    for batch in range(800):
        commit(store, batch, 1)
    moved_all.clear()
    begun = times_begun(database)
    for batch in range(450):
        commit(store, batch, 1)
    begun = times_begun(database) - begun
    store.close()
    assert begun >= 3
    assert begun - 1 <= len(moved_all) <= begun + 1
    assert {3} == set(moved_all)  # after so many parts


def parts(store: SQLiteStore, count: int) -> None:
    """Commit until so many parts of the log were moved, and once more."""
    batch = moved = 0
    while moved < count:
        moved += commit(store, batch, 5)
        batch += 1
    append(store, "last", 3)


def found_after_a_crash(log_of: Path, database: Path, tmp_path: Path) -> list[tuple[int, str]]:
    """What the next start finds in a file that has lost all that was moved into it, with the log as it is now."""
    lost = tmp_path / "lost.db"
    shutil.copy(database, lost)
    shutil.copy(f"{log_of}-wal", f"{lost}-wal")
    with closing(sqlite3.connect(lost)) as connection:
        return connection.execute("SELECT position, body FROM events ORDER BY position").fetchall()


@pytest.mark.usefixtures("short", "at_once")
def test_what_a_part_has_moved_is_in_the_log_too(sqlite: SQLiteStore, database: Path, tmp_path: Path) -> None:
    """Nobody has waited for the disk, which may have none of it (I-09). The twin moves all, and the log begins anew:
    then the disk must have it."""
    append(sqlite, "first", 1)
    assert sqlite.truncate_log()
    before = tmp_path / "before.db"
    shutil.copy(database, before)
    parts(sqlite, 3)
    with sqlite.reader() as reader:
        stored = [(each.position, each.body) for each in reader.after(0, 10_000)]
    assert stored == found_after_a_crash(database, before, tmp_path)
    parts(sqlite, 1)
    assert commit(sqlite, 1, 1) or times_begun(database)
    with sqlite.reader() as reader:
        stored = [(each.position, each.body) for each in reader.after(0, 10_000)]
    try:
        found = found_after_a_crash(database, before, tmp_path)
    except sqlite3.DatabaseError:
        found = []
    assert stored != found


def frames(database: Path) -> tuple[int, int]:
    """How many frames of the log were moved, and how many it has, as its index says. Read by another process: whoever
    closes that file takes SQLite's locks away."""
    index = subprocess.run(["cat", f"{database}-shm"], capture_output=True, check=True).stdout
    return struct.unpack_from("=I", index, 96)[0], struct.unpack_from("=I", index, 16)[0]


def check_parts_leave_something(store: SQLiteStore, database: Path, moved_all: list[int]) -> None:
    moved = 0
    for batch in range(500):
        if commit(store, batch, 5):
            done, frames_in_all = frames(database)
            if moved_all:
                assert done == frames_in_all
                return
            assert moved < done < frames_in_all
            moved = done
    raise AssertionError("the log was never moved")


@pytest.mark.usefixtures("short", "at_once")
def test_a_part_leaves_the_last_commit_to_be_moved(sqlite: SQLiteStore, database: Path, moved_all: list[int]) -> None:
    """So whoever moves that has SQLite wait for the file's disk, and nobody but who waits begins the log anew."""
    check_parts_leave_something(sqlite, database, moved_all)
    assert [3] == moved_all


@pytest.mark.usefixtures("short", "at_once")
def test_a_mark_after_the_commit_is_caught(
    sqlite: SQLiteStore, database: Path, moved_all: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: everything is before the mark, so each part is all, and waits for the disk."""
    mark, committed = WriteAheadLog.mark, WriteAheadLog.committed

    def too_late(self: WriteAheadLog, rows: int, connection: sqlite3.Connection) -> None:
        committed(self, rows, connection)
        mark(self, rows)

    monkeypatch.setattr(WriteAheadLog, "mark", lambda self, rows: None)
    monkeypatch.setattr(WriteAheadLog, "committed", too_late)
    with pytest.raises(AssertionError):
        check_parts_leave_something(sqlite, database, moved_all)


@pytest.mark.usefixtures("short")
def test_commits_go_on_while_the_system_writes_the_file(
    sqlite: SQLiteStore, database: Path, monkeypatch: pytest.MonkeyPatch, moved_all: list[int]
) -> None:
    """However long that takes; the log goes on too, and is moved once the file is on the disk."""
    asked, go_on = threading.Event(), threading.Event()

    def hanging(_: int) -> None:
        asked.set()
        assert go_on.wait(30)

    monkeypatch.setattr(sqlite_log, "_to_disk", hanging)
    batch = 0
    while not asked.is_set():
        commit(sqlite, batch, 5)
        batch += 1
    begun, pages = times_begun(database), log_pages(database)
    assert not any(commit(sqlite, batch, 5) for batch in range(50))
    assert begun == times_begun(database)
    assert pages + 50 <= log_pages(database)
    go_on.set()
    while not moved_all:
        commit(sqlite, batch, 5)
    append(sqlite, "audit", 1)
    assert times_begun(database) > begun  # by two where the log was so long that SQLite has moved it before


@pytest.mark.usefixtures("short", "at_once")
def test_a_file_that_cannot_be_brought_to_the_disk_ends_it(
    sqlite: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-10: also where the system tells of an error once, and would hide it from SQLite."""

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sqlite_log, "_to_disk", failing)
    with pytest.raises(StoreBroken, match="cannot be brought to the disk: Input/output error"):
        parts(sqlite, 2)
    assert sqlite.checkpoint_due()
    sqlite.close()
    again = SQLiteStore(sqlite.path, INLINE)
    again.open(RING)
    assert not again.checkpoint_due()
    again.close()


@pytest.mark.usefixtures("short")
def test_without_a_thread_sqlite_waits_for_all_of_it(
    sqlite: SQLiteStore, database: Path, monkeypatch: pytest.MonkeyPatch, moved_all: list[int]
) -> None:
    """A system that gives none fails nobody."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    check_parts_leave_something(sqlite, database, moved_all)


class Refusing:
    """A connection whose commits fail."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str) -> sqlite3.Cursor:
        if sql == "COMMIT":
            raise sqlite3.OperationalError("disk full")
        return self._connection.execute(sql)


@pytest.mark.usefixtures("short", "at_once")
def test_a_commit_that_failed_leaves_no_mark(sqlite: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold back the log of a store that only few write to."""
    append(sqlite, "audit", 5000, commit=False)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "_writer", Refusing(sqlite._connection))
        with pytest.raises(StoreError):
            sqlite.commit()
    sqlite.rollback()
    assert not sqlite.checkpoint_due()
    append(sqlite, "audit", 1)
    busy, pages, moved = sqlite.within().select("PRAGMA wal_checkpoint(PASSIVE)")[0]
    assert (0, pages) == (busy, moved)


def _found(work: list[tuple[str, Any]], _: Reads) -> list[tuple[str, Any]]:
    return work


def pages_after_rewriting(store: SQLiteStore, database: Path) -> int:
    """How long the log is after many steps of a rebuild, while nobody refreshes."""
    reasons = "INSERT OR REPLACE INTO private_reasons VALUES (?, ?, ?)"
    for step in range(40):
        rows = [(f"audit/{step * 200 + row}", b"salt", "text " * 100) for row in range(200)]
        store.rewrite(partial(_found, [(reasons, rows)]))
    return log_pages(database)


@pytest.mark.usefixtures("short")
def test_steps_of_a_rebuild_leave_the_log_short(sqlite: SQLiteStore, database: Path) -> None:
    """They move nothing of it, and neither hold it back: SQLite moves what has become long, inside a commit."""
    assert pages_after_rewriting(sqlite, database) <= 2 * sqlite_log.pages_max()


@pytest.mark.usefixtures("short")
def test_a_mark_that_a_rebuild_leaves_is_caught(
    sqlite: SQLiteStore, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: a mark before each commit, also where nobody comes to move a part."""
    commit = sqlite._commit

    def marking() -> None:
        sqlite._log.mark(200)
        commit()

    monkeypatch.setattr(sqlite, "_commit", marking)
    assert pages_after_rewriting(sqlite, database) > 2 * sqlite_log.pages_max()


def test_a_log_that_cannot_be_moved_is_tried_again(sqlite: SQLiteStore) -> None:
    """A reader that stays holds the log back, which fails nobody; once it is gone the log is moved."""
    append(sqlite, "audit", 5)
    with sqlite.reader() as reader:
        reader.after(0, 1)
        append(sqlite, "audit", 5)
        sqlite.checkpoint()
        append(sqlite, "audit", 500)
        sqlite.checkpoint()
    sqlite.checkpoint()
    busy, pages, moved = sqlite.within().select("PRAGMA wal_checkpoint(PASSIVE)")[0]
    assert (0, pages) == (busy, moved)


def test_emptying_the_log_waits_for_no_reader(sqlite: SQLiteStore, database: Path) -> None:
    """It says no while somebody still reads an older moment, and yes after."""
    append(sqlite, "audit", 5)
    with sqlite.reader() as reader:
        reader.after(0, 1)
        append(sqlite, "audit", 5)
        assert sqlite.truncate_log() is False
    assert sqlite.truncate_log() is True
    assert 0 == database.with_name(database.name + "-wal").stat().st_size


@pytest.mark.usefixtures("at_once")
def test_a_log_that_was_long_once_is_cut(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reader that stayed, or a huge transaction: it is no longer watched, for its next life begins short."""
    monkeypatch.setattr(sqlite_log, "bytes_watched", lambda: 100 * sqlite_log.PAGE_BYTES)
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    append(store, "huge", 5000)
    assert log_pages(database) > 200
    begun = times_begun(database)
    while begun == times_begun(database):
        commit(store, 1, 5)
    assert log_pages(database) <= 100
    store.close()


def test_the_log_is_watched_by_whatever_link_its_database_is_reached(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite makes it beside the file, not beside the link."""
    monkeypatch.setattr(sqlite_log, "bytes_watched", lambda: 20 * sqlite_log.PAGE_BYTES)
    monkeypatch.setattr(sqlite_log, "LOG_WATCHED_EVERY_COMMITS", 1)
    link = tmp_path / "elsewhere.db"
    link.symlink_to(database)
    store = SQLiteStore(link, INLINE)
    store.open(RING)
    for _ in range(100):
        append(store, "audit", 1)  # and nobody moves it
    assert log_pages(database) < 60
    store.close()
