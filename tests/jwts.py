"""Access tokens that are JWTs (RFC 9068): clients that get them, what stands in one, and some that are made up."""

import json
from base64 import urlsafe_b64decode
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ledger import jwt_access_tokens
from ledger.answers import Caller, Introspection, IssueRequest, TokenAnswer
from ledger.clients import ClientSpec, Settings
from ledger.commands import AccessToken
from ledger.events import Words
from ledger.keyring import KeyRing
from ledger.times import SECOND
from tests.ledgers import HOME, ISSUER, LOCAL_OPERATOR, OPTIONS, Opened, caller, open_ledger, with_policy
from tests.rings import GRANT_ID, known_ring

ISS = "https://ledger.example"
API, FILES = "https://api.example", "https://files.example/"


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
    settings = Settings(auth=auth, scope=scope, policy=with_policy(access_token_format="jwt"), resource=resource)
    return ClientSpec(client_id=client_id, settings=settings, secrets=() if auth == "none" else ("Secr3t!",))


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
