"""Whether a grant lives at a moment, and if not, since when, why and by whom."""

from typing import Literal, TypeAlias

import msgspec

from ledger.commands import EpochEnd
from ledger.refusals import Refusal

Status: TypeAlias = Literal["active", "suspended", "revoked", "expired"]


class Standing(msgspec.Struct, gc=False, array_like=True, frozen=True):
    """A grant's status at a moment, and for all but `active` what made it so.

    `at` is when (microseconds): for an expired one the frozen moment that passed. `event_id` names the event that says
    so, None for an expiry that no event says yet. `refusal` is what the owner of a token reads (RFC 6749 5.2).
    """

    status: Status
    reason_class: str | None = None
    at: int | None = None
    event_id: str | None = None
    refusal: Refusal | None = None

    @property
    def ended(self) -> bool:
        """Over for good (I-07); a suspension is not."""
        return self.status in ("revoked", "expired")


ACTIVE = Standing("active")


def revoked(reason_class: str, requested_by: str, at: int, event_id: str) -> Standing:
    """Ended by an event of the grant's own."""
    if requested_by.startswith("client:"):
        refusal = Refusal.REVOKED_BY_CLIENT
    elif reason_class == "reuse":
        refusal = Refusal.REUSE_DETECTED
    else:
        refusal = Refusal.REVOKED_BY_OPERATOR
    return Standing("revoked", reason_class, at, event_id, refusal)


def suspended(reason_class: str, at: int, event_id: str) -> Standing:
    """Stopped until it is reinstated."""
    refusal = Refusal.REUSE_DETECTED if reason_class == "reuse" else Refusal.SUSPENDED
    return Standing("suspended", reason_class, at, event_id, refusal)


def expired(kind: str, expired_at: int, event_id: str | None) -> Standing:
    """Past the moment that was frozen: `idle` or `absolute`."""
    refusal = Refusal.EXPIRED_ABSOLUTE if kind == "absolute" else Refusal.EXPIRED_IDLE
    return Standing("expired", "expiry", expired_at, event_id, refusal)


def ended_by_epoch(end: EpochEnd) -> Standing:
    """Ended with all grants of its client or subject."""
    return Standing("revoked", end.reason_class, end.at, end.event_id, end.refusal)
