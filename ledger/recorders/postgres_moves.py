"""The function in the database for what is nearly always appended: refreshes, and nothing else.

Such a batch moves streams that are there, each for a request of its own, and has no other stream to answer for. Beside
its events and heads it may keep from where requests came (private rows of contexts: people change their networks). It
needs half of the parameters and statements of `ledger_append` (`postgres_append.py`), and keeps to the same rules:
authority first (I-06), who is locked or has moved is lost and nobody is waited for, a position is the transaction's
base and the place in the batch. One refresh by itself, from where the one before came, has a way of its own once more
(`postgres_refresh.py`).

A row is looked for by its key once, as it is locked. Nobody else can move it from then on, so what is written finds it
by its place in the table (`ctid`): one way less through an index, which is deep where there are very many grants.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

from psycopg.pq import Format
from psycopg.pq.abc import PGresult

from ledger.recorders import postgres_calls, postgres_refresh, postgres_work
from ledger.recorders.postgres_append import Told, given
from ledger.recorders.postgres_calls import Call, declared
from ledger.recorders.postgres_connections import Connection
from ledger.recorders.postgres_refresh import Refresh
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.postgres_sql import POSITION_BITS
from ledger.recorders.premises import CheckedWork, Written
from ledger.recorders.private_rows import KEEP_CONTEXT

_PARAMETERS: Final = (
    ("control", "bigint"), ("serial", "bigint"),
    ("id", "uuid[]"), ("before", "int[]"), ("v", "int[]"), ("position", "bigint[]"), ("head", "bytea[]"),
    ("state", "bytea[]"), ("generation", "int[]"), ("redeemed", "bigint[]"), ("expires", "bigint[]"),
    ("event_stream", "uuid[]"), ("event_v", "int[]"), ("event_back", "bigint[]"), ("event_body", "text[]"),
    ("context_stream", "uuid[]"), ("commitment", "text[]"), ("address", "text[]"), ("user_agent", "text[]"),
)  # fmt: skip

_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION ledger_move(
  {parameters},
  OUT told_control bigint, OUT told_serial bigint, OUT base bigint, OUT lost text
) LANGUAGE plpgsql AS $function$
#variable_conflict use_column
DECLARE
  _offset bigint;
  _held uuid[];
  _places tid[];
  _updated int;
BEGIN
  PERFORM pg_advisory_xact_lock_shared({lock});
  SELECT counter, serial, position_offset INTO told_control, told_serial, _offset FROM control;
  IF told_control <> p_control OR told_serial <> p_serial THEN
    RETURN;
  END IF;
  SELECT coalesce(array_agg(id ORDER BY nth), '{{}}'), array_agg(place ORDER BY nth) INTO _held, _places FROM (
    SELECT s.id, s.ctid AS place, m.nth FROM unnest(p_id, p_before) WITH ORDINALITY AS m (id, v, nth)
      JOIN streams s ON s.id = m.id AND s.v = m.v FOR NO KEY UPDATE OF s SKIP LOCKED) AS held;
  IF cardinality(_held) < cardinality(p_id) THEN
    SELECT string_agg(place::text, ' ') INTO lost
      FROM unnest(p_id) WITH ORDINALITY AS m (id, place) WHERE NOT id = ANY (_held);
    IF cardinality(_held) = 0 THEN
      base := 0;
      RETURN;
    END IF;
    SELECT array_agg(held.place ORDER BY nth) INTO _places FROM unnest(p_id) WITH ORDINALITY AS m (id, nth)
      LEFT JOIN unnest(_held, _places) AS held (id, place) ON held.id = m.id;
  END IF;
  base := (pg_current_xact_id()::text::bigint << {bits}) + _offset;
  UPDATE streams AS s SET v = m.v, position = {position}, head = m.head, state = m.state,
      generation = m.generation, last_redeemed_at = m.redeemed, idle_expires_at = m.expires
    FROM unnest(_places, p_id, p_v, p_position, p_head, p_state, p_generation, p_redeemed, p_expires)
      AS m (place, id, v, position, head, state, generation, redeemed, expires)
    WHERE s.ctid = m.place AND s.id = m.id;
  GET DIAGNOSTICS _updated = ROW_COUNT;
  IF _updated <> cardinality(_held) THEN
    RAISE EXCEPTION 'a row that is locked is not where it was';
  END IF;
  INSERT INTO events (position, stream, back, v, body)
    SELECT base + place, stream, {back}, v, body
      FROM unnest(p_event_stream, p_event_v, p_event_back, p_event_body)
      WITH ORDINALITY AS m (stream, v, back, body, place)
      WHERE lost IS NULL OR stream = ANY (_held);
  IF cardinality(p_context_stream) > 0 THEN
    -- Not where the grant's own row is gone: its person was erased, on whatever node.
    INSERT INTO private_contexts (stream, commitment, address, user_agent)
      SELECT m.* FROM unnest(p_context_stream, p_commitment, p_address, p_user_agent)
        AS m (stream, commitment, address, user_agent)
        WHERE (lost IS NULL OR stream = ANY (_held))
          AND EXISTS (SELECT FROM private_grants AS g WHERE g.stream = m.stream)
      ON CONFLICT DO NOTHING;
  END IF;
END
$function$
"""


class Moves(Call):
    """A batch that only moves streams. `units` are those of the streams in their order."""

    __slots__ = ("units",)

    name = b"ledger_move"
    parameters = _PARAMETERS
    formats: ClassVar[list[Format]] = [Format.BINARY] * len(_PARAMETERS)
    ask = "SELECT told_control, told_serial, base, lost FROM ledger_move({})"

    def __init__(self, parameters: list[bytes | None], units: list[int]) -> None:
        super().__init__(parameters)
        self.units = units

    def _read(self, row: PGresult) -> Told:
        value = row.get_value
        control, serial, base, lost = value(0, 0), value(0, 1), value(0, 2), value(0, 3)
        assert control is not None
        assert serial is not None
        places = () if lost is None else map(int, lost.split())
        return Told(
            (int(control), int(serial)),
            Written(None if base is None else int(base), frozenset([self.units[place - 1] for place in places])),
        )


def function() -> str:
    """The statement that makes the function."""
    return _FUNCTION.format(
        parameters=declared(Moves),
        lock=LOCK,
        bits=POSITION_BITS,
        position=given("m.position"),
        back=given("m.back"),
    )


def is_there(connection: Connection) -> bool:
    """Whether `init` of this release has made what calls need."""
    return all(postgres_calls.is_there(connection, call) for call in (Moves, Refresh))


def prepare(connection: Connection) -> None:
    """Have the server read the calls once. Raises psycopg.Error."""
    for call in (Moves, Refresh):
        postgres_calls.prepare(connection, call)


def moves(work: CheckedWork) -> Call | None:
    """A batch's call where it is one of moves alone: None where it is not."""
    moved: list[tuple[Any, ...]] = work.moved
    other = work.read or work.made or work.projected or work.control is not None
    if not moved or other or work.serial is not None:
        return None
    if not work.private and (alone := postgres_refresh.refresh(work)) is not None:
        return alone
    unit_of, names = work.unit_of, work.names
    units = [unit_of[names[each[7]]] for each in moved]
    if len(set(units)) < len(units):  # a request that moves two streams moves both or none
        return None
    contexts = _contexts(work)
    if contexts is None:
        return None
    heads, events = postgres_work.heads(work), postgres_work.events(work)
    return Moves([*_numbers(work.stands_on), *heads, *events, *contexts], units)


_NO_CONTEXTS: Final = postgres_work.uuids(()), *map(postgres_work.texts, ((), (), ()))


def _contexts(work: CheckedWork) -> tuple[bytes, ...] | None:
    """The contexts of streams that the batch moves; None where it keeps another private row."""
    contexts: list[tuple[Any, ...]] = [row for statement, row in work.private if statement == KEEP_CONTEXT]
    if len(contexts) < len(work.private):
        return None
    if not contexts:
        return _NO_CONTEXTS
    ids = {each[7] for each in work.moved}
    if not all(row[0] in ids for row in contexts):
        return None
    stream, *told = zip(*contexts, strict=True)
    return postgres_work.uuids(stream), *map(postgres_work.texts, told)


def _numbers(values: Sequence[int]) -> Iterator[bytes]:
    return (value.to_bytes(8, "big", signed=True) for value in values)
