"""SQLite's write-ahead log on its way into the file: when, how much of it at once, and who waits for the disk.

Where all of it is moved SQLite waits for the file's disk, for the log is to begin anew: with grants in no order a page
here and there, for tens of milliseconds, in which nobody is served. As long as a reader stands at an older moment
SQLite moves what is older still, waits for nothing, and lets the log go on. So it is moved in parts. A reader of ours,
the mark, stands before the last commit while what is older is moved; then a thread asks the system to bring the file to
the disk, and commits go on meanwhile. After `PARTS` of them all of it is moved, and SQLite waits for the little that is
left.

Guarantees. Whatever was moved stands in the log, too, until SQLite itself has waited for the file's disk: a crash, and
pages that the disk has lost, cost nothing. That rests on SQLite alone, the thread is for speed: behind the mark there
is a commit that was not moved, and whoever moves that, be it the next start, has SQLite wait for the file.

Ownership. All of it is the commit thread's, or of whoever has the writing connection for themselves; the mark is the
thread's from `move` until that has ended.
"""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ledger.owner import followed
from ledger.recorders.errors import StoreBroken, StoreError

PAGE_BYTES = 4096
"""Seven events to a page. Half of it writes less where very many grants are touched in turn, is no faster, and leaves a
fifth of each page empty."""

CHECKPOINT_PAGES = 1000
"""So many pages of the log are a part."""

PARTS = 3
"""All of the log, with what comes while the last part is under way: SQLite finds a page in one table up to 4,062."""

ROWS_A_PAGE_MAX = 4
"""So many rows are counted for a page at most: one huge transaction must not let the log grow for long."""

LOG_WATCHED_EVERY_COMMITS = 64

_BEGUN = slice(12, 16)
"""Where in the log's header stands how often it has begun anew (a number that only grows)."""

_to_disk = getattr(os, "fdatasync", os.fsync)


def pages_max() -> int:
    """How long the log becomes before SQLite moves it inside a commit: where `due` was mistaken."""
    return 2 * PARTS * CHECKPOINT_PAGES


def bytes_watched() -> int:
    """The log is far longer than it should be."""
    return 2 * pages_max() * PAGE_BYTES


class WriteAheadLog:
    """The log of one database, from `open` to `close`."""

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        """`connect` makes a connection that only reads."""
        self._database = path
        self._path = Path(f"{followed(path)}-wal")  # where SQLite makes it
        self._connect = connect
        self._file: int | None = None
        self._mark: sqlite3.Connection | None = None
        self._marked = False  # it stands, and what is before it was not moved yet
        self._writing: threading.Thread | None = None
        self._problem: OSError | None = None
        self._parts = 0
        self._commits = 0
        self._rows_since_part = self._rows_since_all = 0
        self._rows_a_part = CHECKPOINT_PAGES // 4
        self._was: tuple[int, int] | None = None  # when all was moved: how often it had begun, and its pages

    def open(self) -> None:
        """Raises OSError."""
        self._file = os.open(self._database, os.O_RDONLY)

    def close(self) -> None:
        """To be called after SQLite has closed the database, and `let_go`: whoever closes a file that SQLite has open
        takes SQLite's locks away."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # ------------------------------------------------------------ around a commit

    def mark(self, rows: int) -> None:
        """Before a commit of so many rows: the mark comes to stand here, where a part is due after that. `move` has to
        follow then: a mark that stays would hold back the log for good."""
        due = self._rows_since_part + rows >= self._rows_a_part
        if due and self._parts < PARTS and not self._marked and not self._is_under_way():
            with suppress(StoreError, sqlite3.Error):  # it is tried before the next commit
                self._mark = self._mark or self._connect()
                _release(self._mark)
                self._mark.execute("BEGIN")
                self._mark.execute("SELECT 1 FROM control").fetchone()  # a view of the database begins when it is used
                self._marked = True

    def unmark(self) -> None:
        """The commit has failed."""
        if self._marked and self._mark is not None:
            self._marked = False
            _release(self._mark)

    def committed(self, rows: int, connection: sqlite3.Connection) -> None:
        """The commit has succeeded. Asks for all to be moved where the log is far longer than it should be: what is met
        by `move`, such as a full disk, is no part of a commit, and where all of them fail the log would only grow."""
        self._rows_since_part += rows
        self._rows_since_all += rows
        self._commits += 1
        if self._commits % LOG_WATCHED_EVERY_COMMITS == 0:
            with suppress(FileNotFoundError):
                if os.path.getsize(self._path) > bytes_watched():
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    # ------------------------------------------------------------ moving it

    def due(self) -> bool:
        """Whether a part, or all, is to be moved, judged by the rows that were written: SQLite tells how many pages
        there are only when it is asked to move them."""
        return self._marked or self._problem is not None or (self._parts >= PARTS and not self._is_under_way())

    def move(self, connection: sqlite3.Connection) -> None:
        """Move a part where the mark stands, else all. A crash in here costs nothing: the log is read again at the next
        start. Raises StoreBroken where the system could not bring the file to the disk; sqlite3.Error."""
        if self._problem is not None:
            raise StoreBroken(f"{self._database}: cannot be brought to the disk: {self._problem.strerror}")
        if self._marked and self._mark is not None:
            self._move_part(connection, self._mark)
        else:
            self._move_all(connection)

    def _move_part(self, connection: sqlite3.Connection, mark: sqlite3.Connection) -> None:
        self._marked = False
        self._rows_since_part = 0  # also where it fails: nobody gains by trying at each commit
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            writing = threading.Thread(target=self._bring_to_disk, args=(mark,), name="write-back", daemon=True)
            writing.start()
        except RuntimeError:  # the system gives no thread now: SQLite will wait for all that there is
            _release(mark)
        except BaseException:
            _release(mark)
            raise
        else:
            self._writing = writing
        self._parts += 1

    def _bring_to_disk(self, mark: sqlite3.Connection) -> None:
        try:
            if self._file is not None:
                _to_disk(self._file)
        except OSError as error:
            self._problem = error  # SQLite asks for the same later, but some systems tell of an error only once
        finally:
            _release(mark)

    def _move_all(self, connection: sqlite3.Connection) -> None:
        self.let_go()
        rows, self._rows_since_all = self._rows_since_all, 0
        self._parts = self._rows_since_part = 0
        busy, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if not busy:
            with suppress(OSError):  # it cannot be told how long the log is
                as_found = rows * CHECKPOINT_PAGES // self._new_pages(pages)
                self._rows_a_part = max(1, min(2 * rows // PARTS, as_found, ROWS_A_PAGE_MAX * CHECKPOINT_PAGES))

    def _new_pages(self, pages: int) -> int:
        """How many pages were written since all was moved, of a log that has so many now. It goes on as long as a
        reader needs what stands in it. Else it begins anew: more than once where SQLite was there before us."""
        with open(self._path, "rb") as log:  # nobody locks this file, so closing it unlocks nothing
            begun = int.from_bytes(log.read(_BEGUN.stop)[_BEGUN], "big")
        before, pages_before = self._was or (begun - 1, 0)
        self._was = begun, pages
        return max(1, pages - pages_before if begun == before else pages + (begun - before - 1) * pages_max())

    # ------------------------------------------------------------ the mark

    def let_go(self) -> None:
        """Wait for the thread, and close the mark: it would keep the log from being emptied."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        self._marked = False
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def _is_under_way(self) -> bool:
        return self._writing is not None and self._writing.is_alive()


def _release(mark: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if mark.in_transaction:
            mark.execute("ROLLBACK")
