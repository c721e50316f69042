"""Bearer tokens and roles of the operating side (RFC 6750): who may ask what, and how a stranger is refused."""

from pathlib import Path

import pytest

from api.operators import bearer_token
from tests.asking import ELSEWHERE, Asking, asking, bearer
from tests.wire import Json

GRANT = "0" * 32
ROLES = ("issuer", "auditor", "security", "admin")
TABLE: list[tuple[str, str, Json, set[str]]] = [
    ("GET", "/grants", None, {*ROLES}),
    ("POST", "/grants", {}, {"issuer"}),
    ("POST", "/grants/search", {}, {*ROLES}),
    ("GET", f"/grants/{GRANT}", None, {*ROLES}),
    ("GET", f"/grants/{GRANT}/events", None, {"auditor", "security", "admin"}),
    ("POST", f"/grants/{GRANT}/revoke", {}, {"issuer", "security", "admin"}),
    ("POST", f"/grants/{GRANT}/suspend", {}, {"security", "admin"}),
    ("POST", f"/grants/{GRANT}/reinstate", {}, {"security", "admin"}),
    ("POST", "/subjects/revoke", {}, {"issuer", "security", "admin"}),
    ("POST", "/clients/www/revoke", {}, {"security", "admin"}),
    ("GET", "/reuse", None, {"security", "admin"}),
    ("POST", "/explain", {}, {"security", "admin"}),
]


@pytest.mark.parametrize(("method", "path", "body", "allowed"), TABLE)
async def test_each_endpoint_knows_its_roles(
    tmp_path: Path, method: str, path: str, body: Json, allowed: set[str]
) -> None:
    """Whoever has none of the roles is refused before anything is read or looked up."""
    async with asking(tmp_path) as ledger:
        for role in ROLES:
            answer = await ledger.operator(role, method, path, body)
            if role in allowed:
                assert answer.status_code in (200, 400, 404), answer.text
            else:
                assert (403, "insufficient_scope") == (answer.status_code, answer.json()["error"])


@pytest.mark.parametrize(("method", "path", "body", "_allowed"), TABLE)
async def test_strangers_are_challenged(tmp_path: Path, method: str, path: str, body: Json, _allowed: set[str]) -> None:
    """RFC 6750 3: no token, an unknown one, a client's credentials."""
    content = {} if body is None else {"json": body}
    async with asking(tmp_path) as ledger:
        for headers in ({}, {"Authorization": "Bearer nobody"}, {"Authorization": "Basic d3d3OlNlY3IzdCE="}):
            answer = await ledger.ask(method, path, headers=headers, **content)
            assert (401, "invalid_token") == (answer.status_code, answer.json()["error"])
            assert "Bearer" == answer.headers["www-authenticate"]


async def test_the_tenth_wrong_token_makes_all_operators_of_an_address_wait(tmp_path: Path) -> None:
    """TE-8: a token names nobody. Other addresses are not affected, and a request without a token is no guess."""
    async with asking(tmp_path) as ledger:
        for _ in range(12):
            assert 401 == (await ledger.ask("GET", "/grants")).status_code
        for _ in range(9):
            assert 401 == (await _listed(ledger, "Bearer guess")).status_code
        tenth = await _listed(ledger, "Bearer guess")
        assert (429, "1") == (tenth.status_code, tenth.headers["retry-after"])
        assert 429 == (await ledger.operator("admin", "GET", "/grants")).status_code
        elsewhere = await ledger.ask("GET", "/grants", headers=bearer("admin"), address=ELSEWHERE)
        assert 200 == elsewhere.status_code
        ledger.seconds.now += 1
        assert 200 == (await ledger.operator("admin", "GET", "/grants")).status_code


async def _listed(ledger: Asking, authorization: str) -> Json:
    return await ledger.ask("GET", "/grants", headers={"Authorization": authorization})


async def test_a_removed_operator_is_a_stranger_at_once(tmp_path: Path) -> None:
    """I-06: what rules operators binds with the next request."""
    async with asking(tmp_path) as ledger:
        assert 200 == (await ledger.operator("admin", "GET", "/grants")).status_code
        await ledger.ledger.operators.apply([], [])
        assert 401 == (await ledger.operator("admin", "GET", "/grants")).status_code


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer abc", "abc"),
        (b"BEARER  abc ", "abc"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Basic abc", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_scheme_is_bearer_in_any_case(header: bytes | None, token: str | None) -> None:
    """RFC 9110 11.1: schemes are case-insensitive."""
    assert token == bearer_token(header)


async def test_whoever_reaches_the_commands_socket_is_local_with_every_role(tmp_path: Path) -> None:
    """The socket's file mode is the authentication; a header adds and takes nothing."""
    async with asking(tmp_path) as ledger:
        for headers in ({}, {"Authorization": "Bearer nobody"}):
            assert 200 == (await ledger.ask("GET", "/reuse", headers=headers, local=True)).status_code
        issued = await ledger.ask(
            "POST", "/grants", json={"client_id": "www", "subject": "x", "scope": "read"}, local=True
        )
        assert 201 == issued.status_code
        assert [("reuse", None, "operator:local")] * 2 == ledger.asked()
