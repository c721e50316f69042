"""The primary of a cluster dies under load: another one takes over, nothing acknowledged is lost, nobody helps."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.chains import Chain, chains_of, faults_of
from tests.chaos.cluster import CLIENT_SETTINGS, DYNAMIC, Cluster, Node, formed, freeze, missing
from tests.chaos.files import check_files, report
from tests.chaos.load import Load, converge
from tests.engines import standing_for
from tests.server_process import PROJECT, eventually
from tests.servers import Server

CHAINS = 24
OUTAGE_SECONDS_MAX = 60.0
"""The longest of all, the lock's `ttl`, and time for a busy machine; what it was is a figure."""

STALLED_SECONDS = 20.0
"""Longer than a worker waits for an answer, and than the server lets a statement run."""

GUIDE = PROJECT / "api" / "docs" / "high-availability.md"

in_a_cluster = pytest.mark.usefixtures("needs_cluster")


@pytest.fixture
def needs_cluster(full: bool) -> None:
    """Skip where there can be no cluster; and by default, because each trial takes minutes."""
    if not full:
        pytest.skip("a cluster of three belongs to --full")
    if (lacking := missing()) is not None:
        pytest.skip(lacking)


@contextmanager
def served(folder: Path) -> Iterator[tuple[Cluster, list[Chain]]]:
    """A cluster, two workers on it, and clients. At the end every client asks once more; the workers are those that
    were started, and the store is whole."""
    with formed() as cluster:
        server = Server(folder, settings={"DATABASE_URL": cluster.url(), "WORKERS": "2", "LOG_LEVEL": "info"})
        try:
            server.start(wait=False).wait_ready(OUTAGE_SECONDS_MAX)
            eventually(
                lambda: server.log().count(" event=serving ") >= 2,
                within_seconds=OUTAGE_SECONDS_MAX,
                what="both workers",
            )
            chains = chains_of(server, CHAINS)
            yield cluster, chains
            report(faults_of(chains))
            eventually(
                lambda: {200} == {server.health("/readyz") for _ in range(6)},
                within_seconds=OUTAGE_SECONDS_MAX,
                what="readiness",
            )
            converge(chains)
            report(faults_of(chains))
            assert 0 == server.terminate(), server.tail()
        finally:
            server.kill()
        server.check_log()
        assert "event=worker_ended" not in server.log()
        with standing_for(server.database, cluster.url()):
            check_files(server.database, chains)


class Watch:
    """How a load fares from now on: for how long nobody was answered, at the longest, and what it came to."""

    def __init__(self, load: Load) -> None:
        self._load = load
        # Who sends twice has done when both are answered, which may be long after the first one was.
        self._single = [chain for chain in load.chains if len(chain._lines) == 1]
        self.outage_seconds = 0.0
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        seen, last = self._answered(), time.monotonic()
        while not self._ended.wait(0.005):
            now, found = time.monotonic(), self._answered()
            if found != seen:
                self.outage_seconds, seen, last = max(self.outage_seconds, now - last), found, now

    def _answered(self) -> int:
        return sum(chain.acknowledged for chain in self._single)

    def goes_on(self) -> None:
        """Refreshes succeed again, of everybody, by themselves (I-24)."""
        before = [chain.acknowledged for chain in self._load.chains]
        eventually(
            lambda: all(now.acknowledged > then + 1 for now, then in zip(self._load.chains, before, strict=True)),
            within_seconds=OUTAGE_SECONDS_MAX,
            what="refreshes of everybody",
        )

    def end(self, what: str, record: Callable[[str, object], None]) -> None:
        """Look no more; what was seen stands in the last lines of the run."""
        self._ended.set()
        record(f"seconds without an answer of 200 ({what})", round(self.outage_seconds, 2))
        record("acknowledged refreshes until then", self._load.refreshes)
        record("answers of 503", sum(chain.statuses[503] for chain in self._load.chains))
        record("unanswered", sum(chain.unanswered for chain in self._load.chains))


def busy(load: Load) -> None:
    """Wait until everybody is at it."""
    before = load.refreshes
    eventually(lambda: load.refreshes > before + 10 * CHAINS, within_seconds=OUTAGE_SECONDS_MAX, what="refreshes")


def stall_and_kill(node: Node) -> None:
    """Hold back what a primary sends to its standbys, and kill it after a while."""
    freeze(node.senders())
    time.sleep(STALLED_SECONDS)
    node.kill_postgres()


def another_leads(cluster: Cluster, old: Node) -> None:
    """Wait until another node is the primary."""
    eventually(lambda: cluster.primary not in (old, None), within_seconds=OUTAGE_SECONDS_MAX, what="another primary")


@in_a_cluster
def test_a_primary_that_dies_loses_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """I-09, I-10, I-11, I-24: PostgreSQL alone; then with its log held back from the standbys for longer than anybody
    waits, so that what it had written for itself alone must have been told to nobody; then the whole machine with its
    Patroni and etcd. Each client's newest token still redeems, the log has what was acknowledged, nobody has a second
    successor."""
    with served(tmp_path) as (cluster, chains), Load(chains) as load:
        for what, end in (("PostgreSQL", Node.kill_postgres), ("stalled", stall_and_kill), ("node", Node.kill)):
            busy(load)
            old = cluster.primary
            assert old is not None
            watch = Watch(load)
            end(old)
            another_leads(cluster, old)
            watch.goes_on()
            if not old.processes:
                cluster.start(old)  # the machine is back, and has to follow
            cluster.wait_whole()
            watch.goes_on()
            watch.end(what, record_property)


def test_the_guide_says_what_is_tried() -> None:
    """Whoever follows the guide to high availability has the settings of these trials."""
    text = GUIDE.read_text("utf-8")
    postgresql = DYNAMIC["postgresql"]
    said = {**DYNAMIC, **postgresql, **postgresql["parameters"]}
    for name in ("postgresql", "parameters"):
        del said[name]
    assert 12 == len(said)
    for name, value in said.items():
        quoted = f'"{value}"' if isinstance(value, str) else str(value).lower()
        assert re.search(rf"^ +{name}: {quoted}( |$)", text, re.MULTILINE), name
    assert CLIENT_SETTINGS in text
