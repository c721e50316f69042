"""Is this refresh token current, and what scope does its grant carry? One row a grant, written with its events.

A row says what the grant's own events say; whether the grant lives is judged when asked (`grant_views.py`), because
frozen expiries and epochs end grants without an event of theirs. A grant of the code flow has its row from the sign-in
on, without a generation until its code is exchanged. The rowid is the position of the first event, so every list is in
log order. What every refresh changes (generation, last redemption, idle expiry) is read from the head of the grant's
stream, which it writes anyway: so it rewrites one row in place, and none here.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, assert_never

import msgspec

from ledger import times
from ledger.events import (
    AccessTokenRevoked,
    AnyEvent,
    ForeignClientPresented,
    GrantAuthorized,
    GrantEvent,
    GrantExpired,
    GrantFact,
    GrantIssued,
    GrantReinstated,
    GrantRevoked,
    GrantSuspended,
    PresentationsCounted,
    RefreshTokenWithheld,
    RetryServed,
    ReuseDetected,
    RollbackDetected,
    ScopeReduced,
    ScopeRestored,
    TokenRedeemed,
    TokenRotated,
    decode,
)
from ledger.inline import Write
from ledger.recorders.rows import Reads, StoredEvent

TABLE: Final = "current_tokens_v1"

_BEGUN: Final = (
    "position", "client_id", "subject_id", "issued_by", "client_epoch", "subject_epoch", "granted_scope", "issued_at",
)  # fmt: skip
_ABSOLUTE: Final = ("absolute_expires_at",)
_SCOPE: Final = ("scope",)
_STATE: Final = ("state", "state_position")

WRITES: Final = (
    Write("insert", TABLE, "grant_id", (*_BEGUN, *_ABSOLUTE, *_SCOPE, *_STATE)),
    Write("update", TABLE, "grant_id", _SCOPE),
    Write("update", TABLE, "grant_id", _STATE),
    Write("update", TABLE, "grant_id", _ABSOLUTE),
)
_INSERT, _RESCOPE, _TURN, _LIMIT = range(4)
_GRANT_ID: Final = len("grant:")  # where the id begins in a stream's name

_DDL: Final = (
    # Times are the events' own texts, a scope is its words between spaces. `state` is what the grant's own events say,
    # `state_position` where the last of them that says so lies in `events` (null: none since the first).
    f"CREATE TABLE {TABLE} (position INTEGER PRIMARY KEY, grant_id TEXT NOT NULL UNIQUE, client_id TEXT NOT NULL,"
    " subject_id TEXT NOT NULL, issued_by TEXT NOT NULL, client_epoch INTEGER NOT NULL,"
    " subject_epoch INTEGER NOT NULL, granted_scope TEXT NOT NULL, issued_at TEXT NOT NULL, absolute_expires_at TEXT,"
    " scope TEXT NOT NULL, state TEXT NOT NULL, state_position INTEGER) STRICT",
    f"CREATE INDEX {TABLE}_client ON {TABLE} (client_id)",
    f"CREATE INDEX {TABLE}_subject ON {TABLE} (subject_id)",
)

Rows = Iterable[tuple[int, tuple[object, ...]]]


class CurrentTokens:
    """The projection. A grant's first command yields one insert, a redemption nothing."""

    name = TABLE
    ddl = _DDL
    writes = WRITES
    heeds: frozenset[type[AnyEvent]] = frozenset(
        {
            GrantAuthorized, GrantExpired, GrantIssued, GrantReinstated, GrantRevoked, GrantSuspended, ScopeReduced,
            ScopeRestored,
        }
    )  # fmt: skip

    def rows(self, events: Sequence[AnyEvent], positions: Sequence[int]) -> Rows:
        """What one command's events change of its grant's row: see `Inline`."""
        changes: dict[int, tuple[object, ...]] = {}
        grant_id = ""
        for event, position in zip(events, positions, strict=True):
            if not isinstance(event, GrantFact):
                return ()
            grant_id = event.stream[_GRANT_ID:]
            _change(changes, event, position)
        begun = changes.pop(_INSERT, None)
        if begun is None:
            return [(index, (*values, grant_id)) for index, values in changes.items()]
        # What else the first command said belongs into the same insert: there is no row to update yet.
        later = (changes.get(index, ()) for index in (_LIMIT, _RESCOPE, _TURN))
        return [(_INSERT, (grant_id, *begun, *(value for values in later for value in values)))]


def _change(changes: dict[int, tuple[object, ...]], event: GrantEvent, position: int) -> None:
    """Note what one event sets: a later event of the same command overrides an earlier one."""
    match event:
        case ScopeReduced() | ScopeRestored():
            changes[_RESCOPE] = (" ".join(event.scope_after),)
        case GrantAuthorized():
            _begin(changes, event, position)
            changes[_LIMIT] = (event.code_expires_at,)
        case GrantIssued():
            if event.v == 1:
                _begin(changes, event, position)
            changes[_LIMIT] = (event.absolute_expires_at,)
        case GrantSuspended():
            changes[_TURN] = ("suspended", position)
        case GrantReinstated():
            changes[_TURN] = ("active", position)
        case GrantRevoked():
            changes[_TURN] = ("revoked", position)
        case GrantExpired():
            changes[_TURN] = ("expired", position)
        case (
            TokenRedeemed()  # these three move what stands in the head
            | TokenRotated()
            | RefreshTokenWithheld()
            | RetryServed()  # the same successor again: nothing moves
            | ReuseDetected()
            | RollbackDetected()
            | AccessTokenRevoked()
            | ForeignClientPresented()
            | PresentationsCounted()
        ):
            pass
        case _:
            assert_never(event)


def _begin(changes: dict[int, tuple[object, ...]], event: GrantAuthorized | GrantIssued, position: int) -> None:
    """A grant's first event: what no later one changes, and the scope that it begins with."""
    granted = " ".join(event.scope)
    changes[_INSERT] = (
        position, event.client_id, event.subject_id, event.issued_by, event.client_epoch, event.subject_epoch, granted,
        event.at,
    )  # fmt: skip
    changes[_RESCOPE] = (granted,)
    changes[_TURN] = ("active", None)


class Row(msgspec.Struct, frozen=True):
    """One grant's row, in the order of `_SELECT`. `state_body` holds the bytes of the event that `state` comes from.

    `generation` is that of the current refresh token, None where the client was given none; `last_redeemed_at` and
    `idle_expires_at_us` are microseconds, None for never.
    """

    position: int
    grant_id: str
    client_id: str
    subject_id: str
    issued_by: str
    client_epoch: int
    subject_epoch: int
    granted_scope: str
    issued_at: str
    absolute_expires_at: str | None
    scope: str
    state: str
    state_position: int | None
    state_body: bytes | None
    generation: int | None
    last_redeemed_at_us: int | None
    idle_expires_at_us: int | None

    @property
    def said(self) -> AnyEvent | None:
        """The event that `state` comes from: None where there is none, also where somebody has deleted or altered it,
        though `state_position` says that there was one."""
        try:
            return None if self.state_body is None else decode(self.state_body)
        except msgspec.DecodeError:
            return None

    @property
    def issued_at_us(self) -> int:
        """`issued_at` in microseconds, as epochs compare it."""
        return times.micros(self.issued_at)

    @property
    def last_redeemed_at(self) -> str | None:
        """When a refresh token was redeemed last; None: never."""
        return None if self.last_redeemed_at_us is None else times.text(self.last_redeemed_at_us)

    @property
    def idle_expires_at(self) -> str | None:
        """When the grant expires unless it is used; None: never."""
        return None if self.idle_expires_at_us is None else times.text(self.idle_expires_at_us)


_SELECT: Final = (
    f"SELECT {', '.join('t.' + name for name in Row.__struct_fields__[:-4])}, CAST(coalesce(e.body, a.said) AS BLOB),"  # noqa: S608  # names of ours alone
    f" s.generation, s.last_redeemed_at, s.idle_expires_at FROM {TABLE} t"
    " LEFT JOIN events e ON e.position = t.state_position"
    " LEFT JOIN archived a ON a.said_position = t.state_position LEFT JOIN streams s ON s.name = 'grant:' || t.grant_id"
)


def one(reads: Reads, grant_id: str) -> Row | None:
    """A grant's row, None where there never was such a grant. Raises NoTime where a time in it is none any more."""
    rows = reads.select(f"{_SELECT} WHERE t.grant_id = ?", (grant_id,))
    return _read(rows[0]) if rows else None


def page(
    reads: Reads,
    *,
    client_id: str | None = None,
    subject_id: str | None = None,
    issued_by: str | None = None,
    clients: Collection[str] | None = None,
    after: int = 0,
    limit: int,
) -> list[Row]:
    """At most `limit` rows after a position and below the horizon, oldest first; each filter left out lets all pass.

    `clients` limits to some clients (an operator's own). Constant memory; a client's and a subject's rows are found by
    index, an issuer's and those of several clients by reading on until there are enough. Raises as `one` does.
    """
    if clients is not None and not clients:
        return []
    terms = ["t.position > ?", "t.position < ?"]
    values: list[object] = [after, reads.horizon]
    for column, value in (("client_id", client_id), ("subject_id", subject_id), ("issued_by", issued_by)):
        if value is not None:
            terms.append(f"t.{column} = ?")
            values.append(value)
    if clients is not None:
        # Of several clients the index gives no order: all their rows would be sorted for each page. An expression keeps
        # SQLite from choosing it.
        column = "t.client_id" if len(clients) == 1 else "t.client_id || ''"
        terms.append(f"{column} IN ({', '.join('?' * len(clients))})")
        values.extend(clients)
    rows = reads.select(f"{_SELECT} WHERE {' AND '.join(terms)} ORDER BY t.position LIMIT ?", (*values, limit))
    return [_read(row) for row in rows]


def _read(values: Sequence[object]) -> Row:
    """A row as it lies there: somebody may have altered a time in it until it is none."""
    row = Row(*values)  # type: ignore[arg-type]  # the table is STRICT
    for name, stored in (("issued_at", row.issued_at), ("absolute_expires_at", row.absolute_expires_at)):
        if stored is not None and times.known(stored) is None:
            raise times.NoTime(f"grant:{row.grant_id}: {name} is no time")
    for name, at in (("last_redeemed_at", row.last_redeemed_at_us), ("idle_expires_at", row.idle_expires_at_us)):
        if at is not None and not times.is_moment(at):
            raise times.NoTime(f"grant:{row.grant_id}: {name} is no time")
    return row


def folded(stored: Iterable[StoredEvent]) -> Row | None:
    """The row that a grant's first events come to; None before the first. Constant memory.

    Of redemptions only the last one matters, so all others are passed by unread.
    """
    values: dict[str, object] = {"state_body": None, "last_redeemed_at_us": None}
    redemption: StoredEvent | None = None
    for each in stored:
        # No value can hold this text: a quotation mark inside one is escaped.
        if '"topic":"grant.token_' in each.body:
            redemption = each
            continue
        event = decode(each.body)
        for index, parameters in _PROJECTION.rows((event,), (each.position,)):
            values |= _named(index, parameters)
            if index == _TURN:
                values["state_body"] = each.body.encode()
        values |= _asked(event)
    if redemption is not None:
        values |= _asked(decode(redemption.body))
    return msgspec.convert(values, Row) if "position" in values else None


def _asked(event: AnyEvent) -> dict[str, object]:
    """What an event sets of that which stands in the stream's head: as the aggregate has it."""
    match event:
        case GrantAuthorized():
            return {"generation": None, "idle_expires_at_us": times.micros(event.code_expires_at)}
        case GrantIssued():
            return {"generation": event.generation, "idle_expires_at_us": _micros(event.idle_expires_at)}
        case RefreshTokenWithheld():
            return {"generation": None}
        case TokenRedeemed() | TokenRotated():
            return {
                "generation": event.generation,
                "last_redeemed_at_us": times.micros(event.at),
                "idle_expires_at_us": _micros(event.idle_expires_at),
            }
        case _:
            return {}


def _micros(at: str | None) -> int | None:
    return None if at is None else times.micros(at)


_PROJECTION: Final = CurrentTokens()


def _named(index: int, parameters: tuple[object, ...]) -> dict[str, object]:
    write = WRITES[index]
    names = (write.key, *write.columns) if write.kind == "insert" else (*write.columns, write.key)
    return dict(zip(names, parameters, strict=True))
