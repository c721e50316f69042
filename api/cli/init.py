"""`init`: the tables and the key ring of a new ledger."""

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from api import logs
from api.cli.options import settings_option
from api.cli.output import Failed, say
from api.local import connect, socket_path
from api.settings import Settings
from ledger.owner import Owned

if TYPE_CHECKING:
    from api.wiring import Database

OWNER_SECONDS_MAX: Final = 2.0
"""How long it waits for another that makes the same ledger, or has it for a moment."""


class _Made(NamedTuple):
    """What was not there before, and what the ledger lacks to serve."""

    ring: bool
    database: bool
    lacking: str | None


@click.command("init")
@settings_option
def init(settings: Settings) -> None:
    """Create the database and the key ring where they are not there yet. Safe to repeat.

    On PostgreSQL it also makes the functions of this release: run it once more with each new one.
    """
    from api.wiring import Database

    database = Database(settings)
    logs.configure("warning", settings.log_format, sys.stderr)
    until = time.monotonic() + OWNER_SECONDS_MAX
    while True:
        try:
            made = _made(settings, database)
            break
        except Owned:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    name = f"database {database}" if settings.sqlite_path is not None else str(database)
    kept = "there already, unchanged"
    say(f"key ring {settings.keys_file}: {'created' if made.ring else kept}")
    functions = "" if settings.sqlite_path is not None else "; its functions are those of this release"
    say(f"{name}: {'created' if made.database else kept + functions}")
    if made.ring or made.database:  # of two that made them together each may have made one
        say("back up the database together with the key ring, never one without the other")
    if made.lacking is not None:
        raise Failed(f"{database}: {made.lacking}", 2)


def _made(settings: Settings, database: "Database") -> _Made:
    """Make what is not there. Raises Owned where somebody else has the ledger open, or is making it."""
    from api.wiring import open_ledger

    ring_is_new, database_is_new = not settings.keys_file.exists(), database.is_new()
    running = None if settings.sqlite_path is None else connect(socket_path(settings.sqlite_path))
    if running is not None:
        running.close()
        return _Made(ring_is_new, database_is_new, None)

    async def lacking() -> str | None:
        async with open_ledger(settings, create=True) as ledger:
            return None if ledger.behind is None else ledger.readiness()

    return _Made(ring_is_new, database_is_new, asyncio.run(lacking()))
