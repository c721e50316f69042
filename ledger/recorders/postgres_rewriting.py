"""Rows written anew by the store itself, in a transaction that has the log to itself: for healing, never for decisions.

The lock on authority is taken alone, so no batch is under way: what is read inside is all there is, and whoever decides
meanwhile waits. Like every transaction here it cannot stay: the guards end it after five seconds of silence.

Whoever has read a snapshot that is written anew here would go on deciding on it, and write it back. So before the end
all who decide are cut off, on whatever machine, and they know that what they knew over a lost connection counts no
more. They come back behind this transaction (`WAIT`), so they find what it has written.
"""

import time
from contextlib import closing
from typing import Final

import psycopg

from ledger.recorders.postgres_connections import DECIDES, Address
from ledger.recorders.postgres_errors import translated
from ledger.recorders.postgres_reading import PostgresReader
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.postgres_sql import numbered
from ledger.recorders.reading import POSITION_MAX
from ledger.recorders.store import Derive

WAIT: Final = f"SELECT pg_advisory_xact_lock_shared({LOCK})"
"""Returns when nobody has the log alone. Whoever decides waits once, before it reads anything over a new connection."""

PAUSE_SECONDS: Final = 0.25
"""After a step that has cut all others off: they come back, and serve, before the next one does."""

_ALONE: Final = f"SELECT pg_advisory_xact_lock({LOCK})"
# Those who only read are named without the space, as this connection is. A batch of who is cut off waits for the lock:
# it is ended there, before it has done anything.
_THEY: Final = f"datname = current_database() AND application_name LIKE '{DECIDES}%' AND pid <> pg_backend_pid()"
_CUT_OFF: Final = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_THEY}"  # noqa: S608  # words of ours alone
_OF_SNAPSHOTS: Final = " INTO streams "  # who writes one: rows of projections are nobody's memory


def rewrite(address: Address, derive: Derive) -> int:
    """Run the statements that `derive` finds, which reads inside the same transaction; how many rows they were run for.

    On a connection of its own, from any thread. Durable on return. Raises StoreError, LedgerError: nothing happened
    then, or where the connection was lost at the end nobody knows; doing it again does no harm.
    """
    with closing(address.connect()) as connection:
        try:
            connection.execute("BEGIN")
            connection.execute(_ALONE.encode())  # the snapshot of each later statement is younger than this lock
            count, snapshots = 0, False
            for statement, rows in derive(PostgresReader(connection, POSITION_MAX)):
                connection.cursor().executemany(numbered(statement).encode(), rows)
                count += len(rows)
                snapshots |= _OF_SNAPSHOTS in statement
            if snapshots:
                connection.execute(_CUT_OFF.encode())
            # A crash before this line: nothing of it happened, and who was cut off comes back to what was; after it:
            # all of it.
            connection.execute("COMMIT")
            if snapshots:
                time.sleep(PAUSE_SECONDS)
            return count
        except psycopg.Error as error:
            raise translated(error) from None
