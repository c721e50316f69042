"""A rebuild beside the work of the ledger: in a thread, told in lines as it goes, broken off when nobody listens.

A line is `{"done", "total"}`, positions of the log; the last is what was found, or `{"error", "error_description"}`.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from api.answers import NOT_STORED
from api.logs import Log
from ledger.application import Ledger
from ledger.recorders.errors import StoreError
from ledger.recorders.rows import Reads
from ledger.refusals import Refusal, Refused
from projections.rebuild import Heal, rebuild

T = TypeVar("T")

LINE_SECONDS: Final = 0.2
HEADERS: Final = [(b"content-type", b"application/x-ndjson"), *NOT_STORED]

log = Log("api")


class BrokenOff(Exception):
    """Nobody waits for the rebuild any more; nothing was changed."""


class Rebuilding:
    """Runs rebuilds, one at a time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._running = False

    def start(self) -> "Lines":
        """Begin one; it runs while its lines are sent. Raises Refused (CONFLICT) where one runs already."""
        if self._running:
            raise Refused(Refusal.CONFLICT, detail="a rebuild is running already")
        return Lines(self)

    async def run(self, tell: Callable[[Any], None]) -> None:
        """Rebuild; `tell` is called in the loop with each line."""
        if self._running:
            tell({"error": "conflict", "error_description": "a rebuild is running already"})
            return
        self._running = True
        work = _Work(self._ledger, asyncio.get_running_loop(), tell)
        try:
            found = await asyncio.to_thread(work.run)
            await asyncio.sleep(0)  # a thread that has ended by now is not waited for: let what it told come first
            tell(found)
        finally:
            work.broken_off = True
            self._running = False


class Told(Protocol):
    """Work that takes a while, and is told in lines."""

    async def run(self, tell: Callable[[Any], None]) -> None:
        """Do it; `tell` is called in the loop with each line. It is cancelled where nobody listens any more."""


class Lines:
    """The answer of such work: lines until it is done. Stands where an `Answer` can."""

    status = 200

    def __init__(self, work: Told) -> None:
        self._work = work

    async def send(self, send: Callable[[Any], Any]) -> None:
        """Send each line as it comes."""
        await send({"type": "http.response.start", "status": self.status, "headers": HEADERS})
        lines: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(self._work.run(lines.put_nowait))
        task.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                body = msgspec.json.encode(line) + b"\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await task
            await send({"type": "http.response.body", "body": b""})
        finally:
            task.cancel()


class _Work:
    """What the thread does. `broken_off` is set by the loop and read by the thread."""

    def __init__(self, ledger: Ledger, loop: asyncio.AbstractEventLoop, tell: Callable[[Any], None]) -> None:
        self.broken_off = False
        self._ledger = ledger
        self._loop = loop
        self._tell = tell
        self._told_at = 0.0

    def run(self) -> Any:
        store = self._ledger.store
        try:
            at = self._ledger.memory.clock()
            found = rebuild(store.settled, store.inline, self._heal, self._progress, self._ledger.lookup, at)
        except BrokenOff:
            return {"error": "temporarily_unavailable", "error_description": "the rebuild was broken off"}
        except StoreError as error:
            return {"error": "temporarily_unavailable", "error_description": f"the rebuild was broken off: {error}"}
        members = msgspec.structs.asdict(found)
        members["differences"] = [
            {name: value for name, value in msgspec.structs.asdict(each).items() if value is not None}
            for each in found.differences
        ]
        return members

    def _progress(self, done: int, total: int) -> None:
        if self.broken_off:
            raise BrokenOff
        now = time.monotonic()
        if now - self._told_at >= LINE_SECONDS:
            self._told_at = now
            self._loop.call_soon_threadsafe(self._tell, {"done": done, "total": total})

    def _heal(self, derive: Callable[[Reads], Heal]) -> None:
        """Run one step of healing: where others may write to the store here, in a transaction of its own; else let the
        loop, to which the writing connection belongs, run it between two batches."""
        if self.broken_off:
            raise BrokenOff
        if self._ledger.store.optimistic:
            try:
                self._rewritten(derive)
            finally:
                self._on_the_loop(self._forget)
        else:
            self._on_the_loop(lambda: self._healed(derive))

    def _on_the_loop(self, act: Callable[[], None]) -> None:
        asyncio.run_coroutine_threadsafe(self._ledger.commits.exclusively(act), self._loop).result()

    def _healed(self, derive: Callable[[Reads], Heal]) -> None:
        try:
            self._rewritten(derive)
        finally:
            self._forget()

    def _rewritten(self, derive: Callable[[Reads], Heal]) -> None:
        log.info("healed", rows=self._ledger.store.rewrite(lambda reads: derive(reads).statements))

    def _forget(self) -> None:
        """What memory holds may come from a wrong snapshot; everything is read again when it is next asked for, and the
        authority by the next batch, which asks those in line again who they are where that has moved."""
        self._ledger.memory.forget_everything()
        self._ledger.authority.distrust()
