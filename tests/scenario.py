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
    BeginGrant,
    Command,
    Decision,
    ExchangeCode,
    FirstRedemption,
    GrantCommand,
    RedeemToken,
    RefusedOutcome,
    Rules,
    Served,
)
from ledger.events import GrantAuthorized, GrantEvent, TokenRedeemed, TokenRotated, decode, encode
from ledger.grant import Grant
from ledger.refusals import Refusal, Refused
from ledger.times import SECOND, micros
from tests.scenario_commands import NOT_GIVEN, RULES, STREAM


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
