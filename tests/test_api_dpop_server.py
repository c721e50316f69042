"""DPoP against a real server process: copies of one proof at once, after SIGKILL, and with each kind of key."""

import threading
import time
from collections.abc import Callable

import pytest
from joserfc.jwk import Key

from api.dpop import ALGORITHMS
from tests.proofs import new_key, proof, thumbprint
from tests.server_process import eventually
from tests.servers import Server
from tests.wire import FORM, REVOKE_PATH, TOKEN_PATH, Answer, form_bytes, request_bytes


def shown(server: Server, key: Key, *, algorithm: str | None = None, nonce: str | None = None) -> str:
    header = {} if algorithm is None else {"alg": algorithm}
    return proof(key, server.issuer + TOKEN_PATH, iat=time.time(), header=header, nonce=nonce)


def request(server: Server, client: str, token: str, text: str, *, path: str = TOKEN_PATH) -> bytes:
    fields = {"grant_type": "refresh_token", "refresh_token": token, **server.credentials(client)}
    return request_bytes("POST", path, headers={"Content-Type": FORM, "DPoP": text}, body=form_bytes(fields))


def refresh(server: Server, client: str, token: str, text: str) -> Answer:
    return server.exchange(request(server, client, token, text), source=server.new_address())


def all_at_once(server: Server, raw: bytes, count: int) -> list[Answer]:
    """Open every connection first, then send the same bytes over all of them."""
    answers: list[Answer] = []
    gate = threading.Barrier(count)

    def send() -> None:
        with server.connect(source=server.new_address()) as connection:
            gate.wait(30)
            answers.append(connection.exchange(raw))

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == len(answers)
    return [server.checked(raw, answer) for answer in answers]


def test_one_of_many_copies_is_taken_and_none_after_a_kill(
    own_server: Server, count: Callable[[int, int], int]
) -> None:
    """RFC 9449 11.1, I-09, H17: what was spent is durable with the answer that it bought."""
    key = new_key()
    grant = own_server.issue("dpp", cnf={"jkt": thumbprint(key)})
    text = shown(own_server, key)
    copies = count(100, 500)
    answers = all_at_once(own_server, request(own_server, "dpp", grant.refresh_token, text), copies)
    (served,) = [answer for answer in answers if answer.status == 200]
    assert {"invalid_dpop_proof"} == {answer.json()["error"] for answer in answers if answer is not served}
    own_server.restart(kill=True)
    newest = served.json()["refresh_token"]
    for token in (grant.refresh_token, newest):
        assert "invalid_dpop_proof" == refresh(own_server, "dpp", token, text).json()["error"]
    assert ["grant.issued", "grant.token_redeemed", "grant.token_rotated"] == own_server.topics(grant.grant_id)
    assert 200 == refresh(own_server, "dpp", newest, shown(own_server, key)).status


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_is_served(shared_server: Server, algorithm: str) -> None:
    """RFC 9449 5: by its key a public client goes on and on; another key of the same kind gets nothing."""
    key, other = new_key(algorithm), new_key(algorithm)
    grant = shared_server.issue("dpp", cnf={"jkt": thumbprint(key)})
    token = grant.refresh_token
    for _ in range(3):
        told = refresh(shared_server, "dpp", token, shown(shared_server, other, algorithm=algorithm))
        assert (400, "invalid_grant") == (told.status, told.json()["error"])
        answer = refresh(shared_server, "dpp", token, shown(shared_server, key, algorithm=algorithm))
        assert (200, "DPoP") == (answer.status, answer.json()["token_type"])
        token = answer.json()["refresh_token"]


def test_a_nonce_outlives_the_process(own_server: Server) -> None:
    """RFC 9449 8: a restart costs no client a request."""
    key = new_key()
    grant = own_server.issue("dpn", cnf={"jkt": thumbprint(key)})
    challenge = refresh(own_server, "dpn", grant.refresh_token, shown(own_server, key))
    nonce = challenge.header("DPoP-Nonce")
    assert (400, "use_dpop_nonce") == (challenge.status, challenge.json()["error"])
    own_server.restart(kill=True)
    answer = refresh(own_server, "dpn", grant.refresh_token, shown(own_server, key, nonce=nonce))
    assert 200 == answer.status
    assert answer.header("DPoP-Nonce")


def test_what_a_proof_was_refused_for_is_counted(own_server: Server) -> None:
    """Whoever runs the server sees that clients fail, by the code that they read."""
    key = new_key()
    grant = own_server.issue("dpn", cnf={"jkt": thumbprint(key)})
    refresh(own_server, "dpn", grant.refresh_token, shown(own_server, key))
    refresh(own_server, "dpn", grant.refresh_token, "no.proof.atall")
    metrics = own_server.exchange(request_bytes("GET", "/metrics")).body.decode()
    for outcome in ("use_dpop_nonce", "invalid_dpop_proof"):
        assert f'token_ledger_token_requests_total{{outcome="{outcome}"}} 1.0' in metrics


def test_a_proof_for_the_token_endpoint_gives_nothing_back(shared_server: Server) -> None:
    """I-18: whoever has read a proof on its way cannot end the grant with it; the key's holder can."""
    key = new_key()
    grant = shared_server.issue("dpp", cnf={"jkt": thumbprint(key)})
    fields = {"token": grant.refresh_token, "client_id": "dpp"}
    seen = shared_server.form(REVOKE_PATH, fields, headers={"DPoP": shown(shared_server, key)})
    assert (400, "invalid_dpop_proof") == (seen.status, seen.json()["error"])
    own = proof(key, shared_server.issuer + REVOKE_PATH, iat=time.time())
    assert 200 == shared_server.form(REVOKE_PATH, fields, headers={"DPoP": own}).status
    eventually(lambda: "revoked" == shared_server.look(grant.grant_id)["status"], what="the end")
