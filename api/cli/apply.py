"""`apply`: clients and operators become what a file says."""

from pathlib import Path

import click

from api.cli.options import ask, json_option, reached, settings_option
from api.cli.output import Failed, say, say_json
from api.settings import Settings


@click.command("apply")
@click.argument("file", metavar="FILE.toml", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only print what would change.")
@json_option
@settings_option
def apply(file: Path, dry_run: bool, as_json: bool, settings: Settings) -> None:
    """Make clients and operators as FILE.toml says and print the difference; each change is an event.

    Whoever the file leaves out is disabled, and its grants with it; back in the file, they live again.
    """
    import msgspec

    from api import clients_file
    from ledger.changes import ApplyReport

    wanted = clients_file.load(file)
    body = msgspec.to_builtins(
        {"clients": wanted.clients, "operators": wanted.operators, "serial": wanted.serial, "dry_run": dry_run}
    )
    if wanted.serial is None:
        del body["serial"]
    try:
        with reached(settings) as local:
            found = ask(local, "POST", "/local/apply", body)
    except Failed as error:
        raise Failed(f"{file}: {error}", 2) from None
    if as_json:
        say_json(found)
        return
    for line in msgspec.convert(found, ApplyReport).lines():
        say(line)
    if dry_run:
        say("dry run: nothing was recorded")
