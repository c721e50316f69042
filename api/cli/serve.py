"""`serve`: the server."""

import click

from api.cli.options import settings_option
from api.settings import Settings


@click.command("serve")
@settings_option
def serve(settings: Settings) -> None:
    """Run the server until SIGTERM or Ctrl-C; SIGHUP reads certificate, key ring and clients file again.

    On a new SQLite file it does what `init` does, and says so.
    """
    from api import logs, serving

    logs.configure(settings.log_level, settings.log_format)
    raise click.exceptions.Exit(serving.run(settings))
