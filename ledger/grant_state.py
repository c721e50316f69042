"""What a grant has come to: the state that decisions and views read, and how each event moves it.

Nothing here may refuse: this also runs on replay. Only what is read is kept, bounded whatever the history (I-22), and
everything follows from the grant's own events alone, so that a replay and a snapshot are equal (I-13).
"""

from functools import lru_cache
from sys import intern
from typing import Protocol, TypeAlias, assert_never

import msgspec

from ledger import standing
from ledger.commands import AccessToken, EpochEnd, Rules
from ledger.events import (
    AccessTokenFact,
    AccessTokenRevoked,
    AnyEvent,
    ForeignClientPresented,
    GrantAuthorized,
    GrantEvent,
    GrantExpired,
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
    Words,
)
from ledger.policy import RETRY_LOOK_BACK_GENERATIONS
from ledger.refusals import Refusal
from ledger.scope import within
from ledger.standing import ACTIVE, Standing
from ledger.times import SECOND, micros, moment
from ledger.verdicts import Redemption

KEY_SPANS_MAX = 255
"""Spans of generations made under one key that are remembered; a key id is never used twice."""

REVOKED_ACCESS_TOKENS_MAX = 100
"""Access tokens given back one by one that are remembered by themselves."""


class Tally(msgspec.Struct, gc=False, array_like=True, frozen=True):
    """Presentations counted by events: how many since the issuance or the end, from when on, in how many events."""

    count: int = 0
    first_at: int = 0
    events: int = 0


NOTHING_COUNTED = Tally()
KeySpans: TypeAlias = tuple[tuple[int, int], ...]


@lru_cache(4096)
def shared(words: Words) -> Words:
    """The first of all equal ones."""
    return words


@lru_cache(4096)
def shared_spans(spans: KeySpans) -> KeySpans:
    """The first of all equal ones."""
    return spans


class Named(Protocol):
    """Whoever presents a token or asks about it: the client it names, whether it proved that, and the key it showed."""

    @property
    def client_id(self) -> str: ...
    @property
    def authenticated(self) -> bool: ...
    @property
    def proof_jkt(self) -> str | None: ...
    @property
    def proof_x5t_s256(self) -> str | None: ...


class GrantState(msgspec.Struct, gc=False, array_like=True):
    """One grant after its event `v`, of time `at`; all times are microseconds, None is unlimited. v = 0: nothing yet.

    `granted` is the scope of the issuance, `carried` what the grant carries now; `resource` None is the issuer.
    `generation` is the current refresh token's, None where there is none; `previous` how the one before it was
    redeemed, `redeemed` how the current one was (where tokens are reused). `idle_expires_at` is never later than
    `absolute_expires_at`. `key_spans`: from which generation on which key made the tokens.
    """

    v: int = 0
    at: int = 0
    stream: str = ""
    client_id: str = ""
    subject_id: str = ""
    client_epoch: int = 0
    subject_epoch: int = 0
    issued_by: str = ""
    issued_at: int = 0
    auth_time: int | None = None
    acr: str | None = None
    amr: Words | None = None
    bound_jkt: str | None = None
    bound_x5t_s256: str | None = None
    granted: Words = ()
    carried: Words = ()
    resource: Words | None = None
    idle_seconds: int | None = None
    idle_expires_at: int | None = None
    absolute_expires_at: int | None = None
    generation: int | None = None
    token_issued_at: int = 0
    key_spans: KeySpans = ()
    last_redeemed_at: int | None = None
    redeemed: Redemption | None = None
    previous: Redemption | None = None
    # Generations with a retry that counted on the budget, as far back as it looks.
    counted_retries: tuple[int, ...] = ()
    end: Standing | None = None
    suspension: Standing | None = None
    # Each label with the generation that was current at its last event since the issuance or reinstatement.
    alerted: tuple[tuple[str, int], ...] = ()
    rollback_v: int = 0
    foreign_recorded: bool = False
    tally: Tally = NOTHING_COUNTED
    revoked_access_tokens: tuple[tuple[int, int], ...] = ()  # (issuing v, when revoked)
    dead_through_v: int = 0  # every access token issued up to here is over
    access_token_longest: int = 0
    access_tokens_until: int = 0  # no access token of this grant lives beyond

    def share(self, stream: str) -> None:
        """Have what many grants have alike as one object: less memory, and what a refresh reads of them lies close.
        `stream` is the name by which the grant is found in memory."""
        self.stream = stream
        self.client_id, self.issued_by = intern(self.client_id), intern(self.issued_by)
        self.granted, self.carried = shared(self.granted), shared(self.carried)
        self.key_spans = shared_spans(self.key_spans)

    @property
    def grant_id(self) -> str:
        """32 lower-case hex digits."""
        return self.stream.removeprefix("grant:")

    @property
    def issued(self) -> bool:
        """Whether tokens were given out; before, a grant of the code flow is only authorized."""
        return bool(self.key_spans)

    @property
    def key_id(self) -> int:
        """The key that made the current refresh token."""
        return self.key_spans[-1][1]

    def key_of(self, generation: int) -> int | None:
        """The key named by the event that made a generation; None where that is no longer remembered."""
        for first, key_id in reversed(self.key_spans):
            if generation >= first:
                return key_id
        return None

    def event_id(self, v: int) -> str:
        """How others name the grant's event `v`."""
        return f"{self.stream}/{v}"

    @property
    def bound(self) -> bool:
        """Whether the grant's tokens are good only with a key that was named at its issuance (a public client's)."""
        return self.bound_jkt is not None or self.bound_x5t_s256 is not None

    def owned_by(self, who: Named) -> bool:
        """Its client, authenticated; or its public client naming itself, with the bound key where there is one.

        To everybody else its tokens are unknown ones (RFC 9449 5, I-18).
        """
        if who.client_id != self.client_id:
            return False
        return who.authenticated or (
            self.bound_jkt in (None, who.proof_jkt) and self.bound_x5t_s256 in (None, who.proof_x5t_s256)
        )

    def proven(self, owner: Named) -> bool:
        """The owner authenticated, or holds the key that the grant is bound to; any other key proves nothing."""
        return owner.authenticated or self.bound

    def carried_within(self, allowed: Words) -> Words:
        """What a refresh without `scope` would give, under what the client may have now."""
        return within(self.carried, allowed)

    def judge(self, at: int, epoch_end: EpochEnd | None) -> Standing:
        """The grant's standing at a moment. The earliest end counts, also one that no event says yet.

        `epoch_end` is the raise that hits this grant, None where none had at that moment; it counts whatever the clock
        says. An expiry counts from the later of `at` and the grant's last event, and before an epoch if it came first.
        """
        if self.end is not None:
            return self.end
        expires_at = self.idle_expires_at
        if epoch_end is not None:
            if expires_at is None or epoch_end.at < expires_at:
                return standing.ended_by_epoch(epoch_end)
        elif expires_at is None or (at if at > self.at else self.at) < expires_at:
            return self.suspension or ACTIVE
        assert expires_at is not None
        return standing.expired(self.expiry_kind, expires_at, None)

    @property
    def expiry_kind(self) -> str:
        """Which of the two lifetimes ends first; at the same moment it is the absolute one."""
        return "absolute" if self.idle_expires_at == self.absolute_expires_at else "idle"

    def access_token_active(self, token: AccessToken, at: int, rules: Rules) -> bool:
        """Whether an access token of this grant is good at a moment of the wall clock (RFC 7662 2.2).

        Its lifetime is judged by the wall clock alone. The idle end of the refresh token leaves it alone, everything
        else that ends or stops the grant does not.
        """
        if rules.client is None or rules.epoch_end is not None or self.suspension is not None:
            return False
        if self.end is not None and self.end.refusal is not Refusal.EXPIRED_IDLE:
            return False
        if self.absolute_expires_at is not None and max(at, self.at) >= self.absolute_expires_at:
            return False
        return self.access_token_good(token, at, rules)

    def access_token_good(self, token: AccessToken, at: int, rules: Rules) -> bool:
        """Whether an access token of a grant that is active is good at a moment of the wall clock."""
        if token.format == "jwt" and token.signing_key_id in rules.distrusted:
            return False
        if token.issued_at > at + rules.clock_skew_seconds * SECOND:
            return False
        return at < token.expires_at and not self.access_token_revoked(token.v)

    def access_token_revoked(self, issued_v: int) -> bool:
        """Whether the access token that event `issued_v` minted was given back, or is long past."""
        return issued_v <= self.dead_through_v or any(issued_v == v for v, _ in self.revoked_access_tokens)

    def remembered_access_token(self, v: int) -> AccessToken | None:
        """The access token that event `v` minted, where it is one of those that retries may ask for."""
        for redemption in (self.redeemed, self.previous):
            if redemption is not None:
                for token in (redemption.token, *redemption.minted):
                    if token.v == v:
                        return token
        return None

    def evolve(self, event: GrantEvent) -> None:
        """Follow one event of this grant, the next in its stream."""
        self.v = event.v
        self.at = at = micros(event.at)
        match event:
            case TokenRedeemed():
                self._redeemed(event, at)
            case TokenRotated():
                self._rotated(event, at)
            case ScopeReduced() | ScopeRestored():
                self.carried = event.scope_after
            case RetryServed():
                self._retry_served(event)
            case GrantIssued():
                self._issued(event, at)
            case GrantAuthorized():
                self._authorized(event, at)
            case RefreshTokenWithheld():
                self.generation = None
            case ReuseDetected():
                others = tuple(each for each in self.alerted if each[0] != event.label)
                self.alerted = (*others, (event.label, event.current_generation))
            case GrantSuspended():
                self.suspension = standing.suspended(event.reason_class, at, event.event_id)
            case GrantReinstated():
                self._reinstated(event)
            case GrantRevoked():
                self._ended(standing.revoked(event.reason_class, event.requested_by, at, event.event_id))
            case GrantExpired():
                self._ended(standing.expired(event.kind, micros(event.expired_at), event.event_id))
            case AccessTokenRevoked():
                self._access_token_revoked(event, at)
            case ForeignClientPresented():
                self.foreign_recorded = True
            case PresentationsCounted():
                first_at = micros(event.first_at)
                goes_on = first_at == self.tally.first_at
                self.tally = Tally(event.count, first_at, self.tally.events + 1 if goes_on else 1)
            case RollbackDetected():
                self.rollback_v = event.v
            case _:
                assert_never(event)

    def _authorized(self, event: GrantAuthorized, at: int) -> None:
        self.stream = event.stream
        self.client_id, self.subject_id = event.client_id, event.subject_id
        self.client_epoch, self.subject_epoch = event.client_epoch, event.subject_epoch
        self.issued_by, self.issued_at = event.issued_by, at
        self.granted = self.carried = event.scope
        self.resource = event.resource
        # Until the code is exchanged the grant lives as long as the code does, and nothing has to end it.
        self.idle_expires_at = self.absolute_expires_at = micros(event.code_expires_at)
        self.share(event.stream)

    def _issued(self, event: GrantIssued, at: int) -> None:
        self.stream = event.stream
        self.client_id, self.subject_id = event.client_id, event.subject_id
        self.client_epoch, self.subject_epoch = event.client_epoch, event.subject_epoch
        self.issued_by = event.issued_by
        self.auth_time, self.acr, self.amr = event.auth_time, event.acr, event.amr
        self.bound_jkt, self.bound_x5t_s256 = event.bound_jkt, event.bound_x5t_s256
        if event.v == 1:  # else the person agreed before, and what they agreed to stands
            self.issued_at = at
            self.granted = self.carried = event.scope
            self.resource = event.resource
            self.share(event.stream)
        self.idle_seconds = event.idle_seconds
        self.idle_expires_at = moment(event.idle_expires_at)
        self.absolute_expires_at = moment(event.absolute_expires_at)
        self.generation = event.generation
        self.token_issued_at = at
        self.key_spans = shared_spans(((event.generation, event.key_id),))
        self._minted(_access_token(event))

    def _redeemed(self, event: TokenRedeemed, at: int) -> None:
        token = _access_token(event)
        before, context = self.redeemed, event.context
        if before is None:
            first_at, first_context = at, None
        else:
            first_at, first_context = before.first_at, before.first_context or before.context
        self.redeemed = Redemption(
            first_at, None if first_context == context else first_context, context, self.carried, token
        )
        self.last_redeemed_at = at
        self.idle_expires_at = moment(event.idle_expires_at)  # where it rotates, the rotation says it next
        self._minted(token)

    def _rotated(self, event: TokenRotated, at: int) -> None:
        self.previous = previous = self.redeemed
        assert previous is not None, "a rotation follows a redemption"
        previous.rotated(event)
        self.redeemed = None
        self.generation = generation = event.generation
        self.token_issued_at = at
        self.idle_expires_at = moment(event.idle_expires_at)
        if event.key_id != self.key_spans[-1][1]:
            self.key_spans = (*self.key_spans, (generation, event.key_id))[-KEY_SPANS_MAX:]
        if self.counted_retries and self.counted_retries[0] < generation - 1 - RETRY_LOOK_BACK_GENERATIONS:
            self.counted_retries = self.counted_retries[1:]  # one generation further, one at most falls out of sight

    def _retry_served(self, event: RetryServed) -> None:
        assert self.previous is not None, "a retry follows a rotation"
        minted = access_token_of(event)
        self.previous.served(event, minted)
        if minted is not None:
            self._minted(minted)
        if event.counts and event.presented_generation not in self.counted_retries:
            self.counted_retries = (*self.counted_retries, event.presented_generation)

    def _reinstated(self, event: GrantReinstated) -> None:
        self.suspension = None
        self.alerted = ()
        if event.trust is not None and self.previous is not None:
            self.previous.close_windows()  # trusted is who holds the current token, nobody else

    def _ended(self, end: Standing) -> None:
        """Presentations are counted anew from the end; after an expiry that may have begun before an event said so."""
        self.end = end
        if end.status == "revoked" or end.at is None or self.tally.first_at < end.at:
            self.tally = NOTHING_COUNTED

    def _minted(self, token: AccessToken) -> None:
        expires_at = token.expires_at
        lifetime = expires_at - token.issued_at
        if lifetime > self.access_token_longest:
            self.access_token_longest = lifetime
        if expires_at > self.access_tokens_until:
            self.access_tokens_until = expires_at

    def _access_token_revoked(self, event: AccessTokenRevoked, at: int) -> None:
        """Remember it while an access token of that age could live; with what is older all before it are over too.

        Where too many live at once the earliest issued go that way before their time: refused rather than forgotten.
        """
        remembered = [*self.revoked_access_tokens, (event.issued_v, at)]
        kept = [pair for pair in remembered if pair[1] + self.access_token_longest >= at]
        if len(kept) > REVOKED_ACCESS_TOKENS_MAX:
            kept.remove(min(kept))
        for dropped_v, _ in set(remembered).difference(kept):
            self.dead_through_v = max(self.dead_through_v, dropped_v)
        self.revoked_access_tokens = tuple(kept)


def access_token_of(event: AnyEvent) -> AccessToken | None:
    """The access token that an event minted, None where it minted none."""
    if isinstance(event, RetryServed) and event.format is not None:
        return _access_token(event)  # type: ignore[arg-type]  # where it minted one it has what all of them have
    return _access_token(event) if isinstance(event, AccessTokenFact) else None


def _access_token(event: AccessTokenFact) -> AccessToken:
    return AccessToken(
        v=event.v,
        scope=event.scope,
        resource=event.resource,
        cnf_jkt=event.cnf_jkt,
        cnf_x5t_s256=event.cnf_x5t_s256,
        format=event.format,
        signing_key_id=event.signing_key_id,
        issued_at=micros(event.access_token_issued_at),
        expires_at=micros(event.access_token_expires_at),
    )
