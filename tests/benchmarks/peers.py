"""We and the peers on one machine: `python -m tests.benchmarks.peers --harness FOLDER --workdir FOLDER`.

Runs the ledger, a store-less endpoint and other authorization servers one after the other in every round: same machine,
same load client, same PostgreSQL, everything durable, server on one core, client and PostgreSQL on the other. Writes
`peers.md` (a table), `peers.json` (every run) and `peers.svg` (a picture): throughput, latency, CPU time and bytes
written, by connections, by the history of a grant and by the number of grants. Without a harness it runs us alone, on
SQLite: the PostgreSQL that all share is the harness's.

What a run needs is made first and kept in `--folder`; `--prepare` makes it and ends. After each run the ledger's store
must hold two events more for each answer, and every other answer must have given another token.
"""

import argparse
import os
import platform
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tests.benchmarks.peers_harness import Harness, Postgres
from tests.benchmarks.peers_report import AXES, Report, counted, markdown, svg
from tests.benchmarks.peers_rounds import SWEPT, Extent, Measuring, points, say, stages
from tests.benchmarks.peers_sides import Bare, LeftOut, OnPostgreSQL, OnSQLite, Side

OURS = (OnSQLite.name, OnPostgreSQL.name, Bare.name)
PEERS = (*SWEPT, "better-auth/pg", "authlib", "dot")
POINTS = {
    "connections": (1, 16, 64),
    "history": (1, 10_000, 100_000),
    "chains": (64, 1000, 100_000, 1_000_000),
    "grants": (64, 1000, 100_000, 1_000_000),
    "cold": (1000, 1_000_000),
}


def about(extent: Extent, cluster: Postgres | None) -> dict[str, str]:
    """Under which conditions it was measured, without naming the machine."""
    told = {
        "each run": f"{extent.seconds:g} s, after {extent.warm_up_seconds:g} s on each server that are not counted",
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
    (out / "peers.json").write_bytes(
        msgspec.json.encode(report).replace(b'{"side":', b'\n{"side":') + b"\n"
    )  # a run a line
    (out / "peers.md").write_text(markdown(report), "utf-8")
    (out / "peers.svg").write_text(svg(report), "utf-8")


def measured_before(out: Path) -> Report:
    """What lies there already."""
    return msgspec.json.decode((out / "peers.json").read_bytes(), type=Report)


def harness_of(asked: argparse.Namespace) -> tuple[Harness | None, str]:
    """The peers' harness, or None and what is missing of it."""
    if asked.harness is None or asked.workdir is None:
        return None, "--harness and --workdir name the harness of the peers and where it works"
    found = Harness(asked.harness.absolute(), asked.workdir.absolute())
    missing = found.missing()
    return (found, "") if missing is None else (None, missing)


def sides_of(asked: argparse.Namespace, stack: ExitStack, measuring: Measuring) -> tuple[list[Side], Postgres | None]:
    """The sides that can be set up here; the others are told as left out."""
    sides: list[Side] = [side for side in (OnSQLite(), Bare()) if side.name in asked.ours]
    harness, missing = harness_of(asked)
    if harness is None:
        if OnPostgreSQL.name in asked.ours:
            measuring.leave_out(OnPostgreSQL.name, "its PostgreSQL is the harness's, and there is no harness")
        measuring.leave_out("peers", missing)
        return sides, None
    cluster = None
    try:
        cluster = stack.enter_context(harness.postgres())
        if OnPostgreSQL.name in asked.ours:
            sides.insert(len(sides) - (Bare.name in asked.ours), OnPostgreSQL(cluster))
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
    """Everything that was asked for; only set up where it is to be prepared. Ends the program where nothing came of it,
    so that no figures are replaced by none."""
    extent = Extent(asked.rounds, asked.seconds, asked.warm_up)
    at = points(asked.connections, asked.history, asked.chains, asked.grants, asked.cold)
    of_grants = asked.peer_grants_max
    peers_max = {"history": asked.peer_history_max, "chains": of_grants, "grants": of_grants, "cold": 0}
    report = Report({}, {}, {}, [])
    if asked.add and (asked.out / "peers.json").exists():
        report = measured_before(asked.out)
        report.left_out.clear()
        report.sittings += 1
    before = len(report.runs)
    measuring = Measuring(folder, extent, report)
    with ExitStack() as stack:
        sides, cluster = sides_of(asked, stack, measuring)
        if not sides:
            sys.exit(f"no side is left that could be measured: nothing is written to {asked.out}")
        report.about |= about(extent, cluster)
        for side in sides:
            measuring.serve(stack, side, stages(side, at, peers_max))
        if asked.wait:
            say("all servers run; a line on standard input starts the first round")
            sys.stdin.readline()
        if not asked.prepare:
            measuring.run(sides, at, peers_max)
            if len(report.runs) == before:
                sys.exit(f"there was no run: nothing is written to {asked.out}")
    return report


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--harness", type=Path, help="folder of the peers' harness")
    found.add_argument("--workdir", type=Path, help="folder that it has installed the peers in, outside the project")
    ours = f"by default {', '.join(OURS)}"
    found.add_argument("--ours", nargs="*", choices=OURS, default=OURS, metavar="NAME", help=ours)
    found.add_argument("--peers", nargs="*", default=PEERS, metavar="NAME", help=f"by default {' '.join(PEERS)}")
    found.add_argument("--out", type=Path, default=Path("build/peers"), help="folder of the three files: %(default)s")
    found.add_argument("--folder", type=Path, help="folder for stores, kept for the next run; else a temporary one")
    found.add_argument("--prepare", action="store_true", help="fill the stores in --folder and end")
    found.add_argument("--wait", action="store_true", help="measure once a line comes, when the machine is quiet")
    found.add_argument("--add", action="store_true", help="keep the runs that are in --out already")
    found.add_argument("--redraw", action="store_true", help="measure nothing: table and picture anew from peers.json")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--seconds", type=float, default=5.0, help="of each run: %(default)s")
    # Node's servers take so long to get to their pace: after two seconds they had four fifths of it.
    found.add_argument("--warm-up", type=float, default=10.0, help="seconds, not counted: %(default)s")
    for axis, default in POINTS.items():
        found.add_argument(f"--{axis}", nargs="*", type=int, default=default, metavar="N", help=AXES[axis])
    found.add_argument("--peer-history-max", type=int, default=100_000, help="the longest of a peer: %(default)s")
    found.add_argument("--peer-grants-max", type=int, default=100_000, help="the most of a peer: %(default)s")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table, the figures and the picture; progress goes to standard error."""
    asked = parser().parse_args(arguments)
    if asked.redraw:
        if not (asked.out / "peers.json").exists():
            sys.exit(f"{asked.out / 'peers.json'}: there is none, so nothing can be drawn from it")
        write(measured_before(asked.out), asked.out)
        return
    with tempfile.TemporaryDirectory(prefix="token-ledger-bench-") as scratch:
        report = measure(asked, asked.folder or Path(scratch))
    if not asked.prepare:
        write(report, asked.out)
        say(f"{sum(counted(report).values())} answers; see {asked.out}/peers.md")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("ended by a signal"))  # and all servers with it
    main()
