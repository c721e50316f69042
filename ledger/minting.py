"""What a presentation can be given: an access token for so long and so much, or nothing: the grant has ended, or is
stopped."""

from ledger import times
from ledger.commands import AccessToken, Decision, ExchangeCode, RedeemToken, RefusedOutcome, Rules
from ledger.events import GrantExpired, Words
from ledger.grant_state import GrantState
from ledger.lifetimes import access_token_life
from ledger.members import shown, stamp
from ledger.refusals import Refusal, Refused
from ledger.scope import narrowed_resource
from ledger.standing import Standing
from ledger.times import SECOND


def mint(
    grant: GrantState,
    command: RedeemToken | ExchangeCode,
    rules: Rules,
    scope: Words,
    resource: Words | None,
    absolute: int | None,
) -> AccessToken:
    """The access token that the grant's next event mints. `absolute` is the grant's end, a second away at least."""
    client, presenter = rules.client, command.presenter
    assert client is not None
    policy = client.policy
    issued_at, expires_at = access_token_life(command.at, policy.access_token_ttl_seconds, absolute)
    return AccessToken(
        v=grant.v + 1,
        scope=scope,
        resource=resource,
        cnf_jkt=presenter.proof_jkt,
        cnf_x5t_s256=presenter.proof_x5t_s256,
        format=policy.access_token_format,
        signing_key_id=rules.active_key_id,
        issued_at=issued_at,
        expires_at=expires_at,
    )


def resources(grant: GrantState, asked: Words | None, allowed: Words) -> Words | None:
    """The resources of one access token (RFC 8707 2.2): those asked for, else the grant's, else the client's first.

    Raises Refused(INVALID_TARGET) for one that was not granted.
    """
    granted = grant.resource or allowed[:1] or None
    return narrowed_resource(asked, granted or ()) if asked else granted


def stopped(grant: GrantState, command: RedeemToken | ExchangeCode, rules: Rules, standing: Standing) -> Decision:
    """After the end or during a suspension: refused, no escalation. The first after an expiry puts it on record."""
    assert standing.refusal is not None
    if standing.status != "expired" or standing.event_id is not None:
        raise Refused(standing.refusal, event_id=standing.event_id, counts=True)
    assert standing.at is not None
    return expire(grant, command, rules, grant.expiry_kind, standing.at)


def expire(
    grant: GrantState, command: RedeemToken | ExchangeCode, rules: Rules, kind: str, expired_at: int
) -> Decision:
    """The owner is the first to present a token or code after the end: that goes on record, for good (I-16)."""
    event = GrantExpired(
        **stamp(grant, command, rules),
        **shown(command.presenter),
        kind=kind,
        expired_at=times.text(expired_at),
        presented_generation=command.generation if isinstance(command, RedeemToken) else 0,  # what a code stands for
    )
    refusal = Refusal.EXPIRED_ABSOLUTE if kind == "absolute" else Refusal.EXPIRED_IDLE
    return Decision(events=[event], outcome=RefusedOutcome(refusal=refusal, event_id=event.event_id))


def expired_in_last_second(grant: GrantState, command: RedeemToken, rules: Rules, at: int) -> Decision | None:
    """Where less than a second is left of the grant, `expires_in` would be 0, which is no answer: the request is judged
    as after the absolute end."""
    absolute = grant.absolute_expires_at
    if absolute is None or absolute - at >= SECOND:
        return None
    return expire(grant, command, rules, "absolute", absolute)
