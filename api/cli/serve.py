"""`serve`: the server."""

from dataclasses import fields

import click

from api.cli.options import settings_option
from api.settings import PREFIX, Settings

WITHOUT = {"archive_after_days": "off", "archive_retention_days": "unlimited"}
"""How a setting says that there is none, where leaving it out is not the only way."""


class Serve(click.Command):
    """The command, whose help lists every setting."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Settings and their defaults"):
            rows = [(PREFIX + field.name.upper(), _default(field.name)) for field in fields(Settings)]
            formatter.write_dl(rows, col_max=40)


def _default(name: str) -> str:
    value = getattr(Settings(), name)
    if value is None and name in WITHOUT:
        return WITHOUT[name]
    if isinstance(value, bool | float):
        return f"{value:g}"
    return "none" if value in (None, ()) else str(value)


@click.command("serve", cls=Serve)
@settings_option
def serve(settings: Settings) -> None:
    """Run the server until SIGTERM or Ctrl-C; SIGHUP reads certificate, key ring and clients file again.

    On a new SQLite file it does what `init` does, and says so.
    """
    from api import logs, serving

    logs.configure(settings.log_level, settings.log_format)
    raise click.exceptions.Exit(serving.run(settings))
