"""`GET /reuse`: which grants saw a retired token, when, from where, and what came of it."""

from api.answers import Answer, json_answer
from api.endpoint import Call
from api.pages import cursor_of, limit_of, moment_of
from api.reading import Reading
from ledger.application import Ledger
from projections.reuse_incidents import incidents


class Reuse:
    """The endpoint. Incidents add what is counted in memory and stands in no event yet."""

    def __init__(self, ledger: Ledger, reading: Reading) -> None:
        self._ledger = ledger
        self._reading = reading

    async def list(self, call: Call) -> Answer:
        """A page of incidents, oldest first; `since` is inclusive."""
        query = call.query("since", "cursor", "limit")
        since = moment_of("since", query.get("since"))
        after, limit = cursor_of(query.get("cursor")), limit_of(query.get("limit"))
        now, waiting = self._ledger.memory.clock(), self._ledger.desk.presentations.waiting
        go_on = self._reading.go_on()
        page = await self._reading.ask(
            lambda reader: incidents(reader, now, since=since, after=after, limit=limit, waiting=waiting, go_on=go_on)
        )
        await self._ledger.operators.record_read(call.operator, "reuse")
        return json_answer(200, page)
