"""The revocation endpoint over a real ledger (RFC 7009)."""

from pathlib import Path

import pytest

from tests.asking import asking, basic, credentials
from tests.wire import Json


@pytest.mark.parametrize("hint", [{}, {"token_type_hint": "access_token"}, {"token_type_hint": "zzz"}])
async def test_a_refresh_token_ends_its_grant_whatever_the_hint(tmp_path: Path, hint: Json) -> None:
    """V83, V84, RV-4, RV-6: 200 without a body; the grant and its access tokens are over, and no reuse follows."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        fields = {"token": issued["refresh_token"], **credentials("www"), **hint}
        answer = await ledger.form("/oauth/v2/oauth-revoke", fields)
        assert (200, b"", None) == (answer.status_code, answer.content, answer.headers.get("content-type"))
        assert "revoked_by_client" == (await ledger.refresh("www", issued["refresh_token"])).json()["reason"]
        told = await ledger.form("/introspect", {"token": issued["access_token"], **credentials("www")})
        assert b'{"active":false}' == told.content
        again = await ledger.form("/revoke", fields)
        assert (200, b"") == (again.status_code, again.content)


async def test_an_access_token_ends_alone(tmp_path: Path) -> None:
    """RFC 7009 2.1: the grant lives."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        answer = await ledger.form("/revoke", {"token": issued["access_token"], **credentials("www")})
        assert 200 == answer.status_code
        told = await ledger.form("/introspect", {"token": issued["access_token"], **credentials("www")})
        assert b'{"active":false}' == told.content
        assert 200 == (await ledger.refresh("www", issued["refresh_token"])).status_code


async def test_a_retired_token_of_the_owner_ends_the_family(tmp_path: Path) -> None:
    """V89, RV-7: whoever gives an old token back wants the grant gone."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("std")
        newest = (await ledger.refresh("std", issued["refresh_token"])).json()["refresh_token"]
        await ledger.form("/revoke", {"token": issued["refresh_token"], **credentials("std")})
        assert "revoked_by_client" == (await ledger.refresh("std", newest)).json()["reason"]


@pytest.mark.parametrize("kind", ["refresh_token", "access_token"])
async def test_another_clients_token_is_refused_and_lives(tmp_path: Path, kind: str) -> None:
    """V86, RV-5."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        answer = await ledger.form("/revoke", {"token": issued[kind], **credentials("oth")})
        assert (400, "invalid_grant") == (answer.status_code, answer.json()["error"])
        assert 200 == (await ledger.refresh("www", issued["refresh_token"])).status_code


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({"token": "nope", **credentials("www")}, {}, (200, None)),
        ({"token": "nope", "client_id": "spa"}, {}, (200, None)),
        ({"token": "x"}, basic("www", "wrong"), (401, "invalid_client")),
        ({"token": "x"}, {}, (400, "invalid_client")),
        ({"token": "", **credentials("www")}, {}, (400, "invalid_request")),
        ({**credentials("www")}, {}, (400, "invalid_request")),
    ],
)
async def test_the_caller_comes_first_then_the_token(
    tmp_path: Path, fields: Json, headers: Json, expected: tuple[int, str | None]
) -> None:
    """V85, V87, RV-2, RV-8: unknown tokens are no error, unknown callers are."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.form("/revoke", fields, headers=headers)
        error = answer.json()["error"] if answer.content else None
        assert expected == (answer.status_code, error)
        assert (answer.status_code == 401) == ("www-authenticate" in answer.headers)


async def test_a_public_client_may_give_its_token_back(tmp_path: Path) -> None:
    """V88."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("spa")
        answer = await ledger.form("/revoke", {"token": issued["refresh_token"], "client_id": "spa"})
        assert 200 == answer.status_code
        assert 400 == (await ledger.refresh("spa", issued["refresh_token"])).status_code


async def test_get_is_told_to_post(tmp_path: Path) -> None:
    """V87."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("GET", "/revoke?token=x")
        assert (405, "POST") == (answer.status_code, answer.headers["allow"])
