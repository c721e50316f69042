"""The ways into the log of PostgreSQL, each whole or with something missing: fixture `appending`.

A test that uses it is run once for each: with a refresh by itself, then all plain refreshes, on their own, shorter way,
and at last with all on the general one.
"""

from types import ModuleType
from typing import Final

import pytest

from ledger.recorders import postgres_append, postgres_moves, postgres_refresh

NAMES: Final = {
    postgres_refresh: "ledger_refresh",
    postgres_moves: "ledger_move",
    postgres_append: "ledger_append",
}
"""What the function of each is called in the database."""


class Appending:
    """The function that refreshes of this test are written by: those that come alone, at least."""

    def __init__(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = module
        self._monkeypatch = monkeypatch

    @property
    def name(self) -> str:
        """The function's in the database."""
        return NAMES[self.module]

    @property
    def plain(self) -> bool:
        """Whether it is one for plain refreshes alone."""
        return self.module is not postgres_append

    def let(self, right: str, other: str) -> None:
        """Let stores be made whose function says something else."""
        function: str = self.module.__dict__["_FUNCTION"]
        assert 1 == function.count(right), f"{function.count(right)} times in the function: {right}"
        self._monkeypatch.setattr(self.module, "_FUNCTION", function.replace(right, other))

    def forget_versions(self) -> None:
        """Let it write to streams that have moved."""
        if self.module is postgres_refresh:
            self.let("WHERE id = p_id AND v = p_before FOR", "WHERE id = p_id FOR")
        else:
            self.let("JOIN streams s ON s.id = m.id AND s.v = m.v FOR", "JOIN streams s ON s.id = m.id FOR")


@pytest.fixture(params=NAMES, ids=["alone", "plain", "general"])
def appending(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Appending:
    """One way into the log after the other."""
    if request.param is postgres_append:
        monkeypatch.setattr(postgres_moves, "moves", lambda work: None)
    elif request.param is postgres_moves:
        monkeypatch.setattr(postgres_refresh, "refresh", lambda work: None)
    return Appending(request.param, monkeypatch)
