"""The same history on both engines: a SQLite store's rows, copied to PostgreSQL one by one."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from psycopg import sql

from ledger.recorders.postgres_connections import Address, Connection

_TABLES = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"


def copy_to_postgres(path: Path, url: str) -> None:
    """Make the tables of a SQLite store in an empty PostgreSQL database and copy every row."""
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        closing(Address(url).connect()) as target,
    ):
        for name, ddl in source.execute(_TABLES).fetchall():
            target.execute(_translated(ddl).encode())
            _copy_rows(source, target, name)


def _translated(ddl: str) -> str:
    ddl = re.sub(r"\s*\) STRICT(, WITHOUT ROWID)?$", ")", ddl)
    for theirs, ours in (("INTEGER", "bigint"), ("BLOB", "bytea"), ("TEXT", 'text COLLATE "C"')):
        ddl = re.sub(rf"\b{theirs}\b", ours, ddl)
    return ddl


def _copy_rows(source: sqlite3.Connection, target: Connection, table: str) -> None:
    rows = source.execute(f"SELECT * FROM {table}").fetchall()
    with target.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy:
        for row in rows:
            copy.write_row(row)
