"""An endpoint of the operating side: method, caller, role, body, one call, one answer, one count.

Nothing is read of a request whose sender is not known, and nothing is parsed of one whose sender may not ask.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from api import errors, forms
from api.answers import Answer, BadRequest, Send, method_not_allowed
from api.context import Contexts
from api.forms import Receive
from api.metrics import Meters
from api.operators import Operators, may
from ledger.clients import Operator

T = TypeVar("T")

QUERY_FIELDS_MAX = 16


class Call:
    """One request of an operator whose role fits; bodies and queries are read when wanted."""

    __slots__ = ("_limit", "_receive", "_who", "address", "scope", "user_agent")

    def __init__(
        self, who: Callable[[], Operator], scope: Any, receive: Receive, limit: int, address: str, user_agent: str
    ) -> None:
        """`who` tells who asks, and raises what it raises where they may not, or not any more."""
        self.scope = scope
        self.address = address
        self.user_agent = user_agent
        self._who = who
        self._receive = receive
        self._limit = limit

    @property
    def operator(self) -> Operator:
        """Who asks, as they are known now: while a body was waited for, their token may have been taken back. Ask last
        before an act stands on it, and on the event loop."""
        return self._who()

    def path(self, name: str) -> str:
        """Return a parameter of the path, decoded."""
        return str(self.scope["path_params"][name])

    def header(self, name: bytes) -> str | None:
        """Return a header's value, None where it is not there. Raises BadRequest where it stands twice."""
        found = [value for key, value in self.scope["headers"] if key == name]
        if len(found) > 1:
            raise BadRequest(f"the header {name.decode()} is given twice")
        return found[0].decode("latin-1") if found else None

    def query(self, *known: str) -> dict[str, str]:
        """Return the query's parameters that have a value. Raises BadRequest for a repeated or unknown one."""
        try:
            text = self.scope["query_string"].decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
        except ValueError:
            raise BadRequest("the query cannot be read") from None
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                raise BadRequest(f"the query may hold {', '.join(known) or 'nothing'}")
            if name in found:
                raise BadRequest(f"{name} is given twice")
            found[name] = value
        return {name: value for name, value in found.items() if value}

    async def json(self, kind: type[T]) -> T:
        """Return the body as the struct `kind`. Raises BadRequest, which names the member that does not fit."""
        return forms.parse_json(self.scope["headers"], await forms.read_body(self._receive, self._limit), kind)

    async def json_and_raw(self, kind: type[T]) -> tuple[T, bytes]:
        """As `json`, with the body as it was sent."""
        body = await forms.read_body(self._receive, self._limit)
        return forms.parse_json(self.scope["headers"], body, kind), body

    async def json_if_any(self, kind: type[T]) -> T:
        """As `json`; a request without a body means one without members."""
        body = await forms.read_body(self._receive, self._limit)
        if not body:
            return msgspec.convert({}, kind)
        return forms.parse_json(self.scope["headers"], body, kind)


class Sendable(Protocol):
    """What an endpoint answers with: an `Answer`, or something longer in the making."""

    status: int

    async def send(self, send: Send) -> None:
        """Hand it to the server."""
        ...


class FrontDesk:
    """What every endpoint needs besides the ledger: contexts, counts, and how much of a body is read."""

    __slots__ = ("body_bytes_max", "contexts", "meters")

    def __init__(self, contexts: Contexts, meters: Meters, body_bytes_max: int) -> None:
        self.contexts = contexts
        self.meters = meters
        self.body_bytes_max = body_bytes_max


class Endpoint(ABC):
    """One path, served as an ASGI application: what `_answer` gives, or raises, is told and counted."""

    def __init__(self, path: str, desk: FrontDesk) -> None:
        self._path = path
        self._desk = desk

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        answer: Sendable
        try:
            answer = await self._answer(scope, receive)
        except forms.ClientGone:
            return
        except Exception as error:
            answer = errors.told(error)
            self._desk.meters.refused(error)
        self._desk.meters.answer(self._path, answer.status)
        await answer.send(send)

    @abstractmethod
    async def _answer(self, scope: Any, receive: Receive) -> Sendable: ...


Handler = Callable[[Call], Awaitable[Sendable]]


class Operated(Endpoint):
    """One path for operators: which roles may use which method, and who handles it."""

    def __init__(
        self, path: str, handlers: Mapping[str, tuple[Sequence[str], Handler]], operators: Operators, desk: FrontDesk
    ) -> None:
        super().__init__(path, desk)
        self._handlers = dict(handlers)
        if "GET" in self._handlers:
            self._handlers["HEAD"] = self._handlers["GET"]
        self._allow = ", ".join(sorted(self._handlers))
        self._operators = operators

    async def _answer(self, scope: Any, receive: Receive) -> Sendable:
        found = self._handlers.get(scope["method"])
        if found is None:
            return method_not_allowed(self._allow)
        roles, handler = found
        address, user_agent = self._desk.contexts.of(scope)

        def who() -> Operator:
            operator = self._operators.caller(scope["headers"], address)
            may(operator, *roles)
            return operator

        may(await self._operators.newest(scope["headers"], address), *roles)
        return await handler(Call(who, scope, receive, self._desk.body_bytes_max, address, user_agent))


class Open(Endpoint):
    """One path that anybody may read with GET."""

    def __init__(self, path: str, handler: Callable[[Any], Awaitable[Answer]], desk: FrontDesk) -> None:
        super().__init__(path, desk)
        self._handler = handler

    async def _answer(self, scope: Any, receive: Receive) -> Sendable:
        return await self._handler(scope) if scope["method"] in ("GET", "HEAD") else method_not_allowed("GET, HEAD")
