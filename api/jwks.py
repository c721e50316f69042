"""`GET /oauth/v2/jwks`: the public keys by which anyone can check an access token that is a JWT (RFC 7517, RFC 9068 4).

A key is here from `keys rotate` on, before it signs, until it is distrusted: whoever asks again once in a while, or
when a token names a key that they do not know, is never without the key of a good token.
"""

from typing import Any, Final

import msgspec

from api.answers import JSON, VARIES, Answer, with_body
from ledger.application import Ledger
from ledger.jwt_access_tokens import published

CACHE_SECONDS: Final = 300
"""How long an answer may be kept: between `keys rotate` and `keys activate` at least this long should pass."""


class Jwks:
    """The endpoint."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def document(self, scope: Any) -> Answer:
        """The keys, oldest first."""
        keys = published(self._ledger.desk.ring, self._ledger.authority.keys)
        headers = (JSON, (b"cache-control", b"public, max-age=%d" % CACHE_SECONDS), VARIES)
        return with_body(200, msgspec.json.encode({"keys": keys}), headers)
