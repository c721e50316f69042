"""The key ring in use and its file: read again when the log names a key that it lacks, grown when a key is added."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ledger.authority import Authority
from ledger.keyring import Alg, KeyNotHeld, KeyRing
from ledger.presenting import Desk
from ledger.refusals import LedgerError, Refusal, Refused

log = logging.getLogger("ledger")

T = TypeVar("T")

REREAD_EVERY_SECONDS = 1.0


class RingFile:
    """Changes the ring of the desk, and nothing else does but SIGHUP. Owned by the event loop."""

    def __init__(self, path: Path, desk: Desk, authority: Authority, clock: Callable[[], int]) -> None:
        self.path = path
        self._desk = desk
        self._authority = authority
        self._clock = clock
        self._read_at = float("-inf")
        self._disowned: set[int] = set()

    @property
    def lacking(self) -> set[int]:
        """The keys that the log names and this node does not hold."""
        return self._authority.keys.created_at.keys() - self._desk.ring.keys.keys()

    def disown(self) -> None:
        """Let go of keys that are others than those that the log names by their ids: from then on this node lacks
        those. Where `keys rotate` was killed before its event one is left in the file, and another node may give its id
        again."""
        ring, named = self._desk.ring, self._authority.keys.fingerprints
        others = {key_id for key_id in ring.keys & named.keys() if ring.fingerprint(key_id) != named[key_id]}
        if others:
            self._desk.ring = ring.without(others)
            for key_id in sorted(others - self._disowned):
                log.error("key_ring_holds_another_key", extra={"fields": {"key": key_id, "file": str(self.path)}})
            self._disowned |= others

    def reread(self) -> None:
        """Read the file again, at most once a second. What is wrong with it is one log line."""
        now = time.monotonic()
        if now - self._read_at < REREAD_EVERY_SECONDS:
            return
        self._read_at = now
        try:
            self.take()
        except LedgerError as error:
            log.error("key_ring_not_read", extra={"fields": {"problem": str(error)}})

    def take(self) -> None:
        """Use the ring as the file has it now. Raises LedgerError where it cannot be read or is another ring."""
        self._desk.ring = self._desk.ring.reload(self.path)
        self.disown()

    def read(self, parse: Callable[[KeyRing, str], T], token: str) -> T:
        """Read a token; where it names a key that the ring lacks, the ring's file may have it by now.

        Raises Refused where it has not: the token may be ours, so nobody may be told that it is nothing.
        """
        try:
            return parse(self._desk.ring, token)
        except KeyNotHeld:
            self.reread()
        try:
            return parse(self._desk.ring, token)
        except KeyNotHeld:
            raise Refused(Refusal.UNKNOWN_TOKEN) from None

    async def grow(self, alg: Alg | None = None) -> int:
        """Add a key, durable in the file on return, and use the ring with it; the new key's id. It signs JWTs by `alg`,
        or as the active key does. Raises LedgerError, also on a node that lacks a key: one that is added to its file
        would stand beside another in every other node's, and no file would have both."""
        if lacking := self.lacking:
            raise LedgerError(f"the key ring of this node lacks key {min(lacking)}, which the log names: copy it first")
        alg = alg or self._alg_of_active
        rsa = await asyncio.to_thread(_new_rsa_key) if alg == "RS256" else None
        ring = self._desk.ring.reload(self.path)
        named = max(self._authority.keys.created_at, default=0)
        grown = ring.with_new_key(self._clock(), above=named, alg=alg, rsa=rsa)
        grown.save(self.path)  # A crash after this line leaves a key that no event names: it is never used.
        self._desk.ring = grown
        self.disown()
        return max(grown.keys)

    @property
    def _alg_of_active(self) -> Alg:
        active = self._desk.ring.keys.get(self._authority.keys.active_id)
        return "ES256" if active is None else active.alg


def _new_rsa_key() -> bytes:
    from ledger.signing import new_rsa_key

    return new_rsa_key()
