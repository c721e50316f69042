"""C libraries that a trial puts under a process (LD_PRELOAD): compiled where there is a compiler."""

import importlib.util
import mmap
import os
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest


def compiler() -> list[str] | None:
    """The C compiler of this machine, the one that comes as a Python package included."""
    if named := os.environ.get("CC"):
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def compiled(name: str, folder: Path) -> Path:
    """Compile `<name>.c` of this folder into a library. Skips the test where that cannot be done."""
    if sys.platform != "linux":
        pytest.skip(f"{name}.c is preloaded with the means of Linux")
    command = compiler()
    if command is None:
        pytest.skip(f"{name}.c needs a C compiler: none of $CC, cc, gcc, clang, and no package ziglang")
    library = folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    arguments = ["-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source), "-ldl"]
    subprocess.run([*command, *arguments], check=True)
    return library


class Faults:
    """A disk that fails as a trial says, for a process that runs with `variables` (`faults.c`)."""

    _FIELDS = ("syncs", "failing_sync", "failing_syncs", "sync_error", "write_error", "failed")
    _NUMBER = struct.Struct("<q")

    def __init__(self, folder: Path, path: str) -> None:
        """Only files whose path, with a `$` at its end, holds `path` are meant. Skips where nothing can be compiled."""
        control = folder / "faults.control"
        control.write_bytes(bytes(self._NUMBER.size * len(self._FIELDS)))
        with control.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        self.variables = {
            "LD_PRELOAD": str(compiled("faults", folder)),
            "FAULTS_CONTROL": str(control),
            "FAULTS_PATH": path,
        }

    def _get(self, name: str) -> int:
        return int(self._NUMBER.unpack_from(self._shared, self._NUMBER.size * self._FIELDS.index(name))[0])

    def _set(self, name: str, number: int) -> None:
        self._NUMBER.pack_into(self._shared, self._NUMBER.size * self._FIELDS.index(name), number)

    @property
    def failed(self) -> int:
        """How many calls have failed."""
        return self._get("failed")

    def fail_syncs(self, number: int, error: int, *, times: int = 1) -> None:
        """Let the sync with this number, counted from now, fail, and those that follow it, so many in all; 0: none."""
        self._set("sync_error", error)
        self._set("failing_sync", self._get("syncs") + number)
        self._set("failing_syncs", times)

    def fail_writes(self, error: int) -> None:
        """Let every write fail from now on; 0: none any more."""
        self._set("write_error", error)
