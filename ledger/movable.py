"""Which events may leave the store for the archive: those of grants that are over, and the old part of long streams."""

from typing import Final, NamedTuple

from ledger import snapshots, times
from ledger.clients import Client
from ledger.epochs import Epoch, Subject
from ledger.events import decode
from ledger.grant import Grant
from ledger.recorders.archived import MOVABLE_AFTER, MOVABLE_FIRST
from ledger.recorders.rows import Reads, StreamKey

STREAMS_A_PAGE: Final = 200
PART_EVENTS_MIN: Final = 128
"""Of a stream that goes on nothing moves before so many of its events may: a piece's row is to be worth its place."""


class Movable(NamedTuple):
    """A stream, and what of it may move: its versions after `moved_v`, the last moved one hashing to `head`. Of one
    with nothing outside the archive, or whose snapshot cannot be read, `aggregate` is None."""

    id: StreamKey
    name: str
    v: int
    position: int
    moved_v: int
    head: bytes | None
    aggregate: snapshots.Aggregate | None


def streams(reads: Reads, after: StreamKey | None) -> list[Movable]:
    """The next streams by key, None for the first ones; none where all have been told."""
    found = (
        reads.select(MOVABLE_FIRST, (STREAMS_A_PAGE,))
        if after is None
        else reads.select(MOVABLE_AFTER, (after, STREAMS_A_PAGE))
    )
    return [
        Movable(id, name, v, position, moved_v or 0, moved_head, _snapshot(name, v, head, state))  # type: ignore[arg-type]  # the tables are STRICT
        for id, name, v, position, head, state, moved_v, moved_head in found
    ]


def _snapshot(name: object, v: object, head: object, state: object) -> snapshots.Aggregate | None:
    if state is None:
        return None
    assert isinstance(name, str)
    assert isinstance(v, int)
    assert isinstance(head, bytes)
    assert isinstance(state, bytes)
    return snapshots.decode(state, name, v, head, snapshots.kind_of(name))


class Judging:
    """Says how far streams may move, at one committed moment: what happened earlier than `before` (microseconds)."""

    def __init__(self, reads: Reads, before: int) -> None:
        self._reads = reads
        self._before = before
        self._epochs: dict[str, Epoch] = {}
        self.last_position = int(str(reads.select("SELECT coalesce(max(position), 0) FROM events")[0][0]))

    def to_v(self, stream: Movable) -> int:
        """The last version that may move; 0 where none may.

        The log's very last event never does: where positions and times go on is read from it.
        """
        last_v = stream.v - (stream.position == self.last_position)
        if stream.aggregate is None or last_v <= stream.moved_v:
            return 0
        old = stream.aggregate.at < self._before
        if old and isinstance(stream.aggregate, Grant) and self.standing(stream.aggregate)[2]:
            return last_v
        if last_v - stream.moved_v < PART_EVENTS_MIN:
            return 0
        if not old:
            last_v = self._last_before(stream, last_v)
        return last_v if last_v - stream.moved_v >= PART_EVENTS_MIN else 0

    def standing(self, grant: Grant) -> tuple[str, str | None, bool]:
        """What a grant has come to: state, reason class where an event of its own says one, and whether it is over."""
        own = grant.end
        if own is not None:
            return own.status, own.reason_class, True
        expires_at = grant.idle_expires_at
        if expires_at is not None and expires_at <= self._before:
            return "expired", "expiry", True
        if self._epoch("client", grant.client_id, Client).hits(grant.client_epoch, grant.issued_at) or self._epoch(
            "subject", grant.subject_id, Subject
        ).hits(grant.subject_epoch, grant.issued_at):
            return "revoked", None, True
        if grant.suspension is not None:
            return "suspended", grant.suspension.reason_class, False
        return "active", None, False

    def _epoch(self, kind: str, id: str, aggregate: type[Client] | type[Subject]) -> Epoch:
        name = f"{kind}:{id}"
        found = self._epochs.get(name)
        if found is None:
            head = self._reads.stream(name)
            known = None if head is None else snapshots.decode(head.state, name, head.v, head.head, aggregate)
            # A snapshot that cannot be read ends nobody: whoever it would end stays where they are.
            found = self._epochs[name] = Epoch() if known is None else known.epoch
        return found

    def _last_before(self, stream: Movable, last_v: int) -> int:
        """The last version that happened early enough, found by halving; `moved_v` where none did."""
        before, low, high = times.text(self._before), stream.moved_v, last_v + 1
        while high - low > 1:
            middle = (low + high) // 2
            stored = self._reads.event_at(stream.name, middle)
            if stored is not None and decode(stored.body).at < before:
                low = middle
            else:
                high = middle
        return low
