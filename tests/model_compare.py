"""Where the two readings of the rules must agree: on each answer, and on what is read of a grant after it."""

from collections.abc import Sequence

from ledger import commands, times
from ledger.commands import Rules
from ledger.events import GrantEvent
from ledger.grant import Grant
from ledger.grant_state import access_token_of
from tests.model_answers import Answer
from tests.model_history import History, micros


def agree(what: str, expected: object, told: object) -> None:
    """The model's answer first."""
    assert expected == told, f"{what}: the model says\n  {expected}\nthe aggregate\n  {told}"


def compare_served(history: History, expected: Answer, outcome: commands.Served | None) -> None:
    agree("served", expected.served is not None, outcome is not None)
    if expected.served is None or outcome is None:
        return
    agree("access token", history.access_token(expected.served.minted_v), outcome.access_token)
    for name in ("generation", "key_id", "idle_expires_at", "absolute_expires_at", "last_v", "retry"):
        agree(name, getattr(expected.served, name), getattr(outcome, name))


def compare_states(history: History, grant: Grant, log: Sequence[GrantEvent], now: int, rules: Rules) -> None:
    """What views and introspection read, now."""
    if not history.events:
        return
    told, expected = grant.judge(now, rules.epoch_end), history.judge(now, rules.epoch_end)
    for name in ("status", "reason_class", "at", "event_id", "refusal"):
        agree(name, getattr(expected, name), getattr(told, name))
    agree("generation", (history.current, len(history.events)), (grant.generation, grant.v))
    agree("expiry", history.expiry(), (grant.idle_expires_at, grant.absolute_expires_at))
    agree("issued", times.micros(history.issued["at"]), grant.issued_at)
    for g in range(max(0, (grant.generation or 0) - 3), (grant.generation or 0) + 1):
        agree(f"key of {g}", history.made(g)["key_id"], grant.key_of(g))
    words = [word for word in history.issued["scope"] if word in history.carried()]
    agree("carried", words, list(grant.carried))
    current, redeemed = history.made(history.current or 0), history.of("token_redeemed")
    agree("token issued", times.micros(current["at"]), grant.token_issued_at)
    agree("last redeemed", times.micros(redeemed[-1]["at"]) if redeemed else None, grant.last_redeemed_at)
    ends = [micros(event, "access_token_expires_at") or 0 for event in history.events]
    agree("access tokens until", max(ends), grant.access_tokens_until)
    assert len(grant.counted_retries) <= 11, "I-22: retries are remembered that no budget looks at"
    minted = [event for event in log if access_token_of(event) is not None]
    for event in minted[:1] + minted[-4:]:
        token = history.access_token(event.v)
        agree("minted", token, access_token_of(event))
        active = grant.access_token_active(token, now, rules)
        # What had run out by the grant's own time may stay so when the wall clock is put back.
        if active or history.at < token.expires_at:
            agree(f"{event.v} is active", history.access_token_active(event.v, now, rules), active)
