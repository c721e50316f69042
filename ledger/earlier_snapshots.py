"""Snapshots as the release before wrote them: read, so that an update costs no replay (I-22); never written any more.

Each becomes one of today's format with the next event of its stream. Format 2 said more of grants: times of a
redemption as texts, its first context also where that was the last, and the stream's own name.
"""

from typing import Any, TypeVar

import msgspec

from ledger.grant import Grant
from ledger.times import moment

FORMAT = 2

_REDEMPTIONS = [Grant.__struct_fields__.index(name) for name in ("redeemed", "previous")]
_FIRST_CONTEXT, _CONTEXT, _UNTIL = 1, 2, slice(6, 9)

_T = TypeVar("_T")
_decoder = msgspec.msgpack.Decoder(tuple[int, int, bytes, list[Any], bool])


def decode(blob: bytes, kind: type[_T]) -> tuple[int, bytes, _T] | None:
    """Version, hash and aggregate of a snapshot, without its padding; None where it is of no format that is read here,
    or cannot be read at all."""
    try:
        form, v, head, members, _ = _decoder.decode(blob)
        if form != FORMAT:
            return None
        if kind is Grant:
            for redemption in (members[at] for at in _REDEMPTIONS):
                if redemption is not None:
                    _change(redemption)
        return v, head, msgspec.convert(members, kind)
    except (msgspec.DecodeError, ValueError, TypeError, LookupError):  # whatever damage leads to
        return None


def _change(redemption: list[Any]) -> None:
    redemption[_UNTIL] = map(moment, redemption[_UNTIL])
    if redemption[_FIRST_CONTEXT] == redemption[_CONTEXT]:
        redemption[_FIRST_CONTEXT] = None
