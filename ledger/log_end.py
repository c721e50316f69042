"""The end of the log as it was acknowledged, and the head file that remembers it outside the database (I-23)."""

import logging
from collections.abc import Callable

from ledger import times
from ledger.events import decode
from ledger.head_file import Acknowledged, HeadFile
from ledger.recorders.rows import Reads
from ledger.refusals import LedgerError, Unavailable

log = logging.getLogger("ledger")


class LogEnd:
    """The last position whose events are durable and answered for. Owned by the event loop.

    `behind` is what the head file says where the log ends before it: acknowledged events are lost.
    """

    def __init__(self, head_file: HeadFile, reads: Reads, end: Callable[[], int]) -> None:
        """`end` says where the log ends now; 0: it is new. Raises LedgerError where the head file cannot be read."""
        self.behind: Acknowledged | None = None
        self._head_file = head_file
        # The file first: others on this machine may write to both, and what the file speaks of is in the log by then.
        self._head = head_file.read()
        self.position = end()
        last = reads.after(self.position - 1, 1)
        self._at = decode(last[0].body).at if last else times.text(0)
        self._written = 0

    def compare(self) -> None:
        """Hold the log against the head file as it was, before anything is recorded. Raises LedgerError."""
        head = self._head
        if head is not None and head.position > self.position:
            self.behind = head
            fields = {"log": self.position, "head_file": head.position, "lost_at": times.text(head.at)}
            log.error("log_behind_head_file", extra={"fields": fields})
            return
        if head is None and not self._head_file.off and self.position:
            log.warning("head_file_missing", extra={"fields": {"written_anew": self._head_file.path}})
        self.write()

    def acknowledge(self, position: int, at: str) -> None:
        """The events up to there are durable. `at` is the last one's."""
        self.position = position
        self._at = at

    def check_whole(self) -> None:
        """Raises Unavailable while the log has lost what it had acknowledged (I-23)."""
        if self.behind is not None:
            raise Unavailable("the log is behind the head file", retry_after_seconds=60)

    def look_again(self, reads: Reads) -> None:
        """See whether somebody else has acknowledged the loss meanwhile: a command beside servers that share a store,
        or another of them. Since then positions go on above where the log ended; once they have passed what was lost
        here, too, none of those is given twice."""
        if self.behind is None:
            return
        ((floor, last),) = reads.select("SELECT position_floor, (SELECT max(position) FROM events) FROM control")
        floor, end = int(str(floor)), int(str(last or 0))
        if floor > self.position and max(floor, end) >= self.behind.position:
            self.behind = None
            log.info("restore_acknowledged", extra={"fields": {"by": "another process"}})

    def write(self) -> None:
        """Bring the head file up to date, unless somebody else on this machine has acknowledged more; never while the
        log is behind it. Raises LedgerError."""
        if self.position != self._written and self.behind is None:
            if not self._surpassed():
                self._head_file.write(self.position, times.micros(self._at))
            self._written = self.position

    def _surpassed(self) -> bool:
        try:
            head = self._head_file.read()
        except LedgerError:  # damaged since: written anew
            return False
        return head is not None and head.position > self.position
