"""The tables of the PostgreSQL store: as SQLite's, but for how many write at once.

Columns repeat members of events, they never replace them. Texts compare as bytes (collation C), so that orders and
ranges are those of SQLite. Rows that a refresh changes have room beside them and no index on what it changes: their
new version goes into the same page and no index is touched.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from ledger.inline import Inline
from ledger.recorders import archived, postgres_archive
from ledger.recorders.schema import MARK_EVERY_V

SCHEMA_VERSION: Final = 5

LOCK: Final = 0x544C4447
"""The advisory lock on authority (the letters TLDG): every batch shares it, one that changes authority has it alone."""

END: Final = "SELECT greatest((SELECT max(position) FROM events), (SELECT position_floor FROM control))"
"""Asks for the last position of the log, or the one that it goes on above; NULL where there is no position yet."""

SUBJECTS: Final = "name >= 'subject:' AND name < 'subject;'"
"""The streams of persons. Whoever asks for one in these very words, too, is led by an index of few entries."""

_SCHEMA: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # One row. `counter` moves with every change of authority; `serial` is the clients file's last. A position is made
    # of its transaction's id and `position_offset`, which lifts positions above `position_floor` where a backup was
    # put back, or above the log's own end where that was moved into another cluster.
    "CREATE TABLE control (id INTEGER PRIMARY KEY CHECK (id = 1), counter INTEGER NOT NULL, serial INTEGER NOT NULL,"
    " position_floor INTEGER NOT NULL, position_offset INTEGER NOT NULL) WITH (fillfactor = 10)",
    "INSERT INTO control VALUES (1, 0, 0, 0, 0)",
    # The head of each stream, with its snapshot. The key follows from the name (`postgres_keys.py`): what is found by
    # its name is found by its key, and the index on names is for those that begin alike.
    "CREATE TABLE streams (id uuid PRIMARY KEY, position INTEGER NOT NULL, v int NOT NULL, generation int,"
    " last_redeemed_at INTEGER, idle_expires_at INTEGER, name TEXT NOT NULL, head BLOB NOT NULL, state BLOB NOT NULL)"
    " WITH (fillfactor = 60)",
    "CREATE INDEX streams_name ON streams (name)",
    f"CREATE INDEX streams_subjects ON streams (name) WHERE {SUBJECTS}",
    # `back` is the position of the stream's previous event: one index entry in 64 suffices to find the way.
    "CREATE TABLE events (position INTEGER NOT NULL, stream uuid NOT NULL, back INTEGER NOT NULL, v int NOT NULL,"
    " body TEXT NOT NULL)",
    "CREATE INDEX events_position ON events (position)",
    f"CREATE UNIQUE INDEX events_marks ON events (stream, v) WHERE v % {MARK_EVERY_V} = 1",
    # Private rows: what may be forgotten. Never in events, snapshots or exports. `begun` is the position at which the
    # grant began, or near it, in the order in which grants began: their ids only say what some node's clock said.
    "CREATE TABLE private_grants (stream uuid PRIMARY KEY, begun INTEGER NOT NULL, client_id TEXT NOT NULL,"
    " subject_id TEXT NOT NULL, nonce BLOB, salt BLOB NOT NULL, device TEXT, session TEXT, idempotency_mac BLOB,"
    " body_mac BLOB)",
    "CREATE INDEX private_grants_client ON private_grants (client_id, begun)",
    "CREATE INDEX private_grants_subject ON private_grants (subject_id, begun)",
    # Which grant an Idempotency-Key has led to. It is one key for all nodes, of all grants: so a table of its own.
    "CREATE TABLE idempotency_keys (mac BLOB PRIMARY KEY, stream uuid NOT NULL)",
    "CREATE TABLE private_reasons (stream uuid NOT NULL, v int NOT NULL, salt BLOB NOT NULL, text TEXT NOT NULL,"
    " PRIMARY KEY (stream, v))",
    "CREATE TABLE private_subjects (lookup BLOB PRIMARY KEY, subject_id TEXT NOT NULL UNIQUE, subject TEXT NOT NULL)",
    "CREATE TABLE private_contexts (stream uuid NOT NULL, commitment TEXT NOT NULL, address TEXT NOT NULL,"
    " user_agent TEXT NOT NULL, PRIMARY KEY (stream, commitment))",
    # Assertions and proofs that were used, until nobody would take them any more.
    "CREATE TABLE single_use (mac BLOB PRIMARY KEY, expires_at INTEGER NOT NULL)",
    "CREATE INDEX single_use_expiry ON single_use (expires_at)",
    *(
        re.sub(" STRICT.*$| IF NOT EXISTS", "", each).replace("stream INTEGER", "stream uuid")
        for each in archived.TABLES
    ),
    *postgres_archive.TABLES,
)

_INLINE_ROOM: Final = 70
"""Percent of a page that rows of an inline table may fill at first; the rest is for their new versions."""


def schema(inline: Sequence[Inline]) -> list[str]:
    """The statements that make all tables, those of the inline projections too."""
    statements = [*_SCHEMA]
    for each in inline:
        updated = any(write.kind == "update" for write in each.writes)
        for statement in each.ddl:
            statements += _of_inline(statement, each.name, updated=updated)
    return [_translated(statement) for statement in statements]


def identities(inline: Sequence[Inline]) -> dict[str, str]:
    """The statements that say by what a row of a table without a primary key is told from all others, by the table.

    Whoever publishes a table for logical replication needs that: without it the server takes inserts of new rows and
    refuses every other change. Nothing is written for it unless the server's `wal_level` is `logical`."""
    found = {}
    for statement in schema(inline):
        made = re.match(r"CREATE TABLE (\w+) ", statement)
        if made is not None and "PRIMARY KEY" not in statement:
            table = made[1]
            unique = re.search(r"(\w+) uuid NOT NULL UNIQUE", statement)
            by = f"USING INDEX {table}_{unique[1]}_key" if unique is not None else "FULL"
            found[table] = f"ALTER TABLE {table} REPLICA IDENTITY {by}"
    return found


def tables(inline: Sequence[Inline]) -> list[str]:
    """The names of all tables."""
    return re.findall(r"^CREATE TABLE (\w+)", "\n".join(schema(inline)), re.MULTILINE)


def _of_inline(statement: str, table: str, *, updated: bool) -> Iterable[str]:
    """One of an inline table's own statements, which are SQLite's. There a row's number, its position, stands in every
    index by itself; here it is a column, and its index no constraint. A grant's id is its stream's key."""
    statement = statement.removesuffix(" STRICT")
    if statement.startswith("CREATE TABLE"):
        made = statement.replace("grant_id TEXT", "grant_id uuid")
        numbered = made.replace("position INTEGER PRIMARY KEY", "position INTEGER NOT NULL")
        yield f"{numbered} WITH (fillfactor = {_INLINE_ROOM})" if updated else numbered
        if numbered != made:
            yield f"CREATE INDEX {table}_position ON {table} (position)"
    else:
        yield re.sub(r"\((\w+)\)$", r"(\1, position)", statement)


def _translated(statement: str) -> str:
    words = {"INTEGER": "bigint", "TEXT": 'text COLLATE "C"', "BLOB": "bytea"}
    return re.sub(r"\b(INTEGER|TEXT|BLOB)\b", lambda found: words[found[0]], statement)
