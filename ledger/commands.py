"""Every request that a grant can receive: plain values, no secrets; each carries its own time and command id.

`at` is the wall clock in microseconds as the command was taken up; decisions use the later of it and the grant's last
`at`. `command_id` (32 lower-case hex digits) stays the same when a lost race makes the command be decided again, so
that an outcome which looked unknown can be recognised as one's own (I-11).

`Rules` is what stands outside the grant and bears on it: read in the transaction that the decision is appended in.
With state, command and rules in hand, `decide` is a pure function.
"""

from typing import TypeAlias

import msgspec

from ledger.events import GrantAuthorized, GrantEvent, Words
from ledger.policy import Policy
from ledger.refusals import Refusal


class EpochEnd(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """The raise of a client's or subject's epoch that ended a grant: the first that hits it."""

    event_id: str
    at: int
    refusal: Refusal  # REVOKED_BY_SUBJECT, REVOKED_BY_OPERATOR or REUSE_DETECTED
    reason_class: str


class ClientRules(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """A client as it rules at this moment. `v` is the version of its last event that changed its settings; `scope`
    the most it may be granted, `resource` what it may ask for (the first is the default audience; () is the issuer).
    `authenticates` is False for `none`. A sender-bound client must show a key with every request: of a DPoP proof where
    `dpop_bound` (RFC 9449 5), of a certificate where `certificate_bound` (RFC 8705 3). `unbound_reuse` lets it
    send one token again and again though nothing shows who does. `grant_types` and `redirect_uris` are those of RFC
    7591 2."""

    client_id: str
    v: int
    scope: Words
    resource: Words
    policy: Policy
    authenticates: bool
    dpop_bound: bool = False
    certificate_bound: bool = False
    unbound_reuse: bool = False
    grant_types: Words = ("refresh_token",)
    redirect_uris: Words = ()

    def lacks_key(self, jkt: str | None, x5t_s256: str | None) -> bool:
        """Whether the client must show a key that is not among these."""
        return (self.dpop_bound and jkt is None) or (self.certificate_bound and x5t_s256 is None)


class Rules(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What stands outside the grant at the moment of decision. `client` is the grant's own client, None while it is
    disabled. `active_key_id` makes new tokens; `distrusted` maps a distrusted key id to the event that said so."""

    control: int
    client: ClientRules | None
    client_epoch: int
    subject_epoch: int
    epoch_end: EpochEnd | None
    active_key_id: int
    distrusted: dict[int, str]
    clock_skew_seconds: int = 10


class Command(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What every command says."""

    at: int
    command_id: str


class Presenter(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """Who presents a token: their client, whether it authenticated, the commitment of their context, and the key they
    have shown. A key proves something only where the grant is bound to it: anyone can show one."""

    client_id: str
    authenticated: bool
    auth_method: str
    context: str
    proof_jkt: str | None = None
    proof_x5t_s256: str | None = None


class FirstRedemption(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """How an older generation was first redeemed, read from the grant's own history: by which context, when, and the
    event that retired it (the rotation; where it was never rotated, its redemption)."""

    context: str
    at: int
    rotation_event_id: str


class BeginGrant(Command, frozen=True, kw_only=True):
    """What is said of every grant that shall come to be.

    `issued_at_least` is the latest `before` that an epoch of its client or subject has: the grant is not older.
    """

    grant_id: str
    client_id: str
    subject_id: str
    scope: Words
    resource: Words | None
    nonce_sha256: str
    issued_by: str
    issued_at_least: int
    session: str | None = None
    auth_time: int | None = None
    acr: str | None = None
    amr: Words | None = None


class IssueGrant(BeginGrant, frozen=True, kw_only=True):
    """A grant begins with generation 0 (RFC 6749 1.5). Lifetimes only shorten what the policy gives."""

    refresh_token_ttl_seconds: int | None
    grant_ttl_seconds: int | None
    device: str | None = None
    bound_jkt: str | None = None
    bound_x5t_s256: str | None = None


class AuthorizeGrant(BeginGrant, frozen=True, kw_only=True):
    """A person has signed in and agreed: a grant of the code flow begins (RFC 6749 4.1.2).

    `challenge` is the S256 one of RFC 7636 4.2.
    """

    redirect_uri: str
    challenge: str
    dpop_jkt: str | None = None


class ExchangeCode(Command, frozen=True, kw_only=True):
    """A code of this grant, genuine in tag and secret, is presented for the first tokens (RFC 6749 4.1.3).

    `authorized` is the grant's first event; `key_id` the code's. `challenge` is what the verifier that came with it
    comes to under S256, `redirect_uri` and `resource` what was sent; None when left out. `reuse_reason` is the
    commitment to say why, should the grant be ended because the code was used before.
    """

    presenter: Presenter
    authorized: GrantAuthorized
    key_id: int
    challenge: str | None
    redirect_uri: str | None
    resource: Words | None
    reuse_reason: str | None = None


class RedeemToken(Command, frozen=True, kw_only=True):
    """A refresh token of this grant, genuine in tag and secret, is presented for an access token (RFC 6749 6).

    `generation` and `key_id` are the token's. `scope` and `resource` are what was asked, None when left out.
    `first_redemption` is given for a generation that is two or more behind. `retry_after_seconds` is set where the
    burst limit would refuse a redemption. `fresh` says that the state was just read from the store anew.
    """

    presenter: Presenter
    generation: int
    key_id: int
    scope: Words | None
    resource: Words | None
    first_redemption: FirstRedemption | None = None
    retry_after_seconds: int | None = None
    fresh: bool = False


class RevokeByClient(Command, frozen=True, kw_only=True):
    """The owner gives its grant back by one of its refresh tokens, current or retired (RFC 7009 2.1)."""

    client_id: str


class RevokeAccessToken(Command, frozen=True, kw_only=True):
    """The owner gives one access token back; the grant lives (RFC 7009 2.1)."""

    issued_v: int
    client_id: str


class RevokeGrant(Command, frozen=True, kw_only=True):
    """An operator ends the grant. `reason` is a commitment."""

    reason_class: str
    reason: str | None
    requested_by: str


class SuspendGrant(Command, frozen=True, kw_only=True):
    """An operator stops the grant until it is reinstated."""

    reason_class: str
    reason: str | None
    requested_by: str


class ReinstateGrant(Command, frozen=True, kw_only=True):
    """An operator lets a suspended grant go on; after reuse or rollback this wants `trust="current"`."""

    reason: str | None
    requested_by: str
    trust: str | None


class RecordForeignClient(Command, frozen=True, kw_only=True):
    """Another client presented a genuine token of this grant; to be written after its answer."""

    presenter: Presenter
    generation: int


class CountPresentations(Command, frozen=True, kw_only=True):
    """What was counted in memory shall be flushed: `count` presentations since the last flush of this grant.

    `at_stop`: the process stops in good order, so the count is told though it has passed no power of two.
    """

    count: int
    first_at: int
    last_at: int
    last_generation: int
    last_context: str
    at_stop: bool = False


GrantCommand: TypeAlias = (
    IssueGrant
    | AuthorizeGrant
    | ExchangeCode
    | RedeemToken
    | RevokeByClient
    | RevokeAccessToken
    | RevokeGrant
    | SuspendGrant
    | ReinstateGrant
    | RecordForeignClient
    | CountPresentations
)


class AccessToken(msgspec.Struct, gc=False, array_like=True, frozen=True, kw_only=True):
    """An access token as the event `v` minted it. Times are whole microseconds that are whole seconds."""

    v: int
    scope: Words
    resource: Words | None
    cnf_jkt: str | None
    cnf_x5t_s256: str | None
    format: str
    signing_key_id: int
    issued_at: int
    expires_at: int


class Served(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """The answer to an issuance, a redemption or a retry. `generation` and `key_id` name the refresh token to hand
    out, None where it is withheld; `last_v` the version whose position the answer carries; `retry` its verdict."""

    access_token: AccessToken
    generation: int | None
    key_id: int
    idle_expires_at: int | None
    absolute_expires_at: int | None
    last_v: int
    retry: str | None = None


class RefusedOutcome(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """A refusal that the decision's own events made history: they are durable before it is told (I-05)."""

    refusal: Refusal
    event_id: str


class Decision(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What a command comes to: events to append together or not at all (perhaps none), and the answer.

    `outcome` is None for acts whose answer is the grant itself. `ends_subject` asks for a raise of the subject's epoch
    in the same transaction (`on_reuse = "revoke_subject"`).
    """

    events: list[GrantEvent]
    outcome: Served | RefusedOutcome | None = None
    ends_subject: bool = False
