"""What measures nodes, latency, memory and cold stores counts right: real servers, tiny counts, no claim on speed."""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from tests.benchmarks import cold, load, memory, page_cache, refresh, sizes
from tests.benchmarks.latency import Round, line, measure, on_postgres, on_sqlite
from tests.benchmarks.nodes import TRIALS, Extent, Measured, check_events, told
from tests.benchmarks.nodes_load import Contest, Found, Loaded
from tests.postgres import Server as Postgres

pytestmark = pytest.mark.anyio

TINY = Extent(rounds=1, seconds=0.1, connections=4, grants=10)
SIDES = {
    "contested": ["none contested", "one contested"],
    "workers": ["one worker", "two workers"],
    "alternate": ["each at its node", "alternately"],
    "met": ["cold", "again", "elsewhere", "back"],
}


@pytest.mark.parametrize("name", SIDES)
def test_each_trial_of_nodes_counts_the_events_of_all_its_answers(
    tmp_path: Path, postgres: Postgres, name: str, full: bool
) -> None:
    """Real nodes on one PostgreSQL; each run has checked itself what the store holds more than before."""
    if not full:
        pytest.skip("its servers take long to start")
    trial, beside = TRIALS[name]
    found = trial(postgres, tmp_path, TINY)
    assert SIDES[name] == list(found)
    assert beside in found
    for runs in found.values():
        assert 1 == len(runs)
        assert 4 <= runs[0].answers < runs[0].events
        assert 0 < runs[0].p50_ms <= runs[0].p99_ms
    if name == "contested":
        (without,), (wanted,) = found.values()
        assert 2 * without.answers == without.events
        assert 2 * wanted.answers < wanted.events + wanted.answers < 3 * wanted.answers, "a retry is one event"
    if name == "met":
        assert [10] * 4 == [runs[0].answers for runs in found.values()]
    assert len(told(name, beside, found)) >= 2 * len(found)


@pytest.mark.parametrize("events", [26, 28])
def test_another_number_of_events_than_the_answers_account_for_is_caught(events: int) -> None:
    """Ten rotations of one's own, two that two wanted: 24 events, and one for each of three answers that came again."""
    own, contested = Loaded(10, 10, 1, 1, []), Loaded(5, 2, 1, 1, [])
    found = Found([own, contested], 1, 0, 0, "")
    check_events(27, found)
    with pytest.raises(AssertionError, match=f"{events} events for 12 rotations and 15 answers"):
        check_events(events, found)


async def test_two_successors_of_one_token_end_the_run() -> None:
    """The broken twin of a contested grant (I-03): those who ask at the same time are given one successor each."""
    contest = Contest(load.Job(0, 0, ["first"], 2, 1.0))
    for token in ("second", "second"):
        contest.give(0, token)
    contest.settle()
    assert ([], ["second"], 1) == (contest.failed, contest.tokens, contest.rotations)
    for token in ("third", "fourth"):
        contest.give(0, token)
    assert ["a second successor"] == contest.failed
    assert contest.stopping


def test_every_run_begins_with_other_grants() -> None:
    """Else the same few of a million are met in each round; where each connection has its own, it keeps it."""
    few, many = ([str(number) for number in range(count)] for count in (64, 500))
    first, second = ([*load._order(load.Job(0, 0, many, 64, 1.0))] for _ in range(2))
    assert sorted(first) == sorted(second) == [*range(500)]
    assert first[:64] != second[:64]
    assert [*range(64)] == [*load._order(load.Job(0, 0, few, 64, 1.0))]


def test_what_two_workers_would_do_follows_from_the_busiest_process() -> None:
    """By hand: 100 µs of the only worker; then 120 of two together, which is 60 each a refresh: 10,000 and 16,667."""
    one, two = _measured(nodes_us=100, store_us=40), _measured(nodes_us=120, store_us=50)
    lines = told("workers", "one worker", {"one worker": [one], "two workers": [two]})
    assert "at most 10000/s with one worker, 16667/s with two: 1.67" in lines[-2 if "cores:" in lines[-1] else -1]


def _measured(nodes_us: float, store_us: float) -> Measured:
    return Measured(1, 1, 1, 1, nodes_us, store_us, 1, 0, 1, 2)


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_latency_is_told_beside_its_parts(
    tmp_path: Path, store: str, full: bool, request: pytest.FixtureRequest
) -> None:
    """The rows of real refreshes go into a copy, two events each, as the refreshes that are timed do."""
    if not full and store == "postgres":
        pytest.skip("its servers take long to start")
    copies = on_sqlite(tmp_path) if store == "sqlite" else on_postgres(tmp_path, request.getfixturevalue("postgres"))
    before = copies.count("twin")
    (found,) = measure(copies, 1, 0.1, 5)
    assert before + 2 * 2 * (2 * 5) == copies.count("twin"), "alone and by requests; one round is not counted"
    assert min(found.refresh, found.request, found.transaction, found.in_one) > 0


def test_the_ratio_is_to_both_parts_together() -> None:
    """By hand: 1.5 ms beside 0.4 and 0.6, and beside 1.2 where one process does both."""
    told = line("SQLite", [Round(refresh=1.5, request=0.4, transaction=0.6, in_one=1.2)])
    assert told.endswith(
        "refresh 1.500 ms, bare request 0.400 ms, transaction 0.600 ms: 1.50 [1.50–1.50] of the two together;"
        " in one process 1.200 ms: 1.25 [1.25–1.25]"
    )


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_memory_is_told_after_each_tenth_of_all_grants(
    tmp_path: Path, store: str, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every grant was refreshed once, which each run has counted; a store that is kept is used again."""
    if not full:
        pytest.skip("its servers take long to start")
    for _ in range(2):
        memory.main(["--grants", "25", "--connections", "2", "--store", store, "--folder", str(tmp_path)])
        first, *lines = capsys.readouterr().out.splitlines()
        assert first.startswith("25 grants: ")
        assert [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25] == [int(each.split()[0]) for each in lines]


def test_the_old_grant_is_told_by_the_new_one() -> None:
    """By hand, as README says it: 90 refreshes a second of 100 are 0.9, and 3 ms of 2 are 1.5."""
    assert [
        "warm, one chain: a grant with 1000 rotations against a new one, throughput ratio old / new 0.90",
        "cold, first refresh after a start: latency ratio old / new 1.50",
    ] == refresh.told_of_age(1000, ([90.0], [100.0]), ([3.0], [2.0]))


@pytest.mark.parametrize("count", ["0", "-5"])
def test_sizes_of_no_grants_are_not_measured(capsys: pytest.CaptureFixture[str], count: str) -> None:
    """One line and exit code 2, before a server is started."""
    with pytest.raises(SystemExit) as ended:
        sizes.main(["--grants", count])
    assert 2 == ended.value.code
    assert f"error: argument --grants: at least one is needed, not {count}" in capsys.readouterr().err


def test_sizes_are_told_of_grants_refreshes_and_a_rebuild(full: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 100 grants: one event, two a refresh, two that are far apart after a check-point; whatever differs ends it."""
    if not full:
        pytest.skip("its server takes long to start")
    sizes.main(["--grants", "100", "--rounds", "1", "--wal-compression", "on"])
    *_, heap, log, replayed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"events, without indexes: 0\.\d+ of their bytes", heap)
    assert re.fullmatch(r"2 grants far apart: [\d,]+ bytes of log a refresh", log)
    told = re.fullmatch(
        r"rebuild: (\d+) events, [\d,]+ a second, with [\d.]+ cores of ours, [\d.]+ of PostgreSQL", replayed
    )
    assert told is not None
    assert 0 <= int(told[1]) - (100 + 2 * (100 + 2)) < 10, "and those of the clients and of who applied them"


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_cold_stores_are_told_beside_bare_ones(
    tmp_path: Path, store: str, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few grants and many, refreshed by servers and by bare transactions: each run has counted two events a refresh."""
    if not full:
        pytest.skip("its servers take long to start")
    sizes = ["--grants", "8", "20", "--rounds", "1", "--seconds", "0.1"]
    for _ in range(2):  # a store that is kept is used again
        cold.main([*sizes, "--stores", store, "--folder", str(tmp_path)])
        *_, refreshes, bare = capsys.readouterr().out.splitlines()
        for said, what in ((refreshes, "refreshes"), (bare, "bare transactions of 64")):
            assert re.fullmatch(rf"{store}, {what}: [\d,]+/s of 8 grants, [\d,]+/s of 20: .* \[.*–.*\]", said)


def _read_in_here(files: Iterable[Path]) -> None:
    """The broken twin of reading in: this process opens and closes the file."""
    for path in files:
        path.read_bytes()


@pytest.mark.parametrize(
    ("read_in", "is_safe"), [(page_cache.read_in_anew, True), (page_cache.read_in, True), (_read_in_here, False)]
)
def test_reading_a_file_in_leaves_sqlite_its_locks(
    tmp_path: Path, read_in: Callable[[Iterable[Path]], None], is_safe: bool
) -> None:
    """Who writes goes on alone: a process that closes a file takes all its own locks on it away."""
    path = tmp_path / "some.db"
    other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("BEGIN IMMEDIATE")
        read_in([path, tmp_path / "that was never there"] if is_safe else [path])
        done = subprocess.run([sys.executable, "-c", other, path], capture_output=True, text=True, check=False)
        assert is_safe == ("database is locked" in done.stderr), done.stderr
