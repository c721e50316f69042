"""Nonces for DPoP proofs (RFC 9449 8): so that nobody can make proofs today for use tomorrow.

A nonce says when it was handed out and nothing else: a MAC, under the ring's root, of the minute. So every process and
node that holds the ring hands out the same one and knows the others' without asking anybody, and no restart, key
rotation or crash spends a client a request. Nobody without the ring can tell the next one.
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Final

from ledger.keyring import KeyRing, Purpose
from ledger.times import SECOND

SLOT_SECONDS: Final = 60
"""A new nonce is handed out this often."""

SLOTS_BACK: Final = 4
"""How many nonces before the one handed out now are still taken: one serves for 4 to 5 minutes."""

_MAC_BYTES: Final = 18  # 24 letters, without padding; all of them may stand in a nonce (RFC 9449 8.1)


class Nonces:
    """Hands nonces out and knows them again. Keeps nothing but the last few that it made."""

    def __init__(self, ring: Callable[[], KeyRing], clock: Callable[[], int]) -> None:
        """`clock` gives the wall clock in microseconds."""
        self._ring = ring
        self._clock = clock

    def current(self) -> str:
        """Return the nonce to hand out now."""
        return self._of(self._slot())

    def accepts(self, nonce: str) -> bool:
        """Whether this was handed out in the last minutes, here or on another node, whose clock may be ahead."""
        presented = nonce.encode("utf-8", "surrogatepass")
        slot = self._slot()
        made = (self._of(slot - back).encode("ascii") for back in range(-1, SLOTS_BACK + 1))
        return any([hmac.compare_digest(presented, each) for each in made])

    def _slot(self) -> int:
        return self._clock() // (SLOT_SECONDS * SECOND)

    def _of(self, slot: int) -> str:
        mac = self._ring().root_mac(Purpose.DPOP_NONCE, slot.to_bytes(8, "big"), _MAC_BYTES)
        return urlsafe_b64encode(mac).decode("ascii")
