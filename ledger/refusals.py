"""Why a command is refused: one enum, one exception, and the two errors that are no refusal.

A refusal that changes history is events and a return value of `decide` (`RefusedOutcome`); every other one is raised by
it and leaves nothing behind. Whoever asked is told both as `Refused`, the former once its events are appended: they are
durable before it is heard (I-05). No HTTP status lives here: `api/errors.py` maps these names to answers.
"""

from enum import Enum
from typing import Literal

from ledger.events import ReuseDetected


class Refusal(Enum):
    """The kinds of refusal. The value is the `reason` that the owner of a token reads (RFC 6749 5.2 extension)."""

    # of a token, shown to its owner as `reason`
    ROTATED = "rotated"
    REUSE_DETECTED = "reuse_detected"
    EXPIRED_IDLE = "expired_idle"
    EXPIRED_ABSOLUTE = "expired_absolute"
    REVOKED_BY_CLIENT = "revoked_by_client"
    REVOKED_BY_OPERATOR = "revoked_by_operator"
    REVOKED_BY_SUBJECT = "revoked_by_subject"
    SUSPENDED = "suspended"
    KEY_DISTRUSTED = "key_distrusted"
    NO_SCOPE_LEFT = "no_scope_left"
    # of a token, never explained: unknown, malformed, foreign, wrong secret, wrong key proof
    UNKNOWN_TOKEN = "unknown_token"
    # of a request that is otherwise in order
    INVALID_SCOPE = "invalid_scope"
    INVALID_TARGET = "invalid_target"
    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED_CLIENT = "unauthorized_client"
    TOO_FAST = "too_fast"
    ALREADY_USED = "already_used"
    # of an operator's act
    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    CONFLICT = "conflict"
    UNPROCESSABLE = "unprocessable"


class Refused(Exception):
    """A command was refused, and nothing was recorded but what made it so: a reuse, an expiry, a rollback (I-05).

    `event_id` names the event that made it so, where one did. `counts` says that this presentation is to be counted
    in memory (presented after the end, stragglers and the like); `retry_after_seconds` belongs to `TOO_FAST`.
    `detail` is one line for the person who sent the command: never a token, a secret or what they sent. `reuse` is the
    event where it is a reuse of a refresh token, for whoever tells the operating side. `used` says of `ALREADY_USED`
    whether it is an assertion or a DPoP proof (`SingleUse.kind`).
    """

    def __init__(
        self,
        refusal: Refusal,
        *,
        event_id: str | None = None,
        counts: bool = False,
        detail: str | None = None,
        retry_after_seconds: int | None = None,
        reuse: ReuseDetected | None = None,
        used: Literal["assertion", "dpop"] | None = None,
    ) -> None:
        super().__init__(detail or refusal.value)
        self.refusal = refusal
        self.event_id = event_id
        self.counts = counts
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.reuse = reuse
        self.used = used


class Unavailable(Exception):
    """The store cannot answer now, or whether a commit happened is unknown. Nothing may be concluded: ask again."""

    def __init__(self, detail: str = "the store cannot answer", *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Forgotten(Unavailable):
    """What was asked rests on events that the archive's own time is over for. Nobody can tell any more."""


class LedgerError(Exception):
    """The ledger refuses to open or to go on: one line that says what is wrong and what to do."""
