"""The introspection endpoint over a real ledger (RFC 7662)."""

from pathlib import Path

import pytest

from tests.asking import ISSUER_URL, KIOSK, SECOND_ISSUER, asking, basic, bearer, credentials
from tests.wire import Json

NOTHING = b'{"active":false}'


async def test_an_access_token_says_what_it_is_good_for(tmp_path: Path) -> None:
    """IN-4, V90: to its own client."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", subject="alice", acr="gold", amr=["pwd", "otp"], auth_time=1_700_000_000)
        answer = await ledger.form("/introspect", {"token": issued["access_token"]}, headers=basic("www"))
        started = ledger.clock.now // 1_000_000
        assert {
            "active": True,
            "token_use": "access_token",
            "scope": "read openid profile",
            "client_id": "www",
            "sub": "alice",
            "iss": ISSUER_URL,
            "aud": ISSUER_URL,
            "iat": started,
            "exp": started + 300,
            "jti": f"{issued['grant_id']}.1",
            "token_type": "bearer",
            "grant_id": issued["grant_id"],
            "auth_time": 1_700_000_000,
            "acr": "gold",
            "amr": ["pwd", "otp"],
        } == answer.json()


async def test_a_refresh_token_is_active_while_it_is_current(tmp_path: Path) -> None:
    """V92: asking changes nothing; after the rotation the old one is inactive and the new one carries the scope."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", subject="alice")
        asked = {"token": issued["refresh_token"], **credentials("www")}
        for _ in range(2):
            told = (await ledger.form("/oauth/v2/oauth-introspect", asked)).json()
            assert (True, "refresh_token") == (told["active"], told["token_use"])
        rotated = (await ledger.refresh("www", issued["refresh_token"], scope="read")).json()
        assert NOTHING == (await ledger.form("/introspect", asked)).content
        told = (await ledger.form("/introspect", asked | {"token": rotated["refresh_token"]})).json()
        assert ("read", ledger.clock.now // 1_000_000 + 86_400) == (told["scope"], told["exp"])


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_nobody_else_learns_anything(tmp_path: Path, kind: str) -> None:
    """V91, IN-2, I-18: unknown, malformed, foreign and revoked tokens are the same 16 bytes."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        answers = [
            await ledger.form("/introspect", {"token": token, **credentials("oth")})
            for token in (issued[kind], "nope", issued[kind][:-1])
        ]
        await ledger.operator("admin", "POST", f"/grants/{issued['grant_id']}/revoke", {})
        answers.append(await ledger.form("/introspect", {"token": issued[kind], **credentials("www")}))
        assert {(200, NOTHING)} == {(answer.status_code, answer.content) for answer in answers}
        assert 1 == len({tuple(sorted(answer.headers.items())) for answer in answers})


@pytest.mark.parametrize("role", ["auditor", "security", "admin"])
async def test_an_operator_may_ask_about_any_token(tmp_path: Path, role: str) -> None:
    """An operator comes with a bearer token; a client's introspection is no question of operators, so no record."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        for kind in ("access_token", "refresh_token"):
            told = await ledger.form("/introspect", {"token": issued[kind]}, headers=bearer(role))
            assert (True, "www") == (told.json()["active"], told.json()["client_id"])
        assert [] == ledger.asked()


async def test_an_issuer_may_ask_about_what_it_issued(tmp_path: Path) -> None:
    """Of another's grants it learns nothing, as from everything else it may look at."""
    async with asking(tmp_path, more=SECOND_ISSUER) as ledger:
        issued = await ledger.issue("www")
        for kind in ("access_token", "refresh_token"):
            own = await ledger.form("/introspect", {"token": issued[kind]}, headers=bearer("issuer"))
            assert own.json()["active"]
            assert NOTHING == (await ledger.form("/introspect", {"token": issued[kind]}, headers=KIOSK)).content


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({"token": "x"}, {}, (400, "invalid_client", None)),
        ({"token": "x"}, basic("www", "wrong"), (401, "invalid_client", 'Basic realm="token-ledger"')),
        ({"token": "x"}, {"Authorization": "Bearer nobody"}, (401, "invalid_token", "Bearer")),
        ({"token": "x", **credentials("www")}, bearer("admin"), (400, "invalid_request", None)),
        ({**credentials("www")}, {}, (400, "invalid_request", None)),
    ],
)
async def test_the_caller_comes_first_then_the_token(
    tmp_path: Path, fields: Json, headers: Json, expected: tuple[int, str, str | None]
) -> None:
    """V93, IN-1, CA-3."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.form("/introspect", fields, headers=headers)
        assert expected == (answer.status_code, answer.json()["error"], answer.headers.get("www-authenticate"))


async def test_an_expired_access_token_says_nothing_of_the_refresh_token(tmp_path: Path) -> None:
    """`active` speaks of the token presented, and so does `exp`."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        ledger.clock.pass_seconds(301)
        asked = {**credentials("www")}
        assert NOTHING == (await ledger.form("/introspect", {"token": issued["access_token"], **asked})).content
        assert (await ledger.form("/introspect", {"token": issued["refresh_token"], **asked})).json()["active"]
