"""Key sets that clients publish at a URL of theirs (`jwks_uri`, RFC 7591 2), fetched when they are needed.

A client's new key is found within `AGAIN_SECONDS`, and one that it has taken away is good for `FRESH_SECONDS` more. Its
server may be away for up to `KEPT_SECONDS`: meanwhile the keys seen last count, and whoever has none is told to come
again (503), not that the client is wrong.

Whoever may write a clients file, or answer for a name in one, chooses where this server connects to. So it connects by
https, to public addresses only, to the very address that was judged, and follows no redirect: a name that resolves
otherwise the next time (DNS rebinding) leads nowhere else. What comes is bounded in size and time.
"""

import asyncio
import functools
import ipaddress
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import h11
import msgspec

from api.logs import Log
from ledger.client_keys import VerifyingKey, verifying_keys
from ledger.refusals import Unavailable

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Keys: TypeAlias = tuple[VerifyingKey, ...]
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

FRESH_SECONDS: Final = 300.0
KEPT_SECONDS: Final = 86_400.0
AGAIN_SECONDS: Final = 30.0
AFTER_FAILURE_SECONDS: Final = 5.0
TIMEOUT_SECONDS: Final = 3.0
BYTES_MAX: Final = 65_536
KEYS_MAX: Final = 50
ADDRESSES_TRIED_MAX: Final = 4

_HEAD_BYTES_MAX: Final = 16_384
_URIS_MAX: Final = 10_000
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address behind an IPv6-only network
_TUNNELLED: Final = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))

log = Log("api.remote_keys")


class Unfetchable(Exception):
    """A key set could not be had; the text says why, in words of ours."""


def is_public(address: Address) -> bool:
    """Whether an address lies out in the Internet: not this machine, no private network, no link, no group."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and not address.is_reserved
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _TRANSLATED:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _GLOBAL_UNICAST and address.is_global and not any(address in each for each in _TUNNELLED)


class RemoteKeys:
    """The key sets that were fetched, by URL. Owned by the event loop; nothing here blocks it."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        permits: Callable[[Address], bool] = is_public,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`clock` gives seconds that only run forward. `permits`, `resolve` and `tls` are for tests: they say which
        addresses may be connected to, what a name resolves to, and whom to trust. No setting leads to them."""
        self._clock = clock
        self._permits = permits
        self._resolve = resolve or _resolved
        self._tls = tls
        self._timeout_seconds = timeout_seconds
        self._known: dict[str, _Known] = {}

    async def keys(self, uri: str) -> Keys:
        """Return the keys at a URL, at most `FRESH_SECONDS` old unless its server is away. Raises Unavailable."""
        known = self._of(uri)
        if known.keys is not None and self._clock() - known.fetched_at < FRESH_SECONDS:
            return known.keys
        return await self._waited_for(known, uri)

    async def newer(self, uri: str) -> Keys:
        """Return the keys at a URL as they are now, for a signature that names none that we know. Asked more often than
        every `AGAIN_SECONDS`, those that were found last. Raises Unavailable."""
        return await self._waited_for(self._of(uri), uri)

    def _of(self, uri: str) -> "_Known":
        known = self._known.get(uri)
        if known is None:
            if len(self._known) >= _URIS_MAX:
                del self._known[next(iter(self._known))]
            known = self._known[uri] = _Known()
        return known

    async def _waited_for(self, known: "_Known", uri: str) -> Keys:
        if known.fetching is None and self._clock() >= known.not_before:
            known.fetching = asyncio.get_running_loop().create_task(self._fetch(known, uri))
        if known.fetching is not None:
            await asyncio.shield(known.fetching)  # others wait for it too, and a client that leaves ends it for nobody
        if known.keys is None or self._clock() - known.fetched_at >= KEPT_SECONDS:
            raise Unavailable(
                "the keys of this client cannot be fetched", retry_after_seconds=int(AFTER_FAILURE_SECONDS)
            )
        return known.keys

    async def _fetch(self, known: "_Known", uri: str) -> None:
        try:
            known.keys = await self.fetched(uri)
            known.fetched_at = self._clock()
            known.not_before = known.fetched_at + AGAIN_SECONDS
        except Unfetchable as problem:
            # Who has keys seen before goes on with them, and must not wait for a server that hangs all the time.
            known.not_before = self._clock() + (AFTER_FAILURE_SECONDS if known.keys is None else AGAIN_SECONDS)
            log.warning("client_keys_unfetchable", host=urlsplit(uri).hostname or "", problem=str(problem))
        finally:
            known.fetching = None

    async def fetched(self, uri: str) -> Keys:
        """Return the keys at a URL, asked for now, whatever is known. Raises Unfetchable."""
        return _keys_in(await self._body(uri))

    async def _body(self, uri: str) -> bytes:
        parts = urlsplit(uri)
        if parts.scheme != "https":
            raise Unfetchable("it is not https")
        try:
            host, port = parts.hostname or "", parts.port or 443
            async with asyncio.timeout(self._timeout_seconds):
                reader, writer = await self._connected(host, port)
                try:
                    return await _exchanged(reader, writer, parts.netloc, parts._replace(scheme="", netloc="").geturl())
                finally:
                    writer.transport.abort()
        except TimeoutError:
            raise Unfetchable(f"nothing whole came within {self._timeout_seconds:g} seconds") from None
        except ssl.SSLError:
            raise Unfetchable("its certificate cannot be trusted, or it does not speak TLS") from None
        except (OSError, ValueError, h11.RemoteProtocolError) as error:
            raise Unfetchable(f"the exchange broke off: {type(error).__name__}") from None

    async def _connected(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to an address that was judged, by its number: the name is not looked up a second time."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # it reads every authority there is
        addresses = [ipaddress.ip_address(each) for each in await self._resolve(host, port)]
        if not addresses:
            raise Unfetchable("its name has no address")
        if not all(map(self._permits, addresses)):
            raise Unfetchable("its name leads to an address that is not public")
        problem: OSError | None = None
        for address in addresses[:ADDRESSES_TRIED_MAX]:
            try:
                return await asyncio.open_connection(str(address), port, ssl=self._tls, server_hostname=host)
            except ssl.SSLError:
                raise
            except OSError as error:  # that address family may have no way out here
                problem = error
        assert problem is not None
        raise problem


class _Known:
    """What is known of one URL: its keys and when they came; not to be asked before; the fetch under way."""

    __slots__ = ("fetched_at", "fetching", "keys", "not_before")

    def __init__(self) -> None:
        self.keys: Keys | None = None
        self.fetched_at = 0.0
        self.not_before = float("-inf")
        self.fetching: asyncio.Task[None] | None = None


async def _resolved(host: str, port: int) -> Sequence[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise Unfetchable("its name cannot be resolved") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str) -> bytes:
    """Ask for the document and return it whole."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
    request = h11.Request(
        method="GET",
        target=target if target.startswith("/") else "/" + target,
        headers=[
            ("Host", host),
            ("Accept", "application/jwk-set+json, application/json"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "token-ledger"),
            ("Connection", "close"),
        ],
    )
    writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    next_event = functools.partial(_next_event, connection, reader)
    event = await next_event()
    while isinstance(event, h11.InformationalResponse):
        event = await next_event()
    assert isinstance(event, h11.Response)
    if event.status_code != 200:
        raise Unfetchable(f"it answers {event.status_code}, where 200 is expected")
    body = bytearray()
    while isinstance(event := await next_event(), h11.Data):
        body += event.data
        if len(body) > BYTES_MAX:
            raise Unfetchable(f"it is longer than {BYTES_MAX} bytes")
    return bytes(body)


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_HEAD_BYTES_MAX))
    return event


class _KeySet(msgspec.Struct):
    keys: list[Any]


def _keys_in(body: bytes) -> Keys:
    try:
        found = msgspec.json.decode(body, type=_KeySet).keys
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise Unfetchable("it is no key set (RFC 7517 5)") from None
    if len(found) > KEYS_MAX:
        raise Unfetchable(f"it has more than {KEYS_MAX} keys")
    return verifying_keys(found)
