"""Members that many events of a grant share, each where it comes from: decision, presenter, access token, policy."""

from typing import TypedDict

from ledger import times
from ledger.commands import AccessToken, Command, Presenter, Rules
from ledger.events import Words
from ledger.grant_state import GrantState
from ledger.policy import Policy


class Stamp(TypedDict):
    """Where an event stands, when, by which command, and the control counter that its transaction read."""

    stream: str
    v: int
    at: str
    command_id: str
    control: int


class Shown(TypedDict):
    """Who presented a token: the presenter members."""

    context: str
    auth_method: str
    proof_jkt: str | None
    proof_x5t_s256: str | None


class Minted(TypedDict):
    """The access-token members."""

    scope: Words
    resource: Words | None
    cnf_jkt: str | None
    cnf_x5t_s256: str | None
    format: str
    signing_key_id: int
    access_token_issued_at: str
    access_token_expires_at: str
    client_v: int


class PolicyMembers(TypedDict):
    """A policy spread over an event."""

    policy_rotation: str
    policy_concurrent_seconds: int
    policy_retry_window_seconds: int
    policy_retry_budget: int
    policy_unconfirmed_seconds: int
    policy_on_reuse: str
    policy_scope_mode: str
    policy_access_token_ttl_seconds: int
    policy_refresh_token_ttl_seconds: int | None
    policy_grant_ttl_seconds: int | None
    policy_access_token_format: str


def stamp(grant: GrantState, command: Command, rules: Rules, nth: int = 1) -> Stamp:
    """The stamp of the n-th event that a command appends. Times of one stream never run backwards (I-16)."""
    return {
        "stream": grant.stream,
        "v": grant.v + nth,
        "at": times.text(max(command.at, grant.at)),
        "command_id": command.command_id,
        "control": rules.control,
    }


def shown(presenter: Presenter) -> Shown:
    return {
        "context": presenter.context,
        "auth_method": presenter.auth_method,
        "proof_jkt": presenter.proof_jkt,
        "proof_x5t_s256": presenter.proof_x5t_s256,
    }


def minted(token: AccessToken, client_v: int) -> Minted:
    return {
        "scope": token.scope,
        "resource": token.resource,
        "cnf_jkt": token.cnf_jkt,
        "cnf_x5t_s256": token.cnf_x5t_s256,
        "format": token.format,
        "signing_key_id": token.signing_key_id,
        "access_token_issued_at": times.text(token.issued_at),
        "access_token_expires_at": times.text(token.expires_at),
        "client_v": client_v,
    }


def policy_members(policy: Policy) -> PolicyMembers:
    return {
        "policy_rotation": policy.rotation,
        "policy_concurrent_seconds": policy.concurrent_seconds,
        "policy_retry_window_seconds": policy.retry_window_seconds,
        "policy_retry_budget": policy.retry_budget,
        "policy_unconfirmed_seconds": policy.unconfirmed_seconds,
        "policy_on_reuse": policy.on_reuse,
        "policy_scope_mode": policy.scope_mode,
        "policy_access_token_ttl_seconds": policy.access_token_ttl_seconds,
        "policy_refresh_token_ttl_seconds": policy.refresh_token_ttl_seconds,
        "policy_grant_ttl_seconds": policy.grant_ttl_seconds,
        "policy_access_token_format": policy.access_token_format,
    }
