"""The function in the database for one refresh by itself: one stream that moves, by two events.

It does what the one for many does (`postgres_moves.py`), in the same order and by the same rules. But it has no arrays
to take apart and to join with, which is a third of what the server does for such a batch; and nobody shares the time
that one who comes alone waits for it. What follows from the version and the position before is not sent.
"""

import struct
from typing import Any, ClassVar, Final

from psycopg.pq import Format
from psycopg.pq.abc import PGresult

from ledger.recorders.postgres_append import Told
from ledger.recorders.postgres_calls import Call, declared
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.postgres_sql import POSITION_BITS
from ledger.recorders.premises import CheckedWork, Written

_PARAMETERS: Final = (
    ("control", "bigint"), ("serial", "bigint"),
    ("id", "uuid"), ("before", "int"), ("back", "bigint"), ("head", "bytea"), ("state", "bytea"),
    ("generation", "int"), ("redeemed", "bigint"), ("expires", "bigint"),
    ("first", "text"), ("second", "text"),
)  # fmt: skip

# It tells the control counter and serial as they are; behind them, where they are those expected, the base of the
# batch's positions, 0 where the stream was lost.
_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION ledger_refresh(
  {parameters},
  OUT told text
) LANGUAGE plpgsql AS $function$
#variable_conflict use_column
DECLARE
  told_control bigint;
  told_serial bigint;
  _offset bigint;
  _place tid;
  base bigint;
BEGIN
  PERFORM pg_advisory_xact_lock_shared({lock});
  SELECT counter, serial, position_offset INTO told_control, told_serial, _offset FROM control;
  told := told_control || ' ' || told_serial;
  IF told_control <> p_control OR told_serial <> p_serial THEN
    RETURN;
  END IF;
  SELECT ctid INTO _place FROM streams WHERE id = p_id AND v = p_before FOR NO KEY UPDATE SKIP LOCKED;
  IF _place IS NULL THEN
    told := told || ' 0';
    RETURN;
  END IF;
  base := (pg_current_xact_id()::text::bigint << {bits}) + _offset;
  UPDATE streams SET v = p_before + 2, position = base + 2, head = p_head, state = p_state,
      generation = p_generation, last_redeemed_at = p_redeemed, idle_expires_at = p_expires
    WHERE ctid = _place AND id = p_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'a row that is locked is not where it was';
  END IF;
  INSERT INTO events (position, stream, back, v, body)
    VALUES (base + 1, p_id, p_back, p_before + 1, p_first), (base + 2, p_id, base + 1, p_before + 2, p_second);
  told := told || ' ' || base;
END
$function$
"""

_int: Final = struct.Struct(">i").pack
_bigint: Final = struct.Struct(">q").pack


class Refresh(Call):
    """A batch that moves one stream by two events. `unit` is that of the stream."""

    __slots__ = ("unit",)

    name = b"ledger_refresh"
    parameters = _PARAMETERS
    formats: ClassVar[list[Format]] = [Format.BINARY] * len(_PARAMETERS)
    ask = "SELECT ledger_refresh({})"

    def __init__(self, parameters: list[bytes | None], unit: int) -> None:
        super().__init__(parameters)
        self.unit = unit

    def _read(self, row: PGresult) -> Told:
        told = row.get_value(0, 0)
        assert told is not None
        control, serial, *bases = map(int, told.split())
        (base,) = bases or (None,)
        return Told((control, serial), Written(base, frozenset() if base != 0 else frozenset({self.unit})))


def function() -> str:
    """The statement that makes the function."""
    return _FUNCTION.format(parameters=declared(Refresh), lock=LOCK, bits=POSITION_BITS)


def refresh(work: CheckedWork) -> Refresh | None:
    """The call of a batch of moves, where it moves one stream by two events: None where it does not."""
    moved: list[tuple[Any, ...]] = work.moved
    events = work.events
    if len(moved) != 1 or len(events) != 2:
        return None
    ((_, _, head, padded, generation, redeemed, expires, id, before),) = moved
    (_, _, _, back, first), (_, _, _, _, second) = events
    control, serial = work.stands_on
    parameters: list[bytes | None] = [
        _bigint(control),
        _bigint(serial),
        bytes.fromhex(id),
        _int(before),
        _bigint(back),
        head,
        padded.rstrip(b"\0"),  # room is made by the table here
        None if generation is None else _int(generation),
        None if redeemed is None else _bigint(redeemed),
        None if expires is None else _bigint(expires),
        first.encode(),
        second.encode(),
    ]
    return Refresh(parameters, work.unit_of[work.names[id]])
