"""We and the peers on one machine: `python -m tests.benchmarks.peers --harness FOLDER --workdir FOLDER`.

Runs the ledger, a store-less endpoint and other authorization servers one after the other in every round: same machine,
same load client, same PostgreSQL, everything durable, server on one core, client and PostgreSQL on the other. Writes
`peers.md` (a table), `peers.json` (every run) and `peers.svg` (a picture): throughput, latency, CPU time and bytes
written, by connections, by the history of a grant and by the number of grants. Without a harness it runs us alone.

What a run needs is made first and kept in `--folder`; `--prepare` makes it and ends. After each run the ledger's store
must hold two events more for each answer, and every other answer must have given another token.
"""

import argparse
import http.client
import json
import os
import platform
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import msgspec

from tests.benchmarks.peers_harness import Harness, Postgres
from tests.benchmarks.peers_load import Failed, Found, Job, drive
from tests.benchmarks.peers_processes import Used, resident_bytes
from tests.benchmarks.peers_report import AXES, Report, Run, SideFacts, counted, markdown, svg
from tests.benchmarks.peers_sides import (
    NEW,
    TOKENS,
    Bare,
    LeftOut,
    OnPostgreSQL,
    OnSQLite,
    Running,
    Side,
    Stage,
    rotated,
)

SWEPT = ("oidc-provider/pg", "oidc-provider/sqlite", "node-oauth2-server/pg")
"""The peers that are measured by history and by grants too: the others would take hours there."""

PEERS = (*SWEPT, "better-auth/pg", "authlib", "dot")
CONNECTIONS = 64
POINTS = {
    "connections": (1, 16, 64),
    "history": (1, 10_000, 100_000),
    "grants": (64, 1000, 100_000, 1_000_000),
}


@dataclass(frozen=True)
class Point:
    """One load: what is varied, its value, on which stage, and with which tokens; without `file`, with a new grant each
    time."""

    axis: str
    x: int
    stage: Stage
    connections: int
    count: int
    file: str | None = TOKENS


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: float
    warm_up_seconds: float


def points(connections: Sequence[int], histories: Sequence[int], grants: Sequence[int]) -> list[Point]:
    """All loads that are asked for, with the stages that they need."""
    found = []
    if connections:
        hot = Stage(0, "hot", max(connections))
        found += [Point("connections", each, hot, each, each) for each in sorted(connections)]
    if histories:
        aged = Stage(1, "aged", 1, tuple(sorted(each for each in histories if each > 1)))
        files = {each: rotated(each) if each > 1 else None for each in sorted(histories)}
        found += [Point("history", each, aged, 1, 1, file) for each, file in files.items()]
    for number, each in enumerate(sorted(grants)):
        stage = Stage(2 + number, f"grants-{each}", each)
        found.append(Point("grants", each, stage, min(each, CONNECTIONS), each))
    return found


def takes_part(side: Side, point: Point, peers_max: Mapping[str, int]) -> bool:
    """Whether a side is measured at a point; `peers_max` says for each axis how far peers go."""
    if side.is_ours or point.axis == "connections":
        return True
    return side.name in SWEPT and point.x <= peers_max[point.axis]


def stages(side: Side, at: Sequence[Point], peers_max: Mapping[str, int]) -> list[Stage]:
    """What a side needs for the points that it takes part in: no history longer than is asked of it."""
    found: dict[str, Stage] = {}
    for point in at:
        if takes_part(side, point, peers_max):
            found[point.stage.name] = point.stage
    if side.is_ours:
        return list(found.values())
    most = peers_max["history"]
    return [replace(each, histories=tuple(n for n in each.histories if n <= most)) for each in found.values()]


class Measuring:
    """All servers of one measurement, and what was found of them."""

    def __init__(self, folder: Path, extent: Extent, report: Report) -> None:
        self.folder = folder
        self.extent = extent
        self.report = report
        self._running: dict[tuple[str, str], Running] = {}

    def serve(self, stack: ExitStack, side: Side, stages: Iterable[Stage]) -> None:
        """Start a side on all stages that it takes part in, each stocked first where it is new."""
        for stage in stages:
            say(f"{side.name}: {stage.name}")
            place = self.folder / side.name.replace("/", "-").replace(" ", "-") / stage.name
            try:
                running = stack.enter_context(side.serve(stage, place))
            except (LeftOut, Failed) as why:
                self.leave_out(side.name, str(why))
                return
            self.report.sides.setdefault(side.name, SideFacts(side.store, side.is_ours, None))
            self._running[side.name, stage.name] = running

    def leave_out(self, side: str, why: str) -> None:
        say(f"left out: {side}: {why}")
        self.report.left_out[side] = why

    def run(self, sides: Sequence[Side], at: Sequence[Point], peers_max: Mapping[str, int]) -> None:
        """All rounds, after a moment on each server that is not counted."""
        cells = [
            (side, point)
            for point in at
            for side in sides
            if (side.name, point.stage.name) in self._running and takes_part(side, point, peers_max)
        ]
        servers = {(side.name, point.stage.name): (side, point) for side, point in cells}
        for side, point in servers.values() if self.extent.warm_up_seconds else ():
            self._measured(side, point, 0, self.extent.warm_up_seconds)
        before = max((run.round for run in self.report.runs), default=0)
        for number in range(before + 1, before + self.extent.rounds + 1):
            for side, point in cells if number % 2 else reversed(cells):
                run = self._measured(side, point, number, self.extent.seconds)
                if run is not None:
                    self.report.runs.append(run)
                    say(_line(run))
        for side, stage in {side: point.stage for side, point in cells if side.store != "none"}.items():
            if side.name not in self.report.left_out:  # last, because what was refused is written down some time later
                reuse = detects_reuse(self._running[side.name, stage.name])
                self.report.sides[side.name] = SideFacts(side.store, side.is_ours, reuse)

    def _measured(self, side: Side, point: Point, number: int, seconds: float) -> Run | None:
        """One run; None where a request failed, which leaves the side out from here on."""
        if side.name in self.report.left_out:
            return None
        running = self._running[side.name, point.stage.name]
        name = point.file
        if name is None:
            name = NEW
            (running.folder / NEW).write_text("\n".join(running.mint(1)) + "\n", "ascii")
        roots = [running.pid] if running.store_pid is None else [running.pid, running.store_pid]
        job = Job(
            running.port,
            running.path,
            running.form,
            str(running.folder / name),
            0,
            point.count,
            point.connections,
            seconds,
            processes=tuple(roots),
        )
        before = 0 if running.events is None else running.events()
        try:
            found = drive(job)
        except Failed as why:
            if side.is_ours:
                raise
            self.leave_out(side.name, str(why))
            return None
        if running.events is not None:
            written = running.events() - before
            assert written == 2 * found.answers, f"{written} events for {found.answers} answers"
        if side.store != "none" and found.kept:
            self.leave_out(side.name, f"it gave {found.kept} tokens back unchanged")
            return None
        return _run(side, point, number, found, resident_bytes(running.pid))


def _run(side: Side, point: Point, number: int, found: Found, memory_bytes: int) -> Run:
    server, store = found.used[0], found.used[1] if len(found.used) > 1 else Used()
    thousands = max(found.answers, 1) / 1000
    written = _stored_bytes(side, found)
    return Run(
        side=side.name,
        axis=point.axis,
        x=point.x,
        round=number,
        connections=point.connections,
        answers=found.answers,
        per_second=found.answers / found.seconds,
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        server_cpu_s=server.cpu_seconds / thousands,
        store_cpu_s=store.cpu_seconds / thousands,
        written_kb=None if written is None else written / 1000 / thousands,
        client_cpu_s=found.client_cpu_seconds / thousands,
        server_memory_mb=memory_bytes / 1_000_000,
    )


def _stored_bytes(side: Side, found: Found) -> int | None:
    """What was written into files: all that the store's processes wrote (PostgreSQL sends its answers, which does not
    count), or where the server is its own store, what it wrote beside its answers."""
    if side.store in ("none", "memory"):
        return None
    if len(found.used) > 1:
        return found.used[1].written_bytes
    own = found.used[0].written_bytes
    return None if own is None else own - found.received_bytes


def _line(run: Run) -> str:
    return (
        f"round {run.round}: {run.axis} {run.x:<8} {run.side:24} {run.per_second:7.0f}/s p50 {run.p50_ms:6.2f}"
        f" p99 {run.p99_ms:6.1f} ms CPU {run.server_cpu_s:.3f} + {run.store_cpu_s:.3f} client {run.client_cpu_s:.3f}"
    )


def detects_reuse(running: Running) -> bool:
    """Whether a retired token that comes back from somebody else, after its successor was used, ends what is current
    by then."""
    (first,) = running.mint(1)
    second = _refreshed(running, first)
    third = _refreshed(running, second or "")
    if third is None:
        raise Failed("a new grant cannot be refreshed twice")
    _refreshed(running, first, user_agent="somebody-else")
    return _refreshed(running, third) is None


def _refreshed(running: Running, token: str, user_agent: str = "bench") -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    form = f"grant_type=refresh_token&refresh_token={quote(token, safe='')}&{running.form}"
    headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": user_agent}
    connection.request("POST", running.path, form, headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return str(json.loads(body)["refresh_token"]) if answer.status == 200 else None


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def about(extent: Extent, cluster: Postgres | None) -> dict[str, str]:
    """Under which conditions it was measured, without naming the machine."""
    told = {
        "rounds": f"{extent.rounds} of {extent.seconds:g} s each",
        "machine": f"{os.cpu_count()} cores, Linux {platform.machine()}, Python {platform.python_version()}",
        "SQLite": f"{sqlite3.sqlite_version}; ours: write-ahead log, synchronous=FULL",
    }
    if cluster is not None:
        settings = cluster.settings()
        version = settings.pop("server_version")
        told["PostgreSQL"] = ", ".join([version, *(f"{name} = {value}" for name, value in settings.items())])
    return told


def write(report: Report, out: Path) -> None:
    """The three files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    (out / "peers.md").write_text(markdown(report), "utf-8")
    (out / "peers.svg").write_text(svg(report), "utf-8")


def sides_of(asked: argparse.Namespace, stack: ExitStack, measuring: Measuring) -> tuple[list[Side], Postgres | None]:
    """The sides that can be set up here; the others are told as left out."""
    sides: list[Side] = [OnSQLite(), Bare()]
    if asked.harness is None or asked.workdir is None:
        measuring.leave_out("peers", "--harness and --workdir name the harness of the peers and where it works")
        return sides, None
    harness = Harness(asked.harness.absolute(), asked.workdir.absolute())
    missing = harness.missing()
    if missing is not None:
        measuring.leave_out("peers", missing)
        return sides, None
    cluster = None
    try:
        cluster = stack.enter_context(harness.postgres())
        sides.insert(1, OnPostgreSQL(cluster))
    except LeftOut as why:
        measuring.leave_out("PostgreSQL", str(why))
    listed = harness.peers(cluster)
    for name in asked.peers:
        if name in listed:
            sides.append(listed[name])
        else:
            measuring.leave_out(name, "the harness does not list it")
    return sides, cluster


def measure(asked: argparse.Namespace, folder: Path) -> Report:
    """Everything that was asked for; only set up where it is to be prepared."""
    extent = Extent(asked.rounds, asked.seconds, asked.warm_up)
    at = points(asked.connections, asked.history, asked.grants)
    peers_max = {"history": asked.peer_history_max, "grants": asked.peer_grants_max}
    report = Report({}, {}, {}, [])
    if asked.add and (asked.out / "peers.json").exists():
        report = msgspec.json.decode((asked.out / "peers.json").read_bytes(), type=Report)
        report.left_out.clear()
    measuring = Measuring(folder, extent, report)
    with ExitStack() as stack:
        sides, cluster = sides_of(asked, stack, measuring)
        report.about |= about(extent, cluster)
        for side in sides:
            measuring.serve(stack, side, stages(side, at, peers_max))
        if not asked.prepare:
            measuring.run(sides, at, peers_max)
    return report


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--harness", type=Path, help="folder of the peers' harness")
    found.add_argument("--workdir", type=Path, help="folder that it has installed the peers in, outside the project")
    found.add_argument("--peers", nargs="*", default=PEERS, metavar="NAME", help=f"by default {' '.join(PEERS)}")
    found.add_argument("--out", type=Path, default=Path("build/peers"), help="folder of the three files: %(default)s")
    found.add_argument("--folder", type=Path, help="folder for stores, kept for the next run; else a temporary one")
    found.add_argument("--prepare", action="store_true", help="fill the stores in --folder and end")
    found.add_argument("--add", action="store_true", help="keep the runs that are in --out already")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--seconds", type=float, default=5.0, help="of each run: %(default)s")
    found.add_argument("--warm-up", type=float, default=2.0, help="seconds on each server that are not counted")
    for axis, default in POINTS.items():
        found.add_argument(f"--{axis}", nargs="*", type=int, default=default, metavar="N", help=AXES[axis])
    found.add_argument("--peer-history-max", type=int, default=100_000, help="the longest of a peer: %(default)s")
    found.add_argument("--peer-grants-max", type=int, default=100_000, help="the most of a peer: %(default)s")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table, the figures and the picture; progress goes to standard error."""
    asked = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as scratch:
        report = measure(asked, asked.folder or Path(scratch))
    if not asked.prepare:
        write(report, asked.out)
        say(f"{sum(counted(report).values())} answers; see {asked.out}/peers.md")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("ended by a signal"))  # and all servers with it
    main()
