"""A stream's events as they were recorded: each is the one whose hash the next one holds, or the head (I-14)."""

import hashlib
from itertools import pairwise
from typing import Final

import msgspec

from ledger.recorders.errors import EventsAltered, Withheld
from ledger.recorders.rows import Reads, StoredEvent


class _Link(msgspec.Struct):
    """Of a stored event what links it to the one before."""

    prev: str | None = None


_link_of: Final = msgspec.json.Decoder(_Link).decode


def recorded(reads: Reads, name: str, from_v: int, to_v: int) -> list[StoredEvent]:
    """A stream's events from `from_v` to `to_v`, both included, oldest first. Raises HistoryBroken.

    One more is read than is asked for. Where the archive's time is over for that one, it links nothing any more.
    """
    try:
        found = reads.events(name, from_v, to_v + 1)
    except Withheld:
        found = reads.events(name, from_v, to_v)
    for each, after in pairwise(found):
        try:
            prev = _link_of(after.body).prev
        except msgspec.DecodeError:
            raise EventsAltered(f"{name}/{after.v}") from None
        if prev != _hash(each).hex():
            raise EventsAltered(f"{name}/{each.v}")
    if not found:
        return []
    head = reads.stream(name)
    if head is not None and found[-1].v == head.v and head.head != _hash(found[-1]):
        raise EventsAltered(f"{name}/{head.v}")
    return found[: to_v - from_v + 1]


def _hash(stored: StoredEvent) -> bytes:
    return hashlib.sha256(stored.body.encode()).digest()
