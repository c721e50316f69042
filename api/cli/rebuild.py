"""`rebuild`: the projections and snapshots proved against a replay of all events, and healed where they differ."""

import json
import sys

import click

from api.cli.options import accepted, json_option, reached, settings_option
from api.cli.output import Json, say, say_json
from api.local import Local
from api.settings import Settings

EVENTS = "events"
FILE = "file"


@click.command("rebuild")
@json_option
@settings_option
def rebuild(as_json: bool, settings: Settings) -> None:
    """Replay all events aside, compare every row and snapshot, then put the replayed ones in their place.

    Safe while serving. Exit code 1 where something differed, with table, key and column; the next run then exits 0.
    Not so where events themselves differ from what was recorded, or where the file of the database is damaged: that is
    named, and nothing is written.
    """
    with reached(settings, to_heal=True) as local:
        found = _run(local, not as_json and sys.stderr.isatty())
    differences, withheld = found["differences"], found["withheld"]
    if as_json:
        healed = {"healed": found["healed"]} if differences else {}
        say_json({"differences": differences} | healed | ({"withheld": withheld} if withheld else {}))
    for event_id in [] if as_json else withheld:
        say(f"not replayed: {event_id} and all before it are withheld")
    for difference in [] if as_json else differences:
        say(_line(difference))
    if differences:
        if not as_json:
            say(_outcome(found))
        raise click.exceptions.Exit(1)
    if not as_json:
        all_ = "all events" if not withheld else "all events that are not withheld"
        say(f"every projection and snapshot equals a replay of {all_}")


def _line(difference: Json) -> str:
    line = f"differed: table {difference['table']}, key {difference['key']}, column {difference['column']}"
    told = difference["table"] in (EVENTS, FILE) or _is_private(difference)
    return f"{line}: {difference['problem']}" if told else line


def _outcome(found: Json) -> str:
    count = f"{found['difference_count']} difference{'' if found['difference_count'] == 1 else 's'}"
    if found["healed"]:
        return f"{count}, healed by this run"
    if found["differences"][0]["table"] == FILE:
        return f"{count}, nothing replayed or healed: the file of the database is damaged, a backup has what was there"
    if found["history_holds"] and any(map(_is_private, found["differences"])):
        return f"{count}, healed by this run but for private rows, which no event has: a backup has them"
    if found["history_holds"]:
        return f"{count}, not all of them healed: run it again"
    return f"{count}, nothing healed: events (table {EVENTS}) are not as they were recorded, a backup has them"


def _is_private(difference: Json) -> bool:
    return str(difference["table"]).startswith("private_")


def _run(local: Local, progress: bool) -> dict[str, Json]:
    """Ask for it and follow the lines of progress, with a bar on standard error where that is a terminal."""
    last: dict[str, Json] = {}
    with click.progressbar(length=1, label="replaying", file=sys.stderr, hidden=not progress) as bar:

        def follow(line: bytes) -> None:
            nonlocal last
            last = json.loads(line)
            if "total" in last:
                bar.length = max(last["total"], 1)
                bar.update(last["done"] - bar.pos)

        accepted(local.request("POST", "/local/rebuild", {}, on_line=follow))
    if "differences" not in last:
        raise_unfinished(last)
    return last


def raise_unfinished(last: dict[str, Json]) -> None:
    """The lines ended without a result: the server stopped, or says why it could not go on."""
    from api.cli.output import Failed

    raise Failed(str(last.get("error_description", "the rebuild was broken off; nothing was changed")), 2)
