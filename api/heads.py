"""The head of a request: what frames it and what it asks for, checked after the parser (RFC 9112 3.2, 6).

A proxy in front may read a doubtful request differently, and then the two disagree where the next one begins. So what
is doubtful is refused.
"""

import functools
import re
import urllib.parse
from collections.abc import Iterable
from typing import Final, NamedTuple

from api.answers import Header
from ledger.answers import Caller, Source
from ledger.clients import Client
from ledger.keyring import KeyRing

_VERSIONS: Final = ("1.1", "1.0")
_KEPT_BYTES_MAX: Final = 128
_LOOKED_AT: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"origin"})
_HOST_CHARACTER: Final = rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]"
_HOST: Final = re.compile(_HOST_CHARACTER + rb"*")
_ABSOLUTE: Final = re.compile(rb"https?://" + _HOST_CHARACTER + rb"+(?=[/?#]|$)", re.IGNORECASE)


class Malformed(Exception):
    """A request that is no HTTP/1.0 or 1.1 which this server serves. `description` holds nothing of the request."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.description = description


class Headers(list[Header]):
    """The headers of a request as ASGI has them, and what has been found out about them.

    A connection keeps them for its next request, whose headers are the same nearly always: each is looked at once then.
    `first` is each name's first value, `twice` the names given more than once. What is None nobody has asked yet.
    """

    __slots__ = ("context", "first", "foreign_charset", "framing", "once_more", "proven", "repeating", "twice")

    def __init__(self, headers: Iterable[Header]) -> None:
        super().__init__(headers)
        self.first: dict[bytes, bytes] = {}
        self.twice: set[bytes] = set()
        for name, value in self:
            if name in self.first:
                self.twice.add(name)
            else:
                self.first[name] = value
        self.framing: Framing | None = None
        self.context: Source | None = None
        self.proven: Proven | None = None
        self.repeating: Repeating | None = None
        self.once_more: OnceMore | None = None
        self.foreign_charset: bool | None = None

    @classmethod
    def of(cls, headers: Iterable[Header]) -> "Headers":
        """Return them as such; those of another server, or of a test, are plain lists."""
        return headers if type(headers) is Headers else cls(headers)


class Proven(NamedTuple):
    """By which secret of the body, None where it stood in these headers, a client has proved who it is; and what that
    rests on: the client and the key ring as they were then, which are replaced by others whenever they change."""

    secret: str | None
    number: int
    client: Client
    ring: KeyRing
    caller: Caller

    def __repr__(self) -> str:
        return f"<Proven {self.client.client_id}>"


class Repeating(NamedTuple):
    """A form whose refresh token alone is another each time: how long it is, where the token begins and ends, the bytes
    around it, and all other fields."""

    length: int
    begins: int
    ends: int
    around: bytes
    fields: dict[str, str]

    def __repr__(self) -> str:
        return f"<Repeating {sorted(self.fields)}>"


class OnceMore(NamedTuple):
    """A refresh that comes over a connection again and again, with another token each time: the form, who has proved to
    send it, and from where."""

    form: Repeating
    proven: Proven
    source: Source


class Framing(NamedTuple):
    """What frames a request: the length that was told, whether the client waits for 100 Continue, and, since it is
    looked at in the same pass, whether it names an Origin."""

    version: str
    length: int | None
    expects_continue: bool
    names_origin: bool


def check_head(version: str, headers: list[Header]) -> Framing:
    """Check what frames a request (RFC 9112 3.2, 6): one Host, one way to tell the length. Raises Malformed."""
    if version not in _VERSIONS:
        raise Malformed(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    length = None
    expects_continue = names_origin = False
    hosts = 0
    for name, value in headers:
        if name not in _LOOKED_AT:
            continue
        if name == b"host":
            hosts += 1
            if not _is_host(value):
                raise Malformed(400, "the Host header is no host")
        elif name == b"content-length":
            length = int(value)
        elif name == b"origin":
            names_origin = True
        elif name == b"expect":
            expects_continue = version == "1.1" and value.lower() == b"100-continue"
        elif value.lower() != b"chunked":
            raise Malformed(501, "the only transfer coding here is chunked")
        elif version == "1.0":
            raise Malformed(400, "HTTP/1.0 has no transfer codings")
    if hosts != 1 and (hosts > 1 or version == "1.1"):
        raise Malformed(400, "a request has one Host header")
    return Framing(version, length, expects_continue, names_origin)


def parts_of(method: str, target: bytes) -> tuple[str, bytes, bytes]:
    """Split a request target (RFC 9112 3.2) into path, raw path and query. Raises Malformed.

    Of one in absolute form the host is dropped, as the Host header is: nothing here depends on a name.
    """
    return _kept_parts_of(method, target) if len(target) < _KEPT_BYTES_MAX else _parts_of(method, target)


def _parts_of(method: str, target: bytes) -> tuple[str, bytes, bytes]:
    if not target.startswith(b"/"):
        if target == b"*" and method == "OPTIONS":
            return "*", target, b""
        authority = _ABSOLUTE.match(target)
        if authority is None:
            raise Malformed(400, "the request target is neither a path nor a URL")
        target = target[authority.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if b"#" in target:
        raise Malformed(400, "a request target has no fragment")
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, raw_path, query


# The same few targets and hosts come all the time.
_kept_parts_of = functools.lru_cache(1024)(_parts_of)


@functools.lru_cache(64)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None
