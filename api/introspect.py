"""The introspection endpoint (RFC 7662): is this token active, and what is it good for?

Asked by a client about its own tokens, by a resource server about access tokens that are meant for it, or by an
operator. `active` speaks of the token presented. Whatever is not active, or not for whoever asks, is exactly
`{"active":false}`, which tells nothing else.
"""

from typing import Any

from msgspec import UNSET

from api import forms
from api.answers import Answer, BadRequest, json_answer, method_not_allowed
from api.client_auth import ClientAuth, authorization
from api.dpop import Proofs, Target, proof_of
from api.endpoint import Endpoint, FrontDesk
from api.forms import Receive
from api.grants import issued, only_issuer
from api.operators import Operators, bearer_token
from api.reading import Reading
from api.shapes import Confirmation, IntrospectionResponse
from ledger.answers import Caller, Introspection
from ledger.application import Ledger
from ledger.clients import Operator
from ledger.refusals import Refused
from ledger.times import SECOND
from projections import current_tokens

CREDENTIALS = frozenset({"client_secret", "client_assertion", "client_assertion_type"})


class IntrospectionEndpoint(Endpoint):
    """`POST /introspect`. A bearer token makes the caller an operator; everything else is client authentication."""

    def __init__(
        self,
        ledger: Ledger,
        clients: ClientAuth,
        operators: Operators,
        desk: FrontDesk,
        reading: Reading,
        issuer: str,
        proofs: Proofs,
        target: Target,
    ) -> None:
        super().__init__("/introspect", desk)
        self._ledger = ledger
        self._reading = reading
        self._clients = clients
        self._operators = operators
        self._issuer = issuer
        self._proofs = proofs
        self._target = target
        self._inactive = json_answer(200, {"active": False})

    async def _answer(self, scope: Any, receive: Receive) -> Answer:
        if scope["method"] != "POST":
            return method_not_allowed("POST")
        headers = scope["headers"]
        form = forms.parse(headers, await forms.read_body(receive, self._desk.body_bytes_max))
        address, _ = self._desk.contexts.of(scope)
        asker = await self._asker(scope, form, address)
        token = form.fields.get("token")
        if token is None:
            raise BadRequest("token is missing")
        if isinstance(asker, Caller) and not asker.authenticated:
            asker = self._holder(asker, headers, token)
        try:
            found = await self._ledger.introspect(asker, token)
        except Refused as refusal:
            if isinstance(asker, Caller):
                self._clients.used_again(refusal, asker, address)
            raise
        if found is None or not await self._may_learn(asker, found.grant_id):
            return self._inactive
        return json_answer(200, self._shape(found))

    def _holder(self, caller: Caller, headers: Any, token: str) -> Caller:
        """A public client, with the key that it shows: where its grant is bound to one, it owns nothing without. Like
        everybody's, its proof is worth looking at only with a token that we made."""
        proof = proof_of(headers)
        if proof is None or not self._ledger.is_token(token):
            return caller
        return self._proofs.shown(caller, proof, self._target, nonce_required=False)

    async def _may_learn(self, asker: Caller | Operator, grant_id: str) -> bool:
        """An operator with no role but issuer learns of the grants that it issued, and of no others."""
        issuer = only_issuer(asker) if isinstance(asker, Operator) else None
        if issuer is None:
            return True
        row = await self._reading.ask(lambda reader: current_tokens.one(reader, grant_id))
        return row is not None and issued(issuer, row)

    async def _asker(self, scope: Any, form: forms.Form, address: str) -> Caller | Operator:
        headers = scope["headers"]
        header = authorization(headers)
        if bearer_token(header) is None:
            return await self._clients.by_any_method(header, form.fields, address, scope.get("extensions"))
        if CREDENTIALS & form.fields.keys():
            raise BadRequest("the request authenticates by more than one method")
        return await self._operators.newest(headers, address)

    def _shape(self, found: Introspection) -> IntrospectionResponse:
        access = found.token_use == "access_token"
        bound = found.cnf_jkt is not None or found.cnf_x5t_s256 is not None
        audience = (found.resource or (self._issuer,)) if access else ()
        return IntrospectionResponse(
            active=True,
            token_use=found.token_use,
            scope=" ".join(found.scope),
            client_id=found.client_id,
            sub=found.subject,
            iss=self._issuer,
            aud=(audience[0] if len(audience) == 1 else list(audience)) if audience else None,
            iat=found.issued_at // SECOND,
            exp=None if found.expires_at is None else found.expires_at // SECOND,
            jti=None if found.v is None else f"{found.grant_id}.{found.v}",
            token_type=("DPoP" if found.cnf_jkt is not None else "bearer") if access else None,
            grant_id=found.grant_id,
            cnf=Confirmation(jkt=found.cnf_jkt or UNSET, x5t_s256=found.cnf_x5t_s256 or UNSET) if bound else None,
            auth_time=found.auth_time,
            acr=found.acr,
            amr=None if found.amr is None else list(found.amr),
        )
