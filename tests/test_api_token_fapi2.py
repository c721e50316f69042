"""The preset `fapi2` as a whole: signed assertions, DPoP keys, JWT access tokens, a refresh token that stays (D1)."""

from pathlib import Path
from typing import Any

import httpx2

from tests.asking import ISSUER_URL, Asking, asking, basic
from tests.jwts import claims_of
from tests.proofs import new_key, proof, thumbprint
from tests.signers import Signer, derived_key
from tests.wire import TOKEN_PATH

API = "https://api.example"
BANK = Signer("bank", derived_key("bank"), ISSUER_URL)
CLIENTS = BANK.toml(
    policy='"fapi2"',
    resource=f'["{API}"]',
    dpop_bound_access_tokens="true",
    token_endpoint_auth_signing_alg='"ES256"',
    assertion_audience='"issuer"',
)


async def refreshed(ledger: Asking, token: str, key: Any, **more: str) -> httpx2.Response:
    now = ledger.clock.now // 1_000_000
    form = BANK.form(now=now, grant_type="refresh_token", refresh_token=token, **more)
    shown = {} if key is None else {"DPoP": proof(key, ISSUER_URL + TOKEN_PATH, iat=now)}
    return await ledger.form(TOKEN_PATH, form, headers=shown)


async def test_a_refresh_gives_a_jwt_that_is_bound_to_the_key_shown(tmp_path: Path) -> None:
    """FA, D1, DP-4, JA: `cnf.jkt` follows the key, the refresh token stays, a resource server reads the same."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        issued = await ledger.issue("bank", subject="alice", acr="urn:bank:strong")
        for key in (new_key(), new_key()):
            answer = await refreshed(ledger, issued["refresh_token"], key, scope="read")
            assert 200 == answer.status_code, answer.text
            said = answer.json()
            assert ("DPoP", issued["refresh_token"]) == (said["token_type"], said["refresh_token"])
            claims = claims_of(said["access_token"])
            assert {"jkt": thumbprint(key)} == claims["cnf"]
            assert (ISSUER_URL, API, "alice", "bank", "read", "urn:bank:strong") == tuple(
                claims[name] for name in ("iss", "aud", "sub", "client_id", "scope", "acr")
            )
            told = (await ledger.form("/introspect", {"token": said["access_token"]}, headers=basic("rs1"))).json()
            assert told.pop("active")
            assert (told.pop("token_use"), told.pop("token_type")) == ("access_token", "DPoP")
            assert told == claims


async def test_without_key_or_with_a_wrong_one_there_is_none(tmp_path: Path) -> None:
    """DP-5: and nothing is consumed."""
    async with asking(tmp_path, more=CLIENTS) as ledger:
        issued = await ledger.issue("bank")
        bare = await refreshed(ledger, issued["refresh_token"], None)
        assert (400, "invalid_dpop_proof") == (bare.status_code, bare.json()["error"])
        assert 200 == (await refreshed(ledger, issued["refresh_token"], new_key())).status_code
