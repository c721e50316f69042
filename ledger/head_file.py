"""The head file: the last acknowledged position and its time, kept outside the database.

A log that ends before it has lost events that were acknowledged (a backup was put back): the ledger then stays
unready (I-23). The file is written after the commit it speaks of was durable, so it may lag behind the log and never
leads it. That is why no write is synced: a killed process loses nothing that was renamed, and after a power cut an
older file tells less and nothing false.
"""

import os
import tempfile
from contextlib import suppress
from typing import Annotated

import msgspec

from ledger import times, whole_files
from ledger.refusals import LedgerError

_FILE_BYTES_MAX = 4096
_POSITION_MAX = 2**63 - 1


class Acknowledged(msgspec.Struct, frozen=True):
    """An acknowledged event's position in the log and its `at`, in microseconds."""

    position: int
    at: int


class _HeadOnFile(msgspec.Struct, forbid_unknown_fields=True):
    position: Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,18})\Z")]
    at: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z\Z")]


class HeadFile:
    """One head file, or with None as path the lack of one (`off`): then nothing is written and nothing known."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else os.fspath(path)

    @property
    def off(self) -> bool:
        """Whether the operating side chose to do without."""
        return self.path is None

    def read(self) -> Acknowledged | None:
        """What was last written; None where there is no file, or one that a power cut left blank.

        Raises LedgerError where the file cannot be read or holds something else.
        """
        if self.path is None:
            return None
        try:
            with open(self.path, "rb") as file:
                content = file.read(_FILE_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot read the head file: {error.strerror}") from None
        if not content.strip(b"\0"):
            return None
        try:
            stored = msgspec.json.decode(content, type=_HeadOnFile)
            head = Acknowledged(int(stored.position), times.micros(stored.at))
            if head.position > _POSITION_MAX:
                raise ValueError
            return head
        except (msgspec.MsgspecError, ValueError):
            raise LedgerError(
                f"{self.path}: this is no head file or a damaged one; remove it to have it written anew from the log"
            ) from None

    def write(self, position: int, at: int) -> None:
        """Say that everything up to `position` is acknowledged. Call it only for what is durable in the store.

        Whole or not at all; not durable on return (see above). Raises LedgerError where it cannot be written.
        """
        if self.path is None:
            return
        content = msgspec.json.encode(_HeadOnFile(str(position), times.text(at))) + b"\n"
        try:
            whole_files.write_over(self.path, content, durable=False)
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot write the head file: {error.strerror}") from None

    def beside(self, ending: str) -> "HeadFile":
        """Another file of the same kind, under this one's name with an ending; the lack of one beside none."""
        return HeadFile(None if self.path is None else self.path + ending)

    def remove(self) -> None:
        """Let there be none. Raises LedgerError where it cannot be removed."""
        if self.path is not None:
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self.path)
            except OSError as error:
                raise LedgerError(f"{self.path}: cannot be removed: {error.strerror}") from None

    def check_writable(self) -> None:
        """Raise LedgerError where `write` would fail: no such folder, no permission, no space; and where it would put a
        file in the place of what is none, /dev/null say. Changes nothing."""
        if self.path is None:
            return
        target = os.path.realpath(self.path)
        if os.path.isdir(target):
            raise LedgerError(f"{self.path}: cannot write the head file: it is a folder")
        if os.path.exists(target) and not os.path.isfile(target):
            raise LedgerError(f"{self.path}: the head file is not a regular file; `off` does without one")
        try:
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), prefix=".head-file.") as file:
                file.write(b"\n")
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot write the head file: {error.strerror}") from None
