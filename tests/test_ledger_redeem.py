"""A refresh token is presented: the order of checks, and whom it is refused (RFC 6749 6, I-06, I-16)."""

from typing import NamedTuple

import pytest

from ledger.commands import Presenter, RedeemToken, Rules
from ledger.events import GrantExpired, GrantSuspended, RetryServed, RollbackDetected
from ledger.grant import StateMayBeStale
from ledger.refusals import Refusal
from ledger.times import text
from tests.scenario import Given, all_under, fact, replayed, scenario, told, under
from tests.scenario_commands import (
    DAY,
    KEY,
    OTHER_KEY,
    RULES,
    SPA,
    STRICT,
    THERE,
    client,
    epoch_end,
    issue,
    moment,
    policy,
    presenter,
    public,
    redeem,
    reinstate,
    revoke,
    revoke_access_token,
    revoke_by_client,
    ruled,
    suspend,
)

ISSUED: tuple[Given, ...] = (issue(),)
ROTATED: tuple[Given, ...] = (issue(), redeem(0, 100))


# ---------------------------------------------------------------- expiry


@pytest.mark.parametrize("generation", [0, 1], ids=["retired", "current"])
def test_the_owners_first_presentation_after_the_end_puts_it_on_record(generation: int) -> None:
    """Final, whatever generation is shown; the moment is the frozen one (I-16)."""
    end = 100 + 30 * DAY
    tale = scenario(
        given=ROTATED, when=redeem(generation, end, THERE), outcome=Refusal.EXPIRED_IDLE, event_id="4",
        then=[fact(
            GrantExpired, kind="idle", expired_at=text(moment(end)), presented_generation=generation, context=THERE,
        )],
    )  # fmt: skip
    scenario(given=tale.history, when=redeem(1, 50), refused=Refusal.EXPIRED_IDLE, event_id="4", counts=True)
    assert "current" == _verdict(redeem(1, end - 0.000001))


def _verdict(when: RedeemToken) -> str:
    return scenario(given=ROTATED, when=when).served.retry or "current"


def test_the_absolute_end() -> None:
    """At the same moment as the idle one it is the absolute one that ended the grant."""
    by = policy(grant_ttl_seconds=1000)
    scenario(
        given=[under(ruled(by), issue())], when=redeem(0, 1000), rules=ruled(by), outcome=Refusal.EXPIRED_ABSOLUTE,
        then=[fact(GrantExpired, kind="absolute")],
    )  # fmt: skip


def test_a_clock_that_jumps_back_revives_nothing() -> None:
    """The grant's last time counts where the wall clock is behind it (I-16)."""
    by = policy(refresh_token_ttl_seconds=50)
    before: list[Given] = [
        under(ruled(by), issue()),
        revoke_access_token(60, 9),
    ]  # any event: the grant has seen second 60
    scenario(given=before, when=redeem(0, 10), rules=ruled(by), outcome=Refusal.EXPIRED_IDLE, then=[GrantExpired])


# ---------------------------------------------------------------- the grant's status


class Stopped(NamedTuple):
    """What happened to a grant after a rotation, and what its owner then reads."""

    name: str
    then: tuple[Given, ...]
    refusal: Refusal
    event_id: str
    rules: Rules = RULES


SUSPENDING = ruled(policy("strict", on_reuse="suspend"))
STOPPED = [
    Stopped("the client gave it back", (revoke_by_client(110),), Refusal.REVOKED_BY_CLIENT, "4"),
    Stopped("an operator revoked it", (revoke(110),), Refusal.REVOKED_BY_OPERATOR, "4"),
    Stopped("its issuer withdrew it", (revoke(110, "operator:login-app", "withdrawal"),),
            Refusal.REVOKED_BY_OPERATOR, "4"),
    Stopped("an operator suspended it", (suspend(110),), Refusal.SUSPENDED, "4"),
    Stopped("reuse ended it", (redeem(0, 101 + DAY, THERE),), Refusal.REUSE_DETECTED, "5"),
    Stopped("reuse suspended it", (under(SUSPENDING, redeem(0, 101 + DAY, THERE)),), Refusal.REUSE_DETECTED, "5"),
    Stopped("a rollback suspended it", (redeem(9, 110, fresh=True),), Refusal.SUSPENDED, "5"),
    Stopped("it expired", (redeem(1, 110 + 30 * DAY),), Refusal.EXPIRED_IDLE, "4"),
    Stopped("its subject was ended", (), Refusal.REVOKED_BY_SUBJECT, "subject:5ub/1", ruled(epoch_end=epoch_end(110))),
    Stopped("its client was ended", (), Refusal.REVOKED_BY_OPERATOR, "subject:5ub/1",
            ruled(epoch_end=epoch_end(110, Refusal.REVOKED_BY_OPERATOR, "termination"))),
    Stopped("reuse in another grant ended its subject", (), Refusal.REUSE_DETECTED, "subject:5ub/1",
            ruled(epoch_end=epoch_end(110, Refusal.REUSE_DETECTED, "reuse"))),
]  # fmt: skip


@pytest.mark.parametrize("generation", [0, 1, 9], ids=["retired", "current", "ahead"])
@pytest.mark.parametrize("row", STOPPED, ids=lambda row: row.name)
def test_after_the_end_nothing_works_and_nothing_escalates(row: Stopped, generation: int) -> None:
    """Refused with the event that made it so, counted, nothing recorded: no reuse after a revocation (V83)."""
    when = redeem(generation, 120, scope=("admin",), fresh=True)
    scenario(
        given=[*ROTATED, *row.then], when=when, rules=row.rules, refused=row.refusal, event_id=row.event_id, counts=True
    )


def test_an_epoch_before_the_expiry_is_the_end_and_one_after_it_is_not() -> None:
    """The earliest end counts."""
    end = 100 + 30 * DAY
    before = ruled(epoch_end=epoch_end(end - 1))
    scenario(given=ROTATED, when=redeem(1, end + 5), rules=before, refused=Refusal.REVOKED_BY_SUBJECT, counts=True)
    for at in (end, end + 1):
        after = ruled(epoch_end=epoch_end(at))
        scenario(given=ROTATED, when=redeem(1, end + 5), rules=after, outcome=Refusal.EXPIRED_IDLE)


def test_an_epoch_holds_whatever_the_clock_says() -> None:
    """Raised under a clock that ran ahead, it ends the grant all the same (I-06, I-16)."""
    ahead = ruled(epoch_end=epoch_end(5000))
    scenario(given=ROTATED, when=redeem(1, 110), rules=ahead, refused=Refusal.REVOKED_BY_SUBJECT)


def test_a_suspension_extends_no_expiry() -> None:
    """Suspended and past its end is expired, and that is recorded."""
    before = [*ROTATED, suspend(110)]
    tale = scenario(given=before, when=redeem(1, 100 + 30 * DAY), outcome=Refusal.EXPIRED_IDLE, then=[GrantExpired])
    assert "expired" == tale.grant.judge(tale.grant.at, None).status


def test_a_reinstated_grant_goes_on_with_its_windows() -> None:
    """An operator's suspension closes nothing: a lost answer may still be asked for again."""
    tale = scenario(given=[*ROTATED, suspend(110), reinstate(120)], when=redeem(0, 130), then=[RetryServed])
    assert "lost_response" == tale.served.retry


@pytest.mark.parametrize("stop", [under(SUSPENDING, redeem(0, 161, public())), redeem(9, 110, fresh=True)])
def test_after_reuse_or_rollback_a_reinstatement_closes_the_windows(stop: Given) -> None:
    """Only the current token's holder is trusted: the one before it is late from then on."""
    unproven = all_under(ruled(client=SPA), issue(), redeem(0, 100, public()))
    before: list[Given] = [*unproven, stop, reinstate(165, "current")]
    scenario(given=before, when=redeem(0, 170), outcome=Refusal.REUSE_DETECTED)
    assert 2 == scenario(given=before, when=redeem(1, 170)).served.generation


# ---------------------------------------------------------------- whose token


@pytest.mark.parametrize("stopped", [False, True])
def test_another_client_sees_an_unknown_token(stopped: bool) -> None:
    """Whatever the grant's state, whatever is asked: nothing is recorded here and nothing is counted (D6, I-18)."""
    before = [*ROTATED, revoke(110)] if stopped else ROTATED
    for generation in (0, 1, 9):
        when = redeem(generation, 120, presenter(THERE, client_id="oth"), scope=("admin",))
        scenario(given=before, when=when, refused=Refusal.UNKNOWN_TOKEN, counts=False)


def test_a_token_of_nothing_is_unknown() -> None:
    """A grant that never was, one whose refresh token is withheld, and a client that is disabled."""
    scenario(when=redeem(0, 10), refused=Refusal.UNKNOWN_TOKEN)
    scenario(
        given=[under(ruled(policy(refresh_token_ttl_seconds=0)), issue())],
        when=redeem(0, 10),
        refused=Refusal.UNKNOWN_TOKEN,
    )
    scenario(given=ROTATED, when=redeem(1, 110), rules=ruled(client=None), refused=Refusal.UNKNOWN_TOKEN)


@pytest.mark.parametrize(
    ("by", "works"),
    [
        (public(jkt=KEY), True),
        (public(jkt=OTHER_KEY), False),
        (public(), False),
        (presenter(jkt=OTHER_KEY), True),  # the client has become confidential: it may change keys
    ],
)
def test_a_public_clients_bound_grant_wants_its_key(by: Presenter, works: bool) -> None:
    """RFC 9449 5: bound at issuance, checked before the status, so a wrong key learns nothing (V75)."""
    rules = ruled(client=SPA)
    before = all_under(rules, issue(bound_jkt=KEY))
    if works:
        assert scenario(given=before, when=redeem(0, 10, by), rules=rules).served.access_token.cnf_jkt == by.proof_jkt
    else:
        scenario(given=before, when=redeem(0, 10, by), rules=rules, refused=Refusal.UNKNOWN_TOKEN, counts=False)
        over = [*before, revoke(5)]
        scenario(given=over, when=redeem(0, 10, by), rules=rules, refused=Refusal.UNKNOWN_TOKEN, counts=False)


def test_a_certificate_binds_as_a_key_does() -> None:
    """RFC 8705 7.1."""
    rules = ruled(client=SPA)
    before = all_under(rules, issue(bound_x5t_s256="x5t"))
    right = presenter(authenticated=False, x5t_s256="x5t")
    assert "x5t" == scenario(given=before, when=redeem(0, 10, right), rules=rules).served.access_token.cnf_x5t_s256
    wrong = presenter(authenticated=False, x5t_s256="other")
    scenario(given=before, when=redeem(0, 10, wrong), rules=rules, refused=Refusal.UNKNOWN_TOKEN)


def test_a_proof_is_welcome_from_any_client_and_binds_that_access_token() -> None:
    """A confidential client may change keys from one refresh to the next (V76)."""
    first = scenario(given=[issue(bound_jkt=KEY)], when=redeem(0, 10, presenter(jkt=KEY)))
    second = scenario(given=first.history, when=redeem(1, 20, presenter(jkt=OTHER_KEY)))
    third = scenario(given=second.history, when=redeem(2, 30))
    assert [KEY, OTHER_KEY, None] == [tale.served.access_token.cnf_jkt for tale in (first, second, third)]


DPOP, MTLS = {"dpop_bound": True}, {"certificate_bound": True}


@pytest.mark.parametrize(
    ("registered", "shown", "works"),
    [
        (DPOP, presenter(), False),
        (DPOP, presenter(x5t_s256=KEY), False),  # it authenticates by its certificate, say, and still owes the proof
        (DPOP, presenter(jkt=KEY), True),
        (MTLS, presenter(), False),
        (MTLS, presenter(jkt=KEY), False),
        (MTLS, presenter(x5t_s256=KEY), True),
        (DPOP | MTLS, presenter(jkt=KEY), False),
        (DPOP | MTLS, presenter(jkt=KEY, x5t_s256=KEY), True),
        ({}, presenter(), True),
    ],
)
def test_a_sender_bound_client_shows_its_key_with_every_request(
    registered: dict[str, bool], shown: Presenter, works: bool
) -> None:
    """DP-5, RFC 8705 3: without it nothing is consumed and nothing is reuse, and no status is told."""
    rules = ruled(client=client(**registered))
    if works:
        scenario(given=ISSUED, when=redeem(0, 10, shown), rules=rules)
        return
    for given, generation in ((ISSUED, 0), ([*ROTATED, redeem(1, 200)], 0), ([*ISSUED, revoke(5)], 0), (ISSUED, 7)):
        when = redeem(generation, 300, shown)
        scenario(given=given, when=when, rules=rules, refused=Refusal.INVALID_REQUEST, counts=False)
        stranger = redeem(generation, 300, presenter(client_id="oth"))
        scenario(given=given, when=stranger, rules=rules, refused=Refusal.UNKNOWN_TOKEN, counts=False)


# ---------------------------------------------------------------- keys


DISTRUSTED = ruled(distrusted={1: "keys/5"}, active_key_id=2)
SPA_DISTRUSTED = ruled(client=SPA, distrusted={1: "keys/5"}, active_key_id=2)


def test_a_distrusted_key_is_rotated_away_for_who_authenticates() -> None:
    """The current token of a leaked key buys its successor under another."""
    tale = scenario(given=ISSUED, when=redeem(0, 10), rules=DISTRUSTED)
    assert 2 == tale.served.key_id


@pytest.mark.parametrize(
    ("given", "when", "rules"),
    [
        (ISSUED, redeem(0, 10, public()), SPA_DISTRUSTED),
        (ISSUED, redeem(0, 10, public(jkt=KEY)), SPA_DISTRUSTED),  # a key that nothing is bound to
        (ROTATED, redeem(0, 110), DISTRUSTED),  # a retry it would be
        ((*ROTATED, redeem(1, 200)), redeem(0, 300), DISTRUSTED),  # a fork it would be
        (ISSUED, redeem(7, 10, public()), SPA_DISTRUSTED),  # ahead it would be
    ],
)
def test_a_distrusted_key_proves_nothing_else(given: list[Given], when: RedeemToken, rules: Rules) -> None:
    """Refused without action, not counted: whoever holds the key could have made the token."""
    scenario(given=given, when=when, rules=rules, refused=Refusal.KEY_DISTRUSTED, event_id="keys/5", counts=False)


def test_a_distrusted_key_is_told_after_the_status() -> None:
    """An ended grant says how it ended."""
    scenario(given=[*ISSUED, revoke(5)], when=redeem(0, 10), rules=DISTRUSTED, refused=Refusal.REVOKED_BY_OPERATOR)


def test_a_bound_key_holder_survives_a_distrusted_key() -> None:
    """Key-bound is as good as authenticated."""
    tale = scenario(
        given=[under(ruled(client=SPA), issue(bound_jkt=KEY))], when=redeem(0, 10, public(jkt=KEY)),
        rules=SPA_DISTRUSTED,
    )  # fmt: skip
    assert 2 == tale.served.key_id


# ---------------------------------------------------------------- ahead of the log


@pytest.mark.parametrize(
    "when",
    [redeem(2, 110, THERE), redeem(1, 110, THERE, key_id=2), redeem(0, 110, THERE, key_id=2)],
    ids=["a later generation", "the current one by another key", "an older one by another key"],
)
def test_a_token_ahead_of_the_log_suspends_once(when: RedeemToken) -> None:
    """The log has lost acknowledged events: after a fresh read the grant stops (I-15, I-23)."""
    with pytest.raises(StateMayBeStale):
        replayed(told(ROTATED)).decide(when, RULES)
    fresh = redeem(when.generation, 110, THERE, key_id=when.key_id, fresh=True)
    tale = scenario(given=ROTATED, when=fresh, outcome=Refusal.SUSPENDED, event_id="5", then=[
        fact(RollbackDetected, presented_generation=when.generation, current_generation=1, context=THERE),
        fact(GrantSuspended, reason_class="rollback", requested_by="ledger:rollback", reason=None),
    ])  # fmt: skip
    for generation in (0, 1, 2):
        scenario(given=tale.history, when=redeem(generation, 111), refused=Refusal.SUSPENDED, event_id="5", counts=True)
    trusted = told([*tale.history, reinstate(120, "current")])
    later = redeem(when.generation, 130, THERE, key_id=when.key_id, fresh=True)
    scenario(given=trusted, when=later, refused=Refusal.ROTATED, event_id="4", counts=True)
    assert 2 == scenario(given=trusted, when=redeem(1, 131)).served.generation


def test_each_generation_has_the_key_that_its_event_names() -> None:
    """Keys change in the course of a grant's life; an older token of an older key is no rollback."""
    new = ruled(STRICT, active_key_id=2)
    history = told([issue(), redeem(0, 10), under(new, redeem(1, 20)), under(new, redeem(2, 30, key_id=2))])
    grant = replayed(history)
    assert [1, 1, 2, 2] == [grant.key_of(generation) for generation in range(4)]
    for generation, key_id in ((0, 1), (1, 1), (2, 2)):
        scenario(
            given=history, when=redeem(generation, 100, key_id=key_id), rules=new, outcome=Refusal.REUSE_DETECTED
        )  # fmt: skip
    scenario(given=history, when=redeem(1, 100, key_id=2, fresh=True), rules=new, outcome=Refusal.SUSPENDED)


# ---------------------------------------------------------------- the burst limit


def test_the_burst_limit_comes_after_the_verdict_and_before_the_scope() -> None:
    """429 before any append, for a current token only; an ended grant says how it ended."""
    tale = scenario(given=ISSUED, when=redeem(0, 10, scope=("admin",), retry_after_seconds=7), refused=Refusal.TOO_FAST)
    assert tale.refused is not None
    assert 7 == tale.refused.retry_after_seconds
    scenario(given=[*ISSUED, revoke(5)], when=redeem(0, 10, retry_after_seconds=7), refused=Refusal.REVOKED_BY_OPERATOR)
