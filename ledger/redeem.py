"""A refresh token of a grant is presented: the order of checks, and what the current token buys (RFC 6749 6).

Who reaches this has a token that is genuine in tag and secret, and a key proof, if any, that is valid in itself.
"""

from ledger import times
from ledger.commands import AccessToken, Decision, RedeemToken, RefusedOutcome, Rules, Served
from ledger.events import (
    GrantEvent,
    GrantSuspended,
    RollbackDetected,
    ScopeReduced,
    ScopeRestored,
    TokenRedeemed,
    TokenRotated,
    Words,
)
from ledger.grant_state import GrantState
from ledger.lifetimes import idle_end, windows
from ledger.members import shown, stamp
from ledger.minting import expire, mint, resources, stopped
from ledger.policy import Policy
from ledger.refusals import Refusal, Refused
from ledger.retired import present_older, present_previous
from ledger.scope import resolve
from ledger.times import SECOND


class StateMayBeStale(Exception):
    """The token is ahead of this state. Read the grant anew and decide again with `fresh=True`."""


def redeem(grant: GrantState, command: RedeemToken, rules: Rules) -> Decision:
    """Whose token it is, its key, the grant's status, then the generation verdict. Raises Refused,
    StateMayBeStale, FirstRedemptionMissing."""
    presenter, current = command.presenter, grant.generation
    if current is None or rules.client is None or not grant.owned_by(presenter):
        raise Refused(Refusal.UNKNOWN_TOKEN)
    if rules.client.lacks_key(presenter.proof_jkt, presenter.proof_x5t_s256):
        # Before the verdict: a request that is not valid consumes nothing and is no reuse (RFC 9449 5).
        raise Refused(Refusal.INVALID_REQUEST, detail="this client shows a key with every request, and none was shown")
    at = command.at if command.at > grant.at else grant.at
    standing = grant.judge(at, rules.epoch_end)
    if standing.status != "active":
        return stopped(grant, command, rules, standing)
    presented = command.generation
    if command.key_id in rules.distrusted and (presented < current or not grant.proven(presenter)):
        raise Refused(Refusal.KEY_DISTRUSTED, event_id=rules.distrusted[command.key_id])
    if presented > current or grant.key_of(presented) not in (command.key_id, None):
        return _present_ahead(grant, command, rules, current)
    if presented == current:
        return _present_current(grant, command, rules, at, current)
    if presented == current - 1:
        return present_previous(grant, command, rules, at)
    return present_older(grant, command, rules, at)


def _present_ahead(grant: GrantState, command: RedeemToken, rules: Rules, current: int) -> Decision:
    """Genuine, and the log does not know it: the log has lost acknowledged events (I-15). Suspended, once."""
    if not command.fresh:
        raise StateMayBeStale
    if grant.rollback_v:
        raise Refused(Refusal.ROTATED, event_id=grant.event_id(grant.rollback_v), counts=True)
    detected = RollbackDetected(
        **stamp(grant, command, rules),
        **shown(command.presenter),
        presented_generation=command.generation,
        current_generation=current,
    )
    suspended = GrantSuspended(
        **stamp(grant, command, rules, 2), reason_class="rollback", requested_by="ledger:rollback"
    )
    outcome = RefusedOutcome(refusal=Refusal.SUSPENDED, event_id=suspended.event_id)
    return Decision(events=[detected, suspended], outcome=outcome)


def _present_current(grant: GrantState, command: RedeemToken, rules: Rules, at: int, current: int) -> Decision:
    """The current token buys an access token. Events in this order: redeemed, scope change if any, rotated."""
    client = rules.client
    assert client is not None
    absolute = grant.absolute_expires_at
    if absolute is not None and absolute - at < SECOND:
        return expire(grant, command, rules, "absolute", absolute)
    if command.retry_after_seconds is not None:
        raise Refused(Refusal.TOO_FAST, retry_after_seconds=command.retry_after_seconds)
    policy = client.policy
    scope, carried = resolve(command.scope, grant.granted, grant.carried, client.scope, policy.scope_mode)
    token = mint(grant, command, rules, scope, resources(grant, command.resource, client.resource), absolute)
    idle_expires_at = _slid(grant, at, policy)
    idle_text = None if idle_expires_at is None else times.text(idle_expires_at)
    at_text = times.text(at)
    rotates = (
        policy.rotation == "rotate"
        # A grant that was bound to nothing before its client had to show a key stays so: whoever finds its token would
        # have it for good (RFC 9700 4.14.2).
        or not (grant.proven(command.presenter) or client.unbound_reuse)
        or command.key_id in rules.distrusted
    )
    events: list[GrantEvent] = [
        _redeemed(grant, command, rules, token, client.v, at_text, None if rotates else idle_text)
    ]
    if carried != grant.carried:
        events.append(_scope_change(grant, command, rules, carried))
    generation, key_id = current, command.key_id
    if rotates:
        generation, key_id = current + 1, rules.active_key_id
        v = token.v + len(events)
        events.append(_rotated(grant, command, rules, policy, v, at, at_text, idle_text))
    served = Served(
        access_token=token,
        generation=generation,
        key_id=key_id,
        idle_expires_at=idle_expires_at,
        absolute_expires_at=absolute,
        last_v=grant.v + len(events),
    )
    return Decision(events=events, outcome=served)


def _slid(grant: GrantState, at: int, policy: Policy) -> int | None:
    """The idle end that a redemption sets; where refresh tokens are off, those that exist drain and keep theirs."""
    if policy.refresh_token_ttl_seconds == 0:
        return grant.idle_expires_at
    return idle_end(at, grant.idle_seconds, policy.refresh_token_ttl_seconds, grant.absolute_expires_at)


# These two are made on every refresh, so they spell out what `members` gathers for others.


def _redeemed(
    grant: GrantState,
    command: RedeemToken,
    rules: Rules,
    token: AccessToken,
    client_v: int,
    at_text: str,
    idle_text: str | None,
) -> TokenRedeemed:
    presenter = command.presenter
    return TokenRedeemed(
        stream=grant.stream,
        v=token.v,
        at=at_text,
        command_id=command.command_id,
        control=rules.control,
        generation=command.generation,
        scope=token.scope,
        resource=token.resource,
        cnf_jkt=token.cnf_jkt,
        cnf_x5t_s256=token.cnf_x5t_s256,
        format=token.format,
        signing_key_id=token.signing_key_id,
        access_token_issued_at=times.text(token.issued_at),
        access_token_expires_at=times.text(token.expires_at),
        client_v=client_v,
        context=presenter.context,
        auth_method=presenter.auth_method,
        proof_jkt=presenter.proof_jkt,
        proof_x5t_s256=presenter.proof_x5t_s256,
        idle_expires_at=idle_text,
    )


def _rotated(
    grant: GrantState,
    command: RedeemToken,
    rules: Rules,
    policy: Policy,
    v: int,
    at: int,
    at_text: str,
    idle_text: str | None,
) -> TokenRotated:
    concurrent_until, retry_until, unconfirmed_until = windows(
        at, policy.concurrent_seconds, policy.retry_window_seconds, policy.unconfirmed_seconds
    )
    return TokenRotated(
        stream=grant.stream,
        v=v,
        at=at_text,
        command_id=command.command_id,
        control=rules.control,
        generation=command.generation + 1,
        key_id=rules.active_key_id,
        idle_expires_at=idle_text,
        concurrent_until=concurrent_until,
        retry_until=retry_until,
        unconfirmed_until=unconfirmed_until,
        retry_budget=policy.retry_budget,
    )


def _scope_change(
    grant: GrantState, command: RedeemToken, rules: Rules, carried: Words
) -> ScopeReduced | ScopeRestored:
    """A request that drops some words and adds others restores."""
    restored = any(word not in grant.carried for word in carried)
    return (ScopeRestored if restored else ScopeReduced)(
        **stamp(grant, command, rules, 2),
        scope_before=grant.carried,
        scope_after=carried,
        requested_by=f"client:{grant.client_id}",
    )
