"""The write-ahead log of the store on one SQLite file: when it is moved, by whom, and who holds it back."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from ledger.recorders import sqlite as sqlite_store
from ledger.recorders.sqlite import SQLiteStore
from projections import INLINE
from tests.sqlite_stores import RING, append


def log_pages(path: Path) -> int:
    """How long the write-ahead log has ever been since it was emptied."""
    return path.with_name(path.name + "-wal").stat().st_size // sqlite_store.PAGE_BYTES


@pytest.mark.parametrize("events", [1, 40])
def test_the_log_is_moved_about_as_often_as_it_should_be(
    database: Path, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    """Whatever the batches are like, it is found out after how many rows the log has the pages that it may have; and a
    crash in between loses nothing, for the log stays."""
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 50)
    store, asked = SQLiteStore(database, INLINE), []
    store.open(RING)
    for batch in range(300):
        append(store, f"audit-{batch % 7}", events)
        if store.checkpoint_due():
            store.checkpoint()
            asked.append(batch)
    assert 25 <= log_pages(database) <= 100 + 20  # SQLite itself moves what has become twice as long
    store.close()
    gaps = [later - sooner for sooner, later in pairwise(asked[5:])]
    assert gaps
    assert min(gaps) * 4 >= max(gaps)


def times_begun(path: Path) -> int:
    """How often the write-ahead log has begun anew, as its header says."""
    with path.with_name(path.name + "-wal").open("rb") as log:
        return int.from_bytes(log.read(16)[12:], "big")


def moved_by_us(store: SQLiteStore, path: Path, batches: int, events: int) -> tuple[int, int]:
    """How often a row of batches moves the log when asked for it, and how often it begins anew meanwhile."""
    asked, before = 0, times_begun(path)
    for batch in range(batches):
        append(store, f"audit-{batch % 7}", events)
        if store.checkpoint_due():
            store.checkpoint()
            asked += 1
    return asked, times_begun(path) - before


def huge(store: SQLiteStore) -> None:
    append(store, "huge", 5000)


def rolled_back(store: SQLiteStore) -> None:
    for _ in range(20):
        append(store, "never", 200, commit=False)
        store.rollback()


def many_large(store: SQLiteStore) -> None:
    for _ in range(100):
        append(store, "large", 40)
        if store.checkpoint_due():
            store.checkpoint()


@pytest.mark.parametrize("before", [huge, rolled_back, many_large])
def test_sqlite_does_not_go_on_moving_the_log_itself(
    database: Path, monkeypatch: pytest.MonkeyPatch, before: Callable[[SQLiteStore], None]
) -> None:
    """What SQLite moves, whoever stands in the commit waits for. Where batches have changed, where one was huge, and
    where a full disk has let none be, it is found out again after how many rows the log has its pages."""
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 50)
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    append(store, "audit", 1)
    before(store)
    moved_by_us(store, database, 250, 1)
    asked, begun = moved_by_us(store, database, 150, 1)
    store.close()
    assert begun >= 3
    assert begun - 1 <= asked <= begun + 1


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


def test_a_log_that_was_long_once_is_cut(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reader that stayed, or a huge transaction: it is no longer watched, for its next life begins short."""
    monkeypatch.setattr(sqlite_store, "LOG_BYTES_WATCHED", 100 * sqlite_store.PAGE_BYTES)
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    append(store, "huge", 5000)
    assert log_pages(database) > 200
    store.checkpoint()
    append(store, "audit", 1)
    assert log_pages(database) <= 100
    store.close()
