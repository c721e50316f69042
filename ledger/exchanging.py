"""What happens when somebody presents an authorization code: load → decide → append → answer, inside a batch."""

import hashlib
import re
from base64 import urlsafe_b64encode
from functools import partial

from ledger import codes
from ledger.answering import unmade
from ledger.answers import Caller, Source, TokenAnswer
from ledger.batch import Batch
from ledger.commands import ExchangeCode, RefusedOutcome, Served
from ledger.events import AnyEvent, GrantAuthorized, GrantExpired, Words
from ledger.grant import Grant
from ledger.memory import Loaded
from ledger.presenting import (
    Desk,
    after_refusal,
    check_keys,
    check_nonce,
    check_own,
    presenter_of,
    record,
    standing_of,
    unsigned_jwt,
)
from ledger.refusals import Forgotten, Refusal, Refused, Unavailable
from ledger.subjects import committed_reason, keep_reason, subject_of

REUSE_REASON = "its authorization code was presented a second time"

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


def exchange(
    batch: Batch,
    desk: Desk,
    caller: Caller,
    source: Source,
    presented: codes.Presented,
    challenge: str | None,
    redirect_uri: str | None,
    resource: Words | None,
) -> TokenAnswer:
    """Exchange a code for the first tokens of its grant (RFC 6749 4.1.3). `challenge` is what its verifier comes to."""
    loaded, grant, authorized = _genuine(batch, desk, caller, source, presented)
    presenter = presenter_of(batch, loaded, caller, source)
    reason = committed_reason(batch, loaded.name, loaded.v + 1, REUSE_REASON if grant.issued else None)
    command = ExchangeCode(
        at=batch.now,
        command_id=batch.command_id,
        presenter=presenter,
        authorized=authorized,
        key_id=presented.key_id,
        challenge=challenge,
        redirect_uri=redirect_uri,
        resource=resource,
        reuse_reason=reason,
    )
    try:
        decision = grant.decide(command, desk.authority.rules(grant))
    except Refused as refusal:
        after_refusal(batch, desk, loaded, refusal, 0, source)
        raise
    outcome = decision.outcome
    jwt = None
    if isinstance(outcome, Served):
        check_keys(desk.ring, outcome)
        check_nonce(loaded)
        jwt = unsigned_jwt(desk, outcome, presented.grant_id, authorized, subject_of(batch, grant.subject_id))
    named = isinstance(decision.events[0], GrantExpired)  # only this one says who presented
    record(batch, desk, loaded, decision, source if named else None, presenter.context)
    if isinstance(outcome, RefusedOutcome):
        if outcome.refusal is Refusal.REUSE_DETECTED:
            keep_reason(batch)
        raise Refused(outcome.refusal, event_id=outcome.event_id)
    assert isinstance(outcome, Served)
    return unmade(batch, desk, loaded, grant, outcome, jwt).made()


def challenge_of(verifier: str | None) -> str | None:
    """The S256 challenge of a verifier (RFC 7636 4.2); None for a text that is none, or left out."""
    if verifier is None or _VERIFIER.fullmatch(verifier) is None:
        return None
    return urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode("ascii")


def genuine_code(desk: Desk, loaded: Loaded, presented: codes.Presented) -> bool:
    """Whether the secret is ours. Once a grant has ended its nonce is gone: the tag alone says that we made it."""
    if loaded.private is None or loaded.private.nonce is None:
        return True
    return codes.genuine(desk.ring, presented, loaded.private.nonce)


def _began(batch: Batch, desk: Desk, loaded: Loaded, grant: Grant) -> AnyEvent:
    """A grant's first event. Once the archive's time for it is over nobody can tell whose code this is."""
    try:
        return batch.event_at(loaded.name, 1)
    except Forgotten:
        raise Refused(Refusal.UNKNOWN_TOKEN) from None
    except Unavailable as error:
        if standing_of(batch, desk, grant).status == "active":  # a second use would end it
            batch.when_done.append(partial(desk.not_judged, grant.grant_id, 0, str(error)))
        raise


def _genuine(
    batch: Batch, desk: Desk, caller: Caller, source: Source, presented: codes.Presented
) -> tuple[Loaded, Grant, GrantAuthorized]:
    """The grant of a code of the caller's own, its secret checked, and how it began. Everyone else is refused alike."""
    found = batch.grant(presented.grant_id)
    authorized = None if found is None else _began(batch, desk, *found)
    if found is None or not isinstance(authorized, GrantAuthorized):
        batch.when_done.append(partial(desk.alarm, "unknown_grant", presented.grant_id))
        raise Refused(Refusal.UNKNOWN_TOKEN)
    check_own(batch, desk, caller, source, found, 0, genuine_code(desk, found[0], presented))
    return *found, authorized
