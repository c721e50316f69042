"""C libraries that a trial puts under a process (LD_PRELOAD): compiled where there is a compiler."""

import importlib.util
import os
import shlex
import shutil
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
