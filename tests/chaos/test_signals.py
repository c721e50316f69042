"""SIGTERM under load: no request that was begun goes unanswered, and the process exits 0."""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.chaos.canary import check_left
from tests.chaos.chains import Chain, chains_of, faults_of
from tests.chaos.conftest import SQLITE, Place
from tests.chaos.files import check_files, report
from tests.chaos.load import Load, converge
from tests.chaos.processes import TroubledServer

SEED = 20_261_125
CHAINS = 64


def clients(server: TroubledServer, chance: Random, count: int) -> list[Chain]:
    """Clients without a pause, some with one between requests, some whose requests take their time to arrive."""
    chains = chains_of(server, count)
    for number, chain in enumerate(chains):
        if number % 8 == 0:
            chain.pause_seconds = chance.uniform(0.01, 0.2)
        elif number % 8 == 3:
            chain.dribble_seconds = chance.uniform(0.01, 0.3)
    return chains


def terminate_under_load(server: TroubledServer, chains: list[Chain], after_seconds: float) -> None:
    """End the server in order while everybody is at work. A client that is told so takes its next request elsewhere."""
    with Load(chains, until_closed=True) as load:
        time.sleep(after_seconds)
        code = server.terminate()
        load.stop()
    unanswered = [f"{chain!r}: {chain.unanswered} unanswered" for chain in chains if chain.unanswered]
    unserved = [f"{chain!r}: {chain.statuses[503]} times 503" for chain in chains if chain.statuses[503]]
    report(faults_of(chains) + unanswered + unserved)
    assert code == 0, server.tail()
    check_files(server.database, chains)


def stops(folder: Path, times: int, *, twin: str | None = None, place: Place = SQLITE) -> int:
    """End one server so many times, each time on what it left. Returns the refreshes acknowledged."""
    settings = {"LOG_LEVEL": "info", **place.settings(folder / "server")}
    server = TroubledServer(folder / "server", twin=twin, settings=settings)
    try:
        server.start()
        chance = Random(SEED)
        chains = clients(server, chance, CHAINS)
        for number in range(times):
            if number:
                server.start()
                converge(chains)
            terminate_under_load(server, chains, chance.uniform(0.05, 0.5))
    finally:
        server.kill()
    check_left(server)
    return sum(chain.acknowledged for chain in chains)


def test_what_was_begun_is_answered(
    tmp_path: Path,
    each_place: Place,
    count: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    """Connections end only between requests; no refresh is answered 503 or not at all; the files hold everything."""
    times = count(2, 20)
    record_property("stops", times)
    record_property("refreshes acknowledged", stops(tmp_path, times, place=each_place))


def test_a_server_that_leaves_at_once_is_caught(tmp_path: Path) -> None:
    """The broken twin: it closes its connections at SIGTERM, whatever was begun on them."""
    with pytest.raises(AssertionError, match="unanswered"):
        stops(tmp_path, 3, twin="leaves_at_once")
