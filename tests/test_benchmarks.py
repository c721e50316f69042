"""The benchmark beside the peers says what was counted: with tiny counts, and with no claim about speed."""

import asyncio
import re
import sqlite3
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest

from tests.benchmarks import peers, peers_load
from tests.benchmarks.peers_plot import Dots, Lines, Look, picture
from tests.benchmarks.peers_report import ALONG, Cells, Report, Run, SideFacts, markdown
from tests.benchmarks.peers_rounds import Extent, Measuring, points
from tests.benchmarks.peers_sides import TOKENS, OnSQLite, Running, Stage, taken
from tests.server_process import free_port

SVG = "{http://www.w3.org/2000/svg}"
MEASURED = Path(__file__).parent / "benchmarks" / "measured"
AT_DIFFERENT_HOURS = (
    "- Axes were measured at different hours, on a machine of changing speed: compare within an axis only.\n"
)
TINY = ["--rounds", "2", "--seconds", "0.1", "--warm-up", "0", "--connections", "2"]

PEER = '''
import hashlib, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

class Peer(BaseHTTPRequestHandler):
    """Rotates what it is given, tells no lengths, keeps nothing. `keeps` gives the same token back."""
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        assert form["client_id"] == ["pub"]
        (token,) = form["refresh_token"]
        if sys.argv[1] != "keeps":
            token = hashlib.sha256(token.encode()).hexdigest()
        self.answer('{"access_token": "a", "refresh_token_timeout": 1, "refresh_token": "%s"}' % token)

    def do_GET(self):
        count = int(parse_qs(urlsplit(self.path).query)["n"][0])
        self.answer("\\n".join(f"{number:08d}" for number in range(count)))

    def answer(self, text):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\\r\\n%s\\r\\n0\\r\\n\\r\\n" % (len(text), text.encode()))

    def log_message(self, *arguments):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Peer).serve_forever()
'''


@pytest.fixture
def harness(tmp_path: Path) -> list[str]:
    """A harness of three peers: one that rotates, one that does not, one whose server does not start; no PostgreSQL."""
    folder = tmp_path / "harness"
    folder.mkdir()
    (folder / "peer.py").write_text(PEER)
    (folder / "pg.sh").write_text("#!/bin/sh\necho 'no PostgreSQL here' >&2\nexit 1\n")
    (folder / "pg.sh").chmod(0o755)
    rotates, keeps, broken = free_port(), free_port(), free_port()
    listed = dedent(f"""
        declare -A URL MINT FORM PGUSE START
        def() {{ URL[$1]="http://127.0.0.1:$2"; MINT[$1]="$3"; FORM[$1]="$4"; PGUSE[$1]="$5"; START[$1]="$6"; }}
        def rotates {rotates}/token "curl -s 'http://127.0.0.1:{rotates}/mint?n={{n}}'" "&client_id=pub" 0 \
            "exec python3 peer.py rotates {rotates}"
        def keeps {keeps}/token "curl -s 'http://127.0.0.1:{keeps}/mint?n={{n}}'" "&client_id=pub" 0 \
            "exec python3 peer.py keeps {keeps}"
        def broken {broken}/token "false" "" 0 "echo 'it lacks a library'; exit 1"
        """)
    (folder / "peers.sh").write_text(listed)
    return ["--harness", str(folder), "--workdir", str(tmp_path)]


def measured(out: Path, *arguments: str) -> Report:
    peers.main([*TINY, "--out", str(out), *arguments])
    return msgspec.json.decode((out / "peers.json").read_bytes(), type=Report)


def rows(table: str) -> list[list[str]]:
    """The cells of all rows that begin with a number."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if re.match(r"\| \d", line)]


def test_without_a_harness_it_measures_us_and_says_what_is_missing(tmp_path: Path, full: bool) -> None:
    """Table, figures and picture come out: a row for each side and point, a run for each of its rounds."""
    if not full:
        pytest.skip("its servers take long to start")
    told = measured(tmp_path / "out", "--history", "1", "30", "--chains", "70", "--grants", "70", "--cold", "70")
    drawn = (tmp_path / "out" / "peers.svg").read_bytes()
    peers.main(["--redraw", "--out", str(tmp_path / "out")])
    assert drawn == (tmp_path / "out" / "peers.svg").read_bytes()
    ours, bare = "token-ledger/sqlite", "bare Starlette endpoint"
    expected = [("connections", 2, side) for side in (ours, bare)]
    expected += [
        (axis, x, ours) for axis, x in (("history", 1), ("history", 30), ("chains", 70), ("grants", 70), ("cold", 70))
    ]
    assert sorted(expected * 2) == sorted((run.axis, run.x, run.side) for run in told.runs)
    assert {1, 2} == {run.round for run in told.runs}
    assert all(run.answers >= run.connections for run in told.runs)
    assert all(run.server_memory_mb > 1 for run in told.runs)
    assert all((run.written_kb or 0) > 1 for run in told.runs if run.side == ours)
    assert {ours: SideFacts("SQLite", True, True), bare: SideFacts("none", False, None)} == told.sides
    assert ["token-ledger/pg", "peers"] == list(told.left_out)
    table = (tmp_path / "out" / "peers.md").read_text("utf-8")
    assert sorted((str(x), f"**{side}**" if side == ours else side) for _, x, side in expected) == sorted(
        (row[0], row[1]) for row in rows(table)
    )
    assert "- Left out: peers: --harness and --workdir name" in table
    root = ElementTree.parse(tmp_path / "out" / "peers.svg").getroot()
    assert 1 == len(root.findall(f".//{SVG}polyline")), "only along histories is there more than one point, of ours"
    titles = [each.text for each in root.iter(f"{SVG}text") if each.attrib.get("class") == "ink"]
    assert ["refreshes a second, 2 connections", "refreshes a second"] == titles[1:2] + titles[-1:]


def test_peers_take_part_where_they_can_and_are_left_out_with_a_line_where_not(
    tmp_path: Path, harness: list[str], full: bool
) -> None:
    """A server that does not start, one that rotates nothing, a name that is not listed: the others are measured."""
    if not full:
        pytest.skip("its many servers take long to start")
    names = ["--peers", "rotates", "keeps", "broken", "unheard-of"]
    told = measured(tmp_path / "out", "--history", "--chains", "--grants", "--cold", *harness, *names)
    assert {"token-ledger/sqlite", "bare Starlette endpoint", "rotates"} == {run.side for run in told.runs}
    assert SideFacts("memory", False, False) == told.sides["rotates"]
    expected = {
        "PostgreSQL": "no PostgreSQL here",
        "broken": "its server ended: it lacks a library",
        "unheard-of": "the harness does not list it",
    }
    assert re.fullmatch(r"it gave \d+ tokens back unchanged", told.left_out.pop("keeps"))
    assert expected == told.left_out


def test_more_rounds_are_added_to_those_that_were_measured(tmp_path: Path, full: bool) -> None:
    """What was prepared is used again, and a later round is compared with its own round only."""
    if not full:
        pytest.skip("its many servers take long to start")
    kept = ["--history", "--chains", "--grants", "--cold", "--folder", str(tmp_path / "kept")]
    peers.main([*TINY, "--out", str(tmp_path / "out"), *kept, "--prepare"])
    assert not (tmp_path / "out").exists()
    prepared = (tmp_path / "kept" / "token-ledger-sqlite" / "hot" / TOKENS).read_text()
    measured(tmp_path / "out", *kept, "--add")
    assert AT_DIFFERENT_HOURS not in (tmp_path / "out" / "peers.md").read_text("utf-8")
    told = measured(tmp_path / "out", *kept, "--add", "--ours", OnSQLite.name)
    assert AT_DIFFERENT_HOURS in (tmp_path / "out" / "peers.md").read_text("utf-8")
    assert [(1, 2), (2, 2), (3, 1), (4, 1)] == sorted(Counter(run.round for run in told.runs).items())
    walked = (tmp_path / "kept" / "token-ledger-sqlite" / "hot" / TOKENS).read_text()
    assert 2 == len(prepared.split()) == len(walked.split())
    assert not set(prepared.split()) & set(walked.split())


def test_a_stage_whose_run_was_broken_off_is_filled_anew(tmp_path: Path) -> None:
    """Its tokens are out of their file until they are put back: some have been rotated."""
    stage, place = Stage(0, "hot", 2), tmp_path / "hot"
    assert stage.begin(place)
    (place / TOKENS).write_text("one\ntwo\n")
    assert not stage.begin(place)
    assert ["one", "two"] == taken(place)
    assert stage.begin(place)


def test_a_stage_that_holds_less_than_is_asked_for_is_filled_anew(tmp_path: Path) -> None:
    for asked in (Stage(0, "hot", 3), Stage(0, "hot", 2, (10,))):
        place = tmp_path / "hot"
        place.mkdir()
        (place / TOKENS).write_text("one\ntwo\n")
        assert not replace(asked, grants=2, histories=()).begin(place)
        assert asked.begin(place)
        place.rmdir()  # which would not go if anything were in it


@pytest.mark.anyio
async def test_tokens_are_out_of_their_file_while_they_are_rotated(tmp_path: Path) -> None:
    """The load client's own: at each request the file is gone, after the last answer it holds the successor."""
    file, was_there = tmp_path / TOKENS, set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                was_there.add(file.exists())
                body = b'{"refresh_token": "next"}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    file.write_text("first\n")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await peers_load.run(peers_load.Job(port, "/", "", str(file), 0, 1, 1, 60, answers_max=2))
    assert 2 == found.answers
    assert {False} == was_there
    assert "next\n" == file.read_text()


def test_events_that_are_not_two_for_each_answer_end_the_measurement(tmp_path: Path) -> None:
    """The broken twin of the count after each run: a store that holds less than was answered for."""

    class Forgetful(OnSQLite):
        @contextmanager
        def serve(self, stage: Stage, folder: Path) -> Iterator[Running]:
            with super().serve(stage, folder) as running:
                events = running.events
                assert events is not None
                yield replace(running, events=lambda: events() // 2)

    at = points([2], [], [], [], [])
    measuring = Measuring(tmp_path, Extent(1, 0.1, 0), Report({}, {}, {}, []))
    with ExitStack() as stack:
        measuring.serve(stack, Forgetful(), [at[0].stage])
        with pytest.raises(AssertionError, match=r"\d+ events for \d+ answers"):
            measuring.run([Forgetful()], at, {})


@pytest.mark.parametrize("is_remembered", [False, True], ids=["each", "a moment"])
def test_each_grant_is_refreshed_before_those_count_that_nobody_remembers(tmp_path: Path, is_remembered: bool) -> None:
    """The few have their first refreshes behind them at once, so the many have, too. The broken twin is a moment, as
    long as grants are remembered: then others are met for the first time while it counts."""
    (point,) = points([], [], [], [], [3000])
    point = replace(point, stage=replace(point.stage, is_remembered=is_remembered))
    measuring = Measuring(tmp_path, Extent(0, 0.1, 0.1), Report({}, {}, {}, []))
    with ExitStack() as stack:
        measuring.serve(stack, OnSQLite(), [point.stage])
        measuring.run([OnSQLite()], [point], {})
    (database,) = tmp_path.glob("*/*/token-ledger.db")
    with closing(sqlite3.connect(database)) as connection:
        ((never,),) = connection.execute("SELECT count(*) FROM streams WHERE generation = 0")
    assert (never > 0) is is_remembered


def test_the_table_holds_medians_and_ratios_within_a_round() -> None:
    """Three rounds by hand: the median of the ratios is not the ratio of the medians."""
    rates = {"ours": (100, 300, 200), "fast": (50, 100, 200), "safe": (10, 30, 40), "bare": (200, 200, 100)}
    runs = [
        Run(
            side=side,
            axis="connections",
            x=64,
            round=number + 1,
            connections=64,
            answers=rate,
            per_second=rate,
            p50_ms=1,
            p99_ms=1000 / rate,
            server_cpu_s=10 / rate,
            store_cpu_s=0 if side in ("ours", "bare") else 10 / rate,
            written_kb=None if side == "bare" else 2,
            client_cpu_s=0,
            server_memory_mb=50,
            foreign_cores=number / 10,
        )
        for side, all_rates in rates.items()
        for number, rate in enumerate(all_rates)
    ]
    sides = {
        "ours": SideFacts("SQLite", True, True),
        "safe": SideFacts("PostgreSQL", False, True),
        "fast": SideFacts("PostgreSQL", False, False),
        "bare": SideFacts("none", False, None),
    }
    table = markdown(Report({"each run": "4 s"}, sides, {"slow": "no reason"}, runs))
    assert [
        "- **ours**, 64 connections: 1.50 [0.50–2.00] times the refreshes of bare (a store-less endpoint),"
        " 0.67 of its CPU time and 0.67 of its p99",
        "- **ours**, 64 connections: 2.00 [1.00–3.00] times the refreshes of fast (the fastest peer),"
        " 0.25 of its CPU time and 0.50 of its p99",
        "- **ours**, 64 connections: 10.00 [5.00–10.00] times the refreshes of safe (the fastest that detects reuse),"
        " 0.05 of its CPU time and 0.10 of its p99",
    ] == [line for line in table.splitlines() if line.startswith("- **ours**")]
    fast = "2.00 [1.00–3.00]"
    assert ["64", "**ours**", "SQLite", "yes", "200", "1.50 [0.50–2.00]", fast, "1.00", "5.0"] == rows(table)[0][:9]
    assert ["0.050 (0.050 + 0.000)", "2", "50"] == rows(table)[0][9:]
    assert ["**ours**", "bare", "fast", "safe"] == [row[1] for row in rows(table)]
    assert ["64", "safe", "PostgreSQL", "yes", "30", "0.15 [0.05–0.40]"] == rows(table)[3][:6]
    assert "- Left out: slow: no reason" in table
    assert "- Medians of all rounds (connections 3); " in table
    added = markdown(Report({}, sides, {}, [*runs, msgspec.structs.replace(runs[0], round=9)]))
    assert "- Medians of all rounds (connections 3 to 4); " in added
    assert "meanwhile: 0.10 in the median run, 0.20 at most" in table
    assert "above it the ratios say little (in 0 of 12 runs it was above 0.3)" in table
    assert "- Names:" not in table


def test_the_table_tells_the_median_of_sums_how_often_others_worked_and_who_is_meant() -> None:
    """The median of server and store together, which their medians need not add up to; two of three runs disturbed."""
    runs = [
        Run(
            side="dot",
            axis="connections",
            x=64,
            round=number + 1,
            connections=64,
            answers=1,
            per_second=1,
            p50_ms=1,
            p99_ms=1,
            server_cpu_s=server,
            store_cpu_s=store,
            written_kb=None,
            client_cpu_s=0,
            server_memory_mb=50,
            foreign_cores=foreign,
        )
        for number, (server, store, foreign) in enumerate([(1, 5, 0.3), (2, 1, 0.31), (3, 2, 0.5)])
    ]
    sides = {"dot": SideFacts("PostgreSQL", False, True), "oidc-provider/pg": SideFacts("PostgreSQL", False, True)}
    table = markdown(Report({}, sides, {}, runs))
    assert "5.000 (2.000 + 2.000)" == rows(table)[0][9]
    assert "(in 2 of 3 runs it was above 0.3)" in table
    assert "- Names: dot is django-oauth-toolkit, oidc-provider is node-oidc-provider\n" in table


@pytest.mark.parametrize("sittings", [1, 2])
def test_the_table_says_where_its_axes_are_of_different_hours(tmp_path: Path, sittings: int) -> None:
    """Runs that were added later are: what is stored says so, and so does whatever is drawn of it again."""
    peers.write(Report({}, {}, {}, [], sittings), tmp_path)
    peers.main(["--redraw", "--out", str(tmp_path)])
    assert (sittings > 1) == (AT_DIFFERENT_HOURS in (tmp_path / "peers.md").read_text("utf-8"))


def _no_harness(tmp_path: Path) -> list[str]:
    return ["--harness", str(tmp_path / "no"), "--workdir", str(tmp_path)]


@pytest.mark.parametrize("harness", [lambda _: [], _no_harness], ids=["not named", "not there"])
@pytest.mark.parametrize("more", [[], ["--add"], ["--prepare"], ["--wait"]], ids=lambda more: "".join(more) or "alone")
def test_what_was_measured_before_stays_where_the_only_side_needs_a_harness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harness: Callable[[Path], list[str]], more: list[str]
) -> None:
    """PostgreSQL's side by itself: one line says that it is left out and why, and the program ends with 1."""
    out = tmp_path / "out"
    peers.write(Report({}, {}, {}, []), out)
    (out / "peers.svg").write_text("drawn before")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit) as ended:
        peers.main([*TINY, "--out", str(out), "--ours", "token-ledger/pg", *harness(tmp_path), *more])
    assert f"no side is left that could be measured: nothing is written to {out}" == ended.value.code
    why = "its PostgreSQL is the harness's, and there is no harness"
    assert f"left out: token-ledger/pg: {why}" in capsys.readouterr().err.splitlines()
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_what_was_measured_before_stays_where_there_was_no_run(tmp_path: Path) -> None:
    """A side, and no point at which it could be measured."""
    peers.write(Report({}, {}, {}, []), tmp_path)
    (tmp_path / "peers.svg").write_text("drawn before")
    nothing = ["--connections", "--history", "--chains", "--grants", "--cold"]
    with pytest.raises(SystemExit) as ended:
        peers.main(["--out", str(tmp_path), "--ours", "token-ledger/sqlite", *nothing])
    assert f"there was no run: nothing is written to {tmp_path}" == ended.value.code
    assert "drawn before" == (tmp_path / "peers.svg").read_text()


def test_a_store_that_there_is_not_is_no_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It measured nothing and said so by nothing but an empty table."""
    with pytest.raises(SystemExit) as ended:
        peers.main([*TINY, "--out", str(tmp_path / "out"), "--ours", "sqlite"])
    assert 2 == ended.value.code
    assert "argument --ours: invalid choice: 'sqlite' (choose from " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path: Path) -> None:
    """One line that names the file, no traceback."""
    with pytest.raises(SystemExit) as ended:
        peers.main(["--redraw", "--out", str(tmp_path / "no")])
    assert f"{tmp_path / 'no' / 'peers.json'}: there is none, so nothing can be drawn from it" == ended.value.code


def test_the_table_and_the_picture_are_those_of_the_stored_figures(tmp_path: Path) -> None:
    """What the README shows is drawn of what was measured, and everything measured along several points is drawn."""
    names = ("peers.json", "peers.md", "peers.svg")
    stored = {name: (MEASURED / name).read_bytes() for name in names}
    (tmp_path / "peers.json").write_bytes(stored["peers.json"])
    peers.main(["--redraw", "--out", str(tmp_path)])
    assert stored == {name: (tmp_path / name).read_bytes() for name in names}
    cells = Cells(msgspec.json.decode(stored["peers.json"], type=Report))
    along = {axis for axis in cells.axes() if len(cells.points(axis)) > 1}
    assert {"history", "chains", "grants", "cold"} == along == {*ALONG}
    root = ElementTree.fromstring(stored["peers.svg"])
    below = {each.text for each in root.iter(f"{SVG}text") if each.attrib.get("class") == "quiet"}
    assert set(ALONG.values()) <= below


def test_the_picture_puts_each_value_where_it_belongs() -> None:
    """Logarithmic both ways: half the way up is the geometric mean, and no label covers another."""
    lines = {"a": [(1.0, 10.0), (100.0, 1000.0)], "b": [(10.0, 100.0)], "c": [(100.0, 990.0)]}
    looks = {"a": Look("A & a", is_thick=True), "b": Look("B", is_dashed=True), "c": Look("C")}
    root = ElementTree.fromstring(picture("all < one", [Lines("x < y", "across", lines)], looks))
    drawn = {each.attrib["class"]: each for each in root.iter(f"{SVG}g") if "class" in each.attrib}
    a, b, c = (drawn[f"s{number}"].find(f"{SVG}polyline") for number in range(3))
    assert a is not None
    assert b is not None
    assert c is not None
    (left, low), (right, high) = (tuple(map(float, point.split(","))) for point in a.attrib["points"].split())
    assert f"{(left + right) / 2},{(low + high) / 2}" == b.attrib["points"]
    assert left < right
    assert high < low
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert 0 < left < right < width
    assert 0 < high < low < height
    texts = {each.text: float(each.attrib["y"]) for each in root.iter(f"{SVG}text")}
    assert {"all < one", "x < y", "across", "A & a", "B", "C", "10", "20", "500", "1,000"} <= set(texts)
    assert min(abs(texts["A & a"] - texts["C"]), abs(texts["A & a"] - texts["B"])) >= 13
    assert ["3", "1.5", "1.5"] == [each.attrib["stroke-width"] for each in (a, b, c)]
    assert [False, True, False] == ["stroke-dasharray" in each.attrib for each in (a, b, c)]


def test_dots_stand_in_the_order_given_and_say_their_values() -> None:
    """Logarithmic: from one to ten is as far as from ten to a hundred; hollow where nothing is durable."""
    values = {"a": 1.0, "b": 10.0, "c": 100.0}
    looks = {"a": Look("A", is_thick=True), "b": Look("B", is_dashed=True), "c": Look("C")}
    root = ElementTree.fromstring(picture("", [Dots("x < y", values)], looks))
    a, b, c = root.iter(f"{SVG}circle")
    left, middle, right = (float(each.attrib["cx"]) for each in (a, b, c))
    assert 0 < left < middle < right
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    assert float(a.attrib["cy"]) < float(b.attrib["cy"]) < float(c.attrib["cy"])
    assert [None, "none", None] == [each.attrib.get("fill") for each in (a, b, c)]
    texts = [each.text for each in root.iter(f"{SVG}text") if "class" not in each.attrib]
    assert ["A", "1.00", "B", "10.0", "C", "100"] == texts
