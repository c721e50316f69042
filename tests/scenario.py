"""Given what happened, when a command comes, then these events or this refusal: the rules of a grant, with no I/O.

    scenario(given=[issue(), redeem(0, at=10)], when=redeem(0, at=15), then=[fact(RetryServed, kind="concurrent")])

`given` is commands and events in order. `rules` are those of the last command; what is given was decided under RULES,
or under others where it says so: `under(other, command)`, `all_under(other, command, ...)`. Times are seconds after
START. What every decision must keep is checked on each one, given ones included: `decide` changes nothing, versions and
times run on, and a replay of the stored bytes and a snapshot that was put away and fetched again both come to the very
state that the events led to (I-13).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from ledger.commands import (
    AuthorizeGrant,
    BeginGrant,
    ClientRules,
    Command,
    CountPresentations,
    Decision,
    EpochEnd,
    ExchangeCode,
    FirstRedemption,
    GrantCommand,
    IssueGrant,
    Presenter,
    RecordForeignClient,
    RedeemToken,
    RefusedOutcome,
    ReinstateGrant,
    RevokeAccessToken,
    RevokeByClient,
    RevokeGrant,
    Rules,
    Served,
    SuspendGrant,
)
from ledger.events import GrantAuthorized, GrantEvent, TokenRedeemed, TokenRotated, Words, decode, encode
from ledger.grant import Grant
from ledger.new_grants import BeginMembers
from ledger.policy import PRESETS, STANDARD, Policy
from ledger.refusals import Refusal, Refused
from ledger.times import SECOND, micros

START = micros("2026-11-25T12:00:00.000000Z")
GRANT_ID = "019abd0e0e107d708000123456789abc"
STREAM = f"grant:{GRANT_ID}"
COMMAND_ID = "c0" * 16
HERE, THERE = "a1" * 32, "b2" * 32  # commitments of two contexts
KEY, OTHER_KEY = "jkt-of-one-key", "jkt-of-another-key"
CALLBACK = "https://app.example/callback"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"  # of RFC 7636 appendix B
MINUTE, HOUR, DAY = 60, 3600, 86_400

STRICT, MOBILE, STABLE, FAPI2 = (PRESETS[name] for name in ("strict", "mobile", "stable", "fapi2"))


NOT_GIVEN = GrantAuthorized(
    stream=STREAM, v=1, at="", command_id="", control=0, client_id="", subject_id="", client_epoch=0, subject_epoch=0,
    nonce_sha256="", key_id=0, issued_by="", redirect_uri="", challenge="", scope=(), code_expires_at="",
)  # fmt: skip


def moment(seconds: float) -> int:
    """A moment of the tests, in the ledger's microseconds."""
    return START + round(seconds * SECOND)


# ---------------------------------------------------------------- what stands outside the grant


def policy(preset: str = "standard", **fields: object) -> Policy:
    """A preset with some fields changed."""
    return msgspec.structs.replace(PRESETS[preset], **fields)


WWW = ClientRules(
    client_id="www",
    v=3,
    scope=("read", "openid", "profile", "write"),
    resource=(),
    policy=STANDARD,
    authenticates=True,
)
RULES = Rules(
    control=7, client=WWW, client_epoch=0, subject_epoch=0, epoch_end=None, active_key_id=1, distrusted={}
)  # fmt: skip


def ruled(by: Policy = STANDARD, *, client: ClientRules | None = WWW, **rules: object) -> Rules:
    """The rules with the client under a policy; further fields of Rules by name."""
    ruling = None if client is None else msgspec.structs.replace(client, policy=by)
    return msgspec.structs.replace(RULES, client=ruling, **rules)


def client(**fields: object) -> ClientRules:
    """The client with some fields changed."""
    return msgspec.structs.replace(WWW, **fields)


SPA = client(authenticates=False)


def epoch_end(at: float, refusal: Refusal = Refusal.REVOKED_BY_SUBJECT, reason_class: str = "withdrawal") -> EpochEnd:
    return EpochEnd(event_id="subject:5ub/1", at=moment(at), refusal=refusal, reason_class=reason_class)


# ---------------------------------------------------------------- commands


def issue(
    at: float = 0,
    *,
    scope: Words = ("read", "openid", "profile"),
    resource: Words | None = None,
    refresh_token_ttl_seconds: int | None = None,
    grant_ttl_seconds: int | None = None,
    issued_at_least: int = 0,
    client_id: str = "www",
    bound_jkt: str | None = None,
    bound_x5t_s256: str | None = None,
) -> IssueGrant:
    return IssueGrant(
        **_begins(at, scope, resource, issued_at_least, client_id),
        refresh_token_ttl_seconds=refresh_token_ttl_seconds,
        grant_ttl_seconds=grant_ttl_seconds,
        bound_jkt=bound_jkt,
        bound_x5t_s256=bound_x5t_s256,
    )


def authorize(
    at: float = 0,
    *,
    scope: Words = ("read", "openid", "profile"),
    resource: Words | None = None,
    redirect_uri: str = CALLBACK,
    issued_at_least: int = 0,
    client_id: str = "www",
    dpop_jkt: str | None = None,
) -> AuthorizeGrant:
    return AuthorizeGrant(
        **_begins(at, scope, resource, issued_at_least, client_id, signed_in=True),
        redirect_uri=redirect_uri,
        challenge=CHALLENGE,
        dpop_jkt=dpop_jkt,
    )


def _begins(
    at: float, scope: Words, resource: Words | None, issued_at_least: int, client_id: str, *, signed_in: bool = False
) -> BeginMembers:
    return {
        "at": moment(at),
        "command_id": COMMAND_ID,
        "grant_id": GRANT_ID,
        "client_id": client_id,
        "subject_id": "5ub",
        "scope": scope,
        "resource": resource,
        "nonce_sha256": "0f" * 32,
        "issued_by": "operator:login-app",
        "issued_at_least": issued_at_least,
        "session": "5e" * 32 if signed_in else None,
        "auth_time": 1_764_072_000 if signed_in else None,
        "acr": "urn:x" if signed_in else None,
        "amr": ("pwd",) if signed_in else None,
    }


def exchange(
    at: float,
    by: "Presenter | str" = HERE,
    *,
    authorized: GrantAuthorized | None = None,
    challenge: str | None = CHALLENGE,
    redirect_uri: str | None = CALLBACK,
    resource: Words | None = None,
    key_id: int = 1,
) -> ExchangeCode:
    """A code, presented by a context (the authenticated owner's) or a whole presenter. Without `authorized` the grant's
    first event is taken from the scenario."""
    return ExchangeCode(
        at=moment(at),
        command_id=COMMAND_ID,
        presenter=presenter(by) if isinstance(by, str) else by,
        authorized=authorized or NOT_GIVEN,
        key_id=key_id,
        challenge=challenge,
        redirect_uri=redirect_uri,
        resource=resource,
        reuse_reason="5a" * 32,
    )


def presenter(
    context: str = HERE,
    *,
    client_id: str = "www",
    authenticated: bool = True,
    jkt: str | None = None,
    x5t_s256: str | None = None,
) -> Presenter:
    return Presenter(
        client_id=client_id,
        authenticated=authenticated,
        auth_method="client_secret_basic" if authenticated else "none",
        context=context,
        proof_jkt=jkt,
        proof_x5t_s256=x5t_s256,
    )


def public(context: str = HERE, *, jkt: str | None = None) -> Presenter:
    """A public client that names itself, with the key it has shown."""
    return presenter(context, authenticated=False, jkt=jkt)


def redeem(
    generation: int,
    at: float,
    by: Presenter | str = HERE,
    *,
    scope: Words | None = None,
    resource: Words | None = None,
    key_id: int = 1,
    retry_after_seconds: int | None = None,
    fresh: bool = False,
) -> RedeemToken:
    """A presentation of one generation, by a context (the authenticated owner's) or a whole presenter."""
    return RedeemToken(
        at=moment(at),
        command_id=COMMAND_ID,
        presenter=presenter(by) if isinstance(by, str) else by,
        generation=generation,
        key_id=key_id,
        scope=scope,
        resource=resource,
        retry_after_seconds=retry_after_seconds,
        fresh=fresh,
    )


def revoke_by_client(at: float, client_id: str = "www") -> RevokeByClient:
    return RevokeByClient(at=moment(at), command_id=COMMAND_ID, client_id=client_id)


def revoke_access_token(at: float, issued_v: int, client_id: str = "www") -> RevokeAccessToken:
    return RevokeAccessToken(at=moment(at), command_id=COMMAND_ID, issued_v=issued_v, client_id=client_id)


def revoke(at: float, by: str = "operator:ops", reason_class: str = "termination") -> RevokeGrant:
    return RevokeGrant(
        at=moment(at), command_id=COMMAND_ID, reason_class=reason_class, reason="5a" * 32, requested_by=by
    )


def suspend(at: float, by: str = "operator:ops") -> SuspendGrant:
    return SuspendGrant(
        at=moment(at), command_id=COMMAND_ID, reason_class="termination", reason="5a" * 32, requested_by=by
    )


def reinstate(at: float, trust: str | None = None) -> ReinstateGrant:
    return ReinstateGrant(
        at=moment(at), command_id=COMMAND_ID, reason="5a" * 32, requested_by="operator:ops", trust=trust
    )


def foreign(generation: int, at: float, client_id: str = "oth") -> RecordForeignClient:
    return RecordForeignClient(
        at=moment(at), command_id=COMMAND_ID, presenter=presenter(THERE, client_id=client_id), generation=generation
    )


def count(presentations: int, first: float, at: float, *, at_stop: bool = False) -> CountPresentations:
    """Presentations from `first` until `at`, flushed at `at`."""
    return CountPresentations(
        at=moment(at),
        command_id=COMMAND_ID,
        count=presentations,
        first_at=moment(first),
        last_at=moment(at),
        last_generation=0,
        last_context=THERE,
        at_stop=at_stop,
    )


# ---------------------------------------------------------------- scenarios


class Under(NamedTuple):
    """A command under other rules than the scenario's."""

    rules: Rules
    command: GrantCommand


class Fact(NamedTuple):
    """An event of a topic with these members; others may be anything."""

    topic: type[GrantEvent]
    members: dict[str, object]


Given: TypeAlias = GrantCommand | GrantEvent | Under
Then: TypeAlias = type[GrantEvent] | Fact


class Told(NamedTuple):
    """What came of the last command, and the grant after it."""

    grant: Grant
    events: list[GrantEvent]
    outcome: Served | RefusedOutcome | None
    refused: Refused | None
    history: list[GrantEvent]
    ends_subject: bool

    @property
    def served(self) -> Served:
        """The answer, where there must be one."""
        assert isinstance(self.outcome, Served), self.refused or self.outcome
        return self.outcome


def under(rules: Rules, command: GrantCommand) -> Under:
    return Under(rules, command)


def all_under(rules: Rules, *commands: GrantCommand) -> list[Given]:
    return [Under(rules, command) for command in commands]


def fact(topic: type[GrantEvent], **members: object) -> Fact:
    return Fact(topic, members)


def scenario(
    *,
    given: Sequence[Given] = (),
    when: GrantCommand | Under,
    rules: Rules = RULES,
    then: Sequence[Then] | None = None,
    refused: Refusal | None = None,
    outcome: Refusal | None = None,
    event_id: str | None = None,
    counts: bool | None = None,
) -> Told:
    """Decide `when` after `given`; check what is said about it, and return all of it.

    `refused`: a Refused, nothing recorded, `counts` as told. `outcome`: a RefusedOutcome that the events made history.
    `event_id`: the `v` or the whole id that the refusal names. Without either the command must be accepted.
    """
    history = told(given)
    grant = replayed(history)
    ruling, command = when if isinstance(when, Under) else (rules, when)
    decision, refusal = _decide(grant, history, command, ruling)
    events = decision.events if decision is not None else []
    result = decision.outcome if decision is not None else None
    tale = Told(grant, events, result, refusal, history, decision is not None and decision.ends_subject)
    assert refused == (refusal.refusal if refusal else None), f"refused: {refusal!r}"
    assert outcome == (result.refusal if isinstance(result, RefusedOutcome) else None), f"outcome: {result!r}"
    if event_id is not None:
        named = refusal.event_id if refusal else result.event_id if isinstance(result, RefusedOutcome) else None
        assert event_id == (named.removeprefix(f"{STREAM}/") if named else None), f"event id: {named}"
    if counts is not None:
        assert refusal is not None
        assert counts == refusal.counts
    if then is not None:
        check_events(then, events)
    return tale


def told(given: Sequence[Given]) -> list[GrantEvent]:
    """The history that commands and events come to; a given command must not be refused with an exception."""
    history: list[GrantEvent] = []
    grant = Grant()
    for step in given:
        ruling, step = step if isinstance(step, Under) else (RULES, step)
        if isinstance(step, Command):
            decision, refusal = _decide(grant, history, step, ruling)
            assert decision is not None, f"given {type(step).__name__}: {refusal}"
        else:
            _follow(grant, history, step)
    return history


def replayed(history: Sequence[GrantEvent]) -> Grant:
    """The state that these events lead to, from their stored bytes."""
    grant = Grant()
    for event in history:
        grant.evolve(_stored(event))
    return grant


def check_events(then: Sequence[Then], events: Sequence[GrantEvent]) -> None:
    """Compare topics in order, and the members that were named."""
    wanted = [step if isinstance(step, Fact) else Fact(step, {}) for step in then]
    assert [fact.topic.__name__ for fact in wanted] == [type(event).__name__ for event in events]
    for expected, event in zip(wanted, events, strict=True):
        found = {name: getattr(event, name) for name in expected.members}
        assert expected.members == found, type(event).__name__


def _decide(
    grant: Grant, history: list[GrantEvent], command: GrantCommand, rules: Rules
) -> tuple[Decision | None, Refused | None]:
    before = msgspec.msgpack.encode(grant)
    if isinstance(command, ExchangeCode) and command.authorized is NOT_GIVEN:
        first = history[0]
        assert isinstance(first, GrantAuthorized), "only a grant of the code flow has a code"
        command = msgspec.structs.replace(command, authorized=first)
    if isinstance(command, RedeemToken) and command.first_redemption is None:
        command = msgspec.structs.replace(command, first_redemption=_first_redemption(history, command.generation))
    decision, refusal = None, None
    try:
        decision = grant.decide(command, rules)
    except Refused as error:
        refusal = error
    assert before == msgspec.msgpack.encode(grant), "decide changed the grant"
    if decision is not None:
        _check_decision(grant, command, rules, decision)
        for event in decision.events:
            _follow(grant, history, event)
        assert msgspec.to_builtins(replayed(history)) == msgspec.to_builtins(grant), "a replay comes to another state"
        kept = msgspec.msgpack.decode(msgspec.msgpack.encode(grant), type=Grant)
        assert kept == grant, "a snapshot comes to another state"
    return decision, refusal


def _check_decision(grant: Grant, command: GrantCommand, rules: Rules, decision: Decision) -> None:
    at = max(command.at, grant.at, command.issued_at_least if isinstance(command, BeginGrant) else 0)
    for nth, event in enumerate(decision.events, 1):
        assert (STREAM, grant.v + nth) == (event.stream, event.v)
        assert (at, command.command_id, rules.control) == (micros(event.at), event.command_id, event.control)
        assert event.prev is None, "the link is made at the append"
    outcome = decision.outcome
    if isinstance(outcome, Served):
        assert 1 <= outcome.last_v <= grant.v + len(decision.events)
        token = outcome.access_token
        assert 0 == token.issued_at % SECOND == token.expires_at % SECOND
        assert command.at < token.expires_at, "expires_in is at least 1"
        absolute = outcome.absolute_expires_at
        if absolute is not None:
            assert token.expires_at <= absolute, "an access token outlives its grant"
            assert outcome.idle_expires_at is not None
            assert outcome.idle_expires_at <= absolute, "idle passes absolute (I-17)"


def _follow(grant: Grant, history: list[GrantEvent], event: GrantEvent) -> None:
    grant.evolve(event)
    history.append(event)


def _stored(event: GrantEvent) -> GrantEvent:
    back = decode(encode(event))
    assert back == event, "the stored bytes come to another event"
    return back


def _first_redemption(history: Sequence[GrantEvent], generation: int) -> FirstRedemption | None:
    """As the application reads it from the grant's own events."""
    first = next((e for e in history if isinstance(e, TokenRedeemed) and e.generation == generation), None)
    retired_by = next((e for e in history if isinstance(e, TokenRotated) and e.generation == generation + 1), first)
    if first is None or retired_by is None:
        return None
    return FirstRedemption(context=first.context, at=micros(first.at), rotation_event_id=retired_by.event_id)
