"""Who is calling: client authentication (RFC 6749 2.3), one function per method.

A client authenticates by exactly one method a request. Everything here happens in memory and costs the same for a
client that exists and for one that does not; a failure leaves no trace but a count, and slows its source down (TE-8).
`presented` tells methods apart, `METHODS` who may. An assertion (RFC 7523) is judged in `assertions.py`, and what it
shows may be used once; only its check may wait, for keys that lie elsewhere. A certificate (RFC 8705) authenticates
those alone that are registered for it and send nothing else; beside every other method it is the proof of a key.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from hmac import compare_digest
from typing import Any, NoReturn, TypeAlias
from urllib.parse import unquote, unquote_plus

import msgspec

from api.answers import BadRequest, Header
from api.assertions import JWT_BEARER, PRIVATE_KEY_JWT, Assertion, Assertions, read
from api.certificates import ClientCertificates
from api.heads import Headers, Proven
from api.metrics import Meters
from api.throttle import UNKNOWN, Throttle
from ledger.answers import Caller
from ledger.application import Ledger
from ledger.clients import Client
from ledger.refusals import Refused
from ledger.secret_hashes import secret_matches

BASIC = "client_secret_basic"
POST = "client_secret_post"
NONE = "none"
ASSERTION_TYPE = "client_assertion_type"
"""The parameter that says: by assertion."""

METHODS: dict[str, frozenset[str]] = {
    "client_secret": frozenset({BASIC, POST}),
    "client_secret_basic": frozenset({BASIC}),
    "client_secret_post": frozenset({POST}),
    "private_key_jwt": frozenset({PRIVATE_KEY_JWT}),
    "none": frozenset({NONE}),
}
"""What a client registered as `auth` may use; one that is not listed here cannot authenticate by any of these."""

Extensions: TypeAlias = Mapping[str, Any] | None

_NOBODY: frozenset[str] = frozenset()


class InvalidClient(Exception):
    """The caller is no client, or did not prove to be the one it names (RFC 6749 5.2 `invalid_client`).

    `challenge`: it used an Authorization header, so the answer is 401 with `WWW-Authenticate`.
    """

    def __init__(self, *, challenge: bool) -> None:
        super().__init__("invalid_client")
        self.challenge = challenge


class TooManyFailures(Exception):
    """This caller failed too often: its credentials, right or wrong, are not looked at for a while (TE-8)."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("too many failed authentications")
        self.retry_after_seconds = retry_after_seconds


class _Unproven(Exception):
    """What came does not show who sent it, as far as is known here; `who` this counts against."""

    def __init__(self, *who: str) -> None:
        super().__init__("the client has not shown who it is")
        self.who = who


class Presented(msgspec.Struct, frozen=True):
    """What a request says about its caller. `pairs` are the readings of one id and one secret, none where unreadable;
    a secret of None was not sent. `method` is the RFC 8414 name, empty where it is none that we know; an assertion that
    cannot be read is None."""

    method: str
    pairs: tuple[tuple[str, str | None], ...]
    assertion: Assertion | None = None

    def __repr__(self) -> str:
        return f"Presented(method={self.method!r})"


class ClientAuth:
    """Tells who calls a client's endpoint. Raises BadRequest, InvalidClient, TooManyFailures."""

    def __init__(
        self,
        ledger: Ledger,
        throttle: Throttle,
        meters: Meters,
        assertions: Assertions,
        certificates: ClientCertificates,
    ) -> None:
        self._ledger = ledger
        self._throttle = throttle
        self._meters = meters
        self._assertions = assertions
        self._certificates = certificates

    async def by_any_method(
        self,
        authorization: bytes | None,
        form: Mapping[str, str],
        address: str,
        extensions: Extensions,
        *,
        headers: Headers | None = None,
    ) -> Caller:
        """As `caller`, also for a form with an assertion (RFC 7523). Raises Unavailable where the client's keys are
        away. Who has just been registered at another node, or has changed what they show, is not refused for that:
        what others have changed is heard of before a failure counts."""

        async def judged() -> Caller:
            if ASSERTION_TYPE in form:
                return await self._asserted(authorization, form, address, extensions)
            return self._proved(authorization, form, address, extensions, headers)

        try:
            return await judged()
        except _Unproven as unproven:
            if not await self._ledger.hear():
                self._fail(unproven.who, address, authorization)
        try:
            return await judged()
        except _Unproven as unproven:
            self._fail(unproven.who, address, authorization)

    async def _asserted(
        self, authorization: bytes | None, form: Mapping[str, str], address: str, extensions: Extensions
    ) -> Caller:
        shown = presented(authorization, form)
        named, _ = self._named(shown, address)
        client = named[0] if named else None
        who = self._waited(client, address)
        once = None
        if shown.assertion is not None:
            once = await self._assertions.proven(client, shown.assertion)
        # Its keys may have been away for seconds, and by what it is judged may have been taken back meanwhile.
        if client is None or once is None or not self._ledger.authority.still(client):
            raise _Unproven(who)
        return Caller(
            client_id=client.client_id,
            authenticated=True,
            auth_method=PRIVATE_KEY_JWT,
            proof_x5t_s256=None if extensions is None else self._certificates.proof(extensions),
            single_use=(once,),
        )

    def used_again(self, refusal: Refused, caller: Caller, address: str) -> None:
        """Tell whether a refusal is that of an assertion used before: then it is a failed authentication like any
        other, and this raises what that comes to."""
        if refusal.used == "assertion":
            self._fail((caller.client_id,), address, None)

    def caller(
        self,
        authorization: bytes | None,
        form: Mapping[str, str],
        address: str,
        extensions: Extensions = None,
        *,
        headers: Headers | None = None,
    ) -> Caller:
        """Return who sent this form. `authorization` is the header's value as received, None where there is none;
        `extensions` are those of the ASGI scope, where a certificate stands. Beside `headers` a right secret is kept
        for `again`, for as long as they live."""
        try:
            return self._proved(authorization, form, address, extensions, headers)
        except _Unproven as unproven:
            self._fail(unproven.who, address, authorization)

    def _proved(
        self,
        authorization: bytes | None,
        form: Mapping[str, str],
        address: str,
        extensions: Extensions,
        headers: Headers | None,
    ) -> Caller:
        shown = presented(authorization, form)
        if shown.method == NONE and not shown.pairs:
            raise InvalidClient(challenge=False)  # nobody was named, so nothing was guessed
        named, candidates = self._named(shown, address)
        client = named[0] if named else None
        who = self._waited(client, address)
        if shown.method == NONE:
            found = None if client is None else self._without_secret(client, extensions)
            if found is None:
                raise _Unproven(who)
            return found
        number = secret_matches(self._ledger.desk.ring, candidates, client.secret_hashes if client is not None else ())
        if client is None or number is None:
            raise _Unproven(who, *(each.client_id for each in named[1:]))
        if shown.method not in METHODS.get(client.auth, _NOBODY):
            # Not counted: whoever has the secret guesses nothing. Go's oauth2 tries the header first, each time anew.
            self._meters.failed_clients += 1
            raise InvalidClient(challenge=authorization is not None)
        self._meters.secret_used(client.client_id, number)
        proof = None if extensions is None else self._certificates.proof(extensions)
        caller = Caller(client_id=client.client_id, authenticated=True, auth_method=shown.method, proof_x5t_s256=proof)
        if headers is not None and extensions is None:
            headers.proven = Proven(form.get("client_secret"), number, client, self._ledger.desk.ring, caller)
        return caller

    def again(self, headers: Headers, form: Mapping[str, str], address: str) -> Caller | None:
        """Return who proved who it is by these same credentials on this connection before; None where they have to be
        looked at. Nothing of what that rested on has changed, and this caller is not being slowed down.
        """
        proven = headers.proven
        if proven is None:
            return None
        secret, caller = proven.secret, proven.caller
        if secret is None:
            if "client_secret" in form or form.get("client_id", caller.client_id) != caller.client_id:
                return None
        elif form.get("client_id") != caller.client_id or not _same(form.get("client_secret"), secret):
            return None
        if "client_assertion" in form or ASSERTION_TYPE in form:
            return None
        if not self.holds(proven, address):
            return None
        self.used_once_more(proven)
        return caller

    def holds(self, proven: Proven, address: str) -> bool:
        """Whether what a client has proved before is as good now, sent once more."""
        _, _, client, ring, caller = proven
        client_id = caller.client_id
        if self._ledger.authority.client(client_id) is not client or self._ledger.desk.ring is not ring:
            return False
        return not self._throttle.wait_seconds(client_id, address)

    def used_once_more(self, proven: Proven) -> None:
        """Count what holds like any other proof, once for each request that rests on it."""
        self._meters.secret_used(proven.caller.client_id, proven.number)

    def _without_secret(self, client: Client, extensions: Extensions) -> Caller | None:
        """A public client that names itself, or one whose certificate says the rest (RFC 8705 2); else None."""
        if client.auth == NONE:
            proof = None if extensions is None else self._certificates.proof(extensions)
            return Caller(client_id=client.client_id, authenticated=False, auth_method=NONE, proof_x5t_s256=proof)
        shown = None if extensions is None else self._certificates.of(extensions)
        if shown is None or not self._certificates.authenticates(client, shown):
            return None
        return Caller(
            client_id=client.client_id, authenticated=True, auth_method=client.auth, proof_x5t_s256=shown.x5t_s256
        )

    def _named(self, shown: Presented, address: str) -> tuple[Sequence[Client], tuple[str, ...]]:
        """Which clients the readings of the id name, first the one whose secret it is, and every reading of the secret,
        known or not. Raises TooManyFailures where there are several, and one of them has to wait."""
        client_of = self._ledger.authority.client
        if len(shown.pairs) == 1:  # nearly always
            name, secret = shown.pairs[0]
            found = client_of(name)
            return (() if found is None else (found,)), (secret or "",)
        secrets = tuple(dict.fromkeys(secret or "" for _, secret in shown.pairs)) or ("",)
        readings = (client_of(name) for name, _ in shown.pairs)
        named = [*{each.client_id: each for each in readings if each is not None}.values()]
        return (named if len(named) <= 1 else self._by_secret(named, secrets, address)), secrets

    def _by_secret(self, named: Sequence[Client], secrets: tuple[str, ...], address: str) -> Sequence[Client]:
        """One id that is read as two: "a+b" is "a b", form-encoded. The one whose secret it is; where it is nobody's
        all of them, for it was a guess at each."""
        for each in named:
            self._waited(each, address)
        ring = self._ledger.desk.ring
        return [each for each in named if secret_matches(ring, secrets, each.secret_hashes) is not None][:1] or named

    def _waited(self, client: Client | None, address: str) -> str:
        """Whom a failure counts against. Raises TooManyFailures while it has failed too often."""
        who = client.client_id if client is not None else UNKNOWN
        wait = self._throttle.wait_seconds(who, address)
        if wait:
            self._meters.throttled_clients += 1
            raise TooManyFailures(wait)
        return who

    def _fail(self, who: Sequence[str], address: str, authorization: bytes | None) -> NoReturn:
        self._meters.failed_clients += 1
        wait, *_ = [self._throttle.failed(each, address) for each in who]
        if wait:
            raise TooManyFailures(wait)
        raise InvalidClient(challenge=authorization is not None)


def authorization(headers: Sequence[Header]) -> bytes | None:
    """Return the Authorization header, None where there is none. Raises BadRequest where there are two."""
    seen = Headers.of(headers)
    if b"authorization" in seen.twice:
        raise BadRequest("the Authorization header is given twice")
    return seen.first.get(b"authorization")


def presented(authorization: bytes | None, form: Mapping[str, str]) -> Presented:
    """Read the one method that a request uses. Raises BadRequest where it uses two, or one for two clients (CA-3)."""
    secret = form.get("client_secret")
    assertion = "client_assertion" in form or ASSERTION_TYPE in form
    if (authorization is not None) + (secret is not None) + assertion > 1:
        raise BadRequest("the client authenticates by more than one method")
    if authorization is not None:
        return _basic(authorization, form.get("client_id"))
    if secret is not None:
        return _post(form.get("client_id"), secret)
    if assertion:
        return _assertion(form)
    return _none(form.get("client_id"))


def _same(presented: str | None, secret: str) -> bool:
    """Compare in constant time, which is defined for ASCII; what is none goes the long way."""
    return presented is not None and presented.isascii() and secret.isascii() and compare_digest(presented, secret)


def _basic(authorization: bytes, client_id: str | None) -> Presented:
    """HTTP Basic (RFC 7617): form-encoded by the letter of RFC 6749 2.3.1, raw as most clients send it, so both."""
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return Presented("", ())
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return Presented(BASIC, ())
    try:
        text = decoded.decode("utf-8")
    except UnicodeDecodeError:
        text = decoded.decode("latin-1")
    name, colon, secret = text.partition(":")
    if not colon:
        return Presented(BASIC, ())
    pairs = _readings(name, secret)
    if client_id is None:
        return Presented(BASIC, pairs)
    pairs = tuple(pair for pair in pairs if pair[0] == client_id)
    if not pairs:
        raise BadRequest("client_id is not the client of the Authorization header")
    return Presented(BASIC, pairs)


def _readings(name: str, secret: str) -> tuple[tuple[str, str | None], ...]:
    """An id and a secret as sent, form-decoded, and percent-decoded; each reading once."""
    if "%" not in secret and "+" not in secret and "%" not in name and "+" not in name:
        return ((name, secret),)
    decoders: tuple[Callable[[str], str], ...] = (str, unquote_plus, unquote)
    return tuple(dict.fromkeys((decode(name), decode(secret)) for decode in decoders))


def _post(client_id: str | None, secret: str) -> Presented:
    """Credentials in the body (RFC 6749 2.3.1)."""
    return Presented(POST, ((client_id or UNKNOWN, secret),))


def _assertion(form: Mapping[str, str]) -> Presented:
    """An assertion in the body (RFC 7521 4.2). The client is the one that `client_id` names, else the assertion."""
    kind, text = form.get(ASSERTION_TYPE), form.get("client_assertion")
    if kind is None or text is None:
        raise BadRequest("client_assertion and client_assertion_type come together")
    assertion = read(text) if kind == JWT_BEARER else None
    client_id = form.get("client_id") or (assertion.claims.sub if assertion is not None else UNKNOWN)
    return Presented(PRIVATE_KEY_JWT, ((client_id, None),), assertion)


def _none(client_id: str | None) -> Presented:
    """A public client names itself (RFC 6749 3.2.1)."""
    return Presented(NONE, () if client_id is None else ((client_id, None),))
