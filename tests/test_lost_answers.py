"""The answer is lost after the commit: the client asks again and gets the successor; no family dies (I-10)."""

import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.histories import check_history
from tests.pairs import EACH, Pair, serving
from tests.server_process import eventually
from tests.servers import Grant, Server

SEED = 20_261_125


@pytest.fixture(scope="module", params=EACH)
def losing_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose clients cut their connections: one process, or two that are asked in turn."""
    postgres = None if request.param == "sqlite" else request.getfixturevalue("postgres")
    with serving(tmp_path_factory.mktemp("lost"), postgres, {}) as server:
        yield server


@pytest.fixture
def count(count: Callable[[int, int], int], losing_server: Server) -> Callable[[int, int], int]:
    """As everywhere; by default fewer over two nodes, which decide by the same rules."""
    return count if not isinstance(losing_server, Pair) else lambda default, in_full: count(-(-default // 4), in_full)


def lose_answer(server: Server, grant: Grant, token: str, generation: int) -> None:
    """Send a refresh, see that it is committed, and cut the connection without reading anything."""
    connection = server.connect()
    connection.send(server.refresh_request(grant.client, token))
    eventually(lambda: server.look(grant.grant_id)["generation"] == generation, what=f"generation {generation}")
    connection.cut()


def test_a_retry_after_a_lost_answer_gets_the_successor(
    losing_server: Server, count: Callable[[int, int], int]
) -> None:
    """Connection cut after the commit, 200 times in the full tier: the retry's successor redeems, nothing is reuse."""
    for _ in range(count(20, 200)):
        grant = losing_server.issue("std")
        lose_answer(losing_server, grant, grant.refresh_token, 1)
        retried = losing_server.refresh("std", grant.refresh_token)
        assert 200 == retried.status, retried.body
        assert retried.json() | {"expires_in": 0, "refresh_token_timeout": 0, "authorization_expires_in": 0} == (
            losing_server.refresh("std", grant.refresh_token).json()
            | {"expires_in": 0, "refresh_token_timeout": 0, "authorization_expires_in": 0}
        )
        assert losing_server.introspect(retried.json()["access_token"])["active"] is True
        assert 200 == losing_server.refresh("std", retried.json()["refresh_token"]).status
        events = losing_server.events(grant.grant_id)
        check_history(events)
        assert 2 == sum(event["topic"] == "grant.token_rotated" for event in events)
        assert "active" == losing_server.look(grant.grant_id)["status"]


def test_a_client_behind_a_bad_line_is_never_signed_out(
    losing_server: Server, count: Callable[[int, int], int]
) -> None:
    """Every single answer of one grant is lost once; its client goes on generation by generation."""
    grant = losing_server.issue("std")
    token = grant.refresh_token
    for generation in range(1, count(20, 200) + 1):
        lose_answer(losing_server, grant, token, generation)
        retried = losing_server.refresh("std", token)
        assert 200 == retried.status, retried.body
        token = retried.json()["refresh_token"]
    assert 200 == losing_server.refresh("std", token).status
    check_history(losing_server.events(grant.grant_id))


def test_a_connection_cut_at_any_moment_leaves_a_token_that_works(
    losing_server: Server, count: Callable[[int, int], int]
) -> None:
    """Cut before, during or after the commit: what the client holds still converges to one successor."""
    chance = random.Random(SEED)
    for _ in range(count(20, 200)):
        grant = losing_server.issue("std")
        raw = losing_server.refresh_request("std", grant.refresh_token)
        connection = losing_server.connect()
        connection.send(raw[: chance.randint(1, len(raw))] if chance.random() < 0.3 else raw)
        time.sleep(chance.uniform(0, 0.01))
        connection.cut()
        retried = losing_server.refresh("std", grant.refresh_token)
        assert 200 == retried.status, retried.body
        assert 200 == losing_server.refresh("std", retried.json()["refresh_token"]).status
        events = losing_server.events(grant.grant_id)
        check_history(events)
        assert 2 == sum(event["topic"] == "grant.token_rotated" for event in events)
