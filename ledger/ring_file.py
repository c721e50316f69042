"""The key ring in use and its file: read again when the log names a key that it lacks, grown when a key is added."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ledger.authority import Authority
from ledger.presenting import Desk
from ledger.refusals import LedgerError

log = logging.getLogger("ledger")

REREAD_EVERY_SECONDS = 1.0


class RingFile:
    """Changes the ring of the desk, and nothing else does but SIGHUP. Owned by the event loop."""

    def __init__(self, path: Path, desk: Desk, authority: Authority, clock: Callable[[], int]) -> None:
        self.path = path
        self._desk = desk
        self._authority = authority
        self._clock = clock
        self._read_at = float("-inf")

    @property
    def lacking(self) -> set[int]:
        """The keys that the log names and this node does not hold."""
        return self._authority.keys.created_at.keys() - self._desk.ring.keys.keys()

    def reread(self) -> None:
        """Read the file again, at most once a second. What is wrong with it is one log line."""
        now = time.monotonic()
        if now - self._read_at < REREAD_EVERY_SECONDS:
            return
        self._read_at = now
        try:
            self._desk.ring = self._desk.ring.reload(self.path)
        except LedgerError as error:
            log.error("key_ring_not_read", extra={"fields": {"problem": str(error)}})

    def grow(self) -> int:
        """Add a key, durable in the file on return, and use the ring with it; the new key's id. Raises LedgerError."""
        ring = self._desk.ring.reload(self.path)
        named = max(self._authority.keys.created_at, default=0)
        grown = ring.with_new_key(self._clock(), above=named)
        grown.save(self.path)  # A crash after this line leaves a key that no event names: it is never used.
        self._desk.ring = grown
        return max(grown.keys)
