"""Clients of certificates on the server's own TLS: what a clients file says of them, and who holds what they show.

Fixture `parties`.
"""

import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509

from api.server import Parser
from tests.certificates import FOR_CLIENTS, Party, authority, certificate
from tests.mutual_tls import Ledger, mutual
from tests.servers import CALLBACK
from tests.wire import Answer

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
NAMES: list[x509.GeneralName] = [
    x509.DNSName("app.example"),
    x509.UniformResourceIdentifier("spiffe://example/app"),
    x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
    x509.RFC822Name("ops@example.org"),
]


class Parties(NamedTuple):
    """Who holds certificates in these tests."""

    ca: Party
    app: Party
    own: Party
    spa: Party


def client(client_id: str, auth: str, *more: str) -> str:
    """One client as a clients file says it."""
    return "\n".join(("[[client]]", f'id = "{client_id}"', f'auth = "{auth}"', 'scope = "read"', *more, ""))


def jwks(*parties: Party) -> str:
    return "jwks = { keys = [" + ", ".join(f'{{ x5c = ["{each.x5c}"] }}' for each in parties) + "] }"


BOUND = "tls_client_certificate_bound_access_tokens = true"


def clients(parties: Parties) -> str:
    return "\n".join(
        (
            client("dn", "tls_client_auth", 'tls_client_auth_subject_dn = "CN=app,O=Example"', BOUND),
            client("dns", "tls_client_auth", 'tls_client_auth_san_dns = "app.example"'),
            client("uri", "tls_client_auth", 'tls_client_auth_san_uri = "spiffe://example/app"'),
            client("ip", "tls_client_auth", 'tls_client_auth_san_ip = "2001:db8::7"'),
            client("email", "tls_client_auth", 'tls_client_auth_san_email = "ops@example.org"'),
            client("own", "self_signed_tls_client_auth", jwks(parties.own)),
            client("page", "none", jwks(parties.spa), BOUND, 'policy = "strict"'),
            client(
                "site",
                "none",
                jwks(parties.spa),
                BOUND,
                'grant_types = ["authorization_code", "refresh_token"]',
                f'redirect_uris = ["{CALLBACK}"]',
                'policy = { access_token_format = "jwt" }',
            ),
            client("sec", "client_secret", 'secret = "S3cret-and-bound"', BOUND, jwks(parties.spa)),
        )
    )


@pytest.fixture(scope="session")
def parties() -> Parties:
    """The same for all of a worker's tests."""
    ca = authority()
    app = certificate("CN=app,O=Example", by=ca, names=NAMES, usage=FOR_CLIENTS)
    # As `openssl req -x509` makes it: an authority by its extensions.
    return Parties(ca, app, certificate("CN=own", authority=True), certificate("CN=page"))


@contextmanager
def native(folder: Path, parties: Parties, parser: Parser) -> Iterator[Ledger]:
    """Serve these clients, on uvloop or on asyncio."""
    (folder / "ca.pem").write_text(parties.ca.pem)
    with mutual(
        folder, clients(parties), parser=parser, fast_loop=parser == "httptools", tls_client_ca=folder / "ca.pem"
    ) as served:
        yield served


def check_invalid_client(answer: Answer) -> None:
    assert (400, "invalid_client") == (answer.status, answer.json()["error"]), answer.body


def events(ledger: Ledger, grant_id: str, topic: str) -> list[dict[str, object]]:
    found = ledger.operator("auditor", "GET", f"/grants/{grant_id}/events").json()["events"]
    return [event["data"] for event in found if event["topic"] == topic]
