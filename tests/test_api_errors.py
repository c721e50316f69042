"""One table from what went wrong to what is answered."""

import json

import pytest

from api.answers import BadRequest
from api.client_auth import InvalidClient, TooManyFailures
from api.errors import TABLE, outcome, told
from api.metrics import OUTCOMES
from api.operators import Unauthorized
from ledger.refusals import Refusal, Refused, Unavailable
from tests.serving import logged
from tests.wire import Json

OWNERS = (
    "rotated", "reuse_detected", "expired_idle", "expired_absolute", "revoked_by_client", "revoked_by_operator",
    "revoked_by_subject", "suspended", "key_distrusted", "no_scope_left",
)  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (Refused(Refusal.UNKNOWN_TOKEN), 400, "invalid_grant", {}),
        (Refused(Refusal.INVALID_SCOPE), 400, "invalid_scope", {}),
        (Refused(Refusal.INVALID_TARGET), 400, "invalid_target", {}),
        (Refused(Refusal.INVALID_REQUEST, detail="before lies ahead"), 400, "invalid_request", {}),
        (Refused(Refusal.TOO_FAST, retry_after_seconds=3), 429, "temporarily_unavailable", {"retry-after": "3"}),
        (Refused(Refusal.NOT_FOUND), 404, "not_found", {}),
        (Refused(Refusal.FORBIDDEN), 403, "insufficient_scope", {}),
        (Refused(Refusal.CONFLICT), 409, "conflict", {}),
        (Refused(Refusal.UNPROCESSABLE), 422, "invalid_request", {}),
        (BadRequest("no"), 400, "invalid_request", {}),
        (InvalidClient(challenge=False), 400, "invalid_client", {}),
        (
            InvalidClient(challenge=True),
            401,
            "invalid_client",
            {"www-authenticate": 'Basic realm="token-ledger"'},
        ),
        (TooManyFailures(8), 429, "temporarily_unavailable", {"retry-after": "8"}),
        (Unavailable(retry_after_seconds=2), 503, "temporarily_unavailable", {"retry-after": "2"}),
        (Unauthorized(), 401, "invalid_token", {"www-authenticate": "Bearer"}),
    ],
)
def test_each_error_has_its_answer(error: Exception, status: int, code: str, headers: dict[str, str]) -> None:
    """RFC 6749 5.2, RFC 6750 3.1, RFC 9110 10.2.3."""
    answer = told(error)
    found = {name.decode(): value.decode() for name, value in answer.headers}
    body = json.loads(answer.body)
    assert (status, code) == (answer.status, body["error"])
    assert headers == {name: found[name] for name in headers}
    assert {"no-store", "no-cache"} == {found["cache-control"], found["pragma"]}


@pytest.mark.parametrize("reason", OWNERS)
def test_an_owner_reads_the_reason_beside_the_public_words(reason: str) -> None:
    """The owner's body is the public one and more."""
    public: Json = json.loads(told(Refused(Refusal.UNKNOWN_TOKEN)).body)
    owners = json.loads(told(Refused(Refusal(reason), event_id="grant:x/3")).body)
    assert {**public, "reason": reason, "event_id": "grant:x/3"} == owners
    assert "event_id" not in json.loads(told(Refused(Refusal(reason))).body)


def test_every_refusal_has_a_line_and_every_owners_reason_is_an_invalid_grant() -> None:
    """A refusal that is added without one must not become a 500."""
    assert set(Refusal) == set(TABLE)
    assert {*OWNERS, "unknown_token"} == {kind.value for kind, (_, code) in TABLE.items() if code == "invalid_grant"}


def test_what_the_store_says_of_its_absence_is_told() -> None:
    """A person at a command must read what to do next."""
    body = json.loads(told(Unavailable("erased, but the log is still read; repeat the command")).body)
    assert "erased, but the log is still read; repeat the command" == body["error_description"]


def test_what_nobody_foresaw_is_500_without_detail_and_one_line_in_the_log() -> None:
    """The client learns nothing of the inside."""
    with logged() as lines:
        answer = told(KeyError("a secret inside"))
    assert (500, {"error": "server_error"}) == (answer.status, json.loads(answer.body))
    assert ["request_failed"] == lines.events


def test_every_outcome_that_can_be_counted_is_on_the_list() -> None:
    """Metrics have closed lists."""
    errors: list[Exception] = [Refused(kind) for kind in Refusal if TABLE[kind][0] in (400, 429)]
    errors += [BadRequest("x"), BadRequest("x", error="unsupported_grant_type"), InvalidClient(challenge=True)]
    errors += [TooManyFailures(1), Unavailable(), ValueError()]
    assert {outcome(error) for error in errors} <= set(OUTCOMES)
