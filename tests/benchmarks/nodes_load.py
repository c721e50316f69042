"""The load client for several nodes at once: which of them a grant is refreshed at, and who else wants it.

A process of its own, as `load`. Each of a job's parts is a closed loop over tokens of its own; all run at once.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias, cast

import msgspec
import uvloop

from tests.benchmarks import load
from tests.benchmarks.peers_processes import Used, busy_seconds, used

Way: TypeAlias = Literal["sticky", "alternate", "once", "contested"]


@dataclass(frozen=True)
class Part:
    """Some connections, their grants' tokens, and the ports of the nodes that they are spread over.

    `sticky`: a chain for each connection, always at the same node. `alternate`: a chain for each, at the next node each
    time. `once`: every token once, in shuffled order; the run ends with the last one. `contested`: one token, which all
    of them redeem at the same time, again and again.
    """

    way: Way
    ports: tuple[int, ...]
    tokens: list[str]
    connections: int


@dataclass(frozen=True)
class Job:
    """What to do at the same time, for so long at most. `form` says who refreshes; `processes` are the roots of those
    whose CPU time is told."""

    parts: list[Part]
    form: str
    seconds: float
    processes: tuple[int, ...] = ()


@dataclass
class Loaded:
    """What came of a part: answers, the tokens that are current now, and of a contested one how often it rotated."""

    answers: int
    rotations: int
    p50_ms: float
    p99_ms: float
    tokens: list[str]


@dataclass
class Found:
    """What came of it; CPU time of each of the job's processes, of this client and of the whole machine meanwhile."""

    parts: list[Loaded]
    seconds: float
    client_cpu_seconds: float
    busy_seconds: float
    failed: str
    used: list[Used] = field(default_factory=list)

    @property
    def answers(self) -> int:
        return sum(each.answers for each in self.parts)


class Once(load.Run):
    """Takes every token once."""

    def give(self, index: int, token: str) -> None:
        self.tokens[index] = token

    @property
    def is_used_up(self) -> bool:
        return not self.free


class Contest(load.Run):
    """One token, which all connections redeem at the same time: each gets the same successor, then they go on."""

    def __init__(self, job: load.Job) -> None:
        super().__init__(job)
        self.rivals = job.connections
        self.rotations = 0
        self.arrived: list[Rival] = []
        self._successor = ""

    def take(self) -> tuple[int, str]:
        return 0, self.tokens[0]

    def give(self, index: int, token: str) -> None:
        if not self._successor:
            self._successor = token
            self.rotations += 1
        elif token != self._successor:
            self.failed.append("a second successor")
            self.stop()

    def arrive(self, rival: "Rival") -> None:
        """Wait for the others, then send with them."""
        self.arrived.append(rival)
        if len(self.arrived) == self.rivals:
            together, self.arrived = self.arrived, []
            self.settle()
            for each in together:
                load.Chain.send(each)

    def settle(self) -> None:
        """What was got is current now."""
        if self._successor:
            self.tokens[0], self._successor = self._successor, ""

    def gone(self) -> None:
        super().gone()
        for each in self.arrived:  # nobody comes any more whom they could wait for
            each.end()
            super().gone()
        self.arrived = []


class Rival(load.Chain):
    """One of those who want the same grant."""

    def send(self) -> None:
        cast(Contest, self.run).arrive(self)

    def end(self) -> None:
        self.is_over = True
        self.transport.close()


class Turn(load.Chain):
    """One of the connections that a chain goes through in turn."""

    next: "Turn"

    def send(self) -> None:
        load.Chain.send(self.next)


_RUNS: dict[Way, type[load.Run]] = {"once": Once, "contested": Contest}
_CHAINS: dict[Way, type[load.Chain]] = {"contested": Rival, "alternate": Turn}


def made(part: Part, job: Job) -> load.Run:
    connections = min(part.connections, len(part.tokens)) if part.way == "once" else part.connections
    asked = load.Job(0, 0, list(part.tokens), connections, job.seconds, job.form)
    return _RUNS.get(part.way, load.Run)(asked)


async def connected(run: load.Run, part: Part) -> tuple[list[load.Chain], list[load.Chain]]:
    """A part's connections, and those of them that begin."""
    loop, kind = asyncio.get_running_loop(), _CHAINS.get(part.way, load.Chain)

    async def connect(port: int) -> load.Chain:
        return (await loop.create_connection(lambda: kind(run), "127.0.0.1", port))[1]

    if part.way != "alternate":
        found = [await connect(part.ports[number % len(part.ports)]) for number in range(run.connections)]
        return found, found
    rings = [[await connect(port) for port in part.ports] for _ in range(run.connections)]
    for number, ring in enumerate(rings):
        for place, each in enumerate(ring):
            cast(Turn, each).next = cast(Turn, ring[(place + 1) % len(ring)])
        ring.append(ring.pop(number % len(ring)))  # so that not all begin at the same node
    return [each for ring in rings for each in ring], [ring[-1] for ring in rings]


async def run(job: Job) -> Found:
    runs = [made(part, job) for part in job.parts]
    pairs = [await connected(*both) for both in zip(runs, job.parts, strict=True)]
    await asyncio.sleep(load.SETTLING_SECONDS)
    before, cpu, busy = [used(root) for root in job.processes], time.process_time(), busy_seconds()
    seconds = max(
        await asyncio.gather(
            *(load.walked(state, beginning) for state, (_, beginning) in zip(runs, pairs, strict=True))
        )
    )
    cpu, busy = time.process_time() - cpu, busy_seconds() - busy
    after = [used(root) for root in job.processes]
    for every, _ in pairs:
        for each in every:
            each.is_over = True
            each.transport.close()
    return Found(
        parts=[loaded(state) for state in runs],
        seconds=seconds,
        client_cpu_seconds=cpu,
        busy_seconds=busy,
        failed=" ".join("".join(line for state in runs for line in state.failed[:1]).split()),
        used=[now.since(earlier) for now, earlier in zip(after, before, strict=True)],
    )


def loaded(state: load.Run) -> Loaded:
    rotations = len(state.latencies)
    if isinstance(state, Contest):
        state.settle()
        rotations = state.rotations
    return Loaded(
        answers=len(state.latencies),
        rotations=rotations,
        p50_ms=load.percentile_ms(state.latencies, 0.5),
        p99_ms=load.percentile_ms(state.latencies, 0.99),
        tokens=state.tokens,
    )


def drive(job: Job, prefix: Sequence[str] = ()) -> Found:
    """Run a job in a process of its own. Raises AssertionError where a request fails."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.benchmarks.nodes_load"],
        input=msgspec.json.encode(asdict(job)),
        stdout=subprocess.PIPE,
        check=True,
        timeout=job.seconds + 60,
    )
    found = msgspec.json.decode(done.stdout, type=Found)
    assert not found.failed, found.failed
    return found


def main() -> None:
    """Read a job (JSON) from standard input, run it, write its figures to standard output."""
    found = uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)))
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:  # all of it, also where Python was told not to buffer
        out.write(msgspec.json.encode(asdict(found)))


if __name__ == "__main__":
    main()
