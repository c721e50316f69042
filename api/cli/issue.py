"""`issue`: a grant and its first tokens, as `POST /grants` gives them."""

import click

from api.cli.options import ask, json_option, reached, settings_option
from api.cli.output import Failed, say_json, say_members
from api.settings import Settings

SECONDS = click.IntRange(min=1)
NO_CLIENT = "--client: no client has this id; add it to the clients file and apply it"
INSTEAD = {"client_id names no client": NO_CLIENT}
"""The ledger speaks of a member that nobody has typed; what the command says instead."""


@click.command("issue")
@click.option("--client", "client_id", metavar="C", required=True, help="The client that may use the grant.")
@click.option("--subject", metavar="S", required=True, help="The person it is about.")
@click.option("--scope", metavar='"…"', default="", help="What is granted, separated by spaces.")
@click.option("--resource", metavar="URI", multiple=True, help="Where it may be used (RFC 8707); repeatable.")
@click.option("--refresh-token-ttl-seconds", type=SECONDS, help="A shorter idle lifetime than the client's policy.")
@click.option("--grant-ttl-seconds", type=SECONDS, help="A shorter absolute lifetime than the client's policy.")
@click.option("--device", metavar="TEXT", help="The person's device, as they would know it.")
@click.option("--session", metavar="TEXT", help="The session at the login application.")
@click.option("--idempotency-key", metavar="KEY", help="The same key and request get the same answer again.")
@json_option
@settings_option
def issue(
    client_id: str,
    subject: str,
    scope: str,
    resource: tuple[str, ...],
    refresh_token_ttl_seconds: int | None,
    grant_ttl_seconds: int | None,
    device: str | None,
    session: str | None,
    idempotency_key: str | None,
    as_json: bool,
    settings: Settings,
) -> None:
    """Issue a grant and print its first tokens: they are shown this once."""
    members = {
        "client_id": client_id,
        "subject": subject,
        "scope": scope,
        "resource": list(resource) or None,
        "refresh_token_ttl_seconds": refresh_token_ttl_seconds,
        "grant_ttl_seconds": grant_ttl_seconds,
        "device": device,
        "session": session,
    }
    if idempotency_key is not None and not (idempotency_key.isascii() and idempotency_key.isprintable()):
        raise Failed("--idempotency-key is 1 to 128 printable ASCII characters", 2)  # others no header can carry
    body = {name: value for name, value in members.items() if value is not None}
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    with reached(settings) as local:
        issued = ask(local, "POST", "/grants", body, headers=headers, instead=INSTEAD)
    if as_json:
        say_json(issued)
    else:
        say_members(issued)
