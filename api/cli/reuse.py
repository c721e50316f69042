"""`reuse`: which grants saw a retired token, when, from where, with what label."""

from collections.abc import Iterator

import click

from api.cli.grants import say_pages
from api.cli.options import json_option, pages, reached, settings_option
from api.cli.output import Json, say_table
from api.settings import Settings


@click.command("reuse")
@click.option("--since", metavar="TIME", help="From this time on (RFC 3339, with offset).")
@json_option
@settings_option
def reuse(since: str | None, as_json: bool, settings: Settings) -> None:
    """List incidents, oldest first. The label `fork` means that two parties held the grant's tokens.

    `event` is its number in the grant's history, `after` how long ago the token had been redeemed, `first` from where,
    `from` where it came back from: either may be the thief. `--json` adds programs, what was obtained, what is alive.
    """
    with reached(settings) as local:
        found = pages(local, "/reuse", {"since": since})
        if as_json:
            say_pages("incidents", found)
        else:
            titles = (
                "at",
                "label",
                "action",
                "client",
                "grant",
                "presented",
                "current",
                "event",
                "after",
                "first",
                "from",
            )
            say_table(titles, _rows(found), (27, 13, 14, 12, 32, 9, 7, 5, 8, 15))


def _rows(found: Iterator[Json]) -> Iterator[tuple[str, ...]]:
    for page in found:
        for incident in page["incidents"]:
            seconds = incident.get("seconds_since_redeemed")
            yield (
                incident["at"],
                incident["label"],
                incident["action"],
                incident["client_id"],
                incident["grant_id"],
                str(incident["presented_generation"]),
                str(incident.get("current_generation", "-")),
                incident["event_id"].rpartition("/")[2],
                "-" if seconds is None else f"{seconds} s",
                _address(incident, "first_context"),
                _address(incident, "context"),
            )


def _address(incident: Json, name: str) -> str:
    """Where the token was redeemed first, or came back from; nothing is left of it once the person was erased."""
    context = incident["disclosed"].get(name)
    return "-" if context is None else str(context["value"].partition("\n")[0])
