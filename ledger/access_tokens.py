"""Opaque access tokens: derived, never stored. `at1_` and 72 characters: grant, `v`, secret (16 bytes), tag (16).

`v` is the version of the grant's event that issued the token and froze its scope, audience, key and expiry. What each
part is, `token_format` says.
"""

from typing import ClassVar, Final, Literal

from ledger.keyring import Concealed, KeyNotHeld, KeyRing, Purpose
from ledger.token_format import TokenFormat

__all__ = ["KeyNotHeld", "Presented", "derive", "genuine", "parse"]

_FORMAT = TokenFormat("at1_", secret=Purpose.ACCESS_SECRET, secret_size=16, tag=Purpose.ACCESS_TAG, tag_size=16)


class Presented(Concealed):
    """An access token whose tag holds: we issued this, by event `v` of that grant. Its secret is not judged yet."""

    __slots__ = ("grant_id", "key_id", "secret", "v")
    format: ClassVar[Literal["opaque"]] = "opaque"

    def __init__(self, grant_id: str, v: int, key_id: int, secret: bytes) -> None:
        self.grant_id: Final = grant_id
        self.v: Final = v
        self.key_id: Final = key_id
        self.secret: Final = secret


derive = _FORMAT.write
"""`derive(ring, key_id, grant_id, v, nonce)`: the access token that event `v` of a grant issued, always the same.
Raises KeyNotHeld."""


def parse(ring: KeyRing, text: str) -> Presented | None:
    """Read a text that may be an opaque access token; None for what we never issued. No look-up.

    Raises KeyNotHeld for a well-shaped text that names a key which the ring lacks.
    """
    parts = _FORMAT.read(ring, text)
    return None if parts is None else Presented(*parts)


def genuine(ring: KeyRing, presented: Presented, nonce: bytes) -> bool:
    """Whether the secret is the one that the grant's nonce gives; in constant time."""
    return _FORMAT.genuine(ring, presented.key_id, presented.grant_id, presented.v, presented.secret, nonce)
