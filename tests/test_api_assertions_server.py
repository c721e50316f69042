"""Assertions at a real server process: many copies, a crash, libraries as they are, a FAPI 2.0 client."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests_oauth2client
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc import jwt
from joserfc.jwk import KeySet

from tests.proofs import new_key, proof, thumbprint
from tests.servers import Server, clients_toml, running
from tests.signers import Signer, derived_key, registered
from tests.wire import INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH, Answer

FAPI = """
[[client]]
id = "bank"
auth = "private_key_jwt"
jwks = {{ keys = [{{ {key} }}] }}
token_endpoint_auth_signing_alg = "ES256"
dpop_bound_access_tokens = true
scope = "read openid profile"
resource = ["https://api.example"]
policy = "fapi2"
grant_types = ["refresh_token"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a FAPI 2.0 client beside those of the transcripts."""
    jwk = Signer("bank", derived_key("bank"), "").public_jwk()
    key = ", ".join(f'{name} = "{value}"' for name, value in jwk.items())
    with running(tmp_path_factory.mktemp("assertions"), clients=clients_toml(more=FAPI.format(key=key))) as served:
        yield served


def test_of_many_copies_over_many_connections_one_is_taken(
    own_server: Server, count: Callable[[int, int], int]
) -> None:
    """RFC 7523 3: sent at the same moment, each on a connection of its own; and none after the server was killed."""
    copies = count(50, 500)
    issued = own_server.issue("jwt")
    form = {"grant_type": "refresh_token", "refresh_token": issued.refresh_token, **own_server.credentials("jwt")}
    answers: list[Answer] = []
    gate = threading.Barrier(50)

    def send() -> None:
        gate.wait(60)
        for _ in range(copies // 50):
            answers.append(own_server.form(TOKEN_PATH, form, source=own_server.new_address()))

    threads = [threading.Thread(target=send) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (taken,) = (answer for answer in answers if answer.status == 200)
    assert [400] * (copies - 1) == [answer.status for answer in answers if answer is not taken]
    assert ["grant.issued", "grant.token_redeemed", "grant.token_rotated"] == own_server.topics(issued.grant_id)
    own_server.restart(kill=True)
    form["refresh_token"] = taken.json()["refresh_token"]
    assert 400 == own_server.form(TOKEN_PATH, form, source=own_server.new_address()).status
    form |= own_server.credentials("jwt")
    assert 200 == own_server.form(TOKEN_PATH, form, source=own_server.new_address()).status


def test_a_fapi_client_does_its_day(server: Server) -> None:
    """FAPI 2.0 5.3: signed client, bound token, the same refresh token again; another key, and no bad signature."""
    signer, holder = Signer("bank", derived_key("bank"), server.issuer), new_key()
    issued = server.issue("bank")

    def refresh(key: Any, **form: str) -> Any:
        shown = proof(key, server.issuer + TOKEN_PATH, iat=signer.claims()["iat"])
        fields = {"grant_type": "refresh_token", "refresh_token": issued.refresh_token, **(form or signer.form())}
        return server.form(TOKEN_PATH, fields, headers={"DPoP": shown}, source=server.new_address())

    for key in (holder, new_key()):  # a confidential client may change the key of its tokens
        answer = refresh(key)
        assert 200 == answer.status, answer.body
        body = answer.json()
        assert ("DPoP", issued.refresh_token) == (body["token_type"], body["refresh_token"])
        keys = KeySet.import_key_set(server.exchange(b"GET /oauth/v2/jwks HTTP/1.1\r\nHost: x\r\n\r\n").json())
        claims = jwt.decode(body["access_token"], keys).claims
        assert {"jkt": thumbprint(key)} == claims["cnf"]
        assert ("bank", "https://api.example") == (claims["client_id"], claims["aud"])
    token_url = f"{server.issuer}{TOKEN_PATH}"
    for form in (
        {"client_id": "bank"},
        signer.form(signer.assertion({"aud": token_url})),
        signer.form(signer.assertion({"aud": [server.issuer]})),
        signer.form(Signer("bank", derived_key("other"), server.issuer).assertion()),
    ):
        refused = refresh(holder, **form)
        assert (400, "invalid_client") == (refused.status, refused.json()["error"])
    told = server.form(INTROSPECT_PATH, {"token": body["access_token"], **signer.form()}).json()
    assert (True, {"jkt": thumbprint(key)}) == (told["active"], told["cnf"])
    assert 200 == server.form(REVOKE_PATH, {"token": issued.refresh_token, **signer.form()}).status
    assert {"active": False} == server.form(INTROSPECT_PATH, {"token": body["access_token"], **signer.form()}).json()
    assert "invalid_grant" == refresh(holder).json()["error"]


def test_requests_oauth2client_signs_as_it_is(server: Server) -> None:
    """CA-6: told the issuer, it makes what a strict client needs; left alone it names the endpoint, as legacy may."""
    for client_id, audience in (("jwt", server.issuer), ("jwt-legacy", server.issuer), ("jwt-legacy", None)):
        signer = registered(client_id, server.issuer)
        key = {**signer.key.as_dict(private=True), "kid": "k1", "alg": "ES256"}
        method = requests_oauth2client.PrivateKeyJwt(client_id, key, aud=audience)
        library = requests_oauth2client.OAuth2Client(
            server.issuer + TOKEN_PATH,
            revocation_endpoint=server.issuer + REVOKE_PATH,
            auth=method,
            testing=True,  # takes http
        )
        first = server.issue(client_id).refresh_token
        second = library.refresh_token(first)
        third = library.refresh_token(second)
        assert third.refresh_token not in (None, first, second.refresh_token)
        assert library.revoke_refresh_token(third)
        with pytest.raises(requests_oauth2client.InvalidGrant):
            library.refresh_token(third)
    strict = registered("jwt", server.issuer)
    key = {**strict.key.as_dict(private=True), "kid": "k1", "alg": "ES256"}
    left_alone = requests_oauth2client.OAuth2Client(
        server.issuer + TOKEN_PATH, auth=requests_oauth2client.PrivateKeyJwt("jwt", key), testing=True
    )
    with pytest.raises(requests_oauth2client.InvalidClient):
        left_alone.refresh_token(server.issue("jwt").refresh_token)


def test_authlib_signs_as_it_is(server: Server) -> None:
    """CA-6: it names the token endpoint, so its client is registered as legacy; told the issuer, it need not be."""
    for client_id, named in (("jwt-legacy", server.issuer + TOKEN_PATH), ("jwt", server.issuer)):
        key = registered(client_id, server.issuer).key
        session = OAuth2Session(client_id, key, token_endpoint_auth_method="private_key_jwt")
        session.register_client_auth_method(PrivateKeyJWT(named, alg="ES256"))
        token = server.issue(client_id).refresh_token
        for _ in range(2):
            token = session.refresh_token(server.issuer + TOKEN_PATH, refresh_token=token)["refresh_token"]


def test_a_key_set_on_this_machine_is_not_fetched(tmp_path: Path) -> None:
    """As it is in use, no name of this machine is connected to: 503, one line that says why, and no connection."""
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.setblocking(False)
        uri = f"https://localhost:{inside.getsockname()[1]}/jwks.json"
        signer = Signer("away", derived_key("away"), "")
        with running(tmp_path / "server", clients=clients_toml(more=signer.toml(jwks_uri=f'"{uri}"'))) as served:
            signer.issuer = served.issuer
            token = served.issue("away").refresh_token
            form = {"grant_type": "refresh_token", "refresh_token": token, **signer.form()}
            answer = served.form(TOKEN_PATH, form)
            assert (503, "5") == (answer.status, answer.header("Retry-After"))
            assert "its name leads to an address that is not public" in served.log()
        with pytest.raises(BlockingIOError):
            inside.accept()


def test_nothing_of_it_is_in_the_log(server: Server) -> None:
    """I-20: neither an assertion nor its identifier, at LOG_LEVEL debug."""
    signer = registered("jwt", server.issuer)
    form = signer.form(grant_type="refresh_token", refresh_token=server.issue("jwt").refresh_token)
    assert [200, 400] == [server.form(TOKEN_PATH, form).status for _ in range(2)]
    log = server.log() + server.errors()
    assert form["client_assertion"].split(".")[1] not in log
    assert "oauth-token" in log
