"""Access tokens that are JWTs (RFC 9068): their claims, their length, and the same one again to whoever asks again."""

import asyncio
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest

from ledger import jwt_access_tokens
from ledger.answers import IssueRequest
from ledger.events import GrantIssued, TokenRedeemed
from ledger.keyring import KeyRing
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.times import SECOND
from tests.engines import alter
from tests.jwts import (
    API,
    FILES,
    ISS,
    claims_of,
    frozen,
    holder,
    issued,
    jwt_client,
    made,
    opened_with,
    refreshed,
    told,
)
from tests.ledgers import ISSUER, START, check_ledger, client, open_ledger
from tests.rings import GRANT_ID, known_ring

GOLDEN = (
    "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIsImtpZCI6IjAwMTEyMjMzLTEifQ."
    "eyJpc3MiOiJodHRwczovL2xlZGdlci5leGFtcGxlIiwic3ViIjoiYWxpY2UiLCJhdWQiOiJodHRwczovL2xlZGdlci5leGFtcGxlIiwiY2xpZW50"
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


# ---------------------------------------------------------------- claims


def test_what_rfc_9068_asks_for_and_nothing_that_is_empty() -> None:
    """JA, RFC 9068 2.2: iss, sub, aud, client_id, iat, exp and jti always; others where there is something to say."""
    assert {
        "iss": ISS,
        "sub": "alice",
        "aud": ISS,
        "client_id": "www",
        "iat": 1_800_000_000,
        "exp": 1_800_000_300,
        "jti": f"{GRANT_ID}.7",
        "grant_id": GRANT_ID,
    } == claims_of(made(frozen(scope=()), holder()))
    assert {
        "scope": "read write",
        "aud": [API, FILES],
        "cnf": {"jkt": "k" * 43, "x5t#S256": "x" * 43},
        "auth_time": 0,
        "acr": "gold",
        "amr": ["pwd", "otp"],
    }.items() <= claims_of(
        made(
            frozen(scope=("read", "write"), resource=(API, FILES), cnf_jkt="k" * 43, cnf_x5t_s256="x" * 43),
            holder(auth_time=0, acr="gold", amr=("pwd", "otp")),
        )
    ).items()  # fmt: skip
    assert API == claims_of(made(frozen(resource=(API,)), holder()))["aud"]
    assert {"x5t#S256": "x"} == claims_of(made(frozen(cnf_x5t_s256="x"), holder()))["cnf"]


def test_a_jwt_is_the_same_for_ever() -> None:
    """A retry that another process or a later release serves gives the same text: header and order are fixed."""
    token = made(frozen(), holder())
    assert token.startswith(GOLDEN)
    assert 64 == len(urlsafe_b64decode(token.rpartition(".")[2] + "=="))
    assert token == made(frozen(), holder())


def test_a_subject_stands_as_it_was_issued() -> None:
    """Whatever letters it has; nothing of it can be taken for another claim."""
    for subject in ('a"b\\c', "Ægir ☃ \U0001f600", '","sub":"bob'):
        assert subject == claims_of(made(frozen(), holder(subject=subject)))["sub"]


# ---------------------------------------------------------------- length


def length(scope_characters: int) -> int:
    return len(made(frozen(scope=("s" * scope_characters,)), holder()))


def test_a_token_has_at_most_2048_characters() -> None:
    """What is too long is refused before anything is recorded; one character less is issued."""
    fits = next(size for size in range(900, 1_300) if length(size + 1) > 2_044)
    while length(fits) < 2_047:  # three bytes are four characters
        fits += 1
    assert length(fits) <= 2_048
    with pytest.raises(
        Refused, match=r"have 20(49|5\d) characters, and 2048 is the most: ask for less scope"
    ) as refused:
        length(fits + 1) and length(fits + 2)
    assert Refusal.INVALID_REQUEST is refused.value.refusal


async def test_a_grant_whose_token_would_be_too_long_is_not_issued(tmp_path: Path) -> None:
    """Nothing is recorded, no person is kept; a shorter wish is served."""
    long = tuple(f"scope-{number:04}" for number in range(150))
    async with opened_with(tmp_path, jwt_client(scope=("read", *long))) as opened:
        before = opened.last_position()
        with pytest.raises(Refused, match=r"^the access token would have \d+ characters") as refused:
            await issued(opened, scope=long)
        assert Refusal.INVALID_REQUEST is refused.value.refusal
        assert before == opened.last_position()
        assert [] == opened.rows("SELECT * FROM private_subjects")
        assert "read" == claims_of((await issued(opened, scope=("read",))).access_token)["scope"]
    check_ledger(opened.path)


async def test_a_refresh_whose_token_would_be_too_long_consumes_nothing(tmp_path: Path) -> None:
    """A client that turns to JWTs meets grants that hold more than fits: it may ask for less, and is told so (D5)."""
    long = tuple(f"scope-{number:04}" for number in range(150))
    opaque = client(scope=("read", *long))
    async with open_ledger(tmp_path, clients=[opaque]) as opened:
        answer = await issued(opened, scope=("read", *long))
        await opened.apply(jwt_client(scope=("read", *long)))
        with pytest.raises(Refused, match=r"ask for less scope") as refused:
            await refreshed(opened, answer)
        assert Refusal.INVALID_REQUEST is refused.value.refusal
        assert ["issued"] == opened.topics(answer)
        assert "read" == claims_of((await refreshed(opened, answer, scope=("read",))).access_token)["scope"]


async def test_a_refresh_of_a_person_whom_the_store_knows_no_more_consumes_nothing(tmp_path: Path) -> None:
    """As where they were erased, and this node has not heard of it: nobody can say whose token it would be, so the
    client is to ask again."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        answer = await issued(opened)
        alter(opened.path, "DELETE FROM private_subjects")
        with pytest.raises(Unavailable):
            await refreshed(opened, answer)
        assert ["issued"] == opened.topics(answer)


# ---------------------------------------------------------------- where they come from


async def test_every_answer_carries_the_token_of_its_event(tmp_path: Path) -> None:
    """JA: issued, refreshed, narrowed; auth_time, acr and amr stay those of the sign-in."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        answer = await issued(opened, auth_time=1_700_000_000, acr="gold", amr=("pwd",))
        opened.clock.pass_seconds(100)
        second = await refreshed(opened, answer)
        third = await refreshed(opened, second, scope=("read",))
        events = [event for event in opened.grant_events(answer) if isinstance(event, GrantIssued | TokenRedeemed)]
        for event, each in zip(events, (answer, second, third), strict=True):
            said = claims_of(each.access_token)
            assert f"{answer.grant_id}.{event.v}" == said["jti"]
            assert (1_700_000_000, "gold", ["pwd"], "alice") == tuple(
                said[n] for n in ("auth_time", "acr", "amr", "sub")
            )
            assert ("jwt", 300) == (event.format, said["exp"] - said["iat"])
        assert [START // SECOND, START // SECOND + 100] == [claims_of(a.access_token)["iat"] for a in (answer, second)]
        assert ["read write", "read"] == [claims_of(a.access_token)["scope"] for a in (second, third)]
    check_ledger(opened.path)


async def test_a_lost_answer_is_given_again_to_the_byte(tmp_path: Path) -> None:
    """I-03, I-10: by this process, and by the next one after its end."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        first = await issued(opened)
        second = await refreshed(opened, first)
        assert second == await refreshed(opened, first)
        clock = opened.clock
    async with opened_with(tmp_path, jwt_client(), clock=clock, seed=2) as opened:
        clock.pass_seconds(5)
        again = await refreshed(opened, first)
        assert (second.access_token, second.refresh_token) == (again.access_token, again.refresh_token)
        assert second.expires_in - 5 == again.expires_in
        other = await refreshed(opened, first, scope=("read",))
        assert other.refresh_token == second.refresh_token
        assert other.access_token == (await refreshed(opened, first, scope=("read",))).access_token
        assert "read" == claims_of(other.access_token)["scope"]
    check_ledger(opened.path)


async def test_an_issuer_that_asks_again_gets_the_same(tmp_path: Path) -> None:
    """An Idempotency-Key gives the first token again, also in the same batch and when the grant has moved on."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        request = IssueRequest(client_id="www", subject="alice", scope=("read",))
        both = await asyncio.gather(*(opened.ledger.operators.issue(ISSUER, request, "key-1", b"{}") for _ in range(2)))
        await refreshed(opened, both[0])
        third = await opened.ledger.operators.issue(ISSUER, request, "key-1", b"{}")
        assert 1 == len({answer.access_token for answer in (*both, third)})
        assert "alice" == claims_of(third.access_token)["sub"]


async def test_a_change_of_format_holds_from_the_next_token_on(tmp_path: Path) -> None:
    """The format is the event's: what was opaque stays so, also in a retry."""
    async with opened_with(tmp_path, client(scope=("read", "write"))) as opened:
        first = await issued(opened)
        second = await refreshed(opened, first)
        await opened.apply(jwt_client())
        assert second.access_token == (await refreshed(opened, first)).access_token
        third = await refreshed(opened, second)
        assert ("at1_", "eyJ0") == (second.access_token[:4], third.access_token[:4])
        for answer in (first, second, third):
            assert (await told(opened, answer.access_token)) is not None


async def test_the_default_audience_is_the_clients_first_resource(tmp_path: Path) -> None:
    """RFC 8707 2.2, RI-2: asked, else the grant's, else the client's first, else the issuer."""
    async with opened_with(tmp_path, jwt_client(resource=(API, FILES)), jwt_client("bare")) as opened:
        of_client = await issued(opened)
        of_grant = await issued(opened, resource=(API, FILES))
        of_issuer = await issued(opened, "bare")
        asked = await refreshed(opened, of_grant, resource=(FILES,))
        after = await refreshed(opened, asked)
        answers = (of_client, of_grant, of_issuer, asked, after)
        wanted = [API, [API, FILES], ISS, FILES, [API, FILES]]
        assert wanted == [claims_of(answer.access_token)["aud"] for answer in answers]


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "RS256"])
async def test_each_algorithm_is_chosen_by_the_operator_and_kept(tmp_path: Path, alg: Any) -> None:
    """`keys rotate --alg`; without it the next key signs as the active one does."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate(alg))
        next_id = await opened.ledger.operators.keys_rotate()
        ring = opened.ledger.desk.ring
        assert [alg, alg] == [ring.signing_key(key_id).alg for key_id in (next_id - 1, next_id)]
        first = await issued(opened)
        assert (await refreshed(opened, first)).access_token == (await refreshed(opened, first)).access_token
        assert await told(opened, first.access_token) is not None
        assert KeyRing.load(tmp_path / "ledger.keys") == ring


def test_no_text_of_an_unsigned_token_shows_its_claims() -> None:
    """I-20: they name a person."""
    made_up = jwt_access_tokens.unsigned(known_ring(), ISS, frozen(), holder(subject="alice-of-wonderland"))
    assert "Unsigned(key_id=1)" == repr(made_up)
