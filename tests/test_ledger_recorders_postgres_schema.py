"""What the tables on PostgreSQL let be unique: of a grant nothing without its key, so that a grant can lie anywhere."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from ledger.recorders.postgres_connections import Address, Connection
from ledger.recorders.postgres_schema import schema
from projections import INLINE

# By table: the column that says whose a row is, and the columns of each unique index. Whoever adds a table says here
# by what its rows are told apart, and where they lie.
OF_STREAMS = {
    "streams": ("id", [["id"]]),
    "events": ("stream", [["stream", "v"]]),
    "private_grants": ("stream", [["stream"]]),
    "private_contexts": ("stream", [["stream", "commitment"]]),
    "private_reasons": ("stream", [["stream", "v"]]),
    "archived": ("stream", [["stream", "to_v"]]),
    "current_tokens_v1": ("grant_id", [["grant_id"]]),
    "reuse_incidents_v1": ("grant_id", []),
}
OF_OTHERS = {
    # Of persons, of proofs, of Idempotency-Keys: each spread by a key of its own, and touched by no refresh.
    "private_subjects": [["lookup"], ["subject_id"]],
    "single_use": [["mac"]],
    "idempotency_keys": [["mac"]],
    # Of the archive: pages of segments, with lines of many grants in each.
    "segment_pages": [["segment", "at_byte"]],
    # Of the store: few rows, the same for everybody.
    "meta": [["key"]],
    "control": [["id"]],
    "segments": [["id"], ["name"]],
    "whole_segments": [["id"], ["name"]],
    "archiver": [["id"]],
}

_UNIQUE = """
SELECT c.relname, (SELECT array_agg(a.attname::text ORDER BY k.place)
    FROM unnest(i.indkey::int[]) WITH ORDINALITY AS k (column_number, place)
    LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.column_number)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
  WHERE i.indisunique AND c.relnamespace = current_schema()::regnamespace ORDER BY 1, 2
"""
_OTHER = """
SELECT conname FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
  AND NOT contype = ANY ('{c,n,p,u}') ORDER BY 1
"""
_TABLES = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace"
_SEQUENCES = "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = current_schema()::regnamespace"


@pytest.fixture
def fresh(postgres_url: str) -> Iterator[Connection]:
    """A database with all tables, as `init` makes them."""
    with closing(Address(postgres_url).connect()) as connection:
        for statement in schema(INLINE):
            connection.execute(statement.encode())
        yield connection


def unique(connection: Connection) -> dict[str, list[list[str]]]:
    """The columns of every unique index, constraints among them, by table; a table without one too."""
    found: dict[str, list[list[str]]] = {name: [] for (name,) in connection.execute(_TABLES).fetchall()}
    for table, columns in connection.execute(_UNIQUE).fetchall():
        found[table].append(columns)
    return found


def beyond_a_stream(connection: Connection) -> list[str]:
    """Each unique index that demands something of more than one stream, as `table (columns)`; and each table that
    nobody has said anything of."""
    found = unique(connection)
    strange = [f"{table} is not known" for table in found.keys() - OF_STREAMS.keys() - OF_OTHERS.keys()]
    return sorted(strange) + [
        f"{table} ({', '.join(columns)})"
        for table, (key, _) in OF_STREAMS.items()
        for columns in found[table]
        if key not in columns
    ]


def test_whatever_is_unique_of_a_grant_contains_its_key(fresh: Connection) -> None:
    """An engine that spreads a grant's rows by its key can promise each of these on one machine. Positions have plain
    indexes, keys follow from names, so no sequence gives anything out, and no other constraint ties grants together."""
    assert {table: indexes for table, (_, indexes) in OF_STREAMS.items()} | OF_OTHERS == unique(fresh)
    assert [] == beyond_a_stream(fresh)
    assert ([], []) == (fresh.execute(_SEQUENCES).fetchall(), fresh.execute(_OTHER).fetchall())
    types = {
        fresh.execute(
            "SELECT atttypid::regtype::text FROM pg_attribute WHERE attrelid = $1::regclass AND attname = $2", each
        ).fetchone()
        for each in ((table, key) for table, (key, _) in OF_STREAMS.items())
    }
    assert {("uuid",)} == types, "what lies together must be called the same everywhere"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("CREATE UNIQUE INDEX ON streams (name)", "streams (name)"),
        ("CREATE UNIQUE INDEX ON events (position)", "events (position)"),
        ("ALTER TABLE events ADD CONSTRAINT once UNIQUE (position)", "events (position)"),
        ("CREATE UNIQUE INDEX ON private_grants (idempotency_mac)", "private_grants (idempotency_mac)"),
        ("CREATE UNIQUE INDEX ON private_grants (idempotency_mac) WHERE device IS NULL",
         "private_grants (idempotency_mac)"),
        ("ALTER TABLE reuse_incidents_v1 ADD PRIMARY KEY (position)", "reuse_incidents_v1 (position)"),
        ("CREATE TABLE more_of_grants (stream uuid, n int)", "more_of_grants is not known"),
    ],
)  # fmt: skip
def test_one_that_goes_beyond_a_grant_is_caught(fresh: Connection, change: str, expected: str) -> None:
    """The broken twins: what earlier tables had, and a table that nobody has thought about."""
    fresh.execute(change.encode())
    assert [expected] == beyond_a_stream(fresh)
