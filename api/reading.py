"""Questions to the store that no decision hangs on: in threads, a few at a time, never on the event loop."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from api.logs import Log
from ledger import times
from ledger.recorders.errors import ArchiveDamaged, HistoryBroken, StoreError, Withheld
from ledger.recorders.rows import Reads
from ledger.recorders.store import Store
from ledger.refusals import Refusal, Refused, Unavailable

T = TypeVar("T")

log = Log("api")

AT_ONCE_MAX = 4
"""More threads would only wait for each other, and for the interpreter that the commits need."""


class Reading:
    """Asks the store. Raises Unavailable where it cannot answer, or not within the time a request may take; Refused
    where the archive's own time is over for what would tell."""

    def __init__(self, store: Store, seconds_max: float) -> None:
        self._store = store
        self._seconds_max = seconds_max
        self._places = asyncio.Semaphore(AT_ONCE_MAX)

    def go_on(self) -> Callable[[], bool]:
        """Whether a question asked now may look at more yet, or is to answer with what it has found: half of its time
        is left for what it is at, and for the answer."""
        until = time.monotonic() + self._seconds_max / 2
        return lambda: time.monotonic() < until

    async def ask(self, question: Callable[[Reads], T]) -> T:
        """Answer from one committed moment, which holds every write that was acknowledged before."""
        try:
            async with asyncio.timeout(self._seconds_max):
                await self._places.acquire()
                thread = asyncio.ensure_future(asyncio.to_thread(self._asked, question))
                thread.add_done_callback(self._leave)
                return await asyncio.shield(thread)
        except Withheld:
            raise Refused(Refusal.NOT_FOUND, detail="the archive's time for what was true then is over") from None
        except (ArchiveDamaged, HistoryBroken) as error:
            raise Unavailable(str(error)) from None  # no wait heals it: who asks is told what to look at
        except times.NoTime as error:
            raise Unavailable(f"{error}; rebuild names it") from None
        except msgspec.DecodeError:
            raise Unavailable("an event that tells it is not what was recorded; rebuild names it") from None
        except (StoreError, TimeoutError) as error:
            log.warning("question_not_answered", why=str(error) or "it takes too long")
            raise Unavailable from None

    def _leave(self, thread: "asyncio.Future[Any]") -> None:
        """Nobody can stop a thread: where nobody waits for it any more it has its place until it ends, and what it
        fails with then is nobody's."""
        self._places.release()
        if not thread.cancelled():
            thread.exception()

    def _asked(self, question: Callable[[Reads], T]) -> T:
        with self._store.reader() as reader:
            return question(reader)
