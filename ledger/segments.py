"""Archive segments: export lines in compressed blocks, written once, and read block by block.

An export line is one event: `{"event":<the stored bytes>,"position":"<decimal>"}`, canonical JSON, nothing parsed and
made again. A line whose bytes were given up is withheld: `#` and the base64 of its hash, SHA-256 over a zero byte and
the line (the leaf hash of RFC 6962 2.1). A block is a few hundred lines, those of one stream together and in order; it
is one gzip member, so a segment is a gzip file like any other, and `zcat` shows an auditor every line.

A segment is named by its number and the SHA-256 of its bytes. It has that name only once it is whole and durable, and
nobody ever writes to it again. Beside a SQLite database segments are files in a folder; where the store is one of many
nodes they lie in its database (`recorders/postgres_segments.py`).
"""

import hashlib
import os
import re
import sys
import threading
import time
import zlib
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ledger.owner import followed
from ledger.recorders.errors import ArchiveDamaged

BLOCK_BYTES: Final = 65_536
"""Lines fill a block up to here and a little over. Twice as much saves three bytes a refresh and doubles what it takes
to read one event; half as much costs nine."""

LEVEL: Final = 6
READ_BYTES: Final = 32_768
FOREIGN: Final = ".foreign"
"""Ends the name of a segment that was put aside."""

KEPT_SECONDS: Final = 7 * 86_400
"""So long the file of a segment that was replaced stays."""

BLOCKS_IN_MEMORY_MAX: Final = 64
UNFINISHED: Final = "segment.new"
"""The one file that is being written. What a crash leaves of it is written over."""

_GZIP: Final = 31
_NAME: Final = re.compile(r"([0-9]{6,})-([0-9a-f]{64})\.jsonl\.gz")
_NUMBERED: Final = re.compile(r"[0-9]{6,}-")
_EVENT: Final = b'{"event":'
_POSITION: Final = b',"position":"'
_END: Final = b'"}'
_WITHHELD: Final = b"#"


class Block(NamedTuple):
    """One block of a segment: the byte that it begins at, and its lines."""

    at_byte: int
    lines: list[bytes]


def line_of(position: int, body: bytes) -> bytes:
    """The export line of an event: its position in the log and its stored bytes."""
    return b"%s%s%s%d%s" % (_EVENT, body, _POSITION, position, _END)


def event_of(line: bytes) -> tuple[int, bytes] | None:
    """The position and the stored bytes that a line holds; None where they are withheld."""
    if line.startswith(_WITHHELD):
        return None
    body, _, position = line.removeprefix(_EVENT).rpartition(_POSITION)
    return int(position.removesuffix(_END)), body


def withheld(line: bytes) -> bytes:
    """The line that stands in place of another once its bytes are given up; a withheld one stays as it is."""
    if line.startswith(_WITHHELD):
        return line
    return _WITHHELD + b64encode(hashlib.sha256(b"\0" + line).digest())


def folder_of(database: Path) -> Path:
    """Where the segments of a SQLite database lie: `<database>.archive` beside it, by whatever link it is reached. One
    that an earlier release has made beside the link stays there."""
    beside_link = database.with_name(database.name + ".archive")
    real = followed(database)
    return beside_link if beside_link.exists() else real.with_name(real.name + ".archive")


def number_of(name: str) -> int:
    """The number of a segment by its name."""
    return int(name.partition("-")[0])


def digest_of(name: str) -> str | None:
    """The SHA-256 that a segment is named by; None where the text is no name of one that is whole and of this log."""
    named = _NAME.fullmatch(name)
    return None if named is None else named[2]


class BlocksInMemory:
    """The lines of the last few blocks that were asked for. Safe to use from any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str, at_byte: int) -> list[bytes] | None:
        """The lines of a block; None where they are not here."""
        key = (name, at_byte)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, name: str, at_byte: int, lines: list[bytes]) -> None:
        """Remember a block, and forget the one that was asked for least lately."""
        with self._lock:
            self._kept[name, at_byte] = lines
            while len(self._kept) > BLOCKS_IN_MEMORY_MAX:
                self._kept.popitem(last=False)


class Place(Protocol):
    """Where the bytes of one segment under way go. Raises OSError, StoreError."""

    def write(self, at_byte: int, block: bytes) -> None: ...
    def close(self, name: str, size: int) -> None:
        """Let there be a segment of this name: all of it, durable, on return; a crash before that leaves none."""
        ...

    def abandon(self) -> None: ...


class SegmentStore(Protocol):
    """The segments of one store, for whoever archives. Used from threads, one at a time. Raises OSError, StoreError."""

    def claim(self, *, regular: bool) -> bool:
        """Become the one who archives; False where another process is. A `regular` run is also turned away where one
        was not long ago: every process would begin one."""
        ...

    def keep(self) -> None:
        """Stay the one who archives: to be called every few seconds. Raises StoreBusy where another process is by now:
        nothing that this one writes counts any more."""
        ...

    def release(self, rest_seconds: float) -> None:
        """Let others archive, and regular runs only after a rest. Raises StoreBusy as `keep` does."""
        ...

    def names(self) -> list[str]: ...
    def last_number(self) -> int: ...
    def bytes_of(self, name: str) -> int | None: ...
    def blocks(self, name: str) -> Iterator[Block]: ...
    def check(self, name: str) -> None: ...
    def settle(self, name: str) -> None:
        """Have a segment that was found be durable on return, as one that was written is: before it is relied on."""
        ...

    def write(self, number: int) -> "SegmentWriter": ...
    def retire(self, name: str) -> None:
        """Another segment takes the place of this one: from now on it is only for whoever still looks there."""
        ...

    def remove(self, name: str) -> bool:
        """Delete a segment that nothing refers to, and that may be gone already; False where it is too early."""
        ...

    def put_aside(self, name: str) -> None: ...


class Segments:
    """The segments in one folder. Safe to use from any thread. Raises ArchiveDamaged for what cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.in_memory = BlocksInMemory()

    # ------------------------------------------------------------ who archives

    def claim(self, *, regular: bool) -> bool:
        """Become the one who archives: whoever owns the database is."""
        return True

    def keep(self) -> None:
        """Stay the one who archives."""

    def release(self, rest_seconds: float) -> None:
        """Let others archive: there are none."""

    # ------------------------------------------------------------ the segments

    def names(self) -> list[str]:
        """The names of all segments that are whole, by number."""
        try:
            return sorted(filter(digest_of, os.listdir(self.folder)), key=number_of)
        except FileNotFoundError:
            return []

    def last_number(self) -> int:
        """The highest number that any segment here has, one that was put aside too; 0 where there is none."""
        try:
            return max((number_of(name) for name in os.listdir(self.folder) if _NUMBERED.match(name)), default=0)
        except FileNotFoundError:
            return 0

    def bytes_of(self, name: str) -> int | None:
        """How long a segment is on the disk; None where it is not there."""
        try:
            return os.stat(self.folder / name).st_size
        except FileNotFoundError:
            return None

    def lines(self, name: str, at_byte: int) -> list[bytes]:
        """The lines of the block that begins at a byte. The last few blocks asked for are remembered."""
        found = self.in_memory.get(name, at_byte)
        if found is None:
            with _opened(self.folder / name) as file:
                found = block_at(_of(file), name, at_byte)[0].lines
            self.in_memory.keep(name, at_byte, found)
        return found

    def blocks(self, name: str) -> Iterator[Block]:
        """Every block of a segment in order, read from the file."""
        at_byte = 0
        with _opened(self.folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            while at_byte < size:
                block, at_byte = block_at(_of(file), name, at_byte)
                yield block

    def check(self, name: str) -> None:
        """Read a whole segment and compare its bytes with its name. Raises ArchiveDamaged."""
        digest = hashlib.sha256()
        with _opened(self.folder / name) as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
        check_digest(name, digest.hexdigest())

    def settle(self, name: str) -> None:
        """Bring a segment and its name to the disk: whoever wrote it may have been killed before that, and a copy that
        was put here may be in the system's memory alone."""
        with _opened(self.folder / name) as file:
            os.fsync(file.fileno())
        _sync(self.folder)

    def write(self, number: int) -> "SegmentWriter":
        """Begin the segment of this number. OSError where the folder cannot be written."""
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700)
            _sync(self.folder.parent)
        return SegmentWriter(number, _File(self.folder))

    def retire(self, name: str) -> None:
        """Note on the file that another one takes its place from now on."""
        with suppress(FileNotFoundError):
            os.utime(self.folder / name)

    def remove(self, name: str) -> bool:
        """Delete a segment that nothing refers to, and that may be gone already; False where it was retired less than
        KEPT_SECONDS ago: a backup's copy of the database, or a rebuild under way, may still name it. A clock that was
        put back since by less than that makes it no older."""
        with suppress(FileNotFoundError):
            if abs(time.time() - os.stat(self.folder / name).st_mtime) < KEPT_SECONDS:
                return False
            os.unlink(self.folder / name)
        _sync(self.folder)  # A power cut before this line brings the file back, with nothing that names it later.
        return True

    def put_aside(self, name: str) -> None:
        """Rename a segment that is of another log, so that nobody looks at it again; its bytes stay."""
        os.replace(self.folder / name, self.folder / f"{name}{FOREIGN}")


class SegmentWriter:
    """One segment under way. A crash before `close` returned leaves nothing that has a segment's name."""

    def __init__(self, number: int, place: Place) -> None:
        self.events = 0
        self._number = number
        self._place = place
        self._digest = hashlib.sha256()
        self._size = 0
        self._lines: list[bytes] = []
        self._bytes = 0

    def add(self, line: bytes) -> None:
        """Add one line, and where it fills the block, write that."""
        self._lines.append(line)
        self._bytes += len(line)
        self.events += 1
        if self._bytes >= BLOCK_BYTES:
            self.end_block()

    def add_block(self, lines: list[bytes]) -> None:
        """Write lines as a block of their own, however long."""
        self._lines = lines
        self.events += len(lines)
        self.end_block()

    def end_block(self) -> None:
        """Write the lines that wait as a block."""
        if not self._lines:
            return
        packer = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
        packed = packer.compress(b"".join(line + b"\n" for line in self._lines)) + packer.flush()
        self._place.write(self._size, packed)
        self._digest.update(packed)
        self._size += len(packed)
        self._lines, self._bytes = [], 0

    def close(self) -> str:
        """Finish the segment; its name. On return it is durable under that name."""
        self.end_block()
        name = f"{self._number:06d}-{self._digest.hexdigest()}.jsonl.gz"
        self._place.close(name, self._size)
        return name

    def abandon(self) -> None:
        """Let there be no such segment."""
        self._place.abandon()


class _File:
    """A segment's bytes on their way into a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = open(folder / UNFINISHED, "wb", opener=_private)  # noqa: SIM115  # closed by `close` or `abandon`

    def write(self, at_byte: int, block: bytes) -> None:
        """Append a block."""
        self._file.write(block)

    def close(self, name: str, size: int) -> None:
        """Give the file its name, with its folder's entry on the disk. Out of the system's memory too, where it can
        be told so: whoever reads it next reads the disk."""
        try:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
                if sys.platform != "darwin":  # macOS takes no such advice: there it stays in memory
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            self.abandon()
            raise
        os.replace(self._folder / UNFINISHED, self._folder / name)  # A crash before this line: there is no segment.
        _sync(self._folder)

    def abandon(self) -> None:
        """Let there be no such file."""
        with suppress(OSError):  # what waits to be written may find no room: it is not wanted any more
            self._file.close()
        (self._folder / UNFINISHED).unlink(missing_ok=True)


def check_digest(name: str, digest: str) -> None:
    """Raise ArchiveDamaged where a segment's bytes, of this SHA-256, are not those that it is named by."""
    if digest_of(name) != digest:
        raise ArchiveDamaged(f"{name}: the bytes of this archive segment are not those that it is named by")


@contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    try:
        with FileIO(path) as file:
            yield file
    except OSError as error:
        raise ArchiveDamaged(f"{path.name}: this archive segment cannot be read: {error.strerror}") from None


def block_at(read: Callable[[int], bytes], name: str, at_byte: int) -> tuple[Block, int]:
    """The block of a segment that begins at a byte, and where the next one would. `read` gives some of its bytes from
    one on, nothing at its end. Raises ArchiveDamaged."""
    unpacker = zlib.decompressobj(_GZIP)
    parts, end = [], at_byte
    try:
        while not unpacker.eof:
            chunk = read(end)
            if not chunk:
                raise ArchiveDamaged(f"{name}: the archive segment ends within the block at byte {at_byte}")
            end += len(chunk)
            parts.append(unpacker.decompress(chunk))
    except zlib.error:
        raise ArchiveDamaged(f"{name}: the block at byte {at_byte} of this archive segment is damaged") from None
    return Block(at_byte, b"".join(parts).split(b"\n")[:-1]), end - len(unpacker.unused_data)


def _of(file: FileIO) -> Callable[[int], bytes]:
    return lambda at_byte: os.pread(file.fileno(), READ_BYTES, at_byte)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
