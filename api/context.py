"""Where a request came from: source address and User-Agent, which the ledger compares as commitments.

The peer of the connection counts, unless it is a trusted proxy: then the right-most entry of X-Forwarded-For that is no
trusted proxy, for what stands left of it anyone may have written.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any, Final

from api.answers import Header
from api.heads import Headers
from api.settings import Network
from ledger.answers import Source
from ledger.policy import USER_AGENT_CHARACTERS_MAX

LOCAL: Final = "local"
"""The source address of a request through the socket beside the database."""

_KEPT_MAX: Final = 4096
_KEPT_BYTES_MAX: Final = 2048
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Contexts:
    """Tells the context of requests, and remembers the last few thousand answers: most come from the same places."""

    __slots__ = ("_kept", "_trusted")

    def __init__(self, trusted_proxies: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted_proxies)
        self._kept: dict[tuple[str, bytes, bytes], Source] = {}

    def of(self, scope: Any) -> Source:
        """Return where a request came from: an IPv4 address, an IPv6 /64 network or `local`; 512 characters at most.

        The same place gives the same tuple while it is remembered.
        """
        headers = scope["headers"]
        known = headers.context if type(headers) is Headers else None
        if known is not None:
            return known
        found = self._found(scope["client"], headers)
        if type(headers) is Headers:
            headers.context = found
        return found

    def _found(self, client: Any, headers: Sequence[Header]) -> Source:
        peer = client[0] if client else LOCAL
        agent = forwarded = b""
        for name, value in headers:
            if name == b"user-agent":
                agent = agent or value
            elif name == b"x-forwarded-for":
                forwarded = forwarded + b"," + value if forwarded else value
        key = (peer, forwarded, agent)
        found = self._kept.get(key)
        if found is None:
            shown = agent.decode("utf-8", "replace")[:USER_AGENT_CHARACTERS_MAX]
            found = Source(self._address(peer, forwarded), shown)
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()  # simpler than an order, and as good: what is in use comes back at once
            if len(forwarded) + len(agent) <= _KEPT_BYTES_MAX:
                self._kept[key] = found
        return found

    def trusts(self, peer: str) -> bool:
        """Whether this is the address of a trusted proxy."""
        parsed = _parsed(peer)
        return parsed is not None and self._trusts(parsed)

    def _address(self, peer: str, forwarded: bytes) -> str:
        parsed = _parsed(peer)
        if parsed is None:
            return peer
        if forwarded and self._trusts(parsed):
            for entry in reversed(forwarded.decode("latin-1").split(",")):
                text = entry.strip()
                if not text:
                    continue  # an empty list element means nothing (RFC 9110 5.6.1)
                address = _parsed(_without_port(text))
                if address is None:
                    break  # no address: nothing that a proxy of ours has seen, so the peer counts
                if not self._trusts(address):
                    return _shown(address)
        return _shown(parsed)

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _parsed(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # an interface name is of this machine only
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _shown(address: _Address) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
