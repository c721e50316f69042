"""Reading a secret: from standard input or a hidden prompt, never from an argument, which all users can read."""

import sys

from api.cli.output import Failed

SECRET_BYTES_MAX = 65536


def read_secret(what: str, prompt: str) -> str:
    """Read one secret; on a terminal ask for it without showing it. The line feed at its end is not part of it.

    Raises Failed (2) where nothing came, too much, or no text.
    """
    if sys.stdin.isatty():
        import getpass

        text = getpass.getpass(prompt, stream=sys.stderr)
    else:
        raw = sys.stdin.buffer.read(SECRET_BYTES_MAX + 1)
        if len(raw) > SECRET_BYTES_MAX:
            raise Failed(f"standard input is too long for a {what}", 2)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Failed(f"standard input holds no {what}: it is not UTF-8 text", 2) from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise Failed(f"standard input holds no {what}", 2)
    return text
