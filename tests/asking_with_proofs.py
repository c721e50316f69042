"""The application asked in process by clients that show a DPoP proof (RFC 9449 5), and what it says."""

from typing import Any

import httpx2
from joserfc.jwk import Key

from ledger.times import SECOND
from tests.asking import HOME, ISSUER_URL, Asking, bearer, credentials
from tests.proofs import new_key, proof, thumbprint
from tests.wire import Json

TOKEN = f"{ISSUER_URL}/token"
REVOKE = f"{ISSUER_URL}/revoke"
INTROSPECT = f"{ISSUER_URL}/introspect"

KEY, OTHER_KEY = new_key(), new_key()
BOUND = {"jkt": thumbprint(KEY)}
"""The `cnf` of what is bound to the first of the two."""


def shown(ledger: Asking, key: Key = KEY, htu: str = TOKEN, **changes: Any) -> str:
    """A proof made now."""
    return proof(key, htu, iat=ledger.clock.now // SECOND, **changes)


async def refresh(
    ledger: Asking, client: str, token: str, text: str | None = None, *, address: str = HOME, **more: str
) -> httpx2.Response:
    """Refresh with a proof, or with none."""
    fields = {"grant_type": "refresh_token", "refresh_token": token, **credentials(client), **more}
    headers = None if text is None else {"DPoP": text}
    return await ledger.form("/token", fields, address=address, headers=headers)


def told(answer: httpx2.Response) -> tuple[int, str]:
    """The status, and the error or the type of the token."""
    return answer.status_code, answer.json().get("error", answer.json().get("token_type"))


def topics(ledger: Asking, grant_id: str) -> list[str]:
    """What has happened to a grant."""
    return [event.topic.removeprefix("grant.") for event in ledger.opened.events(f"grant:{grant_id}")]


async def introspected(ledger: Asking, token: str) -> Json:
    """What a resource server is told of a token."""
    return (await ledger.ask("POST", "/introspect", headers=bearer("security"), data={"token": token})).json()
