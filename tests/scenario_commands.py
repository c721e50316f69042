"""What a scenario is made of: the rules that stand outside a grant, and the commands that come to it.

Times are seconds after START.
"""

import msgspec
from msgspec.structs import asdict

from ledger.commands import (
    AuthorizeGrant,
    BeginGrant,
    ClientRules,
    CountPresentations,
    EpochEnd,
    ExchangeCode,
    IssueGrant,
    Presenter,
    RecordForeignClient,
    RedeemToken,
    ReinstateGrant,
    RevokeAccessToken,
    RevokeByClient,
    RevokeGrant,
    Rules,
    SuspendGrant,
)
from ledger.events import GrantAuthorized, Words
from ledger.policy import PRESETS, STANDARD, Policy
from ledger.refusals import Refusal
from ledger.times import SECOND, micros

START = micros("2026-11-25T12:00:00.000000Z")
GRANT_ID = "019abd0e0e107d708000123456789abc"
STREAM = f"grant:{GRANT_ID}"
COMMAND_ID = "c0" * 16
HERE, THERE = "a1" * 32, "b2" * 32  # commitments of two contexts
KEY, OTHER_KEY = "jkt-of-one-key", "jkt-of-another-key"
CALLBACK = "https://app.example/callback"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"  # of RFC 7636 appendix B
MINUTE, HOUR, DAY = 60, 3600, 86_400

STRICT, MOBILE, STABLE, FAPI2 = (PRESETS[name] for name in ("strict", "mobile", "stable", "fapi2"))


NOT_GIVEN = GrantAuthorized(
    stream=STREAM, v=1, at="", command_id="", control=0, client_id="", subject_id="", client_epoch=0, subject_epoch=0,
    nonce_sha256="", key_id=0, issued_by="", redirect_uri="", challenge="", scope=(), code_expires_at="",
)  # fmt: skip


def moment(seconds: float) -> int:
    """A moment of the tests, in the ledger's microseconds."""
    return START + round(seconds * SECOND)


# ---------------------------------------------------------------- what stands outside the grant


def policy(preset: str = "standard", **fields: object) -> Policy:
    """A preset with some fields changed."""
    return msgspec.structs.replace(PRESETS[preset], **fields)


WWW = ClientRules(
    client_id="www",
    v=3,
    scope=("read", "openid", "profile", "write"),
    resource=(),
    policy=STANDARD,
    authenticates=True,
)
RULES = Rules(
    control=7, client=WWW, client_epoch=0, subject_epoch=0, epoch_end=None, active_key_id=1, distrusted={}
)  # fmt: skip


def ruled(by: Policy = STANDARD, *, client: ClientRules | None = WWW, **rules: object) -> Rules:
    """The rules with the client under a policy; further fields of Rules by name."""
    ruling = None if client is None else msgspec.structs.replace(client, policy=by)
    return msgspec.structs.replace(RULES, client=ruling, **rules)


def client(**fields: object) -> ClientRules:
    """The client with some fields changed."""
    return msgspec.structs.replace(WWW, **fields)


SPA = client(authenticates=False)


def epoch_end(at: float, refusal: Refusal = Refusal.REVOKED_BY_SUBJECT, reason_class: str = "withdrawal") -> EpochEnd:
    return EpochEnd(event_id="subject:5ub/1", at=moment(at), refusal=refusal, reason_class=reason_class)


# ---------------------------------------------------------------- commands


def issue(
    at: float = 0,
    *,
    scope: Words = ("read", "openid", "profile"),
    resource: Words | None = None,
    refresh_token_ttl_seconds: int | None = None,
    grant_ttl_seconds: int | None = None,
    issued_at_least: int = 0,
    client_id: str = "www",
    bound_jkt: str | None = None,
    bound_x5t_s256: str | None = None,
) -> IssueGrant:
    return IssueGrant(
        **asdict(_begins(at, scope, resource, issued_at_least, client_id)),
        refresh_token_ttl_seconds=refresh_token_ttl_seconds,
        grant_ttl_seconds=grant_ttl_seconds,
        bound_jkt=bound_jkt,
        bound_x5t_s256=bound_x5t_s256,
    )


def authorize(
    at: float = 0,
    *,
    scope: Words = ("read", "openid", "profile"),
    resource: Words | None = None,
    redirect_uri: str = CALLBACK,
    issued_at_least: int = 0,
    client_id: str = "www",
    dpop_jkt: str | None = None,
) -> AuthorizeGrant:
    return AuthorizeGrant(
        **asdict(_begins(at, scope, resource, issued_at_least, client_id, signed_in=True)),
        redirect_uri=redirect_uri,
        challenge=CHALLENGE,
        dpop_jkt=dpop_jkt,
    )


def _begins(
    at: float, scope: Words, resource: Words | None, issued_at_least: int, client_id: str, *, signed_in: bool = False
) -> BeginGrant:
    return BeginGrant(
        at=moment(at),
        command_id=COMMAND_ID,
        grant_id=GRANT_ID,
        client_id=client_id,
        subject_id="5ub",
        scope=scope,
        resource=resource,
        nonce_sha256="0f" * 32,
        issued_by="operator:login-app",
        issued_at_least=issued_at_least,
        session="5e" * 32 if signed_in else None,
        auth_time=1_764_072_000 if signed_in else None,
        acr="urn:x" if signed_in else None,
        amr=("pwd",) if signed_in else None,
    )


def exchange(
    at: float,
    by: "Presenter | str" = HERE,
    *,
    authorized: GrantAuthorized | None = None,
    challenge: str | None = CHALLENGE,
    redirect_uri: str | None = CALLBACK,
    resource: Words | None = None,
    key_id: int = 1,
) -> ExchangeCode:
    """A code, presented by a context (the authenticated owner's) or a whole presenter. Without `authorized` the grant's
    first event is taken from the scenario."""
    return ExchangeCode(
        at=moment(at),
        command_id=COMMAND_ID,
        presenter=presenter(by) if isinstance(by, str) else by,
        authorized=authorized or NOT_GIVEN,
        key_id=key_id,
        challenge=challenge,
        redirect_uri=redirect_uri,
        resource=resource,
        reuse_reason="5a" * 32,
    )


def presenter(
    context: str = HERE,
    *,
    client_id: str = "www",
    authenticated: bool = True,
    jkt: str | None = None,
    x5t_s256: str | None = None,
) -> Presenter:
    return Presenter(
        client_id=client_id,
        authenticated=authenticated,
        auth_method="client_secret_basic" if authenticated else "none",
        context=context,
        proof_jkt=jkt,
        proof_x5t_s256=x5t_s256,
    )


def public(context: str = HERE, *, jkt: str | None = None) -> Presenter:
    """A public client that names itself, with the key it has shown."""
    return presenter(context, authenticated=False, jkt=jkt)


def redeem(
    generation: int,
    at: float,
    by: Presenter | str = HERE,
    *,
    scope: Words | None = None,
    resource: Words | None = None,
    key_id: int = 1,
    retry_after_seconds: int | None = None,
    fresh: bool = False,
) -> RedeemToken:
    """A presentation of one generation, by a context (the authenticated owner's) or a whole presenter."""
    return RedeemToken(
        at=moment(at),
        command_id=COMMAND_ID,
        presenter=presenter(by) if isinstance(by, str) else by,
        generation=generation,
        key_id=key_id,
        scope=scope,
        resource=resource,
        retry_after_seconds=retry_after_seconds,
        fresh=fresh,
    )


def revoke_by_client(at: float, client_id: str = "www") -> RevokeByClient:
    return RevokeByClient(at=moment(at), command_id=COMMAND_ID, client_id=client_id)


def revoke_access_token(at: float, issued_v: int, client_id: str = "www") -> RevokeAccessToken:
    return RevokeAccessToken(at=moment(at), command_id=COMMAND_ID, issued_v=issued_v, client_id=client_id)


def revoke(at: float, by: str = "operator:ops", reason_class: str = "termination") -> RevokeGrant:
    return RevokeGrant(
        at=moment(at), command_id=COMMAND_ID, reason_class=reason_class, reason="5a" * 32, requested_by=by
    )


def suspend(at: float, by: str = "operator:ops") -> SuspendGrant:
    return SuspendGrant(
        at=moment(at), command_id=COMMAND_ID, reason_class="termination", reason="5a" * 32, requested_by=by
    )


def reinstate(at: float, trust: str | None = None) -> ReinstateGrant:
    return ReinstateGrant(
        at=moment(at), command_id=COMMAND_ID, reason="5a" * 32, requested_by="operator:ops", trust=trust
    )


def foreign(generation: int, at: float, client_id: str = "oth") -> RecordForeignClient:
    return RecordForeignClient(
        at=moment(at), command_id=COMMAND_ID, presenter=presenter(THERE, client_id=client_id), generation=generation
    )


def count(presentations: int, first: float, at: float, *, at_stop: bool = False) -> CountPresentations:
    """Presentations from `first` until `at`, flushed at `at`."""
    return CountPresentations(
        at=moment(at),
        command_id=COMMAND_ID,
        count=presentations,
        first_at=moment(first),
        last_at=moment(at),
        last_generation=0,
        last_context=THERE,
        at_stop=at_stop,
    )
