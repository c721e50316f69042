"""What several processes on one PostgreSQL do to each other: `python -m tests.benchmarks.nodes`.

Four trials, each compared within its rounds. *workers*: `WORKERS=2` beside one. *contested*: two nodes that both
refresh one grant all the time, beside two nodes whose grants are their own. *alternate*: grants that are refreshed at
another node each time, beside grants that stay. *met*: many grants, each refreshed once: cold (the nodes have just
started), again where it was, elsewhere, and back where it was at first.

It brings its own PostgreSQL, which is durable here, and pins nobody to a core. After each run the store must hold two
events for each rotation, and one more for each other answer that a contested grant gave. Where there are fewer cores
than two workers, two connections of theirs and the client need, what two workers would do is told from CPU seconds.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.clients import CLIENTS, FORM
from tests.benchmarks.latency_rows import events_on
from tests.benchmarks.nodes_load import Found, Job, Part, Way, drive
from tests.benchmarks.peers_processes import Used
from tests.benchmarks.peers_sides import TOKENS, Stage, fill
from tests.benchmarks.refresh import pid_of
from tests.postgres import Server as Postgres
from tests.postgres import running
from tests.server_process import eventually
from tests.servers import Server

DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "20min",
}
CORES_WANTED = 5
"""Two workers, a connection of each in the database server, and the client."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: float
    connections: int
    grants: int


@dataclass(frozen=True)
class Measured:
    """One run. CPU is µs a refresh: of all nodes together, of the database server, of the client. `own_per_second` and
    the latencies are of those grants that nobody else wants."""

    per_second: float
    own_per_second: float
    p50_ms: float
    p99_ms: float
    nodes_us: float
    store_us: float
    client_us: float
    foreign_cores: float
    answers: int
    events: int


class Nodes:
    """Some nodes on one database, with the grants that they are loaded with."""

    def __init__(
        self, servers: Sequence[Server], tokens: list[str], events: Callable[[], int], store_pid: int | None
    ) -> None:
        """`events` counts what their store holds; `store_pid` is the root of its processes where it has any."""
        self.servers = servers
        self.tokens = tokens
        self._events = events
        self._store_pid = store_pid

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(server.port for server in self.servers)

    def forget(self) -> None:
        """Restart all nodes: their memory is empty."""
        for server in self.servers:
            server.restart()

    def run(self, parts: Sequence[tuple[Part, slice]], seconds: float) -> Measured:
        """Load the nodes with parts, each of whose tokens are a slice of ours, and count what was written."""
        roots = tuple(pid_of(server) for server in self.servers)
        store = () if self._store_pid is None else (self._store_pid,)
        before = self._events()
        found = drive(Job([part for part, _ in parts], FORM, seconds, roots + store))
        events = self._events() - before
        for each, (_, chosen) in zip(found.parts, parts, strict=True):
            self.tokens[chosen] = each.tokens
        check_events(events, found)
        own = [each for each, (part, _) in zip(found.parts, parts, strict=True) if part.way != "contested"]
        of_nodes, of_store = (sum(some, Used()).cpu_seconds for some in _parted(found.used, len(roots)))
        foreign = found.busy_seconds - of_nodes - of_store - found.client_cpu_seconds
        return Measured(
            per_second=found.answers / found.seconds,
            own_per_second=sum(each.answers for each in own) / found.seconds,
            p50_ms=max(each.p50_ms for each in own),
            p99_ms=max(each.p99_ms for each in own),
            nodes_us=of_nodes / found.answers * 1e6,
            store_us=of_store / found.answers * 1e6,
            client_us=found.client_cpu_seconds / found.answers * 1e6,
            foreign_cores=max(0.0, foreign) / found.seconds,
            answers=found.answers,
            events=events,
        )

    def part(self, way: Way, chosen: slice, connections: int, ports: Sequence[int] | None = None) -> tuple[Part, slice]:
        return Part(way, tuple(ports or self.ports), self.tokens[chosen], connections), chosen


def _parted(used: Sequence[Used], at: int) -> tuple[Sequence[Used], Sequence[Used]]:
    return used[:at], used[at:]


def check_events(events: int, found: Found) -> None:
    """Two events for each rotation, one more for each answer that gave the successor of another's once more."""
    rotations = sum(each.rotations for each in found.parts)
    expected = 2 * rotations + (found.answers - rotations)
    assert events == expected, f"{events} events for {rotations} rotations and {found.answers} answers"


def started(server: Server, workers: int) -> None:
    """Start a node and wait until all of its workers serve."""
    server.start()
    eventually(lambda: server.log().count(" event=serving ") >= workers, what="all workers")


@contextmanager
def serving(postgres: Postgres, folder: Path, *, grants: int, nodes: int = 1, workers: int = 1) -> Iterator[Nodes]:
    """Nodes on a database of their own, which holds so many grants; each node so many workers."""
    url = postgres.create_database()
    settings = {"DATABASE_URL": postgres.over_tcp(url), "LOG_LEVEL": "info", "WORKERS": str(workers)}
    stage, first = Stage(0, "grants", grants), folder / "node-0"
    stage.begin(first)
    servers = [Server(first, clients=CLIENTS, settings=settings)]
    fill(servers[0], stage)
    for number in range(1, nodes):
        other = Server(folder / f"node-{number}", clients=CLIENTS, settings=settings)
        other.keys_file = servers[0].keys_file
        servers.append(other)
    try:
        for server in servers:
            started(server, workers)
        assert postgres.process is not None
        tokens = (first / TOKENS).read_text("ascii").split()
        yield Nodes(servers, tokens, lambda: events_on(url), postgres.process.pid)
        for server in servers:
            assert server.terminate() == 0, server.tail()
    finally:
        for server in servers:
            server.kill()


Runs = dict[str, list[Measured]]
Trial = Callable[[Postgres, Path, Extent], Runs]


def in_turn(extent: Extent, sides: Mapping[str, Callable[[float], Measured]]) -> Runs:
    """All sides in each round, every second round the other way round, after a moment of each that is not counted."""
    found: Runs = {name: [] for name in sides}
    for run in sides.values():
        run(min(2.0, extent.seconds))
    for number in range(extent.rounds):
        for name in sides if number % 2 == 0 else reversed([*sides]):
            found[name].append(sides[name](extent.seconds))
            say(f"round {number + 1}: {line(name, found[name][-1])}")
    return found


def workers(postgres: Postgres, folder: Path, extent: Extent) -> Runs:
    """One command with one worker and with two: the kernel spreads the connections."""
    n = extent.connections
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(serving(postgres, folder / str(count), grants=n, workers=count)) for count in (1, 2)
        )
        every = slice(0, n)
        return in_turn(
            extent,
            {
                "one worker": lambda s: one.run([one.part("sticky", every, n)], s),
                "two workers": lambda s: two.run([two.part("sticky", every, n)], s),
            },
        )


def contested(postgres: Postgres, folder: Path, extent: Extent) -> Runs:
    """Two nodes; of the same number of connections two, one at each, refresh the same grant."""
    n = extent.connections
    with serving(postgres, folder, grants=n, nodes=2) as nodes:
        own, wanted = slice(0, n - 2), slice(n - 1, n)
        return in_turn(
            extent,
            {
                "none contested": lambda s: nodes.run([nodes.part("sticky", slice(0, n), n)], s),
                "one contested": lambda s: nodes.run(
                    [nodes.part("sticky", own, n - 2), nodes.part("contested", wanted, 2)], s
                ),
            },
        )


def alternate(postgres: Postgres, folder: Path, extent: Extent) -> Runs:
    """Two nodes; grants that stay where they are, and grants that go to the other node each time."""
    n = extent.connections
    with serving(postgres, folder, grants=n, nodes=2) as nodes:
        every = slice(0, n)
        return in_turn(
            extent,
            {
                "each at its node": lambda s: nodes.run([nodes.part("sticky", every, n)], s),
                "alternately": lambda s: nodes.run([nodes.part("alternate", every, n)], s),
            },
        )


def met(postgres: Postgres, folder: Path, extent: Extent) -> Runs:
    """Two nodes, which have just started; of many grants half at each, each once: cold, again where it was, at the
    other node, and back where memory holds it as it was."""
    half, n = extent.grants // 2, extent.connections // 2
    found: Runs = {"cold": [], "again": [], "elsewhere": [], "back": []}
    with serving(postgres, folder, grants=2 * half, nodes=2) as nodes:
        for number in range(extent.rounds):
            nodes.forget()
            for name, runs in found.items():
                ports = nodes.ports if name != "elsewhere" else nodes.ports[::-1]
                halves = [slice(0, half), slice(half, 2 * half)]
                parts = [nodes.part("once", some, n, [port]) for some, port in zip(halves, ports, strict=True)]
                runs.append(nodes.run(parts, 300))
                say(f"round {number + 1}: {line(name, runs[-1])}")
    return found


TRIALS: dict[str, tuple[Trial, str]] = {
    "workers": (workers, "one worker"),
    "contested": (contested, "none contested"),
    "alternate": (alternate, "each at its node"),
    "met": (met, "again"),
}
"""Each trial, and the side that the others are compared with."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def line(name: str, run: Measured) -> str:
    return (
        f"{name:18} {run.per_second:6.0f}/s p50 {run.p50_ms:6.2f} p99 {run.p99_ms:6.1f} ms CPU µs nodes"
        f" {run.nodes_us:4.0f} PostgreSQL {run.store_us:4.0f} client {run.client_us:4.0f}"
        f" others {run.foreign_cores:.2f} cores"
    )


def spread(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratios round by round: median, least and greatest."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}]"


def told(name: str, beside: str, found: Runs) -> list[str]:
    """A trial's medians, and its ratios."""
    lines = [f"{name}: {sum(run.answers for each in found.values() for run in each)} answers, all events counted"]
    for side, runs in found.items():
        middle = Measured(**{key: statistics.median(asdict(run)[key] for run in runs) for key in asdict(runs[0])})
        lines.append(f"  {line(side, middle)}")
        if side != beside:
            ratio = spread([run.per_second for run in runs], [run.per_second for run in found[beside]])
            lines.append(f"    {side} / {beside}: {ratio} of the refreshes a second")
    if name == "contested":
        shares = ([run.own_per_second for run in found[side]] for side in ("one contested", beside))
        lines.append(f"    of the grants that nobody else wants, two connections fewer: {spread(*shares)}")
    if name == "workers":
        lines += arithmetic(*(found[side] for side in ("one worker", "two workers")))
    return lines


def arithmetic(one: Sequence[Measured], two: Sequence[Measured]) -> list[str]:
    """What two workers would do with a core for each process: the busiest one decides, a worker or its backend."""

    def rate(runs: Sequence[Measured], workers: int) -> float:
        busiest = max(statistics.median(run.nodes_us for run in runs), statistics.median(run.store_us for run in runs))
        return workers * 1e6 / busiest

    cores = len(os.sched_getaffinity(0))
    lines = [
        f"    from CPU seconds, a core for each process: at most {rate(one, 1):.0f}/s with one worker,"
        f" {rate(two, 2):.0f}/s with two: {rate(two, 2) / rate(one, 1):.2f}"
    ]
    if cores < CORES_WANTED:
        lines.append(f"    ({cores} cores: what was measured above says nothing about more workers, this does)")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run: %(default)s")
    parser.add_argument("--connections", type=int, default=64, help="an even number: %(default)s")
    parser.add_argument("--grants", type=int, default=20_000, help="of the trial `met`: %(default)s")
    parser.add_argument(
        "--only", nargs="+", choices=[*TRIALS], default=[*TRIALS], metavar="TRIAL", help=" ".join(TRIALS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there too")
    asked = parser.parse_args(arguments)
    extent = Extent(asked.rounds, asked.seconds, asked.connections, asked.grants)
    every: dict[str, Runs] = {}
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as folder, running(**DURABLE) as postgres:
        for name in asked.only:
            trial, beside = TRIALS[name]
            every[name] = trial(postgres, Path(folder) / name, extent)
            print("\n".join(told(name, beside, every[name])), flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(every, default=asdict, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
