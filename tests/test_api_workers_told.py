"""Workers that serve no ledger, for what concerns the processes alone: who tells them what, and what they lack."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from api.worker_metrics import ENDED
from tests.server_process import PROJECT, eventually, free_port
from tests.wire import Connection, request_bytes

SERVE = """
import asyncio, contextlib, errno, os, signal, sys, time
from prometheus_client import CollectorRegistry, Counter
from api import logs, server
from api.settings import Settings
from api.worker_metrics import Shared
from api.workers import Workers
from tests.serving import Shower

def serve(settings, seat):
    if os.environ.get("WHO_ENDS_WITH_2") == "starting" and seat.number == 1:
        signal.signal(signal.SIGTERM, lambda *_: None)
        print("starting", flush=True)
        signal.pause()
        return 2
    print("starting", flush=True)
    time.sleep(float(sys.argv[2]))
    counted = CollectorRegistry()
    Counter("served", "Once by each.", registry=counted).inc()
    async def ready(served):
        Shared(seat.folder, counted).begin()
        asyncio.get_running_loop().add_reader(seat.parent, served.request_stop)
        with contextlib.suppress(OSError):  # the parent listens to its first worker alone
            os.write(seat.ready, b"1")
        print("serving", flush=True)
    code = server.run(Shower(), settings, sockets=seat.sockets, on_ready=ready)
    return 2 if os.environ.get("WHO_ENDS_WITH_2") == "serving" and seat.number == 1 else code

def fork(forked=[], fork=os.fork):
    forked.append(True)
    if str(len(forked)) in sys.argv[3:]:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()

os.fork = fork
logs.configure("info")
settings = Settings(port=int(sys.argv[1]), allow_plain_http=True, workers=2, database_url="postgresql://nobody@nowhere/x")
sys.exit(Workers(settings, serve).run())
"""


class Told:
    """The parent of two workers, in a process of its own; the system refuses it some of its forks, counted from 1.

    Where that is said the second worker ends with 2 once it is told to end: while it is `starting`, or `serving`.
    """

    def __init__(
        self, folder: Path, start_seconds: float = 0.0, *, refused: Sequence[int] = (), ends_with_2: str = ""
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.said = folder / "said"
        with self.said.open("wb") as said:
            self.parent = subprocess.Popen(
                [sys.executable, "-c", SERVE, *map(str, (self.port, start_seconds, *refused))],
                cwd=PROJECT,
                env={**os.environ, "TMPDIR": str(folder), "WHO_ENDS_WITH_2": ends_with_2},
                stdout=said,
                stderr=said,
            )

    def workers(self) -> list[int]:
        """The processes that serve, oldest first."""
        children = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def count(self, words: str) -> int:
        """How often something was said."""
        return self.said.read_text("utf-8").count(words)

    def end(self) -> None:
        """Kill whoever still runs."""
        if self.parent.poll() is None:
            self.tell(signal.SIGSTOP)  # so that it starts nobody anew
            self.tell(signal.SIGKILL, *self.workers(), self.parent.pid)
            self.parent.wait()

    def asked(self) -> set[int]:
        """The answers to some who come, each over a connection of its own."""
        heard: set[int] = set()
        for _ in range(12):
            with Connection(("127.0.0.1", self.port), timeout_seconds=5) as connection:
                heard.add(connection.exchange(request_bytes("GET", "/a")).status)
        return heard

    @contextmanager
    def half_asked(self) -> Iterator[list[Connection]]:
        """Connections, to both workers, with a request on each that lacks its last bytes."""
        with ExitStack() as opened:
            asked = [opened.enter_context(Connection(("127.0.0.1", self.port), timeout_seconds=5)) for _ in range(12)]
            for connection in asked:
                connection.send(request_bytes("POST", "/a", body=b"abcd")[:-2])
            time.sleep(0.1)
            yield asked

    def wait_for(self, word: str, times: int) -> None:
        """Wait until a worker, or the log, has said something so often."""
        eventually(lambda: self.count(word) >= times, what=f"{times} times {word!r}")

    def tell(self, number: signal.Signals, *pids: int) -> None:
        for pid in pids or (self.parent.pid,):
            os.kill(pid, number)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    parent = Told(tmp_path)
    try:
        parent.wait_for("serving\n", 2)
        yield parent
    finally:
        parent.end()


@pytest.mark.parametrize("parent_first", [True, False])
def test_a_group_that_is_told_to_end_answers_what_was_begun(told: Told, parent_first: bool) -> None:
    """systemd sends SIGTERM to every process of a service: each worker hears it once more from its parent."""
    everybody = [told.parent.pid, *told.workers()]
    with told.half_asked() as asked:
        told.tell(signal.SIGTERM, *(everybody if parent_first else reversed(everybody)))
        time.sleep(0.3)
        for connection in asked:
            connection.send(b"cd")
            answer = connection.answer()
            assert ("abcd", "close") == (answer.json()["body"], answer.header("Connection"))
    assert 0 == told.parent.wait(5)


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_parent_that_is_told_twice_has_all_end_at_once(told: Told, again: signal.Signals) -> None:
    """Whoever says it again is in a hurry, whichever way they say it: what was begun is cut off."""
    with told.half_asked() as asked:
        told.tell(signal.SIGTERM)
        time.sleep(0.3)
        assert told.parent.poll() is None
        told.tell(again)
        assert 0 == told.parent.wait(3)
        for connection in asked:
            assert connection.closed_by_peer(1)


def test_a_hangup_does_no_harm_to_a_worker_that_is_still_starting(tmp_path: Path) -> None:
    """It reads all files as it starts: the first of all, and the one that follows another."""
    told = Told(tmp_path, start_seconds=0.3)
    try:
        for number in (1, 2):
            told.wait_for("starting\n", number)
            told.tell(signal.SIGHUP)
        told.wait_for("serving\n", 2)
        assert told.parent.poll() is None
        assert 0 == told.count("event=worker_ended")
    finally:
        told.end()


@pytest.mark.parametrize(("which", "code"), [("starting", 0), ("serving", 2)])
def test_what_kept_a_worker_from_serving_is_nothing_once_all_are_told_to_end(
    tmp_path: Path, which: str, code: int
) -> None:
    """The store went away while it was starting: it has served nobody. One that has, and that meets it then, counts."""
    told = Told(tmp_path, ends_with_2=which)
    try:
        told.wait_for("starting\n", 2)
        told.wait_for("serving\n", 1 if which == "starting" else 2)
        told.tell(signal.SIGTERM)
        assert code == told.parent.wait(5)
    finally:
        told.end()


def test_a_worker_whose_figures_cannot_be_kept_is_followed_by_another(told: Told) -> None:
    """The folder for temporary files is full, say: that costs figures, and nobody is unserved."""
    [folder] = told.folder.glob("token-ledger-*")
    (folder / f"{ENDED}.new").mkdir()
    told.tell(signal.SIGKILL, told.workers()[0])
    told.wait_for("serving\n", 3)
    assert 1 == told.count("event=figures_lost")
    assert {200} == told.asked()
    told.tell(signal.SIGTERM)
    assert 0 == told.parent.wait(5)


def test_a_parent_without_descriptors_starts_a_worker_when_it_has_some(told: Told) -> None:
    """The others serve whoever comes meanwhile."""
    limits = resource.prlimit(told.parent.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(told.parent.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    told.tell(signal.SIGKILL, told.workers()[0])
    told.wait_for("event=worker_not_started", 2)
    assert {200} == told.asked()
    resource.prlimit(told.parent.pid, resource.RLIMIT_NOFILE, limits)
    told.wait_for("serving\n", 3)
    assert {200} == told.asked()


def test_a_fork_that_is_refused_is_tried_again(tmp_path: Path) -> None:
    """The second worker's, twice: the first one serves. `SERVE` does the refusing, for no system refuses root."""
    told = Told(tmp_path, refused=(2, 3))
    try:
        told.wait_for("serving\n", 2)
        assert 2 == told.count("event=worker_not_started")
        assert {200} == told.asked()
        told.tell(signal.SIGTERM)  # which a parent that left signals blocked would not hear
        assert 0 == told.parent.wait(5)
    finally:
        told.end()
