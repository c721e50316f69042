"""The rules of the code flow: a sign-in, its code, and the one exchange it is good for (RFC 6749 4.1, RFC 7636)."""

from typing import Any

import msgspec
import pytest

from ledger import authorization
from ledger.commands import AuthorizeGrant, ClientRules, GrantCommand
from ledger.events import (
    GrantAuthorized,
    GrantExpired,
    GrantIssued,
    GrantReinstated,
    GrantRevoked,
    GrantSuspended,
    RefreshTokenWithheld,
    Words,
)
from ledger.refusals import Refusal
from ledger.times import micros, text
from tests import mutants
from tests.mutants import Mutant
from tests.scenario import Given, Then, Under, all_under, fact, scenario, under
from tests.scenario_commands import (
    CALLBACK,
    DAY,
    HOUR,
    KEY,
    OTHER_KEY,
    authorize,
    client,
    epoch_end,
    exchange,
    foreign,
    issue,
    moment,
    policy,
    presenter,
    public,
    redeem,
    reinstate,
    revoke,
    ruled,
    suspend,
)

CODE_FLOW = ("authorization_code", "refresh_token")
APP = client(grant_types=CODE_FLOW, redirect_uris=(CALLBACK,))
SPA = client(grant_types=CODE_FLOW, redirect_uris=(CALLBACK,), authenticates=False)
WITH_APP, WITH_SPA = ruled(client=APP), ruled(client=SPA)
SIGNED_IN = under(WITH_APP, authorize())
WRONG = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"  # a verifier is no challenge


# ---------------------------------------------------------------- the sign-in


def test_a_sign_in_puts_on_record_what_the_person_agreed_to() -> None:
    """RFC 6749 4.1.2: the code lives sixty seconds, the grant as long, and no token comes of it yet."""
    tale = scenario(
        when=under(WITH_APP, authorize(scope=("read", "openid", "read"), resource=None)),
        then=[
            fact(
                GrantAuthorized,
                scope=("read", "openid"),
                redirect_uri=CALLBACK,
                challenge="E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
                code_expires_at=text(moment(60)),
                key_id=1,
                session="5e" * 32,
            )
        ],
    )
    grant = tale.grant
    assert (False, None, 0) == (grant.issued, grant.generation, grant.access_tokens_until)
    statuses = [grant.judge(moment(at), None).status for at in (0, 59.999999, 60, HOUR)]
    assert ["active", "active", "expired", "expired"] == statuses


@pytest.mark.parametrize(
    ("command", "by", "refused"),
    [
        (authorize(client_id="oth"), APP, Refusal.INVALID_REQUEST),
        (authorize(), None, Refusal.INVALID_REQUEST),
        (authorize(redirect_uri=CALLBACK + "/"), APP, Refusal.INVALID_REQUEST),
        (authorize(), client(grant_types=CODE_FLOW), Refusal.INVALID_REQUEST),
        (authorize(), client(redirect_uris=(CALLBACK,)), Refusal.UNAUTHORIZED_CLIENT),
        (authorize(redirect_uri="https://evil.example/"), client(), Refusal.INVALID_REQUEST),
        (authorize(scope=("read", "admin")), APP, Refusal.INVALID_SCOPE),
        (authorize(resource=("https://api.example",)), APP, Refusal.INVALID_TARGET),
    ],
)
def test_a_sign_in_for_what_is_not_registered_is_refused(
    command: AuthorizeGrant, by: ClientRules | None, refused: Refusal
) -> None:
    """RFC 6749 4.1.2.1: the redirect address is judged before whatever could be sent to it."""
    scenario(when=Under(ruled(client=by), command), refused=refused)


def test_offline_access_is_ignored_where_it_means_nothing() -> None:
    """OpenID Connect Core 11: libraries add the word to every request; no person is sent back with an error for it."""
    asked = authorize(scope=("openid", "offline_access", "read"))
    scenario(when=under(WITH_APP, asked), then=[fact(GrantAuthorized, scope=("openid", "read"))])
    may = ruled(client=msgspec.structs.replace(APP, scope=("openid", "offline_access", "read")))
    scenario(when=under(may, asked), then=[fact(GrantAuthorized, scope=("openid", "offline_access", "read"))])


def test_an_id_that_is_taken_is_refused() -> None:
    """Two grants never share a stream."""
    scenario(given=[SIGNED_IN], when=under(WITH_APP, authorize(1)), refused=Refusal.CONFLICT)
    scenario(given=[issue()], when=under(WITH_APP, authorize(1)), refused=Refusal.CONFLICT)


def test_no_grant_is_older_than_the_latest_epoch_with_before() -> None:
    """A clock that was put back does not make a sign-in fall to an end that came before it."""
    tale = scenario(when=under(WITH_APP, authorize(0, issued_at_least=moment(30))))
    (event,) = tale.events
    assert isinstance(event, GrantAuthorized)
    assert (text(moment(30)), text(moment(90))) == (event.at, event.code_expires_at)


# ---------------------------------------------------------------- the exchange


def test_a_code_buys_the_first_tokens() -> None:
    """RFC 6749 4.1.4: generation 0 under today's policy, with the epochs and the login of the sign-in."""
    tale = scenario(
        given=[SIGNED_IN],
        when=under(WITH_APP, exchange(30)),
        then=[
            fact(
                GrantIssued,
                v=2,
                generation=0,
                scope=("read", "openid", "profile"),
                issued_by="operator:login-app",
                auth_time=1_764_072_000,
                acr="urn:x",
                amr=("pwd",),
                session="5e" * 32,
                nonce_sha256="0f" * 32,
                absolute_expires_at=text(moment(30 + 365 * DAY)),
                idle_expires_at=text(moment(30 + 30 * DAY)),
                bound_jkt=None,
            )
        ],
    )
    served = tale.served
    assert (0, 2, 2) == (served.generation, served.last_v, served.access_token.v)
    assert moment(330) == served.access_token.expires_at
    assert (moment(0), moment(30)) == (tale.grant.issued_at, tale.grant.token_issued_at)
    assert 1 == scenario(given=[*tale.history], when=under(WITH_APP, redeem(0, 40))).served.generation


def test_the_epochs_are_those_of_the_sign_in() -> None:
    """An end of all grants between sign-in and exchange counts, whatever number rules when the code comes (I-06)."""
    then, now = ruled(client=APP, client_epoch=3, subject_epoch=5), ruled(client=APP, client_epoch=4, subject_epoch=9)
    (issued,) = scenario(given=[under(then, authorize())], when=under(now, exchange(9))).events
    assert isinstance(issued, GrantIssued)
    assert (3, 5) == (issued.client_epoch, issued.subject_epoch)


@pytest.mark.parametrize("at", [60, 61, HOUR])
def test_an_expired_code_buys_nothing_for_good(at: float) -> None:
    """V82, PK-1: refused; the owner's first try goes on record, so that a clock put back revives nothing (I-16)."""
    tale = scenario(
        given=[SIGNED_IN],
        when=under(WITH_APP, exchange(at)),
        then=[fact(GrantExpired, kind="absolute", expired_at=text(moment(60)), presented_generation=0)],
        outcome=Refusal.EXPIRED_ABSOLUTE,
        event_id="2",
    )
    again = under(WITH_APP, exchange(10))
    scenario(given=tale.history, when=again, refused=Refusal.EXPIRED_ABSOLUTE, event_id="2", counts=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"challenge": WRONG},
        {"challenge": None},
        {"challenge": ""},
        {"redirect_uri": CALLBACK + "?x"},
        {"redirect_uri": None},
        {"key_id": 2},
        {"by": presenter(client_id="oth")},
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_whoever_did_not_begin_the_flow_consumes_nothing_and_ends_nothing(wrong: dict[str, Any], used: bool) -> None:
    """V81, V82, PK-2: wrong verifier, wrong address, wrong client; the code, or what it bought, lives on."""
    given = [SIGNED_IN, *all_under(WITH_APP, exchange(5))] if used else [SIGNED_IN]
    tale = scenario(given=given, when=under(WITH_APP, exchange(9, **wrong)), refused=Refusal.UNKNOWN_TOKEN)
    rest: GrantCommand = redeem(0, 10) if used else exchange(10)
    scenario(given=tale.history, when=under(WITH_APP, rest), then=None)


def test_a_second_use_ends_the_grant() -> None:
    """V80, PK-3: denied, and all that the first use bought is over, whoever of the two was the thief."""
    tale = scenario(
        given=[SIGNED_IN, *all_under(WITH_APP, exchange(5), redeem(0, 9))],
        when=under(WITH_APP, exchange(10)),
        then=[fact(GrantRevoked, reason_class="reuse", requested_by="ledger:reuse", reason="5a" * 32)],
        outcome=Refusal.REUSE_DETECTED,
        event_id="5",
    )
    after: list[GrantCommand] = [redeem(1, 11), redeem(0, 11), exchange(11)]
    for command in after:
        scenario(given=tale.history, when=under(WITH_APP, command), refused=Refusal.REUSE_DETECTED, counts=True)


def test_a_second_use_counts_whenever_it_comes() -> None:
    """RFC 6749 4.1.2 sets no time: who still has code and verifier an hour later has what a thief would have."""
    given = [SIGNED_IN, *all_under(WITH_APP, exchange(5))]
    scenario(given=given, when=under(WITH_APP, exchange(HOUR)), then=[GrantRevoked], outcome=Refusal.REUSE_DETECTED)


@pytest.mark.parametrize(
    ("end", "refused"),
    [(revoke(2), Refusal.REVOKED_BY_OPERATOR), (suspend(2), Refusal.SUSPENDED)],
)
def test_an_end_between_sign_in_and_exchange_kills_the_code(end: GrantCommand, refused: Refusal) -> None:
    """Refused with its reason, counted, and no escalation."""
    scenario(given=[SIGNED_IN, end], when=under(WITH_APP, exchange(5)), refused=refused, event_id="2", counts=True)


def test_an_epoch_between_sign_in_and_exchange_kills_the_code() -> None:
    """`/subjects/revoke` after the sign-in: the code buys nothing (I-06)."""
    rules = ruled(client=APP, epoch_end=epoch_end(3))
    when = under(rules, exchange(5))
    scenario(given=[SIGNED_IN], when=when, refused=Refusal.REVOKED_BY_SUBJECT, event_id="subject:5ub/1", counts=True)


def test_a_reinstated_authorization_can_be_exchanged_while_its_code_lives() -> None:
    """A suspension extends no expiry; the issuance stands wherever it comes in the stream."""
    given: list[Given] = [SIGNED_IN, suspend(2), reinstate(4)]
    tale = scenario(given=given, when=under(WITH_APP, exchange(50)), then=[fact(GrantIssued, v=4)])
    assert (4, moment(0)) == (tale.served.access_token.v, tale.grant.issued_at)
    topics = [type(event) for event in tale.history]
    assert [GrantAuthorized, GrantSuspended, GrantReinstated, GrantIssued] == topics
    scenario(given=given, when=under(WITH_APP, exchange(61)), then=[GrantExpired], outcome=Refusal.EXPIRED_ABSOLUTE)


def test_a_code_under_a_distrusted_key_buys_nothing_and_ends_nothing() -> None:
    """Whoever has that key may have made it: no action follows from it."""
    distrusted = ruled(client=APP, distrusted={1: "keys/4"}, active_key_id=2)
    for given in ([SIGNED_IN], [SIGNED_IN, *all_under(WITH_APP, exchange(5))]):
        when = under(distrusted, exchange(9))
        scenario(given=given, when=when, refused=Refusal.KEY_DISTRUSTED, event_id="keys/4")


# ---------------------------------------------------------------- scope, resource, refresh token


def test_what_the_client_may_no_longer_have_is_left_out_of_its_tokens() -> None:
    """A cut of scope between sign-in and exchange holds (I-06, I-08); what the person agreed to stays on record."""
    cut = ruled(client=msgspec.structs.replace(APP, scope=("read",)))
    tale = scenario(given=[SIGNED_IN], when=under(cut, exchange(5)), then=[fact(GrantIssued, scope=("read",))])
    assert ("read", "openid", "profile") == tale.grant.granted == tale.grant.carried
    assert ("read", "openid", "profile") == scenario(
        given=tale.history, when=under(WITH_APP, redeem(0, 9))
    ).served.access_token.scope


def test_a_client_that_may_have_nothing_of_it_gets_nothing() -> None:
    """RFC 6749 5.2; a grant that was asked for without scope is another matter."""
    cut = ruled(client=msgspec.structs.replace(APP, scope=("other",)))
    scenario(given=[SIGNED_IN], when=under(cut, exchange(5)), refused=Refusal.NO_SCOPE_LEFT)
    bare = under(WITH_APP, authorize(scope=()))
    assert () == scenario(given=[bare], when=under(cut, exchange(5))).served.access_token.scope


def test_a_resource_narrows_the_first_access_token_and_not_the_grant() -> None:
    """RFC 8707 2.2: what the sign-in granted stays; beyond it `invalid_target`, and the code lives."""
    both = ("https://one.example", "https://two.example")
    rules = ruled(client=msgspec.structs.replace(APP, resource=(*both, "https://three.example")))
    given = [under(rules, authorize(resource=both))]
    tale = scenario(given=given, when=under(rules, exchange(5, resource=both[1:])))
    assert both[1:] == tale.served.access_token.resource
    assert both == scenario(given=tale.history, when=under(rules, redeem(0, 9))).served.access_token.resource
    beyond = under(rules, exchange(5, resource=("https://three.example",)))
    refused = scenario(given=given, when=beyond, refused=Refusal.INVALID_TARGET)
    scenario(given=refused.history, when=under(rules, exchange(6)), then=[GrantIssued])


@pytest.mark.parametrize(
    ("granted", "may", "grant_types", "ttl", "gets"),
    [
        (("read", "openid"), ("read", "openid"), CODE_FLOW, 30 * DAY, True),  # the word means nothing here
        (("openid", "offline_access"), ("openid", "offline_access"), CODE_FLOW, 30 * DAY, True),
        (("read", "openid"), ("read", "openid", "offline_access"), CODE_FLOW, 30 * DAY, False),
        (("openid", "offline_access"), ("openid", "offline_access"), CODE_FLOW, 0, False),
        (("openid", "offline_access"), ("openid", "offline_access"), CODE_FLOW[:1], 30 * DAY, False),
    ],
)
def test_offline_access_and_policy_decide_whether_a_refresh_token_comes(
    granted: Words, may: Words, grant_types: Words, ttl: int, gets: bool
) -> None:
    """OpenID Connect Core 11, RFC 6749 1.5, RF-8: a client that may ask for `offline_access` must be granted it."""
    rules = ruled(
        policy(refresh_token_ttl_seconds=ttl),
        client=client(scope=may, grant_types=grant_types, redirect_uris=(CALLBACK,)),
    )
    then: list[Then] = [GrantIssued] if gets else [GrantIssued, RefreshTokenWithheld]
    tale = scenario(given=[under(rules, authorize(scope=granted))], when=under(rules, exchange(5)), then=then)
    assert (0 if gets else None) == tale.served.generation == tale.grant.generation
    if not gets:
        assert tale.served.idle_expires_at == tale.served.absolute_expires_at == moment(5 + 365 * DAY)
        assert micros(tale.events[-1].at) == moment(5)


# ---------------------------------------------------------------- keys


def test_a_public_clients_grant_is_bound_at_the_exchange() -> None:
    """RFC 9449 5, DP-3: the key that bought the first tokens is the only one that ever refreshes them."""
    given = [under(WITH_SPA, authorize())]
    tale = scenario(
        given=given,
        when=under(WITH_SPA, exchange(5, public(jkt=KEY))),
        then=[fact(GrantIssued, bound_jkt=KEY, cnf_jkt=KEY)],
    )
    scenario(given=tale.history, when=under(WITH_SPA, redeem(0, 9, public(jkt=KEY))))
    for jkt in (None, OTHER_KEY):
        when = under(WITH_SPA, redeem(0, 9, public(jkt=jkt)))
        scenario(given=tale.history, when=when, refused=Refusal.UNKNOWN_TOKEN)
        again = under(WITH_SPA, exchange(9, public(jkt=jkt)))
        scenario(given=tale.history, when=again, refused=Refusal.UNKNOWN_TOKEN)  # not the owner: it ends nothing
    scenario(given=given, when=under(WITH_SPA, exchange(5, public())), then=[fact(GrantIssued, bound_jkt=None)])


def test_a_confidential_client_may_change_keys() -> None:
    """DP-4: its proof binds that access token, its authentication the grant."""
    when = under(WITH_APP, exchange(5, presenter(jkt=KEY, x5t_s256="x5t")))
    scenario(given=[SIGNED_IN], when=when, then=[fact(GrantIssued, bound_jkt=None, cnf_jkt=KEY, cnf_x5t_s256="x5t")])


@pytest.mark.parametrize("by", [APP, SPA])
def test_a_key_named_at_the_sign_in_must_be_shown_at_the_exchange(by: ClientRules) -> None:
    """RFC 9449 10, DP-7: `dpop_jkt` binds the code to a key, of confidential clients too."""
    rules = ruled(client=by)
    given = [under(rules, authorize(dpop_jkt=KEY))]
    for jkt in (None, OTHER_KEY):
        who = presenter(jkt=jkt, authenticated=by.authenticates)
        scenario(given=given, when=under(rules, exchange(5, who)), refused=Refusal.UNKNOWN_TOKEN)
    who = presenter(jkt=KEY, authenticated=by.authenticates)
    scenario(given=given, when=under(rules, exchange(5, who)), then=[GrantIssued])


def test_a_sender_bound_client_must_show_a_key() -> None:
    """RFC 9449 5: without one nothing is consumed."""
    rules = ruled(client=msgspec.structs.replace(SPA, dpop_bound=True))
    given = [under(rules, authorize())]
    tale = scenario(given=given, when=under(rules, exchange(5, public())), refused=Refusal.INVALID_REQUEST)
    scenario(given=tale.history, when=under(rules, exchange(6, public(jkt=KEY))), then=[GrantIssued])


# ---------------------------------------------------------------- what the rules look at


def test_a_disabled_client_exchanges_nothing() -> None:
    """Removed from the clients file after the sign-in."""
    scenario(given=[SIGNED_IN], when=under(ruled(client=None), exchange(5)), refused=Refusal.UNKNOWN_TOKEN)


def test_todays_policy_rules_the_exchange() -> None:
    """Lifetimes are frozen when they are set, and that is now."""
    rules = ruled(policy("strict"), client=APP)
    scenario(
        given=[SIGNED_IN],
        when=under(rules, exchange(5)),
        then=[fact(GrantIssued, policy_retry_window_seconds=0, idle_expires_at=text(moment(5 + DAY)))],
    )


# ---------------------------------------------------------------- broken twins

MUTANTS = (
    *(each for each in mutants.MUTANTS if each.function.__module__ == authorization.__name__),
    Mutant(
        "PK-1",
        "any redirect address will do",
        authorization._began_with,
        "command.redirect_uri == authorized.redirect_uri",
        "True",
    ),
    Mutant(
        "DP-7",
        "a key named at the sign-in need not be shown",
        authorization._began_with,
        "authorized.dpop_jkt in (None, command.presenter.proof_jkt)",
        "True",
    ),
    Mutant(
        "I-06",
        "an epoch kills no code",
        authorization.exchange,
        "grant.judge(at, rules.epoch_end)",
        "grant.judge(at, None)",
    ),
    Mutant(
        "I-16",
        "lifetimes begin before the grant's last event",
        authorization.exchange,
        "command.at if command.at > grant.at else grant.at",
        "command.at",
    ),
    Mutant(
        "I-08",
        "a cut of scope is overlooked",
        authorization._issue,
        "within(grant.granted, client.scope)",
        "grant.granted",
    ),
    Mutant(
        "D6",
        "who shows no verifier ends the grant",
        authorization.exchange,
        "not _began_with(command)",
        "not (grant.issued or _began_with(command))",
    ),
)


def everything_here() -> None:
    """The rules above, as many as tell the twins apart."""
    test_a_second_use_ends_the_grant()
    for wrong in ({"challenge": WRONG}, {"challenge": None}, {"redirect_uri": None}):
        for used in (False, True):
            test_whoever_did_not_begin_the_flow_consumes_nothing_and_ends_nothing(wrong, used)
    test_a_key_named_at_the_sign_in_must_be_shown_at_the_exchange(APP)
    test_an_epoch_between_sign_in_and_exchange_kills_the_code()
    test_a_clock_that_is_put_back_opens_no_code_again()
    test_what_the_client_may_no_longer_have_is_left_out_of_its_tokens()
    test_the_epochs_are_those_of_the_sign_in()


def test_a_clock_that_is_put_back_opens_no_code_again() -> None:
    """I-16: what the grant's own events have seen is not undone by the wall clock."""
    given: list[Given] = [SIGNED_IN, foreign(0, 70)]
    scenario(given=given, when=under(WITH_APP, exchange(55)), then=[GrantExpired], outcome=Refusal.EXPIRED_ABSOLUTE)
    given = [SIGNED_IN, foreign(0, 50)]
    ends = text(moment(50 + 365 * DAY))
    scenario(given=given, when=under(WITH_APP, exchange(40)), then=[fact(GrantIssued, absolute_expires_at=ends)])


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_broken_rule_is_caught(mutant: Mutant) -> None:
    """Each twin breaks one rule, and what is asked here finds it out."""
    everything_here()
    with mutant.patched(), pytest.raises(AssertionError):
        everything_here()
