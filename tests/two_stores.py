"""The same history on both engines: a SQLite store's rows, copied to PostgreSQL one by one."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from psycopg import sql

from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_keys import key_of
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
        keys = {id: key_of(name) for id, name in source.execute("SELECT id, name FROM streams")}
        for (name,) in source.execute(_TABLES).fetchall():
            columns, rows = _ADAPTED.get(name, _as_they_are)(source, name)
            place = sql.SQL("{} ({})").format(sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, columns)))
            at = {"id" if name == "streams" else "stream"} & {*columns}
            with target.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(place)) as copy:
                for row in rows:
                    copy.write_row([keys[v] if c in at else v for c, v in zip(columns, row, strict=True)])
        target.execute(
            "INSERT INTO idempotency_keys SELECT idempotency_mac, stream FROM private_grants"
            " WHERE idempotency_mac IS NOT NULL"
        )
        control = source.execute("SELECT counter, serial, position_floor FROM control").fetchone()
        target.execute("UPDATE control SET counter = $1, serial = $2, position_floor = $3", control)


Rows = tuple[list[str], list[tuple[object, ...]]]


def _as_they_are(source: sqlite3.Connection, table: str) -> Rows:
    found = source.execute(f"SELECT * FROM {table}")
    return [each[0] for each in found.description], found.fetchall()


def _grants(source: sqlite3.Connection, table: str) -> Rows:
    columns, rows = _as_they_are(source, table)
    return [*columns, "begun"], [(*row, row[columns.index("stream")]) for row in rows]


def _reasons(source: sqlite3.Connection, table: str) -> Rows:
    numbers = dict(source.execute("SELECT name, id FROM streams").fetchall())
    rows = source.execute(f"SELECT event_id, salt, text FROM {table}").fetchall()
    parted = [(*event_id.rsplit("/", 1), *more) for event_id, *more in rows]
    return ["stream", "v", "salt", "text"], [(numbers[name], int(v), *more) for name, v, *more in parted]


_ADAPTED: dict[str, Callable[[sqlite3.Connection, str], Rows]] = {
    "private_grants": _grants,
    "private_reasons": _reasons,
}
