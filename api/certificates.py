"""Client certificates (RFC 8705): which one came with a request, whether it is the client's, and who vouches for it.

One comes with the TLS connection, or in one header of a trusted proxy (RFC 9440). Either way it is judged here, at
every request: its dates, who issued it, and what the client is registered with. That the handshake let it through, or a
proxy did, proves that the client holds its key, and nothing more: so neither a session taken up again nor a certificate
that some registered one has signed is anybody else's identity.
"""

import binascii
import datetime
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from api.answers import BadRequest
from api.logs import Log
from api.settings import SettingsError
from ledger.certificates import Certificate, Expectation, Unreadable, expectation, read
from ledger.clients import Client, Settings
from ledger.times import SECOND

DER: Final = "client_cert_der"
"""In `extensions["tls"]` of an ASGI scope: the certificate of the connection's peer, DER."""
HEADER: Final = "client_cert_header"
"""There, instead: the values of the proxy's header, as received."""

AUTHORITY_RSA_BITS_MIN: Final = 2048

_CA: Final = "TOKEN_LEDGER_TLS_CLIENT_CA"
_KEPT_MAX: Final = 1024
_KEPT_BYTES_MAX: Final = 8192

_TWICE: Final = "the header with the client certificate is given twice"
_NO_CERTIFICATE: Final = "the client certificate cannot be read"
_NOT_NOW: Final = "the client certificate has expired or is not valid yet"

log = Log("api.certificates")

_Asgi = Callable[[Any, Any, Any], Any]


class Peers(Protocol):
    """Who knows the proxies."""

    def trusts(self, peer: str) -> bool:
        """Whether this address is a trusted proxy's."""
        ...


class Forwarded:
    """An endpoint behind proxies, which may tell the client's certificate in a header.

    What a trusted proxy says is the certificate, and its own, which it may show on its connection to us, is not, also
    where it tells of none. The header is taken away from everybody else's requests.
    """

    def __init__(self, header: str | None, peers: Peers, endpoint: _Asgi) -> None:
        """`header` is its name, None where none is believed."""
        self._header = header.lower().encode("ascii") if header is not None else b""
        self._peers = peers
        self._endpoint = endpoint

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers, client = scope["headers"], scope["client"]
        values = tuple(value for name, value in headers if name == self._header)
        told = {**scope}  # the server may go on with its own for the next request
        if values:
            told["headers"] = [each for each in headers if each[0] != self._header]
        if client is not None and self._peers.trusts(client[0]):
            told.pop("extensions", None)
            if values and values != (b"",):  # nginx and others send an empty one where there is no certificate
                told["extensions"] = {"tls": {HEADER: values}}
        await self._endpoint(told, receive, send)


class ClientCertificates:
    """Reads the certificates that come with requests, and tells whose they are. Lives in the event loop.

    What was read and who vouched is remembered for a while: clients come back with the same certificate all day.
    """

    def __init__(self, clock: Callable[[], int], ca_file: Path | None = None) -> None:
        """`clock` gives the wall clock in microseconds; `ca_file` is TLS_CLIENT_CA. Raises SettingsError."""
        self._clock = clock
        self._ca_file = ca_file
        self.authorities = Authorities.load(ca_file)
        self._read: dict[bytes, Certificate] = {}
        self._expected: dict[str, tuple[Settings, Expectation]] = {}
        self._vouched_until: dict[str, int] = {}

    def load_again(self) -> None:
        """Read TLS_CLIENT_CA again. Raises SettingsError, and then nothing has changed."""
        self.authorities = Authorities.load(self._ca_file)
        self._vouched_until.clear()

    def of(self, extensions: Mapping[str, Any]) -> Certificate | None:
        """Return the certificate that came with a request (its scope's `extensions`), None where there is none.

        Raises BadRequest where there are two, or something that is none. Whose it is, and its dates, are not judged.
        """
        tls = extensions.get("tls")
        if tls is None:
            return None
        der = tls.get(DER)
        if der is not None:
            return self._remembered(der, read)
        values = tls.get(HEADER)
        if values is None:
            return None
        if len(values) > 1:
            raise BadRequest(_TWICE)
        return self._remembered(values[0], _read_header)

    def _remembered(self, shown: bytes, read_it: Callable[[bytes], Certificate]) -> Certificate:
        found = self._read.get(shown)
        if found is None:
            try:
                found = read_it(shown)
            except Unreadable:
                raise BadRequest(_NO_CERTIFICATE) from None
            if len(shown) <= _KEPT_BYTES_MAX:
                _bound(self._read)
                self._read[shown] = found
        return found

    def authenticates(self, client: Client, certificate: Certificate) -> bool:
        """Whether this certificate proves that its holder is the client (RFC 8705 2): registered for certificates, with
        this one or its name, its dates right, and, where it goes by a name, issued under TLS_CLIENT_CA."""
        now = self._clock()
        if not certificate.valid_at(now) or not self._expectation(client)(certificate):
            return False
        return client.auth == "self_signed_tls_client_auth" or self._vouched(certificate, now)

    def proof(self, extensions: Mapping[str, Any]) -> str | None:
        """Return the thumbprint that access tokens are bound to (RFC 8705 3), None where no certificate was shown.

        Raises BadRequest as `of`, and where its dates are wrong: whoever meant to be bound must not silently be left
        unbound.
        """
        certificate = self.of(extensions)
        if certificate is None:
            return None
        if not certificate.valid_at(self._clock()):
            raise BadRequest(_NOT_NOW)
        return certificate.x5t_s256

    def _expectation(self, client: Client) -> Expectation:
        known = self._expected.get(client.client_id)
        if known is None or known[0] is not client.settings:
            known = self._expected[client.client_id] = (client.settings, expectation(client.settings))
        return known[1]

    def _vouched(self, certificate: Certificate, now: int) -> bool:
        until = self._vouched_until.get(certificate.x5t_s256)
        if until is None or now >= until:
            until = self.authorities.vouch(certificate, now)
            if until is None:
                return False
            _bound(self._vouched_until)
            self._vouched_until[certificate.x5t_s256] = until
        return True


class Authorities:
    """The certificate authorities of TLS_CLIENT_CA, intermediate ones among them: what clients send along with their
    own certificate is not looked at, so it cannot matter on which way a certificate came."""

    def __init__(self, certificates: Iterable[x509.Certificate] = ()) -> None:
        self.certificates = tuple(certificates)
        self._store = Store(list(self.certificates)) if self.certificates else None

    @classmethod
    def load(cls, file: Path | None) -> "Authorities":
        """Read a PEM file; None holds none. Raises SettingsError: missing, unreadable, no PEM, not all authorities."""
        if file is None:
            return cls()
        try:
            text = file.read_bytes()
        except OSError as error:
            raise SettingsError(f"{_CA}: {file} cannot be read: {error.strerror}") from None
        try:
            certificates = x509.load_pem_x509_certificates(text)
        except ValueError:
            raise SettingsError(f"{_CA}: {file} holds no certificates in PEM") from None
        for number, each in enumerate(certificates, start=1):
            if (problem := _authority_problem(each)) is not None:
                raise SettingsError(f"{_CA}: {file}: certificate {number} {problem}")
        return cls(certificates)

    @property
    def der(self) -> list[bytes]:
        """Every one of them, DER."""
        return [each.public_bytes(Encoding.DER) for each in self.certificates]

    def vouch(self, certificate: Certificate, at: int) -> int | None:
        """Whether one of these authorities issued a certificate, of version 3, for clients (RFC 5280 6): None if not,
        else until when that holds, in microseconds."""
        if self._store is None:
            return None
        moment = datetime.datetime.fromtimestamp(at // SECOND, datetime.UTC)
        try:
            verifier = (
                PolicyBuilder()
                .store(self._store)
                .time(moment)
                .extension_policies(ca_policy=_CA_POLICY, ee_policy=_CLIENT_POLICY)
                .build_client_verifier()
            )
            chain = verifier.verify(certificate.x509, []).chain
        except (VerificationError, ValueError) as error:
            # For whoever sets a client up; names of its certificate, which stand in brackets there, are in no log.
            log.debug("not_vouched_for", x5t_s256=certificate.x5t_s256, why=str(error).partition(" (")[0])
            return None
        return min(int(each.not_valid_after_utc.timestamp()) + 1 for each in chain) * SECOND


def _authority_problem(certificate: x509.Certificate) -> str | None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        key = certificate.public_key()
    except (x509.ExtensionNotFound, x509.DuplicateExtension, UnsupportedAlgorithm, ValueError):
        return "is no certificate authority"
    if not constraints.ca:
        return "is no certificate authority"
    if isinstance(key, EllipticCurvePublicKey) or (
        isinstance(key, RSAPublicKey) and key.key_size >= AUTHORITY_RSA_BITS_MIN
    ):
        return None
    return "has a key that chains are not verified with: allowed are EC and RSA with 2048 bits or more"


def _for_clients(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and not {*usage} & {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    }:
        raise ValueError("not for clients")


def _signs(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("signs no certificates")


# The rules of the public web (names of hosts above all) are not those of an authority for clients: what stays is that
# whoever signs is an authority, and that nothing is used for what it was not issued for.
_CLIENT_POLICY: Final = ExtensionPolicy.permit_all().may_be_present(
    x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_clients
)
_CA_POLICY: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_clients)
)


def _read_header(value: bytes) -> Certificate:
    """Read what a proxy wrote: a byte sequence (RFC 9440 2.1, RFC 8941 3.3.5), or URL-encoded PEM, the client's own
    certificate first. Raises Unreadable."""
    try:
        if value[:1] == value[-1:] == b":" and len(value) > 1:
            return read(b64decode(value[1:-1], validate=True))
        first = x509.load_pem_x509_certificates(unquote_to_bytes(value))[0]
        return read(first.public_bytes(Encoding.DER))
    except (binascii.Error, ValueError) as error:
        raise Unreadable("no certificate") from error


def _bound(kept: dict[Any, Any]) -> None:
    if len(kept) >= _KEPT_MAX:
        kept.clear()  # simpler than an order, and as good: what is in use comes back at once
