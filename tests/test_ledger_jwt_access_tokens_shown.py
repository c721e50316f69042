"""Access tokens that are JWTs (RFC 9068), shown to us: to ask about, to give back, and what is none of ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ledger import jwt_access_tokens
from ledger.clients import ClientSpec, Settings
from ledger.events import Words
from ledger.keyring import KeyNotHeld, KeyRing
from ledger.refusals import Refusal, Refused
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
from tests.ledgers import HOME, LOCAL_OPERATOR, OPTIONS, START, caller, check_ledger, client, open_ledger
from tests.rings import GRANT_ID, known_ring

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


def resource_server(may_introspect: Words, client_id: str = "rs1") -> ClientSpec:
    settings = Settings(auth="client_secret", may_introspect=may_introspect)
    return ClientSpec(client_id=client_id, settings=settings, secrets=("R!",))


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
        distrusted = await ledger.operators.explain(answer.access_token)
        assert (
            "An access token whose signing key 1 is distrusted since 2026-11-25T10:00:00.000000Z, by operator:local."
            == distrusted.text
        )
        assert ("key_distrusted", opened.events("keys")[-1].event_id, "2026-11-25T10:00:00.000000Z") == (
            distrusted.reason, distrusted.event_id, distrusted.at,
        )  # fmt: skip
        other = await issued(opened)
        await ledger.revoke_token(caller(), HOME, other.access_token)
        assert (
            "An access token that was given back at 2026-11-25T10:00:00.000000Z, by client:www."
            " Who does not introspect takes it until 2026-11-25T10:05:00.000000Z."
            == (await ledger.operators.explain(other.access_token)).text
        )
        await opened.act("revoke", answer.grant_id)
        ended = await ledger.operators.explain(answer.access_token)
        assert ("access_token_inactive", "revoked_by_operator") == (ended.verdict, ended.reason)
        assert "introspect" not in ended.text  # its key left the JWKS: nobody takes it
        last = await issued(opened)
        await opened.act("revoke", last.grant_id)
        assert "until 2026-11-25T10:05:00" in (await ledger.operators.explain(last.access_token)).text
        opened.clock.pass_seconds(300)
        assert "introspect" not in (await ledger.operators.explain(last.access_token)).text
        assert "unknown" == (await ledger.operators.explain(answer.access_token[:-4] + "AAAA")).verdict


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
