"""Client authentication by a JWT that the client signs (RFC 7521 4.2, RFC 7523 2.2 and 3; OpenID Connect Core 9).

`private_key_jwt` alone: a JWT under a client's secret (`client_secret_jwt`) would need the secret itself at rest. The
audience is this server's issuer, one text and nothing beside it, as the update of RFC 7523 of 2025 asks for: an
assertion made for another server, or for several, is good for none. Clients registered as `legacy` may name the URL of
an endpoint instead.

Whatever is wrong comes to the same refusal, and to the same work: one signature is checked for every assertion that can
be read, with a key of nobody's where the client has none that fits. That takes 0.05 to 0.25 ms of the event loop, less
than handing it to a thread and back.
"""

import math
import warnings
from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import CompactSignature

from api.client_jws import ClientJWS
from api.logs import Log
from api.remote_keys import RemoteKeys
from ledger.application import Ledger
from ledger.client_keys import VerifyingKey, chosen, from_texts
from ledger.clients import Client
from ledger.events import Words
from ledger.registration import ASSERTION_ALGS
from ledger.single_use import SingleUse
from ledger.times import SECOND

PRIVATE_KEY_JWT: Final = "private_key_jwt"
JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

ASSERTION_CHARACTERS_MAX: Final = 6144
JTI_CHARACTERS_MAX: Final = 256
LIFETIME_SECONDS_MAX: Final = 3600
"""From `iat`, where there is one, and from now, to `exp`: the longest that a common library makes by itself."""

TYPES: Final = frozenset({"jwt", "client-authentication+jwt", "application/client-authentication+jwt"})
"""What `typ` may say, if anything. Any other kind of JWT was made for something else (RFC 8725 3.11)."""

log = Log("api.assertions")

_REGISTRY: Final = ClientJWS(ASSERTION_CHARACTERS_MAX)
_NUMBER = int | float
_TIME_MAX: Final = 2**53  # beyond it whole numbers and others cannot be told apart, or even subtracted


class Claims(msgspec.Struct, frozen=True):
    """What an assertion says (RFC 7523 3). Times in seconds since 1970; members that are not here mean nothing."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: _NUMBER
    jti: Annotated[str, msgspec.Meta(min_length=1, max_length=JTI_CHARACTERS_MAX)]
    iat: _NUMBER | None = None
    nbf: _NUMBER | None = None


class Assertion(msgspec.Struct, frozen=True):
    """An assertion as it was read: nothing of it is believed yet. `algorithm` is a name of `ASSERTION_ALGS`."""

    signed: CompactSignature
    algorithm: str
    kid: str | None
    claims: Claims

    def __repr__(self) -> str:
        return f"Assertion(algorithm={self.algorithm!r})"


def read(text: str) -> Assertion | None:
    """Read an assertion; None for what can be none, whoever sent it."""
    if len(text) > ASSERTION_CHARACTERS_MAX:
        return None
    try:
        signed = jws.extract_compact(text.encode("ascii"), registry=_REGISTRY)
        header: object = signed.headers()
        if not isinstance(header, dict) or "crit" in header or "b64" in header:
            return None
        algorithm, kid, typ = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
        if algorithm == "Ed25519":  # the newer name of the same (RFC 9864)
            algorithm = "EdDSA"
        if algorithm not in ASSERTION_ALGS or not isinstance(typ, str) or typ.lower() not in TYPES:
            return None
        if not (kid is None or isinstance(kid, str)):
            return None
        return Assertion(signed, algorithm, kid, msgspec.json.decode(signed.payload, type=Claims))
    except (JoseError, msgspec.MsgspecError, ValueError, TypeError, LookupError, RecursionError):
        return None


class Assertions:
    """Judges assertions of registered clients."""

    def __init__(self, ledger: Ledger, remote: RemoteKeys, *, issuer: str, endpoints: Collection[str]) -> None:
        """`endpoints` are the URLs that a client registered as `legacy` may name as the audience."""
        self._ledger = ledger
        self._remote = remote
        self._issuer = issuer
        self._endpoints = frozenset(endpoints)
        self._inline: dict[str, tuple[Words, tuple[VerifyingKey, ...]]] = {}
        self._nobodys = _keys_of_nobody()

    async def proven(self, client: Client | None, assertion: Assertion) -> SingleUse | None:
        """Return what is to be spent of an assertion that proves this client; None for one that does not.

        Raises Unavailable where the client's keys cannot be had.
        """
        key = None
        if client is not None and client.auth == PRIVATE_KEY_JWT:
            registered = client.settings.token_endpoint_auth_signing_alg
            if registered is None or registered == assertion.algorithm:
                key = await self._key(client, assertion)
        genuine = _is_genuine(assertion, key or self._nobodys[assertion.algorithm])
        if client is None:
            return None
        claims = assertion.claims
        wrong = "key" if key is None else self._wrong(client, claims) if genuine else "signature"
        if wrong is not None:  # told to the operating side alone
            log.debug("assertion_refused", client=client.client_id, wrong=wrong)
            return None
        until = claims.exp + self._ledger.options.clock_skew_seconds
        return SingleUse(
            kind="assertion", owner=client.client_id, identifier=claims.jti, expires_at=math.ceil(until * SECOND)
        )

    async def _key(self, client: Client, assertion: Assertion) -> Key | None:
        if client.settings.jwks_uri is None:
            return chosen(self._registered(client), assertion.algorithm, assertion.kid)
        keys = await self._remote.keys(client.settings.jwks_uri)
        key = chosen(keys, assertion.algorithm, assertion.kid)
        if key is None:  # the client may have changed its keys since they were fetched
            keys = await self._remote.newer(client.settings.jwks_uri)
            key = chosen(keys, assertion.algorithm, assertion.kid)
        return key

    def _registered(self, client: Client) -> tuple[VerifyingKey, ...]:
        """The keys that stand in a client's registration, read once for each that it was given."""
        jwks = client.settings.jwks or ()
        known = self._inline.get(client.client_id)
        if known is None or known[0] is not jwks:
            known = self._inline[client.client_id] = jwks, from_texts(jwks)
        return known[1]

    def _wrong(self, client: Client, claims: Claims) -> str | None:
        """The claim that is not as it must be, if any (RFC 7523 3)."""
        if not claims.iss == claims.sub == client.client_id:
            return "iss" if claims.sub == client.client_id else "sub"
        if not self._is_audience(client, claims.aud):
            return "aud"
        if not all(abs(each or 0) < _TIME_MAX for each in (claims.exp, claims.iat, claims.nbf)):
            return "exp"
        now, skew = self._ledger.memory.clock() / SECOND, self._ledger.options.clock_skew_seconds
        latest = now + skew
        if not now - skew < claims.exp <= latest + LIFETIME_SECONDS_MAX:
            return "exp"
        if claims.iat is not None and (claims.iat > latest or claims.exp - claims.iat > LIFETIME_SECONDS_MAX):
            return "iat"
        return "nbf" if claims.nbf is not None and claims.nbf > latest else None

    def _is_audience(self, client: Client, aud: str | list[str]) -> bool:
        if client.settings.assertion_audience != "legacy":
            return aud == self._issuer
        if isinstance(aud, list):
            return len(aud) == 1 and self._is_audience(client, aud[0])
        return aud == self._issuer or aud in self._endpoints


def _is_genuine(assertion: Assertion, key: Key) -> bool:
    try:
        return jws.validate_compact(assertion.signed, key, registry=_REGISTRY)
    except (JoseError, ValueError):
        return False


def _keys_of_nobody() -> dict[str, Key]:
    """A key for each algorithm that is as dear to check with as a client's, and is no client's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rsa = RSAKey.import_key({"kty": "RSA", "n": "_" * 341 + "w", "e": "AQAB"})  # a modulus that has no owner
    curve, edwards = ECKey.generate_key("P-256"), OKPKey.generate_key("Ed25519")
    return {"PS256": rsa, "RS256": rsa, "ES256": curve, "EdDSA": edwards}
