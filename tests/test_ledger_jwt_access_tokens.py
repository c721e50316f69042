"""Access tokens that are JWTs (RFC 9068): their claims, the same one again, their length, and what is none of ours."""

import asyncio
import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ledger import jwt_access_tokens
from ledger.answers import Caller, Introspection, IssueRequest, TokenAnswer
from ledger.clients import ClientSpec, Settings
from ledger.commands import AccessToken
from ledger.events import GrantIssued, TokenRedeemed, Words
from ledger.keyring import KeyNotHeld, KeyRing
from ledger.refusals import Refusal, Refused
from tests.ledgers import (
    HOME,
    ISSUER,
    LOCAL_OPERATOR,
    OPTIONS,
    START,
    Opened,
    caller,
    check_ledger,
    client,
    open_ledger,
)
from tests.ledgers import with_policy as policy
from tests.rings import GRANT_ID, known_ring

ISS = "https://ledger.example"
API, FILES = "https://api.example", "https://files.example/"
SECOND = 1_000_000
GOLDEN = (
    "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIsImtpZCI6IjAwMTEyMjMzLTEifQ."
    "eyJpc3MiOiJodHRwczovL2xlZGdlci5leGFtcGxlIiwic3ViIjoiYWxpY2UiLCJhdWQiOiJodHRwczovL2xlZGdlci5leGFtcGxlIiwiY2xpZW50"
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


def claims_of(token: str) -> dict[str, Any]:
    """What stands in a JWT, unverified."""
    payload = token.split(".")[1]
    read: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return read


def jwt_client(
    client_id: str = "www",
    *,
    resource: Words | None = None,
    auth: str = "client_secret",
    scope: Words = ("read", "write"),
) -> ClientSpec:
    """A client whose access tokens are JWTs."""
    settings = Settings(auth=auth, scope=scope, policy=policy(access_token_format="jwt"), resource=resource)
    return ClientSpec(client_id=client_id, settings=settings, secrets=() if auth == "none" else ("Secr3t!",))


def resource_server(may_introspect: Words, client_id: str = "rs1") -> ClientSpec:
    settings = Settings(auth="client_secret", may_introspect=may_introspect)
    return ClientSpec(client_id=client_id, settings=settings, secrets=("R!",))


def opened_with(folder: Path, *clients: ClientSpec, **more: Any) -> AbstractAsyncContextManager[Opened]:
    return open_ledger(folder, clients=clients, options=replace(OPTIONS, issuer=ISS), **more)


async def issued(opened: Opened, client_id: str = "www", subject: str = "alice", **members: Any) -> TokenAnswer:
    request = IssueRequest(client_id=client_id, subject=subject, **{"scope": ("read", "write"), **members})
    return await opened.ledger.operators.issue(ISSUER, request, None, b"{}")


async def refreshed(
    opened: Opened,
    answer: TokenAnswer,
    *,
    scope: Words | None = None,
    resource: Words | None = None,
    who: Caller | None = None,
) -> TokenAnswer:
    assert answer.refresh_token is not None
    return await opened.ledger.refresh(who or caller(), HOME, answer.refresh_token, scope, resource)


async def told(opened: Opened, token: str, who: Caller | None = None) -> Introspection | None:
    return await opened.ledger.introspect(who or LOCAL_OPERATOR, token)


def frozen(**members: Any) -> AccessToken:
    """An access token as an event froze it."""
    usual: dict[str, Any] = {
        "v": 7, "scope": ("read",), "resource": None, "cnf_jkt": None, "cnf_x5t_s256": None, "format": "jwt",
        "signing_key_id": 1, "issued_at": 1_800_000_000 * SECOND, "expires_at": 1_800_000_300 * SECOND,
    }  # fmt: skip
    return AccessToken(**usual | members)


def holder(**members: Any) -> jwt_access_tokens.Holder:
    usual: dict[str, Any] = {
        "grant_id": GRANT_ID, "client_id": "www", "subject": "alice", "auth_time": None, "acr": None, "amr": None
    }  # fmt: skip
    return jwt_access_tokens.Holder(**usual | members)


def made(token: AccessToken, who: jwt_access_tokens.Holder, ring: KeyRing | None = None, issuer: str = ISS) -> str:
    ring = ring or known_ring()
    return jwt_access_tokens.sign(ring, jwt_access_tokens.unsigned(ring, issuer, token, who))


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


# ---------------------------------------------------------------- asking, giving back


async def test_a_jwt_says_to_its_owner_what_it_is_good_for(tmp_path: Path) -> None:
    """IN-4: as for an opaque one."""
    async with opened_with(tmp_path, jwt_client(resource=(API,)), jwt_client("oth")) as opened:
        answer = await issued(opened)
        found = await told(opened, answer.access_token, caller())
        assert found is not None
        assert ("access_token", "alice", (API,), ("read", "write")) == (
            found.token_use, found.subject, found.resource, found.scope
        )  # fmt: skip
        assert await told(opened, answer.access_token, caller("oth")) is None
        opened.clock.pass_seconds(300)
        assert await told(opened, answer.access_token) is None


ENDS = [
    "revoked",
    "suspended",
    "given back",
    "grant given back",
    "person",
    "client",
    "disabled",
    "erased",
    "distrusted",
]


@pytest.mark.parametrize("end", ENDS)
async def test_what_ends_a_grant_or_a_key_ends_its_jwts_here_at_once(tmp_path: Path, end: str) -> None:
    """I-06: whoever checks a JWT alone takes it until it expires; whoever asks is told."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        ledger, answer = opened.ledger, await issued(opened)
        other = await refreshed(opened, answer)
        assert await told(opened, answer.access_token) is not None
        match end:
            case "revoked":
                await opened.act("revoke", answer.grant_id)
            case "suspended":
                await opened.act("suspend", answer.grant_id)
            case "given back":
                await ledger.revoke_token(caller(), HOME, answer.access_token)
                assert await told(opened, other.access_token) is not None, "that one alone"
                await ledger.revoke_token(caller(), HOME, other.access_token)
                assert ["access_token_revoked"] * 2 == opened.topics(answer)[-2:]
            case "grant given back":
                await ledger.revoke_token(caller(), HOME, str(other.refresh_token))
            case "person":
                await ledger.operators.revoke_subject(LOCAL_OPERATOR, "alice", "left", None)
            case "client":
                await ledger.operators.revoke_client(LOCAL_OPERATOR, "www", "sold", None)
            case "disabled":
                await opened.apply()
            case "erased":
                await ledger.operators.erase(LOCAL_OPERATOR, "alice")
            case "distrusted":
                await ledger.operators.keys_activate(await ledger.operators.keys_rotate())
                await ledger.operators.keys_distrust(1)
        assert [None, None] == [await told(opened, each.access_token) for each in (answer, other)]
    check_ledger(opened.path)


async def test_a_suspended_grants_jwts_come_back_with_it(tmp_path: Path) -> None:
    async with opened_with(tmp_path, jwt_client()) as opened:
        answer = await issued(opened)
        await opened.act("suspend", answer.grant_id)
        await opened.act("reinstate", answer.grant_id)
        assert await told(opened, answer.access_token) is not None


async def test_an_opaque_token_of_a_distrusted_key_is_what_its_grant_says(tmp_path: Path) -> None:
    """Its secret needs the grant's nonce, so whoever has the key alone has made none."""
    async with opened_with(tmp_path, client(scope=("read", "write"))) as opened:
        answer = await issued(opened)
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        await opened.ledger.operators.keys_distrust(1)
        assert await told(opened, answer.access_token) is not None


async def test_nobody_gives_back_what_is_another_clients(tmp_path: Path) -> None:
    """RV-5: refused, and it lives; a token that never was is no error (RV-4)."""
    async with opened_with(tmp_path, jwt_client(), jwt_client("oth")) as opened:
        answer = await issued(opened)
        with pytest.raises(Refused) as refused:
            await opened.ledger.revoke_token(caller("oth"), HOME, answer.access_token)
        assert Refusal.UNKNOWN_TOKEN is refused.value.refusal
        assert await told(opened, answer.access_token) is not None
        forged = made(frozen(v=1), holder(grant_id=answer.grant_id))
        await opened.ledger.revoke_token(caller("oth"), HOME, forged)
        assert ["issued"] == opened.topics(answer)


async def test_a_resource_server_asks_about_what_is_meant_for_it(tmp_path: Path) -> None:
    """RFC 7662 2.1, 4: an audience of its own, in JWTs and opaque ones; never a refresh token, never another's."""
    opaque = ClientSpec(client_id="opq", settings=Settings(scope=("read", "write"), resource=(API,)), secrets=("S",))
    servers = [resource_server((API + "/",)), resource_server((FILES,), "rs2"), resource_server((ISS,), "rs3")]
    clients = [jwt_client(resource=(API, FILES)), jwt_client("bare"), opaque, *servers]
    async with opened_with(tmp_path, *clients) as opened:
        for_api, for_both = await issued(opened), await issued(opened, resource=(API, FILES))
        for_us, by_opaque = await issued(opened, "bare"), await issued(opened, "opq")
        seen = {
            server: [
                (await told(opened, answer.access_token, caller(server))) is not None
                for answer in (for_api, for_both, for_us, by_opaque)
            ]
            for server in ("rs1", "rs2", "rs3")
        }
        assert {
            "rs1": [True, True, False, True],
            "rs2": [False, True, False, False],
            "rs3": [False, False, True, False],
        } == seen
        assert await told(opened, str(for_api.refresh_token), caller("rs1")) is None
        assert await told(opened, for_api.access_token, caller("rs1", authenticated=False)) is None
        with pytest.raises(Refused):
            await opened.ledger.revoke_token(caller("rs1"), HOME, for_api.access_token)
        assert await told(opened, for_api.access_token) is not None


async def test_under_another_name_its_tokens_are_nobodys(tmp_path: Path) -> None:
    """Verifiers compare `iss` with the issuer that they know; so does introspection. Its client may still end it."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        answer = await issued(opened)
        clock = opened.clock
    options = replace(OPTIONS, issuer="https://moved.example")
    async with open_ledger(tmp_path, clients=None, options=options, clock=clock, seed=2) as opened:
        assert await told(opened, answer.access_token) is None
        explained = await opened.ledger.operators.explain(answer.access_token)
        assert ("access_token_inactive", True) == (explained.verdict, "another issuer" in explained.text)
        again = await opened.refresh(answer)
        assert "https://moved.example" == claims_of(again.access_token)["iss"]
        await opened.ledger.revoke_token(caller(), HOME, answer.access_token)
        assert "access_token_revoked" == opened.topics(answer)[-1]


async def test_what_a_jwt_is_in_plain_words(tmp_path: Path) -> None:
    """`/explain`: good until when, or why not."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        ledger, answer = opened.ledger, await issued(opened)
        good = await ledger.operators.explain(f"  {answer.access_token}\n")
        assert ("access_token_active", answer.grant_id) == (good.verdict, good.grant_id)
        assert "A good access token, until 2026-11-25T10:05:00.000000Z." == good.text
        await ledger.operators.keys_activate(await ledger.operators.keys_rotate())
        await ledger.operators.keys_distrust(1)
        assert (
            "An access token whose signing key 1 is distrusted."
            == (await ledger.operators.explain(answer.access_token)).text
        )
        other = await issued(opened)
        await ledger.revoke_token(caller(), HOME, other.access_token)
        assert "given back" in (await ledger.operators.explain(other.access_token)).text
        await opened.act("revoke", answer.grant_id)
        ended = await ledger.operators.explain(answer.access_token)
        assert ("access_token_inactive", "revoked_by_operator") == (ended.verdict, ended.reason)
        assert "unknown" == (await ledger.operators.explain(answer.access_token[:-4] + "AAAA")).verdict


# ---------------------------------------------------------------- what is none of ours


def forgeries(ring: KeyRing, grant_id: str) -> Iterator[str]:
    """JWTs that our own key has signed, of events that are not there or were no issuance."""
    for v in (2, 3, 4, 99):
        yield made(frozen(v=v), holder(grant_id=grant_id), ring)
    yield made(frozen(), holder(grant_id="0" * 32), ring)


async def test_a_signature_is_not_enough(tmp_path: Path) -> None:
    """I-15: a token must be of an event that issued one, in this format, under this key."""
    async with opened_with(tmp_path, jwt_client(), client("opq", scope=("read",))) as opened:
        ring, answer = opened.ledger.desk.ring, await issued(opened)
        opaque = await issued(opened, "opq", scope=("read",))
        await opened.act("suspend", answer.grant_id)
        await opened.act("reinstate", answer.grant_id)
        for forged in (*forgeries(ring, answer.grant_id), made(frozen(v=1), holder(grant_id=opaque.grant_id), ring)):
            assert await told(opened, forged) is None
            assert "unknown" == (await opened.ledger.operators.explain(forged)).verdict
            await opened.ledger.revoke_token(caller(), HOME, forged)
        key_id = await opened.ledger.operators.keys_rotate()
        ring = opened.ledger.desk.ring
        assert (
            await told(opened, made(frozen(v=1, signing_key_id=key_id), holder(grant_id=answer.grant_id), ring)) is None
        )
        assert "access_token_revoked" not in opened.topics(answer)


def test_nothing_is_read_of_what_is_not_signed() -> None:
    """Neither a longer text nor another kind of one costs more than a look at it."""
    ring, token = known_ring(), made(frozen(), holder())
    assert jwt_access_tokens.Presented(GRANT_ID, 7, 1, ISS) == jwt_access_tokens.parse(ring, token)
    for text in ("", "eyJ", token[:-4] + "AAAA", token + " ", " " + token, "eyJ" + "A" * 2_046, token + "A" * 2_048):
        assert jwt_access_tokens.parse(ring, text) is None
    with pytest.raises(KeyNotHeld):
        jwt_access_tokens.parse(known_ring(), made(frozen(signing_key_id=9), holder(), known_ring(1, 9)))


async def test_a_key_that_this_node_lacks_makes_no_claim(tmp_path: Path) -> None:
    """Another node has signed with it already: the ring's file is read again; until then nothing is said or ended."""
    async with opened_with(tmp_path, jwt_client()) as opened:
        answer = await issued(opened)
        more = opened.ledger.desk.ring.with_new_key(START)
        token = made(frozen(v=1, signing_key_id=2), holder(grant_id=answer.grant_id), more)
        assert await told(opened, token) is None
        with pytest.raises(Refused) as refused:
            await opened.ledger.revoke_token(caller(), HOME, token)
        assert Refusal.UNKNOWN_TOKEN is refused.value.refusal


def test_no_text_of_an_unsigned_token_shows_its_claims() -> None:
    """I-20: they name a person."""
    made_up = jwt_access_tokens.unsigned(known_ring(), ISS, frozen(), holder(subject="alice-of-wonderland"))
    assert "Unsigned(key_id=1)" == repr(made_up)
