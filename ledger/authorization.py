"""A grant of the code flow: a person agrees, and the code that comes of it is exchanged once (RFC 6749 4.1, RFC 7636).

Who reaches `exchange` has a code that is genuine in tag and secret, and a key proof, if any, that is valid in itself.
Until it is exchanged the grant is only authorized: it lives as long as its code, and nothing has to end it.
"""

from hmac import compare_digest

from ledger import times
from ledger.commands import (
    AccessToken,
    AuthorizeGrant,
    ClientRules,
    Decision,
    ExchangeCode,
    RefusedOutcome,
    Rules,
    Served,
)
from ledger.events import (
    GrantAuthorized,
    GrantEvent,
    GrantIssued,
    GrantRevoked,
    RefreshTokenWithheld,
    Words,
)
from ledger.grant_state import GrantState
from ledger.lifetimes import idle_end
from ledger.members import minted, policy_members, stamp
from ledger.minting import mint, resources, stopped
from ledger.policy import CODE_TTL_SECONDS_MAX
from ledger.redirects import registered
from ledger.refusals import Refusal, Refused
from ledger.scope import OFFLINE_ACCESS, granted_resource, granted_scope, within
from ledger.times import SECOND

AUTHORIZATION_CODE = "authorization_code"


def authorize(grant: GrantState, command: AuthorizeGrant, rules: Rules) -> Decision:
    """Put on record what a person agreed to. The redirect address is judged before anything else that could be sent to
    it (RFC 6749 4.1.2.1).

    Raises Refused: CONFLICT for an id that is taken, INVALID_REQUEST for a client or redirect address that is not
    registered, UNAUTHORIZED_CLIENT for a client without this grant type, INVALID_SCOPE, INVALID_TARGET.
    """
    client = rules.client
    if grant.v:
        raise Refused(Refusal.CONFLICT, detail="this grant exists already")
    if client is None or client.client_id != command.client_id:
        raise Refused(Refusal.INVALID_REQUEST, detail="client_id names no client")
    if not registered(command.redirect_uri, client.redirect_uris):
        raise Refused(
            Refusal.INVALID_REQUEST, detail="redirect_uri is none that the client registered: do not redirect to it"
        )
    if AUTHORIZATION_CODE not in client.grant_types:
        raise Refused(Refusal.UNAUTHORIZED_CLIENT, detail="this client may not use the code flow")
    at = max(command.at, command.issued_at_least)
    event = GrantAuthorized(
        stream=f"grant:{command.grant_id}",
        v=1,
        at=times.text(at),
        command_id=command.command_id,
        control=rules.control,
        client_id=command.client_id,
        subject_id=command.subject_id,
        client_epoch=rules.client_epoch,
        subject_epoch=rules.subject_epoch,
        nonce_sha256=command.nonce_sha256,
        key_id=rules.active_key_id,
        issued_by=command.issued_by,
        redirect_uri=command.redirect_uri,
        challenge=command.challenge,
        scope=granted_scope(_without_what_means_nothing(command.scope, client), client.scope),
        resource=granted_resource(command.resource, client.resource),
        dpop_jkt=command.dpop_jkt,
        session=command.session,
        auth_time=command.auth_time,
        acr=command.acr,
        amr=command.amr,
        code_expires_at=times.text(at + CODE_TTL_SECONDS_MAX * SECOND),
    )
    return Decision(events=[event])


def _without_what_means_nothing(asked: Words, client: ClientRules) -> Words:
    """Clients add `offline_access` to every request. Where it means nothing it is ignored (OpenID Connect Core 11)."""
    return asked if OFFLINE_ACCESS in client.scope else tuple(word for word in asked if word != OFFLINE_ACCESS)


def exchange(grant: GrantState, command: ExchangeCode, rules: Rules) -> Decision:
    """Whose code it is, whether they started this flow, the grant's status, then whether the code was used before.

    Whatever is wrong up to the status consumes nothing and ends nothing: only who holds the verifier (and, of a
    confidential client, authenticates) can be honest or a thief (RFC 9700 2.1.1). Raises Refused.
    """
    presenter, client = command.presenter, rules.client
    if client is None or not grant.owned_by(presenter) or not _began_with(command):
        raise Refused(Refusal.UNKNOWN_TOKEN)
    if client.lacks_key(presenter.proof_jkt, presenter.proof_x5t_s256):
        raise Refused(Refusal.INVALID_REQUEST, detail="this client shows a key with every request, and none was shown")
    at = command.at if command.at > grant.at else grant.at
    standing = grant.judge(at, rules.epoch_end)
    if standing.status != "active":
        return stopped(grant, command, rules, standing)
    if command.key_id in rules.distrusted:
        raise Refused(Refusal.KEY_DISTRUSTED, event_id=rules.distrusted[command.key_id])
    if grant.issued:
        return _present_used(grant, command, rules)
    return _issue(grant, command, rules, client, at)


def _began_with(command: ExchangeCode) -> bool:
    """Whether the presenter shows all that the flow began with: the verifier, the redirect address, and the key where
    one was named (RFC 7636 4.6, RFC 6749 4.1.3, RFC 9449 10). A code under another key than its event names is of an
    event that a restored log has lost (I-15)."""
    authorized = command.authorized
    return (
        command.challenge is not None
        and compare_digest(command.challenge, authorized.challenge)
        and command.redirect_uri == authorized.redirect_uri
        and authorized.dpop_jkt in (None, command.presenter.proof_jkt)
        and command.key_id == authorized.key_id
    )


def _present_used(grant: GrantState, command: ExchangeCode, rules: Rules) -> Decision:
    """A valid second use, by whom cannot be told: all that the first one bought ends (RFC 6749 4.1.2, 10.5)."""
    event = GrantRevoked(
        **stamp(grant, command, rules),
        reason_class="reuse",
        reason=command.reuse_reason,
        requested_by="ledger:reuse",
    )
    outcome = RefusedOutcome(refusal=Refusal.REUSE_DETECTED, event_id=event.event_id)
    return Decision(events=[event], outcome=outcome)


def _issue(grant: GrantState, command: ExchangeCode, rules: Rules, client: ClientRules, at: int) -> Decision:
    """The first tokens. Single use is the grant's expected version: of many that race, one append finds it."""
    policy = client.policy
    scope = within(grant.granted, client.scope)
    if grant.granted and not scope:
        raise Refused(Refusal.NO_SCOPE_LEFT)
    resource = resources(grant, command.resource, client.resource)
    withheld = not _gets_refresh_token(grant.granted, client)
    absolute = None if policy.grant_ttl_seconds is None else at + policy.grant_ttl_seconds * SECOND
    idle = absolute if withheld else idle_end(at, None, policy.refresh_token_ttl_seconds, absolute)
    token = mint(grant, command, rules, scope, resource, absolute)
    events: list[GrantEvent] = [_issued(grant, command, rules, client, token, idle, absolute)]
    if withheld:
        events.append(RefreshTokenWithheld(**stamp(grant, command, rules, 2)))
    served = Served(
        access_token=token,
        generation=None if withheld else 0,
        key_id=rules.active_key_id,
        idle_expires_at=idle,
        absolute_expires_at=absolute,
        last_v=grant.v + len(events),
    )
    return Decision(events=events, outcome=served)


def _gets_refresh_token(granted: Words, client: ClientRules) -> bool:
    """Policy decides, and a client that may not refresh gets none. One that may ask for `offline_access` gets one only
    with it (OpenID Connect Core 11); one to which the word means nothing gets one anyhow (RFC 6749 1.5)."""
    if client.policy.refresh_token_ttl_seconds == 0 or "refresh_token" not in client.grant_types:
        return False
    return OFFLINE_ACCESS in granted or OFFLINE_ACCESS not in client.scope


def _issued(
    grant: GrantState,
    command: ExchangeCode,
    rules: Rules,
    client: ClientRules,
    token: AccessToken,
    idle: int | None,
    absolute: int | None,
) -> GrantIssued:
    """The epochs are those of the sign-in: an end between it and the exchange counts."""
    authorized = command.authorized
    return GrantIssued(
        **stamp(grant, command, rules),
        **minted(token, client.v),
        **policy_members(client.policy),
        client_id=authorized.client_id,
        subject_id=authorized.subject_id,
        client_epoch=authorized.client_epoch,
        subject_epoch=authorized.subject_epoch,
        nonce_sha256=authorized.nonce_sha256,
        key_id=rules.active_key_id,
        generation=0,
        idle_expires_at=None if idle is None else times.text(idle),
        absolute_expires_at=None if absolute is None else times.text(absolute),
        # A confidential client may change keys: its grants are bound by its authentication (RFC 9449 5).
        bound_jkt=None if client.authenticates else command.presenter.proof_jkt,
        bound_x5t_s256=None if client.authenticates else command.presenter.proof_x5t_s256,
        auth_time=authorized.auth_time,
        acr=authorized.acr,
        amr=authorized.amr,
        issued_by=authorized.issued_by,
        session=authorized.session,
    )
