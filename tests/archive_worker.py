"""Archives copies of a closed ledger, the n-th of them killed at the n-th thing that touches the disk, or the server.

`python -m tests.archive_worker FOLDER WORK NOW WAY STRIDE [URL]` copies FOLDER into WORK for each n, or one in STRIDE,
forks, and lets the child archive all that may move. URL is the database where it is one of PostgreSQL. Standard output
is one JSON line a copy: its folder, how the child ended, and its database's URL or null. It goes on until a child
comes to its end. WAY is `as it is`, `withholds` where the archive's own time is over too, or `deletes first` for the
twin that is broken.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from ledger.archiving import Archiving
from ledger.batch import Batch
from ledger.moving import Moving
from ledger.recorders import postgres_archive
from ledger.recorders.archived import DELETE_EVENTS
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_segments import PostgresSegments
from ledger.recorders.sqlite import SQLiteStore
from tests.archives import SMALL, archive, reopened
from tests.engines import alter, stand_for
from tests.ledgers import Clock

COPIES_MAX = 500


class Killing:
    """Kills this process at the n-th call of whatever it stands before."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def end(self) -> None:
        """Kill nobody any more."""
        self._left = 0

    def before(self, owner: Any, name: str) -> None:
        """Stand before a function, and after it."""
        real: Callable[..., Any] = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.step()
            answer = real(*arguments, **named)
            self.step()
            return answer

        setattr(owner, name, counted)


_WITH_ITS_PIECE = re.compile(r"\s+AND EXISTS \(SELECT (?:1 )?FROM archived.*?\)")
"""Events go only where their piece has come: the twin does without."""


class DeletesFirst(Archiving):
    """Takes events out of the store in a transaction of their own, before the one that writes their pieces."""

    async def _switch(self, segment: tuple[object, ...], step: list[Moving]) -> None:
        def delete(batch: Batch) -> None:
            for piece in step:
                positions, (stream, to_v, *_) = json.dumps(piece.positions), piece.row
                if batch.store.optimistic:
                    batch.private(None, DELETE_EVENTS, positions, stream, to_v)
                else:
                    batch.private(None, _WITH_ITS_PIECE.sub("", DELETE_EVENTS), positions)

        await self._decisions.decided(delete)
        await self._decisions.decided(partial(self._moved, segment, step))


async def work(folder: Path, now: int, way: str, at: int) -> None:
    """Archive; be killed on the way."""
    async with reopened(folder, Clock(now), "archiver") as opened:
        if way == "deletes first":
            ledger = opened.ledger
            ledger.archiving = DeletesFirst(opened.store, ledger._decisions, ledger.desk)
            if opened.store.optimistic:
                alter(opened.path, _WITH_ITS_PIECE.sub("", postgres_archive.FUNCTION))
        killing = Killing(at)
        if opened.store.optimistic:
            killing.before(PostgresSegments, "_asked")
            killing.before(PostgresStore, "commit")
        else:
            for name in ("open", "mkdir", "write", "fsync", "utime", "replace", "unlink"):
                killing.before(os, name)
            killing.before(SQLiteStore, "commit")
        await archive(opened, withhold_before=now + 1 if way == "withholds" else None)
        killing.end()


def copied(folder: Path, copy: Path, url: str | None) -> str | None:
    """Copy a closed ledger; the URL of its database where it has one."""
    shutil.copytree(folder, copy)
    if url is None:
        return None
    name = url.partition("?")[0].rpartition("/")[2]
    its = f"{name}_{copy.parent.name}"
    with psycopg.connect(url.replace(f"/{name}?", "/postgres?"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(its), sql.Identifier(name)))
    return url.replace(f"/{name}?", f"/{its}?")


def main(folder: Path, place: Path, now: int, way: str, stride: int, url: str | None = None) -> None:
    """One child after the other."""
    for module, name, value in SMALL:
        setattr(module, name, value)
    for at in range(1, COPIES_MAX, stride):
        copy = place / str(at) / folder.name
        its_url = copied(folder, copy, url)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if its_url is not None:
                    stand_for(copy / "ledger.db", its_url)
                asyncio.run(work(copy, now, way, at))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(json.dumps([str(copy), os.waitstatus_to_exitcode(status), its_url]), flush=True)
        if os.waitstatus_to_exitcode(status) >= 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), *sys.argv[6:])
