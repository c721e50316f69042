"""Clients that sign assertions (RFC 7523), and a ledger that knows them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from ledger.times import SECOND
from tests.asking import ISSUER_URL, Asking, asking
from tests.ledgers import START
from tests.signers import Signer, derived_key

NOW = START // SECOND
STRICT = Signer("strict", derived_key("strict"), ISSUER_URL)
LEGACY = Signer("legacy", derived_key("legacy"), ISSUER_URL)
REFUSED = b'{"error":"invalid_client","error_description":"client authentication failed"}'
TOKEN_URL = f"{ISSUER_URL}/oauth/v2/oauth-token"
CLIENTS = STRICT.toml() + LEGACY.toml(assertion_audience='"legacy"')


@asynccontextmanager
async def signing(folder: Path, more: str = "", **options: Any) -> AsyncIterator[Asking]:
    async with asking(folder, more=CLIENTS + more, **options) as ledger:
        yield ledger


async def refresh(
    ledger: Asking, signer: Signer, token: str, assertion: str | None = None, *, path: str = "/token", **more: str
) -> httpx2.Response:
    now = ledger.clock.now / SECOND
    fields = {"grant_type": "refresh_token", "refresh_token": token, **signer.form(assertion, now=now), **more}
    return await ledger.form(path, {name: value for name, value in fields.items() if value})


async def taken(ledger: Asking, signer: Signer, token: str, assertion: str | None = None, **more: str) -> str:
    answer = await refresh(ledger, signer, token, assertion, **more)
    assert 200 == answer.status_code, answer.text
    return str(answer.json()["refresh_token"])


async def refused(ledger: Asking, signer: Signer, token: str, assertion: str | None = None, **more: str) -> None:
    answer = await refresh(ledger, signer, token, assertion, **more)
    assert (400, REFUSED) == (answer.status_code, answer.content)
    assert "www-authenticate" not in answer.headers
    ledger.seconds.now += 1000  # what is counted against guessers is another trial's
