"""Eighteen broken twins of the rules: each is one function of the ledger with one phrase of its source replaced.

A mutant names the invariant that it breaks. `patched` puts it in the place of the honest code, for every caller, by
exchanging the function's code object; leaving the block takes it back.
"""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from ledger import authorization, lifetimes, minting, redeem, retired, scope, verdicts
from ledger.grant import Grant
from ledger.grant_state import GrantState


@dataclass(frozen=True)
class Mutant:
    """`old` stands once in the source of `function`; `new` takes its place."""

    invariant: str
    what: str
    function: Any
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.what}"

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Run with the mutant. Raises AssertionError where the source no longer holds the phrase exactly once."""
        honest = self.function.__code__
        self.function.__code__ = self.code()
        try:
            yield
        finally:
            self.function.__code__ = honest

    def code(self) -> Any:
        source = textwrap.dedent(inspect.getsource(self.function))
        assert 1 == source.count(self.old), f"{self}: the phrase stands {source.count(self.old)} times in the source"
        names: dict[str, Any] = dict(self.function.__globals__)
        exec(compile(source.replace(self.old, self.new), f"<{self}>", "exec"), names)
        twin = names[self.function.__name__]
        assert isinstance(twin, FunctionType)
        return twin.__code__


MUTANTS = (
    Mutant(
        "I-01",
        "a generation is skipped where a new key takes over",
        redeem._present_current,
        "current + 1, rules.active_key_id",
        "current + 1 + (command.key_id != rules.active_key_id), rules.active_key_id",
    ),
    Mutant(
        "I-02",
        "a retry hands out an access token that no event minted",
        retired._serve_retry,
        "events.append(_retry_served(grant, command, rules, kind, counts, token))",
        "pass",
    ),
    Mutant(
        "I-03",
        "a retry gets a sibling under the key that is active now",
        retired._serve_retry,
        "key_id=grant.key_id",
        "key_id=rules.active_key_id",
    ),
    Mutant(
        "I-04",
        "a retry is served though the successor has been used",
        retired.present_previous,
        "if grant.redeemed is None:",
        "if True:",
    ),
    Mutant(
        "I-05",
        "a fork from another context passes for the redeemer's straggler",
        verdicts.Redemption.is_straggler,
        " and context == self.context",
        "",
    ),
    Mutant(
        "I-06",
        "an epoch does not end what is refreshed",
        redeem.redeem,
        "grant.judge(at, rules.epoch_end)",
        "grant.judge(at, None)",
    ),
    Mutant(
        "I-07",
        "what has ended can be reinstated",
        Grant._reinstate,
        "standing.ended",
        "False",
    ),
    Mutant(
        "I-08",
        "the client's ceiling clamps what is carried, not what is asked for",
        scope.resolve,
        "within(granted, allowed)",
        "granted",
    ),
    Mutant(
        "I-10",
        "the retry budget lasts for one generation more",
        retired.budget_left,
        "counted_before < previous.retry_budget",
        "counted_before <= previous.retry_budget",
    ),
    Mutant(
        "I-16",
        "a wall clock that fell back opens a window or a lifetime again",
        redeem.redeem,
        "command.at if command.at > grant.at else grant.at",
        "command.at",
    ),
    Mutant(
        "I-17",
        "the idle end slides past the absolute one",
        lifetimes.idle_end,
        "idle if absolute is None or idle < absolute else absolute",
        "idle",
    ),
    Mutant(
        "I-03",
        "a retry with another key gets the winner's access token",
        retired._serve_retry,
        "presenter.proof_jkt, presenter.proof_x5t_s256)",
        "previous.token.cnf_jkt, previous.token.cnf_x5t_s256)",
    ),
    Mutant(
        "I-18",
        "a bound grant is anybody's who names its client",
        GrantState.owned_by,
        "self.bound_jkt in (None, who.proof_jkt) and ",
        "",
    ),
    Mutant(
        "I-18",
        "an access token is bound to the grant's key, not to the one shown",
        minting.mint,
        "cnf_jkt=presenter.proof_jkt",
        "cnf_jkt=grant.bound_jkt",
    ),
    Mutant(
        "I-21",
        "every reuse under alert is an event",
        retired._reuse,
        "grant.generation - told_at < ALERT_AGAIN_GENERATIONS",
        "grant.generation < told_at",
    ),
    Mutant("PK-3", "a code buys twice", authorization.exchange, "if grant.issued:", "if False:"),
    Mutant(
        "PK-2",
        "any verifier will do",
        authorization._began_with,
        "compare_digest(command.challenge, authorized.challenge)",
        "True",
    ),
    Mutant(
        "I-06",
        "the epochs of the exchange stand for those of the sign-in",
        authorization._issued,
        "client_epoch=authorized.client_epoch",
        "client_epoch=rules.client_epoch",
    ),
)
