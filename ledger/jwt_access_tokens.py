"""Access tokens that are JWTs (RFC 9068): made from the event that issued them and the person's row, never stored.

A JWT of event `v` of a grant has the `jti` `<grant id>.<v>`, and is the same whenever it is asked for. Whoever has the
published keys can check it alone; what the log has said since, only the ledger can tell. The claims are put together in
the transaction, which refuses what would be too long; signed they are once the event is durable.
"""

import re
from typing import Any, ClassVar, Literal

import msgspec

from ledger.commands import AccessToken
from ledger.events import Words
from ledger.keyring import KeyRing
from ledger.keys import Keys
from ledger.refusals import Refusal, Refused
from ledger.times import SECOND

CHARACTERS_MAX = 2048
"""A longer token fits into no header with certainty, so it is refused before it is issued."""

TYP = "at+jwt"

_START = "eyJ"  # every JSON object in base64url
_JTI = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,9})")


class Presented(msgspec.Struct, frozen=True):
    """A JWT whose signature holds: we issued it, by event `v` of that grant, when we called ourselves `issuer`."""

    grant_id: str
    v: int
    key_id: int
    issuer: str
    format: ClassVar[Literal["jwt"]] = "jwt"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Whose access token it is, and how the person signed in (RFC 9068 2.2.1): the same for all tokens of a grant."""

    grant_id: str
    client_id: str
    subject: str
    auth_time: int | None
    acr: str | None
    amr: Words | None


class Unsigned(msgspec.Struct, frozen=True):
    """The claims of a JWT, and the key of the ring that is to sign them."""

    key_id: int
    payload: bytes

    def __repr__(self) -> str:
        return f"Unsigned(key_id={self.key_id})"


class _Confirmation(msgspec.Struct, omit_defaults=True):
    jkt: str | None = None
    x5t_s256: str | None = msgspec.field(default=None, name="x5t#S256")


class _Claims(msgspec.Struct, omit_defaults=True, kw_only=True):
    """RFC 9068 2.2; `cnf` is RFC 9449 6.1 and RFC 8705 3.1."""

    iss: str
    sub: str
    aud: str | Words
    client_id: str
    iat: int
    exp: int
    jti: str
    scope: str = ""
    grant_id: str
    cnf: _Confirmation | None = None
    auth_time: int | None = None
    acr: str | None = None
    amr: Words | None = None


class _Read(msgspec.Struct):
    iss: str
    jti: str


def unsigned(ring: KeyRing, issuer: str, token: AccessToken, holder: Holder) -> Unsigned:
    """The claims of the access token that an event issues (RFC 9068 2.2). `issuer` is its default audience, too.

    Raises Refused(INVALID_REQUEST) where the token would be longer than 2,048 characters, KeyNotHeld.
    """
    audience = token.resource or (issuer,)
    bound = token.cnf_jkt is not None or token.cnf_x5t_s256 is not None
    claims = _Claims(
        iss=issuer,
        sub=holder.subject,
        aud=audience[0] if len(audience) == 1 else audience,
        client_id=holder.client_id,
        iat=token.issued_at // SECOND,
        exp=token.expires_at // SECOND,
        jti=f"{holder.grant_id}.{token.v}",
        scope=" ".join(token.scope),
        grant_id=holder.grant_id,
        cnf=_Confirmation(token.cnf_jkt, token.cnf_x5t_s256) if bound else None,
        auth_time=holder.auth_time,
        acr=holder.acr,
        amr=holder.amr,
    )
    payload = msgspec.json.encode(claims)
    length = ring.signing_key(token.signing_key_id).characters(payload)
    if length > CHARACTERS_MAX:
        raise Refused(
            Refusal.INVALID_REQUEST,
            detail=f"the access token would have {length} characters, and {CHARACTERS_MAX} is the most:"
            " ask for less scope or fewer resources",
        )
    return Unsigned(token.signing_key_id, payload)


def sign(ring: KeyRing, token: Unsigned) -> str:
    """The access token itself. Raises KeyNotHeld."""
    return ring.signing_key(token.key_id).sign(token.payload, TYP)


def published(ring: KeyRing, keys: Keys) -> list[dict[str, Any]]:
    """The public keys that good tokens are or will be signed with, as JWKs (RFC 7517 4), oldest first: of every key
    that the log knows, whether it signs or only verifies, but of none that is distrusted."""
    return [
        ring.signing_key(key_id).public
        for key_id in sorted(keys.created_at)
        if key_id not in keys.distrusted and key_id in ring.keys
    ]


def parse(ring: KeyRing, text: str) -> Presented | None:
    """Read a text that may be a JWT of ours; None for what we never signed as an access token. No look-up.

    Nothing of it is believed, and its claims are not read, before its signature holds under the key that it names, by
    that key's own algorithm. Raises KeyNotHeld for one that names a key which the ring lacks.
    """
    if len(text) > CHARACTERS_MAX or not text.startswith(_START):
        return None
    from ledger.signing import read  # where no JWT comes nobody shall pay for loading it

    found = read(ring, text, TYP)
    if found is None:
        return None
    key_id, payload = found
    claims = msgspec.json.decode(payload, type=_Read)  # we wrote it
    named = _JTI.fullmatch(claims.jti)
    assert named is not None
    return Presented(named[1], int(named[2]), key_id, claims.iss)
