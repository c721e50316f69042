"""What the engine's errors mean: who may try again, and what breaks the store (I-12)."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from ledger.recorders.errors import LostRace, StoreBroken, StoreFull
from ledger.recorders.sqlite_errors import translated


def failing(act: Callable[[sqlite3.Connection], object]) -> sqlite3.Error:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x UNIQUE)")
        connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.Error) as caught:
            act(connection)
    return caught.value


def test_a_taken_key_is_a_lost_race() -> None:
    """Somebody else has written since it was decided."""
    assert type(translated(failing(lambda c: c.execute("INSERT INTO t VALUES (1)")))) is LostRace


def test_a_full_disk_is_no_broken_store() -> None:
    """I-12: it heals."""

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count=3")
        connection.executemany("INSERT INTO t VALUES (?)", ((str(n) * 500,) for n in range(100)))

    assert type(translated(failing(fill))) is StoreFull


def test_whatever_nobody_foresaw_breaks_the_store() -> None:
    """I-12: fail closed. The line names the engine's word and nothing that was in the statement."""
    error = translated(failing(lambda c: c.execute("SELECT secret FROM nowhere")))
    assert (StoreBroken, "the database failed: SQLITE_ERROR") == (type(error), str(error))
