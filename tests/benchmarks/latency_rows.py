"""The rows that a refresh writes, and nothing but them: noted on a store, and written by plain SQL on a bare one."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg

from ledger.recorders.postgres import PostgresStore
from ledger.recorders.premises import BASE
from ledger.recorders.rows import StreamKey, Work
from ledger.recorders.sqlite import CACHE_KIBIBYTES, SQLiteStore
from ledger.recorders.sqlite_log import CHECKPOINT_PAGES
from projections import INLINE


class NotingSQLite(SQLiteStore):
    """Keeps what it is given to write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, INLINE)
        self.given: list[Work] = []

    def write(self, work: Work) -> None:
        self.given.append(work)
        super().write(work)


class NotingPostgres(PostgresStore):
    """Keeps what it is given to write."""

    def __init__(self, url: str) -> None:
        super().__init__(url, INLINE)
        self.given: list[Work] = []

    def write(self, work: Work) -> None:
        self.given.append(work)
        super().write(work)


Noting = NotingSQLite | NotingPostgres


class Event(NamedTuple):
    """A row of `events`."""

    position: int
    stream: StreamKey
    v: int
    back: int
    body: str


class Head(NamedTuple):
    """What of a row of `streams` is written anew, of which stream."""

    v: int
    position: int
    head: bytes
    state: bytes
    generation: object
    last_redeemed_at: object
    idle_expires_at: object
    id: StreamKey


class Rows(NamedTuple):
    """What one refresh writes."""

    events: tuple[Event, Event]
    head: Head


def rows_of(work: Work) -> Rows:
    """The rows of a batch of one refresh. On PostgreSQL positions are made up here: there they follow from a
    transaction's id."""
    first, second = (Event(*each) for each in work.events)
    ((v, position, head, state, generation, redeemed, expires, id, _),) = work.moved
    assert isinstance(v, int)
    assert isinstance(position, int)
    assert isinstance(head, bytes)
    assert isinstance(state, bytes)
    assert isinstance(id, int | str)
    if position >= BASE:
        first, second = first._replace(position=2 * v, back=2 * v - 2), second._replace(position=2 * v + 1, back=2 * v)
        position = second.position
    return Rows((first, second), Head(v, position, head, state, generation, redeemed, expires, id))


class BareOnSQLite:
    """One connection to a file, as durable as ours."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in (
            *("journal_mode=WAL", "synchronous=FULL"),
            *(f"cache_size=-{CACHE_KIBIBYTES}", f"wal_autocheckpoint={CHECKPOINT_PAGES}"),
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        assert self._connection.execute("PRAGMA synchronous").fetchone() == (2,)

    def write(self, rows: Rows) -> None:
        """One transaction, durable on return."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows.events)
        moved = connection.execute(
            "UPDATE streams SET v = ?, position = ?, head = ?, state = ?, generation = ?, last_redeemed_at = ?,"
            " idle_expires_at = ? WHERE id = ?",
            rows.head,
        )
        assert moved.rowcount == 1
        connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


class BareOnPostgreSQL:
    """One connection to a database, as durable as ours: a transaction is one prepared statement there and back."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def write(self, rows: Rows) -> None:
        """One transaction, durable on return."""
        first, second = rows.events
        done = self._connection.execute(
            "WITH written AS (INSERT INTO events (position, stream, v, back, body)"
            " VALUES (%s, %s, %s, %s, %s), (%s, %s, %s, %s, %s))"
            " UPDATE streams SET v = %s, position = %s, head = %s, state = %s, generation = %s, last_redeemed_at = %s,"
            " idle_expires_at = %s WHERE id = %s",
            (*first, *second, *rows.head),
            prepare=True,
        )
        assert done.rowcount == 1

    def close(self) -> None:
        self._connection.close()


def bare_on(database: str) -> BareOnSQLite | BareOnPostgreSQL:
    """A connection to a file, or to a database by its URL."""
    return BareOnPostgreSQL(database) if "://" in database else BareOnSQLite(Path(database))


def events_on(url: str) -> int:
    """How many events lie in a PostgreSQL database."""
    with closing(psycopg.connect(url)) as connection:
        found = connection.execute("SELECT count(*) FROM events").fetchone()
    assert found is not None
    return int(found[0])
