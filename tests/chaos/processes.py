"""Servers in trouble: the program, or a broken twin of it, behind a wrapper or a preloaded library."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers import Server, program
from tests.wire import Json


class TroubledServer(Server):
    """A `token-ledger serve` that a trial can put a wrapper before, a library under, or a twin in the place of.

    A wrapper must exec the program, so that `process` is the server itself. `twin` names a fault of `twins.py`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        twin: str | None = None,
        wrapper: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        **options: Json,
    ) -> None:
        super().__init__(folder, **options)
        self.twin = twin
        self.wrapper = list(wrapper)
        self.variables = dict(variables or {})

    def serve_command(self) -> list[str]:
        command = [*program(), "serve"] if self.twin is None else [sys.executable, "-m", "tests.chaos.twins", self.twin]
        variables = ["env", *(f"{name}={value}" for name, value in self.variables.items())] if self.variables else []
        return [*self.wrapper, *variables, *command]
