"""A real file system (FUSE) that keeps in memory what was not synced, and shows what a power cut would leave.

`python -m tests.chaos.lazy_fs MOUNT` serves one flat folder. A line `<mode> <seed> <folder>` on standard input is a
cut: what the disk could hold if the power went now is written to the folder, and `done <syncs>` to standard output.
The files go on as if nothing had happened. What a cut may take is the model of `disk.py`.
"""

import errno
import importlib
import stat
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any, cast

from tests.chaos.disk import Disk, Mode, Record

fuse: Any = importlib.import_module("mfusepy")  # a package of the full tier alone


class LazyFiles(fuse.Operations):  # type: ignore[misc]  # its types may not be here
    """The operations. All under one lock: the kernel asks from many threads."""

    use_ns = True

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self.disk = Disk()
        self.now: dict[str, bytearray] = {}

    def cut(self, mode: Mode, seed: int, folder: Path) -> int:
        """Write down what is left if the power goes now; how many syncs there were."""
        with self._mutex:
            found = self.disk.cut(mode, Random(seed))
            syncs = self.disk.syncs
        for name, content in found.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        return syncs

    def _happens(self, kind: str, path: str, offset: int = 0, data: bytes = b"") -> None:
        self.disk.apply(Record(kind, path[1:], offset, len(data), data))

    def _content(self, path: str) -> bytearray:
        if path not in self.now:
            raise fuse.FuseOSError(errno.ENOENT)
        return self.now[path]

    # -- names -----------------------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        with self._mutex:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": len(self._content(path))}

    def readdir(self, path: str, fh: int) -> list[str]:
        with self._mutex:
            return [".", "..", *(name[1:] for name in self.now)]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        with self._mutex:
            self.now[path] = bytearray()
            self._happens("C", path)
            return 0

    def open(self, path: str, flags: int) -> int:
        with self._mutex:
            self._content(path)
            return 0

    def unlink(self, path: str) -> None:
        with self._mutex:
            self._content(path)
            del self.now[path]
            self._happens("U", path)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        with self._mutex:
            self.now[new] = self._content(old)
            del self.now[old]
            self._happens("R", old, data=new[1:].encode())

    def link(self, target: str, source: str) -> None:
        """`target` is the new name."""
        with self._mutex:
            self.now[target] = self._content(source)
            self._happens("L", source, data=target[1:].encode())

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        with self._mutex:
            self._happens("S", "/")
            return 0

    # -- bytes -----------------------------------------------------------------------------------------------------

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._mutex:
            return bytes(self._content(path)[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._mutex:
            content = self._content(path)
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
            self._happens("W", path, offset, bytes(data))
            return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        with self._mutex:
            content = self._content(path)
            del content[length:]
            content.extend(bytes(length - len(content)))
            self._happens("T", path, length)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self._mutex:
            self._happens("S", path)
            return 0

    # -- what every file allows --------------------------------------------------------------------------------------

    def chmod(self, path: str, mode: int) -> None: ...

    def chown(self, path: str, uid: int, gid: int) -> None: ...

    def utimens(self, path: str, times: Any = None) -> None: ...

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bfree": 1 << 20, "f_bavail": 1 << 20}


def main() -> None:
    """Serve until unmounted; the folder to mount on is the only argument."""
    files = LazyFiles()

    def control() -> None:
        for line in sys.stdin:
            mode, seed, folder = line.rstrip("\n").split(" ", 2)
            print("done", files.cut(cast(Mode, mode), int(seed), Path(folder)), flush=True)

    threading.Thread(target=control, daemon=True).start()
    fuse.FUSE(files, sys.argv[1], foreground=True, nothreads=False, default_permissions=False)


if __name__ == "__main__":
    main()
