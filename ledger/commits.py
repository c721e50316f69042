"""Many decisions, one durable transaction: group commit.

Requests wait in line; a batch takes what has come, reads the control counter in its own transaction, decides each in
memory, writes the events once, and leaves only COMMIT, which waits for the disk, to a thread of its own; a store that
answers over a connection is sent all of it, and the loop waits for the answer (`sent.py`). Meanwhile the answers are
made (`answering.py`). Nobody is told before the outcome has come (I-02), and only then the next batch begins. What
failing means for whom is in `failed_batches.py`.
"""

import asyncio
import logging
import math
import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

from ledger.awake import Awake
from ledger.batch import Batch
from ledger.failed_batches import FailedBatches
from ledger.memory import Memory
from ledger.optimistic import OptimisticBatch
from ledger.recorders.errors import StoreBroken, StoreError
from ledger.recorders.store import OptimisticStore, Store
from ledger.refusals import Unavailable
from ledger.sent import Sent
from ledger.waiting import AnswerTo, Decide, Line, Waiting, decided, forgotten, made, tell

log = logging.getLogger("ledger")

T = TypeVar("T")

PASSES_BEFORE = 3
"""So many passes of the loop before a batch begins: the answers of the last one leave, and requests on their way in are
in it too. A few microseconds' wait, a tenth more throughput. One where the last batch held one request: nobody else
seems to be there."""

WAITING_MAX = 20_000
LOST_RETRY_SECONDS = 0.002
SWEEP_SECONDS = 0.25
TAKEN_OVER_SECONDS = 0.005
"""So long the loop waits for the commit thread to begin: else it would go on, for as long as it has anything to do,
holding the interpreter that the thread needs for its first step, and the disk would idle meanwhile. For speed alone:
nothing stands on its having begun."""

UNREADY_AFTER_SECONDS = 5.0
PROBE_AFTER_SECONDS = 2.0
HANGING_COMMIT_SECONDS = 5.0
HANGING_COMMIT_SECONDS_MIN = 0.25
"""So long the end waits for a commit that is still under way: where the end has a time, less, but never less than
this."""


class Commits:
    """The commit path of one store. Everything but `_commit_thread` runs on the event loop."""

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
        self._ends_at = math.inf
        self._on_acknowledged = on_acknowledged
        self._loop = asyncio.get_running_loop()
        self._line = Line(self._loop.time)
        self._failed = FailedBatches(store, memory, self._line, on_broken)
        self._planned = False
        self._committing = False
        self._together = True  # whether the last batch held more than one
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._awake = Awake(self._loop, deadline_seconds) if store.optimistic else None
        self.batches = 0
        self.committed = 0
        self._handover: queue.SimpleQueue[tuple[Batch, Exception | None] | None] = queue.SimpleQueue()
        self._taken_over = threading.Event()
        self._sent: Sent | None = None
        if store.optimistic:
            self._sent = Sent(cast(OptimisticStore, store), self._written, self._leave)
        self._thread = threading.Thread(target=self._commit_thread, name="commit", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ coming in

    def submit(self, decide: Decide[T], *, ours: bool = False, about: str = "", by: str = "") -> asyncio.Future[T]:
        """Put a request in line. The future gives what `decide` returned once its events are durable, raises the
        Refused or LedgerError it raised (what stood in the same batch is durable then too), or Unavailable. `ours`:
        it is the ledger's own, so it stands on nobody's authentication. `about` is the stream of the grant that it is
        about, by name, so that those of a batch which are not in memory are read together; `by` that of the client or
        operator on whose authentication alone it stands."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.put(decide, future, ours, about, by)
        return future

    def put(self, decide: Decide[T], future: AnswerTo[T], ours: bool = False, about: str = "", by: str = "") -> None:
        """As `submit`, for one who is answered in another way than by a future. May answer before it returns."""
        now = self._loop.time()
        line = self._line
        awake = self._awake is None or ours or self._awake.hears(now)
        if line.closed or len(line.waiting) >= WAITING_MAX or not awake or now >= self._ends_at:
            future.set_exception(Unavailable())
            return
        deadline = min(now + self._deadline_seconds, self._ends_at)
        line.waiting.append(Waiting(decide, self._memory.new_command_id(), future, deadline, ours, about, by))
        if line.unserved_since is None:
            line.unserved_since = now
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        if not self._committing:
            self._plan()

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._pass(PASSES_BEFORE if self._together else 1)

    def _pass(self, left: int) -> None:
        if left:
            self._loop.call_soon(self._pass, left - 1)
        else:
            self._run()

    # ------------------------------------------------------------ one batch

    def _run(self) -> None:
        self._planned = False
        if not self._committing and self._failed.broken is None:
            self._committing = True  # also while a decision waits for what it has asked the store
            self._store.run(self._run_one)

    def _run_one(self) -> None:
        under_way = False
        try:
            under_way = self._begun()
        finally:
            if not under_way:
                self._committing = False
                self._line.in_flight = []
                self._go_on()

    def _begun(self) -> bool:
        """Decide a batch and hand it over: True where its commit is under way."""
        self._run_exclusive()
        taken = self._line.take()  # nobody where the store broke just now
        if not taken:
            return False
        if self._store.optimistic:  # it may take a while, and nobody waits for longer than their deadline
            self._line.in_flight = [(each, None, False) for each in taken]
        batch: Batch | None = None
        try:
            batch = self._batch(self._store, self._memory)
            if self._memory.credentials_moved or self._memory.lost_some:
                self._failed.refuse_who_is_in_line(batch, taken)
                return False
            batch.ask_for([each.about for each in taken if each.about])
            done = batch.decide_all(taken, decided)
            if batch.credentials_moved:
                self._line.refuse_askers(batch.credentials_moved)
            batch.write()
            must_commit = batch.must_commit
            if not must_commit:
                self._store.rollback()
        except Exception as error:
            self._go_on(self._failed.not_written(batch, taken, error))
            return False
        self._line.in_flight = done
        if must_commit and self._sent is not None:  # until `_ended` the connection is whose who waits for the outcome
            self._sent.send(batch)
        elif must_commit:
            self._leave(batch, None)
        self._line.in_flight = [made(each) for each in done]  # while the store works; told once all is durable
        if not must_commit:
            self._ended(batch, None)
        return must_commit

    def _leave(self, batch: Batch, problem: Exception | None) -> None:
        """Leave a batch to the commit thread, to commit it or to find out what became of it. It has nearly always begun
        on return."""
        self._taken_over.clear()
        self._handover.put((batch, problem))
        self._taken_over.wait(TAKEN_OVER_SECONDS)

    def _commit_thread(self) -> None:
        while (left := self._handover.get()) is not None:
            self._taken_over.set()
            batch, problem = left
            error: StoreError | None = None
            try:
                if problem is not None:
                    raise problem
                batch.written = self._store.commit()  # A crash before it returns: all of the batch, or nothing.
            except BaseException as failure:
                error = self._failed.found_out(batch, failure)
            due = error is None and self._store.checkpoint_due()
            self._loop.call_soon_threadsafe(self._ended, batch, error, due)
            if due:  # whoever is answered does not wait for it; who comes next does
                try:
                    self._store.checkpoint()
                except BaseException as failure:
                    error = failure if isinstance(failure, StoreError) else StoreBroken(f"check-point: {failure!r}")
                self._loop.call_soon_threadsafe(self._free, error)

    def _written(self, batch: Batch) -> None:
        self._ended(batch, None)

    def _free(self, problem: StoreError | None) -> None:
        self._committing = False
        if problem is None:
            self._go_on()
        else:
            self._failed.halt(problem)

    def _ended(self, batch: Batch, error: StoreError | None, still_busy: bool = False) -> None:
        self._committing = still_busy
        done, self._line.in_flight = self._line.in_flight, []
        if error is not None:
            self._go_on(self._failed.not_committed(batch, [each for each, _, _ in done], error))
            return
        self._together = len(done) > 1
        done, again = batch.settle(done)
        self._line.waiting.extendleft(reversed(again))
        if batch.credentials_moved and again:
            self._line.refuse_askers(batch.credentials_moved)
        self.batches += 1
        self._memory.trim()
        healthy = batch.writes or self._failed.last_error is None  # a full disk is none to who only reads
        if healthy:
            self._failed.healed()
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
        if healthy:
            self._line.served()
        self._go_on(0.0 if done else LOST_RETRY_SECONDS)

    def _go_on(self, after_seconds: float = 0.0) -> None:
        """With the next batch, where somebody waits for one."""
        line = self._line
        if not (line.waiting or line.alone or line.exclusive):
            self._tell_idle()
        elif after_seconds and not self._planned:
            self._planned = True
            self._loop.call_later(after_seconds, self._run)
        else:
            self._plan()

    # ------------------------------------------------------------ how it stands, and deadlines

    @property
    def broken(self) -> StoreError | None:
        """Why the store must not be used any more; None where it may."""
        return self._failed.broken

    @property
    def last_error(self) -> str | None:
        """What the store has said since it last committed; None where nothing went wrong."""
        return self._failed.last_error

    @property
    def stalled_seconds(self) -> float:
        """How long a commit has been asked for without one succeeding; 0 where nobody waits."""
        since = self._line.unserved_since
        return 0.0 if since is None else self._loop.time() - since

    @property
    def ready(self) -> bool:
        """False once a commit was asked for and none succeeded for 5 s, or the store is broken."""
        return self.broken is None and self.stalled_seconds < UNREADY_AFTER_SECONDS

    def look(self, decide: Decide[None]) -> None:
        """Ask the store what others have changed, where nobody asks it anyway; and whether it is there."""
        line = self._line
        if not (line.waiting or line.alone or self._committing or line.closed):
            forgotten(self.submit(decide, ours=True))

    def _sweep(self) -> None:
        self._sweeper = None
        self._line.expire(everybody=self._loop.time() >= self._ends_at)
        if self._sent is not None:
            self._sent.leave()
        self._tell_idle()
        if self._line.unserved_since is not None and self.broken is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
            if not self.ready:
                self._failed.stalled()
            # Everybody was refused, and an unready node is sent nobody: ask the store itself whether it has healed.
            # While requests come they ask: what they want written may have no room where so little still has some.
            if self._loop.time() - self._line.failed_at >= PROBE_AFTER_SECONDS:
                self.look(Batch.probe)

    # ------------------------------------------------------------ the connection for oneself, and the end

    async def exclusively(self, act: Callable[[], T]) -> T:
        """Run `act` on the event loop between two batches: it has the writing connection for itself, and goes before
        whoever is in line. Raises Unavailable where the store is broken, or still busy at the deadline: `act` was not
        run then; and whatever `act` raises."""
        future: asyncio.Future[T] = self._loop.create_future()
        forgotten(future)  # where whoever asked has gone it is run all the same
        if self._line.closed:
            raise Unavailable
        self._line.exclusive.append((act, future))
        if not self._committing:
            self._plan()
        await asyncio.wait((future,), timeout=self._deadline_seconds)
        if not future.done():  # a commit hangs, or the moving of the log
            future.cancel()
            self._tell_idle()
            raise Unavailable
        return future.result()

    def _run_exclusive(self) -> None:
        while self._line.exclusive:
            act, future = self._line.exclusive.popleft()
            if future.cancelled():
                continue
            try:
                answer = act()
            except Exception as error:
                tell(future, error)
                if isinstance(error, StoreBroken):
                    self._failed.halt(error)
            else:
                if not future.done():
                    future.set_result(answer)

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._idle.done() and not self._line.somebody_waits():
            self._idle.set_result(None)

    def end_within(self, seconds: float) -> None:
        """The process is to end: whoever waits, or comes from now on, does so for so long at most, all of them
        together. It has several last words, and where the store hangs each would wait for as long as a request may."""
        self._ends_at = self._loop.time() + seconds

    async def close(self) -> bool:
        """Take nobody in any more, answer who is in line, and end the thread. The store stays open; False where a
        commit still hangs in it: it must not be touched any more then.

        Nobody waits longer than their deadline, so this does not either; nor, where the end has a time, for the
        connection on behalf of who was cut off and has none.
        """
        self._line.closed = True
        while self.broken is None and self._line.somebody_waits():
            self._idle = self._loop.create_future()
            left = None if self._ends_at == math.inf else max(0.0, self._ends_at - self._loop.time())
            await asyncio.wait((self._idle,), timeout=left)
            if self._loop.time() >= self._ends_at:
                self._line.expire(everybody=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._awake is not None:
            self._awake.close()
        if self._sent is not None:
            self._sent.close()
        self._handover.put(None)
        left = max(HANGING_COMMIT_SECONDS_MIN, min(HANGING_COMMIT_SECONDS, self._ends_at - self._loop.time()))
        await asyncio.to_thread(self._thread.join, left)
        return not self._thread.is_alive()
