"""What commands print: lines and tables for people, JSON for programs, errors as one line on standard error.

Whatever others sent is escaped before it is printed, so that one fact stays on one line and no terminal obeys it.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from api.logs import one_line, without_secrets

Json = Any

STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
STATUS_STYLES = {"active": "green", "suspended": "yellow", "revoked": "red", "expired": "dim"}


class Failed(Exception):
    """The command did not do it: one line, and exit code 1 (the thing asked about is not so) or 2."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say_error(message: str, exit_code: int) -> int:
    """Print one line on standard error, no token in it; return the exit code."""
    try:
        print(f"token-ledger: {one_line(without_secrets(message))}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it any more: what happened is the code's to say
        silence(sys.stderr)
    return exit_code


def silence(stream: TextIO) -> None:
    """Let what this stream still holds go nowhere: Python tries again at the end, and would end with a code of its
    own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str = "") -> None:
    """Print one line, with everything escaped that could end it."""
    print(one_line(text))


def say_json(value: Json) -> None:
    """Print one value for programs: one line, ASCII alone, so that no locale and no terminal changes it."""
    print(json_line(value))


def json_line(value: Json) -> str:
    """One value as one line of ASCII."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def coloured() -> bool:
    """Whether to use colour: on a terminal, unless NO_COLOR says otherwise (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, *names: str) -> str:
    """The text in a style where colour is wanted; what others sent must be escaped before."""
    if not names or not text or not coloured():
        return text
    return f"\x1b[{';'.join(STYLES[name] for name in names)}m{text}\x1b[0m"


def shown(value: Json) -> str:
    """One value as a person reads it: nothing for what is not there, lists with spaces, one line."""
    match value:
        case None:
            return "-"
        case True | False:
            return "yes" if value else "no"
        case list():
            return " ".join(str(each) for each in value) or "(none)"
        case "":
            return "(none)"
        case _:
            return one_line(str(value))


def say_members(members: Mapping[str, Json]) -> None:
    """Print one member a line, the names aligned. A member that is an object is spread over its own lines."""
    flat: dict[str, Json] = {}
    for name, value in members.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    width = max(map(len, flat), default=0)
    for name, value in flat.items():
        text = shown(value)
        print(f"{one_line(name):{width}}  {styled(text, STATUS_STYLES[text]) if text in STATUS_STYLES else text}")


def say_table(titles: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int]) -> None:
    """Print rows as they come, each cell padded to its column's least width; the last column is as wide as it needs."""
    print(styled(_aligned(titles, widths), "bold"))
    for row in rows:
        print(_aligned([one_line(cell) for cell in row], widths))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    *padded, last = cells
    return "  ".join([*(f"{cell:{width}}" for cell, width in zip(padded, widths, strict=False)), last]).rstrip()
