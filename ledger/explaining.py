"""What a token is, in plain words, for whoever has to answer the phone. Changes nothing and records nothing."""

from functools import partial
from operator import attrgetter
from typing import NamedTuple

from ledger import codes, times, tokens
from ledger.answers import Explanation
from ledger.batch import Batch
from ledger.commands import AccessToken, Rules
from ledger.events import AccessTokenRevoked, AnyEvent, GrantAuthorized, GrantIssued, GrantRevoked, SubjectRevoked
from ledger.exchanging import REUSE_REASON, genuine_code
from ledger.grant import Grant
from ledger.grant_state import access_token_of
from ledger.history import first_redemption, revocation
from ledger.memory import Loaded
from ledger.presenting import Desk, PresentedAccess, access_secret_right, is_of, standing_of
from ledger.refusals import Forgotten, Refusal
from ledger.retired import budget_left
from ledger.standing import ACTIVE, Standing, ended_by_epoch

UNKNOWN = Explanation(
    verdict="unknown", text="This is no token of this ledger: it was not made here, or it was not copied whole."
)


def _lost(grant_id: str) -> Explanation:
    """What a genuine token or code is of which the log knows nothing (I-15)."""
    text = (
        "This was made here, and the log knows nothing of it: acknowledged events were lost, as after an older backup."
    )
    return Explanation(verdict="unknown", text=text, grant_id=grant_id)


def explain(batch: Batch, desk: Desk, presented: tokens.Presented) -> Explanation:
    """What a refresh token would meet if its owner presented it now."""
    found = batch.grant(presented.grant_id)
    if found is None:
        return _lost(presented.grant_id)
    loaded, grant = found
    nonce = loaded.private.nonce if loaded.private is not None else None
    if nonce is not None and not tokens.genuine(desk.ring, presented, nonce):
        return UNKNOWN
    rules = desk.authority.rules(grant)
    now = max(batch.now, grant.at)
    standing = grant.judge(now, rules.epoch_end)
    if standing.status != "active":
        what = f"A refresh token (generation {presented.generation})"
        return _over(batch, grant, standing, what, presented.generation, _counted(desk, grant, now, rules))
    if rules.client is None:
        what = f"A refresh token (generation {presented.generation})"
        return _blocked(grant, what, presented.generation, _counted(desk, grant, now, rules))
    return _alive(batch, loaded, grant, rules, presented, now, _counted(desk, grant, now, rules))


def explain_code(batch: Batch, desk: Desk, presented: codes.Presented) -> Explanation:
    """What an authorization code would meet if its client exchanged it now, with the right verifier."""
    found = batch.grant(presented.grant_id)
    if found is None:
        return _lost(presented.grant_id)
    loaded, grant = found
    if not genuine_code(desk, loaded, presented):
        return UNKNOWN
    rules = desk.authority.rules(grant)
    now = max(batch.now, grant.at)
    standing = grant.judge(now, rules.epoch_end)
    try:
        authorized = batch.event_at(loaded.name, 1)
    except Forgotten:
        return _over(batch, grant, standing, "An authorization code", None, _counted(desk, grant, now, rules))
    if not isinstance(authorized, GrantAuthorized) or authorized.key_id != presented.key_id:
        return _lost(presented.grant_id)
    if standing.status != "active":
        return _over(batch, grant, standing, "An authorization code", None, _counted(desk, grant, now, rules))
    if rules.client is None:
        return _blocked(grant, "An authorization code", None, _counted(desk, grant, now, rules))
    told = partial(Explanation, grant_id=grant.grant_id, current_generation=grant.generation)
    if presented.key_id in rules.distrusted:
        text = f"An authorization code whose key {presented.key_id} is distrusted: it is refused, and no harm is done."
        reason, event_id = Refusal.KEY_DISTRUSTED.value, rules.distrusted[presented.key_id]
        return told(verdict="retired", text=text, reason=reason, event_id=event_id)
    if grant.issued:
        issued = batch.event_at(loaded.name, _issued_v(batch, loaded))
        text = f"An authorization code that was exchanged at {issued.at}: to present it again ends its grant."
        return told(verdict="retired", text=text, at=issued.at, event_id=issued.event_id)
    text = f"An authorization code that was not exchanged yet, good until {authorized.code_expires_at}."
    event_id = authorized.event_id
    return told(verdict="current", text=text, at=authorized.at, event_id=event_id)


def _issued_v(batch: Batch, loaded: Loaded) -> int:
    """The version of the issuance: few events, and not of many kinds, can come between a sign-in and its exchange."""
    v = 2
    while not isinstance(batch.event_at(loaded.name, v), GrantIssued):
        v += 1
    return v


def explain_access(batch: Batch, desk: Desk, presented: PresentedAccess) -> Explanation:
    """Whether an access token is good now, and until when."""
    found = batch.grant(presented.grant_id)
    if found is None:
        return _lost(presented.grant_id)
    loaded, grant = found
    nonce = loaded.private.nonce if loaded.private is not None else None
    if not access_secret_right(desk, loaded, presented):
        return UNKNOWN
    if not 1 <= presented.v <= loaded.v:
        return _lost(presented.grant_id)
    try:
        issued = batch.event_at(loaded.name, presented.v)
    except Forgotten:
        return _withheld(batch, desk, grant)
    token = access_token_of(issued)
    if token is None or not is_of(presented, token):
        return _lost(presented.grant_id)
    rules = desk.authority.rules(grant)
    until = times.text(token.expires_at)
    other_issuer = presented.format == "jwt" and presented.issuer != desk.issuer
    if nonce is not None and not other_issuer and grant.access_token_active(token, batch.now, rules):
        return Explanation(
            verdict="access_token_active",
            text=f"A good access token, until {until}.",
            event_id=issued.event_id,
            grant_id=presented.grant_id,
            at=issued.at,
        )
    end = _first_end(batch, loaded, grant, rules, token)
    if end is None:
        end = _why_inactive(grant, rules, token, issued, other_issuer=other_issuer)
    taken = token.format == "jwt" and batch.now < token.expires_at and token.signing_key_id not in rules.distrusted
    text = f"An access token {end.why}{f', by {end.by}' if end.by else ''}."
    return Explanation(
        verdict="access_token_inactive",
        text=f"{text} Who does not introspect takes it until {until}." if taken else text,
        reason=end.reason,
        grant_id=presented.grant_id,
        at=times.text(end.at) if end.at is not None else None,
        by=end.by,
        event_id=end.event_id,
    )


class _End(NamedTuple):
    """What keeps an access token from being good: in words that follow "An access token", and as members of the answer.
    `at` in microseconds, None where nobody can tell."""

    why: str
    at: int | None
    event_id: str | None
    by: str | None = None
    reason: str | None = None


def _first_end(batch: Batch, loaded: Loaded, grant: Grant, rules: Rules, token: AccessToken) -> _End | None:
    """The earliest of all that is known to have ended an access token: its own expiry once the clock says so, being
    given back, what its grant has come to, the distrust of the key that signed it. None where none of these did.

    The idle end of the refresh token leaves it alone: what else stops the grant then?
    """
    ends: list[_End] = []
    if batch.now >= token.expires_at:
        why = f"that expired at {times.text(token.expires_at)}"
        ends.append(_End(why, token.expires_at, grant.event_id(token.v)))
    given_back = _given_back(batch, loaded, grant, token)
    if given_back is not None:
        why = f"that was given back at {given_back.at}"
        reason = Refusal.REVOKED_BY_CLIENT.value
        ends.append(_End(why, times.micros(given_back.at), given_back.event_id, given_back.requested_by, reason))
    standing = grant.judge(batch.now, rules.epoch_end)
    if standing.refusal is Refusal.EXPIRED_IDLE:
        standing = grant.suspension or (ACTIVE if rules.epoch_end is None else ended_by_epoch(rules.epoch_end))
    if standing.refusal is not None:
        why = f"of a grant that is {standing.status} since {_since(standing)}"
        by = _requested_by(batch, standing.event_id)
        ends.append(_End(why, standing.at, standing.event_id, by, standing.refusal.value))
    if token.format == "jwt" and (event_id := rules.distrusted.get(token.signing_key_id)) is not None:
        said = _event(batch, event_id)
        why = f"whose signing key {token.signing_key_id} is distrusted since {said.at}"
        by = _requested_by(batch, event_id)
        ends.append(_End(why, times.micros(said.at), event_id, by, Refusal.KEY_DISTRUSTED.value))
    return min(ends, key=attrgetter("at"), default=None)


def _given_back(batch: Batch, loaded: Loaded, grant: Grant, token: AccessToken) -> AccessTokenRevoked | None:
    """The event that gave an access token back; None where none did, or it is not found any more."""
    if not grant.access_token_revoked(token.v):
        return None
    try:
        return revocation(batch, loaded.name, loaded.v, token.v, dict(grant.revoked_access_tokens).get(token.v))
    except Forgotten:
        return None


def _why_inactive(grant: Grant, rules: Rules, token: AccessToken, issued: AnyEvent, *, other_issuer: bool) -> _End:
    """What keeps an access token from being good that nothing is known to have ended."""
    if rules.client is None:
        return _End("of a grant that lives, and whose client is disabled", None, None, None, "client_disabled")
    issued_at = times.micros(issued.at)
    if other_issuer:
        return _End("that says another issuer than this ledger is now", issued_at, issued.event_id)
    if grant.access_token_revoked(token.v):
        by, reason = f"client:{grant.client_id}", Refusal.REVOKED_BY_CLIENT.value
        return _End("that is over since it, or a later one, was given back", None, None, by, reason)
    why = f"from {times.text(token.issued_at)}, which lies ahead: the clock was put back since"
    return _End(why, issued_at, issued.event_id)


def _withheld(batch: Batch, desk: Desk, grant: Grant) -> Explanation:
    """An access token of a grant whose history the archive's own time is over for: what issued it nobody can tell."""
    standing = standing_of(batch, desk, grant)
    return Explanation(
        verdict="access_token_inactive",
        text=f"An access token of a grant that is {standing.status} since {_since(standing)}; its history is withheld.",
        reason=standing.refusal.value if standing.refusal else None,
        grant_id=grant.grant_id,
        event_id=standing.event_id,
    )


def _over(
    batch: Batch, grant: Grant, standing: Standing, what: str, generation: int | None, counted: int | None
) -> Explanation:
    said = None if standing.event_id is None else _event(batch, standing.event_id)
    by = getattr(said, "requested_by", None)
    text = f"{what} of a grant that is {standing.status} since {_since(standing)}"
    if standing.reason_class == "rollback":
        text += ", because a genuine token came that is ahead of the log: acknowledged events were lost"
    elif standing.refusal:
        text += f", {_spoken(standing.refusal, said)}"
    text += f", by {by}." if by else "."
    return Explanation(
        verdict=standing.status,
        text=text,
        grant_id=grant.grant_id,
        generation=generation,
        current_generation=grant.generation,
        reason=standing.refusal.value if standing.refusal else None,
        at=times.text(standing.at) if standing.at is not None else None,
        by=by,
        event_id=standing.event_id,
        presentations_counted=counted,
    )


def _blocked(grant: Grant, what: str, generation: int | None, counted: int | None) -> Explanation:
    return Explanation(
        verdict="suspended",
        text=f"{what} of a grant that lives, and whose client is disabled: it is answered as an unknown one until the"
        " client returns.",
        grant_id=grant.grant_id,
        generation=generation,
        current_generation=grant.generation,
        reason="client_disabled",
        presentations_counted=counted,
    )


def _alive(
    batch: Batch,
    loaded: Loaded,
    grant: Grant,
    rules: Rules,
    presented: tokens.Presented,
    now: int,
    counted: int | None,
) -> Explanation:
    generation, current = presented.generation, grant.generation
    told = partial(
        Explanation,
        grant_id=grant.grant_id,
        generation=generation,
        current_generation=current,
        presentations_counted=counted,
    )
    proven = grant.bound or (rules.client is not None and rules.client.authenticates)
    if presented.key_id in rules.distrusted and (current is None or generation < current or not proven):
        return told(
            verdict="retired",
            text=f"A refresh token whose key {presented.key_id} is distrusted: it is refused, and no harm is done.",
            reason=Refusal.KEY_DISTRUSTED.value,
            event_id=rules.distrusted[presented.key_id],
        )
    if current is None or generation > current or grant.key_of(generation) not in (presented.key_id, None):
        text = "A genuine token that is ahead of the log: acknowledged events were lost, as after an older backup."
        return told(verdict="ahead", text=text)
    if generation == current:
        until = "without end" if grant.idle_expires_at is None else f"until {times.text(grant.idle_expires_at)}"
        text = f"The current refresh token (generation {generation}) of a living grant, {until}."
        return told(verdict="current", text=text, at=times.text(grant.token_issued_at))
    redemption = first_redemption(batch, loaded.name, grant.v, generation)
    at = times.text(redemption.at) if redemption else None
    event_id = redemption.rotation_event_id if redemption else None
    previous = grant.previous
    left = previous is not None and budget_left(grant, previous, generation)
    if (
        generation == current - 1
        and previous is not None
        and grant.redeemed is None
        and previous.retry(now, foreign=False, always_counts=False, proven=proven, budget_left=left)
    ):
        text = f"The predecessor of the current token, retired at {at}: a retry still gets the same successor."
        return told(verdict="retry", text=text, at=at, event_id=event_id, reason="rotated")
    text = f"A retired refresh token (generation {generation}, now {current}), redeemed first at {at}: to present it"
    text += " is reuse."
    return told(verdict="retired", text=text, at=at, event_id=event_id, reason="rotated")


def _counted(desk: Desk, grant: Grant, now: int, rules: Rules) -> int | None:
    """In events and still in memory, together."""
    told = grant.presentations_counted(now, rules.epoch_end)
    ended = grant.judge(now, rules.epoch_end).ended
    return (told + desk.presentations.waiting(grant.grant_id, ended=ended)) or None


def _since(standing: Standing) -> str:
    return times.text(standing.at) if standing.at is not None else "an unknown time"


def _spoken(refusal: Refusal, said: AnyEvent | None) -> str:
    """Why a grant is over, or stopped; `said` is the event that says it. Where that was reuse it was not always of a
    token of its own: a code's is told by the reason that is recorded for nothing else."""
    if refusal is Refusal.REUSE_DETECTED and isinstance(said, SubjectRevoked):
        return "because a retired token of another grant of this person came back"
    if refusal is Refusal.REUSE_DETECTED and isinstance(said, GrantRevoked) and said.reason is not None:
        return f"because {REUSE_REASON}"
    return {
        Refusal.REUSE_DETECTED: "because a retired token came back",
        Refusal.EXPIRED_IDLE: "because it was not used for too long",
        Refusal.EXPIRED_ABSOLUTE: "because its whole lifetime is over",
        Refusal.REVOKED_BY_CLIENT: "because its client gave it back",
        Refusal.REVOKED_BY_OPERATOR: "because an operator ended it",
        Refusal.REVOKED_BY_SUBJECT: "because all grants of this person were ended",
        Refusal.SUSPENDED: "because it was suspended",
    }.get(refusal, refusal.value)


def _requested_by(batch: Batch, event_id: str | None) -> str | None:
    if event_id is None:
        return None
    return getattr(_event(batch, event_id), "requested_by", None)


def _event(batch: Batch, event_id: str) -> AnyEvent:
    stream, _, v = event_id.rpartition("/")
    batch.load(stream)
    return batch.event_at(stream, int(v))
