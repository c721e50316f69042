"""A grant as operators see it: its row, judged at a moment, with what ended or blocked it.

Status and end are judged when asked: frozen expiries and epochs end grants without an event of theirs. Scopes are
space-separated here, times are texts.
"""

from collections.abc import Callable, Collection
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from ledger import standing, times
from ledger.commands import EpochEnd
from ledger.events import GrantExpired, GrantRevoked, GrantSuspended
from ledger.grant import Grant
from ledger.recorders.rows import Reads
from ledger.standing import ACTIVE, Standing
from projections.as_of import Outside, Passed, aggregate
from projections.current_tokens import TABLE, Row, one, page
from projections.disclosure import Disclosed, Disclosure

CLIENT_DISABLED: Final = "client_disabled"
COUNTED_A_PAGE = 1_000

Discloses = Callable[[Row], bool]
"""Whether the asker may see the personal data of a grant."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What ended a grant. An expiry's `at` is the frozen moment, `event_id` absent as long as no event says so;
    `reason` is the commitment."""

    reason_class: str
    reason: str | UnsetType = UNSET
    at: str
    event_id: str | UnsetType = UNSET


class GrantView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A grant at a moment; what is null is left out of its JSON.

    `subject` and `disclosed` are for those who may see them, as long as the texts are there.
    """

    grant_id: str
    client_id: str
    subject: str | UnsetType = UNSET
    status: standing.Status
    scope: str
    granted_scope: str
    generation: int | None = None
    issued_at: str
    last_redeemed_at: str | None = None
    idle_expires_at: str | None = None
    absolute_expires_at: str | None = None
    blocked_by: str | UnsetType = UNSET
    end: End | UnsetType = UNSET
    disclosed: dict[str, Disclosed] | UnsetType = UNSET


class GrantPage(msgspec.Struct, frozen=True, kw_only=True):
    """Grants in log order. `cursor` leads on from here at any time, `next_cursor` says that there is more now."""

    grants: list[GrantView]
    cursor: str
    next_cursor: str | UnsetType = UNSET


def judge(reads: Reads, row: Row, at: int, epoch_end: EpochEnd | None) -> Standing:
    """The standing of a grant at a moment not before its row's last change: as the aggregate's own `judge`, which is
    asked where the event that told is not there any more as it was. That one also knows when something last happened:
    where that was after an expiry, and the clock was put back before it since, it says expired and this does not.

    The earliest end counts, also one that no event says yet; an end of the grant's own is final (I-07).
    """
    said = row.said
    if said is None and row.state_position is not None:
        grant = aggregate(reads, f"grant:{row.grant_id}", Grant)
        return grant.judge(at, epoch_end)
    if isinstance(said, GrantRevoked):
        return standing.revoked(said.reason_class, said.requested_by, times.micros(said.at), said.event_id)
    if isinstance(said, GrantExpired):
        return standing.expired(said.kind, times.micros(said.expired_at), said.event_id)
    expires_at = row.idle_expires_at_us
    if epoch_end is not None and (expires_at is None or epoch_end.at < expires_at):
        return standing.ended_by_epoch(epoch_end)
    if expires_at is not None and (epoch_end is not None or at >= expires_at):
        kind = "absolute" if row.idle_expires_at == row.absolute_expires_at else "idle"
        return standing.expired(kind, expires_at, None)
    if isinstance(said, GrantSuspended):
        return standing.suspended(said.reason_class, times.micros(said.at), said.event_id)
    return ACTIVE


def view(row: Row, outside: Outside, disclosure: Disclosure | None) -> GrantView:
    """A row as it is shown, judged at the moment of `outside`; with personal data where `disclosure` is given."""
    passed = outside.ended_by(row)
    judged = judge(outside.reads, row, outside.at, None if passed is None else passed.end)
    enabled = outside.client(row.client_id).enabled
    end = None if not judged.ended else _end(row, judged, passed)
    blocked = not judged.ended and not enabled
    return GrantView(
        grant_id=row.grant_id,
        client_id=row.client_id,
        subject=UNSET if disclosure is None else disclosure.subject(row.subject_id) or UNSET,
        status="suspended" if blocked else judged.status,
        scope=row.scope,
        granted_scope=row.granted_scope,
        generation=row.generation,
        issued_at=row.issued_at,
        last_redeemed_at=row.last_redeemed_at,
        idle_expires_at=row.idle_expires_at,
        absolute_expires_at=row.absolute_expires_at,
        blocked_by=CLIENT_DISABLED if blocked else UNSET,
        end=UNSET if end is None else end,
        disclosed=UNSET if disclosure is None or end is None else _why(end, disclosure),
    )


def _end(row: Row, judged: Standing, passed: Passed | None) -> End:
    assert judged.reason_class is not None
    assert judged.at is not None
    event = passed.event if passed is not None and passed.event.event_id == judged.event_id else row.said
    reason = getattr(event, "reason", None) if judged.event_id is not None else None
    return End(
        reason_class=judged.reason_class,
        reason=UNSET if reason is None else reason,
        at=times.text(judged.at),
        event_id=UNSET if judged.event_id is None else judged.event_id,
    )


def _why(end: End, disclosure: Disclosure) -> dict[str, Disclosed] | UnsetType:
    if end.reason is UNSET or end.event_id is UNSET:
        return UNSET
    opened = disclosure.reason(end.event_id, end.reason)
    return UNSET if opened is None else {"reason": opened}


def grant(reads: Reads, grant_id: str, at: int, discloses: Discloses) -> GrantView | None:
    """One grant as it is now, `at` being the wall clock (microseconds); None where there is no such grant."""
    row = one(reads, grant_id)
    if row is None:
        return None
    return view(row, Outside(reads, at), Disclosure(reads) if discloses(row) else None)


def grants(
    reads: Reads,
    at: int,
    *,
    client_id: str | None = None,
    subject_id: str | None = None,
    issued_by: str | None = None,
    clients: Collection[str] | None = None,
    state: standing.Status | None = None,
    after: int = 0,
    limit: int,
    discloses: Discloses,
) -> GrantPage:
    """Grants after a cursor as they are now, oldest first; `at` is the wall clock, the filters those of `page`.

    `state` is judged, so a page filtered by it may hold fewer than `limit` though `next_cursor` leads on.
    """
    rows = page(
        reads,
        client_id=client_id,
        subject_id=subject_id,
        issued_by=issued_by,
        clients=clients,
        after=after,
        limit=limit + 1,
    )
    outside, disclosure, shown = Outside(reads, at), Disclosure(reads), rows[:limit]
    outside.ask_for(shown)
    disclosure.ask_for([row.subject_id for row in shown if discloses(row)])
    views = (view(row, outside, disclosure if discloses(row) else None) for row in shown)
    cursor = str(shown[-1].position if shown else after)
    return GrantPage(
        grants=[each for each in views if state in (None, each.status)],
        cursor=cursor,
        next_cursor=cursor if len(rows) > limit else UNSET,
    )


def live_count(reads: Reads, client_id: str, at: int, go_on: Callable[[], bool] = lambda: True) -> int | None:
    """How many grants of a client are active at a moment, or are but for its being disabled.

    Constant memory; a page at a time, so that no question takes long however many there are. None where `go_on`, asked
    before each page, says no.

    Judged in the table; only grants of persons who were ever ended by an epoch are looked at one by one.
    """
    epoch = Outside(reads, at).client(client_id).epoch
    living = (
        "t.state = 'active' AND (g.idle_expires_at IS NULL OR g.idle_expires_at > ?)"
        " AND t.client_epoch >= ? AND t.issued_at >= ?"
    )
    judged = (
        f"SELECT t.position, t.subject_id, t.subject_epoch, t.issued_at, {living} AS living"  # noqa: S608  # names of ours alone
        f" FROM {TABLE} t LEFT JOIN streams g ON g.name = 'grant:' || t.grant_id"
        " WHERE t.client_id = ? AND t.position > ? ORDER BY t.position LIMIT ?"
    )
    ended = "EXISTS (SELECT 1 FROM streams s WHERE s.name = 'subject:' || p.subject_id)"
    question = f"SELECT p.*, p.living AND {ended} FROM ({judged}) AS p"  # noqa: S608  # names of ours alone
    values = (at, epoch.unbounded, times.text(epoch.latest_before), client_id)
    alive = last = 0
    while go_on():
        rows = reads.select(question, (*values, last, COUNTED_A_PAGE))
        if not rows:
            return alive
        outside = Outside(reads, at)
        for position, subject_id, subject_epoch, issued_at, lives, may_be_ended in rows:
            last = max(last, int(str(position)))
            alive += bool(lives)
            if may_be_ended:
                subject = outside.subject(str(subject_id))
                alive -= subject.epoch.hits(int(str(subject_epoch)), times.micros(str(issued_at)))
    return None
