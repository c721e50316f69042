"""The archive in a PostgreSQL database: its own tables, and the function that moves events into it.

Segments lie in the database, as rows of a table that nothing else touches. So every node reads them without a folder
that all of them would have to share; standbys have them, base backups and dumps contain them, and a segment is there
exactly when the rows that name it are. A row fills one page with the next bytes of a segment; it is written once and
never changed: there is nothing for vacuum to do but what the events leave that have moved.

One process archives at a time. Which one says the single row of `archiver`: a name, and until when. That is a row, and
no lock of a session, because whoever is cut off from the server, or sits behind a pooler, would lose such a lock, or
keep it, without knowing. Whatever the archiver writes, it writes only where that row still names it, in the same
statement or transaction: one that was frozen until another took over changes nothing any more.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from ledger.recorders import archived
from ledger.recorders.postgres_connections import Connection
from ledger.refusals import LedgerError

TABLES: Final = (
    # Whole pages: elsewhere PostgreSQL would put so long a value in four pieces to a page, which takes a quarter more.
    "CREATE TABLE segment_pages (segment INTEGER NOT NULL, at_byte INTEGER NOT NULL, bytes BLOB NOT NULL,"
    " PRIMARY KEY (segment, at_byte)) WITH (toast_tuple_target = 8160)",
    "ALTER TABLE segment_pages ALTER COLUMN bytes SET STORAGE EXTERNAL",  # they are compressed already
    # One row a segment that is whole; pages without one are what a crash has left.
    "CREATE TABLE whole_segments (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL)",
    # One row. Nobody archives where `holder` is empty, or `until` has passed.
    "CREATE TABLE archiver (id INTEGER PRIMARY KEY CHECK (id = 1), holder TEXT NOT NULL, until timestamptz NOT NULL)"
    " WITH (fillfactor = 10)",
    "INSERT INTO archiver VALUES (1, '', '-infinity')",
)

_LACKING: Final = (
    "SELECT s.name FROM segments s WHERE s.finished < 2 AND NOT (EXISTS (SELECT FROM whole_segments w"
    " WHERE w.id = s.id AND w.name = s.name AND w.bytes = s.bytes)"
    " AND EXISTS (SELECT FROM segment_pages p WHERE p.segment = s.id)) ORDER BY s.id LIMIT 1"
)
PAGE_BYTES: Final = 8_100
"""What fits into one page beside all else that stands in it."""

PAGES_AT_ONCE: Final = 32
"""So many does one question give whoever reads a whole segment."""

PAGES: Final = (
    "SELECT at_byte, bytes FROM segment_pages WHERE segment = $1 AND at_byte >= coalesce((SELECT max(at_byte)"
    " FROM segment_pages WHERE segment = $1 AND at_byte <= $2), 0) ORDER BY at_byte LIMIT $3"
)


def joined(pages: Sequence[tuple[int, bytes]], at_byte: int) -> bytes:
    """The bytes of a segment from one on, as far as these pages have them without a gap."""
    found, end = bytearray(), at_byte
    for begins, page in pages:
        if begins > end:
            break
        found += page[end - begins :]
        end = begins + len(page)
    return bytes(found)


def check(connection: Connection, place: str) -> None:
    """Events that were moved are nowhere else: without their segments nobody is served (I-23). Raises LedgerError."""
    for (name,) in connection.execute(_LACKING).fetchall():
        raise LedgerError(f"{place}: the archive segment {name} is missing; put it back")


class _Kind(NamedTuple):
    """One of the archive's statements: its rows' key, the names of its parameters, and what it always sets."""

    key: str
    names: tuple[str, ...]
    always: Mapping[str, object] = {}


KINDS: Final[Mapping[str, _Kind]] = {
    archived.ADD_SEGMENT: _Kind("add_segment", ("id", "name", "bytes", "replaces"), {"finished": 0}),
    archived.ADD_PIECE: _Kind(
        "add_piece",
        (
            "stream", "to_v", "from_v", "from_position", "to_position", "back", "head", "at", "state", "reason",
            "generation", "segment", "at_byte", "line", "said_v", "said_position", "said",
        ),
        {"withheld": 0},
    ),
    archived.DELETE_EVENTS: _Kind("delete_events", ("positions", "stream", "to_v")),
    archived.MOVE_PIECE: _Kind("move_piece", ("segment", "at_byte", "withheld", "stream", "to_v", "before")),
    archived.FINISH_SEGMENT: _Kind("finish_segment", ("id",)),
    archived.REPLACE_SEGMENT: _Kind("replace_segment", ("id",)),
    archived.DROP_SEGMENT: _Kind("drop_segment", ("id",)),
}  # fmt: skip


class Rows:
    """What a batch wants to change of the archive."""

    def __init__(self, holder: str | None) -> None:
        """`holder` is this process's name as the one who archives, None where it is not."""
        self._rows: dict[str, Any] = {"holder": holder}

    def add(self, unit: int, statement: str, values: tuple[object, ...]) -> None:
        """Add one of the archive's statements."""
        kind = KINDS[statement]
        row = {**dict(zip(kind.names, map(_plain, values), strict=True)), **kind.always}
        if "positions" in row:
            row["positions"] = msgspec.Raw(str(row["positions"]).encode())
        self._rows.setdefault(kind.key, []).append((unit, row))

    def told(self) -> dict[str, Any]:
        """As the function takes them; empty where there are none."""
        return self._rows if len(self._rows) > 1 else {}


def _plain(value: object) -> object:
    return "\\x" + value.hex() if isinstance(value, bytes) else value


def _each(key: str, table: str) -> str:
    """The rows of a key, each as one of a table, so that columns have the types that they have there."""
    return (
        f"FROM jsonb_array_elements(p_rows->'{key}') AS r"
        f" CROSS JOIN LATERAL jsonb_populate_record(NULL::{table}, r->1) AS m WHERE NOT (r->>0)::int = ANY (p_lost)"
    )


def is_there(connection: Connection) -> bool:
    """Whether `init` has made the function."""
    question = "SELECT to_regprocedure('ledger_archive(jsonb, int[])') IS NOT NULL"
    return connection.execute(question).fetchone() == (True,)


FUNCTION: Final = f"""
CREATE OR REPLACE FUNCTION ledger_archive(p_rows jsonb, p_lost int[]) RETURNS void LANGUAGE plpgsql AS $function$
#variable_conflict use_column
BEGIN
  -- Until this is committed nobody takes over; and whoever was taken over from has nothing to say.
  PERFORM FROM archiver WHERE holder = p_rows->>'holder' AND holder <> '' FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  INSERT INTO segments SELECT m.* {_each("add_segment", "segments")} ON CONFLICT DO NOTHING;
  INSERT INTO archived SELECT m.* {_each("add_piece", "archived")} ON CONFLICT DO NOTHING;
  DELETE FROM events AS t USING (
    SELECT jsonb_array_elements_text(r->1->'positions')::bigint AS position {_each("delete_events", "archived")}
      AND EXISTS (SELECT FROM archived a WHERE a.stream = m.stream AND a.to_v = m.to_v)
  ) AS gone WHERE t.position = gone.position;
  UPDATE archived AS t SET segment = moved.segment, at_byte = moved.at_byte, withheld = moved.withheld FROM (
    SELECT m.*, (r->1->>'before')::bigint AS before {_each("move_piece", "archived")}
  ) AS moved WHERE t.stream = moved.stream AND t.to_v = moved.to_v AND t.segment = moved.before;
  UPDATE segments AS t SET finished = 1 FROM (SELECT m.id {_each("finish_segment", "segments")}) AS m WHERE t.id = m.id;
  UPDATE segments AS t SET finished = 2 FROM (SELECT m.id {_each("replace_segment", "segments")}) AS m
    WHERE t.id = m.id;
  DELETE FROM segments AS t USING (SELECT m.id {_each("drop_segment", "segments")}) AS m
    WHERE t.id = m.id AND t.finished = 2;
END
$function$
"""  # noqa: S608  # names of ours alone
"""Runs what `Rows` holds within a batch's transaction, for the process that archives; for any other it does nothing."""
