"""A refresh token is exchanged for its successor: load → decide → append → answer, inside a batch (RFC 6749 6)."""

from functools import partial

from msgspec.structs import replace

from ledger import tokens
from ledger.answering import Unmade, unmade
from ledger.answers import Caller, Source
from ledger.batch import Batch
from ledger.commands import FirstRedemption, Presenter, RedeemToken, Rules, Served
from ledger.events import GrantEvent, ReuseDetected, RollbackDetected, TokenRedeemed, Words
from ledger.grant import Grant, StateMayBeStale
from ledger.history import first_redemption
from ledger.memory import Loaded
from ledger.presenting import (
    Desk,
    after_refusal,
    check_keys,
    check_nonce,
    genuine,
    keep_new_context,
    new_context,
    record,
    unsigned_jwt,
)
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.subjects import subject_of


def redeem(
    batch: Batch,
    desk: Desk,
    caller: Caller,
    source: Source,
    presented: tokens.Presented,
    scope: Words | None,
    resource: Words | None,
) -> Unmade:
    """Exchange a refresh token for its successor (RFC 6749 6, RFC 9700 4.14)."""
    loaded, grant = genuine(batch, desk, caller, source, presented)
    now, generation = batch.now, presented.generation
    authority = desk.authority
    rules = loaded.rules
    if rules is None or loaded.rules_of is not authority.rules_now:
        rules = loaded.rules = authority.rules(grant)
        loaded.rules_of = authority.rules_now
    context = loaded.context if source == loaded.source else loaded.context_of(source)
    presenter = Presenter(
        client_id=caller.client_id,
        authenticated=caller.authenticated,
        auth_method=caller.auth_method,
        context=new_context(batch, loaded, source) if context is None else context,
        proof_jkt=caller.proof_jkt,
        proof_x5t_s256=caller.proof_x5t_s256,
    )
    command = RedeemToken(
        at=now,
        command_id=batch.command_id,
        presenter=presenter,
        generation=generation,
        key_id=presented.key_id,
        scope=scope,
        resource=resource,
        first_redemption=None
        if generation == grant.generation
        else _first_redemption(batch, desk, loaded, grant, generation, rules),
        retry_after_seconds=None if caller.authenticated else _retry_after(batch, desk, presented.grant_id),
    )
    try:
        try:
            decision = grant.decide(command, rules)
        except StateMayBeStale:
            batch.reload(loaded.name)
            loaded, grant = _found(batch, presented.grant_id)
            first = _first_redemption(batch, desk, loaded, grant, generation, rules)
            decision = grant.decide(replace(command, fresh=True, first_redemption=first), rules)
            if any(isinstance(event, RollbackDetected) for event in decision.events):
                batch.when_done.append(partial(desk.alarm, "ahead_of_log", presented.grant_id))
    except Refused as refusal:
        after_refusal(batch, desk, loaded, refusal, generation, source)
        raise
    served = decision.outcome
    if not isinstance(served, Served):
        assert served is not None
        record(batch, desk, loaded, decision, source, presenter.context)
        reuse = next((event for event in decision.events if isinstance(event, ReuseDetected)), None)
        raise Refused(served.refusal, event_id=served.event_id, reuse=reuse)
    check_keys(desk.ring, served)
    check_nonce(loaded)
    jwt = None
    if served.access_token.format == "jwt":
        jwt = unsigned_jwt(desk, served, presented.grant_id, grant, subject_of(batch, grant.subject_id))
    previous = grant.previous  # as it is before this is appended: what it names has its row
    if decision.events:
        batch.append(loaded, decision.events)
    if context is None and decision.events:
        if previous is not None and presenter.context == previous.context:
            loaded.keep_context(source, presenter.context)
        else:
            keep_new_context(batch, loaded, source, presenter.context)
    if not caller.authenticated and desk.bursts.limited and _redeems(decision.events):
        batch.redeemed[presented.grant_id] = batch.redeemed.get(presented.grant_id, 0) + 1
        batch.when_done.append(partial(desk.bursts.spend, presented.grant_id, now))
    return unmade(batch, desk, loaded, grant, served, jwt)


def _found(batch: Batch, grant_id: str) -> tuple[Loaded, Grant]:
    found = batch.grant(grant_id)
    if found is None:
        raise Refused(Refusal.UNKNOWN_TOKEN)
    return found


def _first_redemption(
    batch: Batch, desk: Desk, loaded: Loaded, grant: Grant, generation: int, rules: Rules
) -> FirstRedemption | None:
    """Only a generation two or more behind of a grant that lives needs its history; halving finds it. Raises
    Unavailable where that cannot be read: there is no event of a reuse without it, and somebody has to be told."""
    if grant.generation is None or generation > grant.generation - 2:
        return None
    if grant.judge(batch.now, rules.epoch_end).status != "active":
        return None
    try:
        found = first_redemption(batch, loaded.name, grant.v, generation)
    except Unavailable as error:
        batch.when_done.append(partial(desk.not_judged, grant.grant_id, generation, str(error)))
        raise
    if desk.unjudged:
        desk.unjudged.pop(grant.grant_id, None)
    return found


def _retry_after(batch: Batch, desk: Desk, grant_id: str) -> int | None:
    if not desk.bursts.limited:
        return None
    return desk.bursts.retry_after_seconds(grant_id, batch.now, batch.redeemed.get(grant_id, 0))


def _redeems(events: list[GrantEvent]) -> bool:
    return any(isinstance(event, TokenRedeemed) for event in events)
