"""Sign-ins for tests: verifier and challenge of RFC 7636 appendix B, and short ways from a sign-in to its tokens."""

from typing import Any

import msgspec

from ledger.answers import AuthorizationAnswer, AuthorizationRequest, Caller, Source, TokenAnswer
from ledger.clients import ClientSpec, Operator
from ledger.events import Words
from ledger.policy import STANDARD, Policy
from ledger.refusals import Refused
from tests.ledgers import HOME, ISSUER, SCOPE, Opened, caller, client
from tests.servers import CALLBACK, CHALLENGE, VERIFIER

__all__ = ["CALLBACK", "CHALLENGE", "VERIFIER", "app", "exchange_refused", "exchanged", "sign_in"]


def app(client_id: str = "app", *, auth: str = "client_secret", policy: Policy = STANDARD) -> ClientSpec:
    """A client of the code flow, as a clients file says it."""
    spec = client(client_id, auth=auth, policy=policy)
    settings = msgspec.structs.replace(
        spec.settings, grant_types=("authorization_code", "refresh_token"), redirect_uris=(CALLBACK,)
    )
    return msgspec.structs.replace(spec, settings=settings)


async def sign_in(
    opened: Opened,
    subject: str = "alice",
    *,
    client_id: str = "app",
    scope: Words = SCOPE[:3],
    operator: Operator = ISSUER,
    session: str | None = "session-1",
) -> AuthorizationAnswer:
    """Let a person sign in and agree."""
    request = AuthorizationRequest(
        client_id=client_id, subject=subject, scope=scope, redirect_uri=CALLBACK, challenge=CHALLENGE, session=session
    )
    return await opened.ledger.operators.authorize(operator, request)


async def exchanged(
    opened: Opened,
    code: AuthorizationAnswer | str,
    *,
    client_id: str = "app",
    authenticated: bool = True,
    source: Source = HOME,
    verifier: str | None = VERIFIER,
    redirect_uri: str | None = CALLBACK,
    who: Caller | None = None,
) -> TokenAnswer:
    """Exchange a code as its client does."""
    return await opened.ledger.exchange(
        who or caller(client_id, authenticated=authenticated),
        source,
        code if isinstance(code, str) else code.code,
        verifier=verifier,
        redirect_uri=redirect_uri,
        resource=None,
    )


async def exchange_refused(opened: Opened, code: AuthorizationAnswer | str, **how: Any) -> Refused:
    """Exchange a code that must be refused; the refusal."""
    try:
        await exchanged(opened, code, **how)
    except Refused as refusal:
        return refusal
    raise AssertionError("the code was taken")
