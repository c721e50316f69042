"""`token-ledger` without the half second of imports that each start takes: forked by a process that has made them.

What is forked is a process of its own as any other: its own files, environment, signals and exit code, and all that
it runs is the program's own `main`. It is the command's process but for how its interpreter came to be, and for what
the kernel shows of that (`/proc/…/cmdline`, `/proc/…/environ`): a trial of those starts the command itself
(`ServerProcess.by_command`). With `--full` nothing is forked.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NoReturn

import pytest

MESSAGE_BYTES_MAX: Final = 1 << 18
FILES: Final = 4
"""How many come with each request: standard input, output and error, and where the exit code goes."""

AT_THE_START: Final = ("LD_", "LC_", "LANG", "MALLOC_", "PYTHON")
"""How variables begin that tell something to a process as it starts, and nothing later."""

IMPORTED: Final = ("api.cli.options", "api.cli.serve", "api.serving", "api.workers", "ledger.recorders.postgres")

END_SECONDS_MAX: Final = 20.0
PROJECT: Final = Path(__file__).resolve().parent.parent

_sessions: list["_Session"] = []
"""That of this process, while its tests run and may have the program forked."""


class Forked(subprocess.Popen[bytes]):
    """A forked process, with what tests ask of one that they have started: the exit code comes over a pipe, for its
    parent is not this process."""

    def __init__(self, pid: int, exits: int, arguments: list[str]) -> None:
        self.pid = pid
        self.args = arguments
        self.returncode = None
        self.stdin = self.stdout = self.stderr = None
        self._exits = exits
        self._child_created = False  # not by this class: its destructor has nothing to do

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code. Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        end = select.poll()
        end.register(self._exits, select.POLLIN)
        if end.poll(None if seconds is None else seconds * 1000):
            told = os.read(self._exits, 16)
            os.close(self._exits)
            assert told, "whoever forked it is gone"
            self.returncode = int(told)
        return self.returncode


class Forking:
    """The process that forks, in an environment. It ends with this one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.forking", str(far.fileno())]
        self._line = line
        self._asking = threading.Lock()
        path = os.pathsep.join([str(PROJECT), *filter(None, [environment.get("PYTHONPATH")])])
        environment = {**environment, "PYTHONPATH": path}
        self._began_with = _told_at_the_start(environment)
        self._process = subprocess.Popen(
            command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, cwd=PROJECT, env=environment
        )
        far.close()

    def start(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], files: tuple[int, int, int]
    ) -> Forked:
        """Fork a process that runs `token-ledger` with these arguments; `files` are its standard ones."""
        asked = json.dumps([[*arguments], str(folder), dict(environment)]).encode()
        mine, exits = os.pipe()
        with self._asking:
            socket.send_fds(self._line, [asked], [*files, exits])
            told = self._line.recv(16)
        os.close(exits)
        assert told, f"the process that forks has ended: {self._process.wait()}"
        return Forked(int(told), mine, ["token-ledger", *arguments])

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], given: bytes, seconds: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Fork one and wait for its end; what it has said. Raises subprocess.TimeoutExpired once it was killed."""
        with ExitStack() as stack:
            files = [stack.enter_context(open(os.memfd_create(name), "w+b")) for name in ("stdin", "stdout", "stderr")]
            files[0].write(given)
            files[0].seek(0)
            numbers = files[0].fileno(), files[1].fileno(), files[2].fileno()
            process = self.start(arguments, folder, environment, numbers)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            for file in files[1:]:
                file.seek(0)
            return subprocess.CompletedProcess(process.args, code, files[1].read(), files[2].read())

    def can(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment would be none other than the forked one."""
        return self._began_with == _told_at_the_start(environment)

    def close(self) -> None:
        """End it. What it has forked goes on."""
        self._line.close()
        self._process.wait(END_SECONDS_MAX)


class _Session:
    """What one run of tests has: the environment that it began in, and who forks for it, once somebody was asked to."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.forking: Forking | None = None


def _told_at_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: each for name, each in environment.items() if name.startswith(AT_THE_START)}


def forking(environment: Mapping[str, str]) -> Forking | None:
    """What forks the program with this environment for this process's tests, if it is to be forked."""
    if not _sessions:
        return None
    session = _sessions[-1]
    if session.forking is None:
        session.forking = Forking(session.environment)
    return session.forking if session.forking.can(environment) else None


@pytest.fixture(scope="session", autouse=True)
def program_is_forked(full: bool) -> Iterator[None]:
    """Let the program be forked in this run, unless it is of the full tier or this system has nothing to wait with."""
    if full or not hasattr(os, "pidfd_open"):
        yield
        return
    session = _Session()
    _sessions.append(session)
    yield
    _sessions.remove(session)
    if session.forking is not None:
        session.forking.close()


# ---------------------------------------------------------------- in the process that forks


def serve(line: socket.socket) -> tuple[list[str], dict[str, str]]:
    """Fork whatever is asked for. Returns in the child, with its arguments and environment; ends with whoever asks."""
    running: dict[int, tuple[int, int]] = {}  # a descriptor of the process → its id, and where its exit code goes
    waiting = select.poll()
    waiting.register(line, select.POLLIN)
    while True:
        for ready, _ in waiting.poll():
            if ready != line.fileno():
                waiting.unregister(ready)
                pid, exits = running.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # nobody wants to know
                    os.write(exits, str(code).encode())
                os.close(exits)
                os.close(ready)
                continue
            asked, files, _, _ = socket.recv_fds(line, MESSAGE_BYTES_MAX, FILES)
            if not asked:
                sys.exit(0)
            if (pid := os.fork()) == 0:
                return _in_the_child(asked, files)
            for file in files[:3]:
                os.close(file)
            child = os.pidfd_open(pid)
            running[child] = pid, files[3]
            waiting.register(child, select.POLLIN)
            line.send(str(pid).encode())


def _in_the_child(asked: bytes, files: list[int]) -> tuple[list[str], dict[str, str]]:
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    arguments, folder, environment = json.loads(asked)
    os.chdir(folder)
    return arguments, environment


def run(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Be `token-ledger`, in an environment."""
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None  # whoever asks reads of the environment anew where it is
    sys.argv = ["token-ledger", *arguments]
    from api.__main__ import main

    main()
    raise AssertionError("it exits by itself")


if __name__ == "__main__":
    for _module in IMPORTED:
        importlib.import_module(_module)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that one is for the tests
    _asked = serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(*_asked)
