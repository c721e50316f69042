"""Is it alive, is it ready, what has it counted: for load balancers and scrapers, who need no token.

Neither health endpoint asks the store anything: they tell what the process knows, whatever the store is doing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from api.answers import NOT_STORED, Answer, json_answer, with_body
from api.metrics import counter, gauge
from api.worker_metrics import Collects
from ledger.application import Ledger


class ServerView(Protocol):
    """What is asked of the server that serves the application."""

    @property
    def connections(self) -> int:
        """How many connections are open."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """What was refused or closed on the connections' level; names from a closed list."""
        ...

    @property
    def certificate_expires_at(self) -> int | None:
        """When its certificate runs out, in seconds since 1970; None without TLS."""
        ...


class Health:
    """The endpoints."""

    def __init__(self, ledger: Ledger, registry: Collects) -> None:
        self._ledger = ledger
        self._registry = registry

    async def healthz(self, scope: Any) -> Answer:
        """200 as long as the process answers at all."""
        return json_answer(200, {"status": "ok"})

    async def readyz(self, scope: Any) -> Answer:
        """200 where requests are served, else 503 with the reason; also while the server is on its way out.

        The server says the latter in `state["draining"]`.
        """
        draining = scope.get("state", {}).get("draining")
        reason = "the server is stopping" if draining else self._ledger.readiness()
        if reason is None:
            return json_answer(200, {"status": "ready"})
        return json_answer(503, {"status": "unready", "reason": reason}, headers=((b"retry-after", b"1"),))

    async def metrics(self, scope: Any) -> Answer:
        """Everything that is counted, in the format that the scraper prefers; the older text where it names none."""
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        try:
            encode, media_type = choose_encoder(accept.decode("latin-1"))
        except (TypeError, ValueError):  # a version that is no number, which the library compares with numbers
            encode, media_type = choose_encoder("")
        body = encode(self._registry)
        return with_body(200, body, ((b"content-type", media_type.encode("latin-1")), *NOT_STORED))


def ledger_families(ledger: Ledger, server: ServerView | None) -> Iterable[Metric]:
    """What the ledger and its server count, as Prometheus families."""
    commits = ledger.commits
    yield gauge("ready", "1 where requests are served.", float(ledger.readiness() is None))
    yield gauge("position", "Position of the last event that is durable.", ledger.acknowledged_position)
    yield counter("refreshes", "Access tokens given for refresh tokens, retries included.", (), {(): ledger.refreshed})
    yield counter("batches", "Transactions committed.", (), {(): commits.batches})
    yield counter("commands", "Requests whose decision was made durable.", (), {(): commits.committed})
    yield counter(
        "reuse_detected",
        "Retired tokens that came back and were no retries, each an event of its grant.",
        ("label",),
        {(label,): count for label, count in ledger.reuse_detected.items()},
    )
    yield counter(
        "codes",
        "Authorization codes that were exchanged, and those that came a second time and ended their grant.",
        ("outcome",),
        {(outcome,): count for outcome, count in ledger.codes.items()},
    )
    yield counter(
        "alarms",
        "Genuine tags with a wrong secret, of a grant that the log does not know, or ahead of the log.",
        ("kind",),
        {(kind,): count for kind, count in ledger.desk.alarms.items()},
    )
    if server is not None:
        yield gauge("connections", "Connections that are open.", server.connections)
        yield counter(
            "connections_refused",
            "Requests refused and connections closed before an endpoint was asked.",
            ("why",),
            {(why,): count for why, count in server.counts.items()},
        )
        if (expires_at := server.certificate_expires_at) is not None:
            text = "When the server's certificate runs out, in seconds since 1970."
            yield gauge("tls_certificate_expires_timestamp_seconds", text, expires_at)
