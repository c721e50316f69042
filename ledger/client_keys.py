"""Public keys of clients (RFC 7517): which of them can check an assertion, and which one it is that must."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

from ledger.events import Words

RSA_BITS: Final = (2048, 8192)
"""A shorter one is not safe, and a longer one makes checking dear."""

_RSA_EXPONENT_MAX: Final = 2**32
_ED25519: Final = "Ed25519"
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_SECRET_KIND: Final = "oct"


class VerifyingKey(NamedTuple):
    """A public key, its name if it has one, and the algorithms whose signatures it checks (EdDSA by that name only)."""

    kid: str | None
    algorithms: frozenset[str]
    key: Key


def from_texts(jwks: Words) -> tuple[VerifyingKey, ...]:
    """The keys of a client's setting `jwks`, each as JSON, that can check a signature."""
    return verifying_keys(json.loads(each) for each in jwks)


def verifying_keys(keys: Iterable[object]) -> tuple[VerifyingKey, ...]:
    """Those of a key set's keys that can check a signature; what is no such key is passed over (RFC 7517 5)."""
    found = (_verifying_key(each) for each in keys)
    return tuple(each for each in found if each is not None)


def chosen(keys: Sequence[VerifyingKey], algorithm: str, kid: str | None) -> Key | None:
    """The one key that a signature by this algorithm must be checked with: the one it names by `kid`, else the only
    one there is (OpenID Connect Core 10.1). A key without a name of its own answers to any. None: none, or several."""
    fit = [each for each in keys if algorithm in each.algorithms]
    if kid is not None:
        fit = [each for each in fit if each.kid == kid] or [each for each in fit if each.kid is None]
    return fit[0].key if len(fit) == 1 else None


def names_secret(jwk: Mapping[str, object]) -> bool:
    """Whether a key shows what only its owner may know."""
    return bool(_PRIVATE & jwk.keys()) or jwk.get("kty") == _SECRET_KIND


def imported(jwk: Mapping[str, Any]) -> Key | None:
    """A public key that is safe to use, whatever for; None for anything else."""
    if names_secret(jwk):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a key too short to be safe is a warning there, and no key here
        try:
            return JWKRegistry.import_key(dict(jwk))
        except (JoseError, UnsupportedAlgorithm, Warning, LookupError, TypeError, ValueError, OverflowError):
            return None


def _verifying_key(jwk: object) -> VerifyingKey | None:
    if not isinstance(jwk, dict):
        return None
    # EdDSA has two names, and the library holds a key to the one that it says: what it is for is judged here.
    key = imported({name: member for name, member in jwk.items() if name != "alg"})
    kid = jwk.get("kid")
    if key is None or not (kid is None or isinstance(kid, str)):
        return None
    algorithms = _algorithms(key)
    if (meant_for := jwk.get("alg")) is not None:
        algorithms &= {"EdDSA" if meant_for == _ED25519 else str(meant_for)}
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ("verify",)):
        return None
    return VerifyingKey(kid, algorithms, key) if algorithms else None


def _algorithms(key: Key) -> frozenset[str]:
    """What a key of its kind, curve and size may check."""
    if isinstance(key, RSAKey):
        low, high = RSA_BITS
        exponent: int = key.public_key.public_numbers().e
        fits = low <= key.public_key.key_size <= high and exponent <= _RSA_EXPONENT_MAX
        return frozenset({"PS256", "RS256"}) if fits else frozenset()
    if isinstance(key, ECKey):
        return frozenset({"ES256"}) if key.curve_name == "P-256" else frozenset()
    if isinstance(key, OKPKey):
        return frozenset({"EdDSA"}) if key.curve_name == _ED25519 else frozenset()
    return frozenset()
