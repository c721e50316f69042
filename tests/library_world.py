"""Where client libraries are tried: a server over TLS, a line before it that can lose an answer, and a sign-in page."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from tests.libraries import BACK, PYTHON, SCOPE, SIGN_IN, CurlError, Library, Place, Refreshing
from tests.libraries_node import NodeError, NodeLibrary
from tests.library_facts import BASIC, FACTS, POST, PUBLIC
from tests.lines import Line, line
from tests.servers import Server, clients_toml, running
from tests.wire import Json

SECRET = "p%40s+w:o rd/&=!~"
"""Whoever sends it raw in Basic, form-encoded, or with `%20` for a space must be understood (RFC 6749 2.3.1)."""
CLIENTS = "".join(
    f'\n[[client]]\nid = "{policy} {auth}"\nauth = "{auth}"\nscope = "{SCOPE}"\npolicy = "{policy}"\n'
    + ("allow_unbound_reuse = true\n" if auth == PUBLIC else f'secret = "{SECRET}"\n')
    + f'redirect_uris = ["{BACK}"]\ngrant_types = ["authorization_code", "refresh_token"]\n'
    for policy, auth in product(("standard", "stable"), (BASIC, POST, PUBLIC))
)


def client_of(name: str, policy: str | None = None) -> str:
    """Return the client that suits a library, or suits it but for its policy."""
    return f"{policy or FACTS[name].policy} {FACTS[name].auth}"


@dataclass
class World:
    """A server behind a line that can lose an answer, and how a library is made there."""

    server: Server
    line: Line
    program: Callable[[], Path]
    """Gives the program that speaks for the libraries of Node.js, or skips the test."""
    made: list[Refreshing] = field(default_factory=list)

    def make(self, name: str, place: Place, tokens: Json = None) -> Library:
        """Make a library whose connections and processes end with the test."""
        maker = PYTHON.get(name)
        library = maker(place, tokens) if maker else NodeLibrary(self.program(), name, place, tokens)
        self.made.append(library)
        return library

    def issued(self, client: str) -> tuple[str, Json]:
        """Issue a grant; return its id and the token response as a library is given it."""
        wish = {"client_id": client, "subject": self.server.new_subject(), "scope": SCOPE}
        answer = self.server.operator("issuer", "POST", "/grants", wish)
        assert 201 == answer.status, answer.body
        tokens = answer.json()
        return tokens.pop("grant_id"), tokens

    def library(self, name: str, *, policy: str | None = None, secret: str = SECRET) -> tuple[str, Json, Library]:
        """Issue a grant to a client that suits a library, and hand it over."""
        client = client_of(name, policy)
        grant_id, tokens = self.issued(client)
        return grant_id, tokens, self.make(name, Place(self.line.url, client, secret), tokens)

    def signed_in(self, authorization_url: str) -> str:
        """Agree to what a library asks for, as a sign-in page does; return where the person goes back to."""
        sent, query = authorization_url.split("?")
        assert SIGN_IN == sent
        asked = dict(parse_qsl(query, strict_parsing=True))
        assert "code" == asked.pop("response_type")
        names = ("client_id", "scope", "redirect_uri", "code_challenge", "code_challenge_method", "state")
        wish = {name: asked[name] for name in names if name in asked} | {"subject": self.server.new_subject()}
        answer = self.server.operator("issuer", "POST", "/authorizations", wish)
        assert 201 == answer.status, answer.body
        return str(answer.json()["redirect_to"])

    def generation(self, grant_id: str) -> int:
        return int(self.server.look(grant_id)["generation"])

    def redemptions(self, grant_id: str) -> list[Json]:
        return [event["data"] for event in self.server.events(grant_id) if event["topic"] == "grant.token_redeemed"]


@contextmanager
def library_server(folder: Path, clients: str = CLIENTS, **settings: str) -> Iterator[tuple[Server, Line]]:
    """Run one server for all libraries; its issuer is the line's address, so that no client sees another."""
    with (
        line() as between,
        running(
            folder,
            tls=True,
            clients=clients_toml(more=clients),
            settings={"ISSUER": between.url, "AUTHORIZATION_ENDPOINT": SIGN_IN, **settings},
        ) as server,
    ):
        server.secrets.append(SECRET)
        between.server_port = server.port
        yield server, between


@contextmanager
def library_world(place: tuple[Server, Line], program: Callable[[], Path]) -> Iterator[World]:
    """Let libraries in for one test. They are told whom to trust in the way that changes none: by the environment."""
    world = World(*place, program)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
            environment.setenv(name, str(world.server.folder / "ca.pem"))
        for name in ("NO_PROXY", "no_proxy"):
            environment.setenv(name, "localhost")
        yield world
        for library in world.made:
            library.close()


def code_of(error: Exception) -> tuple[str | None, str | None]:
    """Return where an error carries the server's code, and the code."""
    if isinstance(error, NodeError):
        return error.place, error.code
    if isinstance(error, CurlError):
        return "the body", error.code
    if isinstance(found := getattr(error, "error", None), str):
        return ".error", found
    if (response := getattr(error, "response", None)) is not None:
        return ".response", response.json()["error"]
    return ".args[1]", error.args[1]["error"]


def thrown_by(act: Callable[[], object]) -> tuple[str, Exception]:
    """Return the class name of what a library raises, as its users write it, and the error."""
    try:
        act()
    except Exception as error:
        return getattr(error, "thrown", None) or type(error).__name__, error
    pytest.fail("nothing was raised")
