"""The same trial on either store: with the fixture `each_store` a test is run on SQLite, and then on PostgreSQL.

A test names a database by its path all the same. On PostgreSQL the path stands for a database of its own; whoever
checks it is given a copy of its tables in SQLite, so that what is checked, and how, is one and the same.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from ledger.inline import Inline
from ledger.recorders import postgres_append, postgres_moves, postgres_refresh
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_readers import PostgresReaders
from ledger.recorders.readers import Readers
from ledger.recorders.schema import SCHEMA
from ledger.segments import folder_of
from projections import INLINE
from tests.postgres import Server

_servers: list[Server] = []
_urls: dict[Path, str] = {}
_templates: dict[Path, str] = {}  # by the server's folder
_of_nobody: set[str] = set()

NOBODY = "nobody's"
"""The key ring of a copy of the template, until one is told."""

_made_with: list[tuple[str, ...]] = []
"""The functions that templates have, as they were written."""

_TELL = "UPDATE meta SET value = %s WHERE key = 'ring_id' AND value = %s"


class MadeStore(PostgresStore):
    """A PostgreSQL store whose tables are made when it is first opened, as SQLite's are, or were made before."""

    def __init__(self, url: str, inline: Sequence[Inline]) -> None:
        super().__init__(url, inline)
        self.url = url

    def open(self, ring_id: str) -> None:
        if self.url in _of_nobody:
            _of_nobody.remove(self.url)
            with psycopg.connect(self.url, autocommit=True) as connection:
                told = connection.execute(_TELL, (ring_id, NOBODY))
                assert 1 == told.rowcount
            if _functions() == _made_with[0]:
                super().open(ring_id)
                return
        self.init(ring_id)
        super().open(ring_id)


def _functions() -> tuple[str, ...]:
    """The functions as they are written now: a trial may have them say something else."""
    return postgres_append._FUNCTION, postgres_moves._FUNCTION, postgres_refresh._FUNCTION


def made_database(server: Server) -> str:
    """A database with the tables that `init` makes, for the first key ring that it is opened with: a copy of one that a
    server's first caller has made, because that costs a fifth."""
    if (template := _templates.get(server.folder)) is None:
        url = server.create_database()
        PostgresStore(url, INLINE).init(NOBODY)
        _made_with[:] = [_functions()]
        template = _templates[server.folder] = _name(url)
    url = server.create_database(template)
    _of_nobody.add(url)
    return url


def postgres_store(path: Path) -> PostgresStore | None:
    """The PostgreSQL store that a path stands for; None where the test is one of SQLite's."""
    if path not in _urls:
        if not _servers:
            return None
        _urls[path] = made_database(_servers[-1])
    return MadeStore(_urls[path], INLINE)


def url_of(path: Path) -> str | None:
    """The PostgreSQL database that a path stands for, if any."""
    return _urls.get(path)


def stand_for(path: Path, url: str) -> None:
    """Let a path stand for a database that exists until the test is over."""
    _urls[path] = url


def back_up(path: Path, to: Path) -> None:
    """Copy a database that nobody has open."""
    if (url := _urls.get(path)) is None:
        shutil.copy(path, to)
    else:
        _urls[to] = _servers[-1].create_database(_name(url))


def put_back(backup: Path, path: Path) -> None:
    """Put a backup in the place of a database that nobody has open."""
    if path in _urls:
        _servers[-1].drop_database(_urls.pop(path))
    back_up(backup, path)


def lose(path: Path) -> None:
    """Let there be no database any more, which nobody has open."""
    if path in _urls:
        _servers[-1].drop_database(_urls.pop(path))
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()


def readers_of(path: Path) -> Readers | PostgresReaders:
    """Readers of a database, whoever has it open."""
    url = _urls.get(path)
    return Readers(path) if url is None else PostgresReaders(Address(url))


def alter(path: Path, sql: str) -> int:
    """Change a database past the ledger, by a statement that both engines read; how many rows that were."""
    if (url := _urls.get(path)) is None:
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(sql).rowcount
    with psycopg.connect(url, autocommit=True) as postgres:
        return postgres.execute(sql.encode()).rowcount


@contextmanager
def archive_folder(path: Path) -> Iterator[Path]:
    """A folder with the segments of a database's archive as files: the one beside it, or made of its rows."""
    if (url := _urls.get(path)) is None:
        yield folder_of(path)
        return
    with tempfile.TemporaryDirectory() as made, psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT w.name, string_agg(b.bytes, ''::bytea ORDER BY b.at_byte) FROM whole_segments w"
            " JOIN segment_pages b ON b.segment = w.id GROUP BY w.name"
        )
        for name, data in rows:
            (Path(made) / name).write_bytes(data)
        yield Path(made)


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def copy_into(connection: sqlite3.Connection, url: str) -> None:
    """Make the ledger's tables in SQLite and copy what a PostgreSQL database holds, all of one moment."""
    for statement in (*SCHEMA, *(statement for each in INLINE for statement in each.ddl)):
        connection.execute(statement)
    connection.execute("DELETE FROM control")
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    with closing(psycopg.connect(url)) as source:
        source.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        numbers = _numbers(source)
        for table in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            rows = source.execute(f"SELECT {', '.join(columns)} FROM {_FROM.get(table, table)}".encode()).fetchall()
            marks = ", ".join("?" * len(columns))
            keys = {
                at for at, column in enumerate(columns) if column == "stream" or (table, column) == ("streams", "id")
            }
            plain = [[numbers[each] if at in keys else _plain(each) for at, each in enumerate(row)] for row in rows]
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", plain)


_FROM = {
    "private_reasons": "(SELECT s.name || '/' || r.v AS event_id, salt, text FROM private_reasons r"
    " JOIN streams s ON s.id = r.stream) AS r"
}


def _numbers(source: psycopg.Connection[tuple[object, ...]]) -> dict[object, int]:
    """The number that each stream would have on SQLite: in the order in which they began."""
    rows = source.execute(
        "SELECT s.id FROM streams s LEFT JOIN (SELECT stream, min(position) AS first FROM"
        " (SELECT stream, position FROM events UNION ALL SELECT stream, from_position FROM archived) AS all_of_them"
        " GROUP BY stream) AS f ON f.stream = s.id ORDER BY f.first"
    ).fetchall()
    return {key: number for number, (key,) in enumerate(rows, 1)}


def _plain(value: object) -> object:
    return value.hex if isinstance(value, UUID) else value


@pytest.fixture(params=["sqlite", "postgres"])
def each_store(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test twice, its ledgers on either store; the name of the one it is run on."""
    if request.param == "postgres":
        yield from _on(request.getfixturevalue("postgres"))
    else:
        yield "sqlite"


only_on_postgres = pytest.mark.parametrize("each_store", ["postgres"], indirect=True)
only_on_sqlite = pytest.mark.parametrize("each_store", ["sqlite"], indirect=True)
"""For a test of a file that is run on either store, about what only SQLite has."""


@pytest.fixture
def on_postgres(postgres: Server) -> Iterator[str]:
    """Run the test with its ledgers on PostgreSQL alone."""
    yield from _on(postgres)


def _on(server: Server) -> Iterator[str]:
    _servers.append(server)
    try:
        yield "postgres"
    finally:
        _servers.pop()
        while _urls:
            server.drop_database(_urls.popitem()[1])


@contextmanager
def standing_for(path: Path, url: str) -> Iterator[None]:
    """Let a path stand for a database that somebody else has made and keeps."""
    _urls[path] = url
    try:
        yield
    finally:
        del _urls[path]
