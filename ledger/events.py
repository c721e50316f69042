"""Every fact that can be recorded. A class is one topic; the topic is its permanent name on disk.

The stored bytes of an event are one flat JSON object in the canonical form of RFC 8785, made once by `encode` and
never again: the hash of those bytes is the `prev` of the stream's next event. What is null is left out. Members may
be added with a default of None; none is ever renamed, re-used or dropped, so what was once written decodes for ever
(tests/golden holds one file per topic).

Times are the texts of `times.text`; scopes and other lists are lists of strings; a `*_key_id` is 1–255; `v` counts a
stream's events from 1. Personal data stands here only as commitments (`private.py`), tokens and secrets never.
"""

import hashlib
from typing import TypeAlias

import msgspec

Words: TypeAlias = tuple[str, ...]
"""A list of strings as stored: a scope in its granted order, resources, amr values."""


class Event(msgspec.Struct, gc=False, frozen=True, kw_only=True, omit_defaults=True, tag_field="topic"):
    """What every event says: where it stands (`stream`, `v`), when, by which command, and what came before it.

    `prev` is the SHA-256, lower-case hex, of the stored bytes of the stream's previous event; None only in its first.
    It is set by `linked` when the event is appended, never by `decide`.
    """

    stream: str
    v: int
    at: str
    command_id: str
    prev: str | None = None

    @property
    def event_id(self) -> str:
        """`<stream>/<v>`: how answers and other events name this one."""
        return f"{self.stream}/{self.v}"

    @property
    def topic(self) -> str:
        """The permanent name of the kind of fact."""
        return str(self.__struct_config__.tag)


# ---------------------------------------------------------------- what happens to one grant


class GrantFact(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Any event of a grant: also the control counter that its transaction read (I-06)."""

    control: int


class AccessTokenFact(GrantFact, frozen=True, kw_only=True, omit_defaults=True):
    """An event that minted an access token, and what that token is. `resource` is left out where the audience is the
    issuer; issued and expiry are wall clock, whole seconds (a JWT's iat and exp); `client_v` is the version of the
    client's event that ruled; `signing_key_id` the key that derives (opaque) or signs (jwt) it."""

    scope: Words
    resource: Words | None = None
    cnf_jkt: str | None = None
    cnf_x5t_s256: str | None = None
    format: str
    signing_key_id: int
    access_token_issued_at: str
    access_token_expires_at: str
    client_v: int


class PresentedFact(GrantFact, frozen=True, kw_only=True, omit_defaults=True):
    """An event that a presentation caused, and who presented: the commitment of the context, the RFC 8414 name of the
    client authentication method (`none` for a public client), and the key shown with this request."""

    context: str
    auth_method: str
    proof_jkt: str | None = None
    proof_x5t_s256: str | None = None


class GrantAuthorized(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.authorized"):
    """The subject agreed and a code was derived (RFC 6749 4.1.2): the first event of a grant of the code flow."""

    client_id: str
    subject_id: str
    client_epoch: int
    subject_epoch: int
    nonce_sha256: str
    key_id: int
    issued_by: str
    redirect_uri: str
    challenge: str
    scope: Words
    resource: Words | None = None
    dpop_jkt: str | None = None
    session: str | None = None
    auth_time: int | None = None
    acr: str | None = None
    amr: Words | None = None
    code_expires_at: str


class GrantIssued(AccessTokenFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.issued"):
    """The grant and generation 0 come to be, with the policy fields that ruled and the first access token.

    `idle_seconds` is the grant's own idle lifetime (None: the client's rules at each redemption). `policy_*` as in
    `policy.Policy`: None is unlimited, 0 is off. `key_id` made generation 0.
    """

    client_id: str
    subject_id: str
    client_epoch: int
    subject_epoch: int
    nonce_sha256: str
    key_id: int
    generation: int
    policy_rotation: str
    policy_concurrent_seconds: int
    policy_retry_window_seconds: int
    policy_retry_budget: int
    policy_unconfirmed_seconds: int
    policy_on_reuse: str
    policy_scope_mode: str
    policy_access_token_ttl_seconds: int
    policy_refresh_token_ttl_seconds: int | None = None
    policy_grant_ttl_seconds: int | None = None
    policy_access_token_format: str
    idle_seconds: int | None = None
    idle_expires_at: str | None = None
    absolute_expires_at: str | None = None
    bound_jkt: str | None = None
    bound_x5t_s256: str | None = None
    auth_time: int | None = None
    acr: str | None = None
    amr: Words | None = None
    issued_by: str
    session: str | None = None
    device: str | None = None


class TokenRedeemed(AccessTokenFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.token_redeemed"):
    """A current refresh token bought an access token (RFC 6749 6). `idle_expires_at` stands here in reuse mode only;
    where the token rotates, the rotation carries it. The presenter's members are those of `PresentedFact`."""

    generation: int
    context: str
    auth_method: str
    proof_jkt: str | None = None
    proof_x5t_s256: str | None = None
    idle_expires_at: str | None = None


class TokenRotated(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.token_rotated"):
    """The redeemed token was retired for its successor `generation`, made under `key_id` (RFC 9700 4.14.2).

    The windows and the budget are those of the *predecessor*, frozen here; a window of 0 is left out.
    """

    generation: int
    key_id: int
    idle_expires_at: str | None = None
    concurrent_until: str | None = None
    retry_until: str | None = None
    unconfirmed_until: str | None = None
    retry_budget: int


class ScopeReduced(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.scope_reduced"):
    """The grant carries less scope from here on."""

    scope_before: Words
    scope_after: Words
    requested_by: str


class ScopeRestored(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.scope_restored"):
    """The grant carries scope again that it did not just before, never more than was granted."""

    scope_before: Words
    scope_after: Words
    requested_by: str


class RetryServed(PresentedFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.retry_served"):
    """The immediate predecessor came again because its answer was lost or raced, and was answered with the same
    successor. `kind` is `concurrent`, `lost_response` or `unconfirmed`; `counts` whether it used the budget. The
    access-token members stand here only where this retry was given an access token of its own."""

    presented_generation: int
    kind: str
    counts: bool
    scope: Words | None = None
    resource: Words | None = None
    cnf_jkt: str | None = None
    cnf_x5t_s256: str | None = None
    format: str | None = None
    signing_key_id: int | None = None
    access_token_issued_at: str | None = None
    access_token_expires_at: str | None = None
    client_v: int | None = None


class ReuseDetected(PresentedFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.reuse_detected"):
    """A retired token came back and it is no retry: the attack, or what cannot be told from it (RFC 9700 4.14.2).

    `label` is `late_retry` or `fork`; `seconds_since_redeemed` counts from the first redemption of the presented
    generation, rounded down; `first_context` is who redeemed it; `action` what `on_reuse` did.
    """

    presented_generation: int
    current_generation: int
    label: str
    seconds_since_redeemed: int
    first_context: str
    action: str


class GrantSuspended(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.suspended"):
    """Nothing of the grant works until it is reinstated; no expiry is extended. `reason` is a commitment."""

    reason_class: str
    reason: str | None = None
    requested_by: str


class GrantReinstated(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.reinstated"):
    """A suspension is over. `trust` is `current` where an operator said that the current token's holder is honest."""

    reason: str | None = None
    requested_by: str
    trust: str | None = None


class GrantRevoked(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.revoked"):
    """The grant is ended for good (I-07). `reason_class`: withdrawal, completion, termination, reuse, rollback."""

    reason_class: str
    reason: str | None = None
    requested_by: str


class GrantExpired(PresentedFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.expired"):
    """The owner presented a token after the end. `kind` is `idle` or `absolute`, `expired_at` the frozen moment."""

    kind: str
    expired_at: str
    presented_generation: int


class RefreshTokenWithheld(
    GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.refresh_token_withheld"
):
    """The client may have no refresh tokens: this grant has no current generation from here on."""


class AccessTokenRevoked(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.access_token_revoked"):
    """One access token, minted by event `issued_v`, is inactive; the grant lives (RFC 7009 2.1)."""

    issued_v: int
    requested_by: str


class ForeignClientPresented(
    PresentedFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.foreign_client_presented"
):
    """Another client presented a genuine token of this grant. Recorded once; no action (RFC 6749 10.4)."""

    presented_generation: int
    presenter_client_id: str


class PresentationsCounted(GrantFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.presentations_counted"):
    """How often tokens were presented without an event of their own: `count` since the issuance, or since the end."""

    count: int
    first_at: str
    last_at: str
    last_generation: int
    last_context: str


class RollbackDetected(PresentedFact, frozen=True, kw_only=True, omit_defaults=True, tag="grant.rollback_detected"):
    """A genuine token is ahead of the log: acknowledged events have been lost (I-15). A suspension follows."""

    presented_generation: int
    current_generation: int


GrantEvent: TypeAlias = (
    GrantAuthorized
    | GrantIssued
    | TokenRedeemed
    | TokenRotated
    | ScopeReduced
    | ScopeRestored
    | RetryServed
    | ReuseDetected
    | GrantSuspended
    | GrantReinstated
    | GrantRevoked
    | GrantExpired
    | RefreshTokenWithheld
    | AccessTokenRevoked
    | ForeignClientPresented
    | PresentationsCounted
    | RollbackDetected
)

# ---------------------------------------------------------------- clients, operators, epochs


class ClientSettings(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Every setting of a client as it rules from here (RFC 7591 names); secrets only as keyed hashes; a `jwks` is the
    list of its keys, each as canonical JSON; `policy_*` as in `GrantIssued`."""

    auth: str
    scope: Words
    grant_types: Words
    secret_hashes: Words
    policy_rotation: str
    policy_concurrent_seconds: int
    policy_retry_window_seconds: int
    policy_retry_budget: int
    policy_unconfirmed_seconds: int
    policy_on_reuse: str
    policy_scope_mode: str
    policy_access_token_ttl_seconds: int
    policy_refresh_token_ttl_seconds: int | None = None
    policy_grant_ttl_seconds: int | None = None
    policy_access_token_format: str
    jwks: Words | None = None
    jwks_uri: str | None = None
    token_endpoint_auth_signing_alg: str | None = None
    assertion_audience: str | None = None
    tls_client_auth_subject_dn: str | None = None
    tls_client_auth_san_dns: str | None = None
    tls_client_auth_san_uri: str | None = None
    tls_client_auth_san_ip: str | None = None
    tls_client_auth_san_email: str | None = None
    dpop_bound_access_tokens: bool | None = None
    dpop_nonce_required: bool | None = None
    tls_client_certificate_bound_access_tokens: bool | None = None
    resource: Words | None = None
    may_introspect: Words | None = None
    origins: Words | None = None
    redirect_uris: Words | None = None
    allow_unbound_reuse: bool | None = None


class ClientRegistered(ClientSettings, frozen=True, kw_only=True, omit_defaults=True, tag="client.registered"):
    """A client exists from here on, or again after it was disabled."""

    client_id: str
    serial: int | None = None
    requested_by: str


class ClientChanged(ClientSettings, frozen=True, kw_only=True, omit_defaults=True, tag="client.changed"):
    """A client's settings from here on, all of them."""

    client_id: str
    serial: int | None = None
    requested_by: str


class ClientDisabled(Event, frozen=True, kw_only=True, omit_defaults=True, tag="client.disabled"):
    """The client is answered as an unknown one until it is registered again; its grants are blocked, not ended."""

    client_id: str
    serial: int | None = None
    requested_by: str


class ClientRevoked(Event, frozen=True, kw_only=True, omit_defaults=True, tag="client.revoked"):
    """Ends the client's grants: all of them, or with `before` those issued earlier than that."""

    client_id: str
    epoch: int
    before: str | None = None
    reason: str | None = None
    reason_class: str
    requested_by: str


class SubjectRevoked(Event, frozen=True, kw_only=True, omit_defaults=True, tag="subject.revoked"):
    """Ends a person's grants at every client, as `ClientRevoked` does a client's."""

    subject_id: str
    epoch: int
    before: str | None = None
    reason: str | None = None
    reason_class: str
    requested_by: str


class SubjectErased(Event, frozen=True, kw_only=True, omit_defaults=True, tag="subject.erased"):
    """The person's private rows are gone; `subject_id` names nobody any more."""

    subject_id: str
    requested_by: str


class OperatorRegistered(Event, frozen=True, kw_only=True, omit_defaults=True, tag="operator.registered"):
    """Someone of the operating side may act. `clients` limits an issuer to them; None is all."""

    name: str
    token_hashes: Words
    roles: Words
    clients: Words | None = None
    serial: int | None = None
    requested_by: str


class OperatorChanged(Event, frozen=True, kw_only=True, omit_defaults=True, tag="operator.changed"):
    """An operator's settings from here on, all of them."""

    name: str
    token_hashes: Words
    roles: Words
    clients: Words | None = None
    serial: int | None = None
    requested_by: str


class OperatorRemoved(Event, frozen=True, kw_only=True, omit_defaults=True, tag="operator.removed"):
    """The operator may do nothing any more."""

    name: str
    serial: int | None = None
    requested_by: str


# ---------------------------------------------------------------- keys, the ledger itself, who looked


class KeyRotated(Event, frozen=True, kw_only=True, omit_defaults=True, tag="keys.rotated"):
    """A key was added that verifies and does not sign yet. Its secret was durable in the ring before this event.

    `fingerprint` tells it from any other that a ring may hold under its id; earlier releases did not say it.
    """

    key_id: int
    requested_by: str
    fingerprint: str | None = None


class KeyActivated(Event, frozen=True, kw_only=True, omit_defaults=True, tag="keys.activated"):
    """From here on this key makes tokens; the one before it only verifies."""

    key_id: int
    requested_by: str


class KeyDistrusted(Event, frozen=True, kw_only=True, omit_defaults=True, tag="keys.distrusted"):
    """The key may have leaked: it never signs again, and its tokens prove little."""

    key_id: int
    requested_by: str


class LedgerStarted(Event, frozen=True, kw_only=True, omit_defaults=True, tag="ledger.started"):
    """A server began to serve this store."""

    requested_by: str


class LedgerStopped(Event, frozen=True, kw_only=True, omit_defaults=True, tag="ledger.stopped"):
    """A server stopped in good order."""

    requested_by: str


class LedgerRestored(Event, frozen=True, kw_only=True, omit_defaults=True, tag="ledger.restored"):
    """An older backup was put back knowingly: what lies up to `lost_position` (decimal text) of `lost_at` is lost."""

    lost_position: str
    lost_at: str
    requested_by: str


class AuditRead(Event, frozen=True, kw_only=True, omit_defaults=True, tag="audit.read"):
    """An operator asked a question. `question` is its name, never what was sought."""

    question: str
    grant_id: str | None = None
    requested_by: str


ClientEvent: TypeAlias = ClientRegistered | ClientChanged | ClientDisabled | ClientRevoked
SubjectEvent: TypeAlias = SubjectRevoked | SubjectErased
OperatorEvent: TypeAlias = OperatorRegistered | OperatorChanged | OperatorRemoved
KeyEvent: TypeAlias = KeyRotated | KeyActivated | KeyDistrusted
LedgerEvent: TypeAlias = LedgerStarted | LedgerStopped | LedgerRestored
AnyEvent: TypeAlias = GrantEvent | ClientEvent | SubjectEvent | OperatorEvent | KeyEvent | LedgerEvent | AuditRead

_encoder = msgspec.json.Encoder(order="sorted")
_encode, _sha256, _set = _encoder.encode, hashlib.sha256, msgspec.structs.force_setattr  # found once: the hot path
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode(event: Event) -> bytes:
    """The stored bytes of an event: RFC 8785 (members sorted, no spaces, UTF-8). Made once per event."""
    return _encoder.encode(event)


def decode(stored: bytes | str) -> AnyEvent:
    """Read stored bytes back. Raises `msgspec.DecodeError` where they are no event of any version."""
    try:
        return _decoder.decode(stored)
    except UnicodeDecodeError:
        raise msgspec.DecodeError("the stored bytes are no text") from None


def linked(event: Event, prev: str | None) -> tuple[bytes, str]:
    """Put the link to the previous event into a new one; return its stored bytes and their hash, the next `prev`."""
    _set(event, "prev", prev)
    stored = _encode(event)
    return stored, _sha256(stored).hexdigest()
