"""The same history on both engines: a SQLite store's rows, copied to PostgreSQL one by one."""

import sqlite3
from contextlib import closing
from pathlib import Path

from psycopg import sql

from ledger.recorders.postgres_connections import Address, Connection
from ledger.recorders.postgres_schema import schema
from projections import INLINE

_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'control'"


def copy_to_postgres(path: Path, url: str) -> None:
    """Make the tables of a SQLite store in an empty PostgreSQL database and copy every row."""
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        closing(Address(url).connect()) as target,
    ):
        for statement in schema(INLINE):
            target.execute(statement.encode())
        for (name,) in source.execute(_TABLES).fetchall():
            _copy_rows(source, target, name)
        control = source.execute("SELECT counter, serial, position_floor FROM control").fetchone()
        target.execute("UPDATE control SET counter = $1, serial = $2, position_floor = $3", control)


def _copy_rows(source: sqlite3.Connection, target: Connection, table: str) -> None:
    found = source.execute(f"SELECT * FROM {table}")
    columns = sql.SQL(", ").join(sql.Identifier(each[0]) for each in found.description)
    with target.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)) as copy:
        for row in found:
            copy.write_row(row)
