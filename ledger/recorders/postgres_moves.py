"""The function in the database for what is nearly always appended: refreshes, and nothing else.

Such a batch moves streams that are there, each for a request of its own, and has no other row to write and no other
stream to answer for. It needs a third of the parameters and half of the statements of `ledger_append`
(`postgres_append.py`), and keeps to the same rules: authority first (I-06), who is locked or has moved is lost and
nobody is waited for, a position is the transaction's base and the place in the batch.

The call goes past the driver's cursors, which take as long as the server takes to find a stream.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from psycopg import errors, generators
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from ledger.recorders import postgres_work
from ledger.recorders.postgres_append import Told, given
from ledger.recorders.postgres_connections import Connection
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.postgres_sql import POSITION_BITS
from ledger.recorders.premises import CheckedWork, Written

_PARAMETERS: Final = (
    ("control", "bigint"), ("serial", "bigint"),
    ("id", "uuid[]"), ("before", "int[]"), ("v", "int[]"), ("position", "bigint[]"), ("head", "bytea[]"),
    ("state", "bytea[]"), ("generation", "int[]"), ("redeemed", "bigint[]"), ("expires", "bigint[]"),
    ("event_stream", "uuid[]"), ("event_v", "int[]"), ("event_back", "bigint[]"), ("event_body", "text[]"),
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
BEGIN
  PERFORM pg_advisory_xact_lock_shared({lock});
  SELECT counter, serial, position_offset INTO told_control, told_serial, _offset FROM control;
  IF told_control <> p_control OR told_serial <> p_serial THEN
    RETURN;
  END IF;
  SELECT coalesce(array_agg(id), '{{}}') INTO _held FROM (
    SELECT s.id FROM unnest(p_id, p_before) AS m (id, v)
      JOIN streams s ON s.id = m.id AND s.v = m.v FOR NO KEY UPDATE OF s SKIP LOCKED) AS held;
  IF cardinality(_held) < cardinality(p_id) THEN
    SELECT string_agg(place::text, ' ') INTO lost
      FROM unnest(p_id) WITH ORDINALITY AS m (id, place) WHERE NOT id = ANY (_held);
    IF cardinality(_held) = 0 THEN
      base := 0;
      RETURN;
    END IF;
  END IF;
  base := (pg_current_xact_id()::text::bigint << {bits}) + _offset;
  UPDATE streams AS s SET v = m.v, position = {position}, head = m.head, state = m.state,
      generation = m.generation, last_redeemed_at = m.redeemed, idle_expires_at = m.expires
    FROM unnest(p_id, p_v, p_position, p_head, p_state, p_generation, p_redeemed, p_expires)
      AS m (id, v, position, head, state, generation, redeemed, expires)
    WHERE s.id = m.id AND (lost IS NULL OR m.id = ANY (_held));
  INSERT INTO events (position, stream, back, v, body)
    SELECT base + place, stream, {back}, v, body
      FROM unnest(p_event_stream, p_event_v, p_event_back, p_event_body)
      WITH ORDINALITY AS m (stream, v, back, body, place)
      WHERE lost IS NULL OR stream = ANY (_held);
END
$function$
"""

_NAME: Final = b"ledger_move"
_CALL: Final = (
    "SELECT told_control, told_serial, base, lost FROM ledger_move("  # noqa: S608  # words of ours alone
    + ", ".join(f"${number}::{kind}" for number, (_, kind) in enumerate(_PARAMETERS, 1))
    + ")"
)
_FORMATS: Final = [Format.BINARY] * len(_PARAMETERS)


class Moves:
    """A batch that only moves streams, on its way through one connection. All raise psycopg.Error.

    `units` are those of the streams in their order.
    """

    __slots__ = ("_parameters", "_results", "_sent", "units")

    def __init__(self, parameters: list[bytes], units: list[int]) -> None:
        self._parameters = parameters
        self.units = units
        self._sent = False
        self._results: list[PGresult] = []

    def send(self, connection: Connection) -> bool:
        """Send it, without waiting: True where all of it has left."""
        self._sent = True
        connection.pgconn.send_query_prepared(_NAME, self._parameters, _FORMATS)
        return connection.pgconn.flush() == 0

    def told(self, connection: Connection) -> Told | None:
        """What has become of it; None while the answer is not whole. Something must have arrived."""
        pgconn = connection.pgconn
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                return self._read()
            self._results.append(result)
        return None

    def write(self, connection: Connection) -> Told:
        """Send it, if it was not sent, and wait: durable on return, but for what was lost."""
        if not self._sent:
            self.send(connection)
        self._results += connection.wait(generators.execute(connection.pgconn))
        return self._read()

    def _read(self) -> Told:
        for each in self._results:  # the server commits after it has told the row, and says behind it what then fails
            if each.status != ExecStatus.TUPLES_OK:
                raise errors.error_from_result(each)
        if not self._results:
            raise errors.OperationalError("no answer")
        result = self._results[0]
        value = result.get_value
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
        parameters=",\n  ".join(f"p_{name} {kind}" for name, kind in _PARAMETERS),
        lock=LOCK,
        bits=POSITION_BITS,
        position=given("m.position"),
        back=given("m.back"),
    )


def is_there(connection: Connection) -> bool:
    """Whether `init` of this release has made it."""
    kinds = ", ".join(kind for _, kind in _PARAMETERS)
    question = "SELECT to_regprocedure($1) IS NOT NULL"
    return connection.execute(question, (f"ledger_move({kinds})",)).fetchone() == (True,)


def prepare(connection: Connection) -> None:
    """Have the server read the call once. Raises psycopg.Error."""
    connection.pgconn.send_prepare(_NAME, _CALL.encode())
    for result in connection.wait(generators.execute(connection.pgconn)):
        if result.status != ExecStatus.COMMAND_OK:
            raise errors.error_from_result(result)


def moves(work: CheckedWork) -> Moves | None:
    """A batch's parameters where it is one of moves alone: None where it is not."""
    moved: list[tuple[Any, ...]] = work.moved
    other = work.read or work.made or work.private or work.projected or work.control is not None
    if not moved or other or work.serial is not None:
        return None
    unit_of, names = work.unit_of, work.names
    units = [unit_of[names[each[7]]] for each in moved]
    if len(set(units)) < len(units):  # a request that moves two streams moves both or none
        return None
    return Moves([*_numbers(work.stands_on), *postgres_work.heads(work), *postgres_work.events(work)], units)


def _numbers(values: Sequence[int]) -> Iterator[bytes]:
    return (value.to_bytes(8, "big", signed=True) for value in values)
