"""Servers in trouble: the program, or a broken twin of it, over a preloaded library or under the kernel's tracing."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.server_process import eventually, program
from tests.servers import Server
from tests.wire import Json


class TroubledServer(Server):
    """A `token-ledger serve` with environment variables of its own, or a twin in its place: a fault of `twins.py`."""

    def __init__(
        self,
        folder: Path,
        *,
        twin: str | None = None,
        variables: Mapping[str, str] | None = None,
        **options: Json,
    ) -> None:
        super().__init__(folder, **options)
        self.twin = twin
        self.variables = dict(variables or {})

    def serve_command(self) -> list[str]:
        command = [*program(), "serve"] if self.twin is None else [sys.executable, "-m", "tests.chaos.twins", self.twin]
        variables = ["env", *(f"{name}={value}" for name, value in self.variables.items())] if self.variables else []
        return [*variables, *command]

    @property
    def workers(self) -> list[int]:
        """The processes that serve beneath one that does not; none where there is one alone."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def kill(self) -> None:
        """End every process at once: beneath a parent that was killed alone workers would end in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)  # so that it starts nobody anew
            for worker in self.workers:
                os.kill(worker, signal.SIGKILL)
        super().kill()

    def inject(self, what: str) -> "subprocess.Popen[bytes]":
        """Let the kernel put something into the process's system calls from now on, as `strace -e inject=` has it.

        It counts the calls of each thread by itself. The tracing ends with the process.
        """
        assert self.process is not None
        call = what.partition(":")[0]
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={what}"]
        tracer = subprocess.Popen([*command, "-p", str(self.process.pid)])
        eventually(self._is_traced, what="strace")
        return tracer

    def _is_traced(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True  # it met what was put in at once
        tasks = Path(f"/proc/{self.process.pid}/task")
        return all("TracerPid:\t0" not in _status(task) for task in tasks.iterdir())


def _status(task: Path) -> str:
    with contextlib.suppress(OSError):
        return (task / "status").read_text()
    return ""
