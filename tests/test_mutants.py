"""The broken twins of the rules: a property test that catches none of these would prove nothing."""

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model_machine import Family
from tests.mutants import MUTANTS, Mutant

FEW = settings(max_examples=800, derandomize=True, database=None, phases=[Phase.generate], print_blob=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_model_catches_a_broken_rule(mutant: Mutant) -> None:
    """Each mutant breaks the invariant that it names, and the same worlds that find no fault in the rules find it."""
    with mutant.patched(), pytest.raises(AssertionError):
        run_state_machine_as_test(Family, settings=FEW)
