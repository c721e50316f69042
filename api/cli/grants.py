"""`grants` and `grant`: look at grants, and act on one (the endpoints under `/grants`)."""

from collections.abc import Iterator

import click

from api.cli.options import ask, json_option, pages, reached, searched_grants, settings_option
from api.cli.output import Json, json_line, say, say_json, say_members, say_table
from api.cli.told import opened, told, words
from api.settings import Settings

NO_GRANT = "no grant has this id (32 hex digits; see token-ledger grants)"
INSTEAD = dict.fromkeys(
    ("there is no such thing here", "there is no such grant", "there is no such path here"), NO_GRANT
)
"""What the ledger says of an id that no grant has, or that is none, and what a command says instead."""
STATES = click.Choice(["active", "suspended", "revoked", "expired"])


@click.command("grants")
@click.option("--client", "client_id", metavar="C", help="Of this client only.")
@click.option("--subject", metavar="S", help="Of this subject only, compared byte for byte.")
@click.option("--state", type=STATES, help="In this state now.")
@json_option
@settings_option
def grants(client_id: str | None, subject: str | None, state: str | None, as_json: bool, settings: Settings) -> None:
    """List grants, oldest first."""
    wanted = {"client_id": client_id, "state": state}
    with reached(settings) as local:
        if subject is None:
            found = pages(local, "/grants", wanted)
        else:
            found = searched_grants(local, {"subject": subject, **wanted})
        if as_json:
            say_pages("grants", found)
        else:
            titles = ("grant", "status", "client", "generation", "issued", "scope")
            say_table(titles, _rows(found), (32, 9, 16, 10, 27))


def _rows(found: Iterator[Json]) -> Iterator[tuple[str, ...]]:
    for page in found:
        for grant in page["grants"]:
            generation = grant.get("generation")
            yield (
                grant["grant_id"],
                grant["status"],
                grant["client_id"],
                "none" if generation is None else str(generation),
                grant["issued_at"],
                words(grant["scope"]),
            )


def say_pages(member: str, found: Iterator[Json]) -> None:
    """Print all pages of a list as one, in the shape of a page, without ever holding more than one of them. What pages
    say beside the list comes after it."""
    separator, beside = "", dict[str, Json]()
    print(f"{{{json_line(member)}: [", end="")
    for page in found:
        for each in page[member]:
            print(f"{separator}{json_line(each)}", end="")
            separator = ",\n"
        beside |= {name: value for name, value in page.items() if name not in (member, "next_cursor")}
    print("".join(["]", *(f", {json_line(name)}: {json_line(value)}" for name, value in beside.items()), "}"]))


@click.group("grant")
def grant() -> None:
    """Show one grant or its history, or act on it. ID is the 32 hex digits that its issuance gave."""


@grant.command("show")
@click.argument("grant_id", metavar="ID")
@json_option
@settings_option
def show(grant_id: str, as_json: bool, settings: Settings) -> None:
    """Show a grant as it is now."""
    _say_grant(_ask(settings, "GET", grant_id), as_json)


@grant.command("history")
@click.argument("grant_id", metavar="ID")
@click.option("--at", metavar="TIME", help="Add its state at this time (RFC 3339, with offset).")
@json_option
@settings_option
def history(grant_id: str, at: str | None, as_json: bool, settings: Settings) -> None:
    """Show what happened to a grant, in order."""
    with reached(settings) as local:
        # Its state then is one answer, however many pages there are: that may take a replay from the first event.
        found = pages(local, f"/grants/{_quoted(grant_id)}/events", {}, INSTEAD, first={"at": at})
        if as_json:
            say_pages("events", found)
            return
        state = None
        for page in found:
            say_history(page["events"])
            state = page.get("state", state)
    if state is not None:
        say()
        say_members(_for_people(state))


def say_history(events: list[Json]) -> None:
    """Print one event a line: its place in its stream, when, what, and what that means."""
    for event in events:
        place = f"{event['v']:>4}"
        if event.get("withheld"):
            say(f"{place}  withheld: the archive's time for it is over")
            continue
        topic = f"{event['topic'].removeprefix('grant.'):24}"
        say(f"{place}  {event['at']}  {topic}  {told(event)}{opened(event)}")


def _acting(name: str, line: str) -> None:
    """Add one of the acts that take nothing but a reason."""

    @grant.command(name, help=line)
    @click.argument("grant_id", metavar="ID")
    @click.option("--reason", metavar="R", help="Why, at most 200 characters.")
    @json_option
    @settings_option
    def act(grant_id: str, reason: str | None, as_json: bool, settings: Settings) -> None:
        _say_grant(_ask(settings, "POST", grant_id, name, {"reason": reason}), as_json)


_acting("revoke", "End a grant for good.")
_acting("suspend", "Stop a grant until it is reinstated.")


@grant.command("reinstate")
@click.argument("grant_id", metavar="ID")
@click.option("--reason", metavar="R", help="Why, at most 200 characters.")
@click.option("--trust", type=click.Choice(["current"]), help="After reuse or rollback: who holds the current token.")
@json_option
@settings_option
def reinstate(grant_id: str, reason: str | None, trust: str | None, as_json: bool, settings: Settings) -> None:
    """Let a suspended grant go on."""
    _say_grant(_ask(settings, "POST", grant_id, "reinstate", {"reason": reason, "trust": trust}), as_json)


def _ask(settings: Settings, method: str, grant_id: str, act: str = "", members: Json = None) -> Json:
    path = f"/grants/{_quoted(grant_id)}" + (f"/{act}" if act else "")
    body = None if members is None else {name: value for name, value in members.items() if value is not None}
    with reached(settings) as local:
        return ask(local, method, path, body, instead=INSTEAD)


def _quoted(grant_id: str) -> str:
    from urllib.parse import quote

    return quote(grant_id, safe="") or "-"


def _say_grant(found: Json, as_json: bool) -> None:
    if as_json:
        say_json(found)
    else:
        say_members(_for_people(found))


def _for_people(grant: Json) -> Json:
    """A grant, with the texts that are kept erasable beside it (the reason of its end, a device) as members, too."""
    texts = {name: each["value"] for name, each in grant.get("disclosed", {}).items()}
    return {name: value for name, value in grant.items() if name != "disclosed"} | texts
