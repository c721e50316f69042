"""A store's files in the system's memory (Linux's page cache), as a server that has run for long leaves them there.

Two things would be measured instead of the store. What is not there waits for the disk; and a system that has time
gives pages away which nobody has touched for a minute. And what was read or copied in one go stands there in pieces of
up to 2 MB: Linux 6.18 on ext4 looks through the whole of a piece for each page of it that is written, which costs tens
of microseconds where one costs three. A server reads and writes single pages, so its files stand there in those.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

Files = Callable[[], Iterable[Path]]
"""The files of a store, as of now."""

DATABASE_FOLDER = (
    "SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database WHERE datname = current_database()"
)
"""Asked of a database of PostgreSQL: where its files are."""

_READ_BYTES = 1 << 20


def read_in_anew(files: Iterable[Path]) -> None:
    """Read files in anew, page by page, whatever of them was in memory."""
    _in_another_process("anew", files)


def read_in(files: Iterable[Path]) -> None:
    """Read in, page by page, what is not in memory."""
    _in_another_process("rest", files)


def files_in(*folders: Path) -> Files:
    """All files of folders."""
    return lambda: [path for folder in folders for path in folder.iterdir() if path.is_file()]


def _in_another_process(what: str, files: Iterable[Path]) -> None:
    # A process that closes a file which SQLite has open in it, too, takes SQLite's locks away.
    if paths := [str(path) for path in files]:
        subprocess.run([sys.executable, "-m", __name__, what, *paths], check=True)


def _read_in(path: str, *, anew: bool) -> None:
    with open(path, "rb", buffering=0) as file:
        if sys.platform == "linux":  # elsewhere it is only read
            if anew:
                os.fsync(file.fileno())  # what is not on the disk yet would stay
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # else the system reads ahead, in large pieces
        while file.read(_READ_BYTES):
            pass


if __name__ == "__main__":
    for each in sys.argv[2:]:
        with suppress(FileNotFoundError, PermissionError):  # gone by now, or another user's
            _read_in(each, anew=sys.argv[1] == "anew")
