"""Client certificates (RFC 8705 2): what is registered of one, and whether a certificate that was shown is it.

`cryptography` reads and compares; nothing of X.509 is parsed here. That whoever shows a certificate holds its key, and
who issued it, is not judged here either.
"""

import base64
import binascii
import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from ledger.clients import Settings
from ledger.times import SECOND

THUMBPRINT: Final = "x5t#S256"
"""The member of a JWK, and of `cnf`, that says a certificate's thumbprint (RFC 7517 4.9, RFC 8705 3.1)."""

_SHA256: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")  # 32 bytes in the one spelling they have
_ATTRIBUTES: Final[Mapping[str, x509.ObjectIdentifier]] = {
    # Beside those of RFC 4514 3: what OpenSSL and others write for attributes that certificates of clients have.
    "emailAddress": NameOID.EMAIL_ADDRESS,
    "E": NameOID.EMAIL_ADDRESS,
    "serialNumber": NameOID.SERIAL_NUMBER,
    "businessCategory": NameOID.BUSINESS_CATEGORY,
    "organizationIdentifier": NameOID.ORGANIZATION_IDENTIFIER,
    "jurisdictionC": NameOID.JURISDICTION_COUNTRY_NAME,
}


class Unreadable(ValueError):
    """What should be a certificate is none that `cryptography` reads."""


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """One certificate. `valid_from` is the first microsecond of its validity, `valid_until` the first one after it."""

    x509: x509.Certificate
    x5t_s256: str
    valid_from: int
    valid_until: int

    def valid_at(self, at: int) -> bool:
        """Whether a moment lies within its validity (RFC 5280 4.1.2.5)."""
        return self.valid_from <= at < self.valid_until


def read(der: bytes) -> Certificate:
    """Read a certificate. Raises Unreadable, also for bytes after it."""
    try:
        found = x509.load_der_x509_certificate(der)
        begins = int(found.not_valid_before_utc.timestamp())
        ends = int(found.not_valid_after_utc.timestamp())
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise Unreadable("no certificate") from error
    return Certificate(found, thumbprint(der), begins * SECOND, (ends + 1) * SECOND)


def thumbprint(der: bytes) -> str:
    """The SHA-256 of a certificate, base64url without padding (RFC 8705 3.1)."""
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


# ---------------------------------------------------------------- what is registered


def registered(jwks: Sequence[str]) -> Iterator[bytes]:
    """The certificates of a key set: the first of each `x5c` (RFC 7517 4.7). What is none is passed over."""
    for text in jwks:
        chain = json.loads(text).get("x5c")
        if isinstance(chain, list) and chain:
            try:
                yield base64.b64decode(chain[0], validate=True)
            except (binascii.Error, ValueError):
                continue


def thumbprints(jwks: Sequence[str]) -> frozenset[str]:
    """The thumbprints of the certificates of a key set, whether it holds them or only says their thumbprints."""
    said = (json.loads(text).get(THUMBPRINT) for text in jwks)
    return frozenset({*map(thumbprint, registered(jwks)), *(each for each in said if isinstance(each, str))})


Expectation = Callable[[Certificate], bool]
"""Whether a certificate is one that a client is registered with."""


def expectation(settings: Settings) -> Expectation:
    """What a client's certificate must be: one of those registered (RFC 8705 2.2.2), or one with the one name that is
    registered (RFC 8705 2.1.2). Settings that `registration` would not let pass expect nothing at all."""
    try:
        return _expectation(settings)
    except ValueError:
        return _nothing


def _nothing(certificate: Certificate) -> bool:
    return False


def _expectation(settings: Settings) -> Expectation:
    if settings.auth == "self_signed_tls_client_auth":
        known = thumbprints(settings.jwks or ())
        return lambda certificate: certificate.x5t_s256 in known
    if settings.auth == "tls_client_auth":
        if settings.tls_client_auth_subject_dn is not None:
            name = subject_dn(settings.tls_client_auth_subject_dn)
            return lambda certificate: _subject(certificate) == name
        for field, kind in _KINDS.items():
            value = getattr(settings, field)
            if value is not None:
                entry = (kind, _NORMALISED[kind](value))
                return lambda certificate: entry in _alternative_names(certificate)
    return _nothing


def subject_dn(text: str) -> x509.Name:
    """Read a distinguished name (RFC 4514). Two are the same where their attributes are, whatever ASN.1 string type
    holds a value; values compare exactly. Raises ValueError."""
    if "=#" in text:
        raise ValueError("a value in hexadecimal")  # read by `cryptography` as text, so it would never be met
    name = x509.Name.from_rfc4514_string(text, dict(_ATTRIBUTES))
    if not name.rdns:
        raise ValueError("no attribute")
    return name


def _subject(certificate: Certificate) -> x509.Name | None:
    try:
        return certificate.x509.subject
    except ValueError:
        return None


def _alternative_names(certificate: Certificate) -> set[tuple[type[x509.GeneralName], object]]:
    try:
        found = certificate.x509.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return set()
    names: set[tuple[type[x509.GeneralName], object]] = set()
    for each in found:
        normalised = _NORMALISED.get(type(each))
        if normalised is not None:
            names.add((type(each), normalised(str(each.value))))
    return names


def _email(text: str) -> str:
    local, at, domain = text.rpartition("@")
    return local + at + domain.lower()


_KINDS: Final[Mapping[str, type[Any]]] = {
    "tls_client_auth_san_dns": x509.DNSName,
    "tls_client_auth_san_uri": x509.UniformResourceIdentifier,
    "tls_client_auth_san_ip": x509.IPAddress,
    "tls_client_auth_san_email": x509.RFC822Name,
}
_NORMALISED: Final[Mapping[type[x509.GeneralName], Callable[[str], object]]] = {
    # A network, as CAs may hold it in a constraint, is no address of anybody.
    x509.IPAddress: lambda text: None if "/" in text else ipaddress.ip_address(text),
    x509.DNSName: str.lower,
    x509.UniformResourceIdentifier: str,
    x509.RFC822Name: _email,
}


# ---------------------------------------------------------------- what may be registered


def name_problem(field: str, value: str) -> str | None:
    """What is wrong with a `tls_client_auth_…` setting, if anything."""
    try:
        if field == "tls_client_auth_subject_dn":
            subject_dn(value)
        elif field == "tls_client_auth_san_ip":
            ipaddress.ip_address(value)
        else:
            _KINDS[field](value)
    except ValueError:
        return _ALLOWED[field]
    wildcard = field == "tls_client_auth_san_dns" and "*" in value
    return _ALLOWED[field] if wildcard or (field in _WITH_AT and "@" not in value) else None


_WITH_AT: Final = {"tls_client_auth_san_email"}
_ALLOWED: Final[Mapping[str, str]] = {
    "tls_client_auth_subject_dn": "may be a distinguished name as RFC 4514 writes it: CN=app,O=Example,C=SE",
    "tls_client_auth_san_dns": "may be a host name in ASCII, without a wildcard",
    "tls_client_auth_san_uri": "may be a URI in ASCII",
    "tls_client_auth_san_ip": "may be an IPv4 or IPv6 address",
    "tls_client_auth_san_email": "may be an address in ASCII",
}


def key_problem(key: Mapping[str, Any]) -> str | None:
    """What is wrong with the certificate that a JWK names, if anything (RFC 7517 4.7, 4.9)."""
    chain, said = key.get("x5c"), key.get(THUMBPRINT)
    if THUMBPRINT in key and not _is_thumbprint(said):
        return f"{THUMBPRINT} may be the SHA-256 of a certificate in base64url, 43 characters"
    if "x5c" not in key:
        return None
    if not isinstance(chain, list) or not chain:
        return "x5c may list certificates, each as base64 of its DER"
    try:
        certificate = read(base64.b64decode(chain[0], validate=True))
        public_key = certificate.x509.public_key()
    except (Unreadable, binascii.Error, ValueError, UnsupportedAlgorithm):
        return "x5c holds no certificate that can be read: each is base64 of its DER, without lines"
    if said is not None and said != certificate.x5t_s256:
        return f"{THUMBPRINT} is not that of the certificate in x5c"
    if "kty" in key and _spki_of(key) != public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        return "x5c is not a certificate of this key"
    return None


def _is_thumbprint(text: object) -> bool:
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def _spki_of(key: Mapping[str, Any]) -> bytes | None:
    from joserfc.errors import JoseError
    from joserfc.jwk import OctKey, import_key

    try:
        found = import_key(dict(key))
        return None if isinstance(found, OctKey) else found.as_der(private=False)
    except (JoseError, UnsupportedAlgorithm, LookupError, TypeError, ValueError):
        return None
