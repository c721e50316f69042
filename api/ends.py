"""`POST /subjects/revoke` and `POST /clients/{id}/revoke`: all grants of a person or client end at once."""

from msgspec import UNSET
from msgspec import UnsetType as Unset

from api.answers import Answer, BadRequest, json_answer
from api.endpoint import Call
from api.shapes import ClientEpoch, RevokeClientBody, RevokeSubjectBody, SubjectEpoch
from ledger import times
from ledger.clients import Operator
from ledger.operators import Operators
from ledger.refusals import Refusal, Refused


class Ends:
    """The endpoints. After the answer no refresh of those grants succeeds on any node (I-06)."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators

    async def subject(self, call: Call) -> Answer:
        """End a person's grants; one never seen is no error, and says so."""
        _who_may_end_a_subject(call)
        body = await call.json(RevokeSubjectBody)
        operator = _who_may_end_a_subject(call)
        found = await self._operators.revoke_subject(operator, body.subject, body.reason, _moment(body.before))
        return json_answer(200, SubjectEpoch(known=found.known, epoch=found.epoch if found.known else None))

    async def client(self, call: Call) -> Answer:
        """End a client's grants, also of one that is disabled."""
        client_id = call.path("client_id")
        body = await call.json(RevokeClientBody)
        found = await self._operators.revoke_client(call.operator, client_id, body.reason, _moment(body.before))
        return json_answer(200, ClientEpoch(client_id=client_id, epoch=found.epoch))


def _who_may_end_a_subject(call: Call) -> Operator:
    operator = call.operator
    if operator.clients is not None and not operator.has("security", "admin"):
        raise Refused(Refusal.FORBIDDEN, detail="an issuer that is limited to some clients may not end a subject")
    return operator


def _moment(before: str | Unset) -> int | None:
    if before is UNSET:
        return None
    moment = times.parse(before)
    if moment is None:
        raise BadRequest("before is a time of RFC 3339 with its offset, such as 2026-11-26T12:00:00Z")
    return moment
