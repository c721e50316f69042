"""`serve`: the server."""

import signal
from dataclasses import fields

import click

from api.cli.options import settings_option
from api.settings import PREFIX, Settings

WITHOUT = {"archive_after_days": "off", "archive_retention_days": "unlimited"}
"""How a setting says that there is none, where leaving it out is not the only way."""

MEANINGS = {
    "database_url": "sqlite:///FILE, sqlite:////FILE for an absolute path, or postgresql://…",
    "keys_file": "the key ring",
    "head_file": "the last acknowledged position; `off`: none",
    "clients_file": "applied at start and on SIGHUP",
    "host": "address to listen at",
    "port": "0 takes any free one",
    "issuer": "URL that clients know this server by",
    "authorization_endpoint": "URL of your page where people sign in, for clients that look it up",
    "workers": "processes; above 1 on PostgreSQL only",
    "tls_cert": "PEM; may hold the key as well",
    "tls_key": "PEM; the same file where TLS_CERT holds the key",
    "tls_client_ca": "PEM, authorities of clients' certificates",
    "allow_plain_http": "1: serve without TLS, as behind a proxy",
    "trusted_proxies": "networks whose X-Forwarded-For is believed, with commas",
    "tls_client_cert_header": "header in which they give a client's certificate",
    "clock_skew_seconds": "how far clocks of clients may be off",
    "request_body_bytes_max": "longer ones are refused",
    "request_timeout_seconds": "to send a request, and to answer it",
    "keep_alive_seconds": "until a silent connection is closed",
    "refresh_burst": "refreshes at once of one grant of a public client; 0: no limit",
    "refresh_per_second": "and how fast more are allowed; 0: no limit",
    "archive_after_days": "archive what is older, every hour",
    "archive_retention_days": "give up ended grants' events in the archive",
    "log_level": "debug, info, warning or error",
    "log_format": "console or json",
}
"""What each setting is for, in the help of the command."""


class Serve(click.Command):
    """The command, whose help lists every setting."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Settings and their defaults"):
            rows = [
                (PREFIX + each.name.upper(), f"{MEANINGS[each.name]} [{_default(each.name)}]")
                for each in fields(Settings)
            ]
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
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the loop hears it: the start reads all files anyway

    from api import logs, serving

    logs.configure(settings.log_level, settings.log_format)
    raise click.exceptions.Exit(serving.run(settings))
