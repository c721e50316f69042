"""Authorization codes: derived, never stored. `ac1_` and 72 characters: grant, 1, secret (20 bytes), tag (12).

The number is the version of the event that a code comes from, `grant.authorized`, which is always a grant's first.
What each part is, `token_format` says (RFC 6749 4.1.2, 10.10).
"""

from typing import Final

from ledger.keyring import Concealed, KeyNotHeld, KeyRing, Purpose
from ledger.token_format import TokenFormat

__all__ = ["KeyNotHeld", "Presented", "derive", "genuine", "parse"]

_FORMAT = TokenFormat("ac1_", secret=Purpose.CODE_SECRET, secret_size=20, tag=Purpose.CODE_TAG, tag_size=12)
_NUMBER = 1


class Presented(Concealed):
    """A code whose tag holds: we derived this for that grant. Its secret is not judged yet."""

    __slots__ = ("grant_id", "key_id", "secret")

    def __init__(self, grant_id: str, key_id: int, secret: bytes) -> None:
        self.grant_id: Final = grant_id
        self.key_id: Final = key_id
        self.secret: Final = secret


def derive(ring: KeyRing, key_id: int, grant_id: str, nonce: bytes) -> str:
    """The code of a grant, the same whenever it is asked for. Raises KeyNotHeld."""
    return _FORMAT.write(ring, key_id, grant_id, _NUMBER, nonce)


def parse(ring: KeyRing, text: str) -> Presented | None:
    """Read a text that may be a code; None for what we never made. No look-up, so forgeries cost no I/O.

    Raises KeyNotHeld for a well-shaped text that names a key which the ring lacks.
    """
    parts = _FORMAT.read(ring, text)
    if parts is None or parts[1] != _NUMBER:
        return None
    grant_id, _, key_id, secret = parts
    return Presented(grant_id, key_id, secret)


def genuine(ring: KeyRing, presented: Presented, nonce: bytes) -> bool:
    """Whether the secret is the one that the grant's nonce gives; in constant time."""
    return _FORMAT.genuine(ring, presented.key_id, presented.grant_id, _NUMBER, presented.secret, nonce)
