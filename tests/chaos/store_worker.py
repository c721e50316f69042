"""A process that works on a store as the server does, without HTTP, and says what it has acknowledged.

`python -m tests.chaos.store_worker FOLDER SYNCHRONOUS GRANTS REFRESHES` opens the ledger in FOLDER, refreshes GRANTS
grants at once, and ends one of its other grants now and then. Each acknowledgement is one line of JSON: into the log
of `record.c` where the process is recorded, else to standard output. Ends by itself after so many refreshes.
"""

import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path

import uvloop

from api import wiring
from ledger.answers import IssueRequest
from ledger.application import Ledger
from ledger.clients import LOCAL_OPERATOR, ClientSpec, Settings
from ledger.policy import PRESETS
from ledger.recorders import sqlite, sqlite_log
from tests.chaos.disk import acknowledged
from tests.chaos.store_after import CALLER, HOME, settings_of

END_EVERY = 20
CHECKPOINT_PAGES = 30
"""Far fewer than are served with, so that a short run is cut in many parts of the log, and when all of it moves."""


class Acknowledgements:
    """Where they are told; a whole line at once, in the order in which they were made."""

    def __init__(self) -> None:
        log = os.environ.get("RECORD_LOG")
        self._recorded = log is not None
        self._descriptor = 1 if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(self, **said: str) -> None:
        line = json.dumps(said).encode()
        os.write(self._descriptor, acknowledged(line) if self._recorded else line + b"\n")


class Worker:
    """All of the work, and what is left of it."""

    def __init__(self, ledger: Ledger, refreshes: int) -> None:
        self.ledger = ledger
        self.left = refreshes
        self.acknowledgements = Acknowledgements()

    async def issue(self, subject: str) -> tuple[str, str]:
        request = IssueRequest(client_id="www", subject=subject, scope=("read", "openid"), device="phone")
        answer = await self.ledger.operators.issue(LOCAL_OPERATOR, request, None, b"{}")
        assert answer.refresh_token is not None
        return answer.grant_id, answer.refresh_token

    async def refresh(self, number: int) -> None:
        """Refresh one grant for as long as there is work."""
        grant_id, token = await self.issue(f"person-{number}")
        self.acknowledgements.tell(grant=grant_id, token=token)
        while self.left > 0:
            self.left -= 1
            ends = self.left % END_EVERY == 0
            answer = await self.ledger.refresh(CALLER, HOME, token, None, None)
            assert answer.refresh_token is not None
            token = answer.refresh_token
            self.acknowledgements.tell(grant=grant_id, token=token)
            if ends:
                await self.end(f"gone-{number}")

    async def end(self, subject: str) -> None:
        """Issue a grant and revoke it; nothing is told before that."""
        grant_id, token = await self.issue(subject)
        await self.ledger.operators.act_on_grant(LOCAL_OPERATOR, grant_id, "revoke", "over")
        self.acknowledgements.tell(ended=grant_id, token=token)


async def work(folder: Path, synchronous: str, grants: int, refreshes: int) -> None:
    """Open the ledger, work, close it."""
    sqlite_log.CHECKPOINT_PAGES = CHECKPOINT_PAGES
    if synchronous != "FULL":  # the twin: a store that does not wait for the disk
        vars(wiring)["SQLiteStore"] = partial(sqlite.SQLiteStore, synchronous=synchronous)
    async with wiring.open_ledger(settings_of(folder), create=True) as ledger:
        client = ClientSpec(
            client_id="www",
            settings=Settings(auth="client_secret", scope=("read", "openid"), policy=PRESETS["standard"]),
            secrets=("Secr3t!",),
        )
        await ledger.operators.apply([client], [])
        worker = Worker(ledger, refreshes)
        await asyncio.gather(*map(worker.refresh, range(grants)))


def main() -> None:
    """Work as the arguments say."""
    folder, synchronous, grants, refreshes = sys.argv[1:]
    uvloop.run(work(Path(folder), synchronous, int(grants), int(refreshes)))


if __name__ == "__main__":
    main()
