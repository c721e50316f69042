"""A batch's work as the parameters of the appending function: arrays in PostgreSQL's binary form, the rest as JSON.

Arrays are packed here because that costs a tenth of what the driver takes for lists.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import repeat
from typing import Any, Final

import msgspec
from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

from ledger.recorders import postgres_archive, private_rows
from ledger.recorders.postgres_keys import key_of
from ledger.recorders.premises import CheckedWork

_KEYS: Final[Mapping[str, str]] = {
    private_rows.KEEP_GRANT: "keep_grant",
    private_rows.KEEP_CONTEXT: "keep_context",
    private_rows.KEEP_SUBJECT: "keep_subject",
    private_rows.KEEP_REASON: "keep_reason",
    private_rows.CLAIM_GRANT: "claim_grant",
    private_rows.FORGET_NONCE: "forget_nonce",
    private_rows.SPEND: "spend",
    private_rows.PRUNE_SINGLE_USE: "prune_single_use",
    private_rows.ERASE_CONTEXTS: "erase_contexts",
    private_rows.ERASE_REASONS: "erase_reasons",
    private_rows.ERASE_OWN_REASONS: "erase_own_reasons",
    private_rows.ERASE_GRANTS: "erase_grants",
    private_rows.ERASE_SUBJECT: "erase_subject",
    private_rows.PROBE: "probe",
}

_HEADER: Final = struct.Struct(">iiIii")  # dimensions, whether there are nulls, type of an element, length, lower bound
_EMPTY: Final = struct.Struct(">iiI")
_LENGTH: Final = struct.Struct(">i")
_NULL: Final = _LENGTH.pack(-1)
_SIXTEEN: Final = _LENGTH.pack(16).hex()
_BIGINT: Final = struct.Struct(">iq")
_INT: Final = struct.Struct(">ii")
_BYTEA_OID, _BIGINT_OID, _INT_OID, _TEXT_OID, _UUID_OID = 17, 20, 23, 25, 2950


class Bigints(bytes):
    """A packed bigint[]."""


class Ints(bytes):
    """A packed int[]."""


class Texts(bytes):
    """A packed text[]."""


class Byteas(bytes):
    """A packed bytea[]."""


class Uuids(bytes):
    """A packed uuid[]."""


class Json(bytes):
    """A JSON text."""


class _Packed(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


class _Text(_Packed):
    format = Format.TEXT


def _dumper(base: type[_Packed], of: int) -> type[_Packed]:
    return type(f"{base.__name__}{of}", (base,), {"oid": of})


def register(connection: Connection[Any]) -> None:
    """Let a connection take what is packed here as it is."""
    for kind, oid in ((Bigints, 1016), (Ints, 1007), (Texts, 1009), (Byteas, 1001), (Uuids, 2951)):
        connection.adapters.register_dumper(kind, _dumper(_Packed, oid))
    connection.adapters.register_dumper(Json, _dumper(_Text, 3802))


def bigints(values: Sequence[int | None]) -> Bigints:
    """Pack a bigint[]."""
    return Bigints(_header(_BIGINT_OID, len(values)) + _numbers(_BIGINT, 8, values))


def ints(values: Sequence[int | None]) -> Ints:
    """Pack an int[]."""
    return Ints(_header(_INT_OID, len(values)) + _numbers(_INT, 4, values))


def texts(values: Sequence[str]) -> Texts:
    """Pack a text[]. Raises UnicodeEncodeError for a lone surrogate, which UTF-8 cannot hold."""
    return Texts(_header(_TEXT_OID, len(values)) + _joined([*map(str.encode, values)]))


def byteas(values: Sequence[bytes]) -> Byteas:
    """Pack a bytea[]."""
    return Byteas(_header(_BYTEA_OID, len(values)) + _joined(values))


def uuids(values: Sequence[Any]) -> Uuids:
    """Pack a uuid[] of hex digits."""
    parts = bytes.fromhex(_SIXTEEN + _SIXTEEN.join(values)) if values else b""
    return Uuids(_header(_UUID_OID, len(values)) + parts)


@cache
def _header(oid: int, length: int) -> bytes:
    # That there may be a null is no statement that there is one.
    return _HEADER.pack(1, 1, oid, length, 1) if length else _EMPTY.pack(0, 0, oid)


def _numbers(of: struct.Struct, width: int, values: Sequence[int | None]) -> bytes:
    if None in values:
        return b"".join([_NULL if value is None else of.pack(width, value) for value in values])
    return b"".join(map(of.pack, repeat(width), values))


def _joined(values: Sequence[bytes]) -> bytes:
    parts = [b""] * (2 * len(values))
    parts[::2] = map(_LENGTH.pack, map(len, values))
    parts[1::2] = values
    return b"".join(parts)


def parameters(work: CheckedWork, archiver: str | None) -> tuple[object, ...]:
    """The parameters of the appending function, in its order. `archiver` is this process's name as the one who
    archives."""
    unit_of, names, read = work.unit_of, work.names, work.read
    moved: list[tuple[Any, ...]] = work.moved
    written: list[tuple[Any, ...]] = work.events
    stream, v, back, body = events(work)
    floor, rows = _rows(work, archiver)
    return (
        *work.stands_on, work.units, work.now, work.control, work.serial, floor,
        uuids([each[0] for each in read]), ints([each[1] for each in read]), ints([each[2] for each in read]),
        *heads(work), ints([unit_of[names[each[7]]] for each in moved]),
        *_made(work),
        stream, v, back, ints([unit_of[names[each[1]]] for each in written]), body,
        rows,
    )  # fmt: skip


def heads(work: CheckedWork) -> tuple[bytes, ...]:
    """The heads that move: keys, versions before, and what they are now."""
    if not work.moved:
        return uuids(()), ints(()), ints(()), bigints(()), byteas(()), byteas(()), ints(()), bigints(()), bigints(())
    v, position, head, padded, generation, redeemed, expires, id, before = zip(*work.moved, strict=True)
    state = [each.rstrip(b"\0") for each in padded]  # room is made by the table here
    return (
        uuids(id), ints(before), ints(v), bigints(position), byteas(head), byteas(state), ints(generation),
        bigints(redeemed), bigints(expires),
    )  # fmt: skip


def events(work: CheckedWork) -> tuple[bytes, ...]:
    """The events in their order: streams' keys, versions, where the stream's event before is, and bodies."""
    if not work.events:
        return uuids(()), ints(()), bigints(()), texts(())
    _, stream, v, back, body = zip(*work.events, strict=True)
    return uuids(stream), ints(v), bigints(back), texts(body)


def _made(work: CheckedWork) -> tuple[bytes, ...]:
    made: list[tuple[Any, ...]] = work.made
    return (
        uuids([each[0] for each in made]),
        texts([each[1] for each in made]),
        ints([each[2] for each in made]),
        bigints([each[3] for each in made]),
        byteas([each[4] for each in made]),
        byteas([each[5].rstrip(b"\0") for each in made]),
        ints([each[6] for each in made]),
        bigints([each[7] for each in made]),
        bigints([each[8] for each in made]),
        ints([work.unit_of[each[1]] for each in made]),
    )


def _rows(work: CheckedWork, archiver: str | None) -> tuple[int | None, Json | None]:
    """The acknowledged position to go on above, if any, and private, projected and archived rows: lists of
    [unit, values…]."""
    rows: dict[str, Any] = {}
    archive = postgres_archive.Rows(archiver)
    floor = None
    for unit, (statement, values) in zip(work.private_units, work.private, strict=True):
        if statement == private_rows.RAISE_FLOOR:
            (floor,) = values
            continue
        if statement in postgres_archive.KINDS:
            archive.add(unit, statement, values)
            continue
        rows.setdefault(_KEYS[statement], []).append((unit, *map(_plain, _keyed(statement, values))))
    unit_of = work.unit_of
    for key, by_key in work.projected.items():
        rows[key] = [(unit_of[stream], *values) for stream, values in by_key.values()]
    if moved := archive.told():
        rows["archive"] = moved
    assert floor is None or isinstance(floor, int)
    return floor, Json(_encoded(rows)) if rows else None


def _keyed(statement: str, values: tuple[object, ...]) -> tuple[object, ...]:
    """What these tables hold in place of an event's id, or of the name of a stream: its key."""
    if statement == private_rows.KEEP_REASON:
        event_id, *more = values
        stream, _, v = str(event_id).rpartition("/")
        return key_of(stream), int(v), *more
    if statement == private_rows.ERASE_OWN_REASONS:
        return (key_of(str(values[0])),)
    return values


_encoded: Final[Callable[[object], bytes]] = msgspec.json.Encoder().encode


def _plain(value: object) -> object:
    return "\\x" + value.hex() if isinstance(value, bytes) else value
