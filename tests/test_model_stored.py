"""The rules of refresh against their model: two nodes on one PostgreSQL decide in turn (I-01…I-08, I-12, I-13)."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import SystemRandom

import pytest
from hypothesis import Phase, settings

from tests.chaos.nodes import premises_forgotten, versions_forgotten
from tests.model_machine import run_worlds
from tests.model_stored import StoredNodes, StoredWorld, stored_nodes
from tests.mutants import MUTANTS, Mutant
from tests.postgres import Server

UNSHRUNK = settings(database=None, phases=[Phase.generate], print_blob=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Iterator[StoredNodes]:
    with stored_nodes(tmp_path_factory.mktemp("stored"), postgres.create_database()) as found:
        yield found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Two short batches and two mutants by default, all of them with `--full`."""
    full = metafunc.config.option.full
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", range(20 if full else 2))
    if "mutant" in metafunc.fixturenames:
        metafunc.parametrize("mutant", MUTANTS if full else MUTANTS[2::9], ids=str)


def test_two_nodes_in_turn_answer_and_record_as_the_model_does(batch: int, nodes: StoredNodes, full: bool) -> None:
    """As one aggregate would that nobody else touches; each command comes to the other node, caches cold at times.

    By default four runs a batch; in the full tier a hundred, of fifty steps each, from seeds never tried before.
    """
    seeds = [SystemRandom().randrange(1 << 32) for _ in range(10)] if full else [batch]
    run_worlds(seeds, settings(), world=partial(StoredWorld, nodes), runs=10 if full else 4)


@pytest.mark.parametrize("weaken", [versions_forgotten, premises_forgotten])
def test_a_store_that_checks_less_is_caught(tmp_path: Path, postgres_url: str, weaken: Callable[[str], None]) -> None:
    """The broken twins: what a node remembers is written, or told, though the other one has gone on."""
    with (
        stored_nodes(tmp_path, postgres_url, weaken) as nodes,
        pytest.raises(AssertionError),
    ):
        run_worlds(range(9), UNSHRUNK, world=partial(StoredWorld, nodes))


def test_the_model_catches_a_broken_rule_over_the_store(mutant: Mutant, nodes: StoredNodes) -> None:
    """The mutants of the rules, each caught as where nothing is stored."""
    with mutant.patched(), pytest.raises(AssertionError):
        run_worlds(range(60), UNSHRUNK, world=partial(StoredWorld, nodes))
