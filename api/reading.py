"""Questions to the store that no decision hangs on: in threads, a few at a time, never on the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ledger.recorders.errors import StoreError, Withheld
from ledger.recorders.reading import Reader
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import Refusal, Refused, Unavailable

T = TypeVar("T")

AT_ONCE_MAX = 4
"""More threads would only wait for each other, and for the interpreter that the commits need."""


class Reading:
    """Asks the store. Raises Unavailable where it cannot answer, or not within the time a request may take; Refused
    where the archive's own time is over for what would tell."""

    def __init__(self, store: SQLiteStore, seconds_max: float) -> None:
        self._store = store
        self._seconds_max = seconds_max
        self._places = asyncio.Semaphore(AT_ONCE_MAX)

    async def ask(self, question: Callable[[Reader], T]) -> T:
        """Answer from one committed moment, which holds every write that was acknowledged before."""
        try:
            async with asyncio.timeout(self._seconds_max), self._places:
                return await asyncio.to_thread(self._asked, question)
        except Withheld:
            raise Refused(Refusal.NOT_FOUND, detail="the archive's time for what was true then is over") from None
        except (StoreError, TimeoutError):
            raise Unavailable from None

    def _asked(self, question: Callable[[Reader], T]) -> T:
        with self._store.reader() as reader:
            return question(reader)
