"""Sockets to listen on: TCP addresses, and a path beside the database that only its owner may open."""

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

LOCAL_BODY_BYTES_MAX: Final = 16_777_216
"""What a command may send to the server beside it: a clients file, say."""

ADDRESS_BYTES_MAX: Final = 100
"""A unix socket's address holds 104 bytes at least on every system, with its closing zero."""

ANOTHER_PORT: Final = "stop it, or set TOKEN_LEDGER_PORT"
"""What to do where the port is taken."""

_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_DROP_SYN: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of TCP flags
        (0x45, 0, 1, 0x02),  # is SYN set?
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFF_FFFF),  # keep all else
    )
)
"""A filter of Linux's: whoever begins to connect is not heard; handshakes begun and open connections are."""


class StartError(Exception):
    """The server cannot start where it was told to: one line that says why."""


def bind_tcp(host: str, port: int, *, with_others: bool = False, advice: str = ANOTHER_PORT) -> list[socket.socket]:
    """Bind every address of a host to one port (0: any that is free). Raises StartError.

    `with_others`: more sockets may be bound to it in the same way; the kernel spreads connections over them. `advice`
    is what to do where another process listens there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # the latter of what cannot be the name of a host
        raise StartError(f"TOKEN_LEDGER_HOST: {host} is no address of this machine") from None
    bound: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if with_others:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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
            raise StartError(why_not(f"{host} port {port}", error, advice)) from None
        bound.append(sock)
    if not bound:
        raise StartError(f"TOKEN_LEDGER_HOST: {host} is no address of this machine")
    return bound


def bind_for_each(host: str, port: int, workers: int) -> list[list[socket.socket]]:
    """Sockets of one port for each of some workers. Raises StartError, also where anybody else listens there.

    On Linux each has its own, or the first to wake up would take most connections; elsewhere they share one.
    """
    shared = bind_tcp(host, port)  # alone, which another server's sockets would not let us
    if sys.platform != "linux":
        return [shared] * workers
    found = shared[0].getsockname()[1]
    for sock in shared:
        sock.close()
    bound: list[list[socket.socket]] = []
    try:
        for _ in range(workers):
            bound.append(bind_tcp(host, found, with_others=True))
    except BaseException:
        for sock in (sock for each in bound for sock in each):
            sock.close()
        raise
    return bound


def bind_local(path: Path) -> socket.socket:
    """Bind a socket at a path, for this user alone from its first moment. One left behind by a crash is replaced.

    Raises StartError: another process serves there, or the path cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(path) as address:
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


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Give an address for the socket at a path that a system call takes, however deep its folder lies.

    A unix socket's address holds about 100 bytes; a longer path is reached through a link to its folder.
    """
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="tl-") as folder:  # mode 0700: nobody can put another link in its place
        link = Path(folder, "d")
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        yield str(link / path.name)


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


def hear_no_more(sock: socket.socket) -> None:
    """Let nobody begin to connect to a listening TCP socket any more; who has begun gets through.

    Their systems ask again after a second and find the socket closed. Without this, one that connects between the last
    `accept` and the `close` is reset, request and all. Does nothing where the system has no such filter.
    """
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(_DROP_SYN) // 8, ctypes.addressof(program))
        )
    except OSError:
        return


def hear_again(sock: socket.socket) -> None:
    """Undo `hear_no_more`. Does nothing where it did nothing."""
    if sys.platform != "linux":
        return
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def hang_up(sock: socket.socket) -> None:
    """Listen no more, until somebody listens on the socket again: who waits to be accepted is reset, who comes is
    refused, or goes to another socket of the port. The port stays bound. Does nothing where it is the only socket."""
    if sys.platform != "linux":  # as in `bind_for_each`: others may listen on this very socket
        return
    with suppress(OSError):
        # Of one that nobody listens on, Linux would keep for good that it was shut down: whoever it accepts later is
        # shut down, too.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.shutdown(socket.SHUT_RDWR)


def why_not(where: str, error: OSError, advice: str = "stop it") -> str:
    """Say in one line why a socket cannot be listened on; `advice` is for one that is taken."""
    if error.errno == errno.EADDRINUSE:
        return f"{where} is taken: another process listens there; {advice}"
    return f"cannot listen on {where}: {error.strerror or error}"
