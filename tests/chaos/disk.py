"""A disk that has lost what was not synced: made from the record of what a process asked of its files (`record.c`).

The model is the weakest file system that keeps its word. A file's bytes are safe once the file was synced, its name
once the folder was. What came later may have happened or not: every write by itself, in any order, down to single
sectors (`torn`); names in order, up to any of them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

Mode = Literal["drop", "subset", "torn"]
MODES: tuple[Mode, ...] = ("drop", "subset", "torn")
SECTOR_BYTES = 512
NOT_ON_DISK = ("-shm",)
"""Names of files that are memory shared between processes, and made anew at the next start."""

_HEAD = struct.Struct("<c3xIQQ")


class Record(msgspec.Struct, frozen=True):
    """One thing that was asked, kinds as in `record.c`; A is what the process says that it has acknowledged."""

    kind: str
    path: str
    offset: int
    length: int
    data: bytes


def acknowledged(said: bytes) -> bytes:
    """The record of an acknowledgement, as the process appends it to the log itself."""
    return _HEAD.pack(b"A", 0, 0, len(said)) + said


def records(log: Path) -> Iterator[Record]:
    """Everything in the log, in order; a record that was cut short ends it."""
    content = memoryview(log.read_bytes())
    at = 0
    while at + _HEAD.size <= len(content):
        kind, path_bytes, offset, length = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        path = bytes(content[at : at + path_bytes]).decode()
        at += path_bytes
        data_bytes = length if kind in b"WRLA" else 0
        if at + data_bytes > len(content):
            return
        yield Record(kind.decode(), path, offset, length, bytes(content[at : at + data_bytes]))
        at += data_bytes


@dataclass
class _File:
    safe: bytearray = field(default_factory=bytearray)
    pending: list[Record] = field(default_factory=list)


class Disk:
    """One folder, as its process has written it so far. `cut` says what may be left if the power goes now."""

    def __init__(self) -> None:
        self._names: dict[str, _File] = {}
        self._safe_names: dict[str, _File] = {}
        self._pending_names: list[tuple[Record, _File]] = []
        self.syncs = 0

    def apply(self, record: Record) -> None:
        """Let one more thing happen."""
        if record.kind in "CURL":
            file = _File() if record.kind == "C" else self._names[record.path]
            self._pending_names.append((record, file))
            _name(self._names, record, file)
        elif record.kind == "S" and record.path == "":
            for earlier, file in self._pending_names:
                _name(self._safe_names, earlier, file)
            self._pending_names.clear()
        elif record.kind == "S":
            self.syncs += 1
            file = self._names[record.path]
            for write in file.pending:
                _write(file.safe, write)
            file.pending.clear()
        elif record.kind in "WT":
            self._names[record.path].pending.append(record)

    def cut(self, mode: Mode, chance: Random) -> dict[str, bytes]:
        """What is found when the power is back, by name: a disk that this moment's cut could leave."""
        names = dict(self._safe_names)
        kept = 0 if mode == "drop" else chance.randint(0, len(self._pending_names))
        for record, file in self._pending_names[:kept]:
            _name(names, record, file)
        found = {}
        for name, file in names.items():
            content = bytearray(file.safe)
            for write in [] if mode == "drop" else file.pending:
                if chance.random() < 0.5:
                    _write(content, write, chance if mode == "torn" else None)
            found[name] = bytes(content)
        return {name: content for name, content in found.items() if not name.endswith(NOT_ON_DISK)}

    def as_written(self) -> dict[str, bytes]:
        """What is there if everything reaches the disk: the files as the process left them."""
        found = {}
        for name, file in self._names.items():
            content = bytearray(file.safe)
            for write in file.pending:
                _write(content, write)
            found[name] = bytes(content)
        return {name: content for name, content in found.items() if not name.endswith(NOT_ON_DISK)}


def _name(names: dict[str, _File], record: Record, file: _File) -> None:
    if record.kind == "C":
        names[record.path] = file
    if record.kind in "RL":
        names[record.data.decode()] = file
    if record.kind in "RU":
        names.pop(record.path, None)


def _write(content: bytearray, record: Record, torn: Random | None = None) -> None:
    if record.kind == "T":
        del content[record.offset :]
        content.extend(bytes(max(0, record.offset - len(content))))
        return
    for start in range(0, len(record.data), SECTOR_BYTES) if torn else (0,):
        if torn is None or torn.random() < 0.5:
            part = record.data[start : start + SECTOR_BYTES] if torn else record.data
            at = record.offset + start
            content.extend(bytes(max(0, at - len(content))))
            content[at : at + len(part)] = part
