"""What the current refresh token buys: its successor, an access token, their scope and lifetimes (RFC 6749 6, I-01)."""

from typing import NamedTuple

import pytest

from ledger.commands import RedeemToken
from ledger.events import GrantExpired, ScopeReduced, ScopeRestored, TokenRedeemed, TokenRotated, Words
from ledger.policy import STANDARD, Policy
from ledger.refusals import Refusal
from ledger.times import text
from tests.scenario import Fact, Given, Then, all_under, fact, replayed, scenario, told, under
from tests.scenario_commands import (
    DAY,
    KEY,
    STABLE,
    STRICT,
    THERE,
    client,
    issue,
    moment,
    policy,
    presenter,
    redeem,
    revoke_access_token,
    ruled,
)

ISSUED: tuple[Given, ...] = (issue(),)
ROTATED: tuple[Given, ...] = (issue(), redeem(0, 100))
OFF = policy(refresh_token_ttl_seconds=0)


# ---------------------------------------------------------------- rotation


def test_a_redemption_rotates() -> None:
    """Two events, in this order and together; the answer carries the successor and its position's version."""
    tale = scenario(given=ISSUED, when=redeem(0, 100.5, presenter(THERE, jkt=KEY)), then=[
        fact(
            TokenRedeemed, v=2, generation=0, scope=("read", "openid", "profile"), resource=None, cnf_jkt=KEY,
            cnf_x5t_s256=None, format="opaque", signing_key_id=1, client_v=3, context=THERE,
            access_token_issued_at=text(moment(100)), access_token_expires_at=text(moment(400)),
            auth_method="client_secret_basic", proof_jkt=KEY, proof_x5t_s256=None, idle_expires_at=None,
        ),
        fact(
            TokenRotated, v=3, generation=1, key_id=1, idle_expires_at=text(moment(100.5 + 30 * DAY)),
            concurrent_until=text(moment(110.5)), retry_until=text(moment(160.5)),
            unconfirmed_until=text(moment(100.5 + DAY)), retry_budget=3,
        ),
    ])  # fmt: skip
    served = tale.served
    assert (1, 1, 3, None) == (served.generation, served.key_id, served.last_v, served.retry)
    assert (moment(100.5 + 30 * DAY), moment(365 * DAY)) == (served.idle_expires_at, served.absolute_expires_at)
    assert (2, moment(100), moment(400)) == (
        served.access_token.v, served.access_token.issued_at, served.access_token.expires_at,
    )  # fmt: skip
    assert (1, moment(100.5), moment(100.5)) == (
        tale.grant.generation, tale.grant.last_redeemed_at, tale.grant.token_issued_at,
    )  # fmt: skip


def test_windows_that_are_off_are_left_out() -> None:
    """A window of 0 is no moment."""
    scenario(given=ISSUED, when=redeem(0, 100), rules=ruled(STRICT), then=[
        TokenRedeemed,
        fact(TokenRotated, concurrent_until=None, retry_until=None, unconfirmed_until=None, retry_budget=0),
    ])  # fmt: skip


def test_generations_run_without_gaps() -> None:
    """One current token at a time, each the successor of the one before (I-01)."""
    history = told([issue(), *(redeem(n, 10 * n + 10) for n in range(20))])
    assert list(range(1, 21)) == [event.generation for event in history if isinstance(event, TokenRotated)]
    assert list(range(20)) == [event.generation for event in history if isinstance(event, TokenRedeemed)]


def test_the_successor_is_made_by_the_active_key() -> None:
    """The presented token may be of an older key; the access token is derived by the active one too."""
    tale = scenario(given=ISSUED, when=redeem(0, 100), rules=ruled(active_key_id=2), then=[
        fact(TokenRedeemed, signing_key_id=2), fact(TokenRotated, key_id=2),
    ])  # fmt: skip
    assert (2, 2, 1) == (tale.served.key_id, tale.grant.key_id, tale.grant.key_of(0))


def test_reuse_mode_echoes_the_token_and_slides_its_idle_end() -> None:
    """One event, generation and key unchanged, and the answer names the presented token's key (V60)."""
    rules = ruled(STABLE, active_key_id=2)
    tale = scenario(given=ISSUED, when=redeem(0, 100), rules=rules, then=[
        fact(TokenRedeemed, generation=0, idle_expires_at=text(moment(100 + 30 * DAY)), signing_key_id=2),
    ])  # fmt: skip
    assert (0, 1, 2) == (tale.served.generation, tale.served.key_id, tale.served.last_v)
    again = scenario(given=tale.history, when=redeem(0, 200), rules=rules, then=[TokenRedeemed])
    assert (3, moment(200 + 30 * DAY)) == (again.served.access_token.v, again.grant.idle_expires_at)


def test_where_nothing_shows_who_presents_it_a_token_rotates_whatever_the_client_may() -> None:
    """RFC 9700 4.14.2: a grant that was bound to nothing before its client had to show keys stays so, and a token that
    stays the same would be its finder's for good. Where the grant is bound, or the entry says so, it stays."""
    anybody = presenter(authenticated=False, jkt=KEY)
    public = client(authenticates=False, dpop_bound=True)
    before = [under(ruled(STABLE, client=client(authenticates=False)), issue())]
    scenario(given=before, when=redeem(0, 100, anybody), rules=ruled(STABLE, client=public), then=[
        fact(TokenRedeemed, generation=0, idle_expires_at=None), fact(TokenRotated, generation=1),
    ])  # fmt: skip
    allowed = client(authenticates=False, unbound_reuse=True)
    scenario(given=before, when=redeem(0, 100, anybody), rules=ruled(STABLE, client=allowed), then=[TokenRedeemed])
    bound = [under(ruled(STABLE, client=public), issue(bound_jkt=KEY))]
    scenario(given=bound, when=redeem(0, 100, anybody), rules=ruled(STABLE, client=public), then=[TokenRedeemed])


def test_a_token_of_a_distrusted_key_is_rotated_away_in_reuse_mode_too() -> None:
    """Section 8: who has such a token and shows who they are gets another, of a key that is trusted."""
    rules = ruled(STABLE, active_key_id=2, distrusted={1: "keys/5"})
    tale = scenario(given=ISSUED, when=redeem(0, 100), rules=rules, then=[
        fact(TokenRedeemed, generation=0), fact(TokenRotated, generation=1, key_id=2),
    ])  # fmt: skip
    scenario(given=tale.history, when=redeem(1, 200, key_id=2), rules=rules, then=[TokenRedeemed])


def test_reuse_mode_with_nothing_that_ends() -> None:
    """An idle end that no longer holds is taken away: null is unlimited."""
    endless = policy("stable", refresh_token_ttl_seconds=None, grant_ttl_seconds=None)
    before = [under(ruled(policy(grant_ttl_seconds=None)), issue())]
    tale = scenario(given=before, when=redeem(0, 100), rules=ruled(endless), then=[fact(TokenRedeemed)])
    assert tale.grant.idle_expires_at is tale.served.idle_expires_at is tale.served.absolute_expires_at is None


def test_a_switch_between_rotate_and_reuse_logs_nobody_out() -> None:
    """The same token goes on under the other mode, both ways."""
    history = told([issue(), redeem(0, 10), under(ruled(STABLE), redeem(1, 20)), under(ruled(STABLE), redeem(1, 30))])
    tale = scenario(given=history, when=redeem(1, 40))
    assert 2 == tale.served.generation


def test_off_lets_existing_tokens_drain() -> None:
    """They work on by the client's mode; the idle end stays where it was."""
    scenario(given=ROTATED, when=redeem(1, 5000), rules=ruled(OFF), then=[
        TokenRedeemed, fact(TokenRotated, generation=2, idle_expires_at=text(moment(100 + 30 * DAY))),
    ])  # fmt: skip
    scenario(
        given=ROTATED, when=redeem(1, 5000), rules=ruled(policy("stable", refresh_token_ttl_seconds=0)),
        then=[fact(TokenRedeemed, generation=1, idle_expires_at=text(moment(100 + 30 * DAY)))],
    )  # fmt: skip


# ---------------------------------------------------------------- scope and resource


@pytest.mark.parametrize("by", [STANDARD, STABLE], ids=["rotate", "reuse"])
def test_narrowing_and_restoring_are_events_between_redemption_and_rotation(by: Policy) -> None:
    """Carried := asked, from here on; dropping some and adding others is a restoration (V11–V14)."""
    rules = ruled(by)
    rotation: list[Then] = [TokenRotated] if by is STANDARD else []
    steps: list[tuple[Words | None, Fact | None]] = [
        (("profile", "read"), fact(
            ScopeReduced, scope_before=("read", "openid", "profile"), scope_after=("read", "profile"),
            requested_by="client:www",
        )),
        (None, None),
        (("read", "profile"), None),
        (("openid", "read"), fact(
            ScopeRestored, scope_before=("read", "profile"), scope_after=("read", "openid"), requested_by="client:www"
        )),
        (("read", "openid", "profile"), fact(ScopeRestored, scope_after=("read", "openid", "profile"))),
    ]  # fmt: skip
    history = told(all_under(rules, issue()))
    for number, (scope, change) in enumerate(steps):
        changes: list[Then] = [change] if change else []
        generation = replayed(history).generation
        assert generation is not None
        tale = scenario(
            given=history, when=redeem(generation, 10 * number + 10, scope=scope), rules=rules,
            then=[TokenRedeemed, *changes, *rotation],
        )  # fmt: skip
        assert tale.served.last_v == tale.grant.v
        assert tale.served.access_token.scope == tale.grant.carried
        history = tale.history


def test_rfc6749_narrows_the_access_token_only() -> None:
    """No event, and the next request without scope gets everything again (RFC 6749 6)."""
    rules = ruled(policy(scope_mode="rfc6749"))
    tale = scenario(given=ISSUED, when=redeem(0, 10, scope=("read",)), rules=rules, then=[TokenRedeemed, TokenRotated])
    assert (("read",), ("read", "openid", "profile")) == (tale.served.access_token.scope, tale.grant.carried)


@pytest.mark.parametrize(
    ("when", "refusal"),
    [
        (redeem(0, 10, scope=("read", "admin")), Refusal.INVALID_SCOPE),
        (redeem(0, 10, scope=("write",)), Refusal.INVALID_SCOPE),
        (redeem(0, 10, resource=("https://elsewhere.example",)), Refusal.INVALID_TARGET),
    ],
)
def test_a_request_beyond_the_grant_consumes_nothing(when: RedeemToken, refusal: Refusal) -> None:
    """V15, V79: nothing recorded, the token lives (D5)."""
    scenario(given=ISSUED, when=when, refused=refusal, counts=False)


def test_a_cut_of_the_clients_scope_binds_at_once_and_is_no_reduction() -> None:
    """I-06: what the client may not have now is in no access token, and comes back with the client's right to it."""
    cut = ruled(client=client(scope=("profile", "read")))
    tale = scenario(given=ISSUED, when=redeem(0, 10), rules=cut, then=[TokenRedeemed, TokenRotated])
    assert ("read", "profile") == tale.served.access_token.scope
    back = scenario(given=tale.history, when=redeem(1, 20))
    assert ("read", "openid", "profile") == back.served.access_token.scope
    none = ruled(client=client(scope=("write",)))
    scenario(given=ISSUED, when=redeem(0, 10), rules=none, refused=Refusal.NO_SCOPE_LEFT)


def test_a_grant_without_scope_answers_with_an_empty_one() -> None:
    """The tutorial's first example."""
    tale = scenario(given=[issue(scope=())], when=redeem(0, 10))
    assert () == tale.served.access_token.scope


ONE, TWO = "https://one.example", "https://two.example"


def test_a_resource_narrows_one_access_token() -> None:
    """RFC 8707 2.2: a subset for this access token; left out means the grant's (V79)."""
    rules = ruled(client=client(resource=(ONE, TWO)))
    before = [under(rules, issue(resource=(TWO, ONE)))]
    narrowed = scenario(given=before, when=redeem(0, 10, resource=(TWO + "/",)), rules=rules, then=[
        fact(TokenRedeemed, resource=(TWO,)), TokenRotated,
    ])  # fmt: skip
    whole = scenario(given=narrowed.history, when=redeem(1, 20), rules=rules)
    assert (ONE, TWO) == whole.served.access_token.resource


def test_a_grant_without_resource_has_the_clients_first() -> None:
    """None is the issuer, until the client has an audience."""
    tale = scenario(given=ISSUED, when=redeem(0, 10), rules=ruled(client=client(resource=(ONE, TWO))))
    assert (ONE,) == tale.served.access_token.resource
    assert scenario(given=ISSUED, when=redeem(0, 10)).served.access_token.resource is None


# ---------------------------------------------------------------- lifetimes


class Life(NamedTuple):
    """When generation 1, minted at second 100, expires: idle, and the grant as a whole."""

    name: str
    idle: float | None
    absolute: float | None
    policy: Policy = STANDARD
    today: Policy | None = None
    own: int | None = None
    own_grant: int | None = None


LIVES = [
    Life("standard", 100 + 30 * DAY, 365 * DAY),
    Life("the absolute end is nearer", 200, 200, policy(grant_ttl_seconds=200)),
    Life("the grant's own idle time", 700, 365 * DAY, own=600),
    Life("the grant's own, though the client's is longer now", 700, 365 * DAY,
         today=policy(refresh_token_ttl_seconds=None), own=600),
    Life("the client's has become shorter than the grant's own", 150, 365 * DAY,
         today=policy(refresh_token_ttl_seconds=50), own=600),
    Life("the client's has become shorter", 150, 365 * DAY, today=policy(refresh_token_ttl_seconds=50)),
    Life("the client's has become longer", 100 + 60 * DAY, 365 * DAY,
         today=policy(refresh_token_ttl_seconds=60 * DAY)),
    Life("the absolute end never moves", 100 + 30 * DAY, 365 * DAY, today=policy(grant_ttl_seconds=1)),
    Life("the grant's own absolute end", 600, 600, own_grant=600),
    Life("idle unlimited", 365 * DAY, 365 * DAY, policy(refresh_token_ttl_seconds=None)),
    Life("absolute unlimited", 100 + 30 * DAY, None, policy(grant_ttl_seconds=None)),
    Life("both unlimited", None, None, policy(refresh_token_ttl_seconds=None, grant_ttl_seconds=None)),
]  # fmt: skip


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
def test_the_least_lifetime_wins(life: Life) -> None:
    """Idle slides on redemption, never past the absolute end, which is frozen at issuance (I-17, RF-14)."""
    before = issue(refresh_token_ttl_seconds=life.own, grant_ttl_seconds=life.own_grant)
    tale = scenario(
        given=[under(ruled(life.policy), before)], when=redeem(0, 100), rules=ruled(life.today or life.policy)
    )
    ends = tuple(None if end is None else moment(end) for end in (life.idle, life.absolute))
    assert ends == (tale.grant.idle_expires_at, tale.grant.absolute_expires_at)
    assert ends == (tale.served.idle_expires_at, tale.served.absolute_expires_at)


def test_an_access_token_ends_with_the_grant_at_the_latest() -> None:
    """Whole seconds, rounded down: never beyond the absolute end; the idle end does not shorten it (V66)."""
    by = policy(grant_ttl_seconds=150, refresh_token_ttl_seconds=5)
    tale = scenario(given=[under(ruled(by), issue(0.7))], when=redeem(0, 4.5), rules=ruled(by))
    assert (moment(4), moment(150)) == (tale.served.access_token.issued_at, tale.served.access_token.expires_at)


def test_where_expires_in_would_be_0_the_grant_is_over() -> None:
    """With less than a second left nothing can be given any more; that is said before anything else is."""
    by = policy(grant_ttl_seconds=150)
    before = [under(ruled(by), issue(0.7))]
    served = scenario(given=before, when=redeem(0, 149.7), rules=ruled(by)).served
    assert (moment(149), moment(150)) == (served.access_token.issued_at, served.access_token.expires_at)
    for when in (redeem(0, 149.700001), redeem(0, 149.700001, scope=("admin",), retry_after_seconds=3)):
        scenario(given=before, when=when, rules=ruled(by), outcome=Refusal.EXPIRED_ABSOLUTE, then=[
            fact(GrantExpired, kind="absolute", expired_at=text(moment(150.7)), at=text(moment(149.700001))),
        ])  # fmt: skip
    behind: list[Given] = [*before, revoke_access_token(150, 9)]
    scenario(given=behind, when=redeem(0, 100), rules=ruled(by), outcome=Refusal.EXPIRED_ABSOLUTE)


def test_an_access_token_lives_by_the_wall_clock() -> None:
    """Behind a clock that fell back the events keep the later time, the access token the wall clock's (I-16)."""
    tale = scenario(given=ROTATED, when=redeem(1, 40.5), then=[
        fact(TokenRedeemed, at=text(moment(100)), access_token_issued_at=text(moment(40))),
        fact(TokenRotated, at=text(moment(100)), concurrent_until=text(moment(110))),
    ])  # fmt: skip
    assert moment(340) == tale.served.access_token.expires_at
