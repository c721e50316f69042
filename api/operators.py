"""Who of the operating side is calling: bearer tokens and roles (RFC 6750).

A token names nobody, so failures are counted for all operators of a source address together (TE-8).
"""

from collections.abc import Sequence
from typing import Final, Protocol

from api.answers import Header
from api.client_auth import TooManyFailures, authorization
from api.metrics import Meters
from api.throttle import OPERATORS, Throttle
from ledger.application import Ledger
from ledger.clients import LOCAL_OPERATOR, Operator
from ledger.refusals import Refusal, Refused

ISSUER: Final = "issuer"
AUDITOR: Final = "auditor"
SECURITY: Final = "security"
ADMIN: Final = "admin"


class Unauthorized(Exception):
    """No operator's token came with the request, or one that nobody has."""


class Operators(Protocol):
    """Tells which operator sends a request."""

    async def newest(self, headers: Sequence[Header], address: str) -> Operator:
        """As `caller`, and who is known to another node alone is no failure: what others have changed is heard of."""
        ...

    def caller(self, headers: Sequence[Header], address: str) -> Operator:
        """Return who is calling. Raises Unauthorized, TooManyFailures, BadRequest."""
        ...


class ByToken:
    """Operators as the port that everybody reaches knows them: by their bearer token alone."""

    def __init__(self, ledger: Ledger, throttle: Throttle, meters: Meters) -> None:
        self._ledger = ledger
        self._throttle = throttle
        self._meters = meters

    async def newest(self, headers: Sequence[Header], address: str) -> Operator:
        """As `Operators` says."""
        header = authorization(headers)
        if header is not None and self._of(header) is None and not self._throttle.wait_seconds(OPERATORS, address):
            await self._ledger.hear()
        return self.caller(headers, address)

    def _of(self, header: bytes) -> Operator | None:
        token = bearer_token(header)
        return None if token is None else self._ledger.authority.operator_by_token(self._ledger.desk.ring, token)

    def caller(self, headers: Sequence[Header], address: str) -> Operator:
        """As `Operators` says."""
        header = authorization(headers)
        if header is None:
            raise Unauthorized  # nothing was guessed
        wait = self._throttle.wait_seconds(OPERATORS, address)
        if wait:
            self._meters.throttled_operators += 1
            raise TooManyFailures(wait)
        operator = self._of(header)
        if operator is None:
            self._meters.failed_operators += 1
            wait = self._throttle.failed(OPERATORS, address)
            raise TooManyFailures(wait) if wait else Unauthorized
        return operator


class Local:
    """Whoever reaches the socket beside the database is the operator `local`: its file mode let them in."""

    async def newest(self, headers: Sequence[Header], address: str) -> Operator:
        """As `caller`."""
        return self.caller(headers, address)

    def caller(self, headers: Sequence[Header], address: str) -> Operator:
        """As `Operators` says; headers tell nothing here."""
        return LOCAL_OPERATOR


def bearer_token(header: bytes | None) -> str | None:
    """Return the token of an Authorization header of the scheme Bearer, in any case; None where it is another."""
    scheme, _, token = (header or b"").partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    return token.strip().decode("latin-1") or None


def may(operator: Operator, *roles: str) -> None:
    """Raise Refused (FORBIDDEN) where the operator has none of these roles."""
    if not operator.has(*roles):
        raise Refused(Refusal.FORBIDDEN, detail=f"this needs the role {' or '.join(roles)}")
