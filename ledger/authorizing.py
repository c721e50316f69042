"""A sign-in page has done its work: what the person agreed to goes on record, and a code is derived from it."""

from ledger import codes, times
from ledger.answers import AuthorizationAnswer, AuthorizationRequest
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.commands import AuthorizeGrant
from ledger.events import GrantAuthorized
from ledger.grant import Grant
from ledger.issuing import keep_private
from ledger.presenting import Desk
from ledger.private import PrivateGrant, commitment, new_nonce, new_salt, new_subject_id, nonce_sha256
from ledger.refusals import Refusal, Refused, Unavailable
from ledger.subjects import keep_subject, subject_id_of
from ledger.times import SECOND
from ledger.tokens import new_grant_id


def authorize(batch: Batch, desk: Desk, operator: Operator, request: AuthorizationRequest) -> AuthorizationAnswer:
    """A grant that begins with a code (RFC 6749 4.1.2). Nothing of the code is at rest: it follows from the nonce.

    Raises Refused: FORBIDDEN for a client that this issuer is not for, and what the rules say of the request.
    """
    if operator.clients is not None and request.client_id not in operator.clients:
        raise Refused(Refusal.FORBIDDEN, detail="this issuer may not issue for that client")
    randomness = batch.memory.randomness
    known_id = subject_id_of(batch, desk.ring, request.subject)
    subject_id = known_id or new_subject_id(randomness)
    grant_id = new_grant_id(batch.now, randomness)
    nonce, salt = new_nonce(randomness), new_salt(randomness)
    command = AuthorizeGrant(
        at=batch.now,
        command_id=batch.command_id,
        grant_id=grant_id,
        client_id=request.client_id,
        subject_id=subject_id,
        scope=request.scope,
        resource=request.resource,
        redirect_uri=request.redirect_uri,
        challenge=request.challenge,
        nonce_sha256=nonce_sha256(nonce),
        issued_by=operator.requested_by,
        issued_at_least=desk.authority.issued_at_least(request.client_id, subject_id),
        dpop_jkt=request.dpop_jkt,
        session=None if request.session is None else commitment(salt, "session", request.session),
        auth_time=request.auth_time,
        acr=request.acr,
        amr=request.amr,
    )
    grant = Grant()
    decision = grant.decide(command, desk.authority.rules_for_issue(request.client_id, subject_id))
    authorized = decision.events[0]
    assert isinstance(authorized, GrantAuthorized)
    if authorized.key_id not in desk.ring.keys:
        raise Unavailable(f"the key ring of this node lacks key {authorized.key_id}")
    loaded = batch.create("grant:" + grant_id, grant)
    loaded.private = PrivateGrant(subject_id, nonce, salt, session=request.session)
    batch.append(loaded, decision.events)
    keep_private(batch, loaded, request.client_id, loaded.private)
    if known_id is None:
        keep_subject(batch, desk.ring, request.subject, subject_id)
    expires_at = times.micros(authorized.code_expires_at)
    return AuthorizationAnswer(
        code=codes.derive(desk.ring, authorized.key_id, grant_id, nonce),
        expires_in=(expires_at - times.micros(authorized.at)) // SECOND,
    )
