"""Certificates of clients for tests, made with `cryptography`: authorities, what they issue, and self-signed ones."""

import base64
import datetime
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

DAY_SECONDS = 86_400
FOR_CLIENTS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
FOR_SERVERS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


@dataclass(frozen=True, eq=False)
class Party:
    """Somebody with a certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def x5t_s256(self) -> str:
        """The thumbprint by another way than the ledger's."""
        return base64.urlsafe_b64encode(self.certificate.fingerprint(hashes.SHA256())).decode().rstrip("=")

    @property
    def x5c(self) -> str:
        return base64.b64encode(self.der).decode()

    @property
    def jwk(self) -> str:
        """A key of a key set that holds this certificate and nothing else, as text."""
        return json.dumps({"x5c": [self.x5c]})

    @property
    def rfc9440(self) -> str:
        """The value of a Client-Cert header."""
        return f":{self.x5c}:"

    @property
    def escaped(self) -> str:
        """The certificate as nginx and Envoy write it into a header."""
        return quote(self.pem, safe="")

    def written(self, folder: Path, *chain: "Party") -> Path:
        """Write key, certificate and chain into one file, as TLS libraries read them."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        file = folder / f"{self.x5t_s256}.pem"
        file.write_text(key + self.pem + "".join(each.pem for each in chain))
        file.chmod(0o600)
        return file

    def shown_by(
        self,
        trusting: ssl.SSLContext,
        folder: Path,
        *chain: "Party",
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> ssl.SSLContext:
        """A client's context that shows this certificate, with the authorities that `trusting` trusts."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=b"".join(trusting.get_ca_certs(binary_form=True)))
        context.load_cert_chain(self.written(folder, *chain))
        context.minimum_version = context.maximum_version = version
        return context


def name(text: str) -> x509.Name:
    """`CN=app,O=Example` as a name."""
    return x509.Name.from_rfc4514_string(text, {"emailAddress": NameOID.EMAIL_ADDRESS})


def certificate(
    subject: str | x509.Name = "CN=app",
    *,
    by: Party | None = None,
    authority: bool | None = None,
    path_length: int | None = None,
    names: Sequence[x509.GeneralName] = (),
    usage: x509.ExtendedKeyUsage | None = None,
    constraints: x509.NameConstraints | None = None,
    days: tuple[float, float] = (-1, 30),
    key: Key | None = None,
) -> Party:
    """A certificate from so many days before now to so many after, self-signed where nobody signs it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    signer = by.key if by is not None else key
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = (now + datetime.timedelta(days=each) for each in days)
    subject = name(subject) if isinstance(subject, str) else subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(authority, path_length), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage is not None:
        builder = builder.add_extension(usage, critical=False)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Party(builder.sign(signer, algorithm), key)


def authority(subject: str = "CN=Example CA", **options: Any) -> Party:
    """A certificate authority."""
    return certificate(subject, authority=True, **options)
