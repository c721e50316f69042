"""What `serve` serves: the ledger opened, the clients file applied, the applications over it, and all of it closed.

Order at the start: settings and certificate, the port, then the store (whose owner this process becomes), the clients
file, the record that a server began; only then is anything accepted. At the end the other way round: what was begun is
answered, what was counted is flushed, the end is recorded, the store given back.
"""

import asyncio
import contextlib
import gc
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Final

from api import clients_file, server
from api.app import App, Asgi, create_app
from api.archiver import Archiver
from api.cli.output import say_error
from api.clients_file import ClientsFile
from api.local import socket_path
from api.logs import Log
from api.metadata import auth_methods
from api.server import LAST_SECONDS, Server
from api.settings import Settings, SettingsError
from api.throttle import Throttle
from api.tls import Anchors
from api.wiring import Database, is_new, open_ledger
from api.worker_metrics import Collects, Shared
from api.workers import Seat, Workers
from ledger.application import Ledger
from ledger.refusals import LedgerError, Unavailable
from ledger.registration import TLS_AUTHS

RESTORE_POLL_SECONDS: Final = 0.2
BEGIN_AGAIN_SECONDS: Final = 5.0
"""After a restore was acknowledged: so long after the store has kept a server from beginning it tries again."""

COLLECT_EVERY_OBJECTS: Final = 50_000
ANSWERED_SECONDS: Final = 0.5
"""So long before it gives up a server that ends has whoever still waits for the store told that it does not answer."""

GIVE_BACK_SECONDS: Final = 0.5
"""So much of the time that an end may take is kept for giving back a store that does not answer."""

_NO_CERTIFICATES: Final = "TOKEN_LEDGER_TLS_CLIENT_CA, or any way to see certificates"

InFront = Callable[[App, Settings], Asgi]

log = Log("api.serving")


class Serving:
    """One server's ledger, from the `startup` hook of `api.server` to its `shutdown` hook. Lives in its event loop."""

    def __init__(
        self,
        settings: Settings,
        on_ready: Callable[[Server], None] | None = None,
        in_front: InFront | None = None,
        seat: Seat | None = None,
    ) -> None:
        self._settings = settings
        self._seat = seat
        self._shared: Shared | None = None
        self._on_ready = on_ready
        self._in_front = in_front
        self._clients: ClientsFile | None = None
        self._opened = AsyncExitStack()
        self._ledger: Ledger | None = None
        self._app: App | None = None
        self._waiting: asyncio.Task[None] | None = None
        self.failure: str | None = None

    async def start(self, server: Server) -> None:
        """Open everything that is served, or nothing. Raises SettingsError, LedgerError."""
        try:
            await self._open(server)
        except BaseException:
            await self.close()
            raise

    async def _open(self, server: Server) -> None:
        settings = server.settings
        if settings.clients_file is not None:
            with self._clients_file_may_be_wrong():
                self._clients = clients_file.load(settings.clients_file)
        # On SQLite this does what `init` does; tables of PostgreSQL are made by `init` alone.
        new = settings.sqlite_path is not None and is_new(settings.sqlite_path)
        ledger = await self._opened.enter_async_context(
            open_ledger(settings, create=new, on_fatal=lambda why: self._fail(server, why))
        )
        self._ledger = ledger
        if new:
            log.info("created", database=str(settings.sqlite_path), keys_file=str(settings.keys_file))
        if settings.head_file is None:
            log.warning("head_file_off", means="a restored backup will not be recognised by the log's length")
        if (problem := ledger.store.power_cut) is not None:
            log.warning("store_not_durable", problem=problem)
        throttle = None
        if self._seat is not None:
            throttle = Throttle(time.monotonic, tell=self._seat.failures.tell)
            self._seat.failures.follow(throttle.heard)
        server.app = self._app = create_app(ledger, settings, server=server, share=self._share, throttle=throttle)
        if self._in_front is not None:
            server.app = self._in_front(self._app, settings)
        if server.acceptor.tls is not None:
            server.acceptor.before_handshake = Anchors(
                server.acceptor.tls, ledger.authority, self._app.certificates
            ).renew
        if ledger.behind is None:
            try:
                await self._begin(ledger)
            except Unavailable as error:
                raise LedgerError(f"{Database(settings)}: {ledger.commits.last_error or error}") from None
        else:
            self._waiting = asyncio.create_task(self._begin_after_restore(ledger))

    def _share(self, own: Collects) -> Collects:
        """What is told of the figures: where several workers serve, those of all."""
        if self._seat is None:
            return own
        self._shared = Shared(self._seat.folder, own)
        return self._shared

    def _fail(self, server: Server, why: str) -> None:
        """End the process: what it remembers of a store that failed can no longer be believed (I-12)."""
        self.failure = why
        server.request_stop(2)

    async def _begin(self, ledger: Ledger) -> None:
        """Let the clients file rule, and record that a server began."""
        if self._clients is not None:
            with self._clients_file_may_be_wrong():
                await self._apply(ledger, self._clients)
        await ledger.started()
        self._opened.push_async_callback(ledger.stopped)
        if self._settings.archive_after_days is not None:
            archiver = Archiver(ledger, self._settings)
            await self._opened.enter_async_context(archiver.from_time_to_time())

    @contextlib.contextmanager
    def _clients_file_may_be_wrong(self) -> Iterator[None]:
        """A worker that follows another, or comes beside one, serves by what the store holds, as after a SIGHUP: else
        a mistake in the file, which harms nobody until then, would cost one worker after the other. So does a server
        that has waited for an acknowledgement: it serves by then, and nobody would learn why it does not begin."""
        try:
            yield
        except LedgerError as error:
            if self._waiting is None and (self._seat is None or not self._seat.has_served):
                raise
            log.error("clients_file_not_applied", why=str(error))

    async def _begin_after_restore(self, ledger: Ledger) -> None:
        """Wait until the loss is acknowledged: what is recorded before would stand at positions already given away.
        Whatever keeps it from beginning then is told, and tried again: else no start would be on record, and nothing
        archived, for as long as the process lives."""
        while ledger.behind is not None:
            await asyncio.sleep(RESTORE_POLL_SECONDS)
        while True:
            try:
                await self._begin(ledger)
            except Exception as error:  # a defect, too: nobody else would say it
                log.error("not_begun", why=f"{type(error).__name__}: {error}", again_in_seconds=BEGIN_AGAIN_SECONDS)
                await asyncio.sleep(BEGIN_AGAIN_SECONDS)
            else:
                return

    async def ready(self, server: Server) -> None:
        """Say where it is served."""
        settings = server.settings
        assert self._ledger is not None
        log.info("serving", issuer=settings.issuer, host=settings.host, port=settings.port)
        if (reason := self._ledger.readiness()) is not None:
            log.warning("unready", reason=reason)
        _spare_the_collector()
        if self._seat is not None:
            self._follow_parent(server, self._seat)
        if self._on_ready is not None:
            self._on_ready(server)

    def _follow_parent(self, server: Server, seat: Seat) -> None:
        """Tell the parent that this worker serves, share figures with the others, and end when the parent is gone."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(seat.parent)
            server.request_stop()

        loop.add_reader(seat.parent, gone)
        if self._shared is not None:
            self._shared.begin()
        with contextlib.suppress(OSError):
            os.write(seat.ready, b"1")  # the parent listens to its first worker alone
        os.close(seat.ready)

    async def drain(self, server: Server) -> None:
        """Let nobody wait for a store that does not answer until the server gives them up: they are told so before."""
        if self._ledger is not None and (left := server.seconds_left) is not None:
            self._ledger.commits.end_within(left - min(ANSWERED_SECONDS + LAST_SECONDS, left / 2))

    async def close(self, server: Server | None = None) -> None:
        """Flush, record the end, give the store back, in what is left of the time that the end may take. Safe to
        repeat."""
        left = None if server is None else server.seconds_left
        if self._ledger is not None and left is not None:
            self._ledger.commits.end_within(left - min(GIVE_BACK_SECONDS, left / 2))
        if self._waiting is not None:
            self._waiting.cancel()
        if self._shared is not None:
            self._shared.end()
        await self._opened.aclose()

    async def reload(self, server: Server) -> None:
        """Read TLS_CLIENT_CA, key ring and clients file again. What is wrong is one log line and changes nothing."""
        ledger, settings = self._ledger, server.settings
        assert ledger is not None
        assert self._app is not None
        if settings.tls_client_ca is not None:
            try:
                self._app.certificates.load_again()
                log.info("reloaded", what="client authorities")
            except SettingsError as error:
                log.error("reload_failed", what="client authorities", why=str(error))
        try:
            ledger.read_ring()
            log.info("reloaded", what="key ring")
        except LedgerError as error:
            log.error("reload_failed", what="key ring", why=str(error))
        if settings.clients_file is None:
            return
        try:
            self._clients = clients_file.load(settings.clients_file)
            if ledger.behind is None:
                await self._apply(ledger, self._clients)
        except (LedgerError, Unavailable) as error:
            log.error("reload_failed", what="clients file", why=str(error))

    async def _apply(self, ledger: Ledger, wanted: ClientsFile) -> None:
        try:
            report = await ledger.operators.apply(wanted.clients, wanted.operators, serial=wanted.serial)
        except LedgerError as error:
            raise LedgerError(f"{self._settings.clients_file}: {error}") from None
        for line in report.lines():
            log.info("clients_file", says=line)
        used = {client.auth for client in ledger.authority.clients.values() if client.enabled}
        for auth in sorted(used.intersection(TLS_AUTHS) - auth_methods(self._settings)):
            log.warning("clients_cannot_sign_in", auth=auth, lacks=_NO_CERTIFICATES)


def _spare_the_collector() -> None:
    """Requests leave no cycles, so reference counts free all that they made: the collector would only walk, again and
    again, over what lives as long as the process and over what waits for its commit."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY_OBJECTS, 10, 10)


def run(settings: Settings, on_ready: Callable[[Server], None] | None = None, in_front: InFront | None = None) -> int:
    """Serve until told to stop; return the exit code. `on_ready` is called in the loop once requests are accepted;
    `in_front` is given the application and the settings with their port, and returns what is served.

    What keeps the server from starting is one line on standard error and exit code 2, or raised: SettingsError,
    LedgerError; the latter also where the store failed and the process must not go on.
    """
    if settings.workers == 1:
        return _run(settings, Serving(settings, on_ready, in_front), ())
    assert on_ready is None
    assert in_front is None
    return Workers(settings, _run_worker).run()


def _run_worker(settings: Settings, seat: Seat) -> int:
    try:
        return _run(settings, Serving(settings, seat=seat), seat.sockets)
    except (SettingsError, LedgerError) as error:
        return say_error(str(error), 2)


def _run(settings: Settings, serving: Serving, sockets: Sequence[socket.socket]) -> int:
    exit_code = server.run(
        None,
        settings,
        sockets=sockets,
        local_path=None if settings.sqlite_path is None else socket_path(settings.sqlite_path),
        on_startup=serving.start,
        on_ready=serving.ready,
        on_drain=serving.drain,
        on_shutdown=serving.close,
        on_reload=serving.reload,
    )
    if serving.failure is not None:
        raise LedgerError(f"stopped, because the store failed: {serving.failure}")
    return exit_code
