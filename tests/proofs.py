"""DPoP proofs as clients make them (RFC 9449 4.2), and as they should not: any member can be another or missing."""

import base64
import itertools
import json
import time
import warnings
from collections.abc import Mapping
from typing import Any, Final

from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

Json = Any
MISSING: Final = object()
"""The value of a member that is not there."""

_numbers = itertools.count(1)


class _Registry(JWSRegistry):
    """Signs with whatever a test wants, and whatever stands in the header."""

    max_header_length = 65_536
    max_signature_length = 65_536

    def __init__(self) -> None:
        super().__init__(strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]

    def check_header(self, header: Any) -> None:
        """Take it as it is."""


def new_key(algorithm: str = "ES256") -> Key:
    """Return a key of a client's own, private part included."""
    match algorithm:
        case "ES256":
            return ECKey.generate_key("P-256")
        case "ES384":
            return ECKey.generate_key("P-384")
        case "EdDSA" | "Ed25519":
            return OKPKey.generate_key("Ed25519")
        case _:
            return RSAKey.generate_key(2048)


def thumbprint(key: Key) -> str:
    """Return the key's thumbprint (RFC 7638), which names it in `cnf.jkt`."""
    return key.thumbprint()


def public(key: Key) -> dict[str, Any]:
    """Return the key as a proof shows it."""
    return dict(key.as_dict(private=False))


def proof(
    key: Key,
    htu: str,
    *,
    iat: float,
    nonce: str | None = None,
    header: Mapping[str, Json] | None = None,
    claims: Mapping[str, Json] | None = None,
    signed_by: Key | None = None,
    alg: str | None = None,
) -> str:
    """Return a proof for a POST to `htu`, with a `jti` of its own. `header` and `claims` replace members, or add some;
    `signed_by` is another key than the one shown, `alg` what is really signed with, whatever the header says."""
    algorithm = {"EC": "ES256", "OKP": "EdDSA", "RSA": "PS256"}.get(key.key_type, "HS256")
    shown = {"typ": "dpop+jwt", "alg": algorithm, "jwk": public(key) if key.key_type != "oct" else key.as_dict()}
    said = {"jti": f"proof-{next(_numbers)}", "htm": "POST", "htu": htu, "iat": iat}
    if nonce is not None:
        said["nonce"] = nonce
    return signed(
        _without_missing({**shown, **(header or {})}),
        _without_missing({**said, **(claims or {})}),
        signed_by or key,
        alg,
    )


def written(words: str, keys: Mapping[str, Key], names: Mapping[str, str], htu: str) -> str:
    """Return the proof that a transcript asks for: the name of its key, then what is to be different, as `htm=GET`.

    `iat=-600` counts from now, `nonce=N` is what was remembered as N, `jwk=private` shows the whole key, and a member
    without a value is missing.
    """
    name, *changes = words.split()
    key, header, claims = keys[name], dict[str, Json](), dict[str, Json]()
    iat = int(time.time())
    for change in changes:
        member, _, value = change.partition("=")
        if change == "jwk=private":
            header["jwk"] = key.as_dict(private=True)
        elif member == "iat":
            iat += int(value)
        elif member == "nonce":
            claims["nonce"] = names[value]
        else:
            (header if member in ("typ", "alg", "jwk") else claims)[member] = value or MISSING
    # A symmetric algorithm is keyed by what everybody can read: the trick of those who confuse the two kinds.
    by = OctKey.import_key(public(key)["x"]) if header.get("alg") == "HS256" else None
    return proof(key, htu, iat=iat, header=header, claims=claims, signed_by=by)


def signed(header: Json, payload: Json, key: Key, alg: str | None = None) -> str:
    """Return a JWS in its compact form; a payload that is no text goes as JSON."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        registry = _Registry()
        if alg is None and isinstance(header, dict) and header.get("alg") in registry.algorithms:
            return jws.serialize_compact(header, text, key, registry=registry)
        message = f"{encoded(json.dumps(header))}.{encoded(text)}"
        signature = registry.get_alg(alg or "ES256").sign(message.encode("ascii"), key)
    return f"{message}.{encoded(signature)}"


def encoded(text: str | bytes) -> str:
    """Return base64url without padding."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _without_missing(members: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in members.items() if value is not MISSING}
