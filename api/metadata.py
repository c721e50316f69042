"""Authorization server metadata (RFC 8414): where the endpoints are and what they take, for clients that look it up.

Everything here is said by whoever does it: grant types by the token endpoint, methods of authentication by the table
that judges them. What this server does not have is left out, `authorization_endpoint` too where nobody has said which
page of the operating side people sign in on: clients that need it are told of it some other way then.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from api.answers import Answer, json_answer
from api.client_auth import METHODS
from api.settings import Settings
from api.shapes import ServerMetadata
from ledger.authorization import AUTHORIZATION_CODE

TOKEN: Final = "/oauth/v2/oauth-token"
REVOCATION: Final = "/oauth/v2/oauth-revoke"
INTROSPECTION: Final = "/oauth/v2/oauth-introspect"
JWKS: Final = "/oauth/v2/jwks"
DOCUMENTATION: Final = "/docs"

OAUTH_PLACE: Final = "/.well-known/oauth-authorization-server"
OPENID_PLACE: Final = "/.well-known/openid-configuration"

KEY_METHODS: Final = frozenset({"private_key_jwt", "client_secret_jwt"})
"""Methods of authentication that are a signature, so that the algorithms must be told (RFC 8414 2)."""


def places(issuer: str) -> tuple[str, ...]:
    """Return the paths that the metadata is served at.

    An issuer's path stands behind the well-known name (RFC 8414 3.1), for OpenID before it as well (RFC 8414 5). The
    bare names are always there: a proxy may take that path off before a request comes here.
    """
    path = unquote(urlsplit(issuer).path).rstrip("/")
    with_path = (OAUTH_PLACE + path, OPENID_PLACE + path, path + OPENID_PLACE)
    return tuple(dict.fromkeys((OAUTH_PLACE, OPENID_PLACE, *with_path)))


def url(issuer: str, path: str) -> str:
    """Return the URL of one of our paths as clients know it."""
    return issuer.rstrip("/") + path


def sees_certificates(settings: Settings) -> bool:
    """Tell whether a client's certificate can reach this server: over TLS, or in a trusted proxy's header."""
    return settings.tls_cert is not None or settings.tls_client_cert_header is not None


def auth_methods(settings: Settings) -> set[str]:
    """Return every method by which a client can authenticate with these settings.

    A certificate that is registered itself needs nothing but to be seen; one by name needs authorities that vouch.
    """
    found = {method for methods in METHODS.values() for method in methods}
    if sees_certificates(settings):
        found.add("self_signed_tls_client_auth")
        if settings.tls_client_ca is not None:
            found.add("tls_client_auth")
    return found


def metadata(
    issuer: str,
    *,
    authorization_endpoint: str | None = None,
    grant_types: Collection[str],
    auth_methods: Collection[str],
    assertion_algs: Sequence[str] = (),
    dpop_algs: Sequence[str] = (),
    binds_to_certificates: bool = False,
) -> ServerMetadata:
    """Return what this server says about itself. What it has nothing of is left out, never an empty list (MD-4)."""
    methods = sorted(auth_methods)
    algs = list(assertion_algs) if KEY_METHODS & set(methods) else None
    code = AUTHORIZATION_CODE in grant_types
    return ServerMetadata(
        issuer=issuer,
        authorization_endpoint=authorization_endpoint,
        token_endpoint=url(issuer, TOKEN),
        token_endpoint_auth_methods_supported=methods,
        token_endpoint_auth_signing_alg_values_supported=algs,
        revocation_endpoint=url(issuer, REVOCATION),
        revocation_endpoint_auth_methods_supported=methods,
        revocation_endpoint_auth_signing_alg_values_supported=algs,
        introspection_endpoint=url(issuer, INTROSPECTION),
        introspection_endpoint_auth_methods_supported=methods,
        introspection_endpoint_auth_signing_alg_values_supported=algs,
        jwks_uri=url(issuer, JWKS),
        grant_types_supported=sorted(grant_types),
        response_types_supported=["code"] if code else None,
        response_modes_supported=["query"] if code else None,
        code_challenge_methods_supported=["S256"] if code else None,
        authorization_response_iss_parameter_supported=True if code else None,
        dpop_signing_alg_values_supported=list(dpop_algs) or None,
        tls_client_certificate_bound_access_tokens=True if binds_to_certificates else None,
        refresh_token_expiration_types_supported=["authorization", "credential"],
        service_documentation=url(issuer, DOCUMENTATION),
    )


class Metadata:
    """The endpoint: one answer, made once. Served also while the log is behind what was acknowledged."""

    def __init__(self, told: ServerMetadata) -> None:
        self._answer = json_answer(200, told)

    async def document(self, scope: Any) -> Answer:
        """The metadata, the same at each of its places."""
        return self._answer
