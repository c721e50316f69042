"""A sign-in page has done its work: what the person agreed to goes on record, and a code is derived from it."""

from typing import Final

from msgspec.structs import asdict

from ledger import codes, jwt_access_tokens, times
from ledger.answers import AuthorizationAnswer, AuthorizationRequest
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.commands import AccessToken, AuthorizeGrant, ClientRules
from ledger.events import GrantAuthorized
from ledger.grant import Grant
from ledger.lifetimes import access_token_life
from ledger.new_grants import begin, beginning, check_issuer, drawn
from ledger.presenting import Desk
from ledger.refusals import Unavailable
from ledger.times import SECOND

_ANY_KEY: Final = "A" * 43  # as long as each thumbprint is: SHA-256 in base64url


def authorize(batch: Batch, desk: Desk, operator: Operator, request: AuthorizationRequest) -> AuthorizationAnswer:
    """A grant that begins with a code (RFC 6749 4.1.2). Nothing of the code is at rest: it follows from the nonce.

    Raises Refused: FORBIDDEN for a client that this issuer is not for, INVALID_REQUEST for a sign-in that no JWT has
    room for, and what the rules say of the request.
    """
    check_issuer(operator, request.client_id)
    new = drawn(batch, desk, request)
    command = AuthorizeGrant(
        **asdict(beginning(batch, desk, operator, request, new)),
        redirect_uri=request.redirect_uri,
        challenge=request.challenge,
        dpop_jkt=request.dpop_jkt,
    )
    grant = Grant()
    rules = desk.authority.rules_for_issue(request.client_id, new.subject_id)
    decision = grant.decide(command, rules)
    authorized = decision.events[0]
    assert isinstance(authorized, GrantAuthorized)
    if authorized.key_id not in desk.ring.keys:
        raise Unavailable(f"the key ring of this node lacks key {authorized.key_id}")
    assert rules.client is not None
    if rules.client.policy.access_token_format == "jwt":
        _check_room(desk, authorized, rules.client, new.grant_id, request.subject)
    begin(batch, desk, request, new, grant, decision.events)
    expires_at = times.micros(authorized.code_expires_at)
    return AuthorizationAnswer(
        code=codes.derive(desk.ring, authorized.key_id, new.grant_id, new.nonce),
        expires_in=(expires_at - times.micros(authorized.at)) // SECOND,
    )


def _check_room(desk: Desk, authorized: GrantAuthorized, client: ClientRules, grant_id: str, subject: str) -> None:
    """Refuse, before a code exists, a sign-in whose first access token would be too long whatever the exchange asks
    for: its code could never be exchanged. The exchange may ask for one of the resources alone, and shows the keys that
    it must."""
    granted = authorized.resource or client.resource[:1]
    issued_at, expires_at = access_token_life(times.micros(authorized.at), client.policy.access_token_ttl_seconds, None)
    token = AccessToken(
        v=authorized.v + 1,
        scope=authorized.scope,
        resource=(min(granted, key=len),) if granted else None,
        cnf_jkt=authorized.dpop_jkt or (_ANY_KEY if client.dpop_bound else None),
        cnf_x5t_s256=_ANY_KEY if client.certificate_bound else None,
        format="jwt",
        signing_key_id=authorized.key_id,
        issued_at=issued_at,
        expires_at=expires_at,
    )
    holder = jwt_access_tokens.Holder(
        grant_id=grant_id,
        client_id=authorized.client_id,
        subject=subject,
        auth_time=authorized.auth_time,
        acr=authorized.acr,
        amr=authorized.amr,
    )
    jwt_access_tokens.unsigned(desk.ring, desk.issuer, token, holder)
