"""TLS: a server context from a certificate and its key, and another one with new ones while it serves.

Client certificates (RFC 8705) are asked for where TLS_CLIENT_CA is set or some client has registered one, and nobody
must show any. OpenSSL refuses the handshake with one that leads to no trust anchor, so each that is registered is an
anchor. Being let in makes nobody a client: that is judged at every request (`api/certificates.py`). So anchors are
only ever added while the context serves, and one too many lets somebody in who is then refused in words.
"""

import ssl
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from api.certificates import Authorities, ClientCertificates
from api.logs import Log
from api.settings import Settings, SettingsError
from ledger import times
from ledger.authority import Authority
from ledger.certificates import registered, thumbprint

log = Log("api.tls")

_CERT: Final = "TOKEN_LEDGER_TLS_CERT"
_KEY: Final = "TOKEN_LEDGER_TLS_KEY"
_SOON_SECONDS: Final = 14 * 86_400
"""So long before the certificate runs out whoever looks after the server is told at a start or reload."""

_MISMATCH: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")


class _NoPassword(Exception):
    """The key asks for a password. Nobody is there to type one."""


class Context(ssl.SSLContext):
    """What the event loop is given once for all connections. After `load_again` each is begun in the newest context.

    That is another one: OpenSSL keeps a certificate for each type of key, so beside a new one of another type this one
    would go on showing the old. (An `sni_callback` may choose a context, too, but Python writes a traceback for whoever
    sends a name that is not ASCII.) Sessions of the old one are not taken up again; its connections stay.
    """

    def __init__(self, *_: Any) -> None:
        self._newest: ssl.SSLContext | None = None
        self._anchors: set[bytes] = set()
        self.expires_at: int | None = None
        """When the newest certificate runs out, in seconds since 1970; None where that cannot be read."""

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection: both event loops call this for each."""
        if self._newest is None:
            return super().wrap_bio(*arguments, **options)
        return self._newest.wrap_bio(*arguments, **options)

    def trust(self, anchors: Iterable[bytes]) -> None:
        """Let in whose certificate leads to one of these, from now on. Raises ssl.SSLError."""
        found = list(anchors)
        _trust(self if self._newest is None else self._newest, found)
        self._anchors.update(found)

    def load_again(self, settings: Settings) -> None:
        """Read certificate and key again; handshakes from now on use them, and trust whom they trusted before.

        Raises SettingsError where they are wrong, and then nothing has changed.
        """
        assert settings.tls_cert is not None
        assert settings.tls_key is not None
        newest = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _equip(newest, settings.tls_cert, settings.tls_key)
        if self._anchors:
            _trust(newest, self._anchors)
        self._newest = newest
        self.note_end(settings.tls_cert)

    def note_end(self, certificate: Path) -> None:
        """Note when a certificate that has just been read runs out. It is shown all the same, and clients refuse it
        then: let whoever looks after the server know before."""
        self.expires_at = _end_of(certificate)
        if self.expires_at is not None and self.expires_at - time.time() < _SOON_SECONDS:
            expired = self.expires_at < time.time()
            log.warning("certificate_expires", expires_at=times.text(self.expires_at * times.SECOND), expired=expired)


def context_of(settings: Settings) -> Context | None:
    """Return the server's context; None where plain HTTP is allowed and no certificate is set.

    Raises SettingsError: no certificate though plain HTTP is not allowed, files that are missing, unreadable or no PEM,
    a key with a password, a key of another certificate; in TLS_CLIENT_CA something else than authorities.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        if settings.allow_plain_http:
            return None
        raise SettingsError(
            "TOKEN_LEDGER_TLS_CERT and TOKEN_LEDGER_TLS_KEY are missing: set both, or TOKEN_LEDGER_ALLOW_PLAIN_HTTP=1"
            " behind a proxy"
        )
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    _equip(context, settings.tls_cert, settings.tls_key)
    context.note_end(settings.tls_cert)
    if settings.tls_client_ca is not None:
        context.trust(Authorities.load(settings.tls_client_ca).der)
    return context


class Anchors:
    """Keeps the trust anchors of the context that serves up with what is registered. Lives in the event loop."""

    def __init__(self, context: Context, authority: Authority, certificates: ClientCertificates) -> None:
        self._context = context
        self._authority = authority
        self._certificates = certificates
        self._authorities = certificates.authorities  # which `context_of` has read
        self._changes = -1
        self._known: set[bytes] = set()

    def renew(self) -> None:
        """Take up what has changed since the last time. To be called before each handshake: mostly there is nothing."""
        if self._changes != self._authority.client_changes:
            self._changes = self._authority.client_changes
            enabled = (client for client in self._authority.clients.values() if client.enabled)
            self._add(der for client in enabled if client.settings.jwks for der in registered(client.settings.jwks))
        if self._authorities is not self._certificates.authorities:
            self._authorities = self._certificates.authorities
            self._add(self._authorities.der)

    def _add(self, found: Iterable[bytes]) -> None:
        for der in found:
            if der not in self._known:
                self._known.add(der)
                try:
                    self._context.trust([der])
                except ssl.SSLError as error:  # OpenSSL reads less than `cryptography`; its client is refused for now
                    log.warning("certificate_not_trusted", x5t_s256=thumbprint(der), why=error.reason)


def _trust(context: ssl.SSLContext, anchors: Iterable[bytes]) -> None:
    context.load_verify_locations(cadata=b"".join(anchors))
    context.verify_mode = ssl.CERT_OPTIONAL
    # Every anchor is one for itself: intermediate authorities, and certificates that are registered though an authority
    # unknown here has issued them.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_RENEGOTIATION  # who is at the other end of a connection stays who that is


def _equip(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, certificate, key)


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _check_readable(_CERT, certificate)
    _check_readable(_KEY, key)
    try:
        # OpenSSL's default for a key with a password is to ask on the terminal, which would hang a service.
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _NoPassword:
        raise SettingsError(f"{_KEY}: {key} is encrypted; give the key without a password") from None
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            raise SettingsError(f"{_KEY}: {key} is not the key of the certificate in {certificate}") from None
        name, file = (_KEY, key) if _holds_certificate(certificate) else (_CERT, certificate)
        what = "private key" if name == _KEY else "certificate"
        raise SettingsError(f"{name}: {file} holds no {what} in PEM that OpenSSL accepts") from None


def _end_of(certificate: Path) -> int | None:
    """When the first certificate of a file runs out, which is the server's own."""
    try:
        return int(x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp())
    except (OSError, ValueError):  # OpenSSL has read it, and reads more than `cryptography`
        return None


def _check_readable(name: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{name}: {file} cannot be read: {error.strerror}") from None


def _holds_certificate(file: Path) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        return False
    return True


def _refuse_password() -> str:
    raise _NoPassword
