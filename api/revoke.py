"""The revocation endpoint (RFC 7009): a client gives a token back."""

from typing import Any

from api import forms
from api.answers import Answer, BadRequest, empty_answer, method_not_allowed
from api.client_auth import ClientAuth, authorization
from api.dpop import Proofs, Target, proof_of
from api.endpoint import Endpoint, FrontDesk
from api.forms import Receive
from ledger.answers import Source
from ledger.application import Ledger
from ledger.refusals import Refused


class RevocationEndpoint(Endpoint):
    """`POST /revoke`. 200 without a body for every token of the client's own, and for what is no token (RFC 7009 2.2).

    `token_type_hint` changes nothing: a token says itself what it is. A public client whose grant is bound to a key
    shows it here too, or is not the token's owner; a client that authenticates is that without.
    """

    def __init__(self, ledger: Ledger, clients: ClientAuth, desk: FrontDesk, proofs: Proofs, target: Target) -> None:
        super().__init__("/revoke", desk)
        self._ledger = ledger
        self._clients = clients
        self._proofs = proofs
        self._target = target

    async def _answer(self, scope: Any, receive: Receive) -> Answer:
        if scope["method"] != "POST":
            return method_not_allowed("POST")
        headers = scope["headers"]
        form = forms.parse(headers, await forms.read_body(receive, self._desk.body_bytes_max))
        address, user_agent = self._desk.contexts.of(scope)
        shown, extensions = authorization(headers), scope.get("extensions")
        caller = await self._clients.by_any_method(shown, form.fields, address, extensions)
        token = form.fields.get("token")
        if token is None:
            raise BadRequest("token is missing")
        proof = None if caller.authenticated else proof_of(headers)
        if proof is not None and self._ledger.is_token(token):
            caller = self._proofs.shown(caller, proof, self._target, nonce_required=False)
        try:
            await self._ledger.revoke_token(caller, Source(address, user_agent), token)
        except Refused as refusal:
            self._clients.used_again(refusal, caller, address)
            raise
        return empty_answer()
