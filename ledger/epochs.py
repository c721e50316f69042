"""Client- and subject-wide ends: a counter per client and per subject whose raise ends all their grants at once.

A grant keeps the numbers that it was issued under. It is ended by epoch iff its client or subject has a raise that is
numbered above the one kept and has no `before`, or whose `before` is later than the grant's `issued_at`. Two numbers
decide that in constant time, because `before` never lies in the future and no grant is issued at a time earlier than
the latest `before` that its client or subject has (`BeginGrant.issued_at_least`).
"""

from collections.abc import Iterable
from typing import TypeAlias, assert_never

import msgspec

from ledger import times
from ledger.acts import Act
from ledger.commands import EpochEnd
from ledger.events import ClientRevoked, SubjectErased, SubjectEvent, SubjectRevoked
from ledger.refusals import Refusal, Refused

Raise: TypeAlias = ClientRevoked | SubjectRevoked


class Epoch(msgspec.Struct, array_like=True):
    """Which grants of one client or subject have ended, in three numbers.

    `number` is the highest raise (0: none), `unbounded` the highest without `before`, `latest_before` the latest
    `before` of any raise in microseconds (0: none has one).
    """

    number: int = 0
    unbounded: int = 0
    latest_before: int = 0

    def hits(self, issued_number: int, issued_at: int) -> bool:
        """Whether a grant issued under `issued_number` at `issued_at` has ended by some raise."""
        return self.unbounded > issued_number or self.latest_before > issued_at

    def adds(self, before: int | None, *, issued_since: bool) -> bool:
        """Whether a further raise would end anything that no raise before it ends.

        One with `before` does not where an equal or later `before` was said already. One without does not where no
        grant was issued under the number `unbounded` or above it, which is what `issued_since` says.
        """
        return issued_since if before is None else before > self.latest_before

    def evolve(self, event: Raise) -> None:
        """Fold a raise in. Folding one that was folded before changes nothing."""
        self.number = max(self.number, event.epoch)
        if event.before is None:
            self.unbounded = max(self.unbounded, event.epoch)
        else:
            self.latest_before = max(self.latest_before, times.micros(event.before))


def check_before(before: int | None, now: int) -> None:
    """A `before` may not lie in the future. Raises Refused."""
    if before is not None and before > now:
        raise Refused(Refusal.INVALID_REQUEST, detail="before lies in the future")


def first_hit(raises: Iterable[Raise], issued_number: int, issued_at: int) -> EpochEnd | None:
    """The raise that ended a grant: of one stream's raises, oldest first, the first that hits it. None: none does."""
    for event in raises:
        if event.epoch <= issued_number:
            continue
        if event.before is None or times.micros(event.before) > issued_at:
            return EpochEnd(
                event_id=event.event_id,
                at=times.micros(event.at),
                refusal=_refusal(event),
                reason_class=event.reason_class,
            )
    return None


def _refusal(event: Raise) -> Refusal:
    if event.reason_class == "reuse":
        return Refusal.REUSE_DETECTED
    return Refusal.REVOKED_BY_SUBJECT if isinstance(event, SubjectRevoked) else Refusal.REVOKED_BY_OPERATOR


class Subject(msgspec.Struct, array_like=True):
    """What ends a person's grants: the aggregate of `subject:<subject_id>`. `Subject()`: nothing happened yet."""

    v: int = 0
    at: int = 0
    epoch: Epoch = msgspec.field(default_factory=Epoch)
    erased: bool = False

    def decide_revocation(
        self,
        subject_id: str,
        act: Act,
        *,
        before: int | None = None,
        reason: str | None = None,
        reason_class: str,
        issued_since: bool = True,
    ) -> SubjectRevoked | None:
        """End the person's grants, or those issued earlier than `before`; None where that changes nothing.

        `reason` is a commitment; `reason_class` is `withdrawal` or `reuse`; `issued_since` as in `Epoch.adds`.
        Raises Refused where `before` lies in the future.
        """
        check_before(before, act.at)
        if not self.epoch.adds(before, issued_since=issued_since):
            return None
        return SubjectRevoked(
            **act.begins(f"subject:{subject_id}", self.v, self.at),
            subject_id=subject_id,
            epoch=self.epoch.number + 1,
            before=None if before is None else times.text(before),
            reason=reason,
            reason_class=reason_class,
        )

    def decide_erasure(self, subject_id: str, act: Act) -> SubjectErased | None:
        """Say that the person's private rows are gone; None where that was said before."""
        if self.erased:
            return None
        return SubjectErased(**act.begins(f"subject:{subject_id}", self.v, self.at), subject_id=subject_id)

    def evolve(self, event: SubjectEvent) -> None:
        """Fold one event in. Never refuses."""
        match event:
            case SubjectRevoked():
                self.epoch.evolve(event)
            case SubjectErased():
                self.erased = True
            case _:
                assert_never(event)
        self.v = event.v
        self.at = times.micros(event.at)
