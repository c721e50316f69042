"""The store on one SQLite file: what opening insists on, what a transaction writes, how a stream's events are found."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ledger.events import AuditRead, Event, linked
from ledger.owner import Owned
from ledger.recorders import sqlite as sqlite_store
from ledger.recorders.errors import LostRace, StoreBroken, StoreBusy, StoreError, StoreFull
from ledger.recorders.rows import Work
from ledger.recorders.sqlite import SQLiteStore
from ledger.recorders.sqlite_errors import translated
from ledger.refusals import LedgerError
from projections import INLINE
from tests.faulty_store import locked_by_another_process

RING = "0" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    opened = SQLiteStore(path, INLINE)
    opened.open(RING)
    yield opened
    opened.close()


def refusal(path: Path, ring: str = RING, **options: str) -> str:
    """The one line that opening is refused with."""
    other = SQLiteStore(path, INLINE, **options)
    with pytest.raises(LedgerError) as caught:
        other.open(ring)
    other.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- opening


def test_a_new_file_is_made_with_its_tables(path: Path) -> None:
    """The first opening says so, the second finds what the first made; nobody else may read the file."""
    for new in (True, False):
        store = SQLiteStore(path, INLINE)
        assert new is store.open(RING)
        assert (0, 0) == store.control()
        store.close()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_the_log_is_written_ahead_and_synced_at_each_commit(store: SQLiteStore) -> None:
    """I-09: WAL and FULL as the engine itself reads them back, and deleted rows are overwritten."""
    read = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert ["wal", 2] == read
    assert 1 == store._connection.execute("PRAGMA secure_delete").fetchone()[0]


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
    path: Path, monkeypatch: pytest.MonkeyPatch, lie: str, line: str
) -> None:
    """I-09: what was asked for is read back; a store without it refuses to open."""
    connect = sqlite3.connect
    lying = type("Lying", (Lying,), {"lie": lie})
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=lying))
    assert line in refusal(path)


def test_the_store_that_must_lose_data_may_be_opened_for_that(path: Path) -> None:
    """The other level is for the trial that shows what it loses; nothing else passes it."""
    store = SQLiteStore(path, INLINE, synchronous="OFF")
    store.open(RING)
    assert 0 == store._connection.execute("PRAGMA synchronous").fetchone()[0]
    store.close()


def test_a_second_owner_is_refused(store: SQLiteStore, path: Path) -> None:
    """One process owns the file; the line names it."""
    other = SQLiteStore(path, INLINE)
    with pytest.raises(Owned, match=f"process {os.getpid()} already has the database open"):
        other.open(RING)
    store.close()
    assert other.open(RING) is False
    other.close()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no database at all, however long this text may be" * 100, "this file is no SQLite database"),
        (b"short", "this file is no SQLite database"),
    ],
)
def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes, line: str) -> None:
    """Bad input: one clear line, nothing changed."""
    path.write_bytes(content)
    assert line in refusal(path)
    assert content == path.read_bytes()


def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    """Bad input: not even its journal mode is changed."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    assert "this database is no token ledger; nothing was changed" in refusal(path)
    assert before == path.read_bytes()


def test_an_empty_file_is_a_new_database(path: Path) -> None:
    """What a crash before the first page leaves behind."""
    path.touch()
    store = SQLiteStore(path, INLINE)
    assert store.open(RING)
    store.close()


def test_a_crash_while_the_database_was_made_is_made_good(path: Path) -> None:
    """Killed between the first page and the tables' commit: the next start makes them."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ledger.recorders.sqlite import SQLiteStore\n"
        "from projections import INLINE\n"
        "SQLiteStore._create = lambda *_: os.kill(os.getpid(), 9)\n"
        f"SQLiteStore(Path(sys.argv[1]), INLINE).open({RING!r})\n"
    )
    assert -9 == subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode
    assert path.stat().st_size > 0
    store = SQLiteStore(path, INLINE)
    assert store.open(RING)
    store.close()


def test_another_key_rings_database_is_refused(path: Path) -> None:
    """A store remembers which ring it belongs to."""
    store = SQLiteStore(path, INLINE)
    store.open(RING)
    store.close()
    assert "this database belongs to another key ring" in refusal(path, ring="1" * 32)


def test_a_program_with_other_inline_tables_is_refused(path: Path) -> None:
    """No command can skip rows by being wired differently."""
    store = SQLiteStore(path, INLINE[:1])
    store.open(RING)
    store.close()
    assert "this program has other projection tables than the database" in refusal(path)


def test_a_database_of_a_later_release_is_refused(path: Path) -> None:
    """Bad input: the schema's number is named."""
    store = SQLiteStore(path, INLINE)
    store.open(RING)
    store._connection.execute("UPDATE meta SET value = '3' WHERE key = 'schema'")
    store.close()
    assert "schema 3 is not the 2 of this release" in refusal(path)


def test_a_database_that_another_program_holds_is_refused(path: Path) -> None:
    """Bad input: not waited for at start."""
    store = SQLiteStore(path, INLINE)
    store.open(RING)
    store._connection.execute("PRAGMA journal_mode=DELETE")
    store.close()
    with locked_by_another_process(path):
        assert "the database is locked by another program; stop it first" in refusal(path)
    assert SQLiteStore(path, INLINE).open(RING) is False


def test_what_an_earlier_life_left_in_the_log_is_in_the_file_before_serving(path: Path) -> None:
    """I-12: a log that cannot be check-pointed shows itself at the start, not at the next crash."""
    store = SQLiteStore(path, INLINE)
    store.open(RING)
    append(store, "audit", 3)
    kept = [(each.name, each.read_bytes()) for each in path.parent.iterdir() if each.name.startswith(path.name)]
    store.close()
    for name, content in kept:  # as a kill leaves them
        path.with_name(name).write_bytes(content)
    log = path.with_name(path.name + "-wal")
    assert log.stat().st_size > 0
    store = SQLiteStore(path, INLINE)
    store.open(RING)
    assert 0 == log.stat().st_size
    assert 3 == store.last()
    store.close()


# ---------------------------------------------------------------- what engine errors mean


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


def test_reading_and_writing_a_closed_store_is_refused(store: SQLiteStore) -> None:
    """No stale connection answers for a file that may be somebody else's by now."""
    store.close()
    for act in (store.begin, store.last, store.control, store.commit, lambda: store.head("keys")):
        with pytest.raises(StoreBroken):
            act()
    store.close()


# ---------------------------------------------------------------- transactions


def audit(v: int, question: str = "q") -> AuditRead:
    return AuditRead(
        stream="audit",
        v=v,
        at="2026-11-25T10:00:00.000000Z",
        command_id="c",
        question=question,
        requested_by="operator:o",
    )


def append(store: SQLiteStore, name: str, count: int, *, commit: bool = True) -> list[tuple[int, str]]:
    """Append events to a stream as the commit path would; their positions and bytes."""
    store.begin()
    position = store.last()
    head = store.head(name)
    v, back, prev = (head.v, head.position, head.head) if head else (0, 0, None)
    number = head.id if head else store.new_key(name)
    work, made, digest = Work(INLINE), [], prev
    for nth in range(1, count + 1):
        event: Event = audit(v + nth, name)
        stored, digest = linked(event, digest)
        work.events.append((position + nth, number, v + nth, back, stored.decode()))
        back = position + nth
        made.append((back, stored.decode()))
    assert digest is not None
    work.add_head(number, name, v + count, back, bytes.fromhex(digest), b"state", (None, None, None), v)
    store.write(work)
    if commit:
        store.commit()
    return made


def log_pages(path: Path) -> int:
    """How long the write-ahead log has ever been since it was emptied."""
    return path.with_name(path.name + "-wal").stat().st_size // sqlite_store.PAGE_BYTES


@pytest.mark.parametrize("events", [1, 40])
def test_the_log_is_moved_about_as_often_as_it_should_be(
    path: Path, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    """Whatever the batches are like, it is found out after how many rows the log has the pages that it may have; and a
    crash in between loses nothing, for the log stays."""
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 50)
    store, asked = SQLiteStore(path, INLINE), []
    store.open(RING)
    for batch in range(300):
        append(store, f"audit-{batch % 7}", events)
        if store.checkpoint_due():
            store.checkpoint()
            asked.append(batch)
    assert 25 <= log_pages(path) <= 100 + 20  # SQLite itself moves what has become twice as long
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
    path: Path, monkeypatch: pytest.MonkeyPatch, before: Callable[[SQLiteStore], None]
) -> None:
    """What SQLite moves, whoever stands in the commit waits for. Where batches have changed, where one was huge, and
    where a full disk has let none be, it is found out again after how many rows the log has its pages."""
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 50)
    store = SQLiteStore(path, INLINE)
    store.open(RING)
    append(store, "audit", 1)
    before(store)
    moved_by_us(store, path, 250, 1)
    asked, begun = moved_by_us(store, path, 150, 1)
    store.close()
    assert begun >= 3
    assert begun - 1 <= asked <= begun + 1


def test_a_log_that_cannot_be_moved_is_tried_again(store: SQLiteStore, path: Path) -> None:
    """A reader that stays holds the log back, which fails nobody; once it is gone the log is moved."""
    append(store, "audit", 5)
    with store.reader() as reader:
        reader.after(0, 1)
        append(store, "audit", 5)
        store.checkpoint()
        append(store, "audit", 500)
        store.checkpoint()
    store.checkpoint()
    busy, pages, moved = store.within().select("PRAGMA wal_checkpoint(PASSIVE)")[0]
    assert (0, pages) == (busy, moved)


def test_a_second_writer_is_refused_at_once(store: SQLiteStore, path: Path) -> None:
    """Busy is no error of the store's: it never waits, and whoever asked may ask again."""
    with locked_by_another_process(path):
        with pytest.raises(StoreBusy):
            store.begin()
        assert not store._connection.in_transaction
    assert (0, 0) == store.begin()
    store.rollback()


def test_a_head_that_has_moved_on_is_a_lost_race(store: SQLiteStore, path: Path) -> None:
    """The guard of every append: it is written only where the stream has the version it was decided on."""
    append(store, "audit", 1)
    store.begin()
    work = Work(INLINE)
    work.events.append((2, 1, 2, 1, audit(2).question))
    work.add_head(1, "audit", 3, 2, b"", b"", (None, None, None), v_before=2)
    with pytest.raises(LostRace):
        store.write(work)
    store.rollback()
    head = store.head("audit")
    assert head is not None
    assert (1, 1) == (head.v, head.position)


def test_a_rolled_back_transaction_leaves_nothing(store: SQLiteStore) -> None:
    """All of a batch, or nothing of it."""
    append(store, "audit", 2, commit=False)
    store.rollback()
    store.rollback()
    assert 0 == store.last()
    assert store.head("audit") is None
    assert (1, 2) == (store.new_key("audit"), store.new_key("more"))
    store.rollback()
    assert 1 == store.new_key("another"), "a number that no stream came to have is given again"


def test_positions_go_on_above_an_acknowledged_restore(store: SQLiteStore) -> None:
    """A position that the lost log has used is not used again."""
    append(store, "audit", 2)
    store._connection.execute("UPDATE control SET position_floor = 700")
    assert 700 == store.last()
    assert [701] == [position for position, _ in append(store, "audit", 1)]
    assert 701 == store.last()


# ---------------------------------------------------------------- reading


LENGTHS = (1, 2, 63, 64, 65, 66, 128, 129, 130, 193, 200)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_page_of_a_history_is_found_from_any_side(store: SQLiteStore, length: int) -> None:
    """The way back from the next mark or from the head, at every boundary of 64 events: the same as reading all."""
    for _ in range(length // 7):
        append(store, "audit", 3)
        append(store, "other", 5)
        append(store, "audit", 4)
    if length % 7:
        append(store, "audit", length % 7)
    append(store, "other", 9)
    edges = sorted({v for mark in range(0, length + 64, 64) for v in range(mark - 2, mark + 4)} | {1, length})
    with store.reader() as reader:
        everything = [each for each in reader.after(0, 10_000) if '"question":"audit"' in each.body]
        assert length == len(everything)
        for from_v in edges:
            for to_v in edges:
                expected = [each for each in everything if from_v <= each.v <= to_v]
                assert expected == reader.events("audit", from_v, to_v), f"{from_v} to {to_v}"
        for v in range(-1, length + 2):
            found = [each for each in everything if each.v == v]
            assert (found[0] if found else None) == reader.event_at("audit", v)


def test_the_way_back_ends_where_it_was_asked_to(store: SQLiteStore) -> None:
    """I-22: a page of a long history costs its own length and 64 steps, whatever the history's."""
    append(store, "audit", 2_000)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    costs = []
    with store.reader() as reader:
        reader._connection.set_progress_handler(step, 10)
        for v in (65, 1_000, 1_985):
            steps = 0
            assert 1 == len(reader.events("audit", v, v))
            costs.append(steps)
        reader._connection.set_progress_handler(None, 0)
    assert max(costs) < 3 * min(costs) + 100


def test_a_walk_without_marks_costs_the_whole_history(store: SQLiteStore) -> None:
    """The broken twin of the test above: without the index's entry points the way back is the history."""
    append(store, "audit", 2_000)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    store._connection.execute("DROP INDEX events_marks")
    with store.reader() as reader:
        reader._connection.set_progress_handler(step, 10)
        assert 1 == len(reader.events("audit", 65, 65))
        reader._connection.set_progress_handler(None, 0)
    assert steps > 1_000


def test_a_stream_that_nothing_ever_happened_to_has_no_events(store: SQLiteStore) -> None:
    """Nothing, not an error."""
    with store.reader() as reader:
        assert reader.stream("grant:0") is None
        assert [] == reader.events("grant:0", 1, 10)
        assert reader.event_at("grant:0", 1) is None
        assert [] == reader.after(0, 10)


def test_a_reader_sees_one_committed_moment(store: SQLiteStore) -> None:
    """What is not durable is not seen; what becomes durable meanwhile neither, until the next question."""
    append(store, "audit", 1)
    with store.reader() as reader:
        assert 1 == len(reader.after(0, 10))
        append(store, "audit", 1)
        append(store, "audit", 1, commit=False)
        assert 1 == len(reader.after(0, 10))
    with store.reader() as reader:
        assert 2 == len(reader.after(0, 10))
    store.rollback()


def test_a_reader_can_write_nothing(store: SQLiteStore) -> None:
    """Readers never write and never check-point."""
    with pytest.raises(StoreError), store.reader() as reader:
        reader.select("DELETE FROM events")
    with store.reader() as reader:
        assert [] == reader.after(0, 10)


def test_readers_are_lent_to_one_thread_each(store: SQLiteStore) -> None:
    """Many threads that ask at once each have a connection, and give it back."""
    append(store, "audit", 50)
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(100):
                with store.reader() as reader:
                    assert 50 == len(reader.after(0, 100))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failed
    assert 1 <= len(store._readers._idle) <= 6


def test_what_a_question_raises_leaves_its_reader_usable(store: SQLiteStore) -> None:
    """A refusal inside a question costs no connection and leaves no open moment behind."""
    with pytest.raises(ZeroDivisionError), store.reader() as reader:
        assert 1 // len(reader.after(0, 1))
    append(store, "audit", 1)
    with store.reader() as reader:
        assert 1 == len(reader.after(0, 10))
    assert 1 == len(store._readers._idle)


def test_emptying_the_log_waits_for_no_reader(store: SQLiteStore, path: Path) -> None:
    """It says no while somebody still reads an older moment, and yes after."""
    append(store, "audit", 5)
    with store.reader() as reader:
        reader.after(0, 1)
        append(store, "audit", 5)
        assert store.truncate_log() is False
    assert store.truncate_log() is True
    assert 0 == path.with_name(path.name + "-wal").stat().st_size
