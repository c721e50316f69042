"""Rows written anew by the store itself, in a transaction that has the log to itself: for healing, never for decisions.

The lock on authority is taken alone, so no batch is under way: what is read inside is all there is, and whoever decides
meanwhile waits. Like every transaction here it cannot stay: the guards end it after five seconds of silence.
"""

from contextlib import closing
from typing import Final

import psycopg

from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_errors import translated
from ledger.recorders.postgres_reading import PostgresReader
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.postgres_sql import numbered
from ledger.recorders.reading import POSITION_MAX
from ledger.recorders.store import Derive

_ALONE: Final = f"SELECT pg_advisory_xact_lock({LOCK})"


def rewrite(address: Address, derive: Derive) -> int:
    """Run the statements that `derive` finds, which reads inside the same transaction; how many rows they were run for.

    On a connection of its own, from any thread. Durable on return. Raises StoreError, LedgerError: nothing happened
    then, or where the connection was lost at the end nobody knows; doing it again does no harm.
    """
    with closing(address.connect()) as connection:
        try:
            connection.execute("BEGIN")
            connection.execute(_ALONE.encode())  # the snapshot of each later statement is younger than this lock
            count = 0
            for statement, rows in derive(PostgresReader(connection, POSITION_MAX)):
                connection.cursor().executemany(numbered(statement).encode(), rows)
                count += len(rows)
            connection.execute("COMMIT")
            return count
        except psycopg.Error as error:
            raise translated(error) from None
