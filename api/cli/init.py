"""`init`: the tables and the key ring of a new ledger."""

import asyncio
import sys

import click

from api import logs
from api.cli.options import settings_option
from api.cli.output import Failed, say
from api.local import connect, socket_path
from api.settings import Settings


@click.command("init")
@settings_option
def init(settings: Settings) -> None:
    """Create the database and the key ring where they are not there yet. Safe to repeat.

    On PostgreSQL it also makes the functions of this release: run it once more with each new one.
    """
    from api.wiring import Database, open_ledger

    database = Database(settings)
    ring_is_new, database_is_new = not settings.keys_file.exists(), database.is_new()
    logs.configure("warning", settings.log_format, sys.stderr)
    lacking: str | None = None
    running = None if settings.sqlite_path is None else connect(socket_path(settings.sqlite_path))
    if running is not None:
        running.close()
    else:

        async def opened() -> str | None:
            async with open_ledger(settings, create=True) as ledger:
                return None if ledger.behind is None else ledger.readiness()

        lacking = asyncio.run(opened())
    name = f"database {database}" if settings.sqlite_path is not None else str(database)
    kept = "there already, unchanged"
    say(f"key ring {settings.keys_file}: {'created' if ring_is_new else kept}")
    functions = "" if settings.sqlite_path is not None else "; its functions are those of this release"
    say(f"{name}: {'created' if database_is_new else kept + functions}")
    if ring_is_new:
        say("back up the database together with the key ring, never one without the other")
    if lacking is not None:
        raise Failed(f"{database}: {lacking}", 2)
