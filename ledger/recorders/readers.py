"""Read-only connections to a SQLite store, lent to one thread at a time. They never write and never check-point.

Whoever may read the file may have them, beside the process that owns it: a writer never waits for a reader.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from ledger.recorders.errors import StoreBroken
from ledger.recorders.reading import Reader
from ledger.recorders.schema import APPLICATION_ID
from ledger.recorders.sqlite_errors import translated
from ledger.segments import Segments, folder_of


@contextmanager
def any_text(connection: sqlite3.Connection) -> Iterator[None]:
    """Let a connection give also texts that a flipped bit has made none: what is no UTF-8 in them is escaped."""
    connection.text_factory = lambda stored: stored.decode(errors="backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str


class Readers:
    """As many connections as threads ever asked at once, made when they are needed. Safe to use from any thread."""

    def __init__(self, path: Path, segments: Segments | None = None) -> None:
        """`segments` are those of the database, where somebody holds them already."""
        self._path = path
        self._segments = segments or Segments(folder_of(path))
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    def __str__(self) -> str:
        return str(self._path)

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A view of one committed moment; it sees every write that was acknowledged before. Raises StoreError."""
        with self._lent() as connection:
            yield Reader(connection, self._segments)

    @contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise StoreBroken("the database is closed")
        try:
            connection = self._idle.pop()  # not after a look: other threads take one, too
        except IndexError:
            connection = self.connect()
        try:
            connection.execute("BEGIN")
            yield connection
        except sqlite3.Error as error:
            raise translated(error) from None
        finally:
            self._give_back(connection)

    @contextmanager
    def settled(self) -> Iterator[Reader]:
        """A view of a moment at which nothing was on its way into the log: with one writer that is any moment. Whoever
        looks at everything is also told what is no text any more."""
        with self._lent() as connection, any_text(connection):
            yield Reader(connection, self._segments)

    def holds_ledger(self) -> bool:
        """Whether this database is a token ledger's. Raises StoreError."""
        with self.reader() as reader:
            ((application_id,),) = reader.select("PRAGMA application_id")
        return application_id == APPLICATION_ID

    def _give_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()  # the next question gets a fresh one
            return
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def connect(self) -> sqlite3.Connection:
        """A connection that only reads, of whoever asks for it. Raises StoreError."""
        uri = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        try:
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=1.0)
            connection.execute("PRAGMA query_only=ON")
            return connection
        except sqlite3.Error as error:
            raise translated(error) from None

    def close(self) -> None:
        """Close what is not lent; what is lent, when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
