"""What is written when the answers are out: foreign clients, and presentations that were only counted."""

import asyncio
from functools import partial

from ledger import presenting
from ledger.commits import Commits
from ledger.presenting import Desk
from ledger.refusals import Unavailable

AFTER_THE_ANSWER_SECONDS = 0.001


class Afterwards:
    """Nobody waits for these, so they stand behind whoever does."""

    def __init__(self, commits: Commits, desk: Desk) -> None:
        self._commits = commits
        self._desk = desk

    def record_foreign_soon(self) -> None:
        """Whoever presented another's token has just been told what everyone is told (I-19)."""
        if self._desk.foreign:
            asyncio.get_running_loop().call_later(AFTER_THE_ANSWER_SECONDS, self.record_foreign)

    def record_foreign(self) -> None:
        """Put what is noted of foreign clients in line."""
        presented, self._desk.foreign = self._desk.foreign, []
        for foreign in presented:
            recorded = self._commits.submit(partial(presenting.record_foreign, desk=self._desk, foreign=foreign))
            recorded.add_done_callback(_forgotten)

    async def flush_presentations(self, now: int, *, at_stop: bool = False) -> None:
        """Put what was counted and is due into events, all in one batch; at a stop whatever was counted."""
        counts = self._desk.presentations
        due = list(counts.due(now, all_of_them=at_stop))
        flush = partial(presenting.flush_presentations, desk=self._desk, at_stop=at_stop)
        flushes = (
            self._commits.submit(partial(flush, grant_id=grant_id, counted=counted)) for grant_id, counted in due
        )
        flushed = await asyncio.gather(*flushes, return_exceptions=True)
        for (grant_id, _), count in zip(due, flushed, strict=True):
            if isinstance(count, int):
                counts.flushed(grant_id, count, now)
            elif not isinstance(count, Unavailable):
                raise count


def _forgotten(recorded: "asyncio.Future[None]") -> None:
    """A lost one harms nobody, and the next presentation is recorded in its place."""
    if not recorded.cancelled():
        recorded.exception()
