"""Signing keys: what makes an access token a JWT that others can check by themselves (RFC 9068, RFC 7515).

Each key of the ring signs by one algorithm, and a text is checked by that one alone, whatever its header says. The same
claims under the same key give the same signature: ES256 with the nonce of RFC 6979, EdDSA and RS256 by their nature. So
an answer that was lost can be given again, to the byte. Loaded where the first JWT is made or read.
"""

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from joserfc.errors import JoseError
from joserfc.jwa import EdDSAAlgorithm, ESAlgorithm, RSAAlgorithm
from joserfc.jwk import ECKey, KeyParameters, OKPKey, RSAKey
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, serialize_compact, validate_compact

from ledger.keyring import Alg, Concealed, KeyRing

RSA_BITS = 3072
"""As strong as the other two (NIST SP 800-57, table 2)."""

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


_DETERMINISTIC: Final = ec.ECDSA(SHA256(), deterministic_signing=True)


class _ES256(ESAlgorithm):
    """The library's own draws a random nonce for each signature."""

    def sign(self, msg: bytes, key: ECKey) -> bytes:
        der = key.get_op_key("sign").sign(msg, _DETERMINISTIC)
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class _EdDSA(EdDSAAlgorithm):
    security_warning = ""  # RFC 9864 prefers the name Ed25519, which few verifiers know yet


class _Registry(JWSRegistry):
    """The three algorithms and no other, in texts no longer than our own."""

    max_header_length = 256
    max_payload_length = 2048
    max_signature_length = 1024

    def __init__(self) -> None:
        self.algorithms = {
            "ES256": _ES256("ES256", "P-256", 256, True),
            "EdDSA": _EdDSA(),
            "RS256": RSAAlgorithm(256, True),
        }
        super().__init__(algorithms=list(self.algorithms))


_REGISTRY: Final = _Registry()


class SigningKey(Concealed):
    """One key that signs, never changed. `kid` names it to the world; `alg` is how it signs."""

    __slots__ = ("_key", "_overhead", "alg", "kid")

    def __init__(self, kid: str, alg: Alg, material: bytes) -> None:
        """`material`: for ES256 48 bytes of which the private key follows, for EdDSA the 32 bytes that it is, for RS256
        its PKCS #8 form (DER)."""
        self.kid: Final = kid
        self.alg: Final = alg
        self._key: Final = _key(alg, material, {"kid": kid, "alg": alg, "use": "sig"})
        self._overhead: Final = len(self.sign(b"", "at+jwt"))

    def __repr__(self) -> str:
        return f"<SigningKey {self.kid}>"

    def sign(self, payload: bytes, typ: str) -> str:
        """The JWS (compact form) of a payload, always the same. Some 50 µs; with RS256 two milliseconds."""
        return serialize_compact({"typ": typ, "alg": self.alg, "kid": self.kid}, payload, self._key, registry=_REGISTRY)

    def characters(self, payload: bytes) -> int:
        """How long `sign(payload, "at+jwt")` will be."""
        return self._overhead + (4 * len(payload) + 2) // 3

    def signed(self, found: CompactSignature, typ: str) -> bool:
        """Whether this key has signed this JWS as this `typ`. Raises what `_UNREADABLE` lists."""
        header = found.headers()
        if header.get("typ") != typ or header.get("alg") != self.alg:
            return False
        return validate_compact(found, self._key, registry=_REGISTRY)

    @property
    def public(self) -> dict[str, Any]:
        """The public key as a JWK (RFC 7517 4)."""
        return dict(self._key.as_dict(private=False))


# What the library raises for headers that are JSON, but no header.
_UNREADABLE: Final = (JoseError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def read(ring: KeyRing, text: str, typ: str) -> tuple[int, bytes] | None:
    """The key id and the payload of a JWS that a key of this ring has signed; None for any other text.

    Nothing of it is believed before the signature holds. Raises KeyNotHeld for a text that names a key which the ring
    lacks: it may be ours.
    """
    try:
        found = extract_compact(text.encode("ascii"), registry=_REGISTRY)
        kid = found.headers().get("kid")
        key_id = ring.key_id_of(kid) if isinstance(kid, str) else None
        if key_id is None or not ring.signing_key(key_id).signed(found, typ):
            return None
    except _UNREADABLE:
        return None
    return key_id, found.payload


def new_rsa_key() -> bytes:
    """A new private key for RS256 (PKCS #8, DER). Takes a second or so: not for the event loop."""
    return rsa.generate_private_key(65537, RSA_BITS).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _key(alg: Alg, material: bytes, parameters: KeyParameters) -> ECKey | OKPKey | RSAKey:
    if alg == "ES256":
        # 128 bits more than the order has, so that no key is likelier than another (FIPS 186-5, A.2.1).
        assert len(material) == 48
        number = int.from_bytes(material, "big") % (_P256_ORDER - 1) + 1
        curve_key = ec.derive_private_key(number, ec.SECP256R1())
        return ECKey(curve_key, curve_key, parameters)
    if alg == "EdDSA":
        edwards_key = ed25519.Ed25519PrivateKey.from_private_bytes(material)
        return OKPKey(edwards_key, edwards_key, parameters)
    # Half a second of primality tests would say what the ring's checksum has said.
    rsa_key = load_der_private_key(material, None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    return RSAKey(rsa_key, rsa_key, parameters)
