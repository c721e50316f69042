"""The token endpoint (RFC 6749 3.2): a refresh token buys an access token.

The hot path. Served as a raw ASGI application; whatever can be made once is made once, and nothing of a request refers
back to itself, so that memory is freed without the collector.
"""

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from api import errors, forms
from api.answers import Answer, BadRequest, method_not_allowed, token_answer
from api.client_auth import ClientAuth, authorization
from api.endpoint import FrontDesk, Receive, Send
from ledger.answers import Caller, Source
from ledger.application import Ledger

GRANT_TYPE = "refresh_token"


class UnauthorizedClient(BadRequest):
    """The client is who it says, but may not use this grant type (RFC 6749 5.2)."""

    def __init__(self) -> None:
        super().__init__("this client may not use this grant type", error="unauthorized_client")


class TokenEndpoint:
    """`POST /token`. Checks in this order: method, body, client, grant type, parameters; the rest is the ledger's."""

    def __init__(self, ledger: Ledger, clients: ClientAuth, desk: FrontDesk) -> None:
        self._ledger = ledger
        self._clients = clients
        self._desk = desk
        self._grant_types: dict[str, Callable[[Caller, Source, forms.Form], Awaitable[Answer]]] = {
            GRANT_TYPE: self._refresh
        }
        self._not_allowed = method_not_allowed("POST")

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._not_allowed.send(send)
            return
        started = perf_counter()
        try:
            answer = await self._answer(scope, receive)
            outcome = "ok"
        except forms.ClientGone:
            return
        except Exception as error:
            answer = errors.told(error)
            outcome = errors.outcome(error)
            self._desk.meters.refused(error)
        self._desk.meters.token_request(outcome, perf_counter() - started)
        await answer.send(send)

    async def _answer(self, scope: Any, receive: Receive) -> Answer:
        headers = scope["headers"]
        form = forms.parse(headers, await forms.read_body(receive, self._desk.body_bytes_max))
        address, user_agent = self._desk.contexts.of(scope)
        caller = self._clients.caller(authorization(headers), form.fields, address)
        grant_type = form.fields.get("grant_type")
        if grant_type is None:
            raise BadRequest("grant_type is missing")
        exchange = self._grant_types.get(grant_type)
        if exchange is None:
            raise BadRequest("grant_type is not supported here", error="unsupported_grant_type")
        client = self._ledger.authority.client(caller.client_id)
        if client is None or grant_type not in client.settings.grant_types:
            raise UnauthorizedClient
        return await exchange(caller, Source(address, user_agent), form)

    async def _refresh(self, caller: Caller, source: Source, form: forms.Form) -> Answer:
        token = form.fields.get("refresh_token")
        if token is None:
            raise BadRequest("refresh_token is missing")
        scope = form.fields.get("scope")
        # Split, not parsed: a scope is judged after the token, so that a malformed one excuses no reuse (RFC 6749 5.2).
        # What is no word of a scope was never granted, so it is refused then like any other excess.
        words = None if scope is None else tuple(scope.split(" "))
        found = await self._ledger.refresh(caller, source, token, words, form.resource or None)
        return token_answer(
            access_token=found.access_token,
            refresh_token=found.refresh_token,
            scope=found.scope,
            token_type=found.token_type,
            expires_in=found.expires_in,
            refresh_token_timeout=found.refresh_token_timeout,
            authorization_expires_in=found.authorization_expires_in,
            position=found.position if caller.authenticated else None,
        )
