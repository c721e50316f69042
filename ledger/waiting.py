"""Requests in line for a batch: what to decide, whom to answer, until when."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ledger.batch import Batch
from ledger.refusals import LedgerError, Refused, Unavailable

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Decide = Callable[[Batch], T]
"""One request's work: plain code on a batch. It may run more than once, so time and command id are the batch's."""


class AnswerTo(Protocol[T_contra]):
    """Whom to answer: a future, or what does the same at once. Neither `set_result` nor `set_exception` raises."""

    def done(self) -> bool: ...
    def set_result(self, result: T_contra, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


class Waiting(msgspec.Struct, Generic[T], frozen=True, eq=False):
    """A request in line: what to decide, whom to answer, and until when. `ours`: nobody had to say who they are."""

    decide: Decide[T]
    command_id: str
    future: AnswerTo[T]
    deadline: float
    ours: bool = False


def decided(batch: Batch, each: Waiting[Any]) -> tuple[Any, bool]:
    """The answer of a request, and whether it is a refusal. Raises what is neither: a defect, or the store's error."""
    batch.command_id = each.command_id
    try:
        return each.decide(batch), False
    except (Refused, Unavailable, LedgerError) as refusal:
        return refusal, True


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
