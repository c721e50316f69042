"""The grant: issuance, the acts of its client and of operators, what is only noted (RFC 6749 1.5, 10.4, RFC 7009)."""

from typing import NamedTuple

import pytest

from ledger.commands import GrantCommand, IssueGrant, Rules
from ledger.events import (
    AccessTokenRevoked,
    ForeignClientPresented,
    GrantIssued,
    GrantReinstated,
    GrantRevoked,
    GrantSuspended,
    PresentationsCounted,
    RefreshTokenWithheld,
)
from ledger.policy import PRESETS, SECONDS_MAX, Policy
from ledger.refusals import Refusal
from ledger.times import text
from tests.scenario import Given, Told, all_under, fact, scenario, under
from tests.scenario_commands import (
    DAY,
    GRANT_ID,
    KEY,
    RULES,
    SPA,
    STABLE,
    THERE,
    client,
    count,
    epoch_end,
    foreign,
    issue,
    moment,
    policy,
    redeem,
    reinstate,
    revoke,
    revoke_access_token,
    revoke_by_client,
    ruled,
    suspend,
)

ISSUED: tuple[Given, ...] = (issue(),)
OFF = policy(refresh_token_ttl_seconds=0)
ENDED_BY_EPOCH = ruled(epoch_end=epoch_end(50))

# ---------------------------------------------------------------- issuance


def test_an_issuance_is_one_event_with_all_that_ruled() -> None:
    """Generation 0 and the first access token; the policy stands in it, so the past needs no configuration."""
    rules = ruled(client_epoch=4, subject_epoch=5, active_key_id=2)
    tale = scenario(when=issue(0.5), rules=rules, then=[
        fact(
            GrantIssued, v=1, at=text(moment(0.5)), client_id="www", subject_id="5ub", client_epoch=4, subject_epoch=5,
            nonce_sha256="0f" * 32, key_id=2, generation=0, scope=("read", "openid", "profile"), resource=None,
            format="opaque", signing_key_id=2, client_v=3, access_token_issued_at=text(moment(0)),
            access_token_expires_at=text(moment(300)), idle_seconds=None, issued_by="operator:login-app",
            idle_expires_at=text(moment(0.5 + 30 * DAY)), absolute_expires_at=text(moment(0.5 + 365 * DAY)),
            policy_rotation="rotate", policy_concurrent_seconds=10, policy_retry_window_seconds=60,
            policy_retry_budget=3, policy_unconfirmed_seconds=86_400, policy_on_reuse="revoke",
            policy_scope_mode="sticky", policy_access_token_ttl_seconds=300,
            policy_refresh_token_ttl_seconds=30 * DAY, policy_grant_ttl_seconds=365 * DAY,
            policy_access_token_format="opaque",
        ),
    ])  # fmt: skip
    served = tale.served
    assert (0, 2, 1, 1) == (served.generation, served.key_id, served.last_v, served.access_token.v)
    assert (moment(0.5 + 30 * DAY), moment(0.5 + 365 * DAY)) == (served.idle_expires_at, served.absolute_expires_at)
    grant = tale.grant
    assert (GRANT_ID, moment(0.5), moment(0.5), None) == (
        grant.grant_id, grant.issued_at, grant.token_issued_at, grant.last_redeemed_at,
    )  # fmt: skip
    assert (served.access_token.scope, served.access_token.scope) == (grant.granted, grant.carried)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_spread_over_the_event(preset: str) -> None:
    """Fields, never the preset's name: a later release may change what it stands for."""
    by = PRESETS[preset]
    fields = {f"policy_{name}": getattr(by, name) for name in by.__struct_fields__}
    scenario(when=issue(), rules=ruled(by), then=[fact(GrantIssued, **fields)])


class Refuse(NamedTuple):
    name: str
    when: IssueGrant
    refusal: Refusal
    rules: Rules = RULES


REFUSED = [
    Refuse("beyond the client's scope", issue(scope=("read", "admin")), Refusal.INVALID_SCOPE),
    Refuse("beyond the client's resources", issue(resource=("https://x.example",)), Refusal.INVALID_TARGET),
    Refuse("an unknown client", issue(), Refusal.INVALID_REQUEST, ruled(client=None)),
    Refuse("another client's rules", issue(client_id="oth"), Refusal.INVALID_REQUEST),
    Refuse("a longer idle time", issue(refresh_token_ttl_seconds=30 * DAY + 1), Refusal.INVALID_REQUEST),
    Refuse("a longer grant", issue(grant_ttl_seconds=365 * DAY + 1), Refusal.INVALID_REQUEST),
    Refuse("no idle time", issue(refresh_token_ttl_seconds=0), Refusal.INVALID_REQUEST),
    Refuse("no time at all", issue(grant_ttl_seconds=-1), Refusal.INVALID_REQUEST),
    Refuse("an idle time where refresh tokens are off", issue(refresh_token_ttl_seconds=1), Refusal.INVALID_REQUEST,
           ruled(OFF)),
    Refuse("beyond a hundred years", issue(grant_ttl_seconds=SECONDS_MAX + 1), Refusal.INVALID_REQUEST,
           ruled(policy(grant_ttl_seconds=None))),
    Refuse("no key of a public client that must show one", issue(), Refusal.INVALID_REQUEST,
           ruled(client=client(authenticates=False, dpop_bound=True))),
    Refuse("a key of another kind", issue(bound_x5t_s256=KEY), Refusal.INVALID_REQUEST,
           ruled(client=client(authenticates=False, dpop_bound=True))),
    Refuse("no certificate of a public client that must show one", issue(bound_jkt=KEY), Refusal.INVALID_REQUEST,
           ruled(client=client(authenticates=False, certificate_bound=True))),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_what_may_not_be_issued(row: Refuse) -> None:
    """Lifetimes only shorten, scope and resource stay within the client's."""
    scenario(when=row.when, rules=row.rules, refused=row.refusal, counts=False)


def test_a_sender_bound_client_is_issued_a_grant_with_its_key() -> None:
    """A public one's is bound to it; a confidential one may change keys, so it needs none to begin with."""
    public = client(authenticates=False, dpop_bound=True)
    bound = scenario(when=issue(bound_jkt=KEY), rules=ruled(client=public))
    free = scenario(when=issue(), rules=ruled(client=client(dpop_bound=True)))
    assert (KEY, None) == (bound.grant.bound_jkt, free.grant.bound_jkt)


def test_a_grant_is_issued_once() -> None:
    """An id that is taken is a conflict."""
    scenario(given=ISSUED, when=issue(10), refused=Refusal.CONFLICT)


def test_lifetimes_that_shorten() -> None:
    """The idle one holds for the grant's whole life and is remembered; the policy's fields stand as they are."""
    scenario(when=issue(refresh_token_ttl_seconds=600, grant_ttl_seconds=3600), then=[
        fact(
            GrantIssued, idle_seconds=600, idle_expires_at=text(moment(600)), absolute_expires_at=text(moment(3600)),
            policy_refresh_token_ttl_seconds=30 * DAY, policy_grant_ttl_seconds=365 * DAY,
        ),
    ])  # fmt: skip
    scenario(when=issue(refresh_token_ttl_seconds=600, grant_ttl_seconds=60), then=[
        fact(GrantIssued, idle_expires_at=text(moment(60)), access_token_expires_at=text(moment(60))),
    ])  # fmt: skip


def test_unlimited_is_null() -> None:
    """The idle end is null only where both are unlimited."""
    endless = policy(refresh_token_ttl_seconds=None, grant_ttl_seconds=None)
    tale = scenario(when=issue(), rules=ruled(endless), then=[
        fact(GrantIssued, idle_expires_at=None, absolute_expires_at=None, policy_grant_ttl_seconds=None),
    ])  # fmt: skip
    assert "active" == tale.grant.judge(moment(10_000 * DAY), None).status
    idle_only = policy(refresh_token_ttl_seconds=None)
    scenario(when=issue(), rules=ruled(idle_only), then=[fact(GrantIssued, idle_expires_at=text(moment(365 * DAY)))])


def test_off_withholds_the_refresh_token() -> None:
    """No current generation, no idle end of its own; the access token lives (RFC 6749 1.5)."""
    tale = scenario(when=issue(), rules=ruled(OFF), then=[
        fact(GrantIssued, generation=0, idle_expires_at=text(moment(365 * DAY)), policy_refresh_token_ttl_seconds=0),
        fact(RefreshTokenWithheld, v=2),
    ])  # fmt: skip
    assert (None, 2, None) == (tale.served.generation, tale.served.last_v, tale.grant.generation)
    assert tale.grant.access_token_active(tale.served.access_token, moment(299), RULES)


def test_a_grant_is_not_older_than_the_epochs_that_spare_it() -> None:
    """`at` is the latest `before`; the access token keeps to the wall clock."""
    scenario(when=issue(10, issued_at_least=moment(50)), then=[
        fact(GrantIssued, at=text(moment(50)), access_token_issued_at=text(moment(10)),
             absolute_expires_at=text(moment(50 + 365 * DAY))),
    ])  # fmt: skip


def test_only_a_public_clients_grant_is_bound() -> None:
    """The first access token is bound in any case; a confidential client may change keys later (RFC 9449 5)."""
    for rules, bound in ((RULES, None), (ruled(client=SPA), KEY)):
        scenario(when=issue(bound_jkt=KEY), rules=rules, then=[fact(GrantIssued, cnf_jkt=KEY, bound_jkt=bound)])


def test_words_given_twice_are_granted_once_in_their_order() -> None:
    """A scope is a set, shown in the order of the issuance."""
    tale = scenario(when=issue(scope=("write", "read", "write")))
    assert ("write", "read") == tale.served.access_token.scope == tale.grant.granted


def test_resources_of_a_new_grant() -> None:
    """What was asked of the client's, else its first (RFC 8707 2)."""
    both = ("https://one.example", "https://two.example")
    rules = ruled(client=client(resource=both))
    scenario(when=issue(), rules=rules, then=[fact(GrantIssued, resource=both[:1])])
    scenario(when=issue(resource=both[1:]), rules=rules, then=[fact(GrantIssued, resource=both[1:])])


# ---------------------------------------------------------------- the acts of the client


@pytest.mark.parametrize(
    "before",
    [ISSUED, (issue(), redeem(0, 10)), (issue(), suspend(10)), (issue(), redeem(9, 10, fresh=True))],
    ids=["current", "retired", "suspended", "suspended for rollback"],
)
def test_the_client_gives_its_grant_back(before: tuple[Given, ...]) -> None:
    """By whatever refresh token of it, a rotated one too (RFC 7009 2.1, V83, V89)."""
    scenario(given=before, when=revoke_by_client(20), then=[
        fact(GrantRevoked, reason_class="completion", requested_by="client:www", reason=None),
    ])  # fmt: skip


ENDED: list[tuple[Given, ...]] = [
    (issue(), revoke(10)),
    (issue(), revoke_by_client(10)),
    (issue(), redeem(0, 31 * DAY)),
]


@pytest.mark.parametrize("before", ENDED, ids=["revoked", "given back", "expired"])
@pytest.mark.parametrize("when", [revoke_by_client(40 * DAY), revoke(40 * DAY)], ids=["client", "operator"])
def test_revoking_what_ended_writes_nothing(before: tuple[Given, ...], when: GrantCommand) -> None:
    """Ended is final, and asking again is no error (I-07, V85)."""
    tale = scenario(given=before, when=when, then=[])
    assert tale.outcome is None


def test_revoking_what_an_epoch_ended_writes_nothing() -> None:
    """That end is on record, elsewhere, and no clock takes it back; also where the clock says an earlier one."""
    for when in (revoke_by_client(60), revoke(60), revoke_by_client(40 * DAY), revoke(40 * DAY)):
        scenario(given=ISSUED, when=when, rules=ENDED_BY_EPOCH, then=[])
    short = all_under(ruled(policy(refresh_token_ttl_seconds=10)), issue())
    scenario(given=short, when=revoke_by_client(60), rules=ENDED_BY_EPOCH, then=[])


@pytest.mark.parametrize("when", [revoke_by_client(30 * DAY), revoke(30 * DAY)], ids=["client", "operator"])
def test_revoking_what_only_the_clock_says_has_expired_puts_the_end_on_record(when: GrantCommand) -> None:
    """I-06, I-16: the clock may be ahead. Whoever is told that the grant has ended can rely on it when it is right."""
    tale = scenario(given=ISSUED, when=when, then=[GrantRevoked])
    scenario(given=tale.history, when=when, then=[])
    assert "revoked" == tale.grant.judge(moment(60), None).status
    scenario(given=tale.history, when=redeem(0, 60), refused=tale.grant.judge(moment(60), None).refusal)


def test_another_client_gives_nothing_back() -> None:
    """V86: refused, and nothing changes."""
    scenario(given=ISSUED, when=revoke_by_client(10, "oth"), refused=Refusal.UNKNOWN_TOKEN)
    scenario(given=ISSUED, when=revoke_access_token(10, 1, "oth"), refused=Refusal.UNKNOWN_TOKEN)
    scenario(when=revoke_by_client(10), refused=Refusal.UNKNOWN_TOKEN)


def test_one_access_token_is_given_back_once() -> None:
    """The grant lives, and the other access tokens (RFC 7009 2.1)."""
    tale = scenario(given=[issue(), redeem(0, 5)], when=revoke_access_token(10, 2), then=[
        fact(AccessTokenRevoked, issued_v=2, requested_by="client:www"),
    ])  # fmt: skip
    assert (True, False) == (tale.grant.access_token_revoked(2), tale.grant.access_token_revoked(1))
    scenario(given=tale.history, when=revoke_access_token(11, 2), then=[])
    assert 2 == scenario(given=tale.history, when=redeem(1, 20)).served.generation


def test_an_access_token_may_be_given_back_while_its_grant_is_stopped_or_idle() -> None:
    """It could be used after a reinstatement, and the idle end of the refresh token does not end it."""
    short = all_under(ruled(policy(refresh_token_ttl_seconds=10)), issue())
    stopped: list[Given] = [issue(), suspend(10)]
    for before in (stopped, short):
        scenario(given=before, when=revoke_access_token(20, 1), then=[AccessTokenRevoked])
    scenario(given=[issue(), revoke(10)], when=revoke_access_token(20, 1), then=[])
    scenario(given=ISSUED, when=revoke_access_token(60, 1), rules=ENDED_BY_EPOCH, then=[])
    scenario(given=ISSUED, when=revoke_access_token(366 * DAY, 1), then=[AccessTokenRevoked])
    over = all_under(ruled(policy(grant_ttl_seconds=100)), issue())
    scenario(given=over, when=revoke_access_token(100, 1), then=[])


# ---------------------------------------------------------------- the acts of operators

DISABLED = ruled(client=None)


@pytest.mark.parametrize("rules", [RULES, DISABLED], ids=["live", "client disabled"])
def test_operators_revoke_suspend_and_reinstate(rules: Rules) -> None:
    """Each act is one event with its reason and who asked; acting twice alike writes nothing (I-07)."""
    stopped = scenario(given=ISSUED, when=suspend(10), rules=rules, then=[
        fact(GrantSuspended, reason_class="termination", reason="5a" * 32, requested_by="operator:ops"),
    ])  # fmt: skip
    scenario(given=stopped.history, when=suspend(20), rules=rules, then=[])
    back = scenario(given=stopped.history, when=reinstate(30), rules=rules, then=[
        fact(GrantReinstated, reason="5a" * 32, requested_by="operator:ops", trust=None),
    ])  # fmt: skip
    scenario(given=back.history, when=reinstate(40), rules=rules, then=[])
    scenario(given=stopped.history, when=revoke(50), rules=rules, then=[
        fact(GrantRevoked, reason_class="termination", reason="5a" * 32, requested_by="operator:ops"),
    ])  # fmt: skip


@pytest.mark.parametrize("when", [suspend(40 * DAY), reinstate(40 * DAY), reinstate(40 * DAY, "current")])
@pytest.mark.parametrize("before", [*ENDED, ISSUED], ids=["revoked", "given back", "expired", "past its end"])
def test_what_ended_is_neither_suspended_nor_reinstated(before: tuple[Given, ...], when: GrantCommand) -> None:
    """A conflict, also where no event says yet that it ended (I-07)."""
    scenario(given=before, when=when, refused=Refusal.CONFLICT)


def test_what_an_epoch_ended_is_neither_suspended_nor_reinstated() -> None:
    """Nor where it was suspended before."""
    scenario(given=ISSUED, when=suspend(60), rules=ENDED_BY_EPOCH, refused=Refusal.CONFLICT)
    scenario(given=[issue(), suspend(10)], when=reinstate(60), rules=ENDED_BY_EPOCH, refused=Refusal.CONFLICT)


SUSPENDING = ruled(policy("strict", on_reuse="suspend"))


@pytest.mark.parametrize(
    "stop",
    [
        all_under(SUSPENDING, issue(), redeem(0, 10), redeem(0, 20, THERE)),
        [issue(), redeem(0, 10), redeem(9, 20, fresh=True)],
    ],
    ids=["reuse", "rollback"],
)
def test_after_reuse_or_rollback_someone_must_vouch(stop: list[Given]) -> None:
    """A conflict without trust in the current token's holder; any other word is no request at all."""
    scenario(given=stop, when=reinstate(30), refused=Refusal.CONFLICT)
    scenario(given=stop, when=reinstate(30, "all"), refused=Refusal.INVALID_REQUEST)
    scenario(given=stop, when=reinstate(30, "current"), then=[fact(GrantReinstated, trust="current")])
    scenario(given=stop, when=suspend(30), then=[])
    scenario(given=ISSUED, when=reinstate(30, "all"), refused=Refusal.INVALID_REQUEST)


@pytest.mark.parametrize("when", [revoke(10), suspend(10), reinstate(10), count(1, 1, 10)])
def test_nothing_can_be_done_to_what_is_not_there(when: GrantCommand) -> None:
    """A grant to which nothing has happened does not exist."""
    scenario(when=when, refused=Refusal.NOT_FOUND)


# ---------------------------------------------------------------- what is only noted


def test_a_foreign_client_is_noted_once_and_nothing_follows() -> None:
    """D6, RFC 6749 10.4: whoever it was, whatever the grant's state."""
    tale = scenario(given=ISSUED, when=foreign(0, 10), then=[
        fact(ForeignClientPresented, presenter_client_id="oth", presented_generation=0, context=THERE),
    ])  # fmt: skip
    assert ("active", 0) == (tale.grant.judge(moment(10), None).status, tale.grant.generation)
    scenario(given=tale.history, when=foreign(0, 20, "third"), then=[])
    scenario(given=[issue(), revoke(5)], when=foreign(0, 10), then=[ForeignClientPresented])
    scenario(given=ISSUED, when=foreign(0, 10, "www"), then=[])
    scenario(when=foreign(0, 10), then=[])


def counted(tale: Told) -> list[tuple[int, str, str]]:
    return [(e.count, e.first_at, e.last_at) for e in tale.history if isinstance(e, PresentationsCounted)]


def test_a_count_is_told_when_it_passes_a_power_of_two() -> None:
    """Flushed as one increment; what has not passed the next power stays in memory."""
    steps = [(1, True), (1, True), (1, False), (2, True), (3, False), (4, True)]  # 1, 2, 2+1, 2+2, 4+3, 4+4
    history: list[Given] = [issue()]
    for number, (more, due) in enumerate(steps):
        tale = scenario(given=history, when=count(more, 10, 20 + number))
        assert due == bool(tale.events), (number, more)
        history = list(tale.history)
    assert [1, 2, 4, 8] == [total for total, _, _ in counted(tale)]
    assert {text(moment(10))} == {first for _, first, _ in counted(tale)}
    assert 8 == tale.grant.presentations_counted(moment(30), None)
    big = scenario(given=history, when=count(1000, 30, 40), then=[
        fact(PresentationsCounted, count=1008, first_at=text(moment(10)), last_at=text(moment(40)), last_generation=0,
             last_context=THERE),
    ])  # fmt: skip
    assert 1008 == big.grant.presentations_counted(moment(40), None)


def test_a_clean_stop_tells_what_it_has() -> None:
    """No power of two needed, but something must have been counted."""
    tale = scenario(given=[issue(), count(4, 10, 20)], when=count(1, 21, 22, at_stop=True), then=[PresentationsCounted])
    assert 5 == tale.grant.presentations_counted(moment(30), None)
    scenario(given=ISSUED, when=count(0, 21, 22, at_stop=True), then=[])


@pytest.mark.parametrize(
    ("end", "rules"),
    [
        ((revoke(100),), RULES),
        ((redeem(0, 30 * DAY),), RULES),
        ((), RULES),
        ((), ruled(epoch_end=epoch_end(100))),
    ],
    ids=["revoked", "expired", "expired, and no event says so", "epoch"],
)
def test_counts_begin_anew_at_the_end(end: tuple[Given, ...], rules: Rules) -> None:
    """Powers count from 1 again, and the two counts are told apart by their first moment."""
    late = 31 * DAY
    before: list[Given] = [issue(), count(5, 10, 20), *end]
    one = scenario(given=before, when=count(1, late, late), rules=rules, then=[
        fact(PresentationsCounted, count=1, first_at=text(moment(late))),
    ])  # fmt: skip
    two = scenario(given=one.history, when=count(1, late + 1, late + 2), rules=rules, then=[
        fact(PresentationsCounted, count=2, first_at=text(moment(late))),
    ])  # fmt: skip
    assert 2 == two.grant.presentations_counted(moment(late + 3), rules.epoch_end)
    scenario(given=two.history, when=count(1, late + 3, late + 4), rules=rules, then=[])


def test_a_count_after_an_end_goes_on_under_a_clock_that_fell_back() -> None:
    """Presented after the revocation, by a wall clock that says before it."""
    tale = scenario(given=[issue(), count(9, 10, 20), revoke(1000), count(1, 500, 500)], when=count(1, 501, 501), then=[
        fact(PresentationsCounted, count=2, first_at=text(moment(500)), at=text(moment(1000))),
    ])  # fmt: skip
    assert 2 == tale.grant.presentations_counted(moment(502), None)


def test_a_count_that_began_at_an_expiry_goes_on_when_an_event_says_so() -> None:
    """The end is the frozen moment, not the event that tells it."""
    before: list[Given] = [issue(), count(5, 10, 20), count(1, 31 * DAY, 31 * DAY), redeem(0, 32 * DAY)]
    scenario(given=before, when=count(1, 33 * DAY, 33 * DAY), then=[
        fact(PresentationsCounted, count=2, first_at=text(moment(31 * DAY))),
    ])  # fmt: skip


def test_what_was_counted_across_an_epoch_counts_from_it() -> None:
    """Held in memory while the epoch was raised: the count begins at the epoch, and goes on from there."""
    rules = ruled(epoch_end=epoch_end(100))
    counted_before: list[Given] = [count(9, 10, 20)]
    for before in ([], counted_before):
        tale = scenario(given=[*ISSUED, *before], when=count(3, 90, 110), rules=rules, then=[
            fact(PresentationsCounted, count=3, first_at=text(moment(100)), last_at=text(moment(110))),
        ])  # fmt: skip
        scenario(given=tale.history, when=count(1, 120, 130), rules=rules, then=[fact(PresentationsCounted, count=4)])
    scenario(given=ISSUED, when=count(1, 90, 95), rules=rules, then=[
        fact(PresentationsCounted, first_at=text(moment(100)), last_at=text(moment(100))),
    ])  # fmt: skip


@pytest.mark.parametrize("rules", [RULES, ruled(epoch_end=epoch_end(1000))], ids=["own end", "epoch"])
def test_at_most_32_counts_before_the_end_and_32_after(rules: Rules) -> None:
    """Whatever is presented and however often the process is stopped (I-21)."""
    stops: list[Given] = [count(1, 10 + n, 10 + n, at_stop=True) for n in range(40)]
    before: list[Given] = [issue(), *stops]
    if rules is RULES:
        before.append(revoke(1000))
    after = all_under(rules, *(count(1, 2000 + n, 2000 + n, at_stop=True) for n in range(39)))
    tale = scenario(given=[*before, *after], when=count(1 << 40, 3000, 3000, at_stop=True), rules=rules, then=[])
    assert [*range(1, 33), *range(1, 33)] == [total for total, _, _ in counted(tale)]


def test_every_power_of_two_fits() -> None:
    """2^31 presentations in one life, doubling each time."""
    doubling: list[Given] = [count(1 << max(0, n - 1), 10, 10 + n) for n in range(40)]
    tale = scenario(given=[issue(), *doubling], when=revoke(1000))
    assert [1 << n for n in range(32)] == [total for total, _, _ in counted(tale)]


def test_policies_do_not_matter_to_what_was_issued_under_another() -> None:
    """An end, a suspension, a note: no act of these asks the client's policy."""
    for by in (STABLE, OFF, *PRESETS.values()):
        assert isinstance(by, Policy)
        scenario(given=ISSUED, when=under(ruled(by), suspend(10)), then=[GrantSuspended])
