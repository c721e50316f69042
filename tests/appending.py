"""Both ways into the log of PostgreSQL, each whole or with something missing: fixture `appending`.

A test that uses it is run twice: with plain refreshes on their own, shorter way, and with all on the general one.
"""

from typing import Any

import pytest

from ledger.recorders import postgres_append, postgres_moves


class Appending:
    """The function that refreshes of this test are written by."""

    def __init__(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = module
        self._monkeypatch = monkeypatch

    @property
    def plain(self) -> bool:
        """Whether it is the one for plain refreshes alone."""
        return self.module is postgres_moves

    def let(self, right: str, other: str) -> None:
        """Let stores be made whose function says something else."""
        function: str = self.module._FUNCTION
        assert 1 == function.count(right), f"{function.count(right)} times in the function: {right}"
        self._monkeypatch.setattr(self.module, "_FUNCTION", function.replace(right, other))


@pytest.fixture(params=[postgres_moves, postgres_append], ids=["plain", "general"])
def appending(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Appending:
    """The way into the log, one and then the other."""
    if request.param is postgres_append:
        monkeypatch.setattr(postgres_moves, "moves", lambda work: None)
    return Appending(request.param, monkeypatch)
