"""`keys`: which keys make tokens and which only verify them."""

from typing import get_args

import click

from api.cli.options import ask, json_option, reached, settings_option
from api.cli.output import Failed, Json, say, say_json, say_table
from api.settings import Settings
from ledger.keyring import Alg
from ledger.keys import KEY_ID_MAX, KEY_IDS_LOW

KEY_ID = click.IntRange(1, KEY_ID_MAX)


@click.group("keys")
def keys() -> None:
    """List, rotate, activate or distrust the keys of the ring.

    To change keys: `keys rotate` adds one that only verifies; once every node has the ring file, and whoever checks JWT
    access tokens has read the new public key (5 minutes), `keys activate` makes it sign. `keys distrust` is for a key
    that may have leaked.
    """


@keys.command("list", short_help="List the keys and what each is for now.")
@json_option
@settings_option
def listed(as_json: bool, settings: Settings) -> None:
    """List the keys: `active` makes tokens, `verifying` only recognises them, `distrusted` proves little."""
    with reached(settings) as local:
        found = ask(local, "GET", "/local/keys")
    if as_json:
        say_json({"keys": found["keys"]})
        return
    rows = [(str(key["id"]), key["state"], key["created_at"]) for key in found["keys"]]
    say_table(("id", "state", "created"), rows, (3, 10))
    if found["ids_left"] <= KEY_IDS_LOW:
        say(f"the ring runs short: {found['ids_left']} more keys can be added to it, ever")


@keys.command("rotate", short_help="Add a key that only verifies; print its id.")
@click.option("--alg", type=click.Choice(get_args(Alg)), help="How it will sign JWTs; else as the active key does.")
@json_option
@settings_option
def rotate(alg: str | None, as_json: bool, settings: Settings) -> None:
    """Add a key that only verifies; its id stands alone on the last line."""
    with reached(settings) as local:
        key = ask(local, "POST", "/local/keys/rotate", {} if alg is None else {"alg": alg})
    if as_json:
        say_json(key)
        return
    say("added a key that verifies and does not sign yet; give the ring file to every node, then activate it:")
    say(str(key["id"]))


@keys.command("activate")
@click.argument("key_id", metavar="ID", type=KEY_ID)
@json_option
@settings_option
def activate(key_id: int, as_json: bool, settings: Settings) -> None:
    """Make tokens with this key from now on."""
    _say_key(_act(settings, key_id, "activate"), as_json)


@keys.command("distrust", short_help="Trust a key no more; it never signs again.")
@click.argument("key_id", metavar="ID", type=KEY_ID)
@json_option
@settings_option
def distrust(key_id: int, as_json: bool, settings: Settings) -> None:
    """Trust a key no more: its tokens are rotated away from it, and it never signs again."""
    _say_key(_act(settings, key_id, "distrust"), as_json)


def _act(settings: Settings, key_id: int, act: str) -> Json:
    try:
        with reached(settings) as local:
            return ask(local, "POST", f"/local/keys/{key_id}/{act}", {})
    except Failed as error:
        raise Failed(str(error), 2) from None  # a key that cannot do this is wrong use, no answer to a question


def _say_key(key: Json, as_json: bool) -> None:
    if as_json:
        say_json(key)
    else:
        say(f"key {key['id']} is {key['state']}")
