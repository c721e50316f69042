"""Client secrets and operator tokens at rest: keyed hashes under the ring's root, nothing from which to log in.

One form for both, `h1$` and 64 lower-case hex digits. No slow hash: without the ring a hash tells nothing, and the
hot path pays one MAC (RFC 6749 2.3.1, 10.1).
"""

import hmac
import re
from collections.abc import Sequence

from ledger.keyring import KeyRing, Purpose
from ledger.policy import CLIENT_SECRETS_MAX

_SHAPE = re.compile(r"h1\$[0-9a-f]{64}")
_NOBODY = "h1$" + "-" * 64  # as long as any hash and equal to none


def secret_hash(ring: KeyRing, secret: str) -> str:
    """The stored form of a secret, the same for the same secret for as long as the ring lives."""
    # What arrives in a request may be any text; a lone surrogate must fail like any wrong secret, not raise.
    return "h1$" + ring.root_mac(Purpose.CREDENTIAL, secret.encode("utf-8", "surrogatepass"), 32).hex()


def is_secret_hash(text: str) -> bool:
    """Whether a text has the shape of `secret_hash`: what a clients file may hold in place of a secret."""
    return _SHAPE.fullmatch(text) is not None


def secret_matches(ring: KeyRing, secret_candidates: Sequence[str], hashes: Sequence[str]) -> int | None:
    """Which of the stored hashes (at most 3) one of the candidates matches: its index, or None.

    Candidates are the readings of one presented secret (raw, form-decoded). Every candidate is compared with as many
    hashes, whether there are three, one or, for an unknown client, none: the time tells nothing.
    """
    assert len(hashes) <= CLIENT_SECRETS_MAX
    first, second, third = (*hashes, _NOBODY, _NOBODY, _NOBODY)[:CLIENT_SECRETS_MAX]
    found: int | None = None
    for candidate in secret_candidates:
        presented = secret_hash(ring, candidate)
        is_first = hmac.compare_digest(presented, first)
        is_second = hmac.compare_digest(presented, second)
        is_third = hmac.compare_digest(presented, third)
        if is_first or is_second or is_third:
            found = 0 if is_first else 1 if is_second else 2
    return found
