"""What must hold of one grant whatever the rules: a check over its events and answers that knows no verdicts.

Entries are in log order: an event as stored, with the scope that its client might have at that moment, or an answer
that gave tokens. One pass, independent of the model and of the aggregate.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ledger import times
from tests.model_history import NEVER, Fact, micros

Token: TypeAlias = tuple[int, int]
"""A refresh token of the grant: generation and key id."""

ENDS = ("grant.revoked", "grant.expired")
AFTER_THE_END = ("grant.presentations_counted", "grant.foreign_client_presented", "grant.access_token_revoked")
AFTER_A_SUSPENSION = (*AFTER_THE_END, *ENDS, "grant.reinstated")
COUNTED_EVENTS_MAX, MINTED_BY_RETRIES_MAX, TOLD_RETRIES_MAX, ALERT_GENERATIONS = 32, 16, 3 * 3, 10


@dataclass
class Recorded:
    """An event, and the scope that the client might have when it was appended."""

    event: Fact
    ceiling: set[str]


@dataclass
class Handed:
    """A token was presented at a moment (the grant's own time), and another handed out for it, with the access token
    that the event `minted_v` says."""

    presented: Token
    given: Token
    minted_v: int
    scope: set[str]
    ceiling: set[str]
    at: int


@dataclass
class _Told:
    granted: set[str] = field(default_factory=set)
    version: int = 0
    generation: int = 0
    redeemed: bool = False
    at: int = 0
    idle: int | None = None
    absolute: int | None = None
    window: int = 0
    code_until: int | None = None
    ended: bool = False
    suspended: bool = False
    minted: set[int] = field(default_factory=set)
    successors: dict[Token, Token] = field(default_factory=dict)
    alerts: dict[str, int] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)


def check(entries: Sequence[Recorded | Handed]) -> None:
    """Assert I-01 to I-05, I-07, I-08, I-16, I-17 and I-21 over everything that happened to one grant."""
    told = _Told()
    for entry in entries:
        if isinstance(entry, Recorded):
            assert told.version + 1 == entry.event["v"], "a version is missing"
            told.version += 1
            _check_event(told, entry.event, entry.ceiling)
        else:
            _check_handed(told, entry)


def _check_event(told: _Told, event: Fact, ceiling: set[str]) -> None:
    topic, at = event["topic"], times.micros(event["at"])
    where = f"{topic} {event['v']}"
    assert told.at <= at, f"I-16 {where}: time runs back"
    assert not told.ended or topic in AFTER_THE_END, f"I-07 {where}: after the end"
    assert not told.suspended or topic in AFTER_A_SUSPENSION, f"I-05 {where}: while suspended"
    told.at = at
    if topic == "grant.authorized":
        assert event["v"] == 1
        told.granted, told.code_until = set(event["scope"]), micros(event, "code_expires_at")
    if topic == "grant.issued":
        assert not told.minted, f"PK-3 {where}: issued twice"
        assert told.at < (told.code_until or NEVER), f"PK-1 {where}: its code had expired"
        told.granted = told.granted if told.code_until is not None else set(event["scope"])
        told.absolute = micros(event, "absolute_expires_at")
    _check_lifetimes(told, event, where)
    if "access_token_expires_at" in event:
        told.minted.add(event["v"])
        assert set(event["scope"]) <= told.granted & ceiling, f"I-08 {where}: beyond the ceiling"
        assert (micros(event, "access_token_expires_at") or 0) <= (told.absolute or NEVER), f"I-17 {where}: outlives"
    _check_generations(told, event, where)
    _check_growth(told, event, where)
    if topic in ("grant.scope_reduced", "grant.scope_restored"):
        assert set(event["scope_after"]) <= told.granted, f"I-08 {where}: more than was granted"
    told.ended = told.ended or topic in ENDS
    told.suspended = topic == "grant.suspended" or (told.suspended and topic != "grant.reinstated")


def _check_lifetimes(told: _Told, event: Fact, where: str) -> None:
    topic, rotates = event["topic"], event["topic"] == "grant.token_rotated"
    if topic in ("grant.token_redeemed", "grant.retry_served"):
        assert told.at < (told.idle or NEVER), f"I-16 {where}: after the idle end"
        assert told.at < (told.absolute or NEVER), f"I-16 {where}: after the absolute end"
    # Where a redemption rotates, the idle end is its rotation's to say.
    if topic in ("grant.issued", "grant.token_redeemed") or rotates:
        told.idle = micros(event, "idle_expires_at")
        assert (told.idle or 0) <= (told.absolute or NEVER), f"I-17 {where}: idle passes absolute"
    if rotates:
        assert told.idle is not None or told.absolute is None, f"I-17 {where}: no idle end, yet an absolute one"
        ends = [micros(event, f"{name}_until") or 0 for name in ("concurrent", "retry", "unconfirmed")]
        told.window = max(ends)


def _check_generations(told: _Told, event: Fact, where: str) -> None:
    match event["topic"]:
        case "grant.token_redeemed":
            assert told.generation == event["generation"], f"I-04 {where}: a retired token bought something"
            told.redeemed = True
        case "grant.token_rotated":
            assert told.redeemed, f"I-01 {where}: rotated, not redeemed"
            assert told.generation + 1 == event["generation"], f"I-01 {where}: a generation is missing or doubled"
            told.generation, told.redeemed = event["generation"], False
        case "grant.retry_served":
            assert told.generation - 1 == event["presented_generation"], f"I-04 {where}: no immediate predecessor"
            assert not told.redeemed, f"I-04 {where}: the successor was used"


def _check_growth(told: _Told, event: Fact, where: str) -> None:
    topic, totals = event["topic"], told.totals
    match topic:
        case "grant.presentations_counted":
            totals["counted after the end" if told.ended else "counted before it"] += 1
        case "grant.retry_served":
            what = "minted" if "access_token_expires_at" in event else event["kind"]
            totals[f"{what} for retries of {event['presented_generation']}"] += 1
        case "grant.reuse_detected" if event["action"] == "alert":
            last, current = told.alerts.get(event["label"]), event["current_generation"]
            assert last is None or current >= last + ALERT_GENERATIONS, f"I-21 {where}: alerted again too soon"
        case "grant.access_token_revoked":
            totals[f"{topic} {event['issued_v']}"] += 1
        case "grant.foreign_client_presented" | "grant.rollback_detected" | "grant.revoked" | "grant.expired":
            totals[topic] += 1
        case "grant.reinstated":
            told.alerts.clear()
    if topic == "grant.reuse_detected":
        told.alerts[event["label"]] = event["current_generation"]
    for what, number in totals.items():
        most = COUNTED_EVENTS_MAX * 2 if what.startswith("counted after") else 1
        # An end by epoch or by a frozen expiry has no event here: what was counted after it looks counted before.
        most = COUNTED_EVENTS_MAX * 2 if what.startswith("counted before") else most
        most = MINTED_BY_RETRIES_MAX if what.startswith("minted") else most
        most = 3 if " for retries of " in what and not what.startswith("minted") else most
        assert number <= most, f"I-21 {where}: {what} {number} times"


def _check_handed(told: _Told, answer: Handed) -> None:
    (g, _), (successor, _) = answer.presented, answer.given
    where = f"{answer.presented} after version {told.version}"
    assert answer.minted_v in told.minted, f"I-02 {where}: an access token that no event minted"
    assert not told.ended, f"I-07 {where}: served after the end"
    assert not told.suspended, f"I-05 {where}: served while suspended"
    assert answer.scope <= told.granted & answer.ceiling, f"I-08 {where}: beyond the ceiling"
    assert told.generation == successor, f"I-01 {where}: what was handed out is not current"
    if g != successor:
        again = answer.presented in told.successors
        assert g + 1 == successor, f"I-04 {where}: a token two behind was served"
        first = told.successors.setdefault(answer.presented, answer.given)
        assert answer.given == first, f"I-03 {where}: a sibling"
        assert answer.at <= told.window or not again, f"I-16 {where}: served after every window"
