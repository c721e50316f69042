"""Many decisions, one durable transaction: group commit.

Requests wait in line; a batch takes what has come, reads the control counter in its own transaction, decides each in
memory, writes the events once, and hands only COMMIT, which waits for the disk, to a thread of its own. Nobody is
answered before COMMIT has returned (I-02). The next batch begins only when the outcome of the one before is known.

What failing means. Busy: nothing happened, ask again until the requests' deadlines. Full: nothing happened, 503, and it
heals. Lost race or a fault in one decision: roll back, forget what was touched, decide each alone, so that one loser
does not sink a batch. Input/output error: the outcome is unknown, answer 503, forget everything, never go on (I-12).
"""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ledger.awake import Awake
from ledger.batch import Batch, Memory
from ledger.optimistic import OptimisticBatch
from ledger.recorders.errors import LostRace, StoreBroken, StoreBusy, StoreError
from ledger.recorders.store import Store
from ledger.refusals import Unavailable
from ledger.waiting import AnswerTo, Decide, Waiting, decided, forgotten, nothing, refuse, tell

log = logging.getLogger("ledger")

T = TypeVar("T")

BATCH_MAX = 256
PASSES_BEFORE = 3
"""So many passes of the loop before a batch begins: the answers of the last one leave, and requests on their way in are
in it too. A few microseconds' wait, a tenth more throughput."""

WAITING_MAX = 20_000
BUSY_RETRY_SECONDS = 0.02
LOST_RETRY_SECONDS = 0.002
SWEEP_SECONDS = 0.25
UNREADY_AFTER_SECONDS = 5.0
HANGING_COMMIT_SECONDS = 5.0


class Commits:
    """The line of requests in front of one store. Everything but `_commit_thread` runs on the event loop."""

    def __init__(
        self,
        store: Store,
        memory: Memory,
        *,
        deadline_seconds: float,
        on_acknowledged: Callable[[int, str], None],
        on_broken: Callable[[StoreError], None],
    ) -> None:
        """`on_acknowledged` is told the last position of each durable batch and that event's time; `on_broken` that the
        store must not be used any more: the process has to end."""
        self._store = store
        self._memory = memory
        self._batch: type[Batch] = OptimisticBatch if store.optimistic else Batch
        self._deadline_seconds = deadline_seconds
        self._on_acknowledged = on_acknowledged
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Waiting[Any]] = deque()
        self._alone: deque[Waiting[Any]] = deque()
        self._in_flight: list[tuple[Waiting[Any], Any, bool]] = []
        self._exclusive: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._planned = False
        self._committing = False
        self._unserved_since: float | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._closed = False
        self._awake = Awake(self._loop, deadline_seconds) if store.optimistic else None
        self.broken: StoreError | None = None
        self.last_error: str | None = None
        self.batches = 0
        self.committed = 0
        self._handover: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._commit_thread, name="commit", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ coming in

    def submit(self, decide: Decide[T], *, ours: bool = False) -> asyncio.Future[T]:
        """Put a request in line. The future gives what `decide` returned once its events are durable, raises the
        Refused or LedgerError it raised (what stood in the same batch is durable then too), or Unavailable. `ours`:
        it is the ledger's own, so it stands on nobody's authentication."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.put(decide, future, ours)
        return future

    def put(self, decide: Decide[T], future: AnswerTo[T], ours: bool = False) -> None:
        """As `submit`, for one who is answered in another way than by a future. May answer before it returns."""
        now = self._loop.time()
        awake = self._awake is None or ours or self._awake.hears(now)
        if self.broken is not None or self._closed or len(self._waiting) >= WAITING_MAX or not awake:
            future.set_exception(Unavailable())
            return
        self._waiting.append(Waiting(decide, self._memory.new_command_id(), future, now + self._deadline_seconds, ours))
        if self._unserved_since is None:
            self._unserved_since = now
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        if not self._committing:
            self._plan()

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._pass(PASSES_BEFORE)

    def _pass(self, left: int) -> None:
        if left:
            self._loop.call_soon(self._pass, left - 1)
        else:
            self._run()

    def _plan_later(self, after_seconds: float = BUSY_RETRY_SECONDS) -> None:
        self._planned = True
        self._loop.call_later(after_seconds, self._run)

    @property
    def stalled_seconds(self) -> float:
        """How long a commit has been asked for without one succeeding; 0 where nobody waits."""
        return 0.0 if self._unserved_since is None else self._loop.time() - self._unserved_since

    @property
    def ready(self) -> bool:
        """False once a commit was asked for and none succeeded for 5 s, or the store is broken."""
        return self.broken is None and self.stalled_seconds < UNREADY_AFTER_SECONDS

    # ------------------------------------------------------------ one batch

    def _run(self) -> None:
        self._planned = False
        if not self._committing and self.broken is None:
            self._committing = True  # also while a decision waits for what it has asked the store
            self._store.run(self._run_one)

    def _run_one(self) -> None:
        under_way = False
        try:
            under_way = self._begun()
        finally:
            if not under_way:
                self._committing = False
                self._in_flight = []
                if not self._planned and (self._waiting or self._alone or self._exclusive):
                    self._plan()

    def _begun(self) -> bool:
        """Decide a batch and hand it over: True where its commit is under way."""
        self._run_exclusive()
        taken = self._take()  # nobody where the store broke just now
        if not taken:
            self._tell_idle()
            return False
        if self._store.optimistic:  # it may take a while, and nobody waits for longer than their deadline
            self._in_flight = [(each, None, False) for each in taken]
        try:
            batch = self._batch(self._store, self._memory)
        except StoreBusy as error:
            self._put_back(taken, error)
            return False
        except StoreError as error:
            self._failed(taken, error)
            return False
        except Exception as error:
            # What the log says of authority cannot be made out: nothing can be decided, by nobody.
            log.error("batch_not_begun", exc_info=error)
            self._failed(taken, StoreBroken(f"the authority cannot be read: {type(error).__name__}"))
            return False
        if self._memory.credentials_moved:
            self._refuse_authenticated(batch, taken)
            return False
        try:
            done = batch.decide_all(taken, decided)
            batch.write()
        except LostRace as error:
            self._again_alone(batch, taken, error)
            return False
        except StoreBusy as error:
            self._abandon(batch)
            self._put_back(taken, error)
            return False
        except StoreError as error:
            self._abandon(batch)
            self._failed(taken, error)
            return False
        except Exception as error:
            # A fault in one decision may have left half of its events in memory: nothing of this batch is kept.
            if len(taken) == 1:
                self._abandon(batch)
                tell(taken[0].future, error)
                self._after()
            else:
                self._again_alone(batch, taken, error)
            return False
        self._in_flight = done
        if batch.must_commit:
            self._handover.put(batch)  # The connection is the commit thread's from here on.
            return True
        self._ended(batch, self._finish_reading())
        return False

    def _take(self) -> list[Waiting[Any]]:
        if self._alone:
            return [self._alone.popleft()]
        waiting = self._waiting
        if len(waiting) <= BATCH_MAX:
            taken = [each for each in waiting if not each.future.done()]
            waiting.clear()
        else:
            taken = [waiting.popleft() for _ in range(BATCH_MAX)]
        return taken

    def _finish_reading(self) -> StoreError | None:
        try:
            self._store.rollback()
        except StoreError as error:
            return error
        return None

    def _commit_thread(self) -> None:
        while True:
            batch = self._handover.get()
            if batch is None:
                return
            error: StoreError | None = None
            try:
                batch.written = self._store.commit()  # A crash before it returns: all of the batch, or nothing.
            except StoreError as failure:
                error = self._found_out(batch, failure)
            except BaseException as failure:
                error = StoreBroken(f"the commit failed: {type(failure).__name__}")
            self._loop.call_soon_threadsafe(self._ended, batch, error)

    def _found_out(self, batch: Batch, error: StoreError) -> StoreError | None:
        """After a COMMIT that reported an error: is what we wrote there all the same (I-11)?

        After an input/output error nothing that is read may be believed, so the answer is no and the process ends.
        """
        if isinstance(error, StoreBroken):
            return error
        try:
            batch.written = self._store.is_there(batch.work)
        except StoreBusy as certain:
            return certain
        except StoreError:
            return error
        return error if batch.written is None else None

    def _ended(self, batch: Batch, error: StoreError | None) -> None:
        self._committing = False
        done, self._in_flight = self._in_flight, []
        if error is not None:
            self._ended_badly(batch, [each for each, _, _ in done], error)
            return
        done, again = batch.settle(done)
        if again:
            self._waiting.extendleft(reversed(again))
            if not done:
                self._plan_later(LOST_RETRY_SECONDS)
        self.batches += 1
        self._memory.trim()
        self.last_error = None
        if batch.writes:
            self.committed += len(done)
            if batch.last_at is not None:
                self._on_acknowledged(batch.position, batch.last_at)
        for note in batch.when_done:
            note()
        for each, answer, refused in done:
            future = each.future
            if not future.done():  # A client may have gone: what was decided stands, and its retry is served.
                try:
                    if refused:
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
                except Exception as error:  # a defect of whoever tells it: the others are told all the same
                    log.error("answer_not_told", exc_info=error)
        self._after()

    def _after(self) -> None:
        if self._waiting or self._alone:
            self._unserved_since = self._loop.time()
            self._plan()
        else:
            self._unserved_since = None
            if self._exclusive:
                self._plan()
            self._tell_idle()

    @property
    def _somebody_waits(self) -> bool:
        flying = any(not each.future.done() for each, _, _ in self._in_flight)
        return flying or bool(self._waiting or self._alone or self._exclusive)

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._idle.done() and not self._somebody_waits:
            self._idle.set_result(None)

    # ------------------------------------------------------------ going wrong

    def _ended_badly(self, batch: Batch, those: list[Waiting[Any]], error: StoreError) -> None:
        # What the server of an optimistic store says of its own transaction is so: nothing happened.
        if isinstance(error, LostRace) and self._store.optimistic:
            self._again_alone(batch, those, error)
            return
        self._abandon(batch)
        if isinstance(error, StoreBusy) and self._store.optimistic:
            self._put_back(those, error)
        else:
            self._failed(those, error)

    def _refuse_authenticated(self, batch: Batch, taken: list[Waiting[Any]]) -> None:
        """Somebody else has changed what authentication goes by. Who is in line showed what counted before: a secret
        that was taken back must not buy anything any more, so all of them have to say again who they are."""
        self._memory.credentials_moved = False
        self._abandon(batch)
        line = [*taken, *self._alone, *self._waiting]
        self._alone.clear()
        self._waiting = deque(each for each in line if each.ours)
        refuse(each for each in line if not each.ours)

    def _abandon(self, batch: Batch) -> None:
        try:
            batch.forget()
        except StoreError as error:
            self._break(StoreBroken(f"what a failed batch had touched cannot be read again: {error}"))

    def _again_alone(self, batch: Batch, taken: list[Waiting[Any]], error: Exception) -> None:
        self._abandon(batch)
        if not isinstance(error, LostRace):
            log.error("decision_failed", exc_info=error)
        if self.broken is not None:
            refuse(taken)
        elif len(taken) == 1:  # alone and lost again: let the others' commit pass
            self._alone.appendleft(taken[0])
            self._plan_later()
        else:
            self._alone.extendleft(reversed(taken))
            self._plan()

    def _put_back(self, taken: list[Waiting[Any]], error: StoreBusy) -> None:
        self.last_error = str(error)
        if len(taken) == 1 and self._alone:
            self._alone.appendleft(taken[0])
        else:
            self._waiting.extendleft(reversed(taken))
        self._expire(self._loop.time())
        if self._waiting or self._alone:
            self._plan_later()

    def _failed(self, taken: list[Waiting[Any]], error: StoreError) -> None:
        if self.last_error != str(error):  # once a trouble, not once a batch
            self.last_error = str(error)
            log.error("store_failed", extra={"fields": {"problem": str(error)}})
        if isinstance(error, StoreBroken):
            self._break(error)
        refuse(taken)
        if self.broken is None and (self._waiting or self._alone):
            self._plan_later()

    def _break(self, error: StoreError) -> None:
        if self.broken is None:
            self.broken = error
            self._memory.forget_everything()
            refuse((*self._alone, *self._waiting))
            for _, future in self._exclusive:
                tell(future, Unavailable())
            self._alone.clear()
            self._waiting.clear()
            self._exclusive.clear()
            self._tell_idle()
            self._on_broken(error)

    def look(self) -> None:
        """Ask the store what others have changed, where nobody asks it anyway; and whether it is there."""
        if not (self._waiting or self._alone or self._committing or self._closed):
            forgotten(self.submit(nothing, ours=True))

    # ------------------------------------------------------------ deadlines

    def _sweep(self) -> None:
        self._sweeper = None
        self._expire(self._loop.time())
        if self._unserved_since is None or self.broken is not None:
            return
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        if not (self._waiting or self._alone or self._committing or self._closed):
            # Everybody was refused, and an unready node is sent nobody: ask the store itself whether it has healed.
            forgotten(self.submit(Batch.probe, ours=True))

    def _expire(self, now: float) -> None:
        # What is being committed is only given up on, not undone: its outcome is unknown to whoever waited.
        for each in [*(flying for flying, _, _ in self._in_flight), *self._waiting, *self._alone]:
            if each.deadline < now:
                tell(each.future, Unavailable())
        if any(each.future.done() for each in self._waiting):
            self._waiting = deque(each for each in self._waiting if not each.future.done())
        if any(each.future.done() for each in self._alone):
            self._alone = deque(each for each in self._alone if not each.future.done())
        self._tell_idle()

    # ------------------------------------------------------------ the connection for oneself, and the end

    async def exclusively(self, act: Callable[[], T]) -> T:
        """Run `act` on the event loop between two batches: it has the writing connection for itself, and goes before
        whoever is in line. Raises Unavailable where the store is broken, and whatever `act` raises."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self.broken is not None or self._closed:
            raise Unavailable
        self._exclusive.append((act, future))
        if not self._committing:
            self._plan()
        return await future

    def _run_exclusive(self) -> None:
        while self._exclusive:
            act, future = self._exclusive.popleft()
            try:
                answer = act()
            except Exception as error:
                tell(future, error)
                if isinstance(error, StoreBroken):
                    self._break(error)
            else:
                if not future.done():
                    future.set_result(answer)

    async def close(self) -> bool:
        """Take nobody in any more, answer who is in line, and end the thread. The store stays open; False where a
        commit still hangs in it: it must not be touched any more then.

        Nobody waits longer than their deadline, so this does not either.
        """
        self._closed = True
        while self.broken is None and self._somebody_waits:
            self._idle = self._loop.create_future()
            await self._idle
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._awake is not None:
            self._awake.close()
        self._handover.put(None)
        await asyncio.to_thread(self._thread.join, HANGING_COMMIT_SECONDS)
        return not self._thread.is_alive()
