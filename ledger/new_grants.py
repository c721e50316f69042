"""How every grant begins, issued or authorized: for whom an operator may let it, what is drawn for it, what is kept."""

import msgspec

from ledger.answers import GrantRequest
from ledger.batch import Batch
from ledger.clients import Operator
from ledger.commands import BeginGrant
from ledger.events import GrantEvent
from ledger.grant import Grant
from ledger.memory import Loaded
from ledger.presenting import Desk
from ledger.private import PrivateGrant, commitment, new_nonce, new_salt, new_subject_id, nonce_sha256
from ledger.recorders.private_rows import KEEP_GRANT
from ledger.refusals import Refusal, Refused
from ledger.subjects import keep_subject, subject_id_of
from ledger.tokens import new_grant_id


class NewGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn for a grant that shall begin. Nothing of it is recorded before `begin`."""

    grant_id: str
    subject_id: str
    is_subject_new: bool
    nonce: bytes
    salt: bytes

    def __repr__(self) -> str:
        return f"NewGrant(grant_id={self.grant_id!r})"


def check_issuer(operator: Operator, client_id: str) -> None:
    """Raise Refused (FORBIDDEN) for a client that this issuer is not for."""
    if operator.clients is not None and client_id not in operator.clients:
        raise Refused(Refusal.FORBIDDEN, detail="this issuer may not issue for that client")


def drawn(batch: Batch, desk: Desk, request: GrantRequest) -> NewGrant:
    """An id for the grant, and for its person where they were never seen; the nonce that its tokens follow from."""
    randomness = batch.memory.randomness
    known_id = subject_id_of(batch, desk.ring, request.subject)
    subject_id = known_id or new_subject_id(randomness)
    if known_id is None:  # nothing can have happened to whom nobody ever saw: the store need not be asked
        desk.authority.hold_subjects({subject_id: None})
    return NewGrant(
        subject_id=subject_id,
        is_subject_new=known_id is None,
        grant_id=new_grant_id(batch.now, randomness),
        nonce=new_nonce(randomness),
        salt=new_salt(randomness),
    )


def beginning(batch: Batch, desk: Desk, operator: Operator, request: GrantRequest, new: NewGrant) -> BeginGrant:
    """What the command says, whichever way the grant begins."""
    return BeginGrant(
        at=batch.now,
        command_id=batch.command_id,
        grant_id=new.grant_id,
        client_id=request.client_id,
        subject_id=new.subject_id,
        scope=request.scope,
        resource=request.resource,
        nonce_sha256=nonce_sha256(new.nonce),
        issued_by=operator.requested_by,
        issued_at_least=desk.authority.issued_at_least(request.client_id, new.subject_id),
        session=None if request.session is None else commitment(new.salt, "session", request.session),
        auth_time=request.auth_time,
        acr=request.acr,
        amr=request.amr,
    )


def begin(
    batch: Batch,
    desk: Desk,
    request: GrantRequest,
    new: NewGrant,
    grant: Grant,
    events: list[GrantEvent],
    *,
    device: str | None = None,
    idempotency_mac: bytes | None = None,
    body_mac: bytes | None = None,
) -> Loaded:
    """Append a grant's first events with its private row, and its person's where they were never seen."""
    loaded = batch.create("grant:" + new.grant_id, grant)
    loaded.private = PrivateGrant(new.nonce, new.salt, body_mac)
    batch.append(loaded, events)
    batch.private(
        loaded,
        KEEP_GRANT,
        loaded.id,
        request.client_id,
        new.subject_id,
        new.nonce,
        new.salt,
        device,
        request.session,
        idempotency_mac,
        body_mac,
    )
    if new.is_subject_new:
        keep_subject(batch, desk.ring, request.subject, new.subject_id)
    return loaded
