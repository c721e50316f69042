"""What each way to refresh costs beside Basic: `python -m tests.benchmarks.variants`.

Ways to say who one is, key proofs, and JWTs as access tokens, each a client of its own with grants of its own. In every
round each way in turn, every second round in the opposite order, on new stores and servers: one server for plain HTTP,
one behind a proxy that tells certificates, one for TLS. Connections stay open, and stand before the clock starts:
handshakes do not count. Assertions and proofs are signed before it starts, so what is measured is checking them; a run
ends early where they are used up. No nonces are asked for. A request that fails ends everything, and after each run the
store's events must be twice the answers.

Quote the ratios, those of the server's CPU time above all: they are what survives a noisy machine. The client's own
CPU time stands beside them, as a check that it had time to spare.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.load import Job
from tests.benchmarks.refresh import CONNECTIONS, Figures, check_events, drive, events_in, ledger, pid_of
from tests.benchmarks.stock import Stocked, stocked
from tests.benchmarks.ways import PLAIN, PROXY, REFERENCE, TLS, Asked, Way, ways
from tests.certificates import authority
from tests.servers import Server

SECONDS_MAX = 20.0
"""A proof is good for a minute: those of a longer run would be too old at its end."""

WARM_UP_SECONDS_MAX = 0.5
MORE_THAN_BASIC = 1.2
"""So many times what Basic takes are signed ahead: nothing is much faster."""


@dataclass(frozen=True)
class Measured:
    """One way in one round, and how many events it wrote."""

    figures: Figures
    events: int


RATIOS = ("per_second", "cpu_us", "p50_ms", "p99_ms")
FIGURES = (*RATIOS, "client_cpu_us")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    seconds: float
    connections: int


class Serving:
    """One server with some grants of each way, and their tokens as they are by now."""

    def __init__(self, server: Server, folder: Path, chosen: Sequence[Way], stock: Stocked, extent: Extent) -> None:
        self.server = server
        self.folder = folder
        self.extent = extent
        self.keys = stock.keys
        each = extent.connections
        self.tokens = {way.name: stock.tokens[at * each : (at + 1) * each] for at, way in enumerate(chosen)}

    def measured(self, way: Way, seconds: float, count: int) -> Measured:
        """One run of one way, of so many requests at most where they have to be signed."""
        if way.alg is not None:
            activated = self.server.command("keys", "activate", str(self.keys[way.alg]))
            assert activated.returncode == 0, activated.stderr
        sent = way.sends(Asked(self.server.issuer, self.folder, max(count, self.extent.connections)))
        job = Job(
            port=self.server.port,
            pid=pid_of(self.server),
            tokens=self.tokens[way.name],
            connections=self.extent.connections,
            seconds=seconds,
            form=sent.form,
            header=sent.header,
            once=sent.once,
            authority=str(self.folder / "ca.pem") if way.over == TLS else None,
            certificate=sent.certificate,
        )
        before = events_in(self.folder)
        found = drive(job)
        events = events_in(self.folder) - before
        check_events(events, found.answers)
        self.tokens[way.name] = found.tokens
        return Measured(found, events)


def settings(over: str, folder: Path) -> Mapping[str, str]:
    """What the server is told beside what all are told."""
    authorities = {"TLS_CLIENT_CA": str(folder / "clients-ca.pem")}
    if over == PROXY:
        return {"TRUSTED_PROXIES": "127.0.0.1", "TLS_CLIENT_CERT_HEADER": "Client-Cert", **authorities}
    return authorities if over == TLS else {}


def one_round(
    folder: Path, over: str, chosen: Sequence[Way], authorities: str, extent: Extent, *, backwards: bool
) -> Iterator[tuple[Way, Measured]]:
    """Each way over one kind of connection, on a new store, after Basic for a moment without being counted."""
    clients = "\n".join(way.table() for way in chosen)
    asked = [way.grant(number) for way in chosen for number in range(extent.connections)]
    stock = stocked(folder, clients, asked, algorithms=[way.alg for way in chosen if way.alg is not None])
    (folder / "clients-ca.pem").write_text(authorities)
    with ledger(folder, clients, settings=settings(over, folder), tls=over == TLS) as server:
        serving = Serving(server, folder, chosen, stock, extent)
        reference = chosen[0]
        warm = serving.measured(reference, min(extent.seconds, WARM_UP_SECONDS_MAX), 0)
        count = round(warm.figures.per_second * extent.seconds * MORE_THAN_BASIC)
        for way in reversed(chosen) if backwards else chosen:
            yield way, serving.measured(way, extent.seconds, count)


def measure(chosen: Sequence[Way], authorities: str, rounds: int, extent: Extent) -> dict[Way, list[Measured]]:
    """All rounds of these ways; each run is told on standard error."""
    found: dict[Way, list[Measured]] = {way: [] for way in chosen}
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as scratch:
        for number in range(rounds):
            for over in (PLAIN, PROXY, TLS):
                ours = [way for way in chosen if way.over == over]
                folder = Path(scratch) / f"{over}-{number}"
                if ours:
                    for way, run in one_round(folder, over, ours, authorities, extent, backwards=number % 2 == 1):
                        found[way].append(run)
                        print(f"round {number + 1}: {_line(way.name, run.figures)}", file=sys.stderr, flush=True)
                    shutil.rmtree(folder)
    return found


def selected(all_ways: Sequence[Way], names: Sequence[str]) -> list[Way]:
    """The ways of these names, and those that they are compared with."""
    wanted = {REFERENCE, *names, *(way.beside for way in all_ways if way.name in names)}
    return [way for way in all_ways if way.name in wanted]


def report(found: Mapping[Way, Sequence[Measured]], rounds: int, extent: Extent) -> dict[str, Any]:
    """All figures: of each round, their medians, and the ratios to what each way is compared with, round by round:
    median, least and greatest."""
    figures = {way.name: [run.figures for run in runs] for way, runs in found.items()}
    variants = []
    for way, runs in found.items():
        ours, theirs = figures[way.name], figures[way.beside]
        variants.append(
            {
                "name": way.name,
                "beside": way.beside,
                "answers": sum(each.answers for each in ours),
                "events": sum(run.events for run in runs),
                "median": {name: statistics.median(_of(ours, name)) for name in FIGURES},
                "ratio": {name: _spread(_of(ours, name), _of(theirs, name)) for name in RATIOS},
                "runs": [{name: getattr(each, name) for name in ("answers", *FIGURES)} for each in ours],
            }
        )
    extents = {"rounds": rounds, "seconds": extent.seconds, "connections": extent.connections}
    return {**extents, "variants": variants}


def _of(figures: Sequence[Figures], name: str) -> list[float]:
    return [getattr(each, name) for each in figures]


def _spread(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    ratios = [_ratio(*pair) for pair in zip(ours, theirs, strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def _ratio(one: float, other: float) -> float:
    return one / other if other else 0.0  # CPU time comes in hundredths of a second: a moment may have none


def _line(name: str, run: Figures) -> str:
    return (
        f"{name:23} {run.per_second:6.0f}/s {run.cpu_us:5.0f} µs p50 {run.p50_ms:5.1f} p99 {run.p99_ms:6.1f} ms"
        f" client {run.client_cpu_us:4.0f} µs"
    )


def table(told: Mapping[str, Any]) -> str:
    """The medians, and the ratios with their range, as text."""
    lines = [
        f"{'':23} {'refreshes a second':>26} {'server CPU, µs':>26} {'p50, ms':>13} {'p99, ms':>13} {'client, µs':>10}"
    ]
    for each in told["variants"]:
        median, ratio = each["median"], each["ratio"]
        per_second, cpu = (
            f"{median[name]:7.0f} {ratio[name][0]:5.2f} ({ratio[name][1]:.2f}–{ratio[name][2]:.2f})"
            for name in ("per_second", "cpu_us")
        )
        p50, p99 = (f"{median[name]:7.1f} {ratio[name][0]:5.2f}" for name in ("p50_ms", "p99_ms"))
        lines.append(f"{each['name']:23} {per_second:>26} {cpu:>26} {p50} {p99} {median['client_cpu_us']:10.0f}")
    answers, events = (sum(each[name] for each in told["variants"]) for name in ("answers", "events"))
    lines.append(f"{answers} answers, {events} events, no request failed")
    lines.append("ratios to Basic over the same kind of connection, of Basic itself to that over plain HTTP")
    return "\n".join(lines)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"above 0, at most {SECONDS_MAX:g}")
    return seconds


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and print a table, or JSON; progress goes to standard error."""
    client_authority = authority()
    all_ways = ways(client_authority)
    names = [way.name for way in all_ways]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--seconds", type=_seconds, default=3.0, help="of each run")
    parser.add_argument("--connections", type=_positive, default=CONNECTIONS)
    parser.add_argument("--variants", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="print all figures as JSON instead of the table")
    asked = parser.parse_args(arguments)
    extent = Extent(asked.seconds, asked.connections)
    found = measure(selected(all_ways, asked.variants), client_authority.pem, asked.rounds, extent)
    told = report(found, asked.rounds, extent)
    print(json.dumps(told) if asked.json else table(told))


if __name__ == "__main__":
    main()
