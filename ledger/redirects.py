"""Where an authorization may be sent to: exactly a registered address, but for the port of a program on this machine.

RFC 6749 3.1.2.3 and RFC 9700 4.1.3 compare the whole text. A native program that listens on its own machine cannot
know its port beforehand, so for http on a loopback address any port will do (RFC 8252 7.3); `localhost` counts as one,
as RFC 9700 4.1.3 has it and most such programs register it.
"""

import re

from ledger.events import Words

# Nothing may stand before the host (`user@`), and a port is digits or not there.
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost)(?::[0-9]{1,5})?((?:[/?].*)?)", re.DOTALL)


def registered(redirect_uri: str, redirect_uris: Words) -> bool:
    """Whether a client that registered `redirect_uris` may be answered at this one."""
    if redirect_uri in redirect_uris:
        return True
    asked = _without_port(redirect_uri)
    return asked is not None and any(asked == _without_port(each) for each in redirect_uris)


def _without_port(uri: str) -> tuple[str, str] | None:
    """Host and all that follows the port of a loopback address; None for any other."""
    found = _LOOPBACK.fullmatch(uri)
    return None if found is None else (found[1], found[2])
