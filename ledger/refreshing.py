"""A refresh that nobody waits for: decided with its batch, its answer made meanwhile, told once it is durable."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ledger import redeeming, tokens
from ledger.answering import Unmade
from ledger.answers import Caller, Source, TokenAnswer
from ledger.batch import Batch
from ledger.refusals import Refused

if TYPE_CHECKING:  # it puts these in line
    from ledger.application import Ledger


class Refreshing:
    """A refresh that is in line by itself: whom `Commits` answers in place of a future (`refresh_soon`)."""

    __slots__ = ("_caller", "_ledger", "_prepare", "_presented", "_source", "_tell", "_told", "_unmade")

    def __init__(
        self,
        ledger: "Ledger",
        caller: Caller,
        source: Source,
        presented: tokens.Presented,
        tell: Callable[[TokenAnswer | BaseException], None],
        prepare: Callable[[TokenAnswer], None],
    ) -> None:
        self._ledger = ledger
        self._caller = caller
        self._source = source
        self._presented = presented
        self._tell = tell
        self._prepare = prepare
        self._told = False
        self._unmade: Unmade

    def redeem(self, batch: Batch) -> "Refreshing":
        """Decide it."""
        desk, caller, source, presented = self._ledger.desk, self._caller, self._source, self._presented
        self._unmade = redeeming.redeem(batch, desk, caller, source, presented, None, None)
        return self

    def made(self) -> TokenAnswer:
        """Make the answer, and have it prepared."""
        answer = self._unmade.made()
        self._prepare(answer)
        return answer

    def done(self) -> bool:
        """Whether it was told."""
        return self._told

    def set_result(self, answer: TokenAnswer) -> None:
        """Tell the answer, whose events are durable."""
        self._told = True
        try:
            answer = self._ledger.answered(answer)
        except Exception as error:  # a JWT that could not be signed
            self._tell(error)
        else:
            self._tell(answer)

    def set_exception(self, error: BaseException) -> None:
        """Tell why there is none."""
        self._told = True
        if isinstance(error, Refused):
            self._ledger.not_refreshed(error, self._caller)
        self._tell(error)
