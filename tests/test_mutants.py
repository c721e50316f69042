"""The broken twins of the rules: a property test that catches none of these would prove nothing."""

import pytest
from hypothesis import Phase, settings

from tests.model_machine import run_worlds
from tests.mutants import MUTANTS, Mutant

SEEDS = range(60)
"""Most are caught by the first one."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_model_catches_a_broken_rule(mutant: Mutant) -> None:
    """Each mutant breaks the invariant that it names, and the same worlds that find no fault in the rules find it."""
    unshrunk = settings(database=None, phases=[Phase.generate], print_blob=False)
    with mutant.patched(), pytest.raises(AssertionError):
        run_worlds(SEEDS, unshrunk)
