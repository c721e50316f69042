"""The tables of the SQLite store. Columns repeat members of events, they never replace them."""

from ledger.recorders import archived

APPLICATION_ID = 0x544C4447
"""Marks the file as a token ledger's (the letters TLDG)."""

SCHEMA_VERSION = 2

MARK_EVERY_V = 64
"""Every so many versions of a stream an index entry gives a way in; from there `back` leads on."""

ADDED = (
    # Assertions and proofs that were used, until nobody would take them any more: no fact, so in no event.
    "CREATE TABLE IF NOT EXISTS single_use (mac BLOB PRIMARY KEY, expires_at INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS single_use_expiry ON single_use (expires_at)",
    *archived.TABLES,
)
"""What a store of this version lacks where an earlier program made it. Asked for whenever one is opened."""

SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    # One row. `counter` moves with every change of authority; `serial` is the clients file's last; positions go on
    # above `position_floor` after an acknowledged restore.
    "CREATE TABLE control (id INTEGER PRIMARY KEY CHECK (id = 1), counter INTEGER NOT NULL, serial INTEGER NOT NULL,"
    " position_floor INTEGER NOT NULL) STRICT",
    "INSERT INTO control VALUES (1, 0, 0, 0)",
    # The head of each stream, with its snapshot: loading an aggregate is one row, whatever its age. The last three are
    # of grants, out of the snapshot (microseconds): here, and not in a projection's table, a refresh writes one row.
    # `id` follows from a grant's id, nearly always (`sqlite_keys.py`).
    "CREATE TABLE streams (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, v INTEGER NOT NULL,"
    " position INTEGER NOT NULL, head BLOB NOT NULL, state BLOB NOT NULL, generation INTEGER,"
    " last_redeemed_at INTEGER, idle_expires_at INTEGER) STRICT",
    # `back` is the position of the stream's previous event. An index on (stream, v) would be written at every event
    # and cost a fifth of the throughput; one entry in 64 suffices to find the way.
    "CREATE TABLE events (position INTEGER PRIMARY KEY, stream INTEGER NOT NULL, v INTEGER NOT NULL,"
    " back INTEGER NOT NULL, body TEXT NOT NULL) STRICT",
    f"CREATE UNIQUE INDEX events_marks ON events (stream, v) WHERE v % {MARK_EVERY_V} = 1",
    # Private rows: what may be forgotten. Never in events, snapshots or exports.
    "CREATE TABLE private_grants (stream INTEGER PRIMARY KEY, client_id TEXT NOT NULL, subject_id TEXT NOT NULL,"
    " nonce BLOB, salt BLOB NOT NULL, device TEXT, session TEXT, idempotency_mac BLOB, body_mac BLOB) STRICT",
    "CREATE INDEX private_grants_client ON private_grants (client_id)",
    "CREATE INDEX private_grants_subject ON private_grants (subject_id)",
    "CREATE UNIQUE INDEX private_grants_idempotency ON private_grants (idempotency_mac)"
    " WHERE idempotency_mac IS NOT NULL",
    "CREATE TABLE private_reasons (event_id TEXT PRIMARY KEY, salt BLOB NOT NULL, text TEXT NOT NULL)"
    " STRICT, WITHOUT ROWID",
    "CREATE TABLE private_subjects (lookup BLOB PRIMARY KEY, subject_id TEXT NOT NULL UNIQUE, subject TEXT NOT NULL)"
    " STRICT, WITHOUT ROWID",
    "CREATE TABLE private_contexts (stream INTEGER NOT NULL, commitment TEXT NOT NULL, address TEXT NOT NULL,"
    " user_agent TEXT NOT NULL, PRIMARY KEY (stream, commitment)) STRICT, WITHOUT ROWID",
    *ADDED,
)
