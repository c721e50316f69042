"""Which grants saw a retired token, and what do we know? One row a reuse, and one a retry that used the budget.

An incident says who was first and who came again, the gap between what was presented and what was current, what the
family has obtained since the presented token was first redeemed, and what of that is alive (RFC 9700 4.14.2).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from ledger import standing, times
from ledger.events import AnyEvent, RetryServed, ReuseDetected, TokenRedeemed, TokenRotated, decode
from ledger.grant import Grant
from ledger.grant_state import access_token_of
from ledger.inline import Write
from ledger.recorders.errors import EventsAltered, EventsMissing, HistoryBroken, Withheld
from ledger.recorders.rows import Reads, StoredEvent
from ledger.standing import Standing
from projections import current_tokens
from projections.as_of import Outside, aggregate
from projections.current_tokens import Row
from projections.disclosure import Disclosed, Disclosure
from projections.grant_views import judge

TABLE: Final = "reuse_incidents_v1"
RETRY: Final = "retry"
"""How a retry that counted is labelled in the table; which of them are suspect is judged when asked."""
SUSPECT_RETRY: Final = "suspect_retry"

OBTAINED_MAX: Final = 16
"""Access tokens that an incident lists: the latest ones, which alone can be alive."""
TAIL_EVENTS: Final = 64
LOOK_BACK_EVENTS: Final = 8
SCANNED_MAX: Final = 2_000
"""Rows that one page looks at. A page may so hold fewer incidents than its limit though more follow."""
PAGE_ROWS: Final = 100

_DDL: Final = (
    # All else stands in the event at this position: a reuse, or a retry that used the budget. Whether the retry came
    # from another context than the redeemer's is no member of its event; the question compares them.
    f"CREATE TABLE {TABLE} (position INTEGER PRIMARY KEY, grant_id TEXT NOT NULL, at TEXT NOT NULL,"
    " label TEXT NOT NULL) STRICT",
)
_LAST_WITHHELD: Final = "SELECT max(to_v) FROM archived WHERE stream = ? AND to_v >= ? AND withheld = 1"
_GRANT_ID: Final = len("grant:")  # where the id begins in a stream's name


class ReuseIncidents:
    """The projection: an insert for each event that may be an incident, nothing for any other."""

    name = TABLE
    ddl = _DDL
    writes = (Write("insert", TABLE, "position", ("grant_id", "at", "label")),)
    heeds: frozenset[type[AnyEvent]] = frozenset({ReuseDetected, RetryServed})

    def rows(self, events: Sequence[AnyEvent], positions: Sequence[int]) -> Iterable[tuple[int, tuple[object, ...]]]:
        """What one command's events add: see `Inline`."""
        return [
            (0, (position, event.stream[_GRANT_ID:], event.at, label))
            for event, position in zip(events, positions, strict=True)
            if (label := _label(event)) is not None
        ]


def _label(event: AnyEvent) -> str | None:
    if isinstance(event, ReuseDetected):
        return event.label
    return RETRY if isinstance(event, RetryServed) and event.counts else None


class Obtained(msgspec.Struct, frozen=True, kw_only=True):
    """An access token that the family was given: by which redemption or retry of which generation, from where.

    `disclosed` opens `context`, as long as its text is there.
    """

    event_id: str
    at: str
    generation: int
    context: str
    scope: str
    format: str
    expires_at: str
    disclosed: dict[str, Disclosed] | UnsetType = UNSET


class Alive(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What can still be used; what is null is left out of its JSON. `refresh_token_until` is null where no refresh
    token works now or where it never ends by itself; `access_tokens_until` is null where none works. A JWT counts until
    it expires, whatever happened to its grant: who does not ask for its standing takes it."""

    status: standing.Status
    refresh_token: bool
    refresh_token_until: str | None = None
    access_tokens_until: str | None = None


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A retired token came back. `first_context` redeemed it, `context` presented it again (commitments). Who was
    first, and when, is left out where the redemption before a retry was deleted or altered.

    `gap` is how many generations it was behind. `obtained` lists the latest access tokens since the presented
    generation was first redeemed, oldest first, all of them unless `obtained_more`. `presentations_counted` is how
    often tokens of the grant came without an event of their own, since its issuance or its end.
    """

    event_id: str
    grant_id: str
    client_id: str
    subject: str | UnsetType = UNSET
    at: str
    label: str
    presented_generation: int
    current_generation: int
    gap: int
    seconds_since_redeemed: int | UnsetType = UNSET
    action: str
    kind: str | UnsetType = UNSET
    first_context: str | UnsetType = UNSET
    context: str
    same_context: bool | UnsetType = UNSET
    auth_method: str
    proof_jkt: str | UnsetType = UNSET
    proof_x5t_s256: str | UnsetType = UNSET
    obtained: list[Obtained]
    obtained_more: bool
    alive: Alive
    presentations_counted: int
    disclosed: dict[str, Disclosed]


class Waiting(Protocol):
    """How many presentations of a grant are counted in memory: since its end, or before there was one."""

    def __call__(self, grant_id: str, *, ended: bool) -> int: ...


class IncidentPage(msgspec.Struct, frozen=True, kw_only=True):
    """Incidents in log order. `cursor` leads on from here at any time, `next_cursor` says that there may be more."""

    incidents: list[Incident]
    cursor: str
    next_cursor: str | UnsetType = UNSET


def incidents(
    reads: Reads,
    now: int,
    *,
    since: int | None = None,
    after: int = 0,
    limit: int,
    waiting: Waiting = lambda grant_id, *, ended: 0,
    go_on: Callable[[], bool] = lambda: True,
) -> IncidentPage:
    """Incidents after a cursor and not earlier than `since` (microseconds), at most `limit`, told as things are `now`.

    `waiting` says how many presentations of a grant are counted in memory and in no event yet, since its end where it
    has ended. Once `go_on` says no the page ends where it is, after one row at least: an incident is a dozen questions,
    so a store far away cannot tell a long page in the time that a request may take, however often it is asked.
    """
    telling = _Telling(reads, now, waiting)
    found: list[Incident] = []
    cursor, more = after, False
    for scanned, (position, event) in enumerate(_candidates(reads, since, after)):
        over = scanned == SCANNED_MAX or (scanned > 0 and not go_on())
        incident = telling.incident(event) if event is not None and not over else None
        more = over or (incident is not None and len(found) == limit)
        if more:
            break
        cursor = position
        if incident is not None:
            found.append(incident)
    return IncidentPage(incidents=found, cursor=str(cursor), next_cursor=str(cursor) if more else UNSET)


def _candidates(reads: Reads, since: int | None, after: int) -> Iterator[tuple[int, AnyEvent | None]]:
    """Every row's event below the horizon in log order, read in pages; None where it is withheld."""
    earliest = "" if since is None else times.text(since)
    while True:
        rows = reads.select(
            "SELECT i.position, i.grant_id, CAST(e.body AS BLOB)"  # noqa: S608  # names of ours alone
            f" FROM {TABLE} i LEFT JOIN events e ON e.position = i.position"
            " WHERE i.position > ? AND i.position < ? AND i.at >= ? ORDER BY i.position LIMIT ?",
            (after, reads.horizon, earliest, PAGE_ROWS),
        )
        for position, grant_id, body in rows:
            after = int(str(position))
            if body is None:
                body = _archived(reads, f"grant:{grant_id}", after)
            if body is None:
                yield after, None
                continue
            assert isinstance(body, str | bytes)
            try:
                yield after, decode(body)
            except msgspec.DecodeError:
                raise EventsAltered(_row(f"grant:{grant_id}", after)) from None
        if len(rows) < PAGE_ROWS:
            return


def _archived(reads: Reads, stream: str, position: int) -> str | None:
    """The event of a row that lies in the archive; None once the archive's time for it is over.

    Raises HistoryBroken where it does not lie there either: whoever deletes an event hides no incident by it.
    """
    try:
        stored = reads.event_at_position(stream, position)
    except Withheld:
        return None
    if stored is None:
        raise HistoryBroken(f"{_row(stream, position)}: the event is not in the store; rebuild names it")
    return stored.body


def _row(stream: str, position: int) -> str:
    """How a row's event is named: its id stands in what cannot be read."""
    return f"{stream}, position {position}"


class _Telling:
    """What the incidents of one page are told with."""

    def __init__(self, reads: Reads, now: int, waiting: Waiting) -> None:
        self._reads = reads
        self._outside = Outside(reads, now)
        self._disclosure = Disclosure(reads)
        self._waiting = waiting

    def incident(self, event: AnyEvent) -> Incident | None:
        """The incident that a row's event is; None for a retry from the redeemer's own context, or where the archive's
        time is over for what would say whether it is."""
        if isinstance(event, ReuseDetected):
            return self._told(
                event,
                label=event.label,
                current_generation=event.current_generation,
                seconds_since_redeemed=event.seconds_since_redeemed,
                action=event.action,
                first_context=event.first_context,
            )
        assert isinstance(event, RetryServed), "a row is a reuse or a retry"
        try:
            redeemed: TokenRedeemed | None = self._redemption(event)
        except Withheld:  # as little of an incident is left as where its own event is withheld
            return None
        except HistoryBroken:  # nobody can say any more that it was innocent
            redeemed = None
        if redeemed is not None and redeemed.context == event.context:
            return None
        return self._told(
            event,
            label=SUSPECT_RETRY,
            current_generation=event.presented_generation + 1,
            seconds_since_redeemed=UNSET
            if redeemed is None
            else (times.micros(event.at) - times.micros(redeemed.at)) // times.SECOND,
            action="none",
            kind=event.kind,
            first_context=UNSET if redeemed is None else redeemed.context,
        )

    def _told(
        self,
        event: ReuseDetected | RetryServed,
        *,
        label: str,
        current_generation: int,
        seconds_since_redeemed: int | UnsetType,
        action: str,
        first_context: str | UnsetType,
        kind: str | UnsetType = UNSET,
    ) -> Incident:
        grant_id, now = event.stream[_GRANT_ID:], self._outside.at
        row = current_tokens.one(self._reads, grant_id)
        assert row is not None, "a reuse follows an issuance"
        passed = self._outside.ended_by(row)
        epoch_end = None if passed is None else passed.end
        grant = aggregate(self._reads, event.stream, Grant)
        judged = judge(self._reads, row, now, epoch_end)
        obtained, obtained_more = self._obtained(event.stream, grant.v, event.presented_generation)
        disclosed = self._disclosure.of(event)
        if first_context is not UNSET:
            first = self._disclosure.context(event.stream, first_context)
            if first is not None:
                disclosed["first_context"] = first
        return Incident(
            event_id=event.event_id,
            grant_id=grant_id,
            client_id=row.client_id,
            subject=self._disclosure.subject(row.subject_id) or UNSET,
            at=event.at,
            label=label,
            presented_generation=event.presented_generation,
            current_generation=current_generation,
            gap=current_generation - event.presented_generation,
            seconds_since_redeemed=seconds_since_redeemed,
            action=action,
            kind=kind,
            first_context=first_context,
            context=event.context,
            same_context=UNSET if first_context is UNSET else first_context == event.context,
            auth_method=event.auth_method,
            proof_jkt=event.proof_jkt or UNSET,
            proof_x5t_s256=event.proof_x5t_s256 or UNSET,
            obtained=obtained,
            obtained_more=obtained_more,
            alive=self._alive(row, grant, judged, obtained),
            presentations_counted=grant.presentations_counted(now, epoch_end)
            + self._waiting(grant_id, ended=judged.ended),
            disclosed=disclosed,
        )

    def _redemption(self, retry: RetryServed) -> TokenRedeemed:
        """The redemption that retired what the retry presented: the nearest before it, a few events back (I-21).

        Raises Withheld where that one is withheld, HistoryBroken where it was deleted or altered. What became of older
        events keeps nobody from it.
        """
        to_v, at_once = retry.v - 1, LOOK_BACK_EVENTS
        while to_v > 0:
            try:
                page = _decoded(self._reads.events(retry.stream, max(1, to_v - at_once + 1), to_v))
            except (HistoryBroken, Withheld):
                if at_once == 1:
                    raise
                at_once = 1
                continue
            for event in reversed(page):
                if isinstance(event, TokenRedeemed):
                    return event
            to_v -= at_once
        raise EventsMissing(retry.stream, 1, retry.v - 1)

    def _obtained(self, stream: str, last_v: int, presented: int) -> tuple[list[Obtained], bool]:
        """The latest access tokens since a generation was first redeemed, and whether there were more before.

        Where events are withheld, or somebody has deleted or altered some, there may have been more: the incident
        itself is told all the same.
        """
        try:
            tail = self._tail(stream, last_v)
        except HistoryBroken:
            return [], True
        since = [each for each in map(_obtained, tail) if each is not None and each.generation >= presented]
        begins_here = any(
            event.v == 1 or (isinstance(event, TokenRotated) and event.generation <= presented) for event in tail
        )
        latest = since[-OBTAINED_MAX:]
        opened = {each: self._disclosure.context(stream, each) for each in {each.context for each in latest}}
        told = [each if (place := opened[each.context]) is None else _disclosing(each, place) for each in latest]
        return told, len(since) > OBTAINED_MAX or not begins_here

    def _tail(self, stream: str, last_v: int) -> list[AnyEvent]:
        """The latest events of a stream, or those after the last one that is withheld."""
        from_v = max(1, last_v - TAIL_EVENTS + 1)
        try:
            stored = self._reads.events(stream, from_v, last_v)
        except Withheld:
            head = self._reads.stream(stream)
            assert head is not None, "something of it is withheld"
            ((withheld_v,),) = self._reads.select(_LAST_WITHHELD, (head.id, from_v))
            stored = self._reads.events(stream, int(str(withheld_v)) + 1, last_v)
        return _decoded(stored)

    def _alive(self, row: Row, grant: Grant, judged: Standing, obtained: list[Obtained]) -> Alive:
        now = self._outside.at
        enabled = self._outside.client(row.client_id).enabled
        status = judged.status if judged.ended or enabled else "suspended"
        if status in ("revoked", "suspended"):
            last = max((times.micros(each.expires_at) for each in obtained if each.format == "jwt"), default=0)
        else:  # the idle end of a refresh token leaves access tokens alone
            last = grant.access_tokens_until
        refresh_token = status == "active" and row.generation is not None
        return Alive(
            status=status,
            refresh_token=refresh_token,
            refresh_token_until=row.idle_expires_at if refresh_token else None,
            access_tokens_until=times.text(last) if last > now else None,
        )


def _decoded(stored: Iterable[StoredEvent]) -> list[AnyEvent]:
    """What events of one stream say. Raises HistoryBroken."""
    try:
        return [decode(each.body) for each in stored]
    except msgspec.DecodeError as error:
        raise HistoryBroken(str(error)) from None


def _disclosing(obtained: Obtained, place: Disclosed) -> Obtained:
    return msgspec.structs.replace(obtained, disclosed={"context": place})


def _obtained(event: AnyEvent) -> Obtained | None:
    if not isinstance(event, TokenRedeemed | RetryServed):
        return None
    token = access_token_of(event)
    if token is None:
        return None
    return Obtained(
        event_id=event.event_id,
        at=event.at,
        generation=event.generation if isinstance(event, TokenRedeemed) else event.presented_generation,
        context=event.context,
        scope=" ".join(token.scope),
        format=token.format,
        expires_at=times.text(token.expires_at),
    )
