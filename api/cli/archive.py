"""`archive`: what is over moves into compressed segments; every answer is kept."""

import json
import sys

import click

from api.cli.options import accepted, json_option, reached, settings_option
from api.cli.output import Failed, Json, say, say_json
from api.local import Local
from api.settings import DAYS_MAX, Settings

DAYS = click.IntRange(1, DAYS_MAX)


@click.command("archive")
@click.option("--after", "after_days", metavar="DAYS", type=DAYS, help="Instead of TOKEN_LEDGER_ARCHIVE_AFTER_DAYS.")
@json_option
@settings_option
def archive(after_days: int | None, as_json: bool, settings: Settings) -> None:
    """Move grants that are over, and the old part of long histories, into the archive.

    Events lie in compressed segments then, beside a SQLite database or in tables of their own on PostgreSQL, and
    everything that is asked about them is answered as before. Safe while serving; a run that is broken off is finished
    by the next.
    """
    if after_days is None and settings.archive_after_days is None:
        raise Failed("say --after DAYS, or set TOKEN_LEDGER_ARCHIVE_AFTER_DAYS", 2)
    with reached(settings) as local:
        found = _run(local, after_days, not as_json and sys.stderr.isatty())
    if as_json:
        say_json(found)
    else:
        say(f"moved: {found['events']} events in {found['pieces']} pieces")
        say(f"segments: {found['segments']}, {found['bytes']} bytes")
        if found["withheld"]:
            say(f"withheld: {found['withheld']} events whose time in the archive is over")


def _run(local: Local, after_days: int | None, progress: bool) -> dict[str, Json]:
    """Ask for it and follow the lines, with a count on standard error where that is a terminal."""
    last: dict[str, Json] = {}

    def follow(line: bytes) -> None:
        nonlocal last
        last = json.loads(line)
        if progress and "moved" in last:
            click.echo(f"\rmoved {last['moved']} events", nl=False, err=True)

    body = {} if after_days is None else {"after_days": after_days}
    accepted(local.request("POST", "/local/archive", body, on_line=follow))
    if progress:
        click.echo("\r\x1b[K", nl=False, err=True)
    if "events" not in last:
        raise Failed(str(last.get("error_description", "archiving was broken off; what moved stays moved")), 2)
    return last
