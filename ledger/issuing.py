"""Issuing a grant, once for each Idempotency-Key: an issuer that lost the answer asks again and gets the same."""

from msgspec.structs import asdict

from ledger.answering import unmade
from ledger.answers import IssueRequest, TokenAnswer
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.commands import IssueGrant, Served
from ledger.events import GrantIssued
from ledger.grant import Grant
from ledger.grant_state import access_token_of
from ledger.memory import Loaded
from ledger.new_grants import begin, beginning, check_issuer, drawn
from ledger.presenting import Desk, check_keys, standing_of, unsigned_jwt
from ledger.private import body_mac, commitment, idempotency_mac
from ledger.refusals import Refusal, Refused


def issue(
    batch: Batch, desk: Desk, operator: Operator, request: IssueRequest, key: str | None, body: bytes
) -> TokenAnswer:
    """A new grant with generation 0 and its first access token, or the answer that this Idempotency-Key had before.

    `body` is the request's canonical JSON. Raises Refused: UNPROCESSABLE where the key came with another body, CONFLICT
    where its grant has ended, and what the rules say of the request.
    """
    check_issuer(operator, request.client_id)
    if desk.authority.client(request.client_id) is None:
        raise Refused(Refusal.INVALID_REQUEST, detail="client_id names no client")
    mac = None if key is None else idempotency_mac(desk.ring, operator.name, key)
    request_mac = None if key is None else body_mac(desk.ring, body)
    if mac is not None:
        earlier = _issued_before(batch, mac)
        if earlier is not None:
            return _again(batch, desk, *earlier, request, request_mac)
    new = drawn(batch, desk, request)
    command = IssueGrant(
        **asdict(beginning(batch, desk, operator, request, new)),
        refresh_token_ttl_seconds=request.refresh_token_ttl_seconds,
        grant_ttl_seconds=request.grant_ttl_seconds,
        device=None if request.device is None else commitment(new.salt, "device", request.device),
        bound_jkt=request.bound_jkt,
        bound_x5t_s256=request.bound_x5t_s256,
    )
    grant = Grant()
    decision = grant.decide(command, desk.authority.rules_for_issue(request.client_id, new.subject_id))
    assert isinstance(decision.outcome, Served)
    check_keys(desk.ring, decision.outcome)
    jwt = unsigned_jwt(desk, decision.outcome, new.grant_id, request, request.subject)
    loaded = begin(
        batch,
        desk,
        request,
        new,
        grant,
        decision.events,
        device=request.device,
        idempotency_mac=mac,
        body_mac=request_mac,
    )
    if mac is not None:
        batch.idempotency[mac] = new.grant_id
    return unmade(batch, desk, loaded, grant, decision.outcome, jwt).made()


def _issued_before(batch: Batch, mac: bytes) -> tuple[Loaded, Grant] | None:
    """The grant that was issued under an Idempotency-Key, in the store or earlier in this batch."""
    grant_id = batch.idempotency.get(mac)
    if grant_id is None:
        name = batch.store.within().grant_of_key(mac)
        if name is None:
            return None
        grant_id = name.removeprefix("grant:")
    found = batch.grant(grant_id)
    assert found is not None
    return found if found[0].private is not None else None  # its person is erased in this very batch, the key with it


def _again(
    batch: Batch, desk: Desk, loaded: Loaded, grant: Grant, request: IssueRequest, request_mac: bytes | None
) -> TokenAnswer:
    assert loaded.private is not None
    if loaded.private.body_mac != request_mac:
        raise Refused(Refusal.UNPROCESSABLE, detail="this Idempotency-Key was used for another request")
    standing = standing_of(batch, desk, grant)
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
    return unmade(batch, desk, loaded, grant, served, jwt).made()
