"""A code exchanged with DPoP (RFC 9449 5, 10): the key that begins a public client's grant is the key of it all."""

from pathlib import Path

import httpx2
import pytest

from tests.asking import Asking, asking
from tests.asking_with_proofs import KEY, OTHER_KEY, introspected, shown, told
from tests.proofs import thumbprint
from tests.wire import Json

VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
CALLBACK = "https://app.example/callback"
SECRET = "C0de!"

CLIENTS = "".join(
    f"""
[[client]]
id = "{name}"
{f'secret = "{SECRET}"' if name == "conf" else 'auth = "none"'}
scope = "read openid profile"
grant_types = ["authorization_code", "refresh_token"]
redirect_uris = ["{CALLBACK}"]
{more}
"""
    for name, more in (
        ("conf", ""),
        ("free", ""),
        ("bound", "dpop_bound_access_tokens = true"),
        ("fresh", "dpop_bound_access_tokens = true\ndpop_nonce_required = true"),
    )
)


async def code_of(ledger: Asking, client: str, **more: Json) -> str:
    asked = {
        "client_id": client, "subject": "alice", "scope": "read openid", "redirect_uri": CALLBACK,
        "code_challenge": CHALLENGE, "code_challenge_method": "S256", **more,
    }  # fmt: skip
    answer = await ledger.operator("issuer", "POST", "/authorizations", asked)
    assert 201 == answer.status_code, answer.text
    return str(answer.json()["code"])


async def exchange(ledger: Asking, client: str, code: str, text: str | None, **changes: str) -> httpx2.Response:
    fields = {
        "grant_type": "authorization_code", "client_id": client, "code": code, "code_verifier": VERIFIER,
        "redirect_uri": CALLBACK, **({"client_secret": SECRET} if client == "conf" else {}), **changes,
    }  # fmt: skip
    return await ledger.form("/token", fields, headers=None if text is None else {"DPoP": text})


async def again(ledger: Asking, client: str, token: str, text: str | None) -> httpx2.Response:
    fields = {"grant_type": "refresh_token", "client_id": client, "refresh_token": token}
    return await ledger.form("/token", fields, headers=None if text is None else {"DPoP": text})


@pytest.mark.parametrize("client", ["free", "bound"])
async def test_the_key_of_the_exchange_binds_a_public_clients_grant(tmp_path: Path, client: str) -> None:
    """DP-3: from then on nobody refreshes without it, whether the client is registered so or not."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        answer = await exchange(ledger, client, await code_of(ledger, client), shown(ledger))
        assert (200, "DPoP") == told(answer)
        body = answer.json()
        assert {"jkt": thumbprint(KEY)} == (await introspected(ledger, body["access_token"]))["cnf"]
        assert {"jkt": thumbprint(KEY)} == (await introspected(ledger, body["refresh_token"]))["cnf"]
        for text in (None, shown(ledger, OTHER_KEY)):
            assert 400 == (await again(ledger, client, body["refresh_token"], text)).status_code
        assert (200, "DPoP") == told(await again(ledger, client, body["refresh_token"], shown(ledger)))


async def test_a_grant_that_began_without_a_key_stays_without(tmp_path: Path) -> None:
    """RFC 9449 5: bound at the exchange or never."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        answer = await exchange(ledger, "free", await code_of(ledger, "free"), None)
        assert (200, "bearer") == told(answer)
        for text, kind in ((shown(ledger), "DPoP"), (shown(ledger, OTHER_KEY), "DPoP"), (None, "bearer")):
            answer = await again(ledger, "free", answer.json()["refresh_token"], text)
            assert (200, kind) == told(answer)


async def test_a_confidential_client_may_change_keys_afterwards(tmp_path: Path) -> None:
    """DP-4."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        body = (await exchange(ledger, "conf", await code_of(ledger, "conf"), shown(ledger))).json()
        fields = {"grant_type": "refresh_token", "client_id": "conf", "client_secret": SECRET}
        fields["refresh_token"] = body["refresh_token"]
        answer = await ledger.form("/token", fields, headers={"DPoP": shown(ledger, OTHER_KEY)})
        assert {"jkt": thumbprint(OTHER_KEY)} == (await introspected(ledger, answer.json()["access_token"]))["cnf"]


@pytest.mark.parametrize("client", ["free", "conf"])
async def test_a_code_for_one_key_is_exchanged_with_that_key_alone(tmp_path: Path, client: str) -> None:
    """DP-7, RFC 9449 10: `dpop_jkt`; another key or none consumes nothing. As fapi2-*-mismatched-dpop-jkt has it."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        code = await code_of(ledger, client, dpop_jkt=thumbprint(KEY))
        for text in (shown(ledger, OTHER_KEY), None):
            assert (400, "invalid_grant") == told(await exchange(ledger, client, code, text))
        assert (200, "DPoP") == told(await exchange(ledger, client, code, shown(ledger)))


async def test_a_challenge_or_a_bad_proof_leaves_the_code_as_it_is(tmp_path: Path) -> None:
    """D5, V77: the same code is sent again and that is no second use."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        code = await code_of(ledger, "fresh")
        assert (400, "invalid_dpop_proof") == told(await exchange(ledger, "fresh", code, None))
        assert (400, "invalid_dpop_proof") == told(await exchange(ledger, "fresh", code, "no.proof.atall"))
        challenge = await exchange(ledger, "fresh", code, shown(ledger))
        assert (400, "use_dpop_nonce") == told(challenge)
        nonce = challenge.headers["dpop-nonce"]
        answer = await exchange(ledger, "fresh", code, shown(ledger, nonce=nonce))
        assert (200, "DPoP") == told(answer)
        (nonce,) = answer.headers.get_list("dpop-nonce")
        answer = await again(ledger, "fresh", answer.json()["refresh_token"], shown(ledger, nonce=nonce))
        assert (200, "DPoP") == told(answer)


async def test_a_second_use_of_a_code_with_another_key_ends_nothing(tmp_path: Path) -> None:
    """PK-3, D6: only who shows all that the exchange showed can be told from a passer-by."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        code = await code_of(ledger, "bound")
        body = (await exchange(ledger, "bound", code, shown(ledger))).json()
        other = await exchange(ledger, "bound", code, shown(ledger, OTHER_KEY))
        assert (400, {"error", "error_description"}) == (other.status_code, set(other.json()))
        answer = await again(ledger, "bound", body["refresh_token"], shown(ledger))
        assert (200, "DPoP") == told(answer)
        assert (400, "invalid_grant") == told(await exchange(ledger, "bound", code, shown(ledger)))
        refused = await again(ledger, "bound", answer.json()["refresh_token"], shown(ledger))
        assert (400, "invalid_grant") == told(refused), "with the right key it is a second use"


async def test_a_proof_used_at_an_exchange_is_used_at_a_refresh(tmp_path: Path) -> None:
    """RFC 9449 11.1: one endpoint, one register."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        text = shown(ledger)
        body = (await exchange(ledger, "bound", await code_of(ledger, "bound"), text)).json()
        answer = await again(ledger, "bound", body["refresh_token"], text)
        assert (400, "invalid_dpop_proof") == told(answer)
