"""The store on one SQLite file: what a transaction writes, who may write, and what becomes of what is rolled back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.recorders.errors import LostRace, StoreBroken, StoreBusy
from ledger.recorders.rows import Work
from ledger.recorders.sqlite import SQLiteStore
from projections import INLINE
from tests.faulty_store import locked_by_another_process
from tests.sqlite_stores import append, audit


def test_reading_and_writing_a_closed_store_is_refused(sqlite: SQLiteStore) -> None:
    """No stale connection answers for a file that may be somebody else's by now."""
    sqlite.close()
    for act in (sqlite.begin, sqlite.last, sqlite.control, sqlite.commit, lambda: sqlite.head("keys")):
        with pytest.raises(StoreBroken):
            act()
    sqlite.close()


def test_a_second_writer_is_refused_at_once(sqlite: SQLiteStore, database: Path) -> None:
    """Busy is no error of the store's: it never waits, and whoever asked may ask again."""
    with locked_by_another_process(database):
        with pytest.raises(StoreBusy):
            sqlite.begin()
        assert not sqlite._connection.in_transaction
    assert (0, 0) == sqlite.begin()
    sqlite.rollback()


def test_a_head_that_has_moved_on_is_a_lost_race(sqlite: SQLiteStore) -> None:
    """The guard of every append: it is written only where the stream has the version it was decided on."""
    append(sqlite, "audit", 1)
    sqlite.begin()
    work = Work(INLINE)
    work.events.append((2, 1, 2, 1, audit(2).question))
    work.add_head(1, "audit", 3, 2, b"", b"", (None, None, None), v_before=2)
    with pytest.raises(LostRace):
        sqlite.write(work)
    sqlite.rollback()
    head = sqlite.head("audit")
    assert head is not None
    assert (1, 1) == (head.v, head.position)


def replaced(database: Path) -> None:
    shutil.copy(database, database.with_name("copy"))
    database.with_name("copy").rename(database)


def renamed(database: Path) -> None:
    database.parent.rename(database.parent.with_name("elsewhere"))


@pytest.mark.parametrize("take_away", [Path.unlink, renamed, replaced])
def test_a_file_that_is_not_there_any_more_acknowledges_nothing(
    sqlite: SQLiteStore, database: Path, take_away: Callable[[Path], object]
) -> None:
    """I-09: SQLite goes on writing into a file that no name leads to, and which is gone with the process."""
    append(sqlite, "audit", 1)
    take_away(database)
    with pytest.raises(StoreBroken, match="is not there any more, or another file"):
        append(sqlite, "audit", 1)


def test_a_rolled_back_transaction_leaves_nothing(sqlite: SQLiteStore) -> None:
    """All of a batch, or nothing of it."""
    append(sqlite, "audit", 2, commit=False)
    sqlite.rollback()
    sqlite.rollback()
    assert 0 == sqlite.last()
    assert sqlite.head("audit") is None
    assert (1, 2) == (sqlite.new_key("audit"), sqlite.new_key("more"))
    sqlite.rollback()
    assert 1 == sqlite.new_key("another"), "a number that no stream came to have is given again"


def test_positions_go_on_above_an_acknowledged_restore(sqlite: SQLiteStore) -> None:
    """A position that the lost log has used is not used again."""
    append(sqlite, "audit", 2)
    sqlite._connection.execute("UPDATE control SET position_floor = 700")
    assert 700 == sqlite.last()
    assert [701] == [position for position, _ in append(sqlite, "audit", 1)]
    assert 701 == sqlite.last()
