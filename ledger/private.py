"""Personal data: kept in private rows outside the events, which hold commitments to it only.

A commitment is a hash over a salt and the text. Whoever is shown the text and its salt can recompute it; once the
private row is erased, nobody can tell what it was, and every event still stands as it was hashed.
"""

import hashlib
import re
from typing import Final

import msgspec

from ledger.keyring import Concealed, KeyRing, Purpose
from ledger.policy import REASON_CHARACTERS_MAX, SUBJECT_CHARACTERS_MAX, USER_AGENT_CHARACTERS_MAX
from ledger.randomness import Randomness
from ledger.token_format import NONCE_BYTES

SALT_BYTES = 16
SUBJECT_ID_BYTES = 16
_MAC_BYTES = 16

_SUBJECT = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{SUBJECT_CHARACTERS_MAX}}}")
_REASON = re.compile(rf"[^\ud800-\udfff]{{0,{REASON_CHARACTERS_MAX}}}")


class PrivateGrant(Concealed):
    """What decisions need of a grant's private row: the nonce that its tokens are made with, None once it has ended for
    good (nobody can make them any more); the salt of its commitments; and where it was issued under an Idempotency-Key
    the MAC of that request. Device and session are for whoever asks about the grant, and stay where they are."""

    __slots__ = ("body_mac", "nonce", "salt")

    def __init__(self, nonce: bytes | None, salt: bytes | None, body_mac: bytes | None = None) -> None:
        self.nonce: Final = nonce
        self.salt: Final = salt
        self.body_mac: Final = body_mac

    def without_nonce(self) -> "PrivateGrant":
        """The row once the grant has ended for good: everything but what its tokens were made from."""
        return PrivateGrant(None, self.salt, self.body_mac)


def new_nonce(randomness: Randomness) -> bytes:
    """A grant's nonce (32 bytes), from which with the key ring all its tokens follow."""
    return randomness(NONCE_BYTES)


def new_salt(randomness: Randomness) -> bytes:
    """A salt (16 bytes): one a grant, and one for each reason."""
    return randomness(SALT_BYTES)


def new_subject_id(randomness: Randomness) -> str:
    """What events call a person: 32 lower-case hex digits that say nothing about them."""
    return randomness(SUBJECT_ID_BYTES).hex()


def commitment(salt: bytes, name: str, value: str) -> str:
    """What an event says in place of `value`: SHA-256, lower-case hex, of the JSON array `[salt, name, value]` in the
    form of RFC 8785, the salt as lower-case hex. `name` is `context`, `device`, `session` or `reason`.

    Raises UnicodeEncodeError for a lone surrogate, which that form cannot hold.
    """
    return hashlib.sha256(msgspec.json.encode([salt.hex(), name, value])).hexdigest()


def context_value(address: str, user_agent: str) -> str:
    """The text behind a context's commitment: source address, line feed, the User-Agent's first 512 characters."""
    return f"{address}\n{user_agent[:USER_AGENT_CHARACTERS_MAX]}"


def nonce_sha256(nonce: bytes) -> str:
    """What `grant.issued` says of the nonce: which one the private row must hold. Tells nothing of it."""
    return hashlib.sha256(nonce).hexdigest()


def subject_lookup(ring: KeyRing, subject: str) -> bytes:
    """The key of a person's row (16 bytes), unguessable without the ring. Subjects are compared byte for byte."""
    return ring.root_mac(Purpose.SUBJECT_LOOKUP, subject.encode(), _MAC_BYTES)


def idempotency_mac(ring: KeyRing, operator: str, key: str) -> bytes:
    """How an operator's Idempotency-Key is stored (16 bytes): each operator has its own keys."""
    return ring.root_mac(Purpose.IDEMPOTENCY_KEY, msgspec.json.encode([operator, key]), _MAC_BYTES)


def body_mac(ring: KeyRing, body: bytes) -> bytes:
    """How the request that came with an Idempotency-Key is stored (16 bytes). `body` is its canonical JSON."""
    return ring.root_mac(Purpose.IDEMPOTENCY_BODY, body, _MAC_BYTES)


def is_subject(text: str) -> bool:
    """Whether a text may name a person: 1–255 characters, no control characters, no lone surrogates."""
    return _SUBJECT.fullmatch(text) is not None


def is_reason(text: str) -> bool:
    """Whether a text may be an act's reason: at most 200 characters, no lone surrogates."""
    return _REASON.fullmatch(text) is not None
