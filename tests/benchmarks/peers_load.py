"""The load client for any server: the closed loop of `tests.benchmarks.load`, its tokens in a file.

A process of its own. It takes a slice of a token file, refreshes for so long or so often, puts the successors into the
file, and tells its figures. What the processes of server and store have used is read right before the first request and
right after the last answer.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import uvloop

from tests.benchmarks import load
from tests.benchmarks.peers_processes import Used, busy_seconds, used
from tests.benchmarks.refresh import pinned


class Failed(Exception):
    """A run in which a request failed: how, in one line."""


@dataclass(frozen=True)
class Job:
    """What to send where, for how long. `tokens_file` holds one refresh token a line, of which `count` from `first` on,
    every `apart`th, are used, in shuffled order where they are more than the connections. `form` says who refreshes.
    `processes` are the roots of the server's and the store's processes."""

    port: int
    path: str
    form: str
    tokens_file: str
    first: int
    count: int
    connections: int
    seconds: float
    answers_max: int | None = None
    apart: int = 1
    processes: tuple[int, ...] = ()


@dataclass
class Found:
    """What came of it. `kept` counts answers that gave the very token back that was sent: that is no rotation. `used`
    is what each of the job's processes used, `busy_seconds` the CPU time of the whole machine meanwhile."""

    answers: int
    received_bytes: int
    kept: int
    seconds: float
    p50_ms: float
    p99_ms: float
    client_cpu_seconds: float
    busy_seconds: float
    failed: str
    used: list[Used] = field(default_factory=list)


async def run(job: Job) -> Found:
    file = Path(job.tokens_file)
    lines = file.read_text("ascii").split()
    chosen = slice(job.first, job.first + job.count * job.apart, job.apart)
    state = load.Run(
        load.Job(
            job.port,
            0,
            lines[chosen],
            job.connections,
            job.seconds,
            job.form,
            path=job.path,
            answers_max=job.answers_max,
        )
    )
    chains = await load.connected(state)
    file.unlink()  # where this is broken off there is none: what it held may have been rotated by then
    before, cpu, busy = [used(root) for root in job.processes], time.process_time(), busy_seconds()
    seconds = await load.walked(state, chains)
    cpu, busy = time.process_time() - cpu, busy_seconds() - busy
    after = [used(root) for root in job.processes]
    lines[chosen] = state.tokens
    file.write_text("\n".join(lines) + "\n", "ascii")
    return Found(
        answers=len(state.latencies),
        received_bytes=state.received_bytes,
        kept=state.kept,
        seconds=seconds,
        p50_ms=load.percentile_ms(state.latencies, 0.5),
        p99_ms=load.percentile_ms(state.latencies, 0.99),
        client_cpu_seconds=cpu,
        busy_seconds=busy,
        failed=" ".join("".join(state.failed[:1]).split()),
        used=[now.since(earlier) for now, earlier in zip(after, before, strict=True)],
    )


def drive(job: Job) -> Found:
    """Run a job in a process of its own, on the second core where there are two. Raises Failed."""
    done = subprocess.run(
        [*pinned(1), sys.executable, "-m", "tests.benchmarks.peers_load"],
        input=json.dumps(asdict(job)).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"the client ended: {done.stderr.decode().strip()[-300:]}")
    found = msgspec.json.decode(done.stdout, type=Found)
    if found.failed:
        raise Failed(found.failed)
    return found


def main() -> None:
    """Read a job (JSON) from standard input, run it, write its figures to standard output."""
    print(json.dumps(asdict(uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))))))


if __name__ == "__main__":
    main()
