"""DPoP (RFC 9449): a client shows with each request that it holds a key, and what it is given is good with that only.

A proof is a JWT in the header `DPoP`, signed by the key that stands in its own header, for one method and URI, made
just now, good once. What is checked here needs no store; that it is good once is the ledger's, which spends its `jti`
with whatever the proof admits. So a proof that fails has consumed nothing, and its sender may ask again.

It is looked at only with a token or code that we made, for whoever has none shall cost us no signature and no row. And
it is checked where it is read: handing a signature to a thread and back costs most of what checking it costs.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey
from msgspec.structs import replace

from api.answers import Answer, BadRequest, Header, oauth_error
from api.client_jws import ClientJWS
from api.dpop_nonces import Nonces
from api.heads import Headers
from ledger.answers import Caller
from ledger.single_use import SingleUse
from ledger.times import SECOND

ALGORITHMS: Final = ("ES256", "EdDSA", "Ed25519", "PS256")
"""What a proof may be signed with: what FAPI 2.0 5.4 allows, EdDSA also by its newer name (RFC 9864)."""

PROOF_SECONDS_MAX: Final = 60
"""How old a proof may be, clock skew not counted."""

PROOF_BYTES_MAX: Final = 4096
JTI_CHARACTERS_MAX: Final = 256
RSA_BITS: Final = (2048, 4096)
KEYS_KEPT_MAX: Final = 4096

_REGISTRY: Final = ClientJWS(PROOF_BYTES_MAX)
_TYPE: Final = "dpop+jwt"
_KEY_TYPES: Final = ("EC", "OKP", "RSA")  # no set: what is compared may be of any type
_PRIVATE_MEMBERS: Final = frozenset(
    name for kind in (ECKey, OKPKey, RSAKey) for name, member in kind.value_registry.items() if member.private
) | {"k"}  # fmt: skip
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_ESCAPE: Final = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class InvalidProof(BadRequest):
    """The proof is none, or none for this request (RFC 9449 5). The text says what would be right."""

    def __init__(self, description: str) -> None:
        super().__init__(description, error="invalid_dpop_proof")


class NonceWanted(BadRequest):
    """The proof is good but for its nonce: the answer brings one, and the client tries again (RFC 9449 8)."""

    def __init__(self, nonce: str) -> None:
        super().__init__("this client's proofs carry the nonce of the DPoP-Nonce header", error="use_dpop_nonce")
        self.nonce = nonce

    def answer(self) -> Answer:
        """Return the challenge, with the nonce."""
        return oauth_error(self.status, self.error, self.description, headers=(nonce_header(self.nonce),))


def nonce_header(nonce: str) -> Header:
    """Return the header that hands a nonce out (RFC 9449 8.2)."""
    return b"dpop-nonce", nonce.encode("ascii")


def proof_of(headers: Sequence[Header]) -> bytes | None:
    """Return the proof that a request carries, None where it has none. Raises InvalidProof where it has two."""
    seen = Headers.of(headers)
    found = seen.first.get(b"dpop")
    if found is not None and b"dpop" in seen.twice:
        raise InvalidProof("the DPoP header is given twice")
    return found


class Target(msgspec.Struct, frozen=True):
    """An endpoint that proofs are made for. `name` is the same whichever of its URIs a client uses."""

    name: str
    uris: frozenset[str]


def target(issuer: str, *paths: str) -> Target:
    """Return the endpoint at these paths below the issuer's URL; the first names it."""
    uris = (normalised(issuer.rstrip("/") + path) for path in paths)
    return Target(paths[0], frozenset(uri for uri in uris if uri is not None))


class Proofs:
    """Judges proofs. Remembers the keys that it saw last, since a client uses one for long."""

    def __init__(self, nonces: Nonces, clock: Callable[[], int], *, clock_skew_seconds: int) -> None:
        """`clock` gives the wall clock in microseconds."""
        self._nonces = nonces
        self._clock = clock
        self._skew_seconds = clock_skew_seconds
        self._keys: dict[bytes, tuple[Key, str]] = {}

    def shown(self, caller: Caller, proof: bytes, target: Target, *, nonce_required: bool) -> Caller:
        """Return the caller as one who holds the proof's key (RFC 9449 4.3). Raises InvalidProof, NonceWanted.

        A nonce that was not asked for is not looked at: it may be another server's.
        """
        thumbprint, payload = self._verified(proof)
        claims = _claims(payload)
        if claims.htm != "POST":
            raise InvalidProof("htm is not the method of this request")
        if claims.htu not in target.uris and normalised(claims.htu) not in target.uris:
            raise InvalidProof("htu is not the URI of this endpoint")
        self._check_times(claims)
        if nonce_required and (claims.nonce is None or not self._nonces.accepts(claims.nonce)):
            raise NonceWanted(self._nonces.current())
        # Longer than anybody takes it, by the skew of another node's clock.
        good_for_seconds = PROOF_SECONDS_MAX + 2 * self._skew_seconds
        once = SingleUse(
            kind="dpop",
            owner=f"{thumbprint} {target.name}",
            identifier=claims.jti,
            expires_at=int(claims.iat * SECOND) + good_for_seconds * SECOND,
        )
        return replace(caller, proof_jkt=thumbprint, single_use=(*caller.single_use, once))

    def current_nonce(self) -> str:
        """Return the nonce that answers hand out now."""
        return self._nonces.current()

    def _verified(self, proof: bytes) -> tuple[str, bytes]:
        """The key's thumbprint (RFC 7638) and the payload that it signed."""
        if len(proof) > PROOF_BYTES_MAX:
            raise InvalidProof(f"the proof is longer than {PROOF_BYTES_MAX} bytes")
        try:
            signed = jws.extract_compact(proof, registry=_REGISTRY)
            header_text = proof.partition(b".")[0]
            known = self._keys.get(header_text)
            key, thumbprint = known or _key_of(signed.headers())
            genuine = jws.validate_compact(signed, key, registry=_REGISTRY)
        except (JoseError, ValueError, RecursionError):
            raise InvalidProof("the proof is no signed JWT (RFC 7515)") from None
        if not genuine:
            raise InvalidProof("the signature is not made by the key in jwk")
        if known is None:
            if len(self._keys) >= KEYS_KEPT_MAX:
                self._keys.clear()  # simpler than an order, and as good: what is in use comes back at once
            self._keys[header_text] = key, thumbprint
        return thumbprint, signed.payload

    def _check_times(self, claims: "_Claims") -> None:
        now, skew = self._clock() / SECOND, self._skew_seconds
        if not now - PROOF_SECONDS_MAX - skew <= claims.iat <= now + skew:
            raise InvalidProof(f"iat is not in the last {PROOF_SECONDS_MAX} seconds; the Date header tells the time")
        if claims.nbf is not None and claims.nbf > now + skew:
            raise InvalidProof("nbf lies ahead; the Date header tells the time")
        if claims.exp is not None and claims.exp <= now - skew:
            raise InvalidProof("exp has passed; the Date header tells the time")


# ---------------------------------------------------------------- parts


class _Claims(msgspec.Struct, frozen=True):
    """What a proof says. Times in seconds since 1970; members that are not here mean nothing."""

    jti: Annotated[str, msgspec.Meta(min_length=1, max_length=JTI_CHARACTERS_MAX)]
    htm: str
    htu: str
    iat: int | float
    nonce: str | None = None
    nbf: int | float | None = None
    exp: int | float | None = None


def _claims(payload: bytes) -> _Claims:
    try:
        return msgspec.json.decode(payload, type=_Claims)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise InvalidProof(
            f"a proof has htm, htu, iat (a number) and jti (1 to {JTI_CHARACTERS_MAX} characters)"
        ) from None


def _key_of(header: object) -> tuple[Key, str]:
    """The public key of a proof's header, and its thumbprint. Raises InvalidProof."""
    if not isinstance(header, dict) or header.get("typ") != _TYPE:
        raise InvalidProof(f"typ is not {_TYPE}")
    algorithm, jwk = header.get("alg"), header.get("jwk")
    if algorithm not in ALGORITHMS:
        raise InvalidProof(f"alg is one of {', '.join(ALGORITHMS)}")
    if "crit" in header or "b64" in header:
        raise InvalidProof("the proof asks for an extension; there are none here")
    if not isinstance(jwk, dict) or jwk.get("kty") not in _KEY_TYPES:
        raise InvalidProof("jwk is no public key")
    if _PRIVATE_MEMBERS & jwk.keys():
        raise InvalidProof("jwk holds a private key: give the public one, and make a new one, since this one was shown")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a key too short to be safe is a warning there, and no key here
            key = JWKRegistry.import_key(jwk)
            if not _is_fit(key):
                raise InvalidProof("jwk is a key of a size or curve that is not taken here")
            return key, key.thumbprint()
    except (JoseError, UnsupportedAlgorithm, Warning, LookupError, TypeError, ValueError):
        raise InvalidProof("jwk is no public key") from None


def _is_fit(key: Key) -> bool:
    """Curves are those of the algorithms; RSA keys are bounded, and so is what one check may cost."""
    if isinstance(key, OKPKey):
        return key.curve_name == "Ed25519"
    if isinstance(key, RSAKey):
        low, high = RSA_BITS
        return low <= key.public_key.key_size <= high and key.public_key.public_numbers().e < 1 << 32
    return True  # ES256 takes P-256 alone


def normalised(uri: str) -> str | None:
    """Return a URI as RFC 3986 6.2.2 and 6.2.3 compare it, query and fragment left out; None where it is none."""
    if _URI.fullmatch(uri) is None:
        return None
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or "@" in parts.netloc:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{place}{_path(parts.path)}"


def _path(path: str) -> str:
    """A path whose escapes of unreserved characters are undone, the others in upper case, and no segment is a dot."""
    path = _ESCAPE.sub(lambda found: _plain(chr(int(found[1], 16)), found[0]), path)
    if "/." not in path:
        return path or "/"
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _plain(character: str, escape: str) -> str:
    return character if character in _UNRESERVED else escape.upper()
