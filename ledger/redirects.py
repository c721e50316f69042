"""Where an authorization may be sent to: exactly a registered address, but for the port of a program on this machine.

RFC 6749 3.1.2.3 and RFC 9700 4.1.3 compare the whole text. A native program that listens on its own machine cannot
know its port beforehand, so for http on a loopback address any port will do (RFC 8252 7.3); `localhost` counts as one,
as RFC 9700 4.1.3 has it and most such programs register it.
"""

import re
from typing import Final, NamedTuple

from ledger.events import Words

PORT_MAX: Final = 65535

# Nothing may stand before the host (`user@`), and a port is digits or not there.
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost)(?::([0-9]{1,5}))?((?:[/?].*)?)", re.DOTALL)


def registered(redirect_uri: str, redirect_uris: Words) -> bool:
    """Whether a client that registered `redirect_uris` may be answered at this one."""
    if redirect_uri in redirect_uris:
        return True
    asked = _loopback(redirect_uri)
    if asked is None or not 1 <= asked.port <= PORT_MAX:  # no program listens there, and no browser goes there
        return False
    known = (_loopback(each) for each in redirect_uris)
    return any(each is not None and (asked.host, asked.rest) == (each.host, each.rest) for each in known)


class _Loopback(NamedTuple):
    """A loopback address, taken apart."""

    host: str
    port: int
    rest: str


def _loopback(uri: str) -> _Loopback | None:
    """None for any other address."""
    found = _LOOPBACK.fullmatch(uri)
    return None if found is None else _Loopback(found[1], int(found[2] or 80), found[3])
