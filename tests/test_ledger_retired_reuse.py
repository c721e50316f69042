"""Retired tokens, reused: who was late, who is another holder, and what `on_reuse` does (RFC 9700 4.14.2, I-04)."""

from typing import NamedTuple

import pytest

from ledger.commands import Rules
from ledger.events import GrantRevoked, GrantSuspended, ReuseDetected
from ledger.grant import FirstRedemptionMissing
from ledger.policy import STANDARD, Policy
from ledger.refusals import Refusal
from tests.scenario import Given, all_under, fact, replayed, scenario, told, under
from tests.scenario_commands import (
    HERE,
    KEY,
    STABLE,
    STREAM,
    STRICT,
    THERE,
    client,
    issue,
    moment,
    policy,
    presenter,
    redeem,
    reinstate,
    ruled,
    suspend,
)
from tests.test_ledger_retired import FORK, LATE, given

# ---------------------------------------------------------------- stragglers and forks


class Older(NamedTuple):
    """Generations 0 and 1 were redeemed at seconds 100 and 200 from HERE; generation 0 is presented."""

    name: str
    at: float
    straggler: bool
    by: str = HERE
    policy: Policy = STANDARD


OLDER = [
    Older("the redeemer's own, at once", 201, True),
    Older("the last moment of the window", 210, True),
    Older("past the window", 210.000001, False),
    Older("from another context", 201, False, by=THERE),
    Older("strict knows no stragglers", 200, False, policy=STRICT),
]


@pytest.mark.parametrize("row", OLDER, ids=lambda row: row.name)
def test_two_behind(row: Older) -> None:
    """A proxy's re-send or a second tab is refused and counted; anything else means two holders."""
    before, rules, when = given(row.policy, generations=2), ruled(row.policy), redeem(0, row.at, row.by)
    if row.straggler:
        scenario(given=before, when=when, rules=rules, refused=Refusal.ROTATED, event_id="3", counts=True)
        return
    scenario(
        given=before, when=when, rules=rules, outcome=FORK, event_id="7",
        then=[
            fact(
                ReuseDetected, presented_generation=0, current_generation=2, label="fork", action="revoke",
                seconds_since_redeemed=int(row.at - 100), first_context=HERE, context=row.by,
            ),
            fact(GrantRevoked, reason_class="reuse", requested_by="ledger:reuse", reason=None),
        ],
    )  # fmt: skip


def test_three_behind_is_a_fork_even_from_the_redeemer() -> None:
    """Only the generation next to the last rotation may be late."""
    scenario(given=given(STANDARD, generations=3), when=redeem(0, 301), outcome=FORK)


def test_a_straggler_is_told_by_who_redeemed_last_not_first() -> None:
    """It is c-1's redeemer that may be late with g."""
    before: list[Given] = [issue(), redeem(0, 100, THERE), redeem(1, 105, HERE)]
    scenario(given=before, when=redeem(0, 106, HERE), refused=Refusal.ROTATED)
    scenario(given=before, when=redeem(0, 106, THERE), outcome=FORK)


def test_reuse_names_the_first_redemption_of_a_token_that_was_reused() -> None:
    """In reuse mode one generation is redeemed many times: the first says who had it and since when."""
    stable = ruled(STABLE)
    before = [
        under(stable, issue()), under(stable, redeem(0, 100, THERE)), under(stable, redeem(0, 150)),
        under(ruled(STRICT), redeem(0, 200)),
    ]  # fmt: skip
    scenario(given=before, when=redeem(0, 260.9), outcome=LATE, then=[
        fact(ReuseDetected, label="late_retry", seconds_since_redeemed=160, first_context=THERE), GrantRevoked,
    ], rules=ruled(STRICT))  # fmt: skip
    older = [*before, under(ruled(STRICT), redeem(1, 300))]
    scenario(given=older, when=redeem(0, 400), outcome=FORK, then=[
        fact(ReuseDetected, label="fork", seconds_since_redeemed=300, first_context=THERE), GrantRevoked,
    ], rules=ruled(STRICT))  # fmt: skip


def test_a_verdict_that_needs_the_history_says_so() -> None:
    """Two or more behind the state does not know who redeemed: the caller must have looked it up."""
    grant = replayed(told(given(STANDARD, generations=2)))
    with pytest.raises(FirstRedemptionMissing):
        grant.decide(redeem(0, 201), ruled())


# ---------------------------------------------------------------- what on_reuse does


def reuse_of(action: str) -> tuple[Rules, list[Given]]:
    rules = ruled(policy("strict", on_reuse=action))
    return rules, all_under(rules, issue(), redeem(0, 100))


@pytest.mark.parametrize("action", ["revoke", "revoke_subject"])
def test_reuse_revokes(action: str) -> None:
    """Recorded first, ended second, in one append; `revoke_subject` asks for the subject's end with it (I-05, D7)."""
    rules, before = reuse_of(action)
    tale = scenario(given=before, when=redeem(0, 105, THERE), rules=rules, outcome=LATE, event_id="5", then=[
        fact(ReuseDetected, action=action), fact(GrantRevoked, reason_class="reuse", requested_by="ledger:reuse"),
    ])  # fmt: skip
    assert (action == "revoke_subject") == tale.ends_subject
    for generation in (0, 1):
        scenario(given=tale.history, when=redeem(generation, 106), rules=rules, refused=LATE, event_id="5", counts=True)


def test_reuse_suspends() -> None:
    """Nothing works until somebody has looked."""
    rules, before = reuse_of("suspend")
    tale = scenario(given=before, when=redeem(0, 105), rules=rules, outcome=LATE, event_id="5", then=[
        fact(ReuseDetected, action="suspend"),
        fact(GrantSuspended, reason_class="reuse", requested_by="ledger:reuse"),
    ])  # fmt: skip
    for generation in (0, 1):
        scenario(given=tale.history, when=redeem(generation, 106), rules=rules, refused=LATE, event_id="5", counts=True)


def test_what_reuse_does_is_the_clients_policy_of_today() -> None:
    """`on_reuse` comes at once, unlike windows."""
    _, before = reuse_of("revoke")
    scenario(given=before, when=redeem(0, 105), rules=reuse_of("suspend")[0], outcome=LATE, then=[
        ReuseDetected, GrantSuspended,
    ])  # fmt: skip


def test_alert_refuses_the_presenter_and_lets_the_grant_go_on() -> None:
    """The first of each label is an event, the others are counted; c stays current."""
    rules, before = reuse_of("alert")
    first = scenario(given=before, when=redeem(0, 105), rules=rules, outcome=Refusal.ROTATED, event_id="3", then=[
        fact(ReuseDetected, label="late_retry", action="alert", current_generation=1),
    ])  # fmt: skip
    again = scenario(
        given=first.history, when=redeem(0, 106, THERE), rules=rules, refused=Refusal.ROTATED, event_id="3", counts=True
    )
    on = scenario(given=again.history, when=redeem(1, 200), rules=rules)
    assert 2 == on.served.generation
    scenario(given=on.history, when=redeem(0, 205), rules=rules, outcome=Refusal.ROTATED, event_id="3", then=[
        fact(ReuseDetected, label="fork", current_generation=2),
    ])  # fmt: skip


@pytest.mark.parametrize("action", ["alert", "revoke_subject"])
@pytest.mark.parametrize("proven", [False, True])
def test_where_nothing_shows_who_presents_it_reuse_ends_the_grant_and_no_more(action: str, proven: bool) -> None:
    """A grant that was bound to nothing before its client had to show keys stays so: who goes on might be the thief,
    and who presents an old token must not end what else a person has."""
    public, jkt = client(authenticates=False, dpop_bound=True), KEY if proven else None
    rules = ruled(policy("strict", on_reuse=action), client=public)
    first = under(ruled(policy("strict"), client=client(authenticates=False)), issue(bound_jkt=jkt))
    who = presenter(authenticated=False, jkt=KEY)
    before = [first, under(rules, redeem(0, 100, who))]
    if proven and action == "alert":
        scenario(given=before, when=redeem(0, 105, who), rules=rules, outcome=Refusal.ROTATED, then=[
            fact(ReuseDetected, action="alert"),
        ])  # fmt: skip
        return
    tale = scenario(given=before, when=redeem(0, 105, who), rules=rules, outcome=Refusal.REUSE_DETECTED, then=[
        fact(ReuseDetected, action=action if proven else "revoke"), fact(GrantRevoked, reason_class="reuse"),
    ])  # fmt: skip
    assert (proven and action == "revoke_subject") == tale.ends_subject


@pytest.mark.parametrize(("rotations", "told_again"), [(9, False), (10, True)])
def test_alert_tells_again_ten_generations_on(rotations: int, told_again: bool) -> None:
    """Recorded at c = 1, again from c = 11 on."""
    rules, before = reuse_of("alert")
    later = (redeem(1 + n, 200 + n) for n in range(rotations))
    history = told([*before, *all_under(rules, redeem(0, 105), *later)])
    when = redeem(rotations, 300, THERE)
    if told_again:
        scenario(given=history, when=when, rules=rules, outcome=Refusal.ROTATED, then=[ReuseDetected])
    else:
        scenario(given=history, when=when, rules=rules, refused=Refusal.ROTATED, counts=True)


def test_alert_tells_again_after_a_reinstatement() -> None:
    """Someone has looked: what comes after is news."""
    rules, before = reuse_of("alert")
    scenario(
        given=[*before, under(rules, redeem(0, 105)), suspend(110), reinstate(120)], when=redeem(0, 130), rules=rules,
        outcome=Refusal.ROTATED, then=[ReuseDetected],
    )  # fmt: skip


def test_a_wrong_scope_is_no_excuse_for_reuse() -> None:
    """The token's state is judged before what it asks for (V54)."""
    scenario(given=given(STRICT), when=redeem(0, 105, scope=("admin",)), rules=ruled(STRICT), outcome=LATE)


def test_reuse_before_the_burst_limit() -> None:
    """Retries and reuse are bounded by their events, never by 429."""
    scenario(given=given(STRICT), when=redeem(0, 105, retry_after_seconds=3), rules=ruled(STRICT), outcome=LATE)
    retry = scenario(given=given(STANDARD), when=redeem(0, 105, retry_after_seconds=3))
    assert "concurrent" == retry.served.retry


def test_a_reuse_long_after_says_how_long() -> None:
    """Whole seconds, rounded down, by the later of the wall clock and the grant's last time."""
    scenario(given=given(STRICT), when=redeem(0, 50), rules=ruled(STRICT), outcome=LATE, then=[
        fact(ReuseDetected, seconds_since_redeemed=0), GrantRevoked,
    ])  # fmt: skip
    assert moment(100) == replayed(told(given(STRICT))).at
    scenario(given=given(STRICT), when=redeem(0, 3700.99), rules=ruled(STRICT), outcome=LATE, then=[
        fact(ReuseDetected, seconds_since_redeemed=3600, event_id=f"{STREAM}/4"), GrantRevoked,
    ])  # fmt: skip
