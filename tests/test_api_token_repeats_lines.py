"""Refreshes that repeat another of their connection, over lines that break: what is answered without a task, and whom
(I-02, I-10; RFC 9112 9.6)."""

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from api.answers import Replies
from api.exchanges import Exchange
from api.heads import Headers
from api.token import TokenEndpoint
from tests.mutual_tls import Ledger, mutual
from tests.server_process import eventually
from tests.servers import SECRETS
from tests.wire import FORM, TOKEN_PATH, Answer, check_answer, form_bytes, request_bytes

SEED = 20_261_126
ROTATED = ["grant.token_redeemed", "grant.token_rotated"]


class Repeated:
    """A client whose requests over one connection differ in the refresh token alone."""

    def __init__(self, ledger: Ledger, client: str = "std") -> None:
        issued = ledger.issue(client)
        self.grant_id, self.token = str(issued["grant_id"]), str(issued["refresh_token"])
        self.ledger = ledger
        self.client = client
        self.line = ledger.running.connect(timeout_seconds=20.0)
        for _ in range(3):
            self.adopt(self.line.exchange(self.request()))

    def request(self) -> bytes:
        secret = {"client_id": self.client, "client_secret": str(SECRETS[self.client])}
        fields = {"grant_type": "refresh_token", "refresh_token": self.token, **secret}
        return request_bytes("POST", TOKEN_PATH, headers={"Content-Type": FORM}, body=form_bytes(fields))

    def adopt(self, answer: Answer) -> None:
        check_answer(answer, "POST", TOKEN_PATH)
        assert 200 == answer.status, answer.body
        self.token = str(answer.json()["refresh_token"])

    def retried(self) -> None:
        """Ask again over another connection, and once more with what came."""
        for _ in range(2):
            with self.ledger.running.connect(timeout_seconds=20.0) as other:
                self.adopt(other.exchange(self.request()))

    def rotations(self) -> int:
        return self.ledger.topics(self.grant_id).count("grant.token_rotated")

    def wait_for_rotations(self, count: int) -> None:
        eventually(lambda: self.rotations() == count, what="the commit")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What became of each request that could have been served without a task."""
    found: list[bool] = []
    honest = TokenEndpoint.once_more

    def noted(self: TokenEndpoint, headers: Headers, body: bytes, request: Replies) -> bool:
        found.append(honest(self, headers, body, request))
        return found[-1]

    monkeypatch.setattr(TokenEndpoint, "once_more", noted)
    return found


@pytest.fixture
def ledger(tmp_path: Path, served: list[bool]) -> Iterator[Ledger]:
    """A server whose clients break their lines."""
    with mutual(tmp_path, "", tls=False) as found:
        yield found


@pytest.fixture
def new_client(ledger: Ledger, served: list[bool]) -> Iterator[Callable[[], Repeated]]:
    """Makes clients that have repeated themselves often enough."""
    with ExitStack() as stack:

        def made() -> Repeated:
            client = Repeated(ledger)
            stack.callback(client.line.close)
            served.clear()
            return client

        yield made


def test_an_answer_that_is_lost_is_given_again(
    new_client: Callable[[], Repeated], served: list[bool], count: Callable[[int, int], int], ledger: Ledger
) -> None:
    """I-10: cut at any moment after the request; the retry gets the successor, and it redeems."""
    chance = random.Random(SEED)
    rounds = count(20, 300)
    for number in range(rounds):
        client = new_client()
        client.line.send(client.request())
        if number % 2:
            client.wait_for_rotations(4)
        else:
            time.sleep(chance.uniform(0, 0.004))
        client.line.cut()
        client.retried()
        assert served in ([True], [])
        assert 5 == client.rotations()
    eventually(lambda: 0 == ledger.running.server.connections, what="the end of every connection")


def say_no_more(client: Repeated) -> None:
    """Send a request, and end the client's side of the line with it, in one segment."""
    client.line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    client.line.send(client.request())
    client.line.socket.shutdown(socket.SHUT_WR)
    answer = client.line.answer()
    client.adopt(answer)
    assert "close" == answer.header("Connection")
    assert client.line.closed_by_peer(5)


def test_who_says_no_more_after_a_request_is_answered(new_client: Callable[[], Repeated], served: list[bool]) -> None:
    """RFC 9112 9.6: the answer comes, and the connection ends."""
    say_no_more(new_client())
    assert [True] == served


def test_an_answer_that_only_the_usual_line_gets_is_missed(
    new_client: Callable[[], Repeated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: whoever is not answered in one write is not answered at all."""
    monkeypatch.setattr(Exchange, "reply", lambda exchange, answer: exchange.take(answer))
    client = new_client()
    client.line.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        say_no_more(client)


def test_requests_behind_each_other_are_answered_in_turn(
    new_client: Callable[[], Repeated], served: list[bool]
) -> None:
    """RFC 9112 9.3.2: while one is under way the next comes; the second presents the same token, and gets the same."""
    client = new_client()
    client.line.send(client.request())
    client.line.send(client.request())
    first, second = client.line.answer(), client.line.answer()
    client.adopt(first)
    assert first.json()["refresh_token"] == second.json()["refresh_token"]
    client.adopt(client.line.exchange(client.request()))
    assert served[0]
    assert 5 == client.rotations()


def test_a_refusal_leaves_the_line_open(new_client: Callable[[], Repeated], served: list[bool], ledger: Ledger) -> None:
    """The end of a grant is told as anywhere else, and the same line serves the client's next grant."""
    client = new_client()
    assert 200 == ledger.operator("admin", "POST", f"/grants/{client.grant_id}/revoke", '{"reason": "x"}').status
    refused = client.line.exchange(client.request())
    check_answer(refused, "POST", TOKEN_PATH)
    assert (400, "invalid_grant", "revoked_by_operator") == (
        refused.status, refused.json()["error"], refused.json()["reason"],
    )  # fmt: skip
    client.token = str(ledger.issue("std")["refresh_token"])
    for _ in range(2):
        client.adopt(client.line.exchange(client.request()))
    assert [True, True, True] == served


def test_a_server_that_ends_answers_what_has_begun(
    new_client: Callable[[], Repeated], served: list[bool], ledger: Ledger
) -> None:
    """SIGTERM between request and commit: the answer comes, says that the connection ends, and its token is durable."""
    clients = [new_client() for _ in range(16)]
    for client in clients:
        client.line.send(client.request())
    eventually(lambda: 16 == len(served), what="16 requests")
    ledger.running.stop()
    for client in clients:
        client.adopt(client.line.answer())
        assert client.line.closed_by_peer(5)
    assert [True] * 16 == served
