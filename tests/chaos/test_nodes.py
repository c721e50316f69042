"""Two nodes, one of which is cut off from the database or frozen: the other goes on, and nothing forks when it is back
(I-01, I-03, I-06, I-24)."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.chaos.chains import Chain
from tests.chaos.load import Load
from tests.chaos.nodes import Nodes, end_well, two_nodes, versions_forgotten
from tests.postgres import Server as Postgres
from tests.server_process import eventually
from tests.servers import Grant, Server
from tests.wire import Connection

SEED = 20_261_126
BACK_WITHIN_SECONDS = 10.0
REQUEST_SECONDS = 3.0
SHORT = {"REQUEST_TIMEOUT_SECONDS": str(REQUEST_SECONDS)}
"""So long a request may take, so that trials need not last minutes."""


Record = Callable[[str, object], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One kind of trouble by default, all of them with `--full`."""
    kinds = None if metafunc.config.option.full else 1
    if "how" in metafunc.fixturenames:
        metafunc.parametrize("how", ("silent", "mute", "parted")[:kinds])
    if "arrives" in metafunc.fixturenames:
        metafunc.parametrize("arrives", (False, True)[:kinds], ids=("late", "arrived")[:kinds])


# ---------------------------------------------------------------- parted from the database


def acknowledged(chains: Sequence[Chain]) -> int:
    return sum(chain.acknowledged for chain in chains)


def goes_on(chains: Sequence[Chain]) -> float:
    """Every one of them is answered 200, in time; how long that took, in seconds."""
    began, before = time.monotonic(), [chain.acknowledged for chain in chains]

    def all_did() -> bool:
        return all(chain.acknowledged > then for chain, then in zip(chains, before, strict=True))

    eventually(all_did, within_seconds=BACK_WITHIN_SECONDS + 5, what="refreshes of everybody")
    return time.monotonic() - began


def part(nodes: Nodes, how: str) -> None:
    """Part node `one` from the database: its bytes are kept back, or answers alone, or its connections are ended."""
    if how == "silent":
        nodes.way.silent.set()
    elif how == "mute":
        nodes.way.mute.set()
    else:
        nodes.way.part()


def heal(nodes: Nodes) -> None:
    """What was kept back arrives now, late."""
    nodes.way.silent.clear()
    nodes.way.mute.clear()
    nodes.way.parted = False


def part_and_heal(nodes: Nodes, here: Sequence[Chain], there: Sequence[Chain], how: str, seconds: float) -> float:
    """Part `one`, whose clients are `here`, for a while; those of the other, `there`, go on. Seconds until everybody
    was answered 200 again."""
    part(nodes, how)
    time.sleep(0.3)  # answers on their way to clients arrive
    before, before_there, parted_at = acknowledged(here), acknowledged(there), time.monotonic()
    goes_on(there)
    time.sleep(max(0.0, parted_at + seconds - time.monotonic()))
    assert before == acknowledged(here), "answered 200 without the database"
    assert acknowledged(there) > before_there + len(there), "the other node stood still"
    heal(nodes)
    return goes_on([*here, *there])


def test_a_node_that_is_parted_says_that_it_does_not_know(
    tmp_path: Path, postgres: Postgres, how: str, count: Callable[[int, int], int], record_property: Record
) -> None:
    """I-10, I-24: it answers 503 and 200 to nobody; the other node goes on with all grants, also those that the parted
    one was asked for last; batches that were on their way arrive late or never; when it is healed nothing has forked,
    and everybody is answered within 10 s."""
    longest, rounds = 0.0, count(1, 10)
    with two_nodes(tmp_path, postgres, settings=SHORT) as nodes:
        here, there = nodes.stay(nodes.one, 6), nodes.stay(nodes.other, 6)
        wanderers = nodes.wanderers(12)
        chance = Random(SEED)
        with Load([*here, *there, *wanderers]):
            goes_on(here)
            for number in range(rounds):
                seconds = chance.uniform(0.5, 4.0) if number else 2 * REQUEST_SECONDS
                longest = max(longest, part_and_heal(nodes, here, there, how, seconds))
        everybody = [*here, *there, *wanderers]
        assert 0 < sum(chain.statuses[503] for chain in everybody), "nobody was told that the outcome is unknown"
        end_well(nodes, everybody)
        record_property("partitions", rounds)
        record_property("seconds at the longest until everybody was answered 200", round(longest, 2))
        record_property("refreshes acknowledged", acknowledged(everybody))
        record_property("answers of 503", sum(chain.statuses[503] for chain in everybody))


def test_a_node_that_is_parted_ends_in_time(tmp_path: Path, postgres: Postgres) -> None:
    """Told to end it does so with 0, in the time that a request may take, though nothing of what it would still say
    reaches the database; who has asked something just before is answered that nobody knows."""
    with two_nodes(tmp_path, postgres, settings=SHORT) as nodes:
        one = nodes.one
        grant, living = one.issue("std"), one.issue("std")
        one.revoke(grant.client, grant.refresh_token)
        assert 400 == one.refresh(grant.client, grant.refresh_token).status, "counted, and in no event yet"
        nodes.way.silent.set()
        with one.connect() as connection:
            raw = one.refresh_request(living.client, living.refresh_token)
            connection.send(raw)
            time.sleep(0.1)
            began = time.monotonic()
            one.signal(signal.SIGTERM)
            answer = one.checked(raw, connection.answer())
        assert (503, "close") == (answer.status, answer.header("Connection"))
        assert one.process is not None
        assert 0 == one.process.wait(20.0), one.tail()
        assert time.monotonic() - began < REQUEST_SECONDS + 1.0, one.tail()
        nodes.way.silent.clear()


# ---------------------------------------------------------------- frozen


class Cast(NamedTuple):
    """Grants that both nodes know well when one freezes, by what becomes of them meanwhile; their newest tokens."""

    on_its_way: Grant
    given_up: Grant
    moved: Grant
    of_person: Grant
    of_client: Grant
    ended: Grant
    tokens: dict[str, str]

    @property
    def living(self) -> tuple[Grant, ...]:
        return self.on_its_way, self.given_up, self.moved

    @property
    def dead(self) -> tuple[Grant, ...]:
        return self.of_person, self.of_client, self.ended


def rehearsed(nodes: Nodes) -> Cast:
    """Issued, and refreshed on both nodes, so that both hold them in memory."""
    one, tokens = nodes.one, dict[str, str]()
    on_its_way, given_up, moved, of_person, ended = (one.issue("std") for _ in range(5))
    cast = Cast(on_its_way, given_up, moved, of_person, one.issue("oth"), ended, tokens)
    for grant in (*cast.living, *cast.dead):
        token = grant.refresh_token
        for node in (nodes.other, one, one):
            token = redeemed(node, grant, token)
        tokens[grant.grant_id] = token
    return cast


def redeemed(node: Server, grant: Grant, token: str) -> str:
    """Refresh a grant on a node, as its client does that is told 503 at times; the successor."""
    deadline = time.monotonic() + BACK_WITHIN_SECONDS
    while True:
        answer = node.refresh(grant.client, token)
        if answer.status == 200:
            return str(answer.json()["refresh_token"])
        assert (503, "temporarily_unavailable") == (answer.status, answer.json()["error"]), answer.body
        assert time.monotonic() < deadline, "not back in time (I-24)"
        time.sleep(0.05)


def send_batch_and_freeze(nodes: Nodes, cast: Cast, connection: Connection, *, arrives: bool) -> None:
    """Freeze node `one` with a batch on its way, which arrives at once or when the node has thawed."""
    way, one, grant = nodes.way, nodes.one, cast.on_its_way
    held = way.held
    way.catches.set()
    connection.send(one.refresh_request(grant.client, cast.tokens[grant.grant_id]))
    eventually(lambda: way.held > held, what="a batch on its way")
    one.signal(signal.SIGSTOP)
    if arrives:
        way.catches.clear()


def meanwhile(nodes: Nodes, cast: Cast) -> None:
    """The other node goes on with everything, in time. One client has asked the frozen one in vain, and gone."""
    other = nodes.other
    with nodes.one.connect() as connection:
        connection.send(nodes.one.refresh_request(cast.given_up.client, cast.tokens[cast.given_up.grant_id]))
    for grant in cast.living:
        token = cast.tokens[grant.grant_id]
        for _ in range(3):
            token = redeemed(other, grant, token)
        cast.tokens[grant.grant_id] = token
    why = {"reason": "x"}
    for role, path, body in (
        ("admin", f"/grants/{cast.ended.grant_id}/revoke", why),
        ("security", "/subjects/revoke", {"subject": cast.of_person.subject, **why}),
        ("admin", f"/clients/{cast.of_client.client}/revoke", why),
    ):
        assert 200 == other.operator(role, "POST", path, body).status


def freeze_and_thaw(nodes: Nodes, *, arrives: bool) -> None:
    """Freeze `one` for longer than a request may take, change everything that it knows on the other, thaw it, and ask
    it first for what has ended."""
    one, cast = nodes.one, rehearsed(nodes)
    lost = cast.tokens[cast.on_its_way.grant_id]
    with one.connect() as connection:
        send_batch_and_freeze(nodes, cast, connection, arrives=arrives)
        frozen_at = time.monotonic()
        try:
            meanwhile(nodes, cast)
            time.sleep(max(0.0, frozen_at + REQUEST_SECONDS + 1.5 - time.monotonic()))
        finally:
            one.signal(signal.SIGCONT)
            nodes.way.catches.clear()
        for grant in cast.dead:
            answer = one.refresh(grant.client, cast.tokens[grant.grant_id])
            while answer.status == 503:
                answer = one.refresh(grant.client, cast.tokens[grant.grant_id])
            told = answer.status, answer.json().get("error")
            assert (400, "invalid_grant") == told, f"after its end: {answer.body!r}"
            assert {"active": False} == one.introspect(grant.access_token)
        # Its own batch, which others have gone on from: told late, or not known, and never decided again.
        answer = connection.answer()
        assert answer.status in (200, 503), answer.body
        one.tokens.add(answer.json().get("refresh_token", lost))
    for grant in cast.living:
        token = redeemed(one, grant, cast.tokens[grant.grant_id])
        redeemed(nodes.other, grant, token)
        topics = nodes.other.topics(grant.grant_id)
        assert not {"grant.reuse_detected", "grant.revoked"} & {*topics}, "an honest client was signed out"


def test_a_node_that_thaws_decides_nothing_on_what_it_remembers(
    tmp_path: Path, postgres: Postgres, arrives: bool, count: Callable[[int, int], int], record_property: Record
) -> None:
    """I-01, I-06, I-10: frozen with a batch on its way, and all its memory overtaken by the other node, which is held
    up by nothing. What was ended meanwhile stays so, what was moved has one chain; a request that nobody waits for any
    more signs nobody out."""
    freezes = count(1, 10)
    with two_nodes(tmp_path, postgres, settings=SHORT) as nodes:
        wanderers = nodes.wanderers(4)
        for _ in range(freezes):
            freeze_and_thaw(nodes, arrives=arrives)
        end_well(nodes, wanderers)
        record_property("freezes", freezes)


@pytest.mark.usefixtures("only_full")
def test_a_node_that_believes_its_memory_is_caught(tmp_path: Path, postgres: Postgres) -> None:
    """The broken twin: the version of what is written is not checked."""

    def freeze() -> None:
        with two_nodes(tmp_path, postgres, settings=SHORT, broken=versions_forgotten) as nodes:
            freeze_and_thaw(nodes, arrives=True)
            end_well(nodes, [])

    with pytest.raises(AssertionError):
        freeze()


@pytest.mark.usefixtures("only_full")
def test_a_node_of_two_that_is_killed_leaves_the_other_alone(tmp_path: Path, postgres: Postgres) -> None:
    """No lock, no row and no client of the other's goes with it; who wandered goes on where it is heard."""
    with two_nodes(tmp_path, postgres) as nodes:
        wanderers = nodes.wanderers(8)
        with Load(wanderers):
            goes_on(wanderers)
            assert nodes.one.process is not None
            os.kill(nodes.one.process.pid, signal.SIGKILL)
            goes_on(wanderers)
            nodes.one.process.wait(5)
            nodes.one.start()
            goes_on(wanderers)
        end_well(nodes, wanderers)
