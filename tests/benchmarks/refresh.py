"""What a durable refresh costs beside a bare endpoint: `python -m tests.benchmarks.refresh`.

Both sides run on the same loop, parser and worker count, one after the other in every round, each on one core with the
client on another (where there are two). Everything is on in the ledger but the limit of refreshes a grant: both events,
inline rows, client authentication, metrics, contexts, control counter, snapshots, `synchronous=FULL` read back. After
each run the store's events must equal twice the 200s. Quote the ratios: they are what survives a noisy machine.
"""

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

from tests.benchmarks.clients import CLIENTS, FORM
from tests.benchmarks.load import ONCE, Found, Job
from tests.benchmarks.stock import stock
from tests.chaos.processes import TroubledServer
from tests.server_process import eventually, free_port
from tests.servers import Server

CONNECTIONS = 64
PASS_SECONDS_MAX = 600.0


@dataclass
class Figures:
    """One side in one round. CPU a refresh: the server's own, and that of the client, which is none of its business."""

    answers: int
    per_second: float
    cpu_us: float
    client_cpu_us: float
    p50_ms: float
    p99_ms: float
    tokens: list[str]


def pinned(core: int) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core % len(cores)])] if shutil.which("taskset") and len(cores) > 1 else []


def drive(job: Job) -> Figures:
    """Load a server; raises AssertionError with the answer where a request fails."""
    done = subprocess.run(
        [*pinned(1), sys.executable, "-m", "tests.benchmarks.load"],
        input=json.dumps(asdict(job)).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=job.seconds + 60,
    )
    found = Found(**json.loads(done.stdout))
    assert not found.failed, found.failed
    return Figures(
        found.answers,
        found.answers / found.seconds,
        found.server_cpu_seconds / found.answers * 1e6,
        found.client_cpu_seconds / found.answers * 1e6,
        found.p50_ms,
        found.p99_ms,
        found.tokens,
    )


@contextmanager
def bare(app: str = "bare:app", settings: Mapping[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """A reference server, of a module beside this one: (port, process id)."""
    port = free_port()
    command = [*pinned(0), sys.executable, "-m", "uvicorn", *f"tests.benchmarks.{app}".split(), "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    with subprocess.Popen(command, env={**os.environ, **(settings or {})}) as process:
        try:
            eventually(lambda: _listens(port), what="the bare server")
            yield port, process.pid
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def ledger(
    folder: Path,
    clients: str = CLIENTS,
    *,
    settings: Mapping[str, str] | None = None,
    tls: bool = False,
    twin: str | None = None,
) -> Iterator[Server]:
    """The ledger on the store in a folder, as it is served, without burst limit; plain HTTP unless told otherwise.
    `twin` is served in its place: one of `tests.chaos.twins`."""
    common = {"LOG_LEVEL": "info", "REFRESH_PER_SECOND": "0"}
    server = TroubledServer(folder, twin=twin, clients=clients, settings={**common, **(settings or {})}, tls=tls)
    server.start()
    if pinned(0):
        for task in os.listdir(f"/proc/{pid_of(server)}/task"):
            os.sched_setaffinity(int(task), {sorted(os.sched_getaffinity(0))[0]})
    try:
        yield server
    finally:
        assert server.terminate() == 0


def pid_of(server: Server) -> int:
    assert server.process is not None
    return server.process.pid


def events_in(folder: Path) -> int:
    with closing(sqlite3.connect(f"file:{folder}/token-ledger.db?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM events").fetchone()[0])


def check_events(events: int, answers: int) -> None:
    """Two events for each answer 200, no more and no less."""
    assert events == 2 * answers, f"{events} events for {answers} answers"


def by_secret(server: Server, tokens: Sequence[str], connections: int, seconds: float) -> Job:
    """The one client with its secret in the body."""
    return Job(server.port, pid_of(server), list(tokens), connections, seconds, form=FORM)


def measured(
    folder: Path, tokens: list[str], *, connections: int, seconds: float, header: str = "", once: Sequence[str] = ()
) -> Figures:
    """One run on the ledger, which must have written exactly two events for each answer."""
    with ledger(folder) as server:
        before = events_in(folder)
        job = by_secret(server, tokens, connections, seconds)
        found = drive(replace(job, header=header, once=[*once]))
        check_events(events_in(folder) - before, found.answers)
    tokens[:] = found.tokens
    return found


def bytes_a_refresh(folder: Path, answers_times_two: int) -> float:
    return (folder / "token-ledger.db").stat().st_size / (answers_times_two / 2)


HEADS = {
    "ratio": "",
    "traced": f"traceparent: 00-{ONCE}-01\r\n",
    "differing": f"X-Differs: {ONCE}\r\n",
}
"""What is sent beside the rest of a head, which each connection repeats: nothing; what a client that is traced sends,
another with each request; a header that nobody knows, another with each request."""

ONCE_PER_SECOND = 40_000


def main_ratio(folder: Path, rounds: int, seconds: float, header: str) -> None:
    """Sixty-four chains beside the bare endpoint."""
    tokens = stock(folder, grants=CONNECTIONS)
    sides: list[tuple[Figures, Figures]] = []
    once = [f"{number:032x}" for number in range(int(ONCE_PER_SECOND * seconds))] if header else []
    for number in range(rounds):
        with bare() as (port, pid):
            job = Job(port, pid, ["rt1_" + "r" * 72] * CONNECTIONS, CONNECTIONS, seconds, form=FORM)
            reference = drive(replace(job, header=header, once=once))
        ours = measured(folder, tokens, connections=CONNECTIONS, seconds=seconds, header=header, once=once)
        sides.append((reference, ours))
        print(
            f"round {number + 1}: bare {reference.per_second:6.0f}/s {reference.cpu_us:4.0f} µs"
            f" p50 {reference.p50_ms:5.1f} p99 {reference.p99_ms:5.1f} ms |"
            f" ledger {ours.per_second:6.0f}/s {ours.cpu_us:4.0f} µs p50 {ours.p50_ms:5.1f} p99 {ours.p99_ms:5.1f} ms |"
            f" ratio {ours.per_second / reference.per_second:.2f}",
            flush=True,
        )
    ratios = [ours.per_second / reference.per_second for reference, ours in sides]
    tails = [ours.p99_ms / reference.p99_ms for reference, ours in sides]
    print(f"throughput, ledger / bare: median {statistics.median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}]")
    print(f"p99, ledger / bare: median {statistics.median(tails):.2f} [{min(tails):.2f}–{max(tails):.2f}]")
    cpu = [ours.cpu_us / reference.cpu_us for reference, ours in sides]
    print(f"CPU, ledger / bare: median {statistics.median(cpu):.2f} [{min(cpu):.2f}–{max(cpu):.2f}]")
    events = events_in(folder)
    print(f"bytes on disk a refresh, everything included: {bytes_a_refresh(folder, events):.0f} ({events} events)")


def main_age(folder: Path, rounds: int, seconds: float, rotations: int) -> None:
    """A grant with a long history against a new one: warm (kept walking) and cold (first refresh after a start)."""
    old, new = folder / "old", folder / "new"
    tokens = {old: stock(old, grants=1, rotations=rotations), new: stock(new, grants=1)}
    warm: dict[Path, list[float]] = {old: [], new: []}
    cold: dict[Path, list[float]] = {old: [], new: []}
    for _ in range(rounds):
        for side in (new, old):
            with ledger(side) as server:
                first = drive(by_secret(server, tokens[side], connections=1, seconds=0))
                cold[side].append(first.p50_ms)
                walk = drive(by_secret(server, first.tokens, connections=1, seconds=seconds))
                warm[side].append(walk.per_second)
                tokens[side] = walk.tokens
    print("\n".join(told_of_age(rotations, (warm[old], warm[new]), (cold[old], cold[new]))))


def told_of_age(
    rotations: int, warm: tuple[list[float], list[float]], cold: tuple[list[float], list[float]]
) -> list[str]:
    """What was found of the old grant and of the new one, always the old one's by the new one's: refreshes a second,
    and milliseconds of the first refresh."""
    (throughput, latency) = (statistics.median(old) / statistics.median(new) for old, new in (warm, cold))
    return [
        f"warm, one chain: a grant with {rotations} rotations against a new one, throughput ratio old / new"
        f" {throughput:.2f}",
        f"cold, first refresh after a start: latency ratio old / new {latency:.2f}",
    ]


def main_spread(folder: Path, rounds: int, seconds: float, grants: int) -> None:
    """Many grants in random order against sixty-four hot ones: each once, as a server meets them that has just started
    (each is read from the disk, and redeemed for the first time), and then, once it has met all of them, in other
    orders, each as often as any other. And sixty-four of the many, over and over: what it costs that there are others.
    """
    many, hot = folder / "many", folder / "hot"
    tokens, hot_tokens = stock(many, grants=grants), stock(hot, grants=CONNECTIONS)
    random = Random(grants)

    def hot_ones() -> float:
        return measured(hot, hot_tokens, connections=CONNECTIONS, seconds=seconds).per_second

    with ledger(many) as server:

        def many_ones(for_seconds: float, answers_max: int | None = None) -> float:
            random.shuffle(tokens)
            return walked(slice(None), for_seconds, answers_max)

        def walked(part: slice, for_seconds: float, answers_max: int | None = None) -> float:
            job = by_secret(server, tokens[part], CONNECTIONS, for_seconds)
            found = drive(replace(job, answers_max=answers_max))
            tokens[part] = found.tokens
            return found.per_second

        first = many_ones(PASS_SECONDS_MAX, grants) / hot_ones()
        ratios = [many_ones(seconds) / hot_ones() for _ in range(rounds)]
        few = [walked(slice(CONNECTIONS), seconds) / hot_ones() for _ in range(rounds)]
    for what, found in ((f"{grants} grants in random order", ratios), (f"{CONNECTIONS} of {grants} grants", few)):
        print(f"{what} / {CONNECTIONS} alone: {statistics.median(found):.2f} [{min(found):.2f}–{max(found):.2f}]")
    print(f"{grants} grants, each met for the first time / {CONNECTIONS} alone: {first:.2f}")


def main() -> None:
    """Run what is asked for; all of it takes some minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--grants", type=int, default=100_000)
    parser.add_argument("--rotations", type=int, default=100_000)
    parser.add_argument("--only", choices=[*HEADS, "age", "spread"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as folder:
        for name, header in HEADS.items():
            if asked.only in (None, name):
                print(f"{CONNECTIONS} connections, {name}:")
                main_ratio(Path(folder) / name, asked.rounds, asked.seconds, header)
        if asked.only in (None, "age"):
            main_age(Path(folder) / "age", asked.rounds, min(asked.seconds, 5), asked.rotations)
        if asked.only in (None, "spread"):
            main_spread(Path(folder) / "spread", asked.rounds, asked.seconds, asked.grants)


if __name__ == "__main__":
    main()
