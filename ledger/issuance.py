"""A grant comes to be: its lifetimes, its scope, generation 0 and the first access token (RFC 6749 1.5, 5.1)."""

from ledger import times
from ledger.commands import AccessToken, ClientRules, Decision, IssueGrant, Rules, Served
from ledger.events import GrantEvent, GrantIssued, RefreshTokenWithheld
from ledger.grant_state import GrantState
from ledger.lifetimes import access_token_life, idle_end, shortened
from ledger.members import Stamp, minted, policy_members
from ledger.refusals import Refusal, Refused
from ledger.scope import granted_resource, granted_scope
from ledger.times import SECOND


def issue(grant: GrantState, command: IssueGrant, rules: Rules) -> Decision:
    """Lifetimes shorten what the policy gives; where refresh tokens are off none is handed out, and none will be.

    Raises Refused: CONFLICT for an id that is taken, INVALID_REQUEST, INVALID_SCOPE, INVALID_TARGET.
    """
    client = rules.client
    if grant.v:
        raise Refused(Refusal.CONFLICT, detail="this grant exists already")
    if client is None or client.client_id != command.client_id:
        raise Refused(Refusal.INVALID_REQUEST, detail="client_id names no client")
    if not client.authenticates and client.lacks_key(command.bound_jkt, command.bound_x5t_s256):
        raise Refused(Refusal.INVALID_REQUEST, detail="cnf lacks the key that grants of this client are bound to")
    at = max(command.at, command.issued_at_least)
    idle, absolute = _ends(command, client, at)
    token = _first_access_token(command, rules, client, absolute)
    withheld = client.policy.refresh_token_ttl_seconds == 0
    begins: Stamp = {
        "stream": f"grant:{command.grant_id}",
        "v": 1,
        "at": times.text(at),
        "command_id": command.command_id,
        "control": rules.control,
    }
    events: list[GrantEvent] = [_issued(begins, command, rules, client, token, idle, absolute)]
    if withheld:
        begins["v"] = 2
        events.append(RefreshTokenWithheld(**begins))
    served = Served(
        access_token=token,
        generation=None if withheld else 0,
        key_id=rules.active_key_id,
        idle_expires_at=idle,
        absolute_expires_at=absolute,
        last_v=len(events),
    )
    return Decision(events=events, outcome=served)


def _ends(command: IssueGrant, client: ClientRules, at: int) -> tuple[int | None, int | None]:
    """The idle and the absolute end; a grant without refresh token idles only when it is over."""
    policy = client.policy
    idle_seconds = shortened(
        "refresh_token_ttl_seconds", command.refresh_token_ttl_seconds, policy.refresh_token_ttl_seconds
    )
    grant_seconds = shortened("grant_ttl_seconds", command.grant_ttl_seconds, policy.grant_ttl_seconds)
    absolute = None if grant_seconds is None else at + grant_seconds * SECOND
    return absolute if idle_seconds == 0 else idle_end(at, idle_seconds, None, absolute), absolute


def _first_access_token(
    command: IssueGrant, rules: Rules, client: ClientRules, absolute_expires_at: int | None
) -> AccessToken:
    scope = granted_scope(command.scope, client.scope)
    resource = granted_resource(command.resource, client.resource)
    policy = client.policy
    issued_at, expires_at = access_token_life(command.at, policy.access_token_ttl_seconds, absolute_expires_at)
    return AccessToken(
        v=1,
        scope=scope,
        resource=resource,
        cnf_jkt=command.bound_jkt,
        cnf_x5t_s256=command.bound_x5t_s256,
        format=policy.access_token_format,
        signing_key_id=rules.active_key_id,
        issued_at=issued_at,
        expires_at=expires_at,
    )


def _issued(
    begins: Stamp,
    command: IssueGrant,
    rules: Rules,
    client: ClientRules,
    token: AccessToken,
    idle: int | None,
    absolute: int | None,
) -> GrantIssued:
    return GrantIssued(
        **begins,
        **minted(token, client.v),
        **policy_members(client.policy),
        client_id=command.client_id,
        subject_id=command.subject_id,
        client_epoch=rules.client_epoch,
        subject_epoch=rules.subject_epoch,
        nonce_sha256=command.nonce_sha256,
        key_id=rules.active_key_id,
        generation=0,
        idle_seconds=command.refresh_token_ttl_seconds,
        idle_expires_at=None if idle is None else times.text(idle),
        absolute_expires_at=None if absolute is None else times.text(absolute),
        # A confidential client may change keys: its grants are bound by its authentication (RFC 9449 5).
        bound_jkt=None if client.authenticates else command.bound_jkt,
        bound_x5t_s256=None if client.authenticates else command.bound_x5t_s256,
        auth_time=command.auth_time,
        acr=command.acr,
        amr=command.amr,
        issued_by=command.issued_by,
        session=command.session,
        device=command.device,
    )
