"""Sockets to listen on: TCP addresses, and a path beside the database that only its owner may open."""

import errno
import os
import socket
import stat
from pathlib import Path


class StartError(Exception):
    """The server cannot start where it was told to: one line that says why."""


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Bind every address of a host to one port (0: any that is free). Raises StartError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise StartError(f"HOST: {host} is no address of this machine") from None
    bound: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port or (bound[0].getsockname()[1] if bound else 0), *address[2:]))
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRNOTAVAIL and len(found) > 1:
                continue  # `localhost` on a machine without IPv6
            for other in bound:
                other.close()
            raise StartError(why_not(f"{host} port {port}", error)) from None
        bound.append(sock)
    if not bound:
        raise StartError(f"HOST: {host} is no address of this machine")
    return bound


def bind_local(path: Path) -> socket.socket:
    """Bind a socket at a path, for this user alone from its first moment. One left behind by a crash is replaced.

    Raises StartError: another process serves there, or the path cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with LocalAddress(path) as address:
            _remove_stale(path, address)
            os.fchmod(sock.fileno(), 0o600)  # Linux makes the file with the mode of the socket
            sock.bind(address)
            os.chmod(address, 0o600)  # other systems do not
    except OSError as error:
        sock.close()
        raise StartError(why_not(str(path), error)) from None
    except StartError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


class LocalAddress:
    """The address of a socket at a path of any length, while the context is open.

    An address holds about 100 bytes; beyond that the folder is opened and named by its descriptor (Linux).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: int | None = None

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= 100:
            return str(self._path)
        self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            os.close(self._folder)


def _remove_stale(path: Path, address: str) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"{path} is in the way: it is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise StartError(f"{path}: another process serves there")


def why_not(where: str, error: OSError) -> str:
    """Say in one line why a socket cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return f"{where} is taken: another process listens there"
    return f"cannot listen on {where}: {error.strerror or error}"
