"""What authentication goes by, of clients and operators: whether who showed what counted before may count no more."""

from typing import Final, NamedTuple

from ledger.clients import Client, Operator

CREDENTIALS: Final = (
    "auth", "jwks", "jwks_uri", "token_endpoint_auth_signing_alg", "assertion_audience", "tls_client_auth_subject_dn",
    "tls_client_auth_san_dns", "tls_client_auth_san_uri", "tls_client_auth_san_ip", "tls_client_auth_san_email",
    "grant_types", "dpop_nonce_required",
)  # fmt: skip
"""The settings of a client that, beside its secrets, say who it is, how it has to show it, and what else is looked at
before a request gets in line. Whether it is enabled is left out: whoever decides sees that."""


class Credentials(NamedTuple):
    """`one_of` are hashes of secrets or tokens, any of which is enough; `rest` is all else that is looked at."""

    one_of: frozenset[str]
    rest: tuple[object, ...]


def of_client(client: Client) -> Credentials:
    """What a client authenticates by."""
    settings = client.settings
    return Credentials(frozenset(settings.secret_hashes), tuple(getattr(settings, name) for name in CREDENTIALS))


def of_operator(operator: Operator) -> Credentials:
    """What an operator authenticates by, and what that lets them do."""
    return Credentials(frozenset(operator.token_hashes), (operator.enabled, operator.roles, operator.clients))


def taken_back(before: Credentials, now: Credentials | None) -> bool:
    """Whether somebody who showed what counted before may not count any more. Another secret or token beside those that
    were there takes nothing back: that is how they are changed without an outage."""
    return now is None or before.rest != now.rest or not before.one_of <= now.one_of
