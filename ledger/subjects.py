"""Persons: the private row that turns a subject into an id and back, their epoch, and their erasure."""

from typing import Final

from ledger.acts import Act
from ledger.batch import Batch
from ledger.bounded import make_room
from ledger.epochs import Subject
from ledger.inline import grants_tables
from ledger.keyring import KeyRing
from ledger.memory import SUBJECTS_IN_MEMORY_MAX
from ledger.private import commitment, new_salt, subject_lookup
from ledger.recorders.private_rows import (
    CLAIM_GRANT,
    ERASE_CONTEXTS,
    ERASE_GRANTS,
    ERASE_OWN_REASONS,
    ERASE_REASONS,
    ERASE_SUBJECT,
    KEEP_REASON,
    KEEP_SUBJECT,
)
from ledger.refusals import Unavailable

_DISOWNED: Final = (
    "SELECT s.id FROM {} t JOIN streams s ON s.name = 'grant:' || t.grant_id"
    " LEFT JOIN private_grants p ON p.stream = s.id WHERE t.subject_id = ? AND coalesce(p.subject_id, '') <> ?"
)


def subject_id_of(batch: Batch, ring: KeyRing, subject: str) -> str | None:
    """The id of a person, None where nobody of that name was ever seen (or they were erased)."""
    lookup = subject_lookup(ring, subject)
    if lookup in batch.subjects:
        return batch.subjects[lookup]
    rows = batch.store.within().select("SELECT subject_id FROM private_subjects WHERE lookup = ?", (lookup,))
    return str(rows[0][0]) if rows else None


def known_id_of(batch: Batch, ring: KeyRing, subject: str) -> str | None:
    """As `subject_id_of`, for whoever is to reach all their grants: a person has an id together with their first grant.

    Raises Unavailable where none has it: the row was altered, and nobody can tell which grants are theirs.
    """
    subject_id = subject_id_of(batch, ring, subject)
    if subject_id is not None and not batch.has_grants(subject_id):
        raise Unavailable("no grant is of the id that is stored for this person: it was altered, a backup has it")
    return subject_id


def subject_of(batch: Batch, subject_id: str) -> str | None:
    """The person as issuers call them, of a grant that was found to live; None once they were erased. An erasure moves
    authority, so what is remembered here of somebody who was erased elsewhere is no answer's: it is decided again."""
    known = batch.memory.subjects
    if (subject := known.get(subject_id)) is None:
        rows = batch.store.within().select("SELECT subject FROM private_subjects WHERE subject_id = ?", (subject_id,))
        subject = str(rows[0][0]) if rows else None
        if subject is not None and subject_id not in batch.erased:
            make_room(known, SUBJECTS_IN_MEMORY_MAX)
            known[subject_id] = subject
    return subject


def keep_subject(batch: Batch, ring: KeyRing, subject: str, subject_id: str) -> None:
    """Write the private row of a person who was not known before: only together with an event that names them."""
    lookup = subject_lookup(ring, subject)
    batch.subjects[lookup] = subject_id
    batch.private(None, KEEP_SUBJECT, lookup, subject_id, subject)


def end_subject(
    batch: Batch,
    subject_id: str,
    *,
    requested_by: str,
    reason_class: str,
    before: int | None = None,
    reason: str | None = None,
) -> int:
    """Raise a person's epoch: all their grants end, or with `before` those issued earlier. Returns the number that
    rules now. Writes nothing where that would change nothing."""
    loaded = batch.load_or_create(f"subject:{subject_id}")
    subject = loaded.aggregate
    assert isinstance(subject, Subject)
    act = Act(at=batch.now, command_id=batch.command_id, requested_by=requested_by)
    issued_since = batch.issued_since("subject_id", subject_id, subject.epoch.unbounded)
    code = committed_reason(batch, loaded.name, loaded.v + 1, reason)
    event = subject.decide_revocation(
        subject_id, act, before=before, reason=code, reason_class=reason_class, issued_since=issued_since
    )
    if event is not None:
        batch.append(loaded, [event])
        keep_reason(batch)
    return subject.epoch.number


def committed_reason(batch: Batch, stream: str, v: int, reason: str | None) -> str | None:
    """The commitment of a reason's text for the event that will stand at `stream`/`v`; its private row is written by
    `keep_reason`, once there is such an event."""
    batch.reason = None
    if reason is None:
        return None
    salt = new_salt(batch.memory.randomness)
    batch.reason = (f"{stream}/{v}", salt, reason)
    return commitment(salt, "reason", reason)


def keep_reason(batch: Batch) -> None:
    """Write the private row of the reason that was just committed to."""
    if batch.reason is not None:
        batch.private(None, KEEP_REASON, *batch.reason)
        batch.reason = None


def erase(batch: Batch, ring: KeyRing, subject: str, requested_by: str) -> bool:
    """Remove a person's data: end their live grants, forget their private rows, say so on record. False: never seen.

    Durable with the batch; the pages it stood on are overwritten (secure_delete), and the write-ahead log is to be
    emptied afterwards. Every event and its hash stays as it is; the same person later gets another id.
    """
    subject_id = known_id_of(batch, ring, subject)
    if subject_id is None:
        return False
    lookup = subject_lookup(ring, subject)
    end_subject(batch, subject_id, requested_by="ledger:erase", reason_class="withdrawal")
    loaded = batch.load_or_create(f"subject:{subject_id}")
    assert isinstance(loaded.aggregate, Subject)
    act = Act(at=batch.now, command_id=batch.command_id, requested_by=requested_by)
    event = loaded.aggregate.decide_erasure(subject_id, act)
    if event is not None:
        batch.append(loaded, [event])
    for stream in _disowned(batch, subject_id):
        batch.private(None, CLAIM_GRANT, stream, subject_id)
    batch.private(None, ERASE_CONTEXTS, subject_id)
    batch.private(None, ERASE_REASONS, subject_id)
    batch.private(None, ERASE_OWN_REASONS, loaded.name, loaded.name)
    batch.private(None, ERASE_GRANTS, subject_id)
    batch.private(None, ERASE_SUBJECT, lookup, subject_id)
    batch.subjects[lookup] = None
    batch.forget_person(subject_id)
    return True


def _disowned(batch: Batch, subject_id: str) -> list[object]:
    """The streams of a person's grants whose private row is gone or says that they are somebody else's: none, unless
    the disk or somebody has altered it. Whose they are the projections say, which `rebuild` holds to the events."""
    reads = batch.store.within()
    return [
        stream
        for table in grants_tables(batch.store.inline)
        for (stream,) in reads.select(_DISOWNED.format(table), (subject_id, subject_id))
    ]
