"""What becomes of the requests of a batch that did not come to be, and when the store may be asked again.

Busy: nothing happened, ask again until the requests' deadlines. Full: nothing happened, 503, and it heals. Lost race or
a fault in one decision: forget what was touched, decide each alone, so that one loser does not sink a batch; who loses
alone again and again is told 503, for no race lasts that long: something in the store stands in its way.
Input/output error: the outcome is unknown, answer 503, forget everything, never go on (I-12).
"""

import logging
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ledger.batch import Batch
from ledger.memory import Memory
from ledger.recorders.errors import LostRace, StoreBroken, StoreBusy, StoreError
from ledger.recorders.store import Store
from ledger.waiting import Line, Waiting, refuse, tell

log = logging.getLogger("ledger")

BUSY_RETRY_SECONDS = 0.02
NEVER_COMMITTED = "no commit has succeeded for 5 seconds"
LOST_ALONE_MAX = 5
"""So often a request may lose alone. A race that there was is over at its second decision."""


class FailedBatches:
    """All but `found_out` runs on the event loop. Where seconds are returned, the next batch may begin after so many.

    `broken`: why the store must not be used any more. `last_error`: what the store has said since it last committed.
    """

    def __init__(self, store: Store, memory: Memory, line: Line, on_broken: Callable[[StoreError], None]) -> None:
        self._store = store
        self._memory = memory
        self._line = line
        self._on_broken = on_broken
        self.broken: StoreError | None = None
        self.last_error: str | None = None
        self._told: set[str] = set()

    def not_written(self, batch: Batch | None, taken: list[Waiting[Any]], error: Exception) -> float:
        """A batch could not be decided or written, so that nothing happened; None: it could not even begin."""
        if batch is not None:
            self._abandon(batch)
        elif not isinstance(error, StoreError):
            # What the log says of authority cannot be made out: nothing can be decided, by nobody.
            log.error("batch_not_begun", exc_info=error)
            error = StoreBroken(f"the authority cannot be read: {type(error).__name__}")
        if self.broken is not None:
            refuse(taken)
            return 0.0
        if isinstance(error, StoreBusy):
            self.last_error = str(error)
            self._line.put_back(taken)
            return BUSY_RETRY_SECONDS
        if isinstance(error, StoreError) and not isinstance(error, LostRace):
            return self._store_failed(taken, error)
        # A fault in one decision may have left half of its events in memory: nothing of this batch was kept.
        alone = len(taken) == 1
        if not isinstance(error, LostRace):
            if alone:
                tell(taken[0].future, error)
                self._line.served()
                return 0.0
            log.error("decision_failed", exc_info=error)
        elif alone:
            return self._lost_alone(taken[0], error)
        self._line.alone.extendleft(reversed(taken))
        return 0.0

    def _lost_alone(self, one: Waiting[Any], error: LostRace) -> float:
        """Everybody else goes before it is decided once more."""
        line = self._line
        one = replace(one, lost=one.lost + 1)
        if one.lost >= LOST_ALONE_MAX:
            log.error("never_written", extra={"fields": {"problem": str(error), "stream": one.about or None}})
            refuse((one,))  # not `failed`: the store may be well, and the sweep asks it where nobody else does
            return 0.0
        others = bool(line.waiting or line.alone)
        line.alone.append(one)
        line.others_next = True
        return 0.0 if others else BUSY_RETRY_SECONDS  # let whoever won have done it

    def not_committed(self, batch: Batch, those: list[Waiting[Any]], error: StoreError) -> float:
        """COMMIT did not succeed."""
        # What the server of an optimistic store says of its own transaction is so: nothing happened.
        if self._store.optimistic and isinstance(error, LostRace | StoreBusy):
            return self.not_written(batch, those, error)
        self._abandon(batch)
        return self._store_failed(those, error)

    def found_out(self, batch: Batch, error: BaseException) -> StoreError | None:
        """After a COMMIT that raised an error, from the commit thread: what to believe. None where what was written is
        there all the same (I-11).

        After an input/output error nothing that is read may be believed, so it is not asked and the process ends.
        """
        if not isinstance(error, StoreError):
            return StoreBroken(f"the commit failed: {type(error).__name__}")
        if isinstance(error, StoreBroken):
            return error
        try:
            batch.written = self._store.is_there(batch.work)
        except StoreBusy as certain:
            return certain
        except StoreError:
            return error
        return error if batch.written is None else None

    def refuse_who_is_in_line(self, batch: Batch, taken: list[Waiting[Any]]) -> None:
        """Somebody else has changed what authentication goes by, or the store has lost what was acknowledged: then
        nothing is written any more, the ledger's own neither."""
        memory, line = self._memory, self._line
        if memory.lost_some:
            refuse((*taken, *line.alone, *line.waiting))
            line.alone.clear()
            line.waiting.clear()
        else:
            line.waiting.extendleft(reversed(taken))
            line.refuse_askers(memory.credentials_moved)
        memory.credentials_moved, memory.lost_some = frozenset(), False
        self._abandon(batch)

    def stalled(self) -> None:
        """The store has been busy for so long that nobody is sent here any more: that is a trouble, too."""
        self._tell(self.last_error or NEVER_COMMITTED)

    def healed(self) -> None:
        """The store has done what it was asked: what is in its way from now on is another trouble."""
        self.last_error = None
        self._told.clear()

    def _tell(self, problem: str) -> None:
        if problem not in self._told:  # once a trouble, not once a batch
            self._told.add(problem)
            log.error("store_failed", extra={"fields": {"problem": problem}})

    def halt(self, error: StoreError) -> None:
        """The store must not be used any more, and the process has to end."""
        if self.broken is None:
            self.broken = error
            self._memory.forget_everything()
            self._line.refuse_all()
            self._on_broken(error)

    def _abandon(self, batch: Batch) -> None:
        try:
            batch.forget()
        except StoreError as error:
            self.halt(StoreBroken(f"what a failed batch had touched cannot be read again: {error}"))

    def _store_failed(self, taken: list[Waiting[Any]], error: StoreError) -> float:
        self.last_error = str(error)
        self._tell(self.last_error)
        if isinstance(error, StoreBroken):
            self.halt(error)
        self._line.failed(taken)
        return BUSY_RETRY_SECONDS
