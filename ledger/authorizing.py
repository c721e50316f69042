"""A sign-in page has done its work: what the person agreed to goes on record, and a code is derived from it."""

from msgspec.structs import asdict

from ledger import codes, times
from ledger.answers import AuthorizationAnswer, AuthorizationRequest
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.commands import AuthorizeGrant
from ledger.events import GrantAuthorized
from ledger.grant import Grant
from ledger.new_grants import begin, beginning, check_issuer, drawn
from ledger.presenting import Desk
from ledger.refusals import Unavailable
from ledger.times import SECOND


def authorize(batch: Batch, desk: Desk, operator: Operator, request: AuthorizationRequest) -> AuthorizationAnswer:
    """A grant that begins with a code (RFC 6749 4.1.2). Nothing of the code is at rest: it follows from the nonce.

    Raises Refused: FORBIDDEN for a client that this issuer is not for, and what the rules say of the request.
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
    decision = grant.decide(command, desk.authority.rules_for_issue(request.client_id, new.subject_id))
    authorized = decision.events[0]
    assert isinstance(authorized, GrantAuthorized)
    if authorized.key_id not in desk.ring.keys:
        raise Unavailable(f"the key ring of this node lacks key {authorized.key_id}")
    begin(batch, desk, request, new, grant, decision.events)
    expires_at = times.micros(authorized.code_expires_at)
    return AuthorizationAnswer(
        code=codes.derive(desk.ring, authorized.key_id, new.grant_id, new.nonce),
        expires_in=(expires_at - times.micros(authorized.at)) // SECOND,
    )
