"""`revoke`: the end of all grants of a subject or a client, by one raise of its epoch."""

from urllib.parse import quote

import click

from api.cli.options import ask, json_option, reached, settings_option
from api.cli.output import Failed, say, say_json
from api.settings import Settings


@click.command("revoke")
@click.option("--subject", metavar="S", help="The person, compared byte for byte.")
@click.option("--client", "client_id", metavar="C", help="The client.")
@click.option("--before", metavar="TIME", help="Only grants issued before this time (RFC 3339, with offset).")
@click.option("--reason", metavar="R", required=True, help="Why, at most 200 characters.")
@json_option
@settings_option
def revoke(
    subject: str | None, client_id: str | None, before: str | None, reason: str, as_json: bool, settings: Settings
) -> None:
    """End all grants of a subject or of a client at once. Exit code 1 where there is no such subject or client."""
    if (subject is None) == (client_id is None):
        raise click.UsageError("either --subject or --client says whose grants end")
    members = {"reason": reason} | ({} if before is None else {"before": before})
    with reached(settings) as local:
        if client_id is not None:
            found = ask(local, "POST", f"/clients/{quote(client_id, safe='')}/revoke", members)
        else:
            found = ask(local, "POST", "/subjects/revoke", {"subject": subject, **members})
    if as_json:
        say_json(found)
    elif found.get("known", True):
        whose = f"client {client_id}" if client_id is not None else "the subject"
        since = "" if before is None else f" issued before {before}"
        say(f"all grants of {whose}{since} are ended, by epoch {found['epoch']}")
    if not found.get("known", True):
        if as_json:
            raise click.exceptions.Exit(1)
        raise Failed("no such subject was ever seen, nothing was done; subjects are compared byte for byte", 1)
