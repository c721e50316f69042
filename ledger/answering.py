"""What a token request is answered with: both tokens, derived anew from the grant's nonce, lifetimes as of then.

Deriving them takes as long as deciding does and decides nothing. So a refresh is decided, recorded and handed to the
store first, and its answer is made while the store makes it durable.
"""

from typing import Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from ledger import access_tokens, jwt_access_tokens, tokens
from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.commands import Served
from ledger.grant import Grant
from ledger.keyring import KeyRing
from ledger.memory import Loaded
from ledger.presenting import Desk
from ledger.times import SECOND

T_co = TypeVar("T_co", covariant=True)


class Later(Protocol[T_co]):
    """What a decision gives in place of an answer that takes long to make and decides nothing."""

    def made(self) -> T_co:
        """Make it, while the store makes durable what was decided. Called once for each decision."""
        ...


class Unmade(msgspec.Struct, gc=False, frozen=True, eq=False):
    """An answer that is decided, and all that its tokens follow from. `wall_clock` and `at`, the time of the grant's
    last event, are in microseconds; `jwt` is the access token that is to be signed, None where it is opaque."""

    desk: Desk
    ring: KeyRing
    grant_id: str
    nonce: bytes
    served: Served
    position: int
    wall_clock: int
    at: int
    jwt: jwt_access_tokens.Unsigned | None

    def __repr__(self) -> str:
        return f"Unmade(grant_id={self.grant_id!r}, position={self.position})"

    def made(self) -> TokenAnswer:
        """The token response; its refresh token is remembered as one that this process made. Its keys were asked for
        before anything was recorded (`check_keys`), so nothing is missing here."""
        ring, grant_id, nonce, served, wall_clock = self.ring, self.grant_id, self.nonce, self.served, self.wall_clock
        access, generation, key_id = served.access_token, served.generation, served.key_id
        refresh = None
        if generation is not None:
            refresh = tokens.derive(ring, key_id, grant_id, generation, nonce)
            self.desk.hand_out(tokens.Presented(grant_id, generation, key_id, None, refresh))
        now = wall_clock if wall_clock > self.at else self.at
        idle, absolute = served.idle_expires_at, served.absolute_expires_at
        ends_in = None if absolute is None else 0 if absolute < now else (absolute - now) // SECOND
        # Where the clock went back since, no longer than the lifetime that was set.
        since = wall_clock if wall_clock > access.issued_at else access.issued_at
        expires_in = access.expires_at // SECOND - since // SECOND
        if expires_in < 0:
            expires_in = 0
        jwt = self.jwt
        assert (access.format == "jwt") == (jwt is not None)
        return TokenAnswer(
            access_token="" if jwt else access_tokens.derive(ring, access.signing_key_id, grant_id, access.v, nonce),
            refresh_token=refresh,
            scope=access.scope,
            token_type="bearer" if access.cnf_jkt is None else "DPoP",
            expires_in=expires_in if ends_in is None or expires_in <= ends_in else ends_in,
            refresh_token_timeout=None if idle is None or not refresh else 0 if idle < now else (idle - now) // SECOND,
            authorization_expires_in=ends_in,
            position=self.position,
            grant_id=grant_id,
            unsigned=jwt,
        )


def unmade(
    batch: Batch,
    desk: Desk,
    loaded: Loaded,
    grant: Grant,
    served: Served,
    jwt: jwt_access_tokens.Unsigned | None,
) -> Unmade:
    """What was served, as the grant stands now. `jwt` is what `unsigned_jwt` gave; `check_nonce` was asked before."""
    private = loaded.private
    assert private is not None
    assert private.nonce is not None
    loaded.known_access = served.access_token  # whom it is shown to asks about it soon
    position = loaded.position if loaded.v == served.last_v else batch.position_at(loaded, served.last_v)
    return Unmade(desk, desk.ring, loaded.name[6:], private.nonce, served, position, batch.now, grant.at, jwt)


def signed(ring: KeyRing, told: TokenAnswer) -> TokenAnswer:
    """Sign the answer's JWT, now that its event is durable: nobody else waits in the transaction meanwhile."""
    if told.unsigned is None:
        return told
    return replace(told, access_token=jwt_access_tokens.sign(ring, told.unsigned), unsigned=None)
