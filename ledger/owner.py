"""A SQLite file has one owner: the process that holds an exclusive lock on the file `<database>.lock` beside it.

Versions of SQLite before 3.51.3 can corrupt a write-ahead log when two connections write or checkpoint at once. The
lock is the kernel's (flock): it ends with the process, however that ends, so there is never a stale one. The lock file
itself stays: removing it would let two processes lock two files of one name.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType

from ledger.refusals import LedgerError


class Owned(LedgerError):
    """Another process owns the database."""


class OwnerLock:
    """The right to write a database, from `take` until `release` or the end of the process.

    A forked child that does not exec shares the lock and keeps it alive.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, database: str | os.PathLike[str]) -> "OwnerLock":
        """Become the owner of a database, which need not exist yet. Never waits.

        Raises Owned, naming lock file and owner's process id where it is known, where another has it, this process
        included; LedgerError where the lock file cannot be used.
        """
        path = os.path.realpath(database) + ".lock"  # one lock, by whatever link the database is reached
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(f"{path}: cannot open the lock file: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            said, file = os.pread(descriptor, 32, 0).strip(), os.fstat(descriptor)
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise LedgerError(f"{path}: cannot lock: {error.strerror}") from None
            who = f"process {said.decode()}" if _holds(said, file) else "another process"
            raise Owned(f"{path}: {who} already has the database open, and only one may") from None
        # The number only makes the other's error line better: a full disk must not keep anyone from starting.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Let another process be the owner. Safe to repeat."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "OwnerLock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def followed(database: Path) -> Path:
    """The database's own name, which what lies beside it is named by: where this one is a link, that of its file."""
    return Path(os.path.realpath(database)) if database.is_symlink() else database


def _holds(process: bytes, file: os.stat_result) -> bool:
    """Whether the process whose number stands in the file has it open: one that ended has left its number there, and
    whoever locks the file now need not be one of ours. False where nobody can know."""
    with contextlib.suppress(OSError, ValueError):
        descriptors = f"/proc/{int(process)}/fd"
        for each in os.listdir(descriptors):
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samestat(os.stat(f"{descriptors}/{each}"), file):
                    return True
    return False
