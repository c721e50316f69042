"""`erase`: a person's data leaves the ledger; what happened stays provable."""

import click

from api.cli.options import ask, json_option, reached, settings_option
from api.cli.output import Failed, say, say_json
from api.settings import Settings


@click.command("erase")
@click.option("--subject", metavar="S", required=True, help="The person, compared byte for byte.")
@json_option
@settings_option
def erase(subject: str, as_json: bool, settings: Settings) -> None:
    """Remove a person's data: end their live grants, then delete every text about them.

    Events stay and stay provable; they name the person only by a number that now names nobody. Exit code 1 where
    nobody of this name is known (any more): what was erased before is cleared then, too.
    """
    with reached(settings) as local:
        found = ask(local, "POST", "/local/erase", {"subject": subject})
    if as_json:
        say_json(found)
    if not found["known"]:
        if as_json:
            raise click.exceptions.Exit(1)
        # Whoever repeats it, because something still saw what was erased, comes here too: the name is gone since.
        raise Failed(
            "nobody of this name is known, byte for byte, so nobody was erased; what was erased before is cleared now",
            1,
        )
    if not as_json:
        say("erased: the grants are ended and the person's data is gone from the database")
        say("backups made before still hold it: erase again in one that is ever put back")
        if settings.sqlite_path is None:
            say("PostgreSQL's write-ahead log and free places in its pages hold bytes of it until written over")
        else:
            say("its write-ahead log does not hold it any more")
