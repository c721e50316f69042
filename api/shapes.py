"""The JSON of requests and answers, as types: what a body may hold is checked against them, and the OpenAPI document is
made of them, so that neither can say what the other does not.

Requests forbid unknown members. In answers, what is null is left out. Scopes are space-separated strings here (RFC 6749
3.3), times RFC 3339 in UTC with six digits.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta
from msgspec import UnsetType as Unset

from ledger.policy import REASON_CHARACTERS_MAX, SECONDS_MAX, SUBJECT_CHARACTERS_MAX

T = TypeVar("T")

_NO_NUL = r"^[^\x00]*$"  # what PostgreSQL cannot store in a text is refused everywhere
GrantId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="32 lower-case hex digits.")]
GivenTime = Annotated[str, Meta(description="RFC 3339 with any offset; one without an offset is refused.")]
Scope = Annotated[str, Meta(description="Words with one space between (RFC 6749 3.3); may be empty.")]
Subject = Annotated[str, Meta(min_length=1, max_length=SUBJECT_CHARACTERS_MAX, description="Compared byte for byte.")]
Reason = Annotated[
    str,
    Meta(max_length=REASON_CHARACTERS_MAX, pattern=_NO_NUL, description="Kept beside the events, erasable."),
]
Seconds = Annotated[int, Meta(ge=1, le=SECONDS_MAX)]
Private = Annotated[str, Meta(min_length=1, max_length=255, pattern=_NO_NUL)]
Claim = Annotated[str, Meta(min_length=1, max_length=255)]
_SHA256 = "^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$"
_SHA256_CHARACTERS = 43  # a pattern's end alone lets a line feed pass
Thumbprint = Annotated[
    str,
    Meta(pattern=_SHA256, max_length=_SHA256_CHARACTERS, description="SHA-256, base64url without padding."),
]
Names = Annotated[list[str], Meta(min_length=1)]
STATE_CHARACTERS_MAX = 2048
"""More than any client needs; the address that carries it must fit into a request's head."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body that may hold its members and no others. A member left out is UNSET; null is none of its values."""


def given(value: T | Unset) -> T | None:
    """Return a member of a request, None where it was left out."""
    return None if value is UNSET else value


class Shape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer; members that are null are left out."""


# ---------------------------------------------------------------- tokens


class Confirmation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key that a token is bound to (RFC 7800): of a DPoP proof (RFC 9449) or of a certificate (RFC 8705)."""

    jkt: Thumbprint | Unset = UNSET
    x5t_s256: Thumbprint | Unset = msgspec.field(default=UNSET, name="x5t#S256")


class TokenResponse(Shape, frozen=True, kw_only=True):
    """A successful token response (RFC 6749 5.1)."""

    access_token: str
    refresh_token: str | None = None
    scope: Scope
    token_type: Literal["bearer", "DPoP"]
    expires_in: Annotated[int, Meta(ge=1, description="Seconds, rounded down.")]
    refresh_token_timeout: Annotated[int, Meta(ge=0, description="Seconds; absent where unlimited.")] | None = None
    authorization_expires_in: Annotated[int, Meta(ge=0, description="Seconds; absent where unlimited.")] | None = None


class IssuedResponse(TokenResponse, frozen=True, kw_only=True):
    """The first tokens of a new grant, and its id. The same answer again, for the same `Idempotency-Key`, may come when
    its access token has expired."""

    expires_in: Annotated[int, Meta(ge=0, description="Seconds, rounded down; 0 of one that has expired since.")]
    grant_id: GrantId


class AuthorizationResponse(Shape, frozen=True, kw_only=True):
    """An authorization code (RFC 6749 4.1.2), and where to send the person: the redirect address with `code`, `state`
    and `iss` (RFC 9207)."""

    code: str
    expires_in: Annotated[int, Meta(ge=1, le=60, description="Seconds.")]
    redirect_to: str


class IntrospectionResponse(Shape, frozen=True, kw_only=True):
    """Whether a token is active (RFC 7662 2.2); one that is not says nothing else."""

    active: bool
    token_use: Literal["access_token", "refresh_token"] | None = None
    scope: Scope | None = None
    client_id: str | None = None
    sub: Annotated[str, Meta(description="The subject as issued.")] | None = None
    iss: str | None = None
    aud: str | list[str] | None = None
    iat: int | None = None
    exp: Annotated[int, Meta(description="Of the token presented; absent where unlimited.")] | None = None
    jti: Annotated[str, Meta(description="Of an access token: its grant, and the event that issued it.")] | None = None
    token_type: Literal["bearer", "DPoP"] | None = None
    grant_id: GrantId | None = None
    cnf: Confirmation | None = None
    auth_time: int | None = None
    acr: str | None = None
    amr: list[str] | None = None


class ErrorResponse(Shape, frozen=True, kw_only=True):
    """An error (RFC 6749 5.2). `reason` and `event_id` stand only in answers to the owner of a refresh token."""

    error: str
    error_description: str | None = None
    reason: (
        Literal[
            "rotated",
            "reuse_detected",
            "expired_idle",
            "expired_absolute",
            "revoked_by_client",
            "revoked_by_operator",
            "revoked_by_subject",
            "suspended",
            "key_distrusted",
            "no_scope_left",
        ]
        | None
    ) = None
    event_id: str | None = None


# ---------------------------------------------------------------- discovery


class ServerMetadata(Shape, frozen=True, kw_only=True):
    """What clients may look up about this server (RFC 8414 2)."""

    issuer: Annotated[str, Meta(description="Who issues the tokens; compared character by character.")]
    authorization_endpoint: Annotated[
        str | None, Meta(description="The page of the operating side where people sign in, where it is set.")
    ] = None
    token_endpoint: str
    token_endpoint_auth_methods_supported: Names
    token_endpoint_auth_signing_alg_values_supported: Names | None = None
    revocation_endpoint: str
    revocation_endpoint_auth_methods_supported: Names
    revocation_endpoint_auth_signing_alg_values_supported: Names | None = None
    introspection_endpoint: str
    introspection_endpoint_auth_methods_supported: Names
    introspection_endpoint_auth_signing_alg_values_supported: Names | None = None
    jwks_uri: str
    grant_types_supported: Names
    response_types_supported: Names | None = None
    response_modes_supported: Names | None = None
    code_challenge_methods_supported: Names | None = None
    authorization_response_iss_parameter_supported: bool | None = None
    dpop_signing_alg_values_supported: Names | None = None
    tls_client_certificate_bound_access_tokens: bool | None = None
    refresh_token_expiration_types_supported: Names
    service_documentation: str


class PublicKey(Shape, frozen=True, kw_only=True):
    """A public key that access tokens are signed with (RFC 7517 4; RFC 7518 6 or RFC 8037 2)."""

    kty: Literal["EC", "OKP", "RSA"]
    use: Literal["sig"]
    alg: Literal["ES256", "EdDSA", "RS256"]
    kid: str
    crv: Literal["P-256", "Ed25519"] | None = None
    x: str | None = None
    y: str | None = None
    n: str | None = None
    e: str | None = None


class PublicKeys(Shape, frozen=True, kw_only=True):
    """The keys of every good access token that is a JWT (RFC 7517 5)."""

    keys: list[PublicKey]


# ---------------------------------------------------------------- what operators send


class IssueBody(Request, frozen=True, kw_only=True):
    """What an issuer asks for. Lifetimes only shorten what the client's policy gives."""

    client_id: str
    subject: Subject
    scope: Scope
    resource: Annotated[list[str], Meta(min_length=1, max_length=64)] | str | Unset = UNSET
    refresh_token_ttl_seconds: Seconds | Unset = UNSET
    grant_ttl_seconds: Seconds | Unset = UNSET
    device: Private | Unset = UNSET
    session: Private | Unset = UNSET
    cnf: Confirmation | Unset = UNSET
    auth_time: Annotated[int, Meta(ge=0, le=253_402_300_799)] | Unset = UNSET
    acr: Claim | Unset = UNSET
    amr: Annotated[list[Claim], Meta(min_length=1, max_length=32)] | Unset = UNSET


class AuthorizationBody(Request, frozen=True, kw_only=True):
    """What a sign-in page decided: this person lets this client act for them, within this scope. What belongs to the
    client's own request (RFC 6749 4.1.1, RFC 7636 4.3, RFC 9449 10) is passed on as it came."""

    client_id: str
    subject: Subject
    scope: Scope
    redirect_uri: Annotated[str, Meta(description="Exactly as registered; of a loopback address any port.")]
    code_challenge: Annotated[str, Meta(pattern=_SHA256, max_length=_SHA256_CHARACTERS, description="RFC 7636 4.2.")]
    code_challenge_method: Literal["S256"]
    state: Annotated[str, Meta(min_length=1, max_length=STATE_CHARACTERS_MAX)] | Unset = UNSET
    resource: Annotated[list[str], Meta(min_length=1, max_length=64)] | str | Unset = UNSET
    dpop_jkt: Thumbprint | Unset = UNSET
    session: Private | Unset = UNSET
    auth_time: Annotated[int, Meta(ge=0, le=253_402_300_799)] | Unset = UNSET
    acr: Claim | Unset = UNSET
    amr: Annotated[list[Claim], Meta(min_length=1, max_length=32)] | Unset = UNSET


class SearchBody(Request, frozen=True, kw_only=True):
    """Which grants of a person to list. It is a body, because subjects never stand in a URL."""

    subject: Subject
    client_id: str | Unset = UNSET
    state: Literal["active", "suspended", "revoked", "expired"] | Unset = UNSET
    cursor: str | Unset = UNSET
    limit: int | Unset = UNSET


class ActBody(Request, frozen=True, kw_only=True):
    """Why an operator revokes or suspends a grant."""

    reason: Reason | Unset = UNSET


class ReinstateBody(Request, frozen=True, kw_only=True):
    """Why an operator lets a grant go on; after reuse or rollback also that the current token's holder is trusted."""

    reason: Reason | Unset = UNSET
    trust: Literal["current"] | Unset = UNSET


class RevokeSubjectBody(Request, frozen=True, kw_only=True):
    """Ends a person's grants, or with `before` those issued earlier than that."""

    subject: Subject
    reason: Reason
    before: GivenTime | Unset = UNSET


class RevokeClientBody(Request, frozen=True, kw_only=True):
    """Ends a client's grants, or with `before` those issued earlier than that."""

    reason: Reason
    before: GivenTime | Unset = UNSET


class ExplainBody(Request, frozen=True, kw_only=True):
    """The token to explain; white space around it is ignored."""

    token: str


# ---------------------------------------------------------------- what operators get


class SubjectEpoch(Shape, frozen=True, kw_only=True):
    """What became of a subject's grants: `known` is false where the subject was never seen, and nothing is recorded."""

    known: bool
    epoch: int | None = None


class ClientEpoch(Shape, frozen=True, kw_only=True):
    """Which epoch of the client rules now."""

    client_id: str
    epoch: int


class Healthy(Shape, frozen=True, kw_only=True):
    """The process answers, or serves."""

    status: Literal["ok", "ready"]


class Unready(Shape, frozen=True, kw_only=True):
    """Requests are not served now, and why."""

    status: Literal["unready"]
    reason: str
