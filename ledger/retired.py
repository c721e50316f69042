"""A retired refresh token is presented: an honest retry of a lost answer, or reuse, the attack (RFC 9700 4.14.2).

A retry is answered with the very successor that its generation already has: there is never a sibling (I-03).
"""

from ledger.commands import AccessToken, Decision, RedeemToken, RefusedOutcome, Rules, Served
from ledger.events import GrantEvent, GrantRevoked, GrantSuspended, RetryServed, ReuseDetected
from ledger.grant_state import GrantState
from ledger.members import minted, shown, stamp
from ledger.minting import expired_in_last_second, mint, resources
from ledger.policy import ALERT_AGAIN_GENERATIONS, RETRY_LOOK_BACK_GENERATIONS, RETRY_VARIATIONS_MAX
from ledger.refusals import Refusal, Refused
from ledger.scope import resolve
from ledger.times import SECOND
from ledger.verdicts import Redemption


class FirstRedemptionMissing(Exception):
    """The verdict needs `RedeemToken.first_redemption`, and it was not given. Look it up and decide again."""


def present_previous(grant: GrantState, command: RedeemToken, rules: Rules, at: int) -> Decision:
    """The immediate predecessor: a retry in its windows while the current token is unused, else late."""
    previous = grant.previous
    assert previous is not None
    if grant.redeemed is None:
        retry = _retry(grant, command, rules, at, previous)
        if retry is not None:
            over = expired_in_last_second(grant, command, rules, at)
            return over or _serve_retry(grant, command, rules, previous, *retry)
    retired_by = grant.event_id(previous.rotation_v)
    first_context = previous.first_context or previous.context
    return _reuse(grant, command, rules, at, "late_retry", previous.first_at, first_context, retired_by)


def present_older(grant: GrantState, command: RedeemToken, rules: Rules, at: int) -> Decision:
    """Two or more behind: the redeemer's own straggler, else a fork."""
    first, previous = command.first_redemption, grant.previous
    assert previous is not None
    assert grant.generation is not None
    if first is None:
        raise FirstRedemptionMissing
    if command.generation == grant.generation - 2 and previous.is_straggler(at, command.presenter.context):
        raise Refused(Refusal.ROTATED, event_id=first.rotation_event_id, counts=True)
    return _reuse(grant, command, rules, at, "fork", first.at, first.context, first.rotation_event_id)


def _retry(
    grant: GrantState, command: RedeemToken, rules: Rules, at: int, previous: Redemption
) -> tuple[str, bool] | None:
    """Which retry this is and whether it counts."""
    return previous.retry(
        at,
        foreign=command.presenter.context != previous.context,
        always_counts=grant.at - command.at > rules.clock_skew_seconds * SECOND,
        proven=grant.proven(command.presenter),
        budget_left=budget_left(grant, previous, command.generation),
    )


def budget_left(grant: GrantState, previous: Redemption, presented: int) -> bool:
    """Whether a retry that counts is still served. One generation may be retried as often as its window lasts; of the
    ten before it only a few may have been, so whoever holds a copy one step behind runs out."""
    counted = grant.counted_retries
    counted_before = sum(1 for g in counted if presented - RETRY_LOOK_BACK_GENERATIONS <= g < presented)
    return counted_before < previous.retry_budget or presented in counted


def _serve_retry(
    grant: GrantState, command: RedeemToken, rules: Rules, previous: Redemption, kind: str, counts: bool
) -> Decision:
    """The same successor again, and the same access token where the request is the same and it is still good.

    The scope is resolved against what was carried before the redemption, so that the same request resolves alike.
    Nothing that is carried moves, nothing slides.
    """
    client, presenter = rules.client, command.presenter
    assert client is not None
    scope, _ = resolve(command.scope, grant.granted, previous.carried, client.scope, client.policy.scope_mode)
    resource = resources(grant, command.resource, client.resource)
    alike = previous.tokens_like(scope, resource, presenter.proof_jkt, presenter.proof_x5t_s256)
    token = next((token for token in alike if grant.access_token_good(token, command.at, rules)), None)
    events: list[GrantEvent] = []
    if token is None:
        if len(previous.minted) >= RETRY_VARIATIONS_MAX:
            raise Refused(Refusal.ROTATED, event_id=grant.event_id(previous.rotation_v), counts=True)
        token = mint(grant, command, rules, scope, resource, grant.absolute_expires_at)
        events.append(_retry_served(grant, command, rules, kind, counts, token))
    elif previous.is_news(kind, counts, presenter.context != previous.context):
        events.append(_retry_served(grant, command, rules, kind, counts, None))
    assert grant.generation is not None
    served = Served(
        access_token=token,
        generation=grant.generation,
        key_id=grant.key_id,
        idle_expires_at=grant.idle_expires_at,
        absolute_expires_at=grant.absolute_expires_at,
        last_v=max(token.v, previous.rotation_v),
        retry=kind,
    )
    return Decision(events=events, outcome=served)


def _retry_served(
    grant: GrantState, command: RedeemToken, rules: Rules, kind: str, counts: bool, token: AccessToken | None
) -> RetryServed:
    begins, presenter = stamp(grant, command, rules), shown(command.presenter)
    presented = command.generation
    if token is None:
        return RetryServed(**begins, **presenter, presented_generation=presented, kind=kind, counts=counts)
    assert rules.client is not None
    members = minted(token, rules.client.v)
    return RetryServed(**begins, **presenter, **members, presented_generation=presented, kind=kind, counts=counts)


def _reuse(
    grant: GrantState,
    command: RedeemToken,
    rules: Rules,
    at: int,
    label: str,
    first_at: int,
    first_context: str,
    retired_by: str,
) -> Decision:
    """A retired token, and no retry: recorded first, refused second (I-05); `on_reuse` says what follows.

    `first_at` and `first_context` are the presented generation's first redemption; `retired_by` the rotation that
    retired it. Under `alert` the grant goes on, and only what is news is recorded.
    """
    assert rules.client is not None
    assert grant.generation is not None
    action = rules.client.policy.on_reuse
    if action in ("alert", "revoke_subject") and not grant.proven(command.presenter):
        action = "revoke"  # nothing shows who holds which token: one that goes on might be the thief's
    told_at = dict(grant.alerted).get(label)
    if action == "alert" and told_at is not None and grant.generation - told_at < ALERT_AGAIN_GENERATIONS:
        raise Refused(Refusal.ROTATED, event_id=retired_by, counts=True)
    detected = ReuseDetected(
        **stamp(grant, command, rules),
        **shown(command.presenter),
        presented_generation=command.generation,
        current_generation=grant.generation,
        label=label,
        seconds_since_redeemed=(at - first_at) // SECOND,
        first_context=first_context,
        action=action,
    )
    if action == "alert":
        outcome = RefusedOutcome(refusal=Refusal.ROTATED, event_id=retired_by)
        return Decision(events=[detected], outcome=outcome)
    stop = (GrantSuspended if action == "suspend" else GrantRevoked)(
        **stamp(grant, command, rules, 2), reason_class="reuse", requested_by="ledger:reuse"
    )
    outcome = RefusedOutcome(refusal=Refusal.REUSE_DETECTED, event_id=stop.event_id)
    return Decision(events=[detected, stop], outcome=outcome, ends_subject=action == "revoke_subject")
