"""`demo`: the main job on an embedded default, in one minute, from real requests and answers."""

import asyncio
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from api import logs
from api.cli.certificate import write_certificate
from api.cli.curl import Https
from api.cli.demo_page import Page
from api.cli.demo_walk import CLIENTS_FILE, Walk, accepted, callback_of, issue_request, refresh_request
from api.cli.output import Failed, styled
from api.settings import Settings

if TYPE_CHECKING:
    from api.app import App, Asgi
    from api.server import Server


@click.command("demo")
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="0 takes any free port.")
@click.option("--once", is_flag=True, help="Exit after the walk: 0 only where every step came out as it should.")
def demo(port: int, once: bool) -> None:
    """See what rotation, a retried lost answer, narrowing, restoring and reuse detection are.

    Everything is real: a database in a temporary folder, HTTPS with a certificate made for this run, the requests and
    answers that you see. It goes on serving afterwards, for you to try; at its end the folder is removed.
    """
    _check_free(port)
    with tempfile.TemporaryDirectory(prefix="token-ledger-demo-") as folder:
        settings = prepared(Path(folder), port)
        with (Path(folder) / "server.log").open("w", encoding="utf-8") as log:
            raise click.exceptions.Exit(served(settings, once, log))


def _check_free(port: int) -> None:
    from api.sockets import StartError, bind_tcp

    try:
        for bound in bind_tcp("127.0.0.1", port, advice="stop it, or choose a port with --port"):
            bound.close()
    except StartError as error:
        raise Failed(str(error), 2) from None


def prepared(folder: Path, port: int) -> Settings:
    """Write the demo's files into a folder; return the settings that serve them."""
    certificate, key, clients = folder / "tls.pem", folder / "tls.key", folder / "clients.toml"
    write_certificate(certificate, key)
    clients.touch(mode=0o600)
    write_clients(clients, port)
    return Settings(
        database_url=f"sqlite:///{folder / 'token-ledger.db'}",
        keys_file=folder / "token-ledger.keys",
        clients_file=clients,
        port=port,
        tls_cert=certificate,
        tls_key=key,
        log_level="warning",
    )


def write_clients(file: Path, port: int) -> None:
    """Say which clients and operators there are; the client's redirect address has the port in it."""
    file.write_text(CLIENTS_FILE.replace("CALLBACK", callback_of(url_on(port))), "utf-8")


def url_on(port: int) -> str:
    """What the demo's ledger calls itself, and where its pages are."""
    return f"https://localhost:{port}"


def served(settings: Settings, once: bool, log: TextIO) -> int:
    """Serve, and walk beside it in a thread of its own, as any client would. Return the exit code."""
    from api import serving

    logs.configure(settings.log_level, settings.log_format, log)
    walked: list[asyncio.Task[None]] = []

    def begin(server: "Server") -> None:
        walked.append(asyncio.get_running_loop().create_task(_walk(server, settings, once)))

    exit_code = serving.run(settings, begin, _with_pages)
    for task in walked:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return exit_code


def _with_pages(app: "App", settings: Settings) -> "Asgi":
    from api.cli.demo_client import Client
    from api.cli.demo_signin import SignIn
    from api.cli.demo_site import Site

    assert settings.tls_cert is not None
    url, https = url_on(settings.port), Https(settings.port, settings.tls_cert)
    sign_in, client = SignIn(url, callback_of(url), https), Client(url, str(settings.tls_cert), https)
    pages = {
        "/authorize": {"GET": sign_in.show, "POST": sign_in.decide},
        "/demo": {"GET": client.show},
        "/demo/start": {"GET": client.start},
        "/demo/callback": {"GET": client.callback},
        "/demo/refresh": {"POST": client.refresh},
    }
    return Site(app, pages)


async def _walk(server: "Server", settings: Settings, once: bool) -> None:
    certificate = settings.tls_cert
    assert certificate is not None
    assert settings.clients_file is not None
    url = url_on(server.settings.port)
    if server.settings.port != settings.port:  # it was 0, and what the client registered must name the one that came
        write_clients(settings.clients_file, server.settings.port)
        await server.reload()
    https, page = Https(server.settings.port, certificate), Page(url, str(certificate))
    try:
        await asyncio.to_thread(_show, https, page, url)
        if not once:
            await asyncio.to_thread(_your_turn, https, Page(url, str(certificate)), settings, url)
            logs.configure("info", settings.log_format)  # from here on, what is pasted shows in the server's log
    except OSError:
        if not server.draining:  # else somebody pressed Ctrl-C in the middle of it
            server.request_stop(1)
            raise
    except Failed:
        server.request_stop(1)
        raise
    if once:
        server.request_stop()


def _show(https: Https, page: Page, url: str) -> None:
    """Walk through the life of one grant."""
    page.title("The token ledger, told by the life of one refresh token")
    page.say(f"""A server runs at {url}, just for this. Every request below was sent to it, and every answer is its
        own; where there is colour, each refresh token has one.""")
    Walk(https, page).all()
    print()
    print(styled("Every step came out as it should.", "green"), flush=True)


def itself() -> str:
    """How to type the command that runs here again: by its name, by its path, or as the package that it was run as."""
    if shutil.which("token-ledger"):
        return "token-ledger"
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m api"
    return shlex.quote(sys.argv[0])


def _your_turn(https: Https, page: Page, settings: Settings, url: str) -> None:
    """Print lines to paste: one with a live token, one with a retired one, one with what the retired one became."""
    live = accepted(https, issue_request(), 201)["refresh_token"]
    retired = newest = accepted(https, issue_request(), 201)["refresh_token"]
    for _ in range(3):
        newest = accepted(https, refresh_request(newest))["refresh_token"]
    print()
    page.title("Your turn, in another terminal")
    page.say("""Paste this: it redeems the live token of a new grant. Then paste it again: you get the same successor
        once more, because a repeated request is taken for one whose answer was lost.""")
    page.request(refresh_request(live), "a live token: paste me twice")
    page.say("""To see a reuse caught, paste the next two. The first presents a token that was retired three rotations
        ago, as a thief would; the second presents the current token of the same grant, which is dead from then on. The
        server's log line of the reuse appears below.""")
    page.request(refresh_request(retired), "a retired token")
    page.request(refresh_request(newest), "the current token of the same grant")
    page.say("And look at it with the commands that work beside any running server:")
    print()
    print(f"export TOKEN_LEDGER_DATABASE_URL={shlex.quote(settings.database_url)}")
    print(f"export TOKEN_LEDGER_KEYS_FILE={shlex.quote(str(settings.keys_file))}")
    command = itself()
    print(f"{command} grants     # every grant, one a line")
    print(f"{command} reuse      # where a retired token was seen")
    print(f"{command} explain    # asks for a token, says what became of it")
    page.say("""Or in a browser, from a sign-in on. Its certificate is made for this run, so the browser will warn.""")
    print()
    print(f"{url}/demo")
    print()
    print(styled(f"Serving {url} until you press Ctrl-C.", "bold"), flush=True)
