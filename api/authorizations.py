"""Authorizations over HTTP: what a sign-in page decided becomes a code, and the address to send the person back to.

The sign-in page is somebody else's: it signs the person in, asks for their consent, and posts what came of it here.
"""

from urllib.parse import urlencode

from api.answers import Answer, json_answer
from api.endpoint import Call
from api.shapes import AuthorizationBody, AuthorizationResponse, given
from ledger.answers import AuthorizationRequest
from ledger.operators import Operators


class Authorizations:
    """The endpoint `/authorizations`. `issuer` is what the ledger calls itself in the answer (RFC 9207)."""

    def __init__(self, operators: Operators, issuer: str) -> None:
        self._operators = operators
        self._issuer = issuer

    async def authorize(self, call: Call) -> Answer:
        """Record that a person agreed: 201 with the code, and with the redirect that carries it to the client."""
        body = await call.json(AuthorizationBody)
        resource = given(body.resource)
        amr = given(body.amr)
        request = AuthorizationRequest(
            client_id=body.client_id,
            subject=body.subject,
            # Split, not parsed: `invalid_scope` is sent on to the client, so its address is judged before (RFC 6749
            # 4.1.2.1). Or the page would send people wherever the link says that brought them.
            scope=tuple(body.scope.split(" ")) if body.scope else (),
            redirect_uri=body.redirect_uri,
            challenge=body.code_challenge,
            resource=(resource,) if isinstance(resource, str) else None if resource is None else tuple(resource),
            dpop_jkt=given(body.dpop_jkt),
            session=given(body.session),
            auth_time=given(body.auth_time),
            acr=given(body.acr),
            amr=None if amr is None else tuple(amr),
        )
        found = await self._operators.authorize(call.operator, request)
        redirect_to = with_parameters(
            body.redirect_uri, {"code": found.code, "state": given(body.state), "iss": self._issuer}
        )
        return json_answer(
            201, AuthorizationResponse(code=found.code, expires_in=found.expires_in, redirect_to=redirect_to)
        )


def with_parameters(uri: str, parameters: dict[str, str | None]) -> str:
    """Return the address with parameters added to what its query holds already (RFC 6749 4.1.2, 3.1.2); those that are
    None are left out. The address has no fragment: none can be registered."""
    added = urlencode({name: value for name, value in parameters.items() if value is not None})
    joint = "" if uri.endswith(("?", "&")) else "&" if "?" in uri else "?"
    return f"{uri}{joint}{added}"
