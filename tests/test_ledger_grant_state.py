"""What a grant has come to: its standing at a moment, its access tokens, and that it does not grow (I-13, I-22)."""

import random
from typing import NamedTuple

import msgspec
import pytest

from ledger.commands import AccessToken, Rules
from ledger.events import AccessTokenRevoked, GrantAuthorized, GrantIssued, RetryServed
from ledger.grant import Grant, StateMayBeStale
from ledger.grant_state import KEY_SPANS_MAX, REVOKED_ACCESS_TOKENS_MAX, access_token_of
from ledger.refusals import Refusal, Refused
from ledger.standing import ACTIVE, Standing
from ledger.times import text
from tests.scenario import Given, all_under, replayed, scenario, told, under
from tests.scenario_commands import (
    COMMAND_ID,
    DAY,
    HERE,
    RULES,
    STABLE,
    STREAM,
    THERE,
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

# ---------------------------------------------------------------- the standing at a moment


class Judged(NamedTuple):
    name: str
    given: tuple[Given, ...]
    at: float
    standing: Standing
    epoch: float | None = None


IDLE = 30 * DAY
SUBJECT_ENDED = Standing("revoked", "withdrawal", moment(50), "subject:5ub/1", Refusal.REVOKED_BY_SUBJECT)
JUDGED = [
    Judged("issued", (), 10, ACTIVE),
    Judged("until its idle end", (), IDLE - 0.000001, ACTIVE),
    Judged("at its idle end, though no event says so", (), IDLE,
           Standing("expired", "expiry", moment(IDLE), None, Refusal.EXPIRED_IDLE)),
    Judged("as soon as an event says so", (redeem(0, IDLE + 5),), IDLE + 10,
           Standing("expired", "expiry", moment(IDLE), f"{STREAM}/2", Refusal.EXPIRED_IDLE)),
    Judged("suspended", (suspend(10),), 20,
           Standing("suspended", "termination", moment(10), f"{STREAM}/2", Refusal.SUSPENDED)),
    Judged("suspended past its end", (suspend(10),), IDLE,
           Standing("expired", "expiry", moment(IDLE), None, Refusal.EXPIRED_IDLE)),
    Judged("reinstated", (suspend(10), reinstate(20)), 30, ACTIVE),
    Judged("revoked", (revoke(10),), 20,
           Standing("revoked", "termination", moment(10), f"{STREAM}/2", Refusal.REVOKED_BY_OPERATOR)),
    Judged("revoked while suspended", (suspend(5), revoke(10)), 20,
           Standing("revoked", "termination", moment(10), f"{STREAM}/3", Refusal.REVOKED_BY_OPERATOR)),
    Judged("given back", (revoke_by_client(10),), 20,
           Standing("revoked", "completion", moment(10), f"{STREAM}/2", Refusal.REVOKED_BY_CLIENT)),
    Judged("ended by an epoch", (), 60, SUBJECT_ENDED, epoch=50),
    Judged("suspended, then ended by an epoch", (suspend(10),), 60, SUBJECT_ENDED, epoch=50),
    Judged("ended by an epoch before its end, looked at after it", (), IDLE + 1, SUBJECT_ENDED, epoch=50),
    Judged("expired before the epoch", (), IDLE + 60,
           Standing("expired", "expiry", moment(IDLE), None, Refusal.EXPIRED_IDLE), epoch=IDLE + 50),
    Judged("its own end first, then an epoch", (revoke(10),), 60,
           Standing("revoked", "termination", moment(10), f"{STREAM}/2", Refusal.REVOKED_BY_OPERATOR), epoch=50),
    Judged("the clock is behind the grant's last event", (suspend(IDLE - 5), reinstate(IDLE - 4)), 0, ACTIVE),
    Judged("the clock is behind an event that came after its idle end", (foreign(0, IDLE + 5),), 0,
           Standing("expired", "expiry", moment(IDLE), None, Refusal.EXPIRED_IDLE)),
]  # fmt: skip


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: row.name)
def test_the_earliest_end_is_the_standing(row: Judged) -> None:
    """Frozen expiries and epochs count though no event of the grant says so; own ends are final (I-07)."""
    grant = replayed(told([issue(), *row.given]))
    assert row.standing == grant.judge(moment(row.at), None if row.epoch is None else epoch_end(row.epoch))
    assert row.standing.ended == (row.standing.status in ("revoked", "expired"))


def test_any_past_moment_is_judged_by_the_events_until_then() -> None:
    """No configuration, no later event: the prefix of the history is enough."""
    history = told([issue(), redeem(0, 10), suspend(20), reinstate(30), revoke(40)])
    statuses = [replayed(history[:n]).judge(moment(15), None).status for n in range(1, len(history) + 1)]
    assert ["active", "active", "active", "suspended", "active", "revoked"] == statuses


# ---------------------------------------------------------------- access tokens


def access_token(**fields: object) -> AccessToken:
    return msgspec.structs.replace(scenario(when=issue()).served.access_token, **fields)


class Token(NamedTuple):
    name: str
    active: bool
    given: tuple[Given, ...] = ()
    at: float = 100
    rules: Rules = RULES
    token: AccessToken = access_token()


TOKENS = [
    Token("fresh", True, at=0),
    Token("to its last moment", True, at=299.999999),
    Token("expired", False, at=300),
    Token("its refresh token was rotated", True, (redeem(0, 10),)),
    Token("its grant was revoked", False, (revoke(10),)),
    Token("its grant was given back", False, (revoke_by_client(10),)),
    Token("its grant is suspended", False, (suspend(10),)),
    Token("its grant was reinstated", True, (suspend(10), reinstate(20))),
    Token("its grant was ended by an epoch", False, rules=ruled(epoch_end=epoch_end(50))),
    Token("an epoch under a clock that ran ahead", False, rules=ruled(epoch_end=epoch_end(5000))),
    Token("its client is disabled", False, rules=ruled(client=None)),
    Token("it was given back itself", False, (revoke_access_token(10, 1),)),
    Token("another was given back", True, (redeem(0, 5), revoke_access_token(10, 2))),
    Token("its clock is ahead of ours, within the skew", True, at=-10),
    Token("its clock is too far ahead of ours", False, at=-10.000001),
    Token("opaque, its key is distrusted", True, rules=ruled(distrusted={1: "keys/5"})),
    Token("a JWT, its key is distrusted", False, rules=ruled(distrusted={1: "keys/5"}),
          token=access_token(format="jwt")),
    Token("a JWT, another key is distrusted", True, rules=ruled(distrusted={2: "keys/5"}),
          token=access_token(format="jwt")),
]  # fmt: skip


@pytest.mark.parametrize("row", TOKENS, ids=lambda row: row.name)
def test_an_access_token_is_what_its_grant_and_the_wall_clock_say(row: Token) -> None:
    """RFC 7662 2.2, RFC 7009: inactive at once with what ends or stops its grant."""
    grant = replayed(told([issue(), *row.given]))
    assert row.active == grant.access_token_active(row.token, moment(row.at), row.rules)


def test_the_idle_end_leaves_access_tokens_alone_and_the_absolute_one_does_not() -> None:
    """Before and after an event says so; an access token never outlives its grant."""
    idle = ruled(policy(refresh_token_ttl_seconds=50))
    for more in ((), (under(idle, redeem(0, 60)),)):
        tale = scenario(given=[under(idle, issue()), *more], when=revoke_access_token(61, 9))
        assert tale.grant.access_token_active(access_token(), moment(100), RULES)
        assert not tale.grant.access_token_active(access_token(), moment(100), ruled(epoch_end=epoch_end(70)))
    absolute = ruled(policy(grant_ttl_seconds=50))
    grant = replayed(told(all_under(absolute, issue())))
    token = scenario(when=issue(), rules=absolute).served.access_token
    assert [True, False] == [grant.access_token_active(token, moment(at), absolute) for at in (49.9, 50)]
    later = replayed(
        told([*all_under(absolute, issue()), revoke_access_token(49, 9), *all_under(absolute, redeem(0, 70))])
    )
    assert not later.access_token_active(token, moment(10), absolute), "a clock that jumps back revives nothing (I-16)"


@pytest.mark.parametrize(("seen", "active"), [(49, True), (50, False), (70, False)])
def test_a_grant_that_has_seen_its_absolute_end_has_no_access_tokens(seen: float, active: bool) -> None:
    """Any event tells that the moment has passed, whatever the wall clock says afterwards (I-16)."""
    absolute = ruled(policy(grant_ttl_seconds=50))
    grant = replayed(told([*all_under(absolute, issue()), foreign(0, seen)]))
    token = scenario(when=issue(), rules=absolute).served.access_token
    assert active == grant.access_token_active(token, moment(10), absolute)


def test_given_back_stays_given_back_whatever_the_clock_does() -> None:
    """What is forgotten for its age is refused for its age, also under a clock that jumped there and back (I-16)."""
    history = told([
        under(ruled(STABLE), issue()), under(ruled(STABLE), redeem(0, 1)), revoke_access_token(2, 1),
        under(ruled(STABLE), redeem(0, 10)), revoke_access_token(20 * DAY, 3),
    ])  # fmt: skip
    grant = replayed(history)
    assert [(3, 20 * DAY)] == [(v, (at - moment(0)) // 1_000_000) for v, at in grant.revoked_access_tokens]
    assert [True, False, True] == [grant.access_token_revoked(v) for v in (1, 2, 3)]
    assert not grant.access_token_active(access_token(), moment(100), RULES)


def test_many_given_back_at_once_are_bounded() -> None:
    """Past the bound the earliest issued are refused rather than remembered one by one (I-22), and with them what was
    issued before: the others that nobody gave back are good."""
    grant = replayed(told([issue()]))
    issued = range(1, 1 + 3 * 3 * REVOKED_ACCESS_TOKENS_MAX, 3)
    for issued_v in issued:
        grant.evolve(
            AccessTokenRevoked(
                stream=STREAM, v=issued_v + 2, at=text(moment(10)), command_id=COMMAND_ID, control=7, issued_v=issued_v,
                requested_by="client:www",
            )
        )  # fmt: skip
    assert REVOKED_ACCESS_TOKENS_MAX == len(grant.revoked_access_tokens)
    assert all(map(grant.access_token_revoked, issued))
    assert not any(grant.access_token_revoked(v + 1) for v in issued[-REVOKED_ACCESS_TOKENS_MAX:])


def test_the_access_token_of_an_event() -> None:
    """What an event minted can be made again from it; what minted none has none (I-03)."""
    history = told([issue(), redeem(0, 10, scope=("read",)), redeem(0, 15), redeem(0, 16, THERE, scope=("read",))])
    minted = [access_token_of(event) for event in history]
    assert [1, 2, None, None, 5, None] == [token.v if token else None for token in minted]
    assert minted[1] is not None
    assert ("read",) == minted[1].scope
    assert [5] == [event.v for event in history if isinstance(event, RetryServed) and event.format]


# ---------------------------------------------------------------- the tally of presentations


def test_a_revocation_ends_a_tally_that_began_at_the_same_moment() -> None:
    """What was counted before the end is not counted after it."""
    grant = replayed(told([issue(), count(9, 10, 10), revoke(10)]))
    assert (0, 9) == (grant.tally.count, replayed(told([issue(), count(9, 10, 10)])).tally.count)


def test_a_tally_that_began_with_the_expiry_goes_on_over_the_event_that_says_so() -> None:
    """Flushed after the frozen moment, presented before it: it counts from that moment on."""
    history = told([issue(), count(2, IDLE - 5, IDLE + 5), redeem(0, IDLE + 10)])
    assert (2, moment(IDLE)) == (replayed(history).tally.count, replayed(history).tally.first_at)


# ---------------------------------------------------------------- a state that does not grow


def test_the_state_is_bounded_whatever_the_history() -> None:
    """Thousands of rotations, retries, narrowings and notes later a snapshot is as small as at first (I-22).

    Seeded: what honest clients and thieves do to one grant under `alert`, with clocks that jump.
    """
    chance = random.Random(6)
    by = ruled(policy("mobile", on_reuse="alert", access_token_ttl_seconds=2))
    grant, sizes, at, served = Grant(), [], 0.0, 0
    for event in grant.decide(issue(), by).events:
        grant.evolve(event)
    for _ in range(4000):
        at = max(0.0, at + chance.choice((0.5, 3, 40, 700, -20)))
        assert grant.generation is not None
        generation = max(0, grant.generation - chance.choice((0, 0, 0, 0, 1, 1)))
        scope = chance.choice((None, ("read",), ("read", "openid"), ("profile",)))
        command = redeem(generation, at, chance.choice((HERE, HERE, THERE)), scope=scope)
        try:
            decision = grant.decide(command, by)
        except (Refused, StateMayBeStale):
            continue
        for event in decision.events:
            grant.evolve(event)
        served += bool(decision.events)
        sizes.append(len(msgspec.msgpack.encode(grant)))
    assert grant.generation is not None
    assert grant.generation > 1500
    assert served > 2000
    assert max(sizes) < 4096
    assert max(sizes[-500:]) <= max(sizes[:500]) + 64, "it grows with the grant's age"


def test_keys_that_change_for_ever_are_remembered_to_a_bound() -> None:
    """Of generations from before the oldest span the key is not known, so no token of theirs looks ahead of the log."""
    grant = Grant()
    for event in grant.decide(issue(), RULES).events:
        grant.evolve(event)
    for n in range(KEY_SPANS_MAX + 50):
        rules = ruled(active_key_id=n % 2 + 1)
        for event in grant.decide(redeem(n, n, key_id=grant.key_id), rules).events:
            grant.evolve(event)
    assert KEY_SPANS_MAX == len(grant.key_spans)
    assert grant.key_of(0) is None
    assert grant.key_id == grant.key_of(KEY_SPANS_MAX + 50)


# ---------------------------------------------------------------- what later flows will append


def test_a_grant_of_the_code_flow_begins_with_its_authorization() -> None:
    """Older than its tokens: epochs are those of the consent, and until the exchange nothing can be redeemed."""
    authorized = GrantAuthorized(
        stream=STREAM, v=1, at=text(moment(0)), command_id=COMMAND_ID, control=7, client_id="www", subject_id="5ub",
        client_epoch=1, subject_epoch=2, nonce_sha256="0f" * 32, key_id=1, issued_by="operator:login-app",
        redirect_uri="https://app.example/callback", challenge="E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        scope=("read",), code_expires_at=text(moment(60)),
    )  # fmt: skip
    grant = replayed([authorized])
    assert ("www", "5ub", 1, 2, moment(0), None) == (
        grant.client_id, grant.subject_id, grant.client_epoch, grant.subject_epoch, grant.issued_at, grant.generation,
    )  # fmt: skip
    scenario(given=[authorized], when=redeem(0, 10), refused=Refusal.UNKNOWN_TOKEN)
    scenario(given=[authorized], when=issue(10), refused=Refusal.CONFLICT)
    assert "revoked" == scenario(given=[authorized], when=revoke(10)).grant.judge(moment(11), None).status
    (issued,) = told([issue(30)])
    assert isinstance(issued, GrantIssued)
    exchanged = msgspec.structs.replace(issued, v=2, client_epoch=1, subject_epoch=2)
    grant = replayed([authorized, exchanged])
    assert (moment(0), moment(30), 0, 1) == (grant.issued_at, grant.at, grant.generation, grant.client_epoch)
    assert 1 == scenario(given=[authorized, exchanged], when=redeem(0, 40)).served.generation
