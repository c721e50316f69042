"""The token endpoint (RFC 6749 3.2): a refresh token buys an access token, a code the first ones.

The hot path. Served as a raw ASGI application; whatever can be made once is made once, and nothing of a request refers
back to itself, so that memory is freed without the collector.
"""

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, NamedTuple

from api import errors, forms
from api.answers import Answer, BadRequest, Replies, Send, TokenResponse, method_not_allowed, token_answer
from api.client_auth import ClientAuth, authorization
from api.dpop import InvalidProof, Proofs, Target, nonce_header, proof_of
from api.endpoint import FrontDesk
from api.forms import Receive
from api.heads import Headers, OnceMore
from api.metrics import Meters
from ledger.answers import Caller, Source, TokenAnswer
from ledger.application import Ledger
from ledger.authorization import AUTHORIZATION_CODE
from ledger.clients import Client
from ledger.refusals import Refused

REFRESH_TOKEN = "refresh_token"


class UnauthorizedClient(BadRequest):
    """The client is who it says, but may not use this grant type (RFC 6749 5.2)."""

    def __init__(self) -> None:
        super().__init__("this client may not use this grant type", error="unauthorized_client")


class GrantType(NamedTuple):
    """How a grant type is served. `is_ours`: whether the form names what we made, by its shape and tag alone, so that
    a key proof is worth looking at; where it does not, `exchange` refuses it for what it is."""

    is_ours: Callable[[forms.Form], bool]
    exchange: Callable[[Caller, Source, forms.Form], Awaitable[TokenAnswer]]


class TokenEndpoint:
    """`POST /token`. Checks in this order: method, body, client, grant type, parameters, the token's shape, a key proof
    in itself; the rest is the ledger's."""

    def __init__(self, ledger: Ledger, clients: ClientAuth, desk: FrontDesk, proofs: Proofs, target: Target) -> None:
        self._ledger = ledger
        self._clients = clients
        self._desk = desk
        self._proofs = proofs
        self._target = target
        self._grant_types: dict[str, GrantType] = {
            REFRESH_TOKEN: GrantType(self._is_refresh_token, self._refresh),
            AUTHORIZATION_CODE: GrantType(self._is_code, self._exchange),
        }
        self._not_allowed = method_not_allowed("POST")

    @property
    def grant_types(self) -> tuple[str, ...]:
        """Every grant type that is served here, for the metadata (RFC 8414 2)."""
        return tuple(self._grant_types)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._not_allowed.send(send)
            return
        started = perf_counter()
        try:
            body = scope["state"].get("body") if "state" in scope else None
            if body is None:
                body = await forms.read_body(receive, self._desk.body_bytes_max)
                started = perf_counter()  # how long a client takes to send it says nothing of us
            answer = await self._answer(scope, body)
            outcome = "ok"
        except forms.ClientGone:
            return
        except Exception as error:
            answer = errors.told(error)
            outcome = errors.outcome(error)
            self._desk.meters.refused(error)
        self._desk.meters.token_request(outcome, perf_counter() - started)
        await answer.send(send)

    async def _answer(self, scope: Any, body: bytes) -> Answer:
        headers = Headers.of(scope["headers"])
        form = forms.parse(headers, body)
        source = self._desk.contexts.of(scope)
        caller = self._clients.again(headers, form.fields, source.address)
        again = caller is not None
        if caller is None:
            shown, extensions = authorization(headers), scope.get("extensions")
            caller = await self._clients.by_any_method(shown, form.fields, source.address, extensions, headers=headers)
        grant_type = form.fields.get("grant_type")
        if grant_type is None:
            raise BadRequest("grant_type is missing")
        kind = self._grant_types.get(grant_type)
        if kind is None:
            raise BadRequest("grant_type is not supported here", error="unsupported_grant_type")
        client = self._ledger.authority.client(caller.client_id)
        if client is None or grant_type not in client.settings.grant_types:
            raise UnauthorizedClient
        if b"dpop" in headers.first or client.settings.dpop_bound_access_tokens or caller.single_use:
            return await self._with_proof(headers, client, kind, caller, source, form)
        if again and grant_type == REFRESH_TOKEN:
            self._remember(headers, source, form)
        return _told(caller, await kind.exchange(caller, source, form))

    def _remember(self, headers: Headers, source: Source, form: forms.Form) -> None:
        """A client sends for the second time over one connection what differs in the refresh token alone: `once_more`
        serves it from now on."""
        repeating, proven = headers.repeating, headers.proven
        if repeating is None or proven is None or form.resource:
            return
        fields = dict(form.fields)
        fields.pop("refresh_token", None)
        if fields == repeating.fields and "scope" not in fields:
            headers.once_more = OnceMore(repeating, proven, source)

    def once_more(self, headers: Headers, body: bytes, request: Replies) -> bool:
        """Serve a refresh like one that came over the same connection before, of these same headers; False: it is not,
        and nothing has happened. What `__call__` comes to, without a task: the ledger answers `request` itself."""
        known = headers.once_more
        if known is None:
            return False
        form, proven, source = known
        token = forms.repeated_token(form, body)
        if token is None:
            return False
        if not self._clients.holds(proven, source.address):
            return False
        telling = Telling(self._desk.meters, proven.caller, request)
        if not self._ledger.refresh_soon(proven.caller, source, token, telling.tell, telling.prepare):
            return False  # whoever serves it then counts its secret
        self._clients.used_once_more(proven)
        return True

    async def _with_proof(
        self, headers: Headers, client: Client, kind: GrantType, caller: Caller, source: Source, form: forms.Form
    ) -> Answer:
        """Serve a client that shows a key (RFC 9449 5), or has shown an assertion, which is good for one request."""
        proof = proof_of(headers)
        try:
            if kind.is_ours(form) and (proof is not None or client.settings.dpop_bound_access_tokens):
                return await self._bound(proof, client, kind, caller, source, form)
            return _told(caller, await kind.exchange(caller, source, form))
        except Refused as refusal:
            self._clients.used_again(refusal, caller, source.address)
            raise

    async def _bound(
        self, proof: bytes | None, client: Client, kind: GrantType, caller: Caller, source: Source, form: forms.Form
    ) -> Answer:
        """Serve a client that shows a key (RFC 9449 5). A proof that fails has consumed nothing."""
        if proof is None:
            raise InvalidProof("this client is registered to send a DPoP proof with every request")
        nonce_required = bool(client.settings.dpop_nonce_required)
        holder = self._proofs.shown(caller, proof, self._target, nonce_required=nonce_required)
        answer = _told(holder, await kind.exchange(holder, source, form))
        if not nonce_required:
            return answer
        nonce = nonce_header(self._proofs.current_nonce())
        return Answer(answer.status, answer.body, [*answer.headers, nonce])

    def _is_refresh_token(self, form: forms.Form) -> bool:
        token = form.fields.get("refresh_token")
        return token is not None and self._ledger.is_refresh_token(token)

    def _refresh(self, caller: Caller, source: Source, form: forms.Form) -> Awaitable[TokenAnswer]:
        token = form.fields.get("refresh_token")
        if token is None:
            raise BadRequest("refresh_token is missing")
        scope = form.fields.get("scope")
        # Split, not parsed: a scope is judged after the token, so that a malformed one excuses no reuse (RFC 6749 5.2).
        # What is no word of a scope was never granted, so it is refused then like any other excess.
        words = None if scope is None else tuple(scope.split(" "))
        return self._ledger.refresh(caller, source, token, words, form.resource or None)

    def _is_code(self, form: forms.Form) -> bool:
        code = form.fields.get("code")
        return code is not None and self._ledger.is_code(code)

    def _exchange(self, caller: Caller, source: Source, form: forms.Form) -> Awaitable[TokenAnswer]:
        """Exchange a code (RFC 6749 4.1.3). A verifier or address that is missing is judged as a wrong one: by then the
        client and its code are known."""
        code = form.fields.get("code")
        if code is None:
            raise BadRequest("code is missing")
        return self._ledger.exchange(
            caller,
            source,
            code,
            verifier=form.fields.get("code_verifier"),
            redirect_uri=form.fields.get("redirect_uri"),
            resource=form.resource or None,
        )


class Telling:
    """How a refresh that came without a task is answered: made into bytes first, sent once it is durable."""

    __slots__ = ("_answer", "_caller", "_meters", "_request", "_started")

    def __init__(self, meters: Meters, caller: Caller, request: Replies) -> None:
        self._meters = meters
        self._caller = caller
        self._request = request
        self._started = perf_counter()
        self._answer: TokenResponse | None = None

    def prepare(self, found: TokenAnswer) -> None:
        """Make what is going to be said, but for what is not sure yet."""
        self._answer = None if found.unsigned else _told(self._caller, found)

    def tell(self, found: TokenAnswer | BaseException) -> None:
        """Say it."""
        answer: Answer
        outcome = "ok"
        if type(found) is TokenAnswer:
            answer = prepared = self._answer or _told(self._caller, found)
            if self._caller.authenticated:
                prepared.position = found.position
        else:
            assert isinstance(found, Exception)
            answer, outcome = errors.told(found), errors.outcome(found)
            self._meters.refused(found)
        self._meters.token_request(outcome, perf_counter() - self._started)
        self._request.reply(answer)


def _told(caller: Caller, found: TokenAnswer) -> TokenResponse:
    return token_answer(found, found.position if caller.authenticated else None)
