"""The code flow as the model reads it: what a sign-in records, and what its code buys, once."""

from ledger import commands, times
from ledger.commands import Rules
from ledger.refusals import Refusal
from ledger.times import SECOND
from tests.model_answers import Answer, Served, access_token, fact, idle_end, keyless, presenter_members, refuse, stored
from tests.model_history import Fact, History

CODE_SECONDS = 60


def authorize(command: commands.AuthorizeGrant, rules: Rules, now: int) -> Answer:
    """What the person agreed to, if the client may have it and may be answered there."""
    client = rules.client
    if client is None or command.redirect_uri not in client.redirect_uris:
        return refuse(Refusal.INVALID_REQUEST)
    if "authorization_code" not in client.grant_types:
        return refuse(Refusal.UNAUTHORIZED_CLIENT)
    scope = [word for word in dict.fromkeys(command.scope) if word != "offline_access" or word in client.scope]
    if not set(scope) <= set(client.scope):
        return refuse(Refusal.INVALID_SCOPE)
    if not set(command.resource or ()) <= set(client.resource):
        return refuse(Refusal.INVALID_TARGET)
    same = ("client_id", "subject_id", "nonce_sha256", "issued_by", "redirect_uri", "challenge", "dpop_jkt", "session")
    members: Fact = {name: getattr(command, name) for name in (*same, "auth_time", "acr", "amr")}
    members |= {"scope": scope, "resource": command.resource or client.resource[:1] or None}
    members |= {"client_epoch": rules.client_epoch, "subject_epoch": rules.subject_epoch}
    members |= {"key_id": rules.active_key_id, "code_expires_at": times.text(now + CODE_SECONDS * SECOND)}
    return Answer([fact("authorized", **members)])


def exchange(history: History, command: commands.ExchangeCode, rules: Rules, now: int) -> Answer:
    """Nothing comes of a code whose presenter did not begin the flow; else its grant's standing decides, then whether
    it was used."""
    client, presenter, authorized = rules.client, command.presenter, history.events[0]
    first = history.of("issued")
    if client is None or presenter.client_id != authorized["client_id"]:
        return refuse(Refusal.UNKNOWN_TOKEN)
    for name in ("jkt", "x5t_s256") if first and not presenter.authenticated else ():
        bound = first[0].get(f"bound_{name}")
        if bound is not None and bound != getattr(presenter, f"proof_{name}"):
            return refuse(Refusal.UNKNOWN_TOKEN)
    began = command.challenge, command.redirect_uri, command.key_id
    if began != (authorized["challenge"], authorized["redirect_uri"], authorized["key_id"]):
        return refuse(Refusal.UNKNOWN_TOKEN)
    if authorized.get("dpop_jkt") not in (None, presenter.proof_jkt):
        return refuse(Refusal.UNKNOWN_TOKEN)
    if keyless(client, presenter.proof_jkt, presenter.proof_x5t_s256):
        return refuse(Refusal.INVALID_REQUEST)
    state, next_id = history.judge(now, rules.epoch_end), f"{authorized['stream']}/{len(history.events) + 1}"
    if state.status == "expired" and state.event_id is None:
        assert state.at is not None
        kind = "absolute" if state.refusal is Refusal.EXPIRED_ABSOLUTE else "idle"
        members = {"kind": kind, "expired_at": times.text(state.at), "presented_generation": 0}
        over = fact("expired", **members, **presenter_members(presenter))
        return Answer([over], refused=state.refusal, event_id=next_id)
    if state.status != "active":
        assert state.refusal is not None
        return refuse(state.refusal, state.event_id, counts=True)
    if command.key_id in rules.distrusted:
        return refuse(Refusal.KEY_DISTRUSTED, rules.distrusted[command.key_id])
    if first:
        ends = fact("revoked", reason_class="reuse", reason=command.reuse_reason, requested_by="ledger:reuse")
        return Answer([ends], refused=Refusal.REUSE_DETECTED, event_id=next_id)
    return _issue(authorized, command, rules, now, len(history.events))


def _issue(authorized: Fact, command: commands.ExchangeCode, rules: Rules, now: int, v: int) -> Answer:
    client, presenter = rules.client, command.presenter
    assert client is not None
    policy, granted = client.policy, authorized["scope"]
    scope = tuple(word for word in granted if word in client.scope)
    if granted and not scope:
        return refuse(Refusal.NO_SCOPE_LEFT)
    resource = tuple(authorized.get("resource", client.resource[:1])) or None
    if command.resource is not None:
        if not set(command.resource) <= set(resource or ()):
            return refuse(Refusal.INVALID_TARGET)
        resource = tuple(each for each in resource or () if each in command.resource)
    idles = "offline_access" in client.scope and "offline_access" not in granted
    withheld = idles or policy.refresh_token_ttl_seconds == 0 or "refresh_token" not in client.grant_types
    absolute = None if policy.grant_ttl_seconds is None else now + policy.grant_ttl_seconds * SECOND
    idle = absolute if withheld else idle_end(now, None, policy.refresh_token_ttl_seconds, absolute)
    cnf = presenter.proof_jkt, presenter.proof_x5t_s256
    members = access_token(rules, command.at, absolute, scope, resource, cnf)
    if not client.authenticates:
        members |= {"bound_jkt": cnf[0], "bound_x5t_s256": cnf[1]}
    members |= {f"policy_{name}": getattr(policy, name) for name in policy.__struct_fields__}
    said = ("client_id", "subject_id", "client_epoch", "subject_epoch", "nonce_sha256", "issued_by", "session")
    members |= {name: authorized.get(name) for name in (*said, "auth_time", "acr", "amr")}
    members |= {"idle_expires_at": stored(idle), "absolute_expires_at": stored(absolute)}
    events = [fact("issued", generation=0, key_id=rules.active_key_id, **members)]
    events += [fact("refresh_token_withheld")] if withheld else []
    last_v = v + len(events)
    return Answer(events, Served(v + 1, None if withheld else 0, rules.active_key_id, idle, absolute, last_v))
