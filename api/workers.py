"""Several processes behind one port: `serve` with WORKERS above 1. The parent starts and tells them; it serves nothing.

The parent binds the port once for each worker and keeps those sockets open, whatever becomes of a worker: who connects
to one that has just died waits until the next one listens there, and is not refused. Where that one does not live
either, its socket hears nobody until one does: whoever comes is served by the others, and where there are none refused
at once, for nobody says when somebody will answer (the store may be away for hours). The kernel spreads connections
over the sockets. The first worker starts alone: what is wrong with settings or store is said once, by it, and nobody
else is started.

SIGTERM and SIGINT go on to every worker, as SIGTERM, which answers what was begun and ends; the second time as SIGINT,
which ends at once. SIGHUP goes on, too. A worker that ends unasked is started again, at once the first time, with a
pause that grows where it does not live. A worker whose parent is gone ends in order: it sees the end of a pipe that
only the parent holds open.
"""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from api.cli.output import say_error
from api.logs import Log
from api.settings import Settings
from api.sockets import StartError, bind_for_each, hang_up, hear_again
from api.worker_failures import Failures, pairs
from api.worker_metrics import keep_ended

RESTART_SECONDS: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LIVED_SECONDS: Final = 10.0
"""Who has lived for so long is started again at once."""

FAILURES_WAITED_FOR: Final = 1
"""So often in a row a worker may not live and whoever has connected to it waits for the next one."""

KILLED_AFTER_SECONDS: Final = 5.0
"""So long past the time that a request may take, a worker that was told to end is killed."""

_TOLD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

log = Log("api.workers")


class Seat(NamedTuple):
    """What a worker is given: its sockets, where figures are shared, how failures are told, a pipe to say that it
    serves, one that ends with the parent, and whether the server has served before this worker."""

    number: int
    sockets: list[socket.socket]
    folder: Path
    failures: Failures
    ready: int
    parent: int
    has_served: bool


Serve = Callable[[Settings, Seat], int]
"""Serves in a worker until it is told to end; returns the exit code."""


class _Worker:
    """A place among the workers: its process, and how often it did not live."""

    def __init__(self, number: int, sockets: list[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.pid = 0
        self.ready = -1  # what tells when it serves: the reading end of its pipe, as long as it runs
        self.serves = False
        self.started_at = 0.0
        self.start_at = 0.0
        self.failures = 0


class Workers:
    """The parent of some workers. Lives in the main thread of a process that has no other, and no event loop."""

    def __init__(self, settings: Settings, serve: Serve) -> None:
        self._settings = settings
        self._serve = serve
        self._workers: list[_Worker] = []
        self._folder = Path()
        self._parent: tuple[int, int] = (-1, -1)
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._failures: list[tuple[socket.socket, socket.socket]] = []
        self._exit_code = 0
        self._serving = False
        self._stopping = False

    def run(self) -> int:
        """Serve until told to stop; return the exit code. What keeps the first worker from starting is its own line on
        standard error, and its exit code the parent's."""
        settings = self._settings
        try:
            sockets = bind_for_each(settings.host, settings.port, settings.workers)
        except StartError as error:
            return say_error(str(error), 2)
        self._settings = settings.on_port(sockets[0][0].getsockname()[1])
        self._workers = [_Worker(number, each) for number, each in enumerate(sockets)]
        self._folder = Path(tempfile.mkdtemp(prefix="token-ledger-"))
        self._failures = pairs(settings.workers)
        self._parent = os.pipe()
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        before = {number: signal.signal(number, _noted) for number in _TOLD}
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        try:
            return self._run()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._parent[1])  # whoever still runs sees it
            os.close(self._parent[0])
            listening = (sock for worker in self._workers for sock in worker.sockets)
            for sock in (*self._wakeup, *listening, *(end for pair in self._failures for end in pair)):
                sock.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> int:
        first = self._workers[0]
        self._start(first)
        if not self._wait_for(first):
            return self._exit_code
        self._serving = True
        while not self._stopping:
            self._tend()  # which starts the others
        return self._end()

    # ------------------------------------------------------------ starting

    def _start(self, worker: _Worker) -> None:
        """Start a worker. Raises OSError where the system lacks room for it."""
        for sock in worker.sockets:
            hear_again(sock)  # the one before may have ended in order
        reading, writing = os.pipe()
        # A signal that comes to the new process before it has handlers of its own waits until then: the parent's would
        # swallow it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                self._be(worker, writing, before)
        except OSError:
            os.close(reading)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(writing)
        worker.pid, worker.ready, worker.serves, worker.started_at = pid, reading, False, time.monotonic()

    def _be(self, worker: _Worker, writing: int, mask: Iterable[int]) -> NoReturn:
        """In the new process: serve, and leave by the shortest way, for nothing of the parent's is to be undone."""
        exit_code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _TOLD:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until its loop hears it: the start reads all files anyway
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.setpgid(0, 0)  # Ctrl-C is told by the parent, once
            os.close(self._parent[1])
            for running in (other for other in self._workers if other.pid):
                os.close(running.ready)
            assert self._wakeup is not None
            for sock in (*self._wakeup, *(each for other in self._workers for each in other.sockets)):
                if sock not in worker.sockets:
                    sock.close()
            told = [telling for number, (_, telling) in enumerate(self._failures) if number != worker.number]
            failures = Failures(self._failures[worker.number][0], told)
            seat = Seat(worker.number, worker.sockets, self._folder, failures, writing, self._parent[0], self._serving)
            exit_code = self._serve(self._settings, seat)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(exit_code)

    def _wait_for(self, worker: _Worker) -> bool:
        """Wait until the first worker serves; False where it ended, or was told to, before."""
        while worker.pid:
            if self._heard(None, worker.ready):
                return self._has_served(worker) or self._gone(worker)
            if self._stopping:
                self._exit_code = self._end()
                return False
        return False

    def _has_served(self, worker: _Worker) -> bool:
        """Whether it has said that it serves. Asked when its pipe has something to say, or has ended with it."""
        worker.serves = worker.serves or (worker.ready >= 0 and os.read(worker.ready, 1) != b"")
        return worker.serves

    def _gone(self, worker: _Worker) -> bool:
        """The pipe ended without a word: so has the worker, or is about to."""
        while worker.pid:
            self._heard(0.05)
        return False

    # ------------------------------------------------------------ tending

    def _tend(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.pid and worker.start_at <= now:
                self._start_or_later(worker)
        due = [worker.start_at - now for worker in self._workers if not worker.pid]
        self._heard(max(0.0, min(due)) if due else None)

    def _start_or_later(self, worker: _Worker) -> None:
        try:
            self._start(worker)
        except OSError as error:
            worker.failures += 1
            pause = self._pause(worker)
            log.warning("worker_not_started", worker=worker.number, why=error.strerror, again_in_seconds=pause)
        else:
            log.info("worker_started", worker=worker.number, process=worker.pid)

    def _pause(self, worker: _Worker) -> float:
        """Let so much time pass before the next start; where it did not live too often, nobody waits for that."""
        pause = RESTART_SECONDS[min(worker.failures, len(RESTART_SECONDS) - 1)]
        worker.start_at = time.monotonic() + pause
        if worker.failures > FAILURES_WAITED_FOR:
            for sock in worker.sockets:
                hang_up(sock)
        return pause

    def _heard(self, seconds: float | None, ready: int | None = None) -> bool:
        """Wait for a signal, for at most so long, and do what it says; True where `ready` has something to say."""
        assert self._wakeup is not None
        with selectors.PollSelector() as selector:  # which needs no descriptor: there may be none left
            selector.register(self._wakeup[0], selectors.EVENT_READ)
            if ready is not None:
                selector.register(ready, selectors.EVENT_READ)
            found = {key.fd for key, _ in selector.select(seconds)}
        if self._wakeup[0].fileno() in found:
            for number in dict.fromkeys(self._wakeup[0].recv(4096)):
                self._told(signal.Signals(number))
        return ready in found

    def _told(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self._pass_on(number)
        else:
            # Told twice, all end at once. A worker may have heard SIGTERM from somebody else already.
            self._pass_on(signal.SIGINT if self._stopping else signal.SIGTERM)
            self._stopping = True

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)  # not reaped yet, so the number is still this process's

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._ended(worker, status)

    def _ended(self, worker: _Worker, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        try:
            keep_ended(self._folder, worker.pid)
        except OSError as error:
            log.warning("figures_lost", worker=worker.number, why=error.strerror)
        lived = time.monotonic() - worker.started_at
        worker.failures = 0 if lived >= LIVED_SECONDS else worker.failures + 1
        worker.pid = 0
        pause = self._pause(worker)
        # Still starting, so serving nobody: told to end before it could hear that, or while it met what keeps it from
        # serving, as a store that is away. Where that is the first of all, it has said why nobody is served.
        unborn = self._stopping and (
            code == -signal.SIGTERM or (code == 2 and self._serving and not self._has_served(worker))
        )
        os.close(worker.ready)
        worker.ready = -1
        self._exit_code = self._exit_code or (0 if unborn else _exit_code(code))
        if self._serving and not self._stopping:
            log.warning("worker_ended", worker=worker.number, code=code, again_in_seconds=pause)

    # ------------------------------------------------------------ ending

    def _end(self) -> int:
        """Wait until all have ended; the first exit code that is not 0."""
        self._exit_code = 0
        deadline = time.monotonic() + self._settings.request_timeout_seconds + KILLED_AFTER_SECONDS
        while any(worker.pid for worker in self._workers):
            self._heard(max(0.0, min(0.5, deadline - time.monotonic())))
            self._reap()
            if time.monotonic() > deadline:
                log.error("workers_killed", processes=sum(worker.pid > 0 for worker in self._workers))
                self._pass_on(signal.SIGKILL)
                deadline += KILLED_AFTER_SECONDS
        return self._exit_code


def _exit_code(code: int) -> int:
    """A process's own, or for one that a signal ended what a shell would say."""
    return code if code >= 0 else 128 - code


def _noted(number: int, frame: object) -> None:
    """The wake-up pipe has heard it."""
