"""Which events may leave the store for the archive: those of grants that are over, and the old part of long streams."""

from typing import Final, NamedTuple

import msgspec

from ledger import snapshots, times
from ledger.clients import Client
from ledger.epochs import Epoch, Raise, Subject, first_hit
from ledger.events import ClientRevoked, SubjectRevoked, decode
from ledger.grant import Grant
from ledger.recorded import recorded
from ledger.recorders.archived import MOVABLE_AFTER, MOVABLE_FIRST
from ledger.recorders.errors import ArchiveDamaged, HistoryBroken
from ledger.recorders.rows import Reads, StreamKey

STREAMS_A_PAGE: Final = 200
EVENTS_A_PAGE: Final = 1_000
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
        self._raises: dict[str, list[Raise]] = {}
        self.last_position = int(str(reads.select("SELECT coalesce(max(position), 0) FROM events")[0][0]))

    def to_v(self, stream: Movable) -> int:
        """The last version that may move; 0 where none may.

        The log's very last event never does: where positions and times go on is read from it. Raises HistoryBroken,
        msgspec.DecodeError where an event that is to say when it happened is not as it was recorded.
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

    def last_at(self, grant: Grant) -> int | None:
        """When something last happened to a grant that is over: its last event, or the raise that ended it, which is
        none of its own. None where that cannot be told any more."""
        if grant.end is not None:
            return grant.at
        hits = []
        for kind, id, number, aggregate in (
            ("client", grant.client_id, grant.client_epoch, Client),
            ("subject", grant.subject_id, grant.subject_epoch, Subject),
        ):
            if self._epoch(kind, id, aggregate).hits(number, grant.issued_at):
                try:
                    hit = first_hit(self._raises_of(f"{kind}:{id}"), number, grant.issued_at)
                except (HistoryBroken, ArchiveDamaged, msgspec.DecodeError, ValueError):  # altered, or lost
                    return None
                if hit is None:
                    return None
                hits.append(hit.at)
        ended_at, expires_at = min(hits, default=0), grant.idle_expires_at
        return max(grant.at, ended_at) if expires_at is None or ended_at < expires_at else grant.at

    def _raises_of(self, name: str) -> list[Raise]:
        found = self._raises.get(name)
        if found is None:
            found, v = [], 0
            while page := recorded(self._reads, name, v + 1, v + EVENTS_A_PAGE):
                events = (decode(each.body) for each in page)
                found += [each for each in events if isinstance(each, ClientRevoked | SubjectRevoked)]
                v = page[-1].v
                if len(page) < EVENTS_A_PAGE:
                    break
            self._raises[name] = found
        return found

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
