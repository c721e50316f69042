"""Read-only connections to a PostgreSQL store, lent to one thread at a time, each for one committed moment.

What was acknowledged before a reader is lent, by whatever node, is seen by it: also in log order, below the horizon.
For that a reader waits until those batches have ended that began before one whose outcome it sees: milliseconds, and
never longer than the guards let a transaction live. A transaction of somebody else's in the same cluster that writes
and stays open holds the horizon back, and with it all readers: they say so then.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Final

import psycopg

from ledger.recorders.errors import StoreBroken, StoreBusy, StoreUnreachable
from ledger.recorders.postgres_connections import SECONDS_MAX, Address, Connection
from ledger.recorders.postgres_errors import translated
from ledger.recorders.postgres_reading import PostgresReader
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.postgres_sql import POSITION_BITS
from ledger.recorders.reading import POSITION_MAX
from ledger.segments import BlocksInMemory

CONNECTIONS_MAX: Final = 6
PAUSE_SECONDS: Final = 0.002

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# In one message with BEGIN: the first statement of the transaction takes its snapshot.
_MOMENT: Final = (
    f"SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << {POSITION_BITS}) + position_offset,"  # noqa: S608  # words of ours alone
    " (SELECT coalesce(max(position), 0) FROM events) FROM control"
)

# All in one message: frozen at whatever line, this process does not keep the lock. Batches wait for those under way.
_SETTLED: Final = f"BEGIN; SELECT pg_advisory_lock({LOCK}); COMMIT; {_BEGIN}; SELECT pg_advisory_unlock({LOCK})"
_HELD_BACK: Final = "a transaction that writes has been open for seconds: see pg_stat_activity, pg_prepared_xacts"
_HOLDS: Final = "SELECT to_regclass('events') IS NOT NULL AND to_regclass('current_tokens_v1') IS NOT NULL"


class PostgresReaders:
    """At most `connections_max` connections, made when they are needed. Safe to use from any thread."""

    def __init__(self, address: Address, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self.in_memory = BlocksInMemory()
        self._address = address
        self._idle: list[Connection] = []
        self._places = threading.BoundedSemaphore(connections_max)
        self._closed = False

    def __str__(self) -> str:
        return str(self._address.place)

    def reader(self) -> AbstractContextManager[PostgresReader]:
        """A view of one committed moment; it sees every write that was acknowledged before. Raises StoreError."""
        return self._lent(self._begin)

    def settled(self) -> AbstractContextManager[PostgresReader]:
        """A view of a moment at which no batch was under way, so that whatever comes later stands behind all that is
        seen; it has no horizon. Batches wait an instant for it. Raises StoreError."""
        return self._lent(_begin_settled)

    @contextmanager
    def _lent(self, begin: Callable[[Connection], int]) -> Iterator[PostgresReader]:
        if self._closed:
            raise StoreBroken("the database is closed")
        if not self._places.acquire(timeout=SECONDS_MAX):
            raise StoreBusy("all connections for reading are in use")
        try:
            connection, horizon = self._begun(begin)
            try:
                yield PostgresReader(connection, horizon, self.in_memory)
            except psycopg.Error as error:
                raise translated(error) from None
            finally:
                self._give_back(connection)
        finally:
            self._places.release()

    def holds_ledger(self) -> bool:
        """Whether this database holds a token ledger's tables. Raises StoreError, LedgerError."""
        with closing(self._address.connect()) as connection:
            try:
                row = connection.execute(_HOLDS).fetchone()
            except psycopg.Error as error:
                raise StoreUnreachable(f"{self._address.place}: {translated(error)}") from None
        return row is not None and row[0]

    def _begun(self, begin: Callable[[Connection], int]) -> tuple[Connection, int]:
        """A connection in a transaction, and its horizon."""
        while self._idle:
            try:
                connection = self._idle.pop()  # not after a look: other threads take one, too
            except IndexError:
                break
            try:
                return connection, begin(connection)
            except psycopg.OperationalError as error:
                connection.close()  # the server went away meanwhile: so did all others
                if not isinstance(translated(error), StoreUnreachable):
                    raise translated(error) from None
            except BaseException:
                connection.close()
                raise
        connection = self._address.connect()
        try:
            return connection, begin(connection)
        except psycopg.Error as error:
            connection.close()
            raise translated(error) from None
        except BaseException:
            connection.close()
            raise

    def _begin(self, connection: Connection) -> int:
        """Begin at a moment whose horizon lies above all that was seen in log order when we came."""
        deadline, pause = time.monotonic() + SECONDS_MAX, PAUSE_SECONDS
        seen: int | None = None
        while True:
            cursor = connection.execute(f"{_BEGIN}; {_MOMENT}", prepare=False)
            cursor.nextset()
            row = cursor.fetchone()
            assert row is not None
            horizon, last = row
            seen = last if seen is None else seen
            if seen < horizon:
                return int(horizon)
            connection.execute("ROLLBACK", prepare=False)
            if time.monotonic() > deadline:
                raise StoreBusy(_HELD_BACK)
            time.sleep(pause)

    def _give_back(self, connection: Connection) -> None:
        try:
            connection.execute("ROLLBACK", prepare=False)
        except psycopg.Error:
            connection.close()  # the next question gets a fresh one
            return
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close what is not lent; what is lent, when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _begin_settled(connection: Connection) -> int:
    connection.execute(_SETTLED, prepare=False)
    return POSITION_MAX
