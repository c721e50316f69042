"""Who connects: from the socket they wait at to a connection of ours, by way of a handshake where there is TLS."""

import asyncio
import errno
import socket
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, Final

from api import tls
from api.connections import Connection, Listener
from api.logs import Log
from api.settings import Settings
from api.sockets import ANOTHER_PORT, StartError, hear_no_more, why_not

_BACKLOG: Final = 2048
_HANDSHAKE_SECONDS: Final = 0.1
_ACCEPTED_AT_ONCE: Final = 64
_NOTHING_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOTHING_LEFT_SECONDS: Final = 1.0

log = Log("api.server")


class Acceptor:
    """Accepts on some sockets, which are its own from `hold` on, until `close`. Lives in one event loop.

    `make` makes the protocol of a connection. `open_connections` are those that have one; with the handshakes they
    count towards what a listener takes at most. Until `accept_on`, `tls` and `before_handshake` may be set: the context
    that serves on TCP, and what is called as a connection is accepted for it.
    """

    def __init__(self, settings: Settings, make: Callable[[Listener], Connection], open_connections: Sized) -> None:
        self.tls: tls.Context | None = None
        self.before_handshake: Callable[[], None] | None = None
        self.handshakes: set[asyncio.Future[Any]] = set()  # accepted, and no connection yet
        self._host = settings.host
        self._handshake_seconds = settings.request_timeout_seconds
        self._make = make
        self._open = open_connections
        self._sockets: dict[socket.socket, Listener | None] = {}
        self._paths: list[Path] = []
        self._ends: list[Callable[[], object]] = []  # of accepting, for each socket that does

    @property
    def is_accepting(self) -> bool:
        return bool(self._ends)

    def hold(self, sock: socket.socket, path: Path | None = None) -> None:
        """Close this socket, which is bound and does not listen yet, with the others, and remove its path."""
        self._sockets[sock] = None
        if path is not None:
            self._paths.append(path)

    async def accept_on(self, sock: socket.socket, listener: Listener) -> None:
        """Listen, and accept. Raises StartError where another one listens there already: it had bound, as we have, but
        was faster."""
        self._sockets[sock] = listener
        loop = asyncio.get_running_loop()
        try:
            if listener.local:
                server = await loop.create_unix_server(self._maker(listener), sock=sock, backlog=_BACKLOG)
            elif self.tls is None:
                server = await loop.create_server(self._maker(listener), sock=sock, backlog=_BACKLOG)
            else:
                sock.listen(_BACKLOG)
                self._ends.append(lambda: loop.remove_reader(sock))
                loop.add_reader(sock, self._accept_for_tls, sock, listener)
                return
        except OSError as error:
            where = "the socket" if listener.local else f"{self._host} port {sock.getsockname()[1]}"
            raise StartError(why_not(where, error, ANOTHER_PORT)) from None
        self._ends.append(server.close)

    async def accept_rest(self, *, wait: bool) -> list[asyncio.Future[Any]]:
        """Take what the kernel has accepted for us and the loop has not fetched yet, and see that no more comes.
        `wait`: for a moment, in which who has begun to connect gets through."""
        for sock in self._sockets:
            hear_no_more(sock)
        if wait:
            await asyncio.sleep(_HANDSHAKE_SECONDS)
        accepted: list[asyncio.Future[Any]] = []
        for sock, listener in self._sockets.items():
            while listener is not None:
                try:
                    connection, _ = sock.accept()
                except OSError:
                    break
                accepted.append(self._begin(connection, listener))
        return accepted

    def close(self) -> None:
        """Accept no more, and close all sockets. Handshakes that are under way go on."""
        for end in self._ends:
            end()
        for sock in self._sockets:
            sock.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._ends.clear()
        self._sockets.clear()
        self._paths.clear()

    # ------------------------------------------------------------ with TLS

    def _accept_for_tls(self, sock: socket.socket, listener: Listener) -> None:
        """Accept what waits, and end at once what is too much, before its handshake: that holds a file as well.

        The loop's own way to accept tells nobody of a connection before its handshake, or when that fails.
        """
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = sock.accept()
            except OSError as error:  # nobody waits any more, or who did has left
                if error.errno in _NOTHING_LEFT:
                    log.warning("accept_failed", why=str(error))
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(sock)  # or it would ask again and again until there is something
                    loop.call_later(_NOTHING_LEFT_SECONDS, self._accept_again, sock, listener)
                return
            if len(self._open) + len(self.handshakes) < listener.connections_max:
                self._begin(connection, listener)
            else:
                listener.counts["too_many"] += 1
                connection.close()

    def _accept_again(self, sock: socket.socket, listener: Listener) -> None:
        if sock in self._sockets:
            asyncio.get_running_loop().add_reader(sock, self._accept_for_tls, sock, listener)

    # ------------------------------------------------------------ one connection

    def _begin(self, connection: socket.socket, listener: Listener) -> asyncio.Future[Any]:
        """Begin with a connection that is accepted: with its handshake, where it has one."""
        connection.setblocking(False)
        options = {} if listener.local else self._tls_options()
        loop = asyncio.get_running_loop()
        begun = asyncio.ensure_future(loop.connect_accepted_socket(self._maker(listener), connection, **options))
        self.handshakes.add(begun)
        begun.add_done_callback(self._begun)
        return begun

    def _begun(self, begun: asyncio.Future[Any]) -> None:
        self.handshakes.discard(begun)
        error = None if begun.cancelled() else begun.exception()
        if isinstance(error, OSError):  # who left, or does not speak TLS, is no event
            # But whoever sets up a client hears nothing else of why: uvloop ends it without an alert.
            log.debug("handshake_ended", why=str(error) or type(error).__name__)
        elif error is not None:
            log.exception("handshake_failed", error)

    def _maker(self, listener: Listener) -> Callable[[], Connection]:
        before_handshake = self.before_handshake
        if self.tls is None or listener.local or before_handshake is None:
            return lambda: self._make(listener)

        def accepted() -> Connection:
            before_handshake()
            return self._make(listener)

        return accepted

    def _tls_options(self) -> dict[str, Any]:
        seconds = self._handshake_seconds
        if self.tls is None:
            return {}
        return {"ssl": self.tls, "ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": min(seconds, 2.0)}
