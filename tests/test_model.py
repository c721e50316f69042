"""The rules of refresh against their model (RFC 6749 6, RFC 9700 4.14): two readings, one answer, step by step."""

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model_machine import Family


def test_the_aggregate_answers_and_records_as_the_model_does() -> None:
    """I-01…I-08, I-16, I-17, I-21 over holders, thieves, clocks that jump, rules that change, backups restored."""
    run_state_machine_as_test(Family, settings=settings())
