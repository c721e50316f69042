"""Clients that sign: keys that come from a word each, and assertions as a client makes them, or as an attacker would.

The public keys of `jwt` and `jwt-legacy` stand in the clients file of the transcripts; private ones stand nowhere.
"""

import base64
import hmac
import itertools
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_TYP = "client-authentication+jwt"
_numbers = itertools.count(1)


def derived_key(word: str, kid: str | None = None) -> ECKey:
    """The P-256 key that belongs to a word."""
    return ECKey.derive_key(word, "P-256", {} if kid is None else {"kid": kid})


class Signer:
    """One client and its key. `issuer` is the server whose assertions it makes."""

    def __init__(
        self, client_id: str, key: Key, issuer: str, *, algorithm: str = "ES256", kid: str | None = "k1"
    ) -> None:
        self.client_id = client_id
        self.key = key
        self.issuer = issuer
        self.algorithm = algorithm
        self.kid = kid

    def public_jwk(self, **members: str) -> dict[str, Any]:
        """The public key as it is registered."""
        jwk: dict[str, Any] = dict(self.key.as_dict(private=False))
        jwk.pop("kid", None)
        return jwk | ({} if self.kid is None else {"kid": self.kid}) | members

    def toml(self, **fields: str) -> str:
        """The client's table in a clients file, this key in it unless `jwks` or `jwks_uri` is among the fields, which
        are in TOML."""
        defaults = {"auth": '"private_key_jwt"', "scope": '"read openid profile"', "policy": '"strict"'}
        if "jwks_uri" not in fields:
            defaults["jwks"] = f"{{ keys = [{inline(self.public_jwk())}] }}"
        lines = (f"{name} = {value}" for name, value in {**defaults, **fields}.items() if value)
        return f'\n[[client]]\nid = "{self.client_id}"\n' + "\n".join(lines) + "\n"

    def claims(self, now: float | None = None) -> dict[str, Any]:
        """What an honest assertion says, with an identifier of its own."""
        at = int(time.time() if now is None else now)
        return {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self.issuer,
            "iat": at,
            "exp": at + 60,
            "jti": f"{next(_numbers)}-{uuid.uuid4()}",
        }

    def assertion(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        header: Mapping[str, Any] | None = None,
        now: float | None = None,
        payload: bytes | None = None,
        secret: bytes | None = None,
    ) -> str:
        """An assertion, some claims or header members changed; None leaves one out. `payload` stands for the claims;
        with a `secret` it is the key of an HMAC (HS256), as an attacker takes a public key for one."""
        claims = _changed(self.claims(now), changes)
        head = _changed({"alg": self.algorithm, "kid": self.kid, "typ": ASSERTION_TYP}, header)
        body = json.dumps(claims).encode() if payload is None else payload
        signed = f"{encoded(json.dumps(head).encode())}.{encoded(body)}"
        if secret is not None:
            return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"
        # The library's algorithms as they are: by its usual way it would not write what is unlawful.
        algorithms = jws.JWSRegistry.algorithms
        told = algorithms.get(str(head.get("alg")))
        fits = told is not None and told.key_type in (self.key.key_type, algorithms["none"].key_type)
        algorithm = told if fits and told is not None else algorithms[self.algorithm]
        return f"{signed}.{encoded(algorithm.sign(signed.encode(), self.key))}"

    def form(self, assertion: str | None = None, *, now: float | None = None, **more: str) -> dict[str, str]:
        """The members of a form that authenticate the client."""
        return {"client_assertion_type": TYPE, "client_assertion": assertion or self.assertion(now=now), **more}


def encoded(raw: bytes) -> str:
    """Base64url without padding (RFC 7515 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def inline(jwk: Mapping[str, Any]) -> str:
    """A key as an inline table of TOML."""
    return "{ " + ", ".join(f'"{name}" = "{value}"' for name, value in jwk.items()) + " }"


def _changed(members: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in {**members, **(changes or {})}.items() if value is not None}


def new_key(algorithm: str) -> Key:
    """A new key for an algorithm."""
    if algorithm in ("RS256", "PS256"):
        return RSAKey.generate_key(2048)
    if algorithm in ("EdDSA", "Ed25519"):
        return OKPKey.generate_key("Ed25519")
    return ECKey.generate_key("P-256")


REGISTERED = {"jwt": "issuer", "jwt-legacy": "legacy"}
"""The clients of the transcripts that sign, each with the key of its name."""


def registered(client_id: str, issuer: str) -> Signer:
    """One of them, on its way to the server that is `issuer`."""
    return Signer(client_id, derived_key(client_id), issuer)


def written(words: str, issuer: str) -> str:
    """The assertion that a transcript asks for: a client, then members as `name=value`.

    `+61` and `-300` are seconds from now, `none` leaves a member out, a comma makes a list, `issuer` and
    `token-endpoint` are the server's; `key=WORD` signs with another key, `kid` and `typ` stand in the header, and
    `alg=none` signs nothing.
    """
    client_id, *members = words.split()
    given = dict(member.split("=", 1) for member in members)
    signer = registered(client_id, issuer)
    if "key" in given:
        signer = Signer(client_id, derived_key(given.pop("key")), issuer)
    head: dict[str, str] = {name: given.pop(name) for name in ("alg", "kid", "typ") if name in given}
    now = int(time.time())
    claims = {name: _meant(value, now, issuer) for name, value in given.items()}
    header: dict[str, Any] = {name: None if (name, value) in _UNSAID else value for name, value in head.items()}
    return signer.assertion(claims, header=header, now=now)


_UNSAID = {("kid", "none"), ("typ", "none")}


def _meant(value: str, now: int, issuer: str) -> Any:
    if value == "none":
        return None
    if value[0] in "+-":
        return now + int(value)
    places = {"issuer": issuer, "token-endpoint": issuer + "/oauth/v2/oauth-token"}
    texts = [places.get(each, each) for each in value.split(",")]
    return texts if len(texts) > 1 else texts[0]
