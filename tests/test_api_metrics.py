"""Plain counts become Prometheus families: buckets that add up, labels from closed lists."""

from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.client_auth import BASIC
from api.metrics import OUTCOMES, SECONDS_BOUNDS, LedgerCollector, Meters, counter, registry
from ledger.refusals import Refusal, Refused


def samples(meters: Meters) -> dict[tuple[str, ...], float]:
    """Every sample by name and label values."""
    text = generate_latest(registry(LedgerCollector(meters, list), "1.2.3")).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_histogram_is_cumulative_and_its_bounds_are_inclusive() -> None:
    """As Prometheus defines `le`."""
    meters = Meters()
    for seconds in (0.0, 0.001, 0.0011, 4.0, 10.0, 11.0):
        meters.token_request("ok", seconds)
    found = samples(meters)
    name = "token_ledger_token_request_seconds"
    bounds = {bound: found[f"{name}_bucket", str(bound)] for bound in SECONDS_BOUNDS}
    assert (2, 3, 3, 4, 5) == (bounds[0.001], bounds[0.0025], bounds[2.5], bounds[5.0], bounds[10.0])
    assert (6, 6) == (found[f"{name}_bucket", "+Inf"], found[f"{name}_count",])
    assert 25.0021 == round(found[f"{name}_sum",], 6)


def test_every_outcome_and_reason_is_there_from_the_start() -> None:
    """A rate over a series that appears with its first event misses that event."""
    found = samples(Meters())
    assert all(0 == found["token_ledger_token_requests_total", outcome] for outcome in OUTCOMES)
    assert all(0 == found["token_ledger_refusals_total", refusal.value] for refusal in Refusal)
    assert 1 == found["token_ledger_info", "1.2.3"]


def test_refusals_are_counted_by_reason_and_other_errors_are_not() -> None:
    """Those are in the counts of answers."""
    meters = Meters()
    meters.refused(Refused(Refusal.ROTATED))
    meters.refused(ValueError(BASIC))
    assert {"rotated": 1} == {name: count for name, count in meters.refusals.items() if count}


def test_a_counter_may_have_no_labels() -> None:
    """One number, one series."""
    family = counter("things", "Things.", (), {(): 3})
    assert [("token_ledger_things_total", {}, 3)] == [
        (sample.name, sample.labels, sample.value) for sample in family.samples
    ]
