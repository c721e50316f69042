"""What processes cost: CPU time, bytes written, memory: read from Linux's /proc, of a process and all beneath it."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Used:
    """What a tree of processes has used until now. `written_bytes` are those that it handed to `write` and its kin, for
    files and for sockets that are written to like files; None where they may not be read.

    Not the kernel's `write_bytes`, which counts a whole folio (up to a megabyte) for each page that is written.
    """

    cpu_seconds: float = 0.0
    written_bytes: int | None = 0

    def __add__(self, other: "Used") -> "Used":
        if self.written_bytes is None or other.written_bytes is None:
            return Used(self.cpu_seconds + other.cpu_seconds, None)
        return Used(self.cpu_seconds + other.cpu_seconds, self.written_bytes + other.written_bytes)

    def since(self, before: "Used") -> "Used":
        minus = None if before.written_bytes is None else -before.written_bytes
        return self + Used(-before.cpu_seconds, minus)


def tree(root: int) -> list[int]:
    """A process and everything that descends from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def used(root: int) -> Used:
    """What a tree has used, children that it has waited for included."""
    total = Used()
    for pid in tree(root):
        with suppress(ProcessLookupError, FileNotFoundError):
            total += Used(sum(map(int, _stat(pid)[11:15])) / _TICKS, _written(pid))
    return total


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _written(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except PermissionError:
        return None
    return int(dict(line.split(": ") for line in lines)["wchar"])


def busy_seconds() -> float:
    """The CPU time of everything on this machine until now, what a host above took away included."""
    user, nice, system, _, _, *interrupts_and_stolen = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts_and_stolen))) / _TICKS


def resident_bytes(root: int) -> int:
    """The memory of a tree; pages that its processes share count for each of them."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def pin(root: int, core: int) -> None:
    """Let a tree run on one core of those that this process may use, where there are two at least."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        allow(root, {cores[core % len(cores)]})


def allow(root: int, cores: set[int]) -> None:
    """Let a tree run on these cores; processes of other users stay where they are."""
    for pid in tree(root):
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cores)
