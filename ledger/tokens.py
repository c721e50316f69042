"""Refresh tokens: derived, never stored. `rt1_` and 72 characters: grant, generation, secret (20 bytes), tag (12).

`token_format` says what each part is. Here stands also how a grant gets its id.
"""

from typing import Final

from ledger.keyring import Concealed, KeyNotHeld, KeyRing, Purpose
from ledger.randomness import Randomness
from ledger.token_format import TokenFormat

__all__ = ["KeyNotHeld", "Presented", "derive", "genuine", "new_grant_id", "parse"]

_FORMAT = TokenFormat("rt1_", secret=Purpose.REFRESH_SECRET, secret_size=20, tag=Purpose.REFRESH_TAG, tag_size=12)

WHOSE: Final = slice(4, 28)
"""Where in a token's text key and grant stand, and nothing else: the first 18 of its bytes."""


class Presented(Concealed):
    """A refresh token whose tag holds: we issued this, generation g of that grant. Its secret is not judged yet; None
    where it need not be, because this process made the token, which is `text` then. `stream` is its grant's name."""

    __slots__ = ("generation", "grant_id", "key_id", "secret", "stream", "text")

    def __init__(self, grant_id: str, generation: int, key_id: int, secret: bytes | None, text: str = "") -> None:
        self.grant_id: Final = grant_id
        self.generation: Final = generation
        self.key_id: Final = key_id
        self.secret: Final = secret
        self.text: Final = text
        self.stream: Final = "grant:" + grant_id


derive = _FORMAT.write
"""`derive(ring, key_id, grant_id, generation, nonce)`: the refresh token of one generation of a grant, always the same.
Raises KeyNotHeld."""


def parse(ring: KeyRing, text: str) -> Presented | None:
    """Read a text that may be a refresh token; None for what we never issued. No look-up, so forgeries cost no I/O.

    Raises KeyNotHeld for a well-shaped text that names a key which the ring lacks.
    """
    parts = _FORMAT.read(ring, text)
    return None if parts is None else Presented(*parts)


def genuine(ring: KeyRing, presented: Presented, nonce: bytes) -> bool:
    """Whether the secret is the one that the grant's nonce gives; in constant time. A genuine tag with a wrong
    secret was made by someone who has the key ring and not the database."""
    secret = presented.secret
    return secret is None or _FORMAT.genuine(
        ring, presented.key_id, presented.grant_id, presented.generation, secret, nonce
    )


def new_grant_id(now: int, randomness: Randomness) -> str:
    """A new grant's id: 32 lower-case hex digits in the layout of a UUID version 7 (RFC 9562 5.7).

    From the highest bit: 48 bits milliseconds since 1970, 4 bits version (7), 12 bits fraction of the millisecond
    (RFC 9562 6.2, method 3), 2 bits variant (10), 12 bits shard (0 today), 50 random bits. So ids sort by `now`
    (microseconds), and whoever sees one sees when the grant was issued.
    """
    milliseconds, microseconds = divmod(now, 1000)
    assert 0 <= milliseconds < 2**48
    shard = 0
    drawn = int.from_bytes(randomness(7), "big") >> 6
    high = milliseconds << 16 | 7 << 12 | microseconds * 4096 // 1000
    low = 0b10 << 62 | shard << 50 | drawn
    return f"{high:016x}{low:016x}"
