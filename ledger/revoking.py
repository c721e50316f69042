"""A client gives a token of its own back (RFC 7009): a refresh token ends the grant, an access token only itself."""

from ledger import tokens
from ledger.answers import Caller, Source
from ledger.batch import Batch
from ledger.commands import RevokeAccessToken, RevokeByClient
from ledger.presenting import Desk, PresentedAccess, access_token, genuine, record, secret_right
from ledger.refusals import Refusal, Refused


def revoke(batch: Batch, desk: Desk, caller: Caller, source: Source, presented: tokens.Presented) -> None:
    """Give a grant back by one of its refresh tokens. A token that never was, or whose grant has ended, is no error;
    one that is not the caller's own is refused, and lives (RV-5)."""
    try:
        loaded, grant = genuine(batch, desk, caller, source, presented)
    except Refused:
        found = batch.grant(presented.grant_id)
        if found is None or not secret_right(desk, found[0], presented):
            return
        raise
    command = RevokeByClient(at=batch.now, command_id=batch.command_id, client_id=caller.client_id)
    record(batch, desk, loaded, grant.decide(command, desk.authority.rules(grant)), None, None)


def revoke_access(batch: Batch, desk: Desk, caller: Caller, presented: PresentedAccess) -> None:
    """Give one access token back; the grant lives. One that has expired is no error; one that only rests, because its
    grant is suspended, must not come back with it."""
    found = access_token(batch, desk, presented)
    if found is None:
        _check_own_if_over(batch, caller, presented)
        return
    loaded, grant, token = found
    if not grant.owned_by(caller):
        raise Refused(Refusal.UNKNOWN_TOKEN)
    if batch.now >= token.expires_at:
        return
    command = RevokeAccessToken(
        at=batch.now, command_id=batch.command_id, issued_v=presented.v, client_id=caller.client_id
    )
    record(batch, desk, loaded, grant.decide(command, desk.authority.rules(grant)), None, None)


def _check_own_if_over(batch: Batch, caller: Caller, presented: PresentedAccess) -> None:
    """Once a grant has ended its nonce is gone, and the tag alone says that we made the token. Whoever it does not
    belong to is refused then as before, or the answer would tell them of the end (I-18). Raises Refused."""
    found = batch.grant(presented.grant_id)
    if found is None:
        return
    loaded, grant = found
    if (loaded.private is None or loaded.private.nonce is None) and not grant.owned_by(caller):
        raise Refused(Refusal.UNKNOWN_TOKEN)
