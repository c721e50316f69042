"""What operators and commands do, inside a batch: grants, ends of clients and persons, keys, restores, who looked."""

from collections.abc import Callable, Sequence

import msgspec

from ledger.acts import Act, Beginning
from ledger.answers import EpochAnswer, GrantAct, RestoreReport
from ledger.batch import Batch
from ledger.changes import ApplyReport, compared
from ledger.clients import LOCAL_OPERATOR, Client, ClientSpec, Operator, OperatorSpec
from ledger.commands import GrantCommand, ReinstateGrant, RevokeGrant, SuspendGrant
from ledger.epochs import check_before
from ledger.events import AuditRead, KeyEvent, LedgerRestored, LedgerStarted, LedgerStopped, decode
from ledger.keyring import KeyRing
from ledger.keys import STREAM as KEYS
from ledger.keys import Keys
from ledger.memory import Loaded
from ledger.presenting import Desk, record
from ledger.private import is_reason
from ledger.recorders.private_rows import RAISE_FLOOR
from ledger.refusals import Refusal, Refused
from ledger.secret_hashes import secret_hash
from ledger.snapshots import Journal
from ledger.subjects import committed_reason, end_subject, keep_reason, known_id_of

_LOCALLY = LOCAL_OPERATOR.requested_by


def act_on_grant(
    batch: Batch, desk: Desk, operator: Operator, grant_id: str, act: GrantAct, reason: str | None, trust: str | None
) -> None:
    """Revoke, suspend or reinstate one grant. An act that changes nothing writes nothing.

    Raises Refused: NOT_FOUND, CONFLICT where it has ended (revoking again is none), INVALID_REQUEST.
    """
    _check_reason(reason)
    found = batch.grant(grant_id)
    if found is None:
        raise Refused(Refusal.NOT_FOUND, detail="there is no such grant")
    loaded, grant = found
    if not operator.has("security", "admin"):
        # An issuer may end what it issued, for the clients that it is limited to, and nothing else.
        if act != "revoke":
            raise Refused(Refusal.FORBIDDEN, detail="this role may not do that")
        others = operator.clients is not None and grant.client_id not in operator.clients
        if others or grant.issued_by != operator.requested_by:
            raise Refused(Refusal.NOT_FOUND, detail="there is no such grant")
    code = committed_reason(batch, loaded.name, loaded.v + 1, reason)
    decision = grant.decide(_command(batch, operator, act, code, trust), desk.authority.rules(grant))
    if decision.events:
        record(batch, desk, loaded, decision, None, None)
        keep_reason(batch)


def _command(batch: Batch, operator: Operator, act: GrantAct, reason: str | None, trust: str | None) -> GrantCommand:
    by = operator.requested_by
    if act == "reinstate":
        return ReinstateGrant(at=batch.now, command_id=batch.command_id, reason=reason, requested_by=by, trust=trust)
    # An issuer gives back what its person gave; any other operator ends a grant on the house's own account.
    kind = RevokeGrant if act == "revoke" else SuspendGrant
    reason_class = "termination" if operator.has("security", "admin") else "withdrawal"
    return kind(at=batch.now, command_id=batch.command_id, reason_class=reason_class, reason=reason, requested_by=by)


def revoke_subject(
    batch: Batch, desk: Desk, operator: Operator, subject: str, reason: str | None, before: int | None
) -> EpochAnswer:
    """End all grants of a person, or those issued before a moment. A person never seen is no error."""
    _check_reason(reason)
    check_before(before, batch.now)
    subject_id = known_id_of(batch, desk.ring, subject)
    if subject_id is None:
        return EpochAnswer(known=False, epoch=0)
    epoch = end_subject(
        batch,
        subject_id,
        requested_by=operator.requested_by,
        reason_class="withdrawal",
        before=before,
        reason=reason,
    )
    return EpochAnswer(known=True, epoch=epoch)


def revoke_client(
    batch: Batch, operator: Operator, client_id: str, reason: str | None, before: int | None
) -> EpochAnswer:
    """End all grants of a client, also of a disabled one, or those issued before a moment."""
    _check_reason(reason)
    loaded = batch.load(f"client:{client_id}")
    if loaded is None:
        raise Refused(Refusal.NOT_FOUND, detail="there is no such client")
    client = loaded.aggregate
    assert isinstance(client, Client)
    act = Act(at=batch.now, command_id=batch.command_id, requested_by=operator.requested_by)
    code = committed_reason(batch, loaded.name, loaded.v + 1, reason)
    issued_since = batch.issued_since("client_id", client_id, client.epoch.unbounded)
    event = client.decide_revocation(act, before=before, reason=code, issued_since=issued_since)
    if event is not None:
        batch.append(loaded, [event])
        keep_reason(batch)
    return EpochAnswer(known=True, epoch=client.epoch.number)


def apply(
    batch: Batch,
    desk: Desk,
    clients: Sequence[ClientSpec],
    operators: Sequence[OperatorSpec],
    *,
    serial: int | None,
    dry_run: bool,
) -> ApplyReport:
    """Make clients and operators as a file says, all of it or nothing; with `dry_run` only tell the difference.

    Raises LedgerError: a spec that breaks a rule, a serial lower than the last one applied.
    """
    act = Act(at=batch.now, command_id=batch.command_id, requested_by=_LOCALLY)
    last_serial = batch.serial or None
    events, differences = compared(
        desk.authority.clients,
        desk.authority.operators,
        clients,
        operators,
        act=act,
        serial=serial,
        last_serial=last_serial,
        hash_secret=lambda secret: secret_hash(desk.ring, secret),
    )
    if not dry_run:
        # Each that cannot be appended refuses all of them.
        streams = batch.load_or_create_all([event.stream for event in events])
        for loaded, event in zip(streams, events, strict=True):
            batch.append(loaded, [event])
        if serial is not None and serial != last_serial:
            batch.serial = batch.work.serial = serial
    return ApplyReport(differences=differences, serial=serial, dry_run=dry_run)


def decide_keys(batch: Batch, decide: Callable[[Keys, Act], KeyEvent | None]) -> Keys:
    """One decision on the keys; returns them as they stand then."""
    keys = _keys_of(batch)
    event = decide(keys, Act(at=batch.now, command_id=batch.command_id, requested_by=_LOCALLY))
    if event is not None:
        batch.append(batch.load_or_create(KEYS), [event])
    return keys


def _keys_of(batch: Batch) -> Keys:
    keys = batch.load_or_create(KEYS).aggregate
    assert isinstance(keys, Keys)
    return keys


def first_keys(batch: Batch, ring: KeyRing) -> None:
    """Let a new log name the keys of its ring, and the youngest sign; nothing where another node has just done so."""
    if _keys_of(batch).created_at:
        return
    for key_id in sorted(ring.keys):
        decide_keys(batch, rotation(ring, key_id))
    decide_keys(batch, lambda keys, act: keys.decide_activation(max(ring.keys), act))


def rotation(ring: KeyRing, key_id: int) -> Callable[[Keys, Act], KeyEvent]:
    """The decision to know one more key of a ring."""
    fingerprint = ring.fingerprint(key_id)
    return lambda keys, act: keys.decide_rotation(key_id, fingerprint, act)


def record_read(batch: Batch, operator: Operator, question: str, grant_id: str | None) -> None:
    """Say that an operator asked: one `audit.read` a question, in a stream of its own."""
    loaded, begins = _next(batch, "audit", operator.requested_by)
    batch.append(loaded, [AuditRead(**begins, question=question, grant_id=grant_id)])


def record_life(batch: Batch, kind: type[LedgerStarted] | type[LedgerStopped]) -> None:
    """Say that a server began or ceased to serve this store."""
    loaded, begins = _next(batch, "ledger", _LOCALLY)
    batch.append(loaded, [kind(**begins)])


def _next(batch: Batch, stream: str, requested_by: str) -> tuple[Loaded, Beginning]:
    """How the next event of a stream begins on which nothing is decided."""
    loaded = batch.load_or_create(stream)
    journal = loaded.aggregate
    assert isinstance(journal, Journal)
    act = Act(at=batch.now, command_id=batch.command_id, requested_by=requested_by)
    return loaded, act.begins(stream, journal.v, journal.at)


def record_restore(batch: Batch, ring: KeyRing, lost_position: int, lost_at: str, new_key_id: int) -> RestoreReport:
    """Say that an older backup was put back, let positions go on above the lost ones, and a new key sign.

    The new key is what makes a lost successor unmintable: its generation is derived under another key from here on.
    """
    last = batch.store.within().select("SELECT position, CAST(body AS BLOB) FROM events ORDER BY position DESC LIMIT 1")
    from_position = int(str(last[0][0])) if last else 0
    loaded, begins = _next(batch, "ledger", _LOCALLY)
    batch.memory.position = max(batch.memory.position, lost_position)
    # Above the log's end, too, where others have written on beyond what is lost: so every node sees that it was said.
    batch.private(None, RAISE_FLOOR, max(lost_position, from_position + 1))
    batch.append(loaded, [LedgerRestored(**begins, lost_position=str(lost_position), lost_at=lost_at)])
    decide_keys(batch, rotation(ring, new_key_id))
    decide_keys(batch, lambda keys, by: keys.decide_activation(new_key_id, by))
    return RestoreReport(
        from_position=from_position,
        lost_position=lost_position,
        from_at=_at(last[0][1]) if last else None,
        lost_at=lost_at,
        key_id=new_key_id,
    )


def _at(body: object) -> str | None:
    """When an event happened; None where somebody has altered it."""
    assert isinstance(body, bytes)
    try:
        return decode(body).at
    except msgspec.DecodeError:
        return None


def _check_reason(reason: str | None) -> None:
    if reason is not None and not is_reason(reason):
        raise Refused(Refusal.INVALID_REQUEST, detail="reason has at most 200 characters")
