"""What PostgreSQL calls a stream by: a uuid that follows from its name, so that nobody has to give numbers out.

A grant's key is the grant's id. So all rows of a grant, in whatever table, carry the id by which it is asked for, and
nothing about a grant has to be unique but with it: an engine that spreads tables over machines by that column finds
them together. Any other stream's key is made of the hash of its name.
"""

import hashlib
import re
from typing import Any, Final

from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Loader

# A grant's id is a UUID of version 7. What claims to be of version 8 is none, and shall not find others' keys.
_GRANT: Final = re.compile("grant:([0-9a-f]{12}[0-79a-f][0-9a-f]{19})")


def key_of(name: str) -> str:
    """The key of a stream: 32 lower-case hex digits. Of a grant its id; of any other the first 16 bytes of SHA-256 of
    the name, with the marks of a UUID of version 8 (RFC 9562 5.8)."""
    grant = _GRANT.fullmatch(name)
    if grant is not None:
        return grant[1]
    key = bytearray(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:16])
    key[6] = key[6] & 0x0F | 0x80
    key[8] = key[8] & 0x3F | 0x80
    return key.hex()


class _Hex(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode().replace("-", "")


def register(connection: Connection[Any]) -> None:
    """Let a connection give uuids as the hex digits that they are here."""
    connection.adapters.register_loader("uuid", _Hex)
