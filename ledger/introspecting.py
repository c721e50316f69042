"""What a token is worth (RFC 7662), told to its owner, to an operator, or to the resource server that it is meant for.
Changes nothing and records nothing."""

from ledger import tokens
from ledger.answers import Caller, Introspection
from ledger.batch import Batch
from ledger.commands import AccessToken
from ledger.presenting import Desk, PresentedAccess, access_token, secret_right
from ledger.scope import meets
from ledger.subjects import subject_of


def introspect(batch: Batch, desk: Desk, asker: Caller | None, presented: tokens.Presented) -> Introspection | None:
    """A refresh token's standing, for its owner or (asker None) an operator; None: inactive, or not theirs."""
    found = batch.grant(presented.grant_id)
    if found is None:
        return None
    loaded, grant = found
    if asker is not None and not grant.owned_by(asker):
        return None
    if not secret_right(desk, loaded, presented) or presented.generation != grant.generation:
        return None
    rules = desk.authority.rules(grant)
    if rules.client is None or presented.key_id != grant.key_id:
        return None
    if grant.judge(batch.now, rules.epoch_end).status != "active":
        return None
    if presented.key_id in rules.distrusted and not (rules.client.authenticates or grant.bound):
        return None
    return Introspection(
        token_use="refresh_token",
        grant_id=presented.grant_id,
        client_id=grant.client_id,
        subject=subject_of(batch, grant.subject_id),
        scope=grant.carried_within(rules.client.scope),
        issued_at=grant.token_issued_at,
        expires_at=grant.idle_expires_at,
        cnf_jkt=grant.bound_jkt,
        cnf_x5t_s256=grant.bound_x5t_s256,
        auth_time=grant.auth_time,
        acr=grant.acr,
        amr=grant.amr,
    )


def introspect_access(
    batch: Batch, desk: Desk, asker: Caller | None, presented: PresentedAccess
) -> Introspection | None:
    """An access token's standing, for its owner, its resource server or (asker None) an operator; None as above."""
    found = access_token(batch, desk, presented)
    if found is None or (presented.format == "jwt" and presented.issuer != desk.issuer):
        return None  # what we signed under another name, everybody else takes for another's
    _, grant, token = found
    if asker is not None and not grant.owned_by(asker) and not _is_for(desk, asker, token):
        return None
    if not grant.access_token_active(token, batch.now, desk.authority.rules(grant)):
        return None
    return Introspection(
        token_use="access_token",
        grant_id=presented.grant_id,
        client_id=grant.client_id,
        subject=subject_of(batch, grant.subject_id),
        scope=token.scope,
        issued_at=token.issued_at,
        expires_at=token.expires_at,
        v=token.v,
        resource=token.resource,
        cnf_jkt=token.cnf_jkt,
        cnf_x5t_s256=token.cnf_x5t_s256,
        auth_time=grant.auth_time,
        acr=grant.acr,
        amr=grant.amr,
    )


def _is_for(desk: Desk, asker: Caller, token: AccessToken) -> bool:
    """Whether an access token is meant for a resource server that may ask about such (RFC 7662 2.1, 4)."""
    client = desk.authority.client(asker.client_id)
    if client is None or not asker.authenticated or client.settings.may_introspect is None:
        return False
    return meets(token.resource or (desk.issuer,), client.settings.may_introspect)
