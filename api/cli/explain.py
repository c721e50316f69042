"""`explain`: what a token is, and what became of it, in plain words."""

import click

from api.cli.options import ask, json_option, reached, settings_option
from api.cli.output import say, say_json, say_members
from api.cli.stdin import read_secret
from api.settings import Settings

ALIVE = frozenset({"current", "access_token_active"})


@click.command("explain")
@json_option
@settings_option
def explain(as_json: bool, settings: Settings) -> None:
    """Read one token from standard input and say what it is: exit code 0 where it works now, else 1.

    A token is never an argument: every user of a machine can read those.
    """
    token = read_secret("token", "token (not shown): ").strip()
    with reached(settings) as local:
        found = ask(local, "POST", "/explain", {"token": token})
    if as_json:
        say_json(found)
    else:
        say(found["text"])
        say_members({name: value for name, value in found.items() if name != "text"})
    if found["verdict"] not in ALIVE:
        raise click.exceptions.Exit(1)
