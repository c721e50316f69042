"""What all decisions on presented tokens share: whether one is ours, what has to be there for an answer, what is
recorded with a decision."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from hmac import compare_digest
from typing import NamedTuple, Protocol, TypeAlias

from ledger import access_tokens, jwt_access_tokens, tokens
from ledger.answers import Caller, Source
from ledger.authority import Authority
from ledger.batch import Batch
from ledger.bounded import make_room
from ledger.commands import AccessToken, Decision, Presenter, Served
from ledger.events import GrantExpired, GrantRevoked, Words
from ledger.grant import Grant
from ledger.grant_state import access_token_of
from ledger.keyring import KeyRing
from ledger.memory import Loaded
from ledger.presentations import Bursts, Presentations
from ledger.private import commitment, context_value, new_salt
from ledger.recorders.private_rows import FORGET_NONCE, KEEP_CONTEXT
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.standing import Standing
from ledger.subjects import end_subject

log = logging.getLogger("ledger")

HANDED_OUT_MAX = 100_000
UNJUDGED_MAX = 1_000

_ENDS = frozenset({GrantRevoked, GrantExpired})

PresentedAccess: TypeAlias = access_tokens.Presented | jwt_access_tokens.Presented


class Foreign(NamedTuple):
    """Another client presented a genuine token of a grant, from a source."""

    grant_id: str
    generation: int
    presenter: Presenter
    source: Source


class Desk:
    """What decisions on presented tokens need beside the batch. `alarms` counts what no honest client does; `issuer` is
    what the ledger calls itself in JWTs.

    `handed_out` are the refresh tokens that this process made last, one a grant and key, by the characters that name
    both: one that is found here (`made`) need not be taken apart, for its tag and secret are those that were given to
    it. `unjudged` are grants of whose older tokens reuse was not told, for their history cannot be read.
    """

    __slots__ = (
        "alarms",
        "authority",
        "bursts",
        "foreign",
        "handed_out",
        "issuer",
        "presentations",
        "ring",
        "unjudged",
    )

    def __init__(self, ring: KeyRing, authority: Authority, bursts: Bursts, issuer: str) -> None:
        self.ring = ring
        self.issuer = issuer
        self.authority = authority
        self.bursts = bursts
        self.presentations = Presentations()
        self.handed_out: dict[str, tokens.Presented] = {}
        self.foreign: list[Foreign] = []
        self.unjudged: dict[str, None] = {}
        self.alarms: dict[str, int] = {"unknown_grant": 0, "wrong_secret": 0, "ahead_of_log": 0}

    def hand_out(self, made: tokens.Presented) -> None:
        """Remember a token that goes out. Says nothing of whether it is current: whoever decides looks at the grant."""
        handed_out, whose = self.handed_out, made.text[tokens.WHOSE]
        if len(handed_out) >= HANDED_OUT_MAX and whose not in handed_out:
            make_room(handed_out, HANDED_OUT_MAX)
        handed_out[whose] = made

    def made(self, text: str) -> tokens.Presented | None:
        """The token that this process has made last of its grant, where it is this text (ASCII); in constant time, for
        whoever knows an older one knows how it begins."""
        known = self.handed_out.get(text[tokens.WHOSE])
        return known if known is not None and compare_digest(known.text, text) else None

    def alarm(self, kind: str, grant_id: str) -> None:
        """Count it, and say it in one log line: a token with our tag that the log does not account for."""
        self.alarms[kind] += 1
        log.warning(kind, extra={"fields": {"grant": grant_id}})

    def not_judged(self, grant_id: str, generation: int, problem: str) -> None:
        """Say in one log line that an older token of a grant that lives was presented, and whether that is reuse cannot
        be told, so nothing is recorded and nothing ends: once a grant, until it can be told again."""
        if grant_id not in self.unjudged:
            make_room(self.unjudged, UNJUDGED_MAX)
            self.unjudged[grant_id] = None
            fields = {"grant": grant_id, "generation": generation, "problem": problem}
            log.error("reuse_not_judged", extra={"fields": fields})


def check_keys(ring: KeyRing, served: Served) -> None:
    """Raise Unavailable where this node's ring lacks a key that the answer is made with: to be asked before anything is
    recorded. The node is unready then, and reads the ring's file again by itself."""
    keys, refresh_key_id, access_key_id = ring.keys, served.key_id, served.access_token.signing_key_id
    if refresh_key_id not in keys or access_key_id not in keys:
        lacking = refresh_key_id if refresh_key_id not in keys else access_key_id
        raise Unavailable(f"the key ring of this node lacks key {lacking}")


def check_nonce(loaded: Loaded) -> None:
    """Raise Unavailable where the nonce is gone that an answer is made with, of a grant that seems to live: it has
    ended on another node, and this is decided again when the store has said so. Asked before anything is recorded."""
    if loaded.private is None or loaded.private.nonce is None:
        raise Unavailable("the grant has ended elsewhere")


class SignedIn(Protocol):
    """What the tokens of a grant say of its client and of the sign-in: a grant does, and whatever one begins with."""

    @property
    def client_id(self) -> str: ...
    @property
    def auth_time(self) -> int | None: ...
    @property
    def acr(self) -> str | None: ...
    @property
    def amr(self) -> Words | None: ...


def unsigned_jwt(
    desk: Desk, served: Served, grant_id: str, who: SignedIn, subject: str | None
) -> jwt_access_tokens.Unsigned | None:
    """The JWT that an answer is to carry, to be asked for before anything is recorded: one that is too long is refused
    then (INVALID_REQUEST). None where the access token is opaque. Raises Unavailable where the person was erased, of a
    grant that seems to live: as in `check_nonce`."""
    if served.access_token.format != "jwt":
        return None
    if subject is None:
        raise Unavailable("the grant has ended elsewhere")
    holder = jwt_access_tokens.Holder(
        grant_id=grant_id,
        client_id=who.client_id,
        subject=subject,
        auth_time=who.auth_time,
        acr=who.acr,
        amr=who.amr,
    )
    return jwt_access_tokens.unsigned(desk.ring, desk.issuer, served.access_token, holder)


def record(
    batch: Batch, desk: Desk, loaded: Loaded, decision: Decision, source: Source | None, context: str | None
) -> None:
    """Append what was decided, with the private rows that go with it."""
    events = decision.events
    if not events:
        return
    if decision.ends_subject:  # what may refuse comes before anything is appended
        assert isinstance(loaded.aggregate, Grant)
        batch.load_or_create(f"subject:{loaded.aggregate.subject_id}")
    batch.append(loaded, events)
    if source is not None and context is not None:
        keep_context(batch, loaded, source, context)
    if decision.ends_subject:
        assert isinstance(loaded.aggregate, Grant)
        end_subject(batch, loaded.aggregate.subject_id, requested_by="ledger:reuse", reason_class="reuse")
    if type(events[-1]) in _ENDS:
        forget_nonce_if_over(batch, desk, loaded)


# ---------------------------------------------------------------- parts


def genuine(
    batch: Batch, desk: Desk, caller: Caller, source: Source, presented: tokens.Presented
) -> tuple[Loaded, Grant]:
    """The grant of a token of the caller's own, its secret checked. Everyone else is refused alike (I-19)."""
    known = batch.memory.streams.get(presented.stream)
    if known is not None and presented.secret is None:  # nearly always: in memory, and made by this process
        aggregate: Grant = known.aggregate  # type: ignore[assignment]  # a grant's stream
        if aggregate.client_id == caller.client_id and (caller.authenticated or aggregate.owned_by(caller)):
            return known, aggregate
    loaded = batch.load(presented.stream)
    if loaded is None:
        batch.when_done.append(partial(desk.alarm, "unknown_grant", presented.grant_id))
        raise Refused(Refusal.UNKNOWN_TOKEN)
    grant: Grant = loaded.aggregate  # type: ignore[assignment]  # a grant's stream
    is_secret_right = secret_right(desk, loaded, presented)
    check_own(batch, desk, caller, source, (loaded, grant), presented.generation, is_secret_right)
    if not grant.owned_by(caller):
        raise Refused(Refusal.UNKNOWN_TOKEN)
    return loaded, grant


def check_own(
    batch: Batch,
    desk: Desk,
    caller: Caller,
    source: Source,
    found: tuple[Loaded, Grant],
    generation: int,
    is_secret_right: bool,
) -> None:
    """Refuse another client than the grant's, which is noted once where the secret is right, and whoever has made up
    what they present: all alike (I-19)."""
    loaded, grant = found
    grant_id = loaded.name.removeprefix("grant:")
    if grant.client_id != caller.client_id:
        if is_secret_right and not grant.foreign_recorded:
            desk.foreign.append(Foreign(grant_id, generation, presenter_of(batch, loaded, caller, source), source))
        raise Refused(Refusal.UNKNOWN_TOKEN)
    if not is_secret_right:
        batch.when_done.append(partial(desk.alarm, "wrong_secret", grant_id))
        raise Refused(Refusal.UNKNOWN_TOKEN)


def secret_right(desk: Desk, loaded: Loaded, presented: tokens.Presented) -> bool:
    """Whether the secret is ours. Once a grant has ended its nonce is gone: the tag alone says that we made it."""
    if presented.secret is None or loaded.private is None or loaded.private.nonce is None:
        return True
    return tokens.genuine(desk.ring, presented, loaded.private.nonce)


def access_secret_right(desk: Desk, loaded: Loaded, presented: PresentedAccess) -> bool:
    """The same for an access token; a JWT's signature was checked as it was read."""
    if isinstance(presented, jwt_access_tokens.Presented) or loaded.private is None or loaded.private.nonce is None:
        return True
    return access_tokens.genuine(desk.ring, presented, loaded.private.nonce)


def parse_access(ring: KeyRing, text: str) -> PresentedAccess | None:
    """Take an access token apart, of either format; None: it is none of ours. Raises KeyNotHeld."""
    return access_tokens.parse(ring, text) or jwt_access_tokens.parse(ring, text)


def access_token(batch: Batch, desk: Desk, presented: PresentedAccess) -> tuple[Loaded, Grant, AccessToken] | None:
    """An access token that is ours, and its grant; None for one that never was. Whose it is, and whether it is good, is
    not judged yet."""
    found = batch.grant(presented.grant_id)
    if found is None:
        return None
    loaded, grant = found
    if loaded.private is None or loaded.private.nonce is None or not 1 <= presented.v <= loaded.v:
        return None  # without the nonce the grant is over, and its access tokens with it
    if not access_secret_right(desk, loaded, presented):
        return None
    token = _minted_by(batch, loaded, grant, presented.v)
    if token is None or not is_of(presented, token):
        return None
    return loaded, grant, token


def _minted_by(batch: Batch, loaded: Loaded, grant: Grant, v: int) -> AccessToken | None:
    """The access token that an event minted: nearly always that of the last answer, which costs no question."""
    known = loaded.known_access
    if known is not None and known.v == v:
        return known
    token = grant.remembered_access_token(v) or access_token_of(batch.event_at(loaded.name, v))
    loaded.known_access = token
    return token


def is_of(presented: PresentedAccess, token: AccessToken) -> bool:
    """Whether a token is the one that this event issued. Another key: the token is of an event that a restored log has
    lost, and whose version another has now (I-15)."""
    return token.signing_key_id == presented.key_id and token.format == presented.format


def presenter_of(batch: Batch, loaded: Loaded, caller: Caller, source: Source) -> Presenter:
    """Who presents something of a grant: the caller, with the commitment of its context."""
    return Presenter(
        client_id=caller.client_id,
        authenticated=caller.authenticated,
        auth_method=caller.auth_method,
        context=context_of(batch, loaded, source),
        proof_jkt=caller.proof_jkt,
        proof_x5t_s256=caller.proof_x5t_s256,
    )


def context_of(batch: Batch, loaded: Loaded, source: Source) -> str:
    """The commitment that stands for a source in the events of this grant."""
    known = loaded.context_of(source)
    return new_context(batch, loaded, source) if known is None else known


def new_context(batch: Batch, loaded: Loaded, source: Source) -> str:
    """As `context_of`, of a source that memory does not know."""
    # A salt that was erased is replaced for this once: nobody can open that commitment any more, as it should be.
    salt = loaded.private.salt if loaded.private is not None else None
    value = context_value(source.address, source.user_agent)
    return commitment(salt or new_salt(batch.memory.randomness), "context", value)


def keep_context(batch: Batch, loaded: Loaded, source: Source, context: str) -> None:
    """Write the private row that opens a context, unless this process has seen it written."""
    if loaded.context_of(source) is None:
        keep_new_context(batch, loaded, source, context)


def keep_new_context(batch: Batch, loaded: Loaded, source: Source, context: str) -> None:
    """As `keep_context`, of a source that memory does not know."""
    if loaded.private is not None:
        loaded.keep_context(source, context)
        batch.private(loaded, KEEP_CONTEXT, loaded.id, context, source.address, source.user_agent)


def standing_of(batch: Batch, desk: Desk, grant: Grant) -> Standing:
    """A grant's standing now."""
    return grant.judge(batch.now, desk.authority.rules(grant).epoch_end)


def after_refusal(batch: Batch, desk: Desk, loaded: Loaded, refusal: Refused, generation: int, source: Source) -> None:
    """Nothing was recorded of what was presented: count it where that is wanted, and look whether an event says that
    the grant is over. An expiry that no event says leaves the nonce alone: it may be a wrong clock's."""
    grant = loaded.aggregate
    assert isinstance(grant, Grant)
    standing = standing_of(batch, desk, grant)
    if refusal.counts:
        count, grant_id = desk.presentations.count, loaded.name.removeprefix("grant:")
        batch.when_done.append(partial(count, grant_id, generation, source, batch.now, ended=standing.ended))
    if standing.event_id is not None:
        forget_nonce_if_over(batch, desk, loaded)


def forget_nonce_if_over(batch: Batch, desk: Desk, loaded: Loaded) -> None:
    """Once a grant has ended for good nobody shall be able to make its tokens. An idle end leaves access tokens alone:
    the secrets of those still alive can only be checked with the nonce, so it stays until the last has expired.

    Where no event of the grant's own says that it ended, nobody comes for its nonce before its next token does. Until
    then, an epoch refuses whatever could be made with it; and an expiry is only what the clock says: one that was wrong
    for a minute must not cost every grant its tokens.
    """
    grant = loaded.aggregate
    assert isinstance(grant, Grant)
    if loaded.private is None or loaded.private.nonce is None:
        return
    standing = standing_of(batch, desk, grant)
    if not standing.ended:
        return
    if standing.refusal is Refusal.EXPIRED_IDLE and batch.now < grant.access_tokens_until:
        return
    loaded.private = loaded.private.without_nonce()
    batch.private(loaded, FORGET_NONCE, loaded.id)


def forget_nonces(batch: Batch, desk: Desk, names: Sequence[str]) -> None:
    """The same of grants that nobody asks about: being over they shall not push others out of memory. First of all in a
    decision: it reads them in one question."""
    cold = [name for name in names if name not in batch.memory.streams]
    batch.ask_for(cold)
    for name in names:
        loaded = batch.load(name)
        assert loaded is not None
        with suppress(Unavailable):  # how it ended cannot be read now: whoever presents a token of it comes again
            forget_nonce_if_over(batch, desk, loaded)
    for name in cold:
        batch.memory.streams.pop(name, None)
