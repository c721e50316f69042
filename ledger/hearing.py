"""Hearing what other nodes have just changed, for whom would else be refused by what is known here."""

import asyncio
from typing import Final

from ledger.authority import Authority
from ledger.batch import Batch
from ledger.commits import Commits
from ledger.waiting import forgotten

WAIT_SECONDS: Final = 1.0
"""So long at most whoever is to be refused waits: where the store does not answer, what is known here decides."""


class Hearing:
    """Asks the store once for all who come before the question is put: guesses cost no more than one a batch."""

    def __init__(self, commits: Commits, authority: Authority) -> None:
        self._commits = commits
        self._authority = authority
        self._next: asyncio.Future[None] | None = None

    async def hear(self) -> bool:
        """Whether this has found that authority has changed: then whoever was unknown is to be looked up again. What
        was acknowledged anywhere before the call is known on return, unless the store does not answer."""
        before = self._authority.rules_now
        asked = self._next
        if asked is None or asked.done():
            asked = self._next = self._commits.submit(self._asks, ours=True)
            forgotten(asked)
        await asyncio.wait((asked,), timeout=WAIT_SECONDS)
        return self._authority.rules_now is not before

    def _asks(self, batch: Batch) -> None:
        """The batch is about to be sent: whoever comes from now on has to ask anew."""
        self._next = None
