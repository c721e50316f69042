"""What is counted, and how Prometheus reads it.

A request costs a few additions to plain integers; families are made only when somebody scrapes. Label values come from
closed lists: codes, reasons, endpoints and statuses of ours, and the ids of clients, which come from the clients file.
Nothing that a request carried becomes a label.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from ledger.refusals import Refusal, Refused

SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram of token requests; one more bucket holds what took longer."""

OUTCOMES = (
    "ok",
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "invalid_dpop_proof",
    "use_dpop_nonce",
    "temporarily_unavailable",
    "server_error",
)
"""How a token request can end: an access token, or a code of RFC 6749 5.2."""


class Meters:
    """Plain counts of one process. Owned by the event loop."""

    def __init__(self) -> None:
        self.token_outcomes: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.token_seconds_buckets = [0] * (len(SECONDS_BOUNDS) + 1)
        self.token_seconds_sum = 0.0
        self.refusals: dict[str, int] = {refusal.value: 0 for refusal in Refusal}
        self.answers: dict[tuple[str, int], int] = {}
        self.secrets: dict[tuple[str, int], int] = {}
        self.failed_clients = 0
        self.failed_operators = 0
        self.throttled_clients = 0
        self.throttled_operators = 0

    def token_request(self, outcome: str, seconds: float) -> None:
        """Count one answer of the token endpoint."""
        self.token_outcomes[outcome] += 1
        self.token_seconds_buckets[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.token_seconds_sum += seconds

    def refused(self, error: Exception) -> None:
        """Count a refusal of the ledger by its reason; any other error is counted by its answer's status alone."""
        if isinstance(error, Refused):
            self.refusals[error.refusal.value] += 1

    def answer(self, endpoint: str, status: int) -> None:
        """Count one answer of an endpoint; `endpoint` is a path of the route table, parameters as they stand there."""
        self.answers[endpoint, status] = self.answers.get((endpoint, status), 0) + 1

    def secret_used(self, client_id: str, number: int) -> None:
        """Count one authentication by a client's secret number 0, 1 or 2, in the order of the clients file."""
        self.secrets[client_id, number] = self.secrets.get((client_id, number), 0) + 1


class LedgerCollector:
    """Makes Prometheus families of the process's plain integers."""

    def __init__(self, meters: Meters, ledger_families: Callable[[], Iterable[Metric]]) -> None:
        """`ledger_families` gives what the ledger itself counts, made anew at each scrape."""
        self._meters = meters
        self._ledger_families = ledger_families

    def collect(self) -> Iterator[Metric]:
        """All families, at this moment. Called by the registry."""
        meters = self._meters
        yield counter(
            "token_requests", "Answers of the token endpoint.", ("outcome",), _one_label(meters.token_outcomes)
        )
        yield self._token_seconds()
        yield counter(
            "refusals", "Refused tokens and commands, by their reason.", ("reason",), _one_label(meters.refusals)
        )
        yield counter(
            "http_answers",
            "Answers of the other endpoints.",
            ("endpoint", "status"),
            {(endpoint, str(status)): count for (endpoint, status), count in meters.answers.items()},
        )
        yield counter(
            "client_secret_used",
            "Authentications by each of a client's secrets, numbered as in the clients file.",
            ("client", "secret"),
            {(client, str(number)): count for (client, number), count in meters.secrets.items()},
        )
        yield counter(
            "authentication_failures",
            "Failed authentications.",
            ("who",),
            {("client",): meters.failed_clients, ("operator",): meters.failed_operators},
        )
        yield counter(
            "authentication_throttled",
            "Requests whose credentials were not looked at because too many had failed.",
            ("who",),
            {("client",): meters.throttled_clients, ("operator",): meters.throttled_operators},
        )
        yield from self._ledger_families()

    def _token_seconds(self) -> Metric:
        total = 0
        buckets: list[tuple[str, float]] = []
        bounds = [*(str(bound) for bound in SECONDS_BOUNDS), "+Inf"]
        for bound, count in zip(bounds, self._meters.token_seconds_buckets, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(
            "token_ledger_token_request_seconds", "From the last byte of a token request to its answer."
        )
        family.add_metric([], buckets, self._meters.token_seconds_sum)
        return family


def _one_label(counts: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(value,): count for value, count in counts.items()}


def counter(name: str, text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], float]) -> Metric:
    """A counter family `token_ledger_<name>_total`."""
    family = CounterMetricFamily(f"token_ledger_{name}", text, labels=labels)
    for values, count in counts.items():
        family.add_metric(list(values), count)
    return family


def gauge(name: str, text: str, value: float) -> Metric:
    """A gauge family `token_ledger_<name>` without labels."""
    return GaugeMetricFamily(f"token_ledger_{name}", text, value=value)


def registry(collector: LedgerCollector, version: str) -> CollectorRegistry:
    """A registry of our own: the ledger's families, the process's, and which release this is."""
    made = CollectorRegistry(auto_describe=False)
    made.register(collector)
    ProcessCollector(registry=made)
    made.register(_Release(version))
    return made


class _Release:
    def __init__(self, version: str) -> None:
        self._version = version

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("token_ledger", "The release that is running.", value={"version": self._version})
