"""`init`: the tables and the key ring of a new ledger."""

import asyncio

import click

from api.cli.options import settings_option
from api.cli.output import say
from api.local import connect, socket_path
from api.settings import Settings


@click.command("init")
@settings_option
def init(settings: Settings) -> None:
    """Create the database and the key ring where they are not there yet. Safe to repeat."""
    from api.wiring import is_new, open_ledger, sqlite_path

    database = sqlite_path(settings)
    ring_is_new, database_is_new = not settings.keys_file.exists(), is_new(database)
    running = connect(socket_path(database))
    if running is not None:
        running.close()
    else:

        async def opened() -> None:
            async with open_ledger(settings, create=True):
                pass

        asyncio.run(opened())
    for what, path, new in (("key ring", settings.keys_file, ring_is_new), ("database", database, database_is_new)):
        say(f"{what} {path}: {'created' if new else 'there already, unchanged'}")
    if ring_is_new:
        say("back up the database together with the key ring, never one without the other")
