"""Requests in line for a batch: what to decide, whom to answer, until when."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ledger.answering import Later
from ledger.batch import Batch
from ledger.refusals import LedgerError, Refused, Unavailable

log = logging.getLogger("ledger")

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Decide = Callable[[Batch], T | Later[T]]
"""One request's work: plain code on a batch. It may run more than once, so time and command id are the batch's."""

BATCH_MAX = 256


class AnswerTo(Protocol[T_contra]):
    """Whom to answer: a future, or what does the same at once. Neither `set_result` nor `set_exception` raises."""

    def done(self) -> bool: ...
    def set_result(self, result: T_contra, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


class Waiting(msgspec.Struct, Generic[T], frozen=True, eq=False):
    """A request in line: what to decide, whom to answer, and until when. `ours`: nobody had to say who they are.
    `about`: the name of the grant's stream that is going to be asked for, "" where that is not known yet. `by`: that of
    the client or operator who has said who they are, "" where it may be anybody's. `lost`: how often it was decided
    alone, and a race was lost all the same."""

    decide: Decide[T]
    command_id: str
    future: AnswerTo[T]
    deadline: float
    ours: bool = False
    about: str = ""
    by: str = ""
    lost: int = 0

    def stands_on(self, moved: frozenset[str]) -> bool:
        """Whether its sender may have shown what does not count any more, where that of those streams has changed."""
        return bool(moved) and not self.ours and (not self.by or self.by in moved)


class Line:
    """Who stands in front of one store: those in line, those who are to be decided alone, whoever wants the connection
    for themselves, and those whose batch is under way, each with what was decided.

    `unserved_since`: since when, of the loop's time, somebody has waited and nobody was served; `failed_at`: when the
    store last failed somebody who came from outside. `others_next`: who was decided alone is to be again, and
    everybody else comes first. `closed`: nobody is taken in any more.
    """

    __slots__ = (
        "_time", "alone", "closed", "exclusive", "failed_at", "in_flight", "others_next", "unserved_since", "waiting",
    )  # fmt: skip

    def __init__(self, time: Callable[[], float]) -> None:
        """`time` is the event loop's."""
        self._time = time
        self.waiting: deque[Waiting[Any]] = deque()
        self.alone: deque[Waiting[Any]] = deque()
        self.exclusive: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self.in_flight: list[tuple[Waiting[Any], Any, bool]] = []
        self.unserved_since: float | None = None
        self.failed_at = -math.inf
        self.others_next = False
        self.closed = False

    def take(self) -> list[Waiting[Any]]:
        """Who is in the next batch."""
        others_next, self.others_next = self.others_next and bool(self.waiting), False
        while self.alone and not others_next:
            alone = self.alone.popleft()
            if not alone.future.done():
                return [alone]
        if len(self.waiting) > BATCH_MAX:
            return [self.waiting.popleft() for _ in range(BATCH_MAX)]
        taken = [each for each in self.waiting if not each.future.done()]
        self.waiting.clear()
        return taken

    def put_back(self, taken: Sequence[Waiting[Any]]) -> None:
        """Nothing has happened: they are first again, as long as their deadlines are not over."""
        (self.alone if len(taken) == 1 and self.alone else self.waiting).extendleft(reversed(taken))
        self.expire()

    def served(self) -> None:
        """The store has done what it was asked: whoever waits, waits from now on."""
        self.unserved_since = self._time() if self.waiting or self.alone else None

    def failed(self, taken: Sequence[Waiting[Any]]) -> None:
        """The store could not do what it was asked, and nothing has happened: refuse them."""
        if not all(each.ours for each in taken):
            self.failed_at = self._time()
        refuse(taken)

    def expire(self, *, everybody: bool = False) -> None:
        """Refuse whoever's deadline is over, or everybody; whoever wants the connection too then, though nobody may be
        left who asked. What is being committed is only given up on, not undone: its outcome is unknown to whoever
        waited."""
        now = math.inf if everybody else self._time()
        those = [*(each for each, _, _ in self.in_flight), *self.waiting, *self.alone]
        refuse(each for each in those if each.deadline < now)
        if any(each.future.done() for each in self.waiting):
            self.waiting = deque(each for each in self.waiting if not each.future.done())
        if any(each.future.done() for each in self.alone):
            self.alone = deque(each for each in self.alone if not each.future.done())
        if everybody:
            self._refuse_exclusive()

    def somebody_waits(self) -> bool:
        """Whether anybody is in line, or in flight and still to be answered."""
        flying = any(not each.future.done() for each, _, _ in self.in_flight)
        alone = any(not future.done() for _, future in self.exclusive)
        return flying or alone or bool(self.waiting or self.alone)

    def refuse_askers(self, moved: frozenset[str]) -> None:
        """What authentication of those streams goes by has changed. Who is in line showed what counted before: a secret
        that was taken back must not buy anything any more, so they have to say again who they are. Everybody else and
        the ledger's own stay: some programs take any error for the end."""
        those = [*self.alone, *self.waiting]
        self.alone.clear()
        self.waiting = deque(each for each in those if not each.stands_on(moved))
        refuse(each for each in those if each.stands_on(moved))

    def refuse_all(self) -> None:
        """Refuse whoever is in line, and whoever comes."""
        self.closed = True
        refuse((*self.alone, *self.waiting))
        self.alone.clear()
        self.waiting.clear()
        self._refuse_exclusive()

    def _refuse_exclusive(self) -> None:
        for _, future in self.exclusive:
            tell(future, Unavailable())
        self.exclusive.clear()


def decided(batch: Batch, each: Waiting[Any]) -> tuple[Any, bool]:
    """The answer of a request, and whether it is a refusal. Raises what is neither: a defect, or the store's error."""
    if batch.credentials_moved and each.stands_on(batch.credentials_moved):
        return Unavailable(), True  # it has to say again who it is
    batch.command_id = each.command_id
    try:
        return each.decide(batch), False
    except (Refused, Unavailable, LedgerError) as refusal:
        # Without the way that it came: its frames hold those of the batch, which holds it, and that is a cycle.
        return refusal.with_traceback(None), True


def made(one: tuple[Waiting[Any], Any, bool]) -> tuple[Waiting[Any], Any, bool]:
    """A request with its answer made, where that was left until now. Raises nothing: a defect is that request's own."""
    each, answer, _ = one
    make = getattr(answer, "made", None)  # of a `Later`
    if make is None:
        return one
    try:
        return each, make(), False
    except Exception as error:
        log.error("answer_not_made", exc_info=error)
        return each, error, True


def nothing(batch: Batch) -> None:
    """A decision that stands on nothing but the control counter."""


def forgotten(future: asyncio.Future[Any]) -> None:
    """Nobody waits for this one: its failure is told elsewhere."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


def refuse(those: Iterable[Waiting[Any]]) -> None:
    """Tell each that nothing may be concluded: ask again."""
    for each in those:
        tell(each.future, Unavailable())


def tell(future: AnswerTo[Any], error: BaseException) -> None:
    """Tell whoever still waits what went wrong."""
    if isinstance(error, StopIteration):  # no future takes one, and whoever waits must be told
        error = RuntimeError(f"a decision raised {error!r}")
    if not future.done():
        future.set_exception(error)
