"""What the model answers with, and the members of events that many of its answers share."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ledger import commands, times
from ledger.commands import Rules
from ledger.refusals import Refusal
from ledger.times import SECOND
from tests.model_history import Fact, least

Words: TypeAlias = tuple[str, ...]


@dataclass
class Served:
    """Tokens for the presenter; the access token is named by the version that minted it."""

    minted_v: int
    generation: int | None
    key_id: int
    idle_expires_at: int | None
    absolute_expires_at: int | None
    last_v: int
    retry: str | None = None


@dataclass
class Answer:
    """What a command must come to. `stale`: it must first be decided again on a state read anew."""

    events: list[Fact] = field(default_factory=list)
    served: Served | None = None
    refused: Refusal | None = None
    event_id: str | None = None
    counts: bool = False
    ends_subject: bool = False
    stale: bool = False


def fact(topic: str, **members: Any) -> Fact:
    """An event's own members as stored: nothing null, lists for tuples."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in members.items()}
    return {"topic": f"grant.{topic}"} | {name: value for name, value in plain.items() if value is not None}


def refuse(refusal: Refusal, because: str | None = None, *, counts: bool = False) -> Answer:
    return Answer(refused=refusal, event_id=because, counts=counts)


def presenter_members(presenter: commands.Presenter) -> Fact:
    return {name: getattr(presenter, name) for name in ("context", "auth_method", "proof_jkt", "proof_x5t_s256")}


def idle_end(at: int, own: int | None, clients: int | None, absolute: int | None) -> int | None:
    seconds = least(own, clients)
    return least(None if seconds is None else at + seconds * SECOND, absolute)


def stored(moment: int | None) -> str | None:
    return None if moment is None else times.text(moment)


def access_token(
    rules: Rules, wall: int, absolute: int | None, scope: Words, resource: Words | None, cnf: tuple[str | None, ...]
) -> Fact:
    """The members of a new access token, in whole seconds of the wall clock."""
    assert rules.client is not None
    policy, issued_at = rules.client.policy, wall - wall % SECOND
    end = None if absolute is None else absolute - absolute % SECOND
    expires_at = least(issued_at + policy.access_token_ttl_seconds * SECOND, end)
    assert expires_at is not None
    return {
        "scope": scope,
        "resource": resource,
        "cnf_jkt": cnf[0],
        "cnf_x5t_s256": cnf[1],
        "format": policy.access_token_format,
        "signing_key_id": rules.active_key_id,
        "access_token_issued_at": times.text(issued_at),
        "access_token_expires_at": times.text(expires_at),
        "client_v": rules.client.v,
    }


def keyless(client: commands.ClientRules, jkt: str | None, certificate: str | None) -> bool:
    """A client that is bound to show a key shows none of that kind."""
    shown = {"dpop_bound": jkt, "certificate_bound": certificate}
    return any(getattr(client, flag) and key is None for flag, key in shown.items())
