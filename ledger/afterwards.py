"""What is written when the answers are out: foreign clients, and presentations that were only counted."""

import asyncio
from functools import partial

from msgspec.structs import replace

from ledger.batch import Batch
from ledger.commands import CountPresentations, RecordForeignClient
from ledger.commits import Commits
from ledger.log_end import LogEnd
from ledger.presentations import Counted
from ledger.presenting import Desk, Foreign, context_of, record, standing_of
from ledger.refusals import Unavailable
from ledger.waiting import forgotten

AFTER_THE_ANSWER_SECONDS = 0.001


class Afterwards:
    """Nobody waits for these, so they stand behind whoever does. None is written to a log that lacks what it had
    acknowledged."""

    def __init__(self, commits: Commits, desk: Desk, log_end: LogEnd) -> None:
        self._commits = commits
        self._desk = desk
        self._log_end = log_end

    def record_foreign_soon(self) -> None:
        """Whoever presented another's token has just been told what everyone is told (I-19)."""
        if self._desk.foreign:
            asyncio.get_running_loop().call_later(AFTER_THE_ANSWER_SECONDS, self.record_foreign)

    def record_foreign(self) -> None:
        """Put what is noted of foreign clients in line."""
        presented, self._desk.foreign = self._desk.foreign, []
        for foreign in presented if self._log_end.behind is None else ():
            # A lost one harms nobody, and the next presentation is recorded in its place.
            forgotten(self._commits.submit(partial(_record_one, desk=self._desk, foreign=foreign), ours=True))

    async def flush_presentations(self, now: int, *, at_stop: bool = False) -> None:
        """Put what was counted and is due into events, all in one batch; at a stop whatever was counted."""
        if self._log_end.behind is not None:
            return
        counts = self._desk.presentations
        due = list(counts.due(now, all_of_them=at_stop))
        flush = partial(_flush_one, desk=self._desk, at_stop=at_stop)
        flushes = (
            self._commits.submit(partial(flush, grant_id=grant_id, counted=counted), ours=True)
            for grant_id, counted in due
        )
        flushed = await asyncio.gather(*flushes, return_exceptions=True)
        for (grant_id, _), count in zip(due, flushed, strict=True):
            if isinstance(count, int):
                counts.flushed(grant_id, count, now)
            elif not isinstance(count, Unavailable):
                raise count


def _record_one(batch: Batch, desk: Desk, foreign: Foreign) -> None:
    """Record, once a grant, that another client presented a genuine token of it."""
    found = batch.grant(foreign.grant_id)
    if found is None:
        return
    loaded, grant = found
    # Made anew here: what the batch that saw it believed of the person, erased or not, may not have happened.
    context = context_of(batch, loaded, foreign.source)
    command = RecordForeignClient(
        at=batch.now,
        command_id=batch.command_id,
        presenter=replace(foreign.presenter, context=context),
        generation=foreign.generation,
    )
    decision = grant.decide(command, desk.authority.rules(grant))
    record(batch, desk, loaded, decision, foreign.source, context)


def _flush_one(batch: Batch, desk: Desk, grant_id: str, counted: Counted, *, at_stop: bool) -> int:
    """Put counted presentations of a grant into an event. How many are done with; 0: the rules want none now."""
    found = batch.grant(grant_id)
    if found is None:
        return 0
    loaded, grant = found
    count = counted.count
    if standing_of(batch, desk, grant).ended and not counted.ended:
        return count  # told now, they would pass for presentations since the end
    context = context_of(batch, loaded, counted.last_source)
    command = CountPresentations(
        at=batch.now,
        command_id=batch.command_id,
        count=count,
        first_at=counted.first_at,
        last_at=counted.last_at,
        last_generation=counted.last_generation,
        last_context=context,
        at_stop=at_stop,
    )
    decision = grant.decide(command, desk.authority.rules(grant))
    record(batch, desk, loaded, decision, counted.last_source, context)
    return count if decision.events else 0
