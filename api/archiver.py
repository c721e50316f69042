"""Archiving beside the work of the ledger: when a command asks for it, and from time to time where a server serves.

A line of a run is `{"moved"}`, events so far; the last is what it came to, or `{"error", "error_description"}`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from api.logs import Log
from api.rebuilding import LINE_SECONDS
from api.settings import Settings
from ledger import times
from ledger.application import Ledger
from ledger.archiving import Archiving, Report
from ledger.recorders.errors import StoreError
from ledger.refusals import LedgerError, Refusal, Refused, Unavailable

DAY: Final = 86_400 * times.SECOND
FIRST_AFTER_SECONDS: Final = 60.0
EVERY_SECONDS: Final = 3600.0

log = Log("api")


class Archiver:
    """Archives as the settings say. One run at a time, whoever asks of this process: others wait for it."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._after_days = settings.archive_after_days
        self._retention_days = settings.archive_retention_days

    def after(self, days: int | None) -> "ArchiveRun":
        """A run over what happened longer ago than so many days; None: than ARCHIVE_AFTER_DAYS. Raises Refused."""
        chosen = self._after_days if days is None else days
        if chosen is None:
            detail = "TOKEN_LEDGER_ARCHIVE_AFTER_DAYS is off: say after how many days"
            raise Refused(Refusal.INVALID_REQUEST, detail=detail)
        return ArchiveRun(self._ledger.archiving, self._ledger.memory.clock(), chosen, self._retention_days)

    @contextlib.asynccontextmanager
    async def from_time_to_time(self) -> AsyncIterator[None]:
        """Archive every hour until the block ends; what is under way then is broken off, and finished another time."""
        task = asyncio.create_task(self._on_and_on())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _on_and_on(self) -> None:
        await asyncio.sleep(FIRST_AFTER_SECONDS)
        while True:
            try:
                await self.after(None).run(lambda line: None, regular=True)
            except Exception as error:  # whatever it was: an hour later it may be gone, and nobody else would say it
                log.error("archiving_failed", problem=f"{type(error).__name__}: {error}")
            await asyncio.sleep(EVERY_SECONDS)


class ArchiveRun:
    """One run."""

    def __init__(self, archiving: Archiving, now: int, after_days: int, retention_days: int | None) -> None:
        self._archiving = archiving
        self._before = now - after_days * DAY
        self._withhold_before = None if retention_days is None else now - retention_days * DAY

    async def run(self, tell: Callable[[Any], None], *, regular: bool = False) -> None:
        """Archive; `tell` is called in the loop with each line. What fails is told, and logged. `regular`: every worker
        on every node begins one like it, and one of them is enough."""
        told_at = 0.0

        def progress(events: int) -> None:
            nonlocal told_at
            now = time.monotonic()
            if now - told_at >= LINE_SECONDS:
                told_at = now
                tell({"moved": events})

        try:
            report = await self._archiving.run(self._before, self._withhold_before, progress, regular=regular)
        except Refused as refused:
            tell({"error": "conflict", "error_description": refused.detail})
            return
        except (StoreError, OSError, Unavailable, LedgerError) as error:
            problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            log.error("archiving_failed", problem=problem)
            what = f"archiving was broken off, what moved stays moved: {problem}"
            tell({"error": "temporarily_unavailable", "error_description": what})
            return
        if report != Report():
            log.info("archived", **msgspec.structs.asdict(report))
        tell(msgspec.structs.asdict(report))
