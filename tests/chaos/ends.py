"""Grants that are ended under load: what was acknowledged as over must stay over, whatever happens to the server."""

import itertools
import json
from dataclasses import dataclass
from random import Random

from tests.chaos.exchange import Line
from tests.servers import OPERATORS, Server
from tests.wire import FORM, REVOKE_PATH, Answer, Json, form_bytes, request_bytes

KINDS = {
    "reuse": {"reuse_detected"},
    "client": {"revoked_by_client"},
    "operator": {"revoked_by_operator"},
    "subject": {"revoked_by_subject"},
}
"""How a grant is ended, and the reasons its client may read from then on (RFC 6749 5.2)."""


@dataclass
class End:
    """One grant that was ended: and its token that would be current otherwise."""

    grant_id: str
    client: str
    token: str
    kind: str


class Ender:
    """Issues grants, uses them, ends them, one after the other; remembers each end that was acknowledged."""

    def __init__(self, server: Server, chance: Random) -> None:
        self.server = server
        self.chance = chance
        self.ends: list[End] = []
        self.faults: list[str] = []
        self._line = Line(server)
        self._numbers = itertools.count()

    async def step(self) -> None:
        """Issue, refresh, end. Raises Unanswered."""
        kind = self.chance.choice(list(KINDS))
        client = "www" if kind == "reuse" else "std"
        subject = f"ended-{self.chance.getrandbits(64):016x}-{next(self._numbers)}"
        asked = {"client_id": client, "subject": subject, "scope": "read"}
        issued = await self._operator("issuer", "/grants", asked)
        if issued.status != 201:
            return self._check(issued, {503})
        body = issued.json()
        refreshed = await self._line.ask(self.server.refresh_request(client, body["refresh_token"]))
        if refreshed.status != 200:
            return self._check(refreshed, {503})
        end = End(body["grant_id"], client, refreshed.json()["refresh_token"], kind)
        told = await self._end(end, body["refresh_token"], subject)
        self._check(told, {400 if kind == "reuse" else 200, 503})
        if told.status == 400 and told.json().get("reason") != "reuse_detected":
            self.faults.append(f"{end.grant_id}: reuse was answered {told.body!r}")
        elif told.status != 503:
            self.ends.append(end)
        return None

    async def _end(self, end: End, retired: str, subject: str) -> Answer:
        if end.kind == "reuse":
            return await self._line.ask(self.server.refresh_request(end.client, retired))
        if end.kind == "client":
            body = form_bytes({"token": end.token, **self.server.credentials(end.client)})
            return await self._line.ask(request_bytes("POST", REVOKE_PATH, headers={"Content-Type": FORM}, body=body))
        if end.kind == "operator":
            return await self._operator("admin", f"/grants/{end.grant_id}/revoke", {"reason": "over"})
        return await self._operator("security", "/subjects/revoke", {"subject": subject, "reason": "over"})

    async def _operator(self, role: str, path: str, body: Json) -> Answer:
        headers = {"Authorization": f"Bearer {OPERATORS[role]}", "Content-Type": "application/json"}
        return await self._line.ask(request_bytes("POST", path, headers=headers, body=json.dumps(body).encode()))

    def _check(self, answer: Answer, allowed: set[int]) -> None:
        if answer.status not in allowed:
            self.faults.append(f"ending: {answer.status} {answer.body!r}")

    async def confirm(self) -> None:
        """Present the token of every grant that is over: it must be refused, with the reason it was ended for."""
        for end in self.ends:
            answer = await self._line.ask(self.server.refresh_request(end.client, end.token))
            if answer.status != 400 or answer.json().get("reason") not in KINDS[end.kind]:
                self.faults.append(f"{end.grant_id}: ended by {end.kind}, then {answer.status} {answer.body!r}")
        self.close()

    def close(self) -> None:
        self._line.close()
