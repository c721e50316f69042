"""DPoP as a client library of others does it, unmodified, over TLS: requests_oauth2client 1.8."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from requests_oauth2client import DPoPKey, DPoPToken, InvalidGrant, OAuth2Client, PublicApp

from tests.servers import SECRETS, Grant, Server, running
from tests.wire import REVOKE_PATH, TOKEN_PATH


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("library"), tls=True) as server:
        yield server


@pytest.fixture(autouse=True)
def trusting(server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the library trust the server's certificate as any program is told to: by the environment."""
    authority = server.folder / "ca.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    return authority


def public_client(server: Server, client: str) -> OAuth2Client:
    return OAuth2Client(
        token_endpoint=server.issuer + TOKEN_PATH,
        revocation_endpoint=server.issuer + REVOKE_PATH,
        auth=PublicApp(client),
        dpop_bound_access_tokens=True,
    )


def held(grant: Grant, key: DPoPKey) -> DPoPToken:
    """What an application holds that was given its first tokens by the issuer."""
    return DPoPToken(
        access_token=grant.access_token, refresh_token=grant.refresh_token, token_type="DPoP", _dpop_key=key
    )


def refreshed(server: Server, library: OAuth2Client, token: DPoPToken) -> DPoPToken:
    answer = library.refresh_token(token)
    assert isinstance(answer, DPoPToken)
    server.tokens.add(str(answer.refresh_token))
    return answer


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "PS256"])
@pytest.mark.parametrize("client", ["dpp", "dpn"])
def test_a_public_client_refreshes_with_its_key(server: Server, client: str, alg: str) -> None:
    """RFC 9449 5, 8: `dpn` is challenged once, which the library answers by itself; a new token each time."""
    key = DPoPKey.generate(alg=alg)
    grant = server.issue(client, cnf={"jkt": key.dpop_jkt})
    library, token = public_client(server, client), held(grant, key)
    seen = {grant.refresh_token}
    for _ in range(4):
        token = refreshed(server, library, token)
        seen.add(str(token.refresh_token))
    assert 5 == len(seen)
    assert 9 == len(server.events(grant.grant_id)), "one issuance, four redemptions and rotations, and nothing else"


def test_another_key_is_told_as_any_refused_token(server: Server) -> None:
    """DP-3: the library's typed error, and the token lives."""
    key = DPoPKey.generate()
    grant = server.issue("dpp", cnf={"jkt": key.dpop_jkt})
    library = public_client(server, "dpp")
    with pytest.raises(InvalidGrant):
        library.refresh_token(held(grant, DPoPKey.generate()))
    refreshed(server, library, held(grant, key))


def test_a_confidential_client_takes_a_new_key_for_each_request(server: Server) -> None:
    """DP-4: which is what the library does where it is given none."""
    library = OAuth2Client(
        token_endpoint=server.issuer + TOKEN_PATH,
        client_id="dpc",
        client_secret=str(SECRETS["dpc"]),
        dpop_bound_access_tokens=True,
    )
    token = server.issue("dpc").refresh_token
    keys = set()
    for _ in range(3):
        answer = library.refresh_token(token)
        assert isinstance(answer, DPoPToken)
        keys.add(server.introspect(answer.access_token)["cnf"]["jkt"])
        token = str(answer.refresh_token)
        server.tokens.add(token)
    assert 3 == len(keys)
