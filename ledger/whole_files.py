"""Small files that are there whole or not at all: what a reader finds is one version, never half of one.

Used for the key ring and the head file. Errors are `OSError`; the caller knows what the file means and says so.
"""

import contextlib
import os
import tempfile


def write_new(path: str, content: bytes) -> None:
    """Make a file that must not exist yet, mode 0600, durable on return with its directory's entry.

    Raises FileExistsError and leaves the other file alone, also where two processes try at the same moment.
    A crash on the way leaves no file at `path`, at most a temporary one (`.<name>.*`, mode 0600) beside it.
    """
    temporary = _written_aside(path, content, durable=True)
    try:
        os.link(temporary, path)  # unlike rename, never replaces
    finally:
        os.unlink(temporary)
    _sync_directory(path)


def write_over(path: str, content: bytes, *, durable: bool) -> None:
    """Replace a file, mode 0600, or make it; a symbolic link is followed, not replaced.

    Durable on return, with its directory's entry, where `durable`. Otherwise a killed process loses nothing, but a
    power cut may bring the old content back, or on some file systems leave a file that is empty or all NUL bytes.
    A crash before the rename leaves the old file as it was and perhaps a temporary one (`.<name>.*`) beside it.
    """
    path = os.path.realpath(path)
    temporary = _written_aside(path, content, durable=durable)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    if durable:
        _sync_directory(path)


def _written_aside(path: str, content: bytes, *, durable: bool) -> str:
    """Write to a new file in the same directory, so that a rename stays inside one file system."""
    folder, name = os.path.split(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return temporary


def _sync_directory(path: str) -> None:
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
