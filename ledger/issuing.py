"""Issuing a grant, once for each Idempotency-Key: an issuer that lost the answer asks again and gets the same."""

from ledger.answers import IssueRequest, TokenAnswer
from ledger.batch import Batch, Loaded
from ledger.clients import Operator
from ledger.commands import IssueGrant, Served
from ledger.events import GrantIssued
from ledger.grant import Grant
from ledger.grant_state import access_token_of
from ledger.presenting import Desk, answer, check_keys, unsigned_jwt
from ledger.private import (
    PrivateGrant,
    body_mac,
    commitment,
    idempotency_mac,
    new_nonce,
    new_salt,
    new_subject_id,
    nonce_sha256,
)
from ledger.recorders.private_rows import KEEP_GRANT
from ledger.refusals import Refusal, Refused
from ledger.subjects import keep_subject, subject_id_of
from ledger.tokens import new_grant_id


def issue(
    batch: Batch, desk: Desk, operator: Operator, request: IssueRequest, key: str | None, body: bytes
) -> TokenAnswer:
    """A new grant with generation 0 and its first access token, or the answer that this Idempotency-Key had before.

    `body` is the request's canonical JSON. Raises Refused: UNPROCESSABLE where the key came with another body, CONFLICT
    where its grant has ended, and what the rules say of the request.
    """
    client = desk.authority.client(request.client_id)
    if operator.clients is not None and request.client_id not in operator.clients:
        raise Refused(Refusal.FORBIDDEN, detail="this issuer may not issue for that client")
    if client is None:
        raise Refused(Refusal.INVALID_REQUEST, detail="client_id names no client")
    mac = None if key is None else idempotency_mac(desk.ring, operator.name, key)
    request_mac = None if key is None else body_mac(desk.ring, body)
    if mac is not None:
        earlier = _issued_before(batch, mac)
        if earlier is not None:
            return _again(batch, desk, *earlier, request, request_mac)
    randomness = batch.memory.randomness
    known_id = subject_id_of(batch, desk.ring, request.subject)
    subject_id = known_id or new_subject_id(randomness)
    grant_id = new_grant_id(batch.now, randomness)
    private = PrivateGrant(
        subject_id=subject_id,
        nonce=new_nonce(randomness),
        salt=new_salt(randomness),
        device=request.device,
        session=request.session,
        idempotency_mac=mac,
        body_mac=request_mac,
    )
    grant = Grant()
    decision = grant.decide(
        _command(batch, desk, operator, request, grant_id, subject_id, private),
        desk.authority.rules_for_issue(request.client_id, subject_id),
    )
    assert isinstance(decision.outcome, Served)
    check_keys(desk.ring, decision.outcome)
    jwt = unsigned_jwt(desk, decision.outcome, grant_id, request, request.subject)
    loaded = batch.create("grant:" + grant_id, grant)
    loaded.private = private
    positions = batch.append(loaded, decision.events)
    keep_private(batch, loaded, request.client_id, private)
    if known_id is None:
        keep_subject(batch, desk.ring, request.subject, subject_id)
    if mac is not None:
        batch.idempotency[mac] = grant_id
    return answer(batch, desk.ring, loaded, grant, decision.outcome, positions, jwt)


def keep_private(batch: Batch, loaded: Loaded, client_id: str, private: PrivateGrant) -> None:
    """Write the private row of a new grant, together with its first event."""
    batch.private(
        loaded,
        KEEP_GRANT,
        loaded.id,
        client_id,
        private.subject_id,
        private.nonce,
        private.salt,
        private.device,
        private.session,
        private.idempotency_mac,
        private.body_mac,
    )


def _command(
    batch: Batch,
    desk: Desk,
    operator: Operator,
    request: IssueRequest,
    grant_id: str,
    subject_id: str,
    private: PrivateGrant,
) -> IssueGrant:
    assert private.nonce is not None
    assert private.salt is not None
    salt = private.salt
    return IssueGrant(
        at=batch.now,
        command_id=batch.command_id,
        grant_id=grant_id,
        client_id=request.client_id,
        subject_id=subject_id,
        scope=request.scope,
        resource=request.resource,
        refresh_token_ttl_seconds=request.refresh_token_ttl_seconds,
        grant_ttl_seconds=request.grant_ttl_seconds,
        nonce_sha256=nonce_sha256(private.nonce),
        issued_by=operator.requested_by,
        issued_at_least=desk.authority.issued_at_least(request.client_id, subject_id),
        session=None if request.session is None else commitment(salt, "session", request.session),
        device=None if request.device is None else commitment(salt, "device", request.device),
        bound_jkt=request.bound_jkt,
        bound_x5t_s256=request.bound_x5t_s256,
        auth_time=request.auth_time,
        acr=request.acr,
        amr=request.amr,
    )


def _issued_before(batch: Batch, mac: bytes) -> tuple[Loaded, Grant] | None:
    """The grant that was issued under an Idempotency-Key, in the store or earlier in this batch."""
    grant_id = batch.idempotency.get(mac)
    if grant_id is None:
        rows = batch.store.within().select(
            "SELECT s.name FROM private_grants p JOIN streams s ON s.id = p.stream WHERE p.idempotency_mac = ?", (mac,)
        )
        if not rows:
            return None
        grant_id = str(rows[0][0]).removeprefix("grant:")
    found = batch.grant(grant_id)
    assert found is not None
    return found if found[0].private is not None else None  # its person is erased in this very batch, the key with it


def _again(
    batch: Batch, desk: Desk, loaded: Loaded, grant: Grant, request: IssueRequest, request_mac: bytes | None
) -> TokenAnswer:
    assert loaded.private is not None
    if loaded.private.body_mac != request_mac:
        raise Refused(Refusal.UNPROCESSABLE, detail="this Idempotency-Key was used for another request")
    rules = desk.authority.rules(grant)
    standing = grant.judge(max(batch.now, grant.at), rules.epoch_end)
    if standing.status not in ("active", "suspended") or loaded.private.nonce is None:
        raise Refused(Refusal.CONFLICT, detail="the grant of this Idempotency-Key has ended")
    issued = batch.event_at(loaded.name, 1)
    assert isinstance(issued, GrantIssued)
    token = access_token_of(issued)
    assert token is not None
    served = Served(
        access_token=token,
        generation=None if grant.generation is None else 0,
        key_id=issued.key_id,
        idle_expires_at=grant.idle_expires_at,
        absolute_expires_at=grant.absolute_expires_at,
        last_v=1 if grant.generation is not None else 2,
    )
    check_keys(desk.ring, served)
    jwt = unsigned_jwt(desk, served, grant.grant_id, grant, request.subject)  # the same request: the same person
    return answer(batch, desk.ring, loaded, grant, served, [], jwt)
