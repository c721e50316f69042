"""The process itself: what it does where it is started without standard streams, as some supervisors do it, and where
it is told something before it can hear."""

import json
import signal
import subprocess
import sys

import pytest

from tests.places import Place
from tests.server_process import PROJECT, program
from tests.servers import clients_toml


def started(place: Place, arguments: str, closed: str) -> "subprocess.Popen[str]":
    """The program, started without some of its standard streams."""
    shell = f"exec {' '.join(program())} {arguments} {closed}"
    return subprocess.Popen(
        ["bash", "-c", shell],
        cwd=place.folder,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_server_without_standard_input_ends_in_good_order(made: Place) -> None:
    """The event loop's own descriptors must not be where the input of a process belongs."""
    process = started(made, "serve", "<&-")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "event=serving" in line, (line, process.stderr)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (0, "") == (process.returncode, err)
    assert "event=stopped" in out


@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&- 2>&-"])
def test_a_command_without_standard_streams_does_what_it_says(made: Place, closed: str) -> None:
    """Nobody reads what it prints; it is no failure of what it did."""
    (made.folder / "clients.toml").write_text(clients_toml())
    assert 0 == made.here("apply", "clients.toml").returncode
    process = started(made, "issue --client www --subject ann --scope read", closed)
    _, err = process.communicate(timeout=30)
    assert (0, "") == (process.returncode, err)
    assert 1 == len(json.loads(made.here("grants", "--json").stdout)["grants"])


LIMITED = """
import resource
from api import __main__
most = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
__main__.run = lambda arguments: print(resource.getrlimit(resource.RLIMIT_CORE))
__main__.main()
"""


def test_no_process_leaves_a_core_file() -> None:
    """It would hold the keys: a command that works on the store alone reads the ring, too."""
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=PROJECT, capture_output=True, timeout=30, check=False)
    assert (0, b"(0, 0)\n", b"") == (done.returncode, done.stdout, done.stderr)


HUNG_UP = """
import os, signal
from api import serving
from api.cli import run
serving.run = lambda settings: os.kill(os.getpid(), signal.SIGHUP) or 0
raise SystemExit(run(["serve"]))
"""


def test_a_hangup_while_a_server_begins_does_not_end_it(made: Place) -> None:
    """Whoever renews a certificate may just then tell it to read that again; for systemd it would have ended in order,
    and stay away. The start reads all files anyway."""
    done = subprocess.run(
        [sys.executable, "-c", HUNG_UP],
        cwd=PROJECT,
        env=made.environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (0, b"") == (done.returncode, done.stderr)
