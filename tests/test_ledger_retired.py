"""Retired tokens, retried: a row for each line of the verdict on the generation before (RFC 9700 4.14.2, I-03)."""

from collections.abc import Iterable
from typing import NamedTuple

import pytest

from ledger import times
from ledger.commands import Presenter, RedeemToken
from ledger.events import GrantExpired, GrantRevoked, RetryServed, ReuseDetected, Words
from ledger.policy import STANDARD, Policy
from ledger.refusals import Refusal
from ledger.times import SECOND
from tests.scenario import Given, Told, all_under, fact, replayed, scenario, told, under
from tests.scenario_commands import (
    DAY,
    HERE,
    KEY,
    MINUTE,
    MOBILE,
    OTHER_KEY,
    SPA,
    STABLE,
    STRICT,
    THERE,
    client,
    issue,
    moment,
    policy,
    presenter,
    public,
    redeem,
    revoke_access_token,
    ruled,
)

LATE, FORK = Refusal.REUSE_DETECTED, Refusal.REUSE_DETECTED


def given(by: Policy, *more: Given, generations: int = 1) -> list[Given]:
    """A grant under a policy whose generations were redeemed in turn, at seconds 100, 200, …; then more."""
    rules = ruled(by)
    chain = (under(rules, redeem(generation, 100 * generation + 100)) for generation in range(generations))
    return [under(rules, issue()), *chain, *more]


# ---------------------------------------------------------------- which retry it is


class Row(NamedTuple):
    """Generation 0, redeemed at second 100 from HERE, is presented again."""

    name: str
    at: float
    verdict: tuple[str, bool] | None  # kind, counts; None: a late retry
    by: Presenter | str = HERE
    policy: Policy = STANDARD


ROWS = [
    Row("at once", 100, ("concurrent", False)),
    Row("the last moment of the window", 110, ("concurrent", False)),
    Row("from another context", 105, ("concurrent", True), by=THERE),
    Row("just past the window", 110.000001, ("lost_response", True)),
    Row("past the window from another context", 130, ("lost_response", True), by=THERE),
    Row("the last moment of the retry window", 160, ("lost_response", True)),
    Row("just past the retry window", 160.000001, ("unconfirmed", True)),
    Row("the last moment of all", 100 + DAY, ("unconfirmed", True)),
    Row("past every window", 100.000001 + DAY, None),
    Row("mobile waits ten minutes", 100 + 10 * MINUTE, ("lost_response", True), policy=MOBILE),
    Row("mobile waits a week", 100 + 7 * DAY, ("unconfirmed", True), policy=MOBILE),
    Row("mobile waits no longer", 100.000001 + 7 * DAY, None, policy=MOBILE),
    Row("strict waits for nobody", 100, None, policy=STRICT),
    Row("no concurrent window", 100, ("lost_response", True), policy=policy(concurrent_seconds=0)),
    Row("no retry window", 120, ("unconfirmed", True), policy=policy(retry_window_seconds=0)),
    Row("no unconfirmed window", 161, None, policy=policy(unconfirmed_seconds=0)),
    Row("no budget, at once, same context", 105, ("concurrent", False), policy=policy(retry_budget=0)),
    Row("no budget, from another context", 105, None, by=THERE, policy=policy(retry_budget=0)),
    Row("no budget, later", 120, None, policy=policy(retry_budget=0)),
    Row("no budget, much later", 200, None, policy=policy(retry_budget=0)),
]


def check_retry(tale: Told, verdict: tuple[str, bool] | None) -> None:
    """A retry gets the same successor and moves nothing; what is none is a late retry and ends the family."""
    if verdict is None:
        assert [ReuseDetected, GrantRevoked] == [type(event) for event in tale.events]
        return
    kind, counts = verdict
    assert (kind, 1, 1) == (tale.served.retry, tale.served.generation, tale.served.key_id)
    (event,) = tale.events
    assert isinstance(event, RetryServed)
    assert (kind, counts, 0) == (event.kind, event.counts, event.presented_generation)
    if event.format is None:
        assert (2, 3) == (tale.served.access_token.v, tale.served.last_v), "the winner's access token, at its position"
    before = replayed(tale.history[:3])
    assert (before.generation, before.carried, before.idle_expires_at) == (
        tale.grant.generation,
        tale.grant.carried,
        tale.grant.idle_expires_at,
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_predecessor_while_its_successor_is_unused(row: Row) -> None:
    """Age counts from the rotation and to the microsecond; windows are those of the policy that ruled then (I-10)."""
    rules = ruled(row.policy)
    when = redeem(0, row.at, row.by)
    outcome = None if row.verdict else Refusal.REUSE_DETECTED
    check_retry(scenario(given=given(row.policy), when=when, rules=rules, outcome=outcome), row.verdict)


PUBLIC_ROWS = [
    Row("in the retry window", 160, ("lost_response", True), by=public()),
    Row("later: nothing proves who asks", 161, None, by=public()),
    Row("later, with some key: it proves nothing", 161, None, by=public(jkt=KEY)),
]


@pytest.mark.parametrize("row", PUBLIC_ROWS, ids=lambda row: row.name)
def test_the_predecessor_of_a_public_client(row: Row) -> None:
    """Unconfirmed is for who authenticated or holds the bound key, not for who shows just any key."""
    rules = ruled(client=SPA)
    before = all_under(rules, issue(), redeem(0, 100, row.by))
    outcome = None if row.verdict else Refusal.REUSE_DETECTED
    check_retry(scenario(given=before, when=redeem(0, row.at, row.by), rules=rules, outcome=outcome), row.verdict)


def test_a_bound_key_proves_a_public_client() -> None:
    """Where the grant is bound, its key has been checked before: unconfirmed is served (RFC 9449 5)."""
    rules = ruled(client=SPA)
    before = all_under(rules, issue(bound_jkt=KEY), redeem(0, 100, public(jkt=KEY)))
    check_retry(scenario(given=before, when=redeem(0, 5000, public(jkt=KEY)), rules=rules), ("unconfirmed", True))


def test_windows_are_frozen_in_the_rotation() -> None:
    """A policy that changed since neither opens nor closes what was set (V58, I-10)."""
    check_retry(scenario(given=given(STANDARD), when=redeem(0, 150), rules=ruled(STRICT)), ("lost_response", True))
    scenario(given=given(STRICT), when=redeem(0, 101), rules=ruled(MOBILE), outcome=LATE)


def test_no_retry_extends_a_window() -> None:
    """The age is that of the successor, whatever was served in between."""
    retries = [redeem(0, at) for at in (105, 109, 140, 159)]
    check = scenario(given=given(STANDARD, *retries), when=redeem(0, 161))
    assert "unconfirmed" == check.served.retry
    scenario(given=given(STANDARD, *retries), when=redeem(0, 101 + DAY), outcome=LATE)


def test_the_successor_once_used_ends_all_retries() -> None:
    """By rotation the next presentation is a fork; by reuse of the same token it is late, whatever the windows say."""
    scenario(given=given(STANDARD, redeem(1, 101)), when=redeem(0, 102, THERE), then=[
        fact(ReuseDetected, label="fork"), GrantRevoked,
    ], outcome=FORK)  # fmt: skip
    reused = given(STANDARD, under(ruled(STABLE), redeem(1, 101)))
    scenario(given=reused, when=redeem(0, 102), rules=ruled(STABLE), then=[
        fact(ReuseDetected, label="late_retry", current_generation=1), GrantRevoked,
    ], outcome=LATE)  # fmt: skip


def test_a_switch_to_reuse_keeps_running_windows() -> None:
    """Switching between rotate and reuse logs nobody out."""
    check_retry(scenario(given=given(STANDARD), when=redeem(0, 150), rules=ruled(STABLE)), ("lost_response", True))


# ---------------------------------------------------------------- the budget


def chain(last: int, retried: Iterable[int]) -> list[Given]:
    """Generations up to `last` redeemed every 100 s; those named were retried 20 s later, which counts."""
    steps: list[Given] = [issue()]
    for generation in range(last + 1):
        at = 100 * generation + 100
        steps.append(redeem(generation, at))
        if generation in retried:
            steps.append(redeem(generation, at + 20))
    return steps


@pytest.mark.parametrize(
    ("last", "retried", "left"),
    [
        (2, (0, 1), True),
        (3, (0, 1, 2), False),
        (10, (0, 1, 2), False),  # the ten before 10 are 0 to 9
        (11, (0, 1, 2), True),  # the ten before 11 are 1 to 10
        (12, (0, 5, 11), True),
        (12, (2, 5, 11), False),
    ],
)
def test_the_budget_looks_ten_generations_back(last: int, retried: tuple[int, ...], left: bool) -> None:
    """Three of the ten generations before may have had a retry that counted, no matter how many retries each."""
    when = redeem(last, 100 * last + 120)
    tale = scenario(given=chain(last, retried), when=when, outcome=None if left else LATE)
    assert left == (tale.outcome is not None and type(tale.outcome).__name__ == "Served")
    concurrent = redeem(last, 100 * last + 105)
    assert "concurrent" == scenario(given=chain(last, retried), when=concurrent).served.retry
    elsewhere = redeem(last, 100 * last + 105, THERE)
    scenario(given=chain(last, retried), when=elsewhere, outcome=None if left else LATE)


def test_a_generation_that_had_a_counted_retry_may_be_retried_again() -> None:
    """One generation may be retried as often as its window lasts."""
    again = [redeem(2, 320 + n) for n in range(10)]
    tale = scenario(given=[*chain(2, (0, 1)), *again], when=redeem(2, 340, THERE))
    assert "lost_response" == tale.served.retry
    assert (0, 1, 2) == tale.grant.counted_retries


def test_the_budget_is_the_one_frozen_in_the_rotation() -> None:
    """A budget raised or taken away since does not count for what is already rotated."""
    scenario(given=given(STANDARD), when=redeem(0, 130), rules=ruled(policy(retry_budget=0)))
    scenario(given=given(policy(retry_budget=0)), when=redeem(0, 130), outcome=LATE)


def test_a_clock_that_fell_behind_makes_every_retry_count() -> None:
    """Behind the grant's last time by more than the skew, an age cannot be relied on; up to the skew it can (I-16)."""
    on_time = scenario(given=given(STANDARD), when=redeem(0, 90))
    assert [("concurrent", False)] == [(e.kind, e.counts) for e in on_time.events if isinstance(e, RetryServed)]
    behind = scenario(given=given(STANDARD), when=redeem(0, 89.999999))
    assert [("concurrent", True)] == [(e.kind, e.counts) for e in behind.events if isinstance(e, RetryServed)]
    scenario(given=given(policy(retry_budget=0)), when=redeem(0, 89.999999), outcome=LATE)


def test_behind_a_clock_that_fell_back_a_retry_gets_an_access_token_of_today() -> None:
    """The winner's is inactive as long as it was issued more than the skew ahead of the wall clock, so one is minted,
    once; up to the skew, and when the clock is right again, it is the winner's (I-16)."""
    for at in (90, 100):
        assert 2 == scenario(given=given(STANDARD), when=redeem(0, at)).served.access_token.v
    minted = [fact(RetryServed, counts=True, access_token_issued_at=times.text(moment(89)))]
    tale = scenario(given=given(STANDARD), when=redeem(0, 89.999999), then=minted)
    token = tale.served.access_token
    assert (4, 1, moment(89), moment(389)) == (token.v, tale.served.generation, token.issued_at, token.expires_at)
    assert 4 == scenario(given=tale.history, when=redeem(0, 89.9), then=[]).served.access_token.v
    assert 2 == scenario(given=tale.history, when=redeem(0, 101), then=[]).served.access_token.v


# ---------------------------------------------------------------- what is recorded of it


def test_each_kind_is_recorded_once_and_once_more_where_it_first_counts_or_comes_from_elsewhere() -> None:
    """Growth is bounded by kinds, not by retries (I-21)."""
    steps = [
        (redeem(0, 101), 1),  # concurrent, first
        (redeem(0, 102), 0),
        (redeem(0, 103, THERE), 1),  # first from elsewhere, and it counts
        (redeem(0, 104, THERE), 0),
        (redeem(0, 105), 0),
        (redeem(0, 120), 1),  # lost response, counts at once
        (redeem(0, 121), 0),
        (redeem(0, 122, THERE), 1),  # first from elsewhere
        (redeem(0, 123, "c3" * 32), 0),
        (redeem(0, 170), 1),  # unconfirmed
        (redeem(0, 171), 0),
    ]
    past: list[Given] = []
    for step, events in steps:
        assert events == len(scenario(given=given(STANDARD, *past), when=step).events), step.at
        past.append(step)


def test_an_identical_retry_gets_the_identical_answer() -> None:
    """Same successor, same access token, same position; only the time left shrinks (I-03, V56)."""
    first = scenario(given=[issue()], when=redeem(0, 100)).served
    retry = scenario(given=given(STANDARD), when=redeem(0, 130)).served
    again = scenario(given=given(STANDARD, redeem(0, 130)), when=redeem(0, 131)).served
    for served in (retry, again):
        assert (first.access_token, first.generation, first.key_id, first.last_v) == (
            served.access_token, served.generation, served.key_id, served.last_v,
        )  # fmt: skip
        assert (first.idle_expires_at, first.absolute_expires_at) == (
            served.idle_expires_at,
            served.absolute_expires_at,
        )


def test_a_retry_names_the_key_of_the_successor_not_of_today() -> None:
    """A key activated since makes later tokens, never another spelling of this one."""
    tale = scenario(given=given(STANDARD), when=redeem(0, 130), rules=ruled(active_key_id=9))
    assert 1 == tale.served.key_id


@pytest.mark.parametrize(
    "when",
    [
        redeem(0, 130, scope=("read",)),
        redeem(0, 130, resource=("https://api.example",)),
        redeem(0, 130, presenter(jkt=OTHER_KEY)),
        redeem(0, 100 + 300),  # the winner's has expired: 300 s
        redeem(0, 100.9 + 300),
    ],
    ids=["scope", "resource", "key", "expired", "expired a moment ago"],
)
def test_a_retry_that_differs_gets_the_same_successor_and_an_access_token_of_its_own(when: RedeemToken) -> None:
    """One new access token, in the event of its own retry; the same variation again gets the same one."""
    rules = ruled(client=client(resource=("https://api.example", "https://b.example")))
    before = all_under(rules, issue(resource=("https://api.example", "https://b.example")), redeem(0, 100))
    tale = scenario(given=before, when=when, rules=rules, then=[fact(RetryServed, format="opaque", client_v=3)])
    assert (1, 4, 4) == (tale.served.generation, tale.served.access_token.v, tale.served.last_v)
    assert 300 * SECOND == tale.served.access_token.expires_at - tale.served.access_token.issued_at
    again = scenario(given=tale.history, when=when, rules=rules, then=[])
    assert tale.served == again.served


def test_a_variation_does_not_displace_the_winners_access_token() -> None:
    """The plain request again gets what it got at first."""
    tale = scenario(given=given(STANDARD, redeem(0, 130, scope=("read",))), when=redeem(0, 131), then=[])
    assert (2, 3) == (tale.served.access_token.v, tale.served.last_v)


def test_an_unlike_retry_that_expired_is_minted_anew() -> None:
    """A variation is remembered by its latest access token."""
    steps = [redeem(0, 110, scope=("read",)), redeem(0, 500, scope=("read",))]
    tale = scenario(given=given(STANDARD, *steps), when=redeem(0, 501, scope=("read",)), then=[])
    assert (5, ("read",)) == (tale.served.access_token.v, tale.served.access_token.scope)


def test_an_access_token_that_was_given_back_is_not_served_again() -> None:
    """An answer must not carry a dead access token (RFC 7009 2.1)."""
    tale = scenario(
        given=given(STANDARD, revoke_access_token(105, 2)), when=redeem(0, 106), then=[fact(RetryServed, counts=False)]
    )
    assert 5 == tale.served.access_token.v


def test_a_jwt_whose_key_is_distrusted_is_not_served_again() -> None:
    """It would be called inactive at once; an opaque one is what its grant says."""
    for form, events in (("jwt", [fact(RetryServed, signing_key_id=2, format="jwt")]), ("opaque", [RetryServed])):
        by = policy(access_token_format=form)
        rules = ruled(by, active_key_id=2, distrusted={1: "keys/5"})
        before = [under(ruled(by), issue()), under(ruled(by, active_key_id=3), redeem(0, 50))]
        history = told([*before, under(ruled(by, active_key_id=1), redeem(1, 100, key_id=3))])
        tale = scenario(given=history, when=redeem(1, 105, key_id=3), rules=rules, then=events)
        assert (2, form == "jwt") == (tale.served.generation, tale.served.access_token.v > 5)


def test_sixteen_access_tokens_a_generation_then_no_more() -> None:
    """The seventeenth is refused without action, and counted (I-21)."""
    by = policy(access_token_ttl_seconds=1, retry_window_seconds=600)
    minting = [redeem(0, 102 + 2 * n) for n in range(16)]
    before = given(by, *all_under(ruled(by), *minting))
    scenario(
        given=before, when=redeem(0, 140), rules=ruled(by), refused=Refusal.ROTATED, event_id="3", counts=True
    )  # fmt: skip
    live = scenario(given=before, when=redeem(0, 132.5), rules=ruled(by), then=[])
    assert 1 == live.served.generation
    assert 16 == len([e for e in live.history if isinstance(e, RetryServed)])


# ---------------------------------------------------------------- a retry's scope


@pytest.mark.parametrize("mode", ["sticky", "rfc6749", "ratchet"])
@pytest.mark.parametrize("asked", [None, ("read",), ("profile", "read")], ids=["all", "one", "two"])
def test_the_same_request_resolves_alike_when_it_is_retried(mode: str, asked: Words | None) -> None:
    """A retry is resolved against what was carried before the redemption, in every mode (D2)."""
    rules = ruled(policy(scope_mode=mode))
    before = all_under(rules, issue(), redeem(0, 100, scope=asked))
    tale = scenario(given=before, when=redeem(0, 105, scope=asked), rules=rules)
    assert 2 == tale.served.access_token.v
    assert [None] == [event.format for event in tale.events if isinstance(event, RetryServed)]


def test_a_retry_moves_nothing_that_is_carried() -> None:
    """Narrowed by the redemption, asked wider by the retry: the access token is wide, the grant stays narrow."""
    before: list[Given] = [issue(), redeem(0, 100, scope=("read",))]
    tale = scenario(given=before, when=redeem(0, 105), then=[RetryServed])
    assert (("read", "openid", "profile"), ("read",)) == (tale.served.access_token.scope, tale.grant.carried)


def test_a_retry_is_under_todays_ceiling() -> None:
    """A cut of scope holds for retries too, and a request beyond it consumes nothing (I-06, I-08)."""
    cut = ruled(client=client(scope=("openid",)))
    narrowed = scenario(
        given=given(STANDARD), when=redeem(0, 105), rules=cut, then=[fact(RetryServed, scope=("openid",))]
    )
    assert ("openid",) == narrowed.served.access_token.scope
    scenario(given=given(STANDARD), when=redeem(0, 105, scope=("read",)), rules=cut, refused=Refusal.INVALID_SCOPE)
    none = ruled(client=client(scope=("write",)))
    scenario(given=given(STANDARD), when=redeem(0, 105), rules=none, refused=Refusal.NO_SCOPE_LEFT)


def test_a_retry_in_the_grants_last_second_is_after_the_end() -> None:
    """`expires_in` would be 0: judged as after the expiry. What is no retry is what it is until the end itself."""
    by = policy(grant_ttl_seconds=120)
    before = all_under(ruled(by), issue(0.5), redeem(0, 100))
    assert "lost_response" == scenario(given=before, when=redeem(0, 119.5), rules=ruled(by)).served.retry
    scenario(
        given=before, when=redeem(0, 119.6), rules=ruled(by), outcome=Refusal.EXPIRED_ABSOLUTE,
        then=[fact(GrantExpired, kind="absolute", presented_generation=0)],
    )  # fmt: skip
    used = [*before, under(ruled(by), redeem(1, 110))]
    scenario(given=used, when=redeem(0, 119.6, THERE), rules=ruled(by), outcome=FORK)
