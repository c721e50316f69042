"""What memory a server takes while it serves very many grants: `python -m tests.benchmarks.memory --grants 1000000`.

Every grant is refreshed once, in a shuffled order, over 64 connections. What is resident of the server is told after
each tenth of them: it grows until so many grants are in memory as may be, and not beyond. After each tenth the store
must hold two events for each answer.

The store is made first, which is told, too; in `--folder` it is kept for the next run. That may be the folder of
`tests.benchmarks.peers`: its stores of so many grants are used then, on SQLite.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from tests.benchmarks.clients import CLIENTS
from tests.benchmarks.nodes import DURABLE, Nodes, serving
from tests.benchmarks.peers_processes import resident_bytes
from tests.benchmarks.peers_sides import TOKENS, Stage, fill, taken
from tests.benchmarks.refresh import events_in, ledger, pid_of
from tests.postgres import running
from tests.servers import Server

SECONDS_MAX = 3600.0
"""Of a tenth of all grants."""


@contextmanager
def on_sqlite(folder: Path, grants: int) -> Iterator[Nodes]:
    stage = Stage(0, f"grants-{grants}", grants)
    place = folder / "token-ledger-sqlite" / stage.name
    if stage.begin(place):
        fill(Server(place, clients=CLIENTS), stage)
    with ledger(place) as server:
        nodes = Nodes([server], taken(place), lambda: events_in(place), None)
        yield nodes
    (place / TOKENS).write_text("\n".join(nodes.tokens) + "\n", "ascii")


@contextmanager
def on_postgres(folder: Path, grants: int) -> Iterator[Nodes]:
    with (
        tempfile.TemporaryDirectory(dir=folder) as own,
        running(**DURABLE) as postgres,
        serving(postgres, Path(own), grants=grants) as nodes,
    ):
        yield nodes


def told(nodes: Nodes, touched: int, what: str) -> None:
    resident = resident_bytes(pid_of(nodes.servers[0]))
    print(f"{touched:>9,} grants served: {resident / 1e6:6,.0f} MB resident{what}", flush=True)


def measure(nodes: Nodes, connections: int, count: int) -> None:
    """Refresh so many grants once, a tenth of them after the other."""
    random.Random(1).shuffle(nodes.tokens)
    told(nodes, 0, "")
    edges = [count * number // 10 for number in range(11)]
    for first, last in pairwise(edges):
        if first < last:
            run = nodes.run([nodes.part("once", slice(first, last), connections)], SECONDS_MAX)
            told(nodes, last, f", {run.per_second:6,.0f}/s, CPU {run.nodes_us:.0f} + {run.store_us:.0f} µs a refresh")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure on one store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grants", type=int, default=1_000_000)
    parser.add_argument("--served", type=int, help="so many of them are refreshed, by default all")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--folder", type=Path, help="where the store is kept, on SQLite; else a temporary one")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as scratch:
        folder = asked.folder or Path(scratch)
        began = time.monotonic()
        with (on_sqlite if asked.store == "sqlite" else on_postgres)(folder, asked.grants) as nodes:
            print(f"{asked.grants:,} grants: {time.monotonic() - began:.0f} s until it serves them", flush=True)
            measure(nodes, asked.connections, min(asked.served or asked.grants, asked.grants))


if __name__ == "__main__":
    main()
