"""The program as tests fork it is the program as a person starts it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.forking import Forked, forking
from tests.places import Place
from tests.server_process import eventually, run_program
from tests.servers import Server

LASTING = ("SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Threads")


@pytest.fixture(params=[False, True], ids=["forked", "by command"])
def either(request: pytest.FixtureRequest, tmp_path: Path, full: bool) -> Iterator[Server]:
    """A server that is forked, unless it is started by its command."""
    if full and not request.param:
        pytest.skip("nothing is forked with --full")
    server = Server(tmp_path)
    server.by_command = request.param
    yield server
    server.kill()


def shown(server: Server) -> list[str]:
    """What the kernel shows of a process that was not of its own making, and what is open in it."""
    assert server.process is not None
    process = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    files = [_link(file) for file in (process / "fd").iterdir()]
    files = [file for file in files if "/libffi." not in file]  # newer ones open themselves where they are loaded
    kinds = sorted(re.sub(r"\d+", "n", file.replace(str(server.folder), "here")) for file in files if file)
    folder = _link(process / "cwd").replace(str(server.folder), "here")
    lasting = [f"{name} {status[name]}" for name in LASTING]
    return [*lasting, *kinds, folder, *(process / "limits").read_text().splitlines()]


def _link(file: Path) -> str:
    with suppress(FileNotFoundError):  # closed meanwhile
        return os.readlink(file)
    return ""


def test_the_kernel_shows_the_same_of_both(tmp_path: Path, full: bool) -> None:
    """Signals blocked, ignored and caught, threads, open files, limits, folder: nothing is left of who forked it."""
    if full:
        pytest.skip("nothing is forked with --full")
    with ExitStack() as stack:
        servers = Server(tmp_path / "a"), Server(tmp_path / "b")
        servers[0].by_command = True
        for server in servers:
            stack.callback(server.kill)
            server.start()
        assert [False, True] == [isinstance(server.process, Forked) for server in servers]
        differing: list[str] = []

        def alike() -> bool:
            by_command, forked = map(shown, servers)
            differing[:] = unified_diff(by_command, forked, "the command", "forked", n=0, lineterm="")
            return not differing

        with suppress(AssertionError):  # a file that one has just opened is one of both's a moment later
            eventually(alike, within_seconds=5)
        assert not differing, "\n".join(differing)


def test_ends_are_told_as_they_are(either: Server) -> None:
    """In order with 0, killed with the signal's number; started anew on the same files."""
    either.start()
    assert 0 == either.terminate()
    either.start()
    assert either.process is not None
    assert either.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        either.process.wait(0.01)
    either.process.send_signal(signal.SIGKILL)
    assert -signal.SIGKILL == either.process.wait(5) == either.process.poll()
    assert 2 == either.log().count("event=serving")


@pytest.mark.parametrize("by_command", [False, True])
def test_a_command_is_told_what_it_is_given_and_says_it_where_it_should(place: Place, by_command: bool) -> None:
    """Arguments, settings, standard input, both outputs, exit code."""
    environment = place.environment()
    done = run_program(("hash", "--help"), place.folder, environment, b"", 20, by_command=by_command)
    assert (0, b"Usage: token-ledger hash") == (done.returncode, done.stdout[:24])
    done = run_program(("explain",), place.folder, environment, b"no token", 20, by_command=by_command)
    assert (2, b"", 1) == (done.returncode, done.stdout, done.stderr.count(b"\n"))
    wrong = environment | {"TOKEN_LEDGER_PORT": "eighty"}
    done = run_program(("serve",), place.folder, wrong, b"", 20, by_command=by_command)
    assert (2, b"TOKEN_LEDGER_PORT:") == (done.returncode, done.stderr.removeprefix(b"token-ledger: ")[:18])


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LC_ALL", "PYTHONPATH", "PYTHONHASHSEED"])
def test_what_is_told_to_a_process_as_it_starts_is_told_to_one_that_starts(place: Place, name: str, full: bool) -> None:
    """What is forked has started already: a library would not be loaded before others, nor a module put before ours."""
    assert forking(place.environment() | {name: "7"}) is None
    assert full == (forking(place.environment()) is None)


def test_a_process_that_is_not_heard_of_is_no_success(tmp_path: Path) -> None:
    """The broken twin of an end: whoever forks is gone, and nobody knows."""
    mine, exits = os.pipe()
    os.close(exits)
    with pytest.raises(AssertionError, match="gone"):
        Forked(os.getpid(), mine, [sys.executable]).wait(1)
