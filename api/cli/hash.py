"""`hash`: what a clients file holds in place of a secret."""

import click

from api.cli.options import settings_option
from api.cli.output import Failed, say
from api.cli.stdin import read_secret
from api.settings import Settings


@click.command("hash")
@settings_option
def hash(settings: Settings) -> None:
    """Read one secret from standard input and print its hash, for `secret_hash` or `token_hash` in a clients file.

    It is keyed with the ring in TOKEN_LEDGER_KEYS_FILE: no other ledger can use it, and it outlives every rotation of
    keys.
    """
    from ledger.keyring import KeyRing
    from ledger.registration import secret_problem
    from ledger.secret_hashes import is_secret_hash, secret_hash

    secret = read_secret("secret", "secret (not shown): ")
    # What a clients file may not hold as it is may not pass as a hash, where nobody can see it any more.
    if problem := "is a hash already" if is_secret_hash(secret) else secret_problem(secret):
        raise Failed(f"the secret {problem}", 2)
    say(secret_hash(KeyRing.load(settings.keys_file), secret))
