"""How a token is written and read: one form for refresh tokens, opaque access tokens and authorization codes.

A token is a prefix and the base64url text (RFC 4648 5) of 54 bytes, 76 characters in all:

    version 1 | key id 1 | grant id 16 | number 4 | secret and tag, together 32 bytes

Integers are big-endian. The *secret* is a MAC over grant id, number and the grant's nonce, a random value of its
private row: whoever has the key ring and the private row can make the same token again, neither alone can. The *tag* is
a MAC over all bytes before it: it says that this ledger issued the token, without a look-up. Each kind has keys
of its own for both, so no token passes for one of another kind.

54 bytes fill 72 characters exactly, so there is no padding and no unused bit: a token has one spelling.
"""

import binascii
import hashlib
import hmac
import struct

from ledger.keyring import KeyRing, Purpose

NONCE_BYTES = 32
"""The length of a grant's nonce."""

TOKEN_BYTES = 54
TOKEN_CHARACTERS = 76
_VERSION = 1
_HEAD = struct.Struct(">BB16sI")  # version, key id, grant id, number
_SECRET_START = _HEAD.size

_URL_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_STANDARD_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_URL = bytes.maketrans(_STANDARD_ALPHABET, _URL_ALPHABET)
# All that is not of the URL alphabet becomes `!`, which the strict decoder refuses: also `+`, `/` and `=`.
_FROM_URL = bytes(
    _STANDARD_ALPHABET[_URL_ALPHABET.index(byte)] if byte in _URL_ALPHABET else ord("!") for byte in range(256)
)


class TokenFormat:
    """One kind of token. Immutable. The prefix has four characters, secret and tag together 32 bytes."""

    __slots__ = ("_prefix", "_secret_purpose", "_secret_size", "_tag_purpose", "_tag_size", "_tag_start")

    def __init__(self, prefix: str, *, secret: Purpose, secret_size: int, tag: Purpose, tag_size: int) -> None:
        assert len(prefix) == TOKEN_CHARACTERS - TOKEN_BYTES // 3 * 4
        assert _SECRET_START + secret_size + tag_size == TOKEN_BYTES
        self._prefix = prefix
        self._secret_purpose = secret
        self._secret_size = secret_size
        self._tag_purpose = tag
        self._tag_size = tag_size
        self._tag_start = _SECRET_START + secret_size

    def write(self, ring: KeyRing, key_id: int, grant_id: str, number: int, nonce: bytes) -> str:
        """Make the token; the same again for the same arguments. Raises KeyNotHeld."""
        secret, tag = ring.pairs.get((key_id, self._prefix)) or self._pair(ring, key_id)
        whole = _HEAD.pack(_VERSION, key_id, bytes.fromhex(grant_id), number)
        mac = secret.copy()
        mac.update(whole[2:] + nonce)
        whole += mac.digest()
        mac = tag.copy()
        mac.update(whole)
        whole += mac.digest()
        return self._prefix + binascii.b2a_base64(whole, newline=False).translate(_TO_URL).decode("ascii")

    def read(self, ring: KeyRing, text: str) -> tuple[str, int, int, bytes] | None:
        """Judge a text's shape and tag: `(grant_id, number, key_id, secret)`, or None for what we never made.

        Nothing of it is believed before the tag holds. Raises KeyNotHeld for a text of the right shape that names a
        key which the ring lacks: it may be ours.
        """
        if len(text) != TOKEN_CHARACTERS or not text.startswith(self._prefix):
            return None
        try:
            letters = text[4:].encode("ascii").translate(_FROM_URL)
            whole = binascii.a2b_base64(letters, strict_mode=True)
        except ValueError:  # of either; a decoder that is not strict drops foreign characters silently
            return None
        version, key_id, grant, number = _HEAD.unpack_from(whole)
        if version != _VERSION or key_id == 0:
            return None
        _, tag = ring.pairs.get((key_id, self._prefix)) or self._pair(ring, key_id)
        tag_start = self._tag_start
        mac = tag.copy()
        mac.update(whole[:tag_start])
        if not hmac.compare_digest(mac.digest(), whole[tag_start:]):
            return None
        return grant.hex(), number, key_id, whole[_SECRET_START:tag_start]

    def genuine(self, ring: KeyRing, key_id: int, grant_id: str, number: int, secret: bytes, nonce: bytes) -> bool:
        """Whether a token's secret is the one that this grant's nonce gives; in constant time. Raises KeyNotHeld."""
        assert len(nonce) == NONCE_BYTES
        keyed, _ = ring.pairs.get((key_id, self._prefix)) or self._pair(ring, key_id)
        mac = keyed.copy()
        mac.update(bytes.fromhex(grant_id) + number.to_bytes(4, "big") + nonce)
        return hmac.compare_digest(mac.digest(), secret)

    def _pair(self, ring: KeyRing, key_id: int) -> tuple[hashlib.blake2b, hashlib.blake2b]:
        """What makes secret and tag under one key. Raises KeyNotHeld."""
        pair = (
            ring.keyed(key_id, self._secret_purpose, self._secret_size),
            ring.keyed(key_id, self._tag_purpose, self._tag_size),
        )
        ring.pairs[key_id, self._prefix] = pair
        return pair
