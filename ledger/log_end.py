"""The end of the log as it was acknowledged, and the head file that remembers it outside the database (I-23)."""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from typing import Any

import msgspec

from ledger import times
from ledger.events import decode
from ledger.head_file import Acknowledged, HeadFile
from ledger.recorders import archived
from ledger.recorders.errors import HistoryBroken, Withheld
from ledger.recorders.rows import Reads
from ledger.refusals import LedgerError, Unavailable

log = logging.getLogger("ledger")

LOST = ".lost"
"""Ends the name of the file that says what the log lacks, until that was acknowledged."""

_NEVER = times.text(0)
"""Stands for a time that is not known."""

_AT = (
    "SELECT CAST(e.body AS BLOB), e.v, CAST(s.name AS BLOB), s.v, s.head FROM events e"
    " LEFT JOIN streams s ON s.id = e.stream WHERE e.position = ?"
)
_FLOOR = "SELECT coalesce(max(position_floor), 0) FROM control"
_FLOOR_AND_LAST = "SELECT coalesce(max(position_floor), 0), (SELECT max(position) FROM events) FROM control"


class LogEnd:
    """The last position whose events are durable and answered for. Owned by the event loop.

    `behind` is what was acknowledged last, as the head file says or this process knows, where the log does not have it:
    an older backup was put back, or a standby that lacked it has taken over.
    """

    def __init__(self, head_file: HeadFile, reads: Reads, end: Callable[[], int]) -> None:
        """`end` says where the log ends now; 0: it is new. Raises LedgerError where the head file cannot be read."""
        self.behind: Acknowledged | None = None
        self._head_file = head_file
        # What is lost is remembered apart: who shares the head file, and has lost nothing, goes on writing that.
        self._lost_file = head_file.beside(LOST)
        self._end = end
        # The files first: others on this machine may write to both, and what these speak of is in the log by then.
        self._head = head_file.read()
        known = [each for each in (self._head, self._lost_file.read()) if each is not None]
        self.position, self._at = self._read_end(reads)
        self._lost = _last_of(each for each in known if _lacks(reads, self.position, each))
        self._written = (head_file, 0)

    def _read_end(self, reads: Reads) -> tuple[int, str]:
        position = self._end()
        last = reads.raw_after(position - 1, 1)
        return position, _time_of(last[0].body) if last else _NEVER

    def compare(self) -> None:
        """Hold the log against the head file as it was, before anything is recorded. Raises LedgerError."""
        lost = self._lost
        if lost is not None:
            self.behind = lost
            self._written = (self._lost_file, lost.position)  # it was read from there, or from the head file
            fields = {"log": self.position, "head_file": lost.position, "lost_at": times.text(lost.at)}
            log.error("log_behind_head_file", extra={"fields": fields})
            return
        if self._head is None and not self._head_file.off and self.position:
            log.warning("head_file_missing", extra={"fields": {"written_anew": self._head_file.path}})
        with suppress(LedgerError):
            self._lost_file.remove()
        self.write()

    def meet(self, reads: Reads) -> bool:
        """The store was reached anew: False where the log there is found to lack what was acknowledged over the last
        connection, or what others on this machine have said in the head file. Whoever does without that file is told
        and served on: nobody could say that the loss is known."""
        if self.behind is not None:
            known = [self.behind]  # as a start would: the server that has it may be back
        else:
            known = [Acknowledged(self.position, times.micros(self._at))] if self.position else []
            with suppress(LedgerError):
                known += [each for each in (self._head_file.read(), self._lost_file.read()) if each is not None]
        # Nothing is kept before all of it was answered: the connection may be lost again at any question.
        end = self._read_end(reads)
        lost = _last_of(each for each in known if _lacks(reads, end[0], each))
        self.position, self._at = end
        if lost is None:
            if self.behind is not None:
                self.not_behind()
            return True
        if self.behind is not None:
            return True
        fields = {"log": self.position, "acknowledged": lost.position, "lost_at": times.text(lost.at)}
        log.error("log_lacks_what_was_acknowledged", extra={"fields": fields})
        if self._head_file.off:
            return True
        self.behind = lost
        with suppress(LedgerError):  # it is tried again, as ever
            self.write()
        return False

    def not_behind(self) -> None:
        """The loss was acknowledged, or the log has it after all."""
        behind, self.behind = self.behind, None
        with suppress(LedgerError):  # a file that stays says nothing once the log holds what it speaks of
            known = self._lost_file.read()
            if known is not None and behind is not None and known.position <= behind.position:
                self._lost_file.remove()

    def acknowledge(self, position: int, at: str) -> None:
        """The events up to there are durable. `at` is the last one's."""
        self.position = position
        self._at = at

    def check_whole(self) -> None:
        """Raises Unavailable while the log has lost what it had acknowledged (I-23)."""
        if self.behind is not None:
            raise Unavailable("the log lacks what was acknowledged", retry_after_seconds=60)

    def look_again(self, reads: Reads) -> None:
        """See whether somebody else has acknowledged the loss meanwhile: a command beside servers that share a store,
        or another of them. Since then positions go on above where the log ended; once they have passed what was lost
        here, too, none of those is given twice."""
        if self.behind is None:
            return
        ((floor, last),) = reads.select(_FLOOR_AND_LAST)
        floor, end = int(str(floor)), int(str(last or 0))
        if floor > self.position and max(floor, end) >= self.behind.position:
            self.position, self._at = self._read_end(reads)
            self.not_behind()
            log.info("restore_acknowledged", extra={"fields": {"by": "another process"}})

    def write(self) -> None:
        """Bring the head file up to date, unless somebody else on this machine has acknowledged more. Where the log
        lacks what was acknowledged say that beside it, so that the next start knows. Raises LedgerError."""
        known = self.behind or Acknowledged(self.position, times.micros(self._at))
        file = self._head_file if self.behind is None else self._lost_file
        if (file, known.position) == self._written:  # what is lost may stand in the head file, which others write over
            return
        try:
            there = file.read()
        except LedgerError:  # damaged since: written anew
            there = None
        if there is None or there.position < known.position:
            file.write(known.position, known.at)
        self._written = (file, known.position)


def _last_of(known: Iterable[Acknowledged]) -> Acknowledged | None:
    return max(known, key=lambda each: each.position, default=None)


def _time_of(body: bytes) -> str:
    """When an event happened. Of one that was altered nobody knows: it is there, and a rebuild names it, for which the
    ledger has to be open."""
    try:
        at = decode(body).at
    except msgspec.DecodeError:
        return _NEVER
    return _NEVER if times.known(at) is None else at


def _lacks(reads: Reads, end: int, known: Acknowledged) -> bool:
    """Whether the log, which ends there, lacks an event that was acknowledged, and nobody has said so. It may go on
    beyond that place, with others' events. Of what has moved into the archive it is enough that something so late has.
    """
    if known.position > end:
        return True
    ((floor,),) = reads.select(_FLOOR)
    # First where it may have moved from: each question may see a moment of its own.
    rows: list[tuple[Any, ...]] = reads.select(_AT, (known.position,))
    if known.position <= int(str(floor)) or reads.select(archived.ANY_AFTER, (known.position - 1,)):
        return False
    if not rows:
        return True
    ((body, v, name, last_v, head),) = rows
    at = _time_of(bytes(body))
    if at in (_NEVER, times.text(known.at)) or not known.at:
        return False
    return _stands(reads, bytes(body), v, None if name is None else bytes(name).decode(errors="replace"), last_v, head)


def _stands(reads: Reads, body: bytes, v: int, name: str | None, last_v: int, head: bytes) -> bool:
    """Whether an event is as it was recorded, and so another than one of another time. Else somebody has altered it,
    and it may well be that one."""
    digest = sha256(body).digest()
    if v == last_v:
        return digest == bytes(head)
    try:
        following = None if name is None else reads.event_at(name, v + 1)
        return following is not None and decode(following.body).prev == digest.hex()
    except (HistoryBroken, Withheld, msgspec.DecodeError):
        return False
