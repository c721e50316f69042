"""What the runs say: medians, ratios within one round, a table in Markdown, and a picture."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from tests.benchmarks.peers_plot import Dots, Line, Lines, Look, Panel, picture

AXES = {
    "connections": "connections, each with a chain of its own",
    "history": "rotations that the grant has behind it, one connection",
    "chains": "grants in the store, 64 of them refreshed, far from each other",
    "grants": "grants in the store, all of them refreshed in shuffled order",
    "cold": "grants in the store, all of them refreshed in shuffled order, by servers that remember none of them",
}
"""What is varied, and what else is so meanwhile."""

QUIET_CORES = 0.3
"""With so many cores busy with anything else, a run says little."""

PROJECTS = {"dot": "django-oauth-toolkit", "oidc-provider": "node-oidc-provider"}
"""What those are called whose sides have a shorter name, without what comes after a slash."""

Spread: TypeAlias = tuple[float, float, float]
"""Median, least and greatest."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One side at one point in one round. CPU seconds and kilobytes are for 1,000 refreshes; `written_kb` is None where
    it may not be read. `foreign_cores` were busy with neither server, store nor client: a disturbed run shows."""

    side: str
    axis: str
    x: int
    round: int
    connections: int
    answers: int
    per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_s: float
    store_cpu_s: float
    written_kb: float | None
    client_cpu_s: float
    server_memory_mb: float
    foreign_cores: float

    @property
    def cpu_s(self) -> float:
        return self.server_cpu_s + self.store_cpu_s


class SideFacts(msgspec.Struct, frozen=True):
    """What a side is: on which store, ours or not, and whether a retired token that came back ended its family."""

    store: str
    is_ours: bool
    detects_reuse: bool | None


class Report(msgspec.Struct, omit_defaults=True):
    """Everything that was found, as it goes into the JSON file. `sittings` says how many times somebody measured: runs
    that were added later are of another hour."""

    about: dict[str, Any]
    sides: dict[str, SideFacts]
    left_out: dict[str, str]
    runs: list[Run]
    sittings: int = 1


Figure: TypeAlias = Callable[[Sequence[Run]], float | None]
"""One figure of the runs of a side at a point."""


class Cells:
    """The runs by point and side."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._runs: dict[tuple[str, int, str], list[Run]] = {}
        for run in report.runs:
            self._runs.setdefault((run.axis, run.x, run.side), []).append(run)

    def axes(self) -> list[str]:
        return [axis for axis in AXES if any(key[0] == axis for key in self._runs)]

    def points(self, axis: str) -> list[int]:
        return sorted({x for at, x, _ in self._runs if at == axis})

    def sides(self, axis: str, x: int) -> list[str]:
        """The sides of a point, ours first, then from the fastest on."""
        found = [side for side in self.report.sides if (axis, x, side) in self._runs]
        return sorted(found, key=lambda side: (not self._facts(side).is_ours, -self.median(axis, x, side, _per_second)))

    def runs(self, axis: str, x: int, side: str) -> list[Run]:
        return self._runs[axis, x, side]

    def median(self, axis: str, x: int, side: str, figure: Callable[[Run], float]) -> float:
        return statistics.median(map(figure, self._runs[axis, x, side]))

    def ratio(
        self, one: tuple[str, int, str], other: tuple[str, int, str], figure: Callable[[Run], float]
    ) -> Spread | None:
        """One cell's figure by another's, round by round; None where they have no round in common."""
        beside = {run.round: figure(run) for run in self._runs.get(other, ())}
        ratios = [figure(run) / beside[run.round] for run in self._runs.get(one, ()) if beside.get(run.round)]
        return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def fastest_peer(self, axis: str, x: int, *, detects_reuse: bool = False) -> str | None:
        """The durable peer with the greatest median throughput; of those alone that detect reuse, where asked for."""
        for side in self.sides(axis, x):
            facts = self._facts(side)
            is_peer = not facts.is_ours and facts.store not in ("none", "memory")
            if is_peer and (facts.detects_reuse or not detects_reuse):
                return side
        return None

    def bare(self, axis: str, x: int) -> str | None:
        return next((side for side in self.sides(axis, x) if self._facts(side).store == "none"), None)

    def _facts(self, side: str) -> SideFacts:
        return self.report.sides[side]


def _per_second(run: Run) -> float:
    return run.per_second


def _cpu(run: Run) -> float:
    return run.cpu_s


def _p99(run: Run) -> float:
    return run.p99_ms


def _memory(run: Run) -> float:
    return run.server_memory_mb


def _written(runs: Iterable[Run]) -> float | None:
    known = [run.written_kb for run in runs if run.written_kb is not None]
    return statistics.median(known) if known else None


# ---------------------------------------------------------------- the table


def markdown(report: Report) -> str:
    """The verdict, a table for each axis, and under which conditions."""
    cells = Cells(report)
    parts = ["# Durable refreshes beside the peers", *verdicts(cells)]
    for axis in cells.axes():
        parts += [f"## By {AXES[axis]}", "\n".join(_table(cells, axis))]
    parts += ["## Conditions", "\n".join(_conditions(report))]
    return "\n\n".join(parts) + "\n"


def verdicts(cells: Cells) -> list[str]:
    """What each of ours is beside the bare endpoint and the fastest peers, at the greatest number of connections."""
    points = cells.points("connections")
    if not points:
        return []
    x = points[-1]
    ours = [side for side in cells.sides("connections", x) if cells.report.sides[side].is_ours]
    return ["\n".join([f"- **{side}**, {x} connections: {each}" for side in ours for each in _verdict(cells, side, x)])]


def _verdict(cells: Cells, side: str, x: int) -> list[str]:
    at = "connections"
    peers = (cells.fastest_peer(at, x), cells.fastest_peer(at, x, detects_reuse=True))
    names = {peers[0]: "the fastest peer", peers[1]: "the fastest that detects reuse"}
    if peers[0] == peers[1]:
        names = {peers[0]: "the fastest peer, which detects reuse"}
    told = []
    for other, what in ((cells.bare(at, x), "a store-less endpoint"), *names.items()):
        if other is None:
            continue
        throughput, cpu, tail = (
            cells.ratio((at, x, side), (at, x, other), figure) for figure in (_per_second, _cpu, _p99)
        )
        assert throughput is not None
        shares = [f"{of[0]:.2f} of its {name}" for of, name in ((cpu, "CPU time"), (tail, "p99")) if of is not None]
        told.append(f"{_spread(throughput)} times the refreshes of {other} ({what}), {' and '.join(shares)}")
    return told


def _table(cells: Cells, axis: str) -> list[str]:
    first = cells.points(axis)[0]
    relative = "of bare" if axis == "connections" else f"of its own at {first:,}"
    lines = [
        f"| {axis} | server | store | detects reuse | refreshes/s | {relative} | of the fastest peer | p50 ms | p99 ms"
        " | CPU s (server + store) | kB written | memory MB |",
        "|---:|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for x in cells.points(axis):
        for side in cells.sides(axis, x):
            here, facts, runs = (axis, x, side), cells.report.sides[side], cells.runs(axis, x, side)
            other = cells.bare(axis, x) if axis == "connections" else side
            to_other = cells.ratio(here, (axis, x if axis == "connections" else first, other or ""), _per_second)
            to_peer = cells.ratio(here, (axis, x, cells.fastest_peer(axis, x) or ""), _per_second)
            server, store = (cells.median(*here, lambda run: run.server_cpu_s), cells.median(*here, _store_cpu))
            cpu = cells.median(*here, _cpu)  # of the sums, as the verdicts have it: medians do not add up
            written = _written(runs)
            row = (
                f"{x:,}",
                f"**{side}**" if facts.is_ours else side,
                facts.store,
                {True: "yes", False: "no", None: ""}[facts.detects_reuse],
                f"{cells.median(*here, _per_second):,.0f}",
                _spread(to_other),
                _spread(to_peer),
                f"{cells.median(*here, lambda run: run.p50_ms):.2f}",
                f"{cells.median(*here, _p99):.1f}",
                f"{cpu:.3f} ({server:.3f} + {store:.3f})",
                "" if written is None else f"{written:,.0f}",
                f"{cells.median(*here, _memory):.0f}",
            )
            lines.append("| " + " | ".join(row) + " |")
    return lines


def _store_cpu(run: Run) -> float:
    return run.store_cpu_s


def _spread(found: Spread | None) -> str:
    return "" if found is None else f"{found[0]:.2f} [{found[1]:.2f}–{found[2]:.2f}]"


def _rounds(report: Report) -> str:
    """How many there were along each axis: rounds that are added need not be along all of them, nor of all sides."""
    told = []
    for axis in AXES:
        counted = Counter((run.side, run.x) for run in report.runs if run.axis == axis).values()
        if counted:
            least, most = min(counted), max(counted)
            told.append(f"{axis} {most}" if least == most else f"{axis} {least} to {most}")
    return ", ".join(told)


def _program(side: str) -> str:
    return side.partition("/")[0]


def _conditions(report: Report) -> list[str]:
    lines = [
        f"- Medians of all rounds ({_rounds(report)}); ratios are medians of those within one round, with the least and"
        " the greatest.",
        "- CPU seconds and kilobytes are for 1,000 refreshes. Written is what the store's processes gave to the file"
        " system while they were loaded; what PostgreSQL writes at a later check-point is not in it, SQLite's is.",
        "- Server on one core, load client and PostgreSQL on the other, where there are two; all sides one after the"
        " other in each round, every second round the other way round. The files of each store were read in before.",
    ]
    if report.sittings > 1:
        lines.append(
            "- Axes were measured at different hours, on a machine of changing speed: compare within an axis only."
        )
    lines += [f"- {name}: {value}" for name, value in report.about.items()]
    foreign = [run.foreign_cores for run in report.runs]
    if foreign:
        disturbed = sum(each > QUIET_CORES for each in foreign)
        lines.append(
            f"- cores busy with anything else meanwhile: {statistics.median(foreign):.2f} in the median run,"
            f" {max(foreign):.2f} at most; well below {QUIET_CORES} the machine was quiet, above it the ratios say"
            f" little (in {disturbed} of {len(foreign)} runs it was above {QUIET_CORES})"
        )
    meant = [
        f"{short} is {name}" for short, name in PROJECTS.items() if any(_program(s) == short for s in report.sides)
    ]
    if meant:
        lines.append(f"- Names: {', '.join(meant)}")
    lines += [f"- Left out: {side}: {why}" for side, why in report.left_out.items()]
    return lines


# ---------------------------------------------------------------- the picture


def _median_of(figure: Callable[[Run], float]) -> Figure:
    return lambda runs: statistics.median(map(figure, runs))


AT_MOST_CONNECTIONS: tuple[tuple[str, Figure], ...] = (
    ("refreshes a second, {} connections", _median_of(_per_second)),
    ("p99 in ms, {} connections (less is better)", _median_of(_p99)),
    ("CPU seconds for 1,000, server and store (less is better)", _median_of(_cpu)),
    ("kB written for 1,000 (less is better)", _written),
    ("memory of the server in MB (less is better)", _median_of(_memory)),
)
ALONG = {
    "history": "rotations behind the grant, one connection",
    "chains": "grants in the store, 64 refreshed, 64 connections",
    "grants": "grants in the store, all refreshed, 64 connections",
    "cold": "grants in the store, all refreshed, none remembered",
}
NAMES = {"bare Starlette endpoint": "bare endpoint, no store", "dot": PROJECTS["dot"]}
"""What sides are called where there is room for a name alone."""


def svg(report: Report) -> str:
    """All sides at the greatest number of connections; throughput along histories, and along numbers of grants of which
    few or all are refreshed, the last time by servers that remember none."""
    cells = Cells(report)
    counts = sorted(Counter((run.axis, run.x, run.side) for run in report.runs).values()) or [0]
    rounds = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    title = f"Refreshes on one machine, medians of {rounds} rounds. Hollow and dashed: no durable store"
    panels: list[Panel] = []
    for most in cells.points("connections")[-1:]:
        for what, figure in AT_MOST_CONNECTIONS:
            values = {side: y for side, _, y in _values(cells, "connections", [most], figure)}
            panels.append(Dots(what.format(most), values))
    for axis, across in ALONG.items():
        lines: dict[str, Line] = {}
        for side, x, y in _values(cells, axis, cells.points(axis), _median_of(_per_second)):
            lines.setdefault(side, []).append((x, y))
        if len(cells.points(axis)) > 1:
            panels.append(Lines("refreshes a second", across, lines))
    looks = {side: _look(side, facts) for side, facts in sorted(report.sides.items(), key=_ours_first)}
    return picture(title, panels, looks)


def _values(cells: Cells, axis: str, points: Sequence[int], figure: Figure) -> Iterator[tuple[str, int, float]]:
    """What is known of each side at these points; ours first, then from the fastest on."""
    for x in points:
        for side in cells.sides(axis, x):
            y = figure(cells.runs(axis, x, side))
            if y:
                yield side, x, y


def _look(side: str, facts: SideFacts) -> Look:
    name = NAMES.get(side, side)
    store = {"PostgreSQL": "pg", "SQLite": "sqlite"}.get(facts.store, facts.store)
    return Look(
        name if "/" in side or facts.store == "none" else f"{name}/{store}",
        is_thick=facts.is_ours,
        is_dashed=facts.store in ("none", "memory"),
    )


def _ours_first(item: tuple[str, SideFacts]) -> tuple[bool, bool]:
    return not item[1].is_ours, item[1].store != "none"


def counted(report: Report) -> Mapping[str, int]:
    """How many answers each side gave in all."""
    answers: dict[str, int] = {}
    for run in report.runs:
        answers[run.side] = answers.get(run.side, 0) + run.answers
    return answers
