"""`hash`: what a clients file holds in place of a secret."""

import re

import click

from api.cli.options import settings_option
from api.cli.output import Failed, say
from api.cli.stdin import read_secret
from api.settings import Settings

_SECRET = re.compile(r"[\x20-\x7e]+")  # RFC 6749 appendix A: 1*VSCHAR


@click.command("hash")
@settings_option
def hash(settings: Settings) -> None:
    """Read one secret from standard input and print its hash, for `secret_hash` or `token_hash` in a clients file.

    It is keyed with the ring in TOKEN_LEDGER_KEYS_FILE: no other ledger can use it, and it outlives every rotation of
    keys.
    """
    from ledger.keyring import KeyRing
    from ledger.secret_hashes import secret_hash

    secret = read_secret("secret", "secret (not shown): ")
    if not _SECRET.fullmatch(secret):
        raise Failed("a secret is printable ASCII characters (RFC 6749 appendix A), and this holds others", 2)
    say(secret_hash(KeyRing.load(settings.keys_file), secret))
