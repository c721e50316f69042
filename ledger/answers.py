"""What the application takes and gives: plain values between `api/` and the ledger. No secrets in any `repr`."""

from typing import Literal, NamedTuple, TypeAlias

import msgspec

from ledger.events import Words
from ledger.jwt_access_tokens import Unsigned
from ledger.single_use import SingleUse

GrantAct: TypeAlias = Literal["revoke", "suspend", "reinstate"]


class Source(NamedTuple):
    """Where a request came from: the source address, and the User-Agent cut to its first 512 characters."""

    address: str
    user_agent: str


class Caller(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """A client that authenticated, or a public one that names itself. `auth_method` as registered for RFC 8414.

    `single_use`: what it showed that may be used once; spent with whatever this caller is answered.
    """

    client_id: str
    authenticated: bool
    auth_method: str
    proof_jkt: str | None = None
    proof_x5t_s256: str | None = None
    single_use: tuple[SingleUse, ...] = ()

    @property
    def stream(self) -> str:
        """The client's stream, by name."""
        return f"client:{self.client_id}"


class TokenAnswer(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """A successful token response (RFC 6749 5.1). Lifetimes in whole seconds, None where unlimited; `position` is that
    of the redemption's last event, the same on an identical retry.

    `unsigned`: the access token is a JWT that is not signed yet, so `access_token` is empty: `Ledger` signs it before
    it hands the answer on.
    """

    access_token: str
    refresh_token: str | None
    scope: Words
    token_type: str
    expires_in: int
    refresh_token_timeout: int | None
    authorization_expires_in: int | None
    position: int
    grant_id: str
    unsigned: Unsigned | None = None

    def __repr__(self) -> str:
        return f"TokenAnswer(grant_id={self.grant_id!r}, position={self.position})"


class GrantRequest(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What is said of a grant that shall begin: `subject` lets `client_id` act for them."""

    client_id: str
    subject: str
    scope: Words
    resource: Words | None = None
    session: str | None = None
    auth_time: int | None = None
    acr: str | None = None
    amr: Words | None = None


class IssueRequest(GrantRequest, frozen=True, kw_only=True):
    """A grant that an issuer asks for. Lifetimes in seconds only shorten the policy's."""

    refresh_token_ttl_seconds: int | None = None
    grant_ttl_seconds: int | None = None
    device: str | None = None
    bound_jkt: str | None = None
    bound_x5t_s256: str | None = None


class AuthorizationRequest(GrantRequest, frozen=True, kw_only=True):
    """What a sign-in page decided. `challenge` is an S256 one (RFC 7636)."""

    redirect_uri: str
    challenge: str
    dpop_jkt: str | None = None


class AuthorizationAnswer(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """An authorization code, and for how many seconds it may be exchanged."""

    code: str
    expires_in: int

    def __repr__(self) -> str:
        return f"AuthorizationAnswer(expires_in={self.expires_in})"


class Introspection(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """An active token (RFC 7662 2.2). Times in microseconds; `subject` is None where the person was erased; `v` is the
    version of the event that issued an access token."""

    token_use: Literal["access_token", "refresh_token"]
    grant_id: str
    client_id: str
    subject: str | None
    scope: Words
    issued_at: int
    expires_at: int | None
    v: int | None = None
    resource: Words | None = None
    cnf_jkt: str | None = None
    cnf_x5t_s256: str | None = None
    auth_time: int | None = None
    acr: str | None = None
    amr: Words | None = None


class EpochAnswer(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """Whether the subject was ever seen, and the number of the epoch that now rules."""

    known: bool
    epoch: int


class Explanation(msgspec.Struct, gc=False, frozen=True, kw_only=True, omit_defaults=True):
    """What a token is, in one word and in plain words; who ended it, when and by which event."""

    verdict: str
    text: str
    grant_id: str | None = None
    generation: int | None = None
    current_generation: int | None = None
    reason: str | None = None
    at: str | None = None
    by: str | None = None
    event_id: str | None = None
    presentations_counted: int | None = None


class KeyView(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """A key of the ring: `active`, `verifying` or `distrusted`."""

    id: int
    state: str
    created_at: str


class RestoreReport(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What an acknowledged restore lost: positions and times from the log's end to the last acknowledged one."""

    from_position: int
    lost_position: int
    from_at: str | None
    lost_at: str
    key_id: int
