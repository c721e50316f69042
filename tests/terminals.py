"""A program on a terminal of its own, as a person has one: what it prints there, and what is typed at its prompts."""

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS_MAX = 40.0


def on_a_terminal(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, typed: tuple[str, str] | None = None
) -> tuple[int, str]:
    """Run a program to its end on a terminal; its exit code and everything that the terminal got.

    `typed` is a prompt and what to type, with Enter, once it has appeared.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # getpass asks the controlling terminal, and a session gets the first one that it opens.
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    )
    os.close(theirs)
    printed, deadline = b"", time.monotonic() + SECONDS_MAX
    try:
        while time.monotonic() < deadline:
            part = b""
            if select.select([ours], [], [], 1.0)[0]:
                with contextlib.suppress(OSError):  # Linux says so where the other end is closed
                    part = os.read(ours, 65536)
                if not part:
                    break
            printed += part
            if typed is not None and typed[0].encode() in printed:
                time.sleep(0.2)  # what was typed before a prompt is thrown away where the input is hidden
                os.write(ours, typed[1].encode() + b"\n")
                typed = None
        return process.wait(SECONDS_MAX), printed.decode().replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
