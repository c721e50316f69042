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
from tests.servers import PROJECT, Server, eventually
from tests.wire import Json

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
def served(folder: Path, **dynamic: Json) -> Iterator[tuple[Cluster, list[Chain]]]:
    """A cluster, two workers on it, and clients. At the end every client asks once more; the workers are those that
    were started, and the store is whole."""
    with formed(**dynamic) as cluster:
        server = Server(folder, settings={"DATABASE_URL": cluster.url(), "WORKERS": "2", "LOG_LEVEL": "info"})
        try:
            server.start()
            eventually(lambda: server.log().count(" event=serving ") >= 2, what="both workers")
            chains = chains_of(server, CHAINS)
            yield cluster, chains
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
        self.outage_seconds = 0.0
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        seen, last = self._load.refreshes, time.monotonic()
        while not self._ended.wait(0.005):
            now, found = time.monotonic(), self._load.refreshes
            if found != seen:
                self.outage_seconds, seen, last = max(self.outage_seconds, now - last), found, now

    def goes_on(self) -> None:
        """Refreshes succeed again, of everybody, by themselves (I-24)."""
        before = [chain.acknowledged for chain in self._load.chains]
        eventually(
            lambda: all(now.acknowledged > then + 1 for now, then in zip(self._load.chains, before, strict=True)),
            within_seconds=OUTAGE_SECONDS_MAX,
            what="refreshes of everybody",
        )

    def end(self, record: Callable[[str, object], None]) -> None:
        """Look no more; what was seen stands in the last lines of the run."""
        self._ended.set()
        chains = self._load.chains
        record("seconds without an answer of 200", round(self.outage_seconds, 2))
        record("acknowledged refreshes", self._load.refreshes)
        record("unknown outcomes", sum(chain.unknown for chain in chains))
        record("answers of 503", sum(chain.statuses[503] for chain in chains))


def another_leads(cluster: Cluster, old: Node) -> None:
    """Wait until another node is the primary."""
    eventually(lambda: cluster.primary not in (old, None), within_seconds=OUTAGE_SECONDS_MAX, what="another primary")


@in_a_cluster
@pytest.mark.parametrize("kill", [Node.kill_postgres, Node.kill], ids=["postgres", "node"])
def test_a_killed_primary_loses_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None], kill: Callable[[Node], None]
) -> None:
    """I-09, I-10, I-24: PostgreSQL alone, and the whole machine with its Patroni and etcd. Each client's newest token
    still redeems, the log has what was acknowledged, nobody has a second successor."""
    with served(tmp_path) as (cluster, chains), Load(chains) as load:
        eventually(lambda: load.refreshes > 10 * CHAINS, within_seconds=OUTAGE_SECONDS_MAX, what="refreshes")
        old = cluster.primary
        assert old is not None
        watch = Watch(load)
        kill(old)
        another_leads(cluster, old)
        watch.goes_on()
        if not old.processes:
            cluster.start(old)  # the machine is back, and has to follow
        cluster.wait_whole()
        watch.goes_on()
        watch.end(record_property)


@in_a_cluster
def test_what_no_standby_has_is_not_acknowledged(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """I-09, I-11: the log reaches no standby any more, for longer than anybody waits; then the primary is killed. What
    it had written for itself alone is gone with it: it was told to nobody, not even where it was looked for."""
    with served(tmp_path) as (cluster, chains), Load(chains) as load:
        eventually(lambda: load.refreshes > 10 * CHAINS, within_seconds=OUTAGE_SECONDS_MAX, what="refreshes")
        _stall_and_kill(cluster, load, record_property)


@in_a_cluster
def test_a_standby_that_commits_do_not_wait_for_loses(tmp_path: Path) -> None:
    """The broken twin: the same with asynchronous replication. Acknowledged rotations are lost, and that is seen."""

    def lose() -> None:
        asynchronous = {"synchronous_mode": False, "synchronous_mode_strict": False}
        with served(tmp_path, **asynchronous) as (cluster, chains), Load(chains) as load:
            eventually(lambda: load.refreshes > 10 * CHAINS, within_seconds=OUTAGE_SECONDS_MAX, what="refreshes")
            _stall_and_kill(cluster, load, lambda name, value: None)

    with pytest.raises(AssertionError, match=r"fault|did not come"):
        lose()


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


def _stall_and_kill(cluster: Cluster, load: Load, record: Callable[[str, object], None]) -> None:
    old = cluster.primary
    assert old is not None
    watch = Watch(load)
    freeze(old.senders())
    time.sleep(STALLED_SECONDS)
    old.kill_postgres()
    another_leads(cluster, old)
    watch.goes_on()
    cluster.wait_whole()
    watch.end(record)
