"""Refusal -> (status, error code): one table, and the one place that turns what went wrong into an answer.

Whoever is not the owner of a token reads the same bytes for an unknown, malformed, foreign, expired, revoked and reused
one (I-19); the owner's body adds `reason` and `event_id`. What nobody foresaw is a 500 without detail; the log has it.
"""

from typing import Final

from api.answers import (
    Answer,
    BadRequest,
    invalid_client,
    invalid_token,
    oauth_error,
)
from api.client_auth import InvalidClient, TooManyFailures
from api.logs import Log
from api.operators import Unauthorized
from ledger.refusals import Refusal, Refused, Unavailable

TABLE: Final[dict[Refusal, tuple[int, str]]] = {
    Refusal.ROTATED: (400, "invalid_grant"),
    Refusal.REUSE_DETECTED: (400, "invalid_grant"),
    Refusal.EXPIRED_IDLE: (400, "invalid_grant"),
    Refusal.EXPIRED_ABSOLUTE: (400, "invalid_grant"),
    Refusal.REVOKED_BY_CLIENT: (400, "invalid_grant"),
    Refusal.REVOKED_BY_OPERATOR: (400, "invalid_grant"),
    Refusal.REVOKED_BY_SUBJECT: (400, "invalid_grant"),
    Refusal.SUSPENDED: (400, "invalid_grant"),
    Refusal.KEY_DISTRUSTED: (400, "invalid_grant"),
    Refusal.NO_SCOPE_LEFT: (400, "invalid_grant"),
    Refusal.UNKNOWN_TOKEN: (400, "invalid_grant"),
    Refusal.INVALID_SCOPE: (400, "invalid_scope"),
    Refusal.INVALID_TARGET: (400, "invalid_target"),
    Refusal.INVALID_REQUEST: (400, "invalid_request"),
    Refusal.UNAUTHORIZED_CLIENT: (400, "unauthorized_client"),
    Refusal.TOO_FAST: (429, "temporarily_unavailable"),
    Refusal.ALREADY_USED: (400, "invalid_client"),
    Refusal.NOT_FOUND: (404, "not_found"),
    Refusal.FORBIDDEN: (403, "insufficient_scope"),
    Refusal.CONFLICT: (409, "conflict"),
    Refusal.UNPROCESSABLE: (422, "invalid_request"),
}
"""Every refusal of the ledger as HTTP says it (RFC 6749 5.2, RFC 8707 2, RFC 6750 3.1). A DPoP proof that was used
before is `invalid_dpop_proof` (RFC 9449 5), an assertion what any wrong credential is."""

PROOF_USED: Final = "the DPoP proof was used before"
TOKEN_REFUSED: Final = "the token is unknown, expired, revoked, or not for this client"

_DESCRIPTIONS: Final[dict[Refusal, str]] = {
    Refusal.TOO_FAST: "this grant is refreshed too fast",
    Refusal.NOT_FOUND: "there is no such thing here",
    Refusal.FORBIDDEN: "this operator may not do that",
    Refusal.INVALID_SCOPE: "the scope is malformed or goes beyond what was granted",
    Refusal.INVALID_TARGET: "the resource goes beyond what was granted",
}

_log = Log("api")


def told(error: Exception) -> Answer:
    """Return the answer that an error comes to. Whatever is none of ours is logged, and answered without detail."""
    match error:
        case Refused():
            return refused(error)
        case BadRequest():
            return error.answer()
        case InvalidClient():
            return invalid_client(error.challenge)
        case TooManyFailures():
            return oauth_error(
                429,
                "temporarily_unavailable",
                "too many failed authentications from this address",
                retry_after_seconds=error.retry_after_seconds,
            )
        case Unavailable():
            return oauth_error(
                503,
                "temporarily_unavailable",
                str(error),
                retry_after_seconds=error.retry_after_seconds,
            )
        case Unauthorized():
            return invalid_token()
        case _:
            _log.exception("request_failed", error)
            return oauth_error(500, "server_error")


def refused(refusal: Refused) -> Answer:
    """Return the answer to a command that the ledger refused."""
    kind = refusal.refusal
    status, code = TABLE[kind]
    if kind is Refusal.ALREADY_USED:
        return (
            invalid_client(False) if refusal.used == "assertion" else oauth_error(status, outcome(refusal), PROOF_USED)
        )
    if kind is Refusal.UNKNOWN_TOKEN:
        return oauth_error(status, code, TOKEN_REFUSED)
    if code == "invalid_grant":
        return oauth_error(status, code, TOKEN_REFUSED, reason=kind.value, event_id=refusal.event_id)
    return oauth_error(
        status,
        code,
        refusal.detail or _DESCRIPTIONS.get(kind),
        retry_after_seconds=refusal.retry_after_seconds,
    )


def outcome(error: Exception) -> str:
    """Return what metrics call an error: a code of the token endpoint (`metrics.OUTCOMES`)."""
    match error:
        case Refused(used="dpop"):
            return "invalid_dpop_proof"
        case Refused():
            return TABLE[error.refusal][1]
        case BadRequest():
            return error.error
        case InvalidClient():
            return "invalid_client"
        case TooManyFailures() | Unavailable():
            return "temporarily_unavailable"
        case _:
            return "server_error"
