"""The function in the database that appends a batch: one message there and back, one transaction that it is itself.
What is nearly always appended has a shorter way (`postgres_moves.py`).

A worker that is frozen or cut off at whatever line holds nothing: the server ends alone what it was told in full. The
function takes the lock on authority first, then reads the control counter: a batch that was decided on an older one
changes nothing, and neither is its outcome believed where it only read (I-06). Heads that were locked or have moved are
lost: what hangs together with one (a *unit*, one request nearly always) is left out, everything else is written. It
waits for nobody's row: who else has one locked is about to move it.

Positions from BASE on are places in the batch: the transaction's own base is added to them. All streams were read
before the transaction had its id, so of two events of a stream the later one has the higher position.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from ledger.inline import Inline, Write
from ledger.recorders.postgres_connections import Connection
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.postgres_sql import POSITION_BITS
from ledger.recorders.premises import BASE, Written

PLACES_MAX: Final = (1 << POSITION_BITS) - 1

PARAMETERS: Final = (
    ("control", "bigint"), ("serial", "bigint"), ("units", "int"), ("now", "bigint"),
    ("new_control", "bigint"), ("new_serial", "bigint"), ("floor", "bigint"),
    ("read_id", "uuid[]"), ("read_v", "int[]"), ("read_unit", "int[]"),
    ("moved_id", "uuid[]"), ("moved_before", "int[]"), ("moved_v", "int[]"), ("moved_position", "bigint[]"),
    ("moved_head", "bytea[]"), ("moved_state", "bytea[]"), ("moved_generation", "int[]"),
    ("moved_redeemed", "bigint[]"), ("moved_expires", "bigint[]"), ("moved_unit", "int[]"),
    ("made_id", "uuid[]"), ("made_name", "text[]"), ("made_v", "int[]"), ("made_position", "bigint[]"),
    ("made_head", "bytea[]"), ("made_state", "bytea[]"), ("made_generation", "int[]"),
    ("made_redeemed", "bigint[]"), ("made_expires", "bigint[]"), ("made_unit", "int[]"),
    ("event_stream", "uuid[]"), ("event_v", "int[]"), ("event_back", "bigint[]"), ("event_unit", "int[]"),
    ("event_body", "text[]"), ("rows", "jsonb"),
)  # fmt: skip

_CALL: Final = (
    "SELECT told_control, told_serial, base, lost FROM ledger_append("
    + ", ".join(f"${number}::{kind}" for number, (_, kind) in enumerate(PARAMETERS, 1))
    + ")"
)

_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION ledger_append(
  {parameters},
  OUT told_control bigint, OUT told_serial bigint, OUT base bigint, OUT lost int[]
) LANGUAGE plpgsql AS $function$
#variable_conflict use_column
DECLARE
  _offset bigint;
  _late int[] := '{{}}';
  _held uuid[];
  _made uuid[];
BEGIN
  IF p_new_control IS NULL AND p_new_serial IS NULL AND p_floor IS NULL THEN
    PERFORM pg_advisory_xact_lock_shared({lock});
  ELSE
    PERFORM pg_advisory_xact_lock({lock});
  END IF;
  SELECT counter, serial, position_offset INTO told_control, told_serial, _offset FROM control;
  lost := '{{}}';
  IF told_control <> p_control OR told_serial <> p_serial THEN
    RETURN;
  END IF;

  IF cardinality(p_read_id) > 0 THEN
    SELECT coalesce(array_agg(DISTINCT r.unit), '{{}}') INTO lost
      FROM unnest(p_read_id, p_read_v, p_read_unit) AS r (id, v, unit)
      LEFT JOIN streams s ON s.id = r.id AND s.v = r.v WHERE s.id IS NULL;
  END IF;
  IF cardinality(p_moved_id) > 0 THEN
    SELECT coalesce(array_agg(id), '{{}}') INTO _held FROM (
      SELECT s.id FROM unnest(p_moved_id, p_moved_before) AS m (id, v)
        JOIN streams s ON s.id = m.id AND s.v = m.v FOR NO KEY UPDATE OF s SKIP LOCKED) AS held;
    IF cardinality(_held) < cardinality(p_moved_id) THEN
      SELECT lost || array_agg(DISTINCT unit) INTO lost
        FROM unnest(p_moved_id, p_moved_unit) AS m (id, unit) WHERE NOT id = ANY (_held);
    END IF;
  END IF;
  base := 0;
  IF cardinality(p_event_v) = 0 AND p_rows IS NULL AND p_new_control IS NULL AND p_new_serial IS NULL
     OR cardinality(lost) > 0 AND (SELECT count(DISTINCT u) FROM unnest(lost) AS u) = p_units THEN
    RETURN;
  END IF;

  base := (pg_current_xact_id()::text::bigint << {bits}) + _offset;
  IF p_floor IS NOT NULL THEN
    base := greatest(base, p_floor);
    -- Above whatever others have written meanwhile, so that each of them sees it has been raised.
    UPDATE control SET position_floor = greatest(position_floor, p_floor, (SELECT max(position) + 1 FROM events)),
      position_offset = base - (pg_current_xact_id()::text::bigint << {bits});
  END IF;

  IF cardinality(p_made_id) > 0 THEN
    WITH asked AS (
      SELECT * FROM unnest(p_made_id, p_made_name, p_made_v, p_made_position, p_made_head, p_made_state,
          p_made_generation, p_made_redeemed, p_made_expires, p_made_unit)
        AS m (id, name, v, position, head, state, generation, redeemed, expires, unit) WHERE NOT unit = ANY (lost)
    ), made AS (
      INSERT INTO streams (id, name, v, position, head, state, generation, last_redeemed_at, idle_expires_at)
        SELECT id, name, v, {made_position}, head, state, generation, redeemed, expires FROM asked ORDER BY id
        ON CONFLICT (id) DO NOTHING RETURNING id
    )
    SELECT coalesce(array_agg(id), '{{}}') INTO _made FROM made;
    IF cardinality(_made) < cardinality(p_made_id) THEN
      SELECT coalesce(array_agg(DISTINCT unit), '{{}}') INTO _late
        FROM unnest(p_made_id, p_made_unit) AS m (id, unit)
        WHERE NOT unit = ANY (lost) AND NOT id = ANY (_made);
    END IF;
  END IF;
  IF p_rows ? 'spend' THEN
    WITH asked AS (
      SELECT (r->>0)::int AS unit, (r->>1)::bytea AS mac, (r->>2)::bigint AS expires_at
        FROM jsonb_array_elements(p_rows->'spend') AS r WHERE NOT (r->>0)::int = ANY (lost)
    ), spent AS (
      INSERT INTO single_use AS u
        SELECT DISTINCT ON (mac) mac, expires_at FROM asked ORDER BY mac, expires_at DESC
        ON CONFLICT (mac) DO UPDATE SET expires_at = excluded.expires_at
        WHERE u.expires_at <= p_now AND u.expires_at < excluded.expires_at RETURNING mac
    )
    SELECT _late || coalesce(array_agg(DISTINCT asked.unit), '{{}}') INTO _late
      FROM asked LEFT JOIN spent ON spent.mac = asked.mac WHERE spent.mac IS NULL;
  END IF;
  IF cardinality(_late) > 0 THEN
    -- What else these units have just written: rows that this very transaction made.
    DELETE FROM streams WHERE xmin = pg_current_xact_id()::xid AND id IN (
      SELECT id FROM unnest(p_made_id, p_made_unit) AS m (id, unit) WHERE unit = ANY (_late));
    DELETE FROM single_use WHERE xmin = pg_current_xact_id()::xid AND mac IN (
      SELECT (r->>1)::bytea FROM jsonb_array_elements(p_rows->'spend') AS r WHERE (r->>0)::int = ANY (_late));
    lost := lost || _late;
  END IF;

  IF cardinality(p_moved_id) > 0 THEN
    UPDATE streams AS s SET v = m.v, position = {position}, head = m.head, state = m.state,
        generation = m.generation, last_redeemed_at = m.redeemed, idle_expires_at = m.expires
      FROM unnest(p_moved_id, p_moved_v, p_moved_position, p_moved_head, p_moved_state, p_moved_generation,
          p_moved_redeemed, p_moved_expires, p_moved_unit)
        AS m (id, v, position, head, state, generation, redeemed, expires, unit)
      WHERE s.id = m.id AND NOT m.unit = ANY (lost);
  END IF;
  IF cardinality(p_event_v) > 0 THEN
    INSERT INTO events (position, stream, back, v, body)
      SELECT base + place, stream, {back}, v, body
        FROM unnest(p_event_stream, p_event_v, p_event_back, p_event_unit, p_event_body)
        WITH ORDINALITY AS m (stream, v, back, unit, body, place)
        WHERE NOT unit = ANY (lost);
  END IF;
  IF p_rows IS NOT NULL THEN
{rows}
    IF p_rows ? 'archive' THEN
      PERFORM ledger_archive(p_rows->'archive', lost);
    END IF;
  END IF;
  IF (p_new_control IS NOT NULL OR p_new_serial IS NOT NULL) AND cardinality(lost) = 0 THEN
    told_control := coalesce(p_new_control, told_control);
    told_serial := coalesce(p_new_serial, told_serial);
    UPDATE control SET counter = told_control, serial = told_serial;
  END IF;
END
$function$
"""

_ROWS: Final = """
    IF p_rows ? '{key}' THEN
      {statement};
    END IF;"""

_KNOWS: Final = """
SELECT bool_and(place > before) FROM (
  SELECT place, lag(place, 1, 0) OVER (ORDER BY nth) AS before FROM (
    SELECT nth, strpos(f.prosrc, 'p_rows ? ' || quote_literal(key)) AS place
      FROM unnest($2::text[]) WITH ORDINALITY AS m (key, nth) LEFT JOIN pg_proc f ON f.oid = to_regprocedure($1)
  ) AS found
) AS each
"""

_FROM: Final = (
    "FROM jsonb_array_elements(p_rows->'{key}') WITH ORDINALITY AS m (r, place) WHERE NOT (r->>0)::int = ANY (lost)"
)


class Told(NamedTuple):
    """What the database said: authority's numbers as they are (control counter, serial), and what became of the
    batch."""

    authority: tuple[int, int]
    written: Written


class Appending(NamedTuple):
    """A batch of whatever kind, as the call's parameters."""

    parameters: tuple[object, ...]

    def write(self, connection: Connection) -> Told:
        """Send it and wait: durable on return, but for what was lost. Raises psycopg.Error."""
        row = connection.execute(_CALL, self.parameters, prepare=True).fetchone()
        assert row is not None
        control, serial, base, lost = row
        return Told((control, serial), Written(base, frozenset(lost)))


def function(inline: Sequence[Inline], types: Mapping[tuple[str, str], str]) -> str:
    """The statement that makes the function, for these inline projections; `types` gives a column's type by its table
    and name."""
    rows = [*_private(), *_inline(inline, types)]
    return _FUNCTION.format(
        parameters=",\n  ".join(f"p_{name} {kind}" for name, kind in PARAMETERS),
        lock=LOCK,
        bits=POSITION_BITS,
        made_position=given("asked.position"),
        position=given("m.position"),
        back=given("m.back"),
        rows="".join(_ROWS.format(key=key, statement=statement) for key, statement in rows),
    )


def is_there(connection: Connection) -> bool:
    """Whether `init` has made the function, and it writes all private rows that this release may ask for, in its order:
    an older one would pass over what it does not know, or erase before it writes; a newer one knows more."""
    kinds = ", ".join(kind for _, kind in PARAMETERS)
    asked = (f"ledger_append({kinds})", list(dict.fromkeys(key for key, _ in _private())))
    return connection.execute(_KNOWS, asked).fetchone() == (True,)


def given(number: str) -> str:
    """A number, or what a place in the batch has become: SQL."""
    return f"CASE WHEN {number} >= {BASE} THEN {number} - {BASE} + base ELSE {number} END"


def _value(place: int, kind: str) -> str:
    value = f"(r->>{place})::{kind}"
    return given(value) if kind == "bigint" else value


def _insert(
    key: str, table: str, columns: Sequence[tuple[str, str]], then: str = "", *, begun: str = ""
) -> tuple[str, str]:
    """`begun` is a column that says where in the log the row came to be, or near it."""
    names = [name for name, _ in columns] + [begun] * bool(begun)
    values = [_value(place, kind) for place, (_, kind) in enumerate(columns, 1)] + ["base + place"] * bool(begun)
    return key, f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} {_FROM.format(key=key)}{then}"


def _delete(key: str, table: str, columns: Sequence[tuple[str, str]], where: str) -> tuple[str, str]:
    values = ", ".join(f"{_value(place, kind)} AS {name}" for place, (name, kind) in enumerate(columns, 1))
    return key, f"DELETE FROM {table} AS t USING (SELECT {values} {_FROM.format(key=key)}) AS m WHERE {where}"


def _private() -> Iterator[tuple[str, str]]:
    """Private rows. What is erased goes before what is kept, because the same person may be new again in the same
    batch, and once more behind it, so that what the batch had added before goes too. Texts of reasons are kept before
    both: whose they are is found by the grant's row, which the first leaves to none that it erases."""
    stream, lookup, subject_id = ("stream", "uuid"), ("lookup", "bytea"), ("subject_id", "text")
    claimed = f"SELECT {_value(1, 'uuid')}, 0, '', {_value(2, 'text')}, '' {_FROM.format(key='claim_grant')}"
    yield (
        "claim_grant",
        (
            f"INSERT INTO private_grants (stream, begun, client_id, subject_id, salt) {claimed}"
            " ON CONFLICT (stream) DO UPDATE SET subject_id = excluded.subject_id"
        ),
    )
    yield _insert("keep_reason", "private_reasons", (stream, ("v", "int"), ("salt", "bytea"), ("text", "text")))
    yield from _erased(stream, lookup, subject_id)
    # Rows that another node may be at too are taken in the order of their keys: else two would wait for each other.
    yield _insert("keep_subject", "private_subjects", (lookup, subject_id, ("subject", "text")), " ORDER BY 1")
    yield _insert("keep_grant", "private_grants", (
        stream, ("client_id", "text"), subject_id, ("nonce", "bytea"), ("salt", "bytea"), ("device", "text"),
        ("session", "text"), ("idempotency_mac", "bytea"), ("body_mac", "bytea"),
    ), begun="begun")  # fmt: skip
    mac = _value(8, "bytea")
    keys = f"SELECT {mac}, {_value(1, 'uuid')} {_FROM.format(key='keep_grant')} AND {mac} IS NOT NULL ORDER BY 1"
    yield "keep_grant", f"INSERT INTO idempotency_keys (mac, stream) {keys}"
    # Not where the grant's own row is gone: its person was erased, on whatever node.
    yield _insert(
        "keep_context", "private_contexts",
        (stream, ("commitment", "text"), ("address", "text"), ("user_agent", "text")),
        f" AND EXISTS (SELECT FROM private_grants g WHERE g.stream = {_value(1, 'uuid')}) ON CONFLICT DO NOTHING",
    )  # fmt: skip
    streams = f"SELECT {_value(1, 'uuid')} {_FROM.format(key='forget_nonce')}"
    held = f"SELECT stream FROM private_grants WHERE stream IN ({streams}) ORDER BY stream FOR NO KEY UPDATE"
    yield "forget_nonce", f"UPDATE private_grants AS t SET nonce = NULL FROM ({held}) AS m WHERE t.stream = m.stream"
    asked = "jsonb_array_elements(p_rows->'prune_single_use') AS r"
    old = (
        f"SELECT mac FROM single_use WHERE expires_at < (SELECT min((r->>1)::bigint) FROM {asked})"
        f" ORDER BY expires_at LIMIT (SELECT 2 * count(*) FROM {asked}) FOR UPDATE SKIP LOCKED"
    )
    yield "prune_single_use", f"DELETE FROM single_use WHERE mac IN ({old})"
    yield from _erased(stream, lookup, subject_id)
    probed = "SELECT 'probe', max(r->>1) FROM jsonb_array_elements(p_rows->'probe') AS r"
    then = "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    yield "probe", f"INSERT INTO meta (key, value) {probed} {then}"


def _erased(stream: tuple[str, str], lookup: tuple[str, str], subject_id: tuple[str, str]) -> Iterator[tuple[str, str]]:
    theirs = "SELECT {} FROM private_grants g WHERE g.subject_id = m.subject_id"
    own, keys = f"t.stream IN ({theirs.format('stream')})", f"t.mac IN ({theirs.format('idempotency_mac')})"
    yield _delete("erase_contexts", "private_contexts", (subject_id,), own)
    yield _delete("erase_reasons", "private_reasons", (subject_id,), own)
    yield _delete("erase_own_reasons", "private_reasons", (stream,), "t.stream = m.stream")
    yield _delete("erase_grants", "idempotency_keys", (subject_id,), keys)
    yield _delete("erase_grants", "private_grants", (subject_id,), "t.subject_id = m.subject_id")
    same = "t.lookup = m.lookup AND t.subject_id = m.subject_id"
    yield _delete("erase_subject", "private_subjects", (lookup, subject_id), same)


def _inline(inline: Sequence[Inline], types: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    for each in inline:
        for index, write in enumerate(each.writes):
            yield _written(f"{each.name}/{index}", write, types)


def _written(key: str, write: Write, types: Mapping[tuple[str, str], str]) -> tuple[str, str]:
    def typed(name: str) -> tuple[str, str]:
        return name, types[write.table, name]

    if write.kind == "insert":
        return _insert(key, write.table, [typed(name) for name in (write.key, *write.columns)])
    columns = [typed(name) for name in (*write.columns, write.key)]
    values = ", ".join(f"{_value(place, kind)} AS {name}" for place, (name, kind) in enumerate(columns, 1))
    settings = ", ".join(f"{name} = m.{name}" for name in write.columns)
    return key, (
        f"UPDATE {write.table} AS t SET {settings} FROM (SELECT {values} {_FROM.format(key=key)}) AS m"
        f" WHERE t.{write.key} = m.{write.key}"
    )
