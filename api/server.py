"""The server: one application on TCP and on a socket beside the database, and an end that loses nothing begun.

uvicorn's protocols and uvloop do the work; ours is when a connection is ended, and why (`api/connections.py`).
"""

import asyncio
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, Literal

from uvicorn.config import Config
from uvicorn.server import ServerState

from api import tls
from api.accepting import Acceptor
from api.cli.output import say_error
from api.connections import COUNTS, HEAD_BYTES_MAX, Connection, Listener
from api.logs import Log
from api.settings import Settings, SettingsError
from api.sockets import LOCAL_BODY_BYTES_MAX, StartError, bind_local, bind_tcp

IDLE_MAX: Final = 1000
_DRAIN_SECONDS: Final = 0.5
LAST_SECONDS: Final = 1.0
"""So long before the end has to be over nobody is answered any more; a quarter of that time where it is short."""

_POLL_SECONDS: Final = 0.02
_OPEN_FILES_WANTED: Final = 65_536
_OPEN_FILES_KEPT: Final = 128  # for the store, the key ring, what a request opens
_CONNECTIONS_MIN: Final = 16
_OPEN_FILES_MIN: Final = _CONNECTIONS_MIN + 32

Parser = Literal["auto", "httptools", "h11"]
Hook = Callable[["Server"], Awaitable[None]]

log = Log("api.server")


class Server:
    """One application on its sockets. Lives in one event loop, and nothing here may be called from another thread.

    `app` and what the acceptor calls before a handshake may be set by `on_startup`, which runs when the port is bound
    and nothing listens yet. `on_ready` runs when connections are accepted, `on_drain` when the end begins,
    `on_shutdown` after the last answer, `on_reload` on SIGHUP after the certificate. A local path adds a socket there
    (mode 0600) whose requests carry `state["local"]`: whoever may open the file is `local`. `sockets` are bound
    already, to the port of `settings`: for one of several workers.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        *,
        sockets: Sequence[socket.socket] = (),
        local_path: Path | None = None,
        on_startup: Hook | None = None,
        on_ready: Hook | None = None,
        on_drain: Hook | None = None,
        on_shutdown: Hook | None = None,
        on_reload: Hook | None = None,
        parser: Parser = "auto",
    ) -> None:
        self.app = app
        self.settings = settings
        self.local_path = local_path
        self._given = list(sockets)
        self.draining = False
        self.exit_code = 0
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self._hooks = {
            "startup": on_startup,
            "ready": on_ready,
            "drain": on_drain,
            "shutdown": on_shutdown,
            "reload": on_reload,
        }
        self._protocol = protocol_class(parser)
        self._config = Config(
            _no_app,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            interface="asgi3",
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        )
        self._state = ServerState()
        self.acceptor: Final = Acceptor(settings, self._connection, self._state.connections)
        self._listeners: list[Listener] = []
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._stop_asked = asyncio.Event()
        self._ends_at: float | None = None
        self._impatient = False
        self._reloading = asyncio.Lock()
        # Deadlines are set earlier by two looks' time: one until the next look, one for a look at thousands at once.
        self._sweep_seconds = min(0.25, settings.request_timeout_seconds / 20)

    @property
    def seconds_left(self) -> float | None:
        """How long the end may still take; None where it was not asked for."""
        return None if self._ends_at is None else max(0.0, self._ends_at - asyncio.get_running_loop().time())

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._state.connections)

    @property
    def certificate_expires_at(self) -> int | None:
        """When the certificate runs out that is shown now, in seconds since 1970; None without TLS."""
        return None if self.acceptor.tls is None else self.acceptor.tls.expires_at

    # -- begin ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind, let `on_startup` open what is served, accept. Raises StartError, SettingsError, or what a hook raises.

        With port 0 `settings` has the port that was given from here on. What `on_startup` opened is closed by
        `on_shutdown` where the start fails after it.
        """
        if self.settings.workers != 1 and not self._given:
            raise SettingsError(
                "TOKEN_LEDGER_WORKERS: this is one process; several are started by `token-ledger serve`"
            )
        self.acceptor.tls = tls.context_of(self.settings)
        self._config.load()
        opened = False
        try:
            bound = self._given or bind_tcp(self.settings.host, self.settings.port)
            for sock in bound:
                self.acceptor.hold(sock)
            self.settings = self.settings.on_port(bound[0].getsockname()[1])
            await self._run_hook("startup")
            opened = True
            listening = {sock: self._listener() for sock in bound}
            # Only now: whoever owns the database owns the path, and a process that may not have it has left it alone.
            if self.local_path is not None:
                local = bind_local(self.local_path)
                self.acceptor.hold(local, self.local_path)
                listening[local] = self._listener(local=True)
            self._listeners = list(listening.values())
            self._sweep()  # which also sets the date that every answer carries, the first one too
            for sock, listener in listening.items():
                await self.acceptor.accept_on(sock, listener)
            await self._run_hook("ready")
        except BaseException:
            if self._sweep_timer is not None:
                self._sweep_timer.cancel()
            self.acceptor.close()
            if opened:
                await self._run_hook("shutdown")
            raise

    def _listener(self, *, local: bool = False) -> Listener:
        return Listener(
            app=self.app,
            state=self._state,
            body_bytes_max=LOCAL_BODY_BYTES_MAX if local else self.settings.request_body_bytes_max,
            request_seconds=self.settings.request_timeout_seconds - 2 * self._sweep_seconds,
            keep_alive_seconds=self.settings.keep_alive_seconds,
            counts=self.counts,
            connections_max=max(_CONNECTIONS_MIN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OPEN_FILES_KEPT),
            local=local,
            access_log=self.settings.log_level == "debug",
        )

    def _connection(self, listener: Listener) -> Connection:
        return self._protocol(listener, self._config, asyncio.get_running_loop())

    # -- serve ---------------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Look at every connection's deadline and at the clock on the wall; the only timer there is."""
        loop = asyncio.get_running_loop()
        self._sweep_timer = loop.call_later(self._sweep_seconds, self._sweep)
        date = formatdate(time.time(), usegmt=True).encode("ascii")
        self._state.default_headers = [(b"date", date)]
        for listener in self._listeners:
            listener.date_line = b"date: " + date + b"\r\n"
        now = loop.time()
        idle: list[Connection] = []
        for connection in self._open():
            if now >= connection.deadline or now >= connection.write_deadline:
                connection.expire()
            elif connection.idle and not connection.listener.local:
                idle.append(connection)
        # Where files are few, too, whoever waits for nothing makes room for who comes.
        idle_max = min([IDLE_MAX, *(listener.connections_max // 2 for listener in self._listeners)])
        if len(idle) > idle_max:
            idle.sort(key=lambda connection: connection.deadline)  # all idle ones got the same time: the oldest first
            for connection in idle[: len(idle) - idle_max]:
                connection.expire()

    def _open(self) -> list[Connection]:
        return list(self._state.connections)  # type: ignore[arg-type]  # all of them are ours

    async def reload(self) -> None:
        """Read the certificate again, then call `on_reload`. What is wrong is one log line and changes nothing."""
        async with self._reloading:  # two signals in a row read one after the other
            await self._reload()

    async def _reload(self) -> None:
        if not self.acceptor.is_accepting:
            log.warning("reload_ignored", why="the server is not serving yet, or not any more")
            return
        if self.acceptor.tls is not None:
            try:
                self.acceptor.tls.load_again(self.settings)
            except SettingsError as error:
                log.error("reload_failed", what="certificate", why=str(error))
            else:
                log.info("reloaded", what="certificate")
        await self._run_hook("reload")

    async def _run_hook(self, name: str) -> None:
        hook = self._hooks[name]
        if hook is not None:
            await hook(self)

    # -- end -----------------------------------------------------------------------------------------------------------

    def request_stop(self, exit_code: int = 0) -> None:
        """Ask for the end in order; the first exit code that is not 0 stays. Asked twice it ends at once."""
        self.exit_code = self.exit_code or exit_code
        self._impatient = self._stop_asked.is_set()
        self._stop_asked.set()

    def _terminate(self) -> None:
        """SIGTERM. A worker hears it twice where all of a group of processes are told, as systemd does: from there and
        from its parent. That is no hurry; where there is one the parent says SIGINT."""
        if not (self._given and self._stop_asked.is_set()):
            self.request_stop()

    async def wait(self) -> int:
        """Wait until the end was asked for and everything begun is answered; return the exit code."""
        await self._stop_asked.wait()
        await self._drain()
        return self.exit_code

    async def stop(self) -> int:
        """End in order, from inside the loop."""
        self.request_stop()
        return await self.wait()

    async def serve(self) -> int:
        """Start, serve until SIGTERM or SIGINT, end in order. SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()

        def hang_up() -> None:
            task = loop.create_task(self.reload())
            reloads.add(task)
            task.add_done_callback(reloaded)

        def reloaded(task: asyncio.Task[None]) -> None:
            reloads.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.exception("reload_failed", error)

        hang_up_before = signal.getsignal(signal.SIGHUP) or signal.SIG_DFL
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self.request_stop)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        loop.set_exception_handler(_log_loop_error)
        try:
            await self.start()
            return await self.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
            # Else one that comes while the process leaves would end it, with an exit code that speaks of a failure.
            signal.signal(signal.SIGHUP, hang_up_before)

    async def _drain(self) -> None:
        """Answer what was begun, with `Connection: close`, and no longer than REQUEST_TIMEOUT_SECONDS in all.

        The sockets stay open for a moment: clients that are at work learn from their next answer that they must come
        back elsewhere, and a balancer gets to see /readyz say 503. Then nobody may begin to connect, and what waits to
        be accepted is accepted, for closing a socket resets what waits behind it; then idle connections are closed.
        """
        loop = asyncio.get_running_loop()
        seconds = self.settings.request_timeout_seconds
        self._ends_at = loop.time() + seconds
        give_up_at = self._ends_at - min(LAST_SECONDS, seconds / 4)
        self.draining = True
        for listener in self._listeners:
            listener.draining = True
        log.info("draining", connections=self.connections)
        await self._run_hook("drain")
        moment_ends_at = loop.time() + min(_DRAIN_SECONDS, seconds / 4)
        while self.connections and not self._impatient and loop.time() < moment_ends_at:
            await asyncio.sleep(_POLL_SECONDS)
        late = await self.acceptor.accept_rest(wait=not self._impatient)
        self.acceptor.close()
        while not self._impatient and loop.time() < give_up_at:
            for connection in self._open():
                connection.drain()
            if not (self.connections or self._state.tasks) and all(one.done() for one in late):
                break
            await asyncio.sleep(_POLL_SECONDS)
        await self._cut_off()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        await self._run_hook("shutdown")
        log.info("stopped")

    async def _cut_off(self) -> None:
        tasks = list(self._state.tasks)
        if tasks or (self.connections and not self._impatient):
            log.warning("cut_off", connections=self.connections, requests=len(tasks))
        for connection in self._open():
            connection.transport.abort()
        begun = list(self.acceptor.handshakes)
        for task in (*tasks, *begun):
            task.cancel()
        await asyncio.gather(*tasks, *begun, return_exceptions=True)


def run(app: Any, settings: Settings, **options: Any) -> int:
    """Serve until told to stop, on uvloop where it is installed; options are those of `Server`. Return the exit code.

    What keeps the server from starting is one line on standard error and exit code 2. What a hook raises passes.
    """
    try:
        _prepare_process()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(app, settings, options))
    except (StartError, SettingsError) as error:
        return say_error(str(error), 2)


async def _serve(app: Any, settings: Settings, options: dict[str, Any]) -> int:
    return await Server(app, settings, **options).serve()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes an event loop: uvloop's where it is installed, None (asyncio's own) elsewhere."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def protocol_class(parser: Parser) -> Callable[..., Connection]:
    """Return the protocol for a parser; `auto` is httptools where it is installed, else h11."""
    if parser != "h11":
        try:
            from api.httptools_protocol import HttptoolsConnection
        except ImportError:
            if parser == "httptools":
                raise
        else:
            return HttptoolsConnection
    from api.h11_protocol import H11Connection

    return H11Connection


def _prepare_process() -> None:
    """As many open files as the system gives. Raises StartError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < _OPEN_FILES_MIN:
        raise StartError(f"a server needs {_OPEN_FILES_MIN} open files at least, and may have {wanted} (ulimit -n)")


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if error is None or isinstance(error, OSError):  # a network's doing: no descriptors left, a broken handshake
        log.warning("loop_error", what=context.get("message"), why=str(error) if error else None)
    else:
        log.exception("loop_error", error, what=context.get("message"))


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("connections call the application of their listener")
