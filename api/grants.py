"""Grants over HTTP: issue, list, search, one, its history, and the acts that end or stop one."""

from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

import msgspec

from api.answers import Answer, BadRequest, json_answer, token_answer
from api.endpoint import Call
from api.operators import ADMIN, AUDITOR, ISSUER, SECURITY
from api.pages import cursor_of, limit_of, moment_of
from api.reading import Reading
from api.shapes import ActBody, IssueBody, ReinstateBody, SearchBody, given
from ledger import scope as scopes
from ledger.answers import GrantAct, IssueRequest
from ledger.application import Ledger
from ledger.clients import Operator
from ledger.policy import IDEMPOTENCY_KEY_CHARACTERS_MAX
from ledger.refusals import Refusal, Refused
from ledger.standing import Status
from projections import grant_history, grant_views
from projections.current_tokens import Row
from projections.grant_views import GrantView

SEE_ALL: Final = (AUDITOR, SECURITY, ADMIN)
READERS: Final = (*SEE_ALL, ISSUER)
STATES: Final[Mapping[str, Status]] = {state: state for state in get_args(Status)}

_GRANT_ID_CHARACTERS: Final = frozenset("0123456789abcdef")


class Grants:
    """The endpoints under `/grants`. An operator with no role but issuer sees, and ends, only what it issued."""

    def __init__(self, ledger: Ledger, reading: Reading) -> None:
        self._ledger = ledger
        self._reading = reading
        self._clock = ledger.memory.clock

    # ------------------------------------------------------------ issuing

    async def issue(self, call: Call) -> Answer:
        """Issue a grant: 201 with its first tokens. With `Idempotency-Key` the same request gets the same answer."""
        key = idempotency_key(call.header(b"idempotency-key"))
        body, raw = await call.json_and_raw(IssueBody)
        resource = given(body.resource)
        cnf = given(body.cnf)
        amr = given(body.amr)
        request = IssueRequest(
            client_id=body.client_id,
            subject=body.subject,
            scope=scopes.parse(body.scope),
            resource=(resource,) if isinstance(resource, str) else None if resource is None else tuple(resource),
            refresh_token_ttl_seconds=given(body.refresh_token_ttl_seconds),
            grant_ttl_seconds=given(body.grant_ttl_seconds),
            device=given(body.device),
            session=given(body.session),
            bound_jkt=None if cnf is None else given(cnf.jkt),
            bound_x5t_s256=None if cnf is None else given(cnf.x5t_s256),
            auth_time=given(body.auth_time),
            acr=given(body.acr),
            amr=None if amr is None else tuple(amr),
        )
        found = await self._ledger.operators.issue(call.operator, request, key, canonical(raw))
        return token_answer(found, found.position, grant_id=found.grant_id, status=201)

    # ------------------------------------------------------------ looking

    async def list(self, call: Call) -> Answer:
        """A page of grants, oldest first."""
        query = call.query("client_id", "state", "cursor", "limit")
        return await self._page(
            call,
            "grants.list",
            client_id=query.get("client_id"),
            state=state_of(query.get("state")),
            after=cursor_of(query.get("cursor")),
            limit=limit_of(query.get("limit")),
        )

    async def search(self, call: Call) -> Answer:
        """A page of one person's grants. A person never seen has none."""
        body = await call.json(SearchBody)
        subject_id = await self._ledger.operators.subject_id(body.subject)
        return await self._page(
            call,
            "grants.search",
            client_id=given(body.client_id),
            # No person has this id, so nobody's grants are found.
            subject_id=subject_id or "",
            state=given(body.state),
            after=cursor_of(given(body.cursor)),
            limit=limit_of(given(body.limit)),
        )

    async def _page(self, call: Call, question: str, **filters: Any) -> Answer:
        operator = call.operator
        issuer = only_issuer(operator)
        page = await self._reading.ask(
            lambda reader: grant_views.grants(
                reader,
                self._clock(),
                issued_by=issuer.requested_by if issuer else None,
                clients=issuer.clients if issuer else None,
                discloses=discloses(operator),
                **filters,
            )
        )
        await self._ledger.operators.record_read(call.operator, question)
        return json_answer(200, page)

    async def one(self, call: Call) -> Answer:
        """A grant as it is now."""
        found = await self._seen(call.operator, grant_id_of(call))
        await self._ledger.operators.record_read(call.operator, "grants.get", found.grant_id)
        return json_answer(200, found)

    async def events(self, call: Call) -> Answer:
        """A page of a grant's history, and with `at` its state then."""
        grant_id = grant_id_of(call)
        query = call.query("at", "cursor", "limit")
        now = self._clock()
        at = moment_of("at", query.get("at"))
        if at is not None and at > now:
            raise BadRequest("at lies in the future")
        after, limit = cursor_of(query.get("cursor")), limit_of(query.get("limit"))
        may_see = discloses(call.operator)
        page = await self._reading.ask(
            lambda reader: grant_history.history(
                reader, grant_id, now, at=at, after=after, limit=limit, discloses=may_see
            )
        )
        if page is None:
            raise Refused(Refusal.NOT_FOUND, detail=None if at is None else "no such grant, or none yet at that moment")
        await self._ledger.operators.record_read(call.operator, "grants.events", grant_id)
        return json_answer(200, page)

    async def _seen(self, operator: Operator, grant_id: str) -> GrantView:
        """The grant as this operator may see it; one that it may not see is not there."""
        issuer = only_issuer(operator)
        seen: list[Row] = []

        def may_see(row: Row) -> bool:
            seen.append(row)
            return discloses(operator)(row)

        found = await self._reading.ask(lambda reader: grant_views.grant(reader, grant_id, self._clock(), may_see))
        if found is None or (issuer is not None and not issued(issuer, seen[0])):
            raise Refused(Refusal.NOT_FOUND)
        return found

    # ------------------------------------------------------------ acting

    async def revoke(self, call: Call) -> Answer:
        """End a grant for good; the answer is the grant."""
        return await self._act(call, "revoke", await call.json_if_any(ActBody))

    async def suspend(self, call: Call) -> Answer:
        """Stop a grant until it is reinstated."""
        return await self._act(call, "suspend", await call.json_if_any(ActBody))

    async def reinstate(self, call: Call) -> Answer:
        """Let a suspended grant go on."""
        return await self._act(call, "reinstate", await call.json_if_any(ReinstateBody))

    async def _act(self, call: Call, act: GrantAct, body: ActBody | ReinstateBody) -> Answer:
        grant_id = grant_id_of(call)
        trust = given(body.trust) if isinstance(body, ReinstateBody) else None
        if only_issuer(call.operator) is not None:
            await self._seen(call.operator, grant_id)  # what it may not see, it may not end
        operator = call.operator
        await self._ledger.operators.act_on_grant(operator, grant_id, act, given(body.reason), trust)
        return json_answer(200, await self._seen(operator, grant_id))


# ---------------------------------------------------------------- parts


def only_issuer(operator: Operator) -> Operator | None:
    """Return the operator where what it sees is limited to what it issued."""
    return None if operator.has(*SEE_ALL) else operator


def issued(issuer: Operator, row: Row) -> bool:
    """Whether a grant was issued by this operator, for one of the clients that it is limited to."""
    return row.issued_by == issuer.requested_by and (issuer.clients is None or row.client_id in issuer.clients)


def discloses(operator: Operator) -> Callable[[Row], bool]:
    """Whose personal data an operator may read: everybody's, or that of the grants it issued."""
    if operator.has(SECURITY, ADMIN):
        return lambda row: True
    if operator.has(ISSUER):
        return lambda row: issued(operator, row)
    return lambda row: False


def grant_id_of(call: Call) -> str:
    """Return the path's grant id. What is none names no grant: NOT_FOUND."""
    grant_id = call.path("grant_id")
    if len(grant_id) != 32 or not _GRANT_ID_CHARACTERS.issuperset(grant_id):
        raise Refused(Refusal.NOT_FOUND)
    return grant_id


def state_of(text: str | None) -> Status | None:
    """Read the query's `state`. Raises BadRequest."""
    if text is None:
        return None
    state = STATES.get(text)
    if state is None:
        raise BadRequest(f"state is one of {', '.join(sorted(STATES))}")
    return state


def idempotency_key(text: str | None) -> str | None:
    """Check an Idempotency-Key: 1–128 printable ASCII characters. White space around it is none of it (RFC 9110 5.5),
    nor where a command brought it without a header. Raises BadRequest."""
    if text is None:
        return None
    text = text.strip(" \t")
    if not 1 <= len(text) <= IDEMPOTENCY_KEY_CHARACTERS_MAX or not (text.isascii() and text.isprintable()):
        raise BadRequest(f"Idempotency-Key is 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} printable ASCII characters")
    return text


def canonical(body: bytes) -> bytes:
    """Return the bytes that every spelling of the same JSON value comes to: members sorted, no spaces."""
    return msgspec.json.encode(msgspec.json.decode(body), order="sorted")
