"""Opening the store on one SQLite file: what it insists on, and which files it leaves alone."""

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger.owner import Owned
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import LedgerError
from projections import INLINE
from tests.faulty_store import locked_by_another_process
from tests.sqlite_stores import RING, append


def refusal(path: Path, ring: str = RING, **options: str) -> str:
    """The one line that opening is refused with."""
    other = SQLiteStore(path, INLINE, **options)
    with pytest.raises(LedgerError) as caught:
        other.open(ring)
    other.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_file_is_made_with_its_tables(database: Path) -> None:
    """The first opening says so, the second finds what the first made; nobody else may read the file."""
    for new in (True, False):
        store = SQLiteStore(database, INLINE)
        assert new is store.open(RING)
        assert (0, 0) == store.control()
        store.close()
    assert 0o600 == stat.S_IMODE(database.stat().st_mode)


def test_the_log_is_written_ahead_and_synced_at_each_commit(sqlite: SQLiteStore) -> None:
    """I-09: WAL and FULL as the engine itself reads them back, and deleted rows are overwritten."""
    read = [sqlite._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert ["wal", 2] == read
    assert 1 == sqlite._connection.execute("PRAGMA secure_delete").fetchone()[0]


class Lying(sqlite3.Connection):
    """An engine that says yes and does something else: the broken twin of the one that opening believes."""

    lie = ""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == self.lie == "PRAGMA journal_mode=WAL":
            return super().execute("SELECT 'wal'")
        if sql == self.lie == "PRAGMA synchronous=FULL":
            return super().execute("PRAGMA synchronous=NORMAL")
        return super().execute(sql, *parameters)


@pytest.mark.parametrize(
    ("lie", "line"),
    [
        ("PRAGMA journal_mode=WAL", "write-ahead logging cannot be switched on here"),
        ("PRAGMA synchronous=FULL", "synchronous=FULL cannot be switched on here"),
    ],
)
def test_an_engine_that_only_says_yes_is_not_believed(
    database: Path, monkeypatch: pytest.MonkeyPatch, lie: str, line: str
) -> None:
    """I-09: what was asked for is read back; a store without it refuses to open."""
    connect = sqlite3.connect
    lying = type("Lying", (Lying,), {"lie": lie})
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=lying))
    assert line in refusal(database)


def test_the_store_that_must_lose_data_may_be_opened_for_that(database: Path) -> None:
    """The other level is for the trial that shows what it loses; nothing else passes it."""
    store = SQLiteStore(database, INLINE, synchronous="OFF")
    store.open(RING)
    assert 0 == store._connection.execute("PRAGMA synchronous").fetchone()[0]
    store.close()


def test_a_second_owner_is_refused(sqlite: SQLiteStore, database: Path) -> None:
    """One process owns the file; the line names it."""
    other = SQLiteStore(database, INLINE)
    with pytest.raises(Owned, match=f"process {os.getpid()} already has the database open"):
        other.open(RING)
    sqlite.close()
    assert other.open(RING) is False
    other.close()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no database at all, however long this text may be" * 100, "this file is no SQLite database"),
        (b"short", "this file is no SQLite database"),
    ],
)
def test_a_file_that_is_no_database_is_left_alone(database: Path, content: bytes, line: str) -> None:
    """Bad input: one clear line, nothing changed."""
    database.write_bytes(content)
    assert line in refusal(database)
    assert content == database.read_bytes()


def test_a_database_of_something_else_is_left_alone(database: Path) -> None:
    """Bad input: not even its journal mode is changed."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = database.read_bytes()
    assert "this database is no token ledger; nothing was changed" in refusal(database)
    assert before == database.read_bytes()


def test_an_empty_file_is_a_new_database(database: Path) -> None:
    """What a crash before the first page leaves behind."""
    database.touch()
    store = SQLiteStore(database, INLINE)
    assert store.open(RING)
    store.close()


def test_a_crash_while_the_database_was_made_is_made_good(database: Path) -> None:
    """Killed between the first page and the tables' commit: the next start makes them."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ledger.recorders.sqlite import SQLiteStore\n"
        "from projections import INLINE\n"
        "SQLiteStore._create = lambda *_: os.kill(os.getpid(), 9)\n"
        f"SQLiteStore(Path(sys.argv[1]), INLINE).open({RING!r})\n"
    )
    assert -9 == subprocess.run([sys.executable, "-c", program, str(database)], check=False).returncode
    assert database.stat().st_size > 0
    store = SQLiteStore(database, INLINE)
    assert store.open(RING)
    store.close()


def test_another_key_rings_database_is_refused(database: Path) -> None:
    """A store remembers which ring it belongs to."""
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    store.close()
    assert "this database belongs to another key ring" in refusal(database, ring="1" * 32)


def test_a_program_with_other_inline_tables_is_refused(database: Path) -> None:
    """No command can skip rows by being wired differently."""
    store = SQLiteStore(database, INLINE[:1])
    store.open(RING)
    store.close()
    assert "this program has other projection tables than the database" in refusal(database)


def test_a_database_of_a_later_release_is_refused(database: Path) -> None:
    """Bad input: the schema's number is named."""
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    store._connection.execute("UPDATE meta SET value = '3' WHERE key = 'schema'")
    store.close()
    assert "schema 3 is not the 2 of this release" in refusal(database)


def test_a_database_that_another_program_holds_is_refused(database: Path) -> None:
    """Bad input: not waited for at start."""
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    store._connection.execute("PRAGMA journal_mode=DELETE")
    store.close()
    with locked_by_another_process(database):
        assert "the database is locked by another program; stop it first" in refusal(database)
    again = SQLiteStore(database, INLINE)
    assert again.open(RING) is False
    again.close()


def test_what_an_earlier_life_left_in_the_log_is_in_the_file_before_serving(database: Path) -> None:
    """I-12: a log that cannot be check-pointed shows itself at the start, not at the next crash."""
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    append(store, "audit", 3)
    kept = [(each.name, each.read_bytes()) for each in database.parent.iterdir() if each.name.startswith(database.name)]
    store.close()
    for name, content in kept:  # as a kill leaves them
        database.with_name(name).write_bytes(content)
    log = database.with_name(database.name + "-wal")
    assert log.stat().st_size > 0
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    assert 0 == log.stat().st_size
    assert 3 == store.last()
    store.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'["current_tokens_v1"', b'["c\xf5rrent_tokens_v1"'),  # a row of `meta`
        (b"tablemetameta", b"table\xedetameta"),  # the engine's own words about it are no text then, either
    ],
)
def test_a_text_without_which_nothing_opens_that_is_none_any_more(database: Path, old: bytes, new: bytes) -> None:
    """One flipped bit, one line; and no rebuild is promised that could not open it, either."""
    store = SQLiteStore(database, INLINE)
    store.open(RING)
    store.close()
    content = database.read_bytes()
    assert old in content
    database.write_bytes(content.replace(old, new))
    expected = "what it says of its tables is not as it was written; a backup has what was there"
    assert expected in refusal(database)
