"""A real store whose next steps go wrong as a test says, and somebody else who writes to the same file."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ledger.recorders.errors import StoreError
from ledger.recorders.rows import Work
from ledger.recorders.sqlite import SQLiteStore
from projections import INLINE
from tests.ledgers import Opened

T = TypeVar("T")
Fault = Callable[[Callable[[], Any]], Any]
"""Stands in for one call of a step; it is given the real step, to take or to leave."""


class FaultyStore(SQLiteStore):
    """Each fault that is put in `on_begin`, `on_write`, `on_commit` or `on_checkpoint` replaces one call of that step.
    A check-point is due where there is one for it, too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, INLINE)
        self.on_begin: deque[Fault] = deque()
        self.on_write: deque[Fault] = deque()
        self.on_commit: deque[Fault] = deque()
        self.on_checkpoint: deque[Fault] = deque()
        self.commits = 0

    def begin(self) -> tuple[int, int]:
        return _taken(self.on_begin, super().begin)

    def write(self, work: Work) -> None:
        step = super().write
        _taken(self.on_write, lambda: step(work))

    def commit(self) -> None:
        self.commits += 1
        _taken(self.on_commit, super().commit)

    def checkpoint_due(self) -> bool:
        return bool(self.on_checkpoint) or super().checkpoint_due()

    def checkpoint(self) -> None:
        _taken(self.on_checkpoint, super().checkpoint)


def faulty(opened: Opened) -> FaultyStore:
    """The store of a ledger that was opened with one."""
    assert isinstance(opened.store, FaultyStore)
    return opened.store


def _taken(faults: deque[Fault], step: Callable[[], T]) -> T:
    answer: T = faults.popleft()(step) if faults else step()
    return answer


def instead(error: StoreError) -> Fault:
    """The step is not taken, and says so."""

    def fault(step: Callable[[], Any]) -> Any:
        raise error

    return fault


def after(error: StoreError) -> Fault:
    """The step is taken, and says that it failed."""

    def fault(step: Callable[[], Any]) -> Any:
        step()
        raise error

    return fault


class Held:
    """A step that waits, once it is reached, until the test lets it go on."""

    def __init__(self, then: Fault = lambda step: step()) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self._then = then

    async def arrival(self) -> None:
        """Wait for the step to be reached."""
        assert await asyncio.to_thread(self.reached.wait, 10), "nobody has come to this step"

    def __call__(self, step: Callable[[], Any]) -> Any:
        self.reached.set()
        assert self.go_on.wait(30)
        return self._then(step)


class Neighbour(SQLiteStore):
    """A second owner, which cannot be: it takes no lock. Stands for another node on a store that has many."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, INLINE)

    def open(self, ring_id: str) -> bool:
        return self._open(ring_id)


_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    """Another program holds the database's write lock while the block runs."""
    with subprocess.Popen(
        [sys.executable, "-c", _LOCKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "locked\n" == process.stdout.readline()
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)
