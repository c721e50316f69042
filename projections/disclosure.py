"""The personal data behind commitments, as long as it is still there. For those who may see it; never stored anew.

An event holds `SHA-256(JSON [salt, name, value])` in place of a context, device, session or reason. What is told here
is that triple, so that whoever reads it can recompute the commitment; once the private rows are erased, nothing is.
A text that somebody has put there since opens no commitment and is told to nobody: it would name another culprit.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from ledger.events import AnyEvent
from ledger.private import commitment, context_value
from ledger.recorders.rows import Reads, StreamKey

SUBJECTS_AT_ONCE = 500

_SUBJECTS: Final = "SELECT subject_id, subject FROM private_subjects WHERE subject_id IN"
_CONTEXTS: Final = ("context", "first_context", "last_context")


class Disclosed(msgspec.Struct, frozen=True):
    """The text behind one commitment. `salt` is lower-case hex."""

    salt: str
    name: str
    value: str


class _Grant(msgspec.Struct, frozen=True):
    """What of a grant's private row opens its commitments."""

    stream: StreamKey
    salt: bytes
    device: str | None
    session: str | None


class Disclosure:
    """Looks private texts up for one answer."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._grants: dict[str, _Grant | None] = {}
        self._subjects: dict[str, str | None] = {}

    def ask_for(self, subject_ids: Collection[str]) -> None:
        """Say of whom `subject` is going to be asked: they are looked up together."""
        new = list({*subject_ids} - self._subjects.keys())
        for first in range(0, len(new), SUBJECTS_AT_ONCE):
            some = new[first : first + SUBJECTS_AT_ONCE]
            self._subjects.update(dict.fromkeys(some))
            rows = self._reads.select(f"{_SUBJECTS} ({', '.join('?' * len(some))})", some)
            self._subjects.update((str(id), str(subject)) for id, subject in rows)

    def subject(self, subject_id: str) -> str | None:
        """Who a `subject_id` is; None once the person was erased."""
        self.ask_for((subject_id,))
        return self._subjects[subject_id]

    def of(self, event: AnyEvent) -> dict[str, Disclosed]:
        """For each commitment among an event's members whose text is still there: member → what opens it."""
        found = {}
        for member in _CONTEXTS:
            said = getattr(event, member, None)
            if said is not None and (opened := self.context(event.stream, said)) is not None:
                found[member] = opened
        for member in ("device", "session"):
            said = getattr(event, member, None)
            if said is not None and (opened := self._given(event.stream, member, said)) is not None:
                found[member] = opened
        said = getattr(event, "reason", None)
        if said is not None and (opened := self.reason(event.event_id, said)) is not None:
            found["reason"] = opened
        return found

    def context(self, stream: str, said: str) -> Disclosed | None:
        """Where a request of a grant came from: `<address>` line feed `<User-Agent>`."""
        grant = self._grant(stream)
        if grant is None:
            return None
        rows = self._reads.select(
            "SELECT address, user_agent FROM private_contexts WHERE stream = ? AND commitment = ?",
            (grant.stream, said),
        )
        if not rows:
            return None
        address, user_agent = rows[0]
        return _opened(said, grant.salt, "context", context_value(str(address), str(user_agent)))

    def reason(self, event_id: str, said: str) -> Disclosed | None:
        """Why an operator acted, in their own words."""
        found = self._reads.reason(event_id)
        return None if found is None else _opened(said, found[0], "reason", found[1])

    def _given(self, stream: str, name: str, said: str) -> Disclosed | None:
        grant = self._grant(stream)
        value = None if grant is None else getattr(grant, name)
        return None if grant is None or value is None else _opened(said, grant.salt, name, value)

    def _grant(self, stream: str) -> _Grant | None:
        if stream not in self._grants:
            rows = self._reads.select(
                "SELECT p.stream, p.salt, p.device, p.session FROM private_grants p"
                " JOIN streams s ON s.id = p.stream WHERE s.name = ? AND p.salt IS NOT NULL",
                (stream,),
            )
            self._grants[stream] = _Grant(*rows[0]) if rows else None  # type: ignore[arg-type]  # the table is STRICT
        return self._grants[stream]


def _opened(said: str, salt: bytes, name: str, value: str) -> Disclosed | None:
    return Disclosed(salt.hex(), name, value) if commitment(salt, name, value) == said else None
