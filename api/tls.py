"""TLS: a server context from a certificate and its key, and the same context with new ones while it serves.

Client certificates (RFC 8705) join here: `load` is where the context learns whom to ask and whom to believe.
"""

import ssl
from pathlib import Path
from typing import Final

from api.settings import Settings, SettingsError

_MISMATCH: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")


class _NoPassword(Exception):
    """The key asks for a password. Nobody is there to type one."""


def context_of(settings: Settings) -> ssl.SSLContext | None:
    """Return the server's context; None where plain HTTP is allowed and no certificate is set.

    Raises SettingsError: no certificate though plain HTTP is not allowed, files that are missing, unreadable or no PEM,
    a key with a password, a key of another certificate.
    """
    if settings.tls_client_ca is not None:
        raise SettingsError("TLS_CLIENT_CA: this version does not check client certificates yet")
    if settings.tls_client_cert_header is not None:
        raise SettingsError("TLS_CLIENT_CERT_HEADER: this version does not check client certificates yet")
    if settings.tls_cert is None or settings.tls_key is None:
        if settings.allow_plain_http:
            return None
        raise SettingsError("TLS_CERT and TLS_KEY are missing: set both, or ALLOW_PLAIN_HTTP behind a proxy")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, settings.tls_cert, settings.tls_key)
    return context


def load_again(context: ssl.SSLContext, settings: Settings) -> None:
    """Read certificate and key again into the context that serves; handshakes from now on use them.

    Raises SettingsError where they are wrong, and then nothing has changed: they are tried on a context aside first.
    """
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings.tls_cert, settings.tls_key)
    _load(context, settings.tls_cert, settings.tls_key)


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _check_readable("TLS_CERT", certificate)
    _check_readable("TLS_KEY", key)
    try:
        # OpenSSL's default for a key with a password is to ask on the terminal, which would hang a service.
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _NoPassword:
        raise SettingsError(f"TLS_KEY: {key} is encrypted; give the key without a password") from None
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            raise SettingsError(f"TLS_KEY: {key} is not the key of the certificate in {certificate}") from None
        name, file = ("TLS_KEY", key) if _holds_certificate(certificate) else ("TLS_CERT", certificate)
        what = "private key" if name == "TLS_KEY" else "certificate"
        raise SettingsError(f"{name}: {file} holds no {what} in PEM that OpenSSL accepts") from None


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
