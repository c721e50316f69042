"""The rounds of a measurement: what is varied, who takes part where, each side in turn, and what is checked of it."""

import http.client
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from tests.benchmarks.load import ALL_SECONDS_MAX
from tests.benchmarks.page_cache import read_in, read_in_anew
from tests.benchmarks.peers_load import Failed, Found, Job, drive
from tests.benchmarks.peers_processes import Used, resident_bytes
from tests.benchmarks.peers_report import Report, Run, SideFacts
from tests.benchmarks.peers_sides import NEW, TOKENS, LeftOut, Running, Side, Stage, rotated

SWEPT = ("oidc-provider/pg", "oidc-provider/sqlite", "node-oauth2-server/pg")
"""The peers that are measured by history and by grants too: the others would take hours there."""

CONNECTIONS_OF_GRANTS = 64


@dataclass(frozen=True)
class Point:
    """One load: what is varied, its value, on which stage, and with which tokens: `count` of them, every `apart`th;
    without `file`, with a new grant each time."""

    axis: str
    x: int
    stage: Stage
    connections: int
    count: int
    file: str | None = TOKENS
    apart: int = 1


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: float
    warm_up_seconds: float


def points(
    connections: Sequence[int],
    histories: Sequence[int],
    chains: Sequence[int],
    grants: Sequence[int],
    cold: Sequence[int],
) -> list[Point]:
    """All loads that are asked for, with the stages that they need."""
    found = []
    if connections:
        hot = Stage(0, "hot", max(connections))
        found += [Point("connections", each, hot, each, each) for each in sorted(connections)]
    if histories:
        aged = Stage(1, "aged", 1, tuple(sorted(each for each in histories if each > 1)))
        files = {each: rotated(each) if each > 1 else None for each in sorted(histories)}
        found += [Point("history", each, aged, 1, 1, file) for each, file in files.items()]
    for number, each in enumerate(sorted({*chains, *grants})):
        stage, at_once = Stage(2 + number, f"grants-{each}", each), min(each, CONNECTIONS_OF_GRANTS)
        if each in chains:
            found.append(Point("chains", each, stage, at_once, at_once, apart=each // at_once))
        if each in grants:
            found.append(Point("grants", each, stage, at_once, each))
    for number, each in enumerate(sorted(cold), 2 + len({*chains, *grants})):
        stage = Stage(number, f"cold-{each}", each, is_remembered=False)
        found.append(Point("cold", each, stage, min(each, CONNECTIONS_OF_GRANTS), each))
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
            read_in_anew(running.files())

    def leave_out(self, side: str, why: str) -> None:
        say(f"left out: {side}: {why}")
        self.report.left_out[side] = why

    def run(self, sides: Sequence[Side], at: Sequence[Point], peers_max: Mapping[str, int]) -> None:
        """All rounds, after a moment on each server that is not counted; where none is remembered, after each of them
        was refreshed once. A grant's first refresh, and the first change of a page after the system has read it in or
        after PostgreSQL's last check-point, cost what no later one does, and the few have that behind them at once."""
        cells = [
            (side, point)
            for point in at
            for side in sides
            if (side.name, point.stage.name) in self._running and takes_part(side, point, peers_max)
        ]
        servers = {(side.name, point.stage.name): (side, point) for side, point in cells}
        for side, point in servers.values() if self.extent.warm_up_seconds else ():
            if point.stage.is_remembered:
                self._measured(side, point, 0, self.extent.warm_up_seconds)
            else:
                self._measured(side, point, 0, ALL_SECONDS_MAX, answers_max=point.count)
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

    def _measured(
        self, side: Side, point: Point, number: int, seconds: float, *, answers_max: int | None = None
    ) -> Run | None:
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
            answers_max=answers_max,
            apart=point.apart,
            processes=tuple(roots),
        )
        read_in(running.files())
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
        foreign_cores=max(0.0, found.busy_seconds - (server + store).cpu_seconds - found.client_cpu_seconds)
        / found.seconds,
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
        f" others {run.foreign_cores:.2f} cores"
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
