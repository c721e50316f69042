"""Commands run inside the test's own process: the same code, without the half second that starting one takes."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from api import cli


class Done(NamedTuple):
    """How a command ended, and what it said."""

    exit_code: int
    out: str
    err: str


def run_here(arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str], stdin: str = "") -> Done:
    """Run a command in this process, in a folder, with an environment of its own, and give everything back."""
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    with (
        _inside(folder),
        patch.dict(os.environ, environment, clear=True),
        patch.object(sys, "stdin", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        exit_code = cli.run(arguments)
    return Done(exit_code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
