"""The store on one SQLite file: write-ahead log, `synchronous=FULL`, one owner, one connection that writes.

Guarantees. What `commit` returned from is on the disk (I-09): WAL and FULL are set and read back at opening, never
trusted. Events, heads with their snapshots, private rows and inline projection rows of one batch are one transaction.
A stream's head is written only where it still has the version that the decision was made on. Readers are read-only
connections, so none of them ever checkpoints: SQLite before 3.51.3 can corrupt a WAL when two connections do.

Ownership of the writing connection: the event loop's between `begin` and `commit`, the commit thread's inside
`commit`. Nobody else touches it.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec

from ledger.inline import Inline
from ledger.owner import OwnerLock
from ledger.recorders import sqlite_log
from ledger.recorders.errors import (
    ControlMissing,
    HistoryBroken,
    LostRace,
    PositionsSpent,
    StoreBroken,
    StoreBusy,
    StoreError,
)
from ledger.recorders.premises import Written
from ledger.recorders.readers import Readers, any_text
from ledger.recorders.reading import Reader
from ledger.recorders.rows import Head, StoredEvent, Work
from ledger.recorders.schema import ADDED, APPLICATION_ID, SCHEMA, SCHEMA_VERSION
from ledger.recorders.sqlite_errors import translated
from ledger.recorders.sqlite_keys import Numbers
from ledger.recorders.sqlite_log import WriteAheadLog
from ledger.recorders.store import Derive
from ledger.refusals import LedgerError
from ledger.segments import Segments, folder_of

_MOVE = (
    "UPDATE streams SET v = ?, position = ?, head = ?, state = ?, generation = ?, last_redeemed_at = ?,"
    " idle_expires_at = ? WHERE id = ? AND v = ?"
)
_NO_TEXT = "what it says of its tables is not as it was written; a backup has what was there"

CACHE_KIBIBYTES = 16_384
"""Not more: whenever a page is split SQLite walks through its whole cache at the commit (it numbers pages anew for a
moment, high above the last), and what is not here the system keeps."""


class SQLiteStore:
    """One SQLite database, owned by this process from `open` to `close`. It is not opened again."""

    optimistic: Final = False
    reached: Final = 1
    power_cut: Final = None

    def __init__(self, path: Path, inline: Sequence[Inline], *, synchronous: str = "FULL") -> None:
        """`synchronous` other than FULL is for the test that must lose data with it; `open` then does not insist."""
        self.path = path
        self.inline = tuple(inline)
        self._synchronous = synchronous
        self._statements = [[write.sql for write in each.writes] for each in self.inline]
        self._owner: OwnerLock | None = None
        self._writer: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None  # as it was when it was opened
        self.segments = Segments(folder_of(path))
        self._readers = Readers(path, self.segments)
        self._log = WriteAheadLog(path, self._readers.connect)
        self._rows_written = 0
        self._numbers = Numbers(self._select)

    # ------------------------------------------------------------ opening and closing

    def open(self, ring_id: str) -> bool:
        """Take the file, make or check its tables, read back its durability. True where it was new.

        Raises LedgerError: owned by another process, not to be written, no ledger database, another key ring's, other
        inline tables, locked, or a write-ahead log that does not check-point.
        """
        self._owner = OwnerLock.take(self.path)
        try:
            return self._open(ring_id)
        except sqlite3.Error as error:
            self.close()
            problem = translated(error)
            if isinstance(problem, StoreBusy):
                raise LedgerError(f"{self.path}: the database is locked by another program; stop it first") from None
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
                raise LedgerError(f"{self.path}: this file is no SQLite database") from None
            if isinstance(problem, HistoryBroken):  # a rebuild, too, must open it first
                raise LedgerError(f"{self.path}: cannot be opened: {_NO_TEXT}") from None
            raise LedgerError(f"{self.path}: cannot be opened: {problem}") from None
        except UnicodeDecodeError:  # of the engine's own words, where they quote the definition of a table
            self.close()
            raise LedgerError(f"{self.path}: cannot be opened: {_NO_TEXT}") from None
        except BaseException:
            self.close()
            raise

    def _open(self, ring_id: str) -> bool:
        if not self.path.exists():
            self.path.touch(mode=0o600)
        self._file = self.path.stat()
        # SQLite opens a file that it may only read, and says so at the first commit.
        for needed in (self.path, Path(os.path.realpath(self.path)).parent):
            if not os.access(needed, os.W_OK):
                raise LedgerError(f"{needed}: may not be written by this user, which the database needs")
        try:
            self._log.open()
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be opened: {error.strerror}") from None
        writer = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=1.0, cached_statements=256
        )
        self._writer = writer
        application_id = writer.execute("PRAGMA application_id").fetchone()[0]
        new = not application_id and not writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not new and application_id != APPLICATION_ID:
            raise LedgerError(f"{self.path}: this database is no token ledger; nothing was changed")
        writer.execute(f"PRAGMA page_size={sqlite_log.PAGE_BYTES}")  # heeded while the file is empty
        mode = writer.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        writer.execute(f"PRAGMA synchronous={self._synchronous}")
        writer.execute("PRAGMA secure_delete=ON")
        writer.execute(f"PRAGMA cache_size=-{CACHE_KIBIBYTES}")
        writer.execute(f"PRAGMA wal_autocheckpoint={sqlite_log.pages_max()}")
        # A log that was long is cut as it begins anew.
        writer.execute(f"PRAGMA journal_size_limit={sqlite_log.bytes_watched()}")
        if mode != "wal" or writer.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            raise LedgerError(f"{self.path}: write-ahead logging cannot be switched on here (journal mode {mode})")
        if self._synchronous == "FULL" and writer.execute("PRAGMA synchronous").fetchone()[0] != 2:
            raise LedgerError(f"{self.path}: synchronous=FULL cannot be switched on here")
        if new:
            self._create(writer, ring_id)
        else:
            self._check(writer, ring_id)
        # What an earlier life of the database left in the log must reach the file before anything is served: a log
        # that cannot be check-pointed would only show itself at the next crash.
        busy, _, _ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LedgerError(
                f"{self.path}: the write-ahead log cannot be check-pointed; another program uses the file"
            )
        writer.execute("PRAGMA busy_timeout=0")
        return new

    def _create(self, writer: sqlite3.Connection, ring_id: str) -> None:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute(f"PRAGMA application_id={APPLICATION_ID}")
        for statement in SCHEMA:
            writer.execute(statement)
        for each in self.inline:
            for statement in each.ddl:
                writer.execute(statement)
        writer.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        writer.execute("INSERT INTO meta VALUES ('ring_id', ?)", (ring_id,))
        writer.execute("INSERT INTO meta VALUES ('inline', ?)", (self._inline_names(),))
        writer.execute("COMMIT")  # A crash before this line leaves a file without tables: the next start makes them.

    def _check(self, writer: sqlite3.Connection, ring_id: str) -> None:
        meta = dict(writer.execute("SELECT key, value FROM meta").fetchall())
        if meta.get("schema") != str(SCHEMA_VERSION):
            raise LedgerError(f"{self.path}: schema {meta.get('schema')} is not the {SCHEMA_VERSION} of this release")
        if meta.get("ring_id") != ring_id:
            raise LedgerError(
                f"{self.path}: this database belongs to another key ring; give it the one it was made with"
            )
        if meta.get("inline") != self._inline_names():
            raise LedgerError(
                f"{self.path}: this program has other projection tables than the database ({meta.get('inline')})"
            )
        for statement in ADDED:
            writer.execute(statement)
        self._check_archive(writer)

    def _check_archive(self, writer: sqlite3.Connection) -> None:
        """Events that were moved are nowhere else: without their segments nobody is served (I-23)."""
        for name, size in writer.execute("SELECT name, bytes FROM segments WHERE finished < 2 ORDER BY id").fetchall():
            try:
                found = self.segments.bytes_of(name)
            except OSError as error:  # of another user, for one, who archived while no server ran
                raise LedgerError(f"{self.segments.folder}: cannot be looked into: {error.strerror}") from None
            if found != size:
                problem = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise LedgerError(f"{self.segments.folder}: the archive segment {name} {problem}; put it back")

    def _inline_names(self) -> str:
        return msgspec.json.encode([each.name for each in self.inline]).decode()

    def close(self) -> None:
        """Give the file back for good. Safe to call twice, and in any state."""
        self._readers.close()
        self._log.let_go()
        if self._writer is not None:
            self._writer.close()  # the last connection: SQLite moves the log
            self._writer = None
        self._log.close()
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    # ------------------------------------------------------------ the writing connection

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._writer is None:
            raise StoreBroken("the database is closed")
        return self._writer

    def run(self, act: Callable[[], None]) -> None:
        """Run what decides on the event loop: here nothing that it asks takes long."""
        act()

    def begin(self) -> tuple[int, int]:
        """Take the write lock; return the control counter and serial (0: none). StoreBusy at once: never waits.

        No transaction is open where it raises.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._numbers.begin()
            return self.control()
        except sqlite3.Error as error:
            raise translated(error) from None
        except StoreError:
            self.rollback()
            raise

    def control(self) -> tuple[int, int]:
        """The control counter and the clients file's last serial (0: none), as of now or of the open transaction.
        Raises ControlMissing."""
        for counter, serial in self._select("SELECT counter, serial FROM control", ()):
            return counter, serial
        raise ControlMissing

    def last(self) -> int:
        """The last position, 0 where there is none yet."""
        try:
            position = self._connection.execute("SELECT ifnull(max(position), 0) FROM events").fetchone()[0]
            floor = self._connection.execute("SELECT ifnull(max(position_floor), 0) FROM control").fetchone()[0]
            return int(max(position, floor))
        except sqlite3.Error as error:
            raise translated(error) from None

    def new_key(self, name: str) -> int:
        """The number of a stream that begins in the open transaction."""
        return self._numbers.new(name)

    def end(self) -> int:
        """The last position of the log; 0 where there is none yet."""
        return self.last()

    def head(self, name: str) -> Head | None:
        """The head of a stream as the open transaction sees it."""
        return self.within().stream(name)

    def event_at(self, name: str, v: int) -> StoredEvent | None:
        """One event of a stream as the open transaction sees it."""
        return self.within().event_at(name, v)

    def within(self) -> Reader:
        """Reading on the writing connection, inside the open transaction: for decisions, never for long questions."""
        return Reader(self._connection, self.segments)

    def _select(self, sql: str, parameters: Sequence[object]) -> list[Any]:
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translated(error) from None

    def write(self, work: Work) -> None:
        """Put a batch's work into the open transaction. LostRace where a head had moved: nothing may be kept then."""
        connection = self._connection
        try:
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", work.events)
            self._write_heads(connection, work)
            for number, kind in sorted(work.rows):
                connection.executemany(self._statements[number][kind], work.rows[number, kind])
            for statement, alike in groupby(work.private, itemgetter(0)):
                connection.executemany(statement, [parameters for _, parameters in alike])
            self._rows_written = len(work.events) + len(work.moved) + len(work.made) + len(work.private)
            if work.control is not None:
                connection.execute("UPDATE control SET counter = ?", (work.control,))
            if work.serial is not None:
                connection.execute("UPDATE control SET serial = ?", (work.serial,))
        except OverflowError:  # of a position, when the log was altered beneath us; all else was read from there
            raise PositionsSpent from None
        except sqlite3.Error as error:
            raise translated(error) from None

    def _write_heads(self, connection: sqlite3.Connection, work: Work) -> None:
        if work.made:  # in the order of their numbers, so that pages are filled and not split
            connection.executemany("INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", sorted(work.made))
        if work.moved:
            written = connection.executemany(_MOVE, work.moved).rowcount
            if written != len(work.moved):
                raise LostRace("a stream had moved on")

    def commit(self) -> None:
        """Make the open transaction durable. A crash before it returns: all of it or nothing. The commit thread's.

        Raises StoreBroken also where the file has been removed or replaced: SQLite goes on in what nobody finds again.
        """
        self._log.mark(self._rows_written)
        try:
            self._commit()
        except StoreError:
            self._log.unmark()
            raise

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
            self._check_place()
            self._log.committed(self._rows_written, self._connection)
        except sqlite3.Error as error:
            raise translated(error) from None

    def _check_place(self) -> None:
        with suppress(OSError):
            if self._file is not None and os.path.samestat(os.stat(self.path), self._file):
                return
        raise StoreBroken(f"{self.path} is not there any more, or another file")

    def checkpoint_due(self) -> bool:
        """Whether a part of the log, or all of it, is to be moved (`sqlite_log.py`)."""
        return self._log.due()

    def checkpoint(self) -> None:
        """Move the log, or a part of it, into the file. The commit thread's, after a commit was told: else whoever
        stood in it would wait for it. A crash in here costs nothing.

        Raises StoreBroken after an input/output error: nothing that is read may be believed then. What was committed is
        in the log all the same.
        """
        try:
            self._log.move(self._connection)
        except sqlite3.Error as error:
            if isinstance(problem := translated(error), StoreBroken):
                raise problem from None

    def is_there(self, work: Work) -> Written | None:
        """After a commit that reported an error: whether what we wrote is there all the same, asked on a connection
        that did not write. After an input/output error nothing that is read may be believed: do not ask then."""
        if work.events:
            self.rollback()
            with self.reader() as reader:
                last = reader.after(work.events[-1][0] - 1, 1)
            if last and last[0].body == work.events[-1][4]:
                return Written(0, frozenset())
        return None

    def rollback(self) -> None:
        """Forget the open transaction, if there is one."""
        self._numbers.begin()
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise translated(error) from None

    def truncate_log(self) -> bool:
        """Move the write-ahead log into the file and empty it, so that what was erased is gone from it too."""
        try:
            self._log.let_go()
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        except sqlite3.Error as error:
            raise translated(error) from None

    def rewrite(self, derive: Derive) -> int:
        """Run the statements that `derive` finds, which reads inside the same transaction; how many rows they were run
        for. Durable on return. On the event loop between two batches. Raises StoreError; nothing happened then."""
        self.begin()
        try:
            work = Work(self.inline)
            with any_text(self._connection):
                work.private = [(statement, row) for statement, rows in derive(self.within()) for row in rows]
            self.write(work)
            # A crash before this line: nothing of it happened; after it: all of it. Nobody comes to move the log after
            # it, and a mark would keep SQLite from it.
            self._commit()
        except BaseException:
            self.rollback()
            raise
        return len(work.private)

    # ------------------------------------------------------------ readers

    def reader(self) -> AbstractContextManager[Reader]:
        """A read-only view of one committed moment, for one thread at a time; it sees every acknowledged write."""
        return self._readers.reader()

    def settled(self) -> AbstractContextManager[Reader]:
        """As `reader`: with one writer nothing is ever on its way when a moment is looked at."""
        return self._readers.settled()
