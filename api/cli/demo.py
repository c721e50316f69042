"""`demo`: the main job on an embedded default, in one minute, from real requests and answers."""

import asyncio
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from api.cli.certificate import write_certificate
from api.cli.curl import Https, paragraph
from api.cli.demo_walk import CLIENTS_FILE, Demo, refresh_request, walk
from api.cli.output import Failed, styled
from api.settings import Settings

if TYPE_CHECKING:
    from api.server import Server


@click.command("demo")
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="0 takes any free port.")
@click.option("--once", is_flag=True, help="Exit after the walk: 0 only where every step came out as it should.")
def demo(port: int, once: bool) -> None:
    """See what rotation, a retried lost answer, narrowing, restoring and reuse detection are.

    Everything is real: a database in a temporary folder, HTTPS with a certificate made for this run, the requests and
    answers that you see. It goes on serving afterwards, for you to try; at its end the folder is removed.
    """
    with tempfile.TemporaryDirectory(prefix="token-ledger-demo-") as folder:
        settings = prepared(Path(folder), port)
        with (Path(folder) / "server.log").open("w", encoding="utf-8") as log:
            raise click.exceptions.Exit(served(settings, once, log))


def prepared(folder: Path, port: int) -> Settings:
    """Write the demo's files into a folder; return the settings that serve them."""
    certificate, key, clients = folder / "tls.pem", folder / "tls.key", folder / "clients.toml"
    write_certificate(certificate, key)
    clients.touch(mode=0o600)
    clients.write_text(CLIENTS_FILE, "utf-8")
    return Settings(
        database_url=f"sqlite:///{folder / 'token-ledger.db'}",
        keys_file=folder / "token-ledger.keys",
        clients_file=clients,
        port=port,
        tls_cert=certificate,
        tls_key=key,
        log_level="warning",
    )


def served(settings: Settings, once: bool, log: TextIO) -> int:
    """Serve, and walk beside it in a thread of its own, as any client would. Return the exit code."""
    from api import logs, serving

    logs.configure(settings.log_level, settings.log_format, log)
    walked: list[asyncio.Task[None]] = []

    def begin(server: "Server") -> None:
        walked.append(asyncio.get_running_loop().create_task(_walk(server, settings, once)))

    exit_code = serving.run(settings, begin)
    for task in walked:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return exit_code


async def _walk(server: "Server", settings: Settings, once: bool) -> None:
    certificate = settings.tls_cert
    assert certificate is not None
    asking = Demo(Https(server.settings.port, certificate))
    try:
        await asyncio.to_thread(_show, asking)
        if not once:
            await asyncio.to_thread(_your_turn, asking, settings)
    except OSError:
        if not server.draining:  # else somebody pressed Ctrl-C in the middle of it
            raise
    except Failed:
        server.request_stop(1)
        raise
    if once:
        server.request_stop()


def _show(asking: Demo) -> None:
    """Walk through the life of one grant."""
    print(styled("The token ledger, shown by the life of one refresh token", "bold"))
    print(paragraph(f"The server is {asking.server.url}. Each request below was sent to it; the answers are its own."))
    walk(asking)
    print()
    print(styled("Every step came out as it should.", "green"))


def _your_turn(asking: Demo, settings: Settings) -> None:
    """Print lines to paste: one with a live token, one with a retired one."""
    live = asking.issued()["refresh_token"]
    retired = asking.issued()["refresh_token"]
    newest = retired
    for _ in range(3):
        newest = asking.refreshed(newest)
    asking.heading("Your turn", "In another terminal, paste this. It holds the live refresh token of a new grant:")
    asking.show_request(refresh_request(live))
    asking.say("""The answer brings its successor. Paste the line a second time: the answer brings the very same
        successor, because repeating the last request is how a client gets an answer that it lost.""")
    asking.say("To see a reuse caught, paste this. It holds a token that was retired three rotations ago:")
    asking.show_request(refresh_request(retired))
    asking.say("It is refused, and its grant is ended: this line, with that grant's current token, is refused too.")
    asking.show_request(refresh_request(newest))
    asking.say("And to look around with the commands that a running server has beside it:")
    print()
    print(f"export TOKEN_LEDGER_DATABASE_URL={shlex.quote(settings.database_url)}")
    print(f"export TOKEN_LEDGER_KEYS_FILE={shlex.quote(str(settings.keys_file))}")
    print("token-ledger grants")
    print("token-ledger reuse")
    print("token-ledger explain    # paste any token of above, then press Enter")
    print()
    print(styled(f"Serving {asking.server.url} until you press Ctrl-C.", "bold"), flush=True)
