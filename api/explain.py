"""`POST /explain`: what a token is, and if it is not good, when, why and by whom it ended."""

from api.answers import Answer, json_answer
from api.endpoint import Call
from api.shapes import ExplainBody
from ledger.operators import Operators


class Explain:
    """The endpoint. The token stands in the body: URLs end up in logs."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators

    async def explain(self, call: Call) -> Answer:
        """Explain one token. White space around it is ignored here, and nowhere else."""
        body = await call.json(ExplainBody)
        found = await self._operators.explain(body.token)
        await self._operators.record_read(call.operator, "explain", found.grant_id)
        return json_answer(200, found)
