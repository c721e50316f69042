"""The head of a request: what frames it and what it asks for, checked after the parser (RFC 9112 3.2, 6).

A proxy in front may read a doubtful request differently, and then the two disagree where the next one begins. So what
is doubtful is refused.
"""

import re
from dataclasses import dataclass
from typing import Final

from api.answers import Header

_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#@]+(?=[/?#]|$)", re.IGNORECASE)


class Malformed(Exception):
    """A request that is no HTTP/1.0 or 1.1 which this server serves. `description` holds nothing of the request."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.description = description


@dataclass(slots=True)
class Head:
    """What the framing headers of a request say, checked."""

    length: int | None = None
    expects_continue: bool = False


def check_head(version: str, headers: list[Header]) -> Head:
    """Check what frames a request (RFC 9112 3.2, 6): one Host, one way to tell the length. Raises Malformed."""
    if version not in ("1.1", "1.0"):
        raise Malformed(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    head = Head()
    hosts = 0
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise Malformed(400, "the Host header is no host")
        elif name == b"content-length":
            head.length = int(value)
        elif name == b"expect":
            head.expects_continue = version == "1.1" and value.lower() == b"100-continue"
        elif value.lower() != b"chunked":
            raise Malformed(501, "the only transfer coding here is chunked")
        elif version == "1.0":
            raise Malformed(400, "HTTP/1.0 has no transfer codings")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise Malformed(400, "a request has one Host header")
    return head


def path_and_query(method: str, target: bytes) -> tuple[bytes, bytes]:
    """Split a request target (RFC 9112 3.2); of one in absolute form the host is dropped. Raises Malformed."""
    if not target.startswith(b"/"):
        if target == b"*" and method == "OPTIONS":
            return target, b""
        authority = _ABSOLUTE.match(target)
        if authority is None:
            raise Malformed(400, "the request target is neither a path nor a URL")
        target = target[authority.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if b"#" in target:
        raise Malformed(400, "a request target has no fragment")
    path, _, query = target.partition(b"?")
    return path, query
