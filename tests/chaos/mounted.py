"""A mounted `lazy_fs` with a worker on it, whose power can be cut."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.disk import Mode
from tests.chaos.store_after import Told
from tests.server_process import PROJECT, eventually

GRANTS = 16
SEED = 20_261_125
WORKER = [sys.executable, "-m", "tests.chaos.store_worker"]


class Mounted:
    """A mounted `lazy_fs`, and a worker on it that is stopped while the power goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "mounted"
        self.place.mkdir()
        self.files = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.lazy_fs", str(self.place)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: os.path.ismount(self.place) or self.files.poll() is not None, what="the mount")
        self.told = Told()
        self._unread = b""
        self.worker: subprocess.Popen[bytes] | None = None

    def work(self, synchronous: str) -> None:
        """Begin on an empty place, without an end in sight."""
        self.told = Told()
        self._unread = b""
        command = [*WORKER, str(self.place), synchronous, str(GRANTS), "1000000000"]
        self.worker = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)

    def cut(self, number: int, mode: Mode) -> Path:
        """Cut the power: what is found then. `told` is what had been told before, all of it."""
        place = self.folder / f"cut-{number}"
        place.mkdir()
        worker = self.worker
        assert worker is not None
        worker.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(worker.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the worker ended by itself: {status}"
        self._take_all()
        assert self.files.stdin is not None
        assert self.files.stdout is not None
        self.files.stdin.write(f"{mode} {SEED + number} {place}\n")
        self.files.stdin.flush()
        assert self.files.stdout.readline().startswith("done ")
        worker.send_signal(signal.SIGCONT)
        return place

    def listen(self, seconds: float) -> None:
        """Take what the worker tells, for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._take(left)

    def hear(self, within_seconds: float = 60.0) -> None:
        """Wait until the worker has told of this store that something is durable, however busy the machine is."""
        until = time.monotonic() + within_seconds
        while not self.told.count:
            left = until - time.monotonic()
            assert left > 0, f"the worker told nothing in {within_seconds} s"
            self._take(left)

    def _take_all(self) -> None:
        while self._take(0):
            pass

    def _take(self, seconds: float) -> bool:
        assert self.worker is not None
        assert self.worker.stdout is not None
        if not select.select([self.worker.stdout], [], [], seconds)[0]:
            return False
        content = os.read(self.worker.stdout.fileno(), 1 << 16)
        assert content, "the worker ended by itself"
        *lines, self._unread = (self._unread + content).split(b"\n")
        for line in lines:
            self.told.take(line)
        return True

    def rest(self) -> None:
        """Kill the worker and empty the place, for good."""
        self._end_worker()
        for path in self.place.iterdir():
            path.unlink()
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)

    def _end_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
            assert self.worker.stdout is not None
            self.worker.stdout.close()
            self.worker = None

    def __enter__(self) -> "Mounted":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_worker()
        for command in (["fusermount3", "-uz"], ["fusermount", "-uz"], ["umount", "-l"]):
            with contextlib.suppress(OSError):
                if subprocess.run([*command, str(self.place)], capture_output=True, check=False).returncode == 0:
                    break
        self.files.terminate()
        self.files.communicate(timeout=10)
