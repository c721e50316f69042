"""How a decision is put in line: never while the log has lost what it had acknowledged, and with what it spends."""

from typing import TypeVar

from ledger.afterwards import Afterwards
from ledger.answers import Caller
from ledger.commits import Commits
from ledger.log_end import LogEnd
from ledger.presenting import Desk
from ledger.single_use import SingleUse, spending
from ledger.waiting import Decide

T = TypeVar("T")


class Decisions:
    """What clients' requests and operators' have in common."""

    def __init__(self, commits: Commits, desk: Desk, log_end: LogEnd, afterwards: Afterwards) -> None:
        self._commits = commits
        self._desk = desk
        self._log_end = log_end
        self._afterwards = afterwards

    async def decided(
        self,
        decide: Decide[T],
        spends: tuple[SingleUse, ...] = (),
        *,
        ours: bool = False,
        about: str = "",
        by: str = "",
    ) -> T:
        """What was decided, once that is durable; the rest as in `Commits.submit`. Raises Refused, Unavailable."""
        self._log_end.check_whole()
        if spends:
            decide = spending(self._desk.ring, spends, decide)
        try:
            return await self._commits.submit(decide, ours=ours, about=about, by=by)
        finally:
            if self._desk.foreign:
                self._afterwards.record_foreign_soon()

    async def spend(self, caller: Caller) -> None:
        """What was asked needs no store to be answered; what the caller may use once is used all the same."""
        if caller.single_use:
            await self.decided(lambda batch: None, caller.single_use)
