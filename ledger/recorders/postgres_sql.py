"""The dialect of our statements: they are written once, with `?`, and turned here into what PostgreSQL reads."""

import re
from functools import lru_cache

POSITION_BITS = 16
"""A position is the id of its transaction, and below it so many bits for the place within."""

_MARK = re.compile(r"\?")
_OF_GRANT = re.compile(r"(\w+)\.name = 'grant:' \|\| (\w+\.grant_id)")
"""How a statement finds the stream of a grant: here its key is the grant's id."""
_BYTES = re.compile(r"CAST\((.+?) AS BLOB\)")
"""How a statement asks for the bytes of a text, which may be none any more."""


@lru_cache(maxsize=1024)
def numbered(sql: str) -> str:
    """A statement with `$1`, `$2` … in place of each `?`. None of ours holds a question mark in a text."""
    parts = _MARK.split(_BYTES.sub(r"textsend(\1)", _OF_GRANT.sub(r"\1.id = \2", sql)))
    return parts[0] + "".join(f"${number}{part}" for number, part in enumerate(parts[1:], 1))
