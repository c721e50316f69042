"""What every scenario checks by itself, each with a twin that it must catch (I-13)."""

from typing import Any

import pytest

from ledger.commands import Decision, GrantCommand, Rules
from ledger.events import GrantEvent, GrantIssued, ReuseDetected, TokenRedeemed, TokenRotated
from ledger.grant import Grant
from ledger.refusals import Refusal
from tests.scenario import Given, fact, scenario, told
from tests.scenario_commands import HERE, THERE, issue, redeem

ISSUED: tuple[Given, ...] = (issue(),)
ROTATED: tuple[Given, ...] = (issue(), redeem(0, 100))


class Sliding(Grant, array_like=True):
    """A grant whose decision changes it."""

    def decide(self, command: GrantCommand, rules: Rules) -> Decision:
        self.idle_expires_at = None
        return super().decide(command, rules)


def test_a_decision_that_changes_the_grant_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of what every scenario checks."""
    monkeypatch.setattr("tests.scenario.Grant", Sliding)
    with pytest.raises(AssertionError, match="decide changed the grant"):
        scenario(given=ISSUED, when=redeem(0, 10))


class Forgetful(Grant, array_like=True):
    """A grant whose state depends on what is not in its events."""

    def evolve(self, event: GrantEvent) -> None:
        super().evolve(event)
        self.issued_by = str(id(self))


def test_a_state_that_no_replay_comes_to_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """I-13: the broken twin of the replay that follows every decision."""
    monkeypatch.setattr("tests.scenario.Grant", Forgetful)
    with pytest.raises(AssertionError, match="a replay comes to another state"):
        scenario(given=ISSUED, when=redeem(0, 10))


def test_a_scenario_that_expects_something_else_fails() -> None:
    """A wrong member, a wrong order, a refusal that did not come: each fails."""
    twins: list[dict[str, Any]] = [
        {"then": [fact(TokenRedeemed, generation=1), TokenRotated]},
        {"then": [TokenRotated, TokenRedeemed]},
        {"then": []},
        {"refused": Refusal.ROTATED},
        {"outcome": Refusal.ROTATED},
    ]
    for wrong in twins:
        with pytest.raises(AssertionError):
            scenario(given=ISSUED, when=redeem(0, 10), **wrong)
    with pytest.raises(AssertionError):
        scenario(given=ISSUED, when=redeem(0, 10, scope=("admin",)))
    assert HERE != THERE
    assert [GrantIssued] == [type(event) for event in told(ISSUED)]
    assert ReuseDetected not in {type(event) for event in told(ROTATED)}
