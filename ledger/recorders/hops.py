"""Plain code on the event loop whose questions another thread asks, so that no answer keeps the loop waiting.

Decisions are plain code, and all but a few find what they need in memory. One that does not is suspended where it
stands until its answer is there; meanwhile the loop serves others, and nothing else is decided.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


_ENDED: Final = object()
"""What code tells in place of a question when it has come to its end."""


def _one_after_the_other(act: Callable[[], None] | None) -> None:
    """What a greenlet does: run one act, rest until it is given the next. A new one for each would cost as much as
    several events: its stack is new memory of the system's."""
    while act is not None:
        act()
        act = None  # not to be kept alive meanwhile
        resting = getcurrent().parent
        assert resting is not None
        act = resting.switch(_ENDED)


class Hops:
    """One thread that asks. `run` is called on the event loop, `ask` by the code that it runs."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._resting: greenlet | None = None

    def run(self, act: Callable[[], None]) -> None:
        """Run `act` until it ends or first asks; the loop goes on with it when the answer is there."""
        running, self._resting = self._resting, None
        if running is None or running.parent is not getcurrent():  # one runs on the thread alone that it began on
            running = greenlet(_one_after_the_other)
        self._go_on(running, running.switch, act)

    def _go_on(self, running: greenlet, resume: Callable[..., Any], *told: object) -> None:
        question = resume(*told)
        if question is _ENDED:
            running.gr_context = None  # what one act has set is nothing to the next
            self._resting = running
        else:
            answer = asyncio.get_running_loop().run_in_executor(self._thread, question)
            answer.add_done_callback(partial(self._answered, running))

    def _answered(self, running: greenlet, answer: "asyncio.Future[Any]") -> None:
        if (error := answer.exception()) is not None:
            self._go_on(running, running.throw, error)
        else:
            self._go_on(running, running.switch, answer.result())

    def ask(self, question: Callable[[], T]) -> T:
        """The answer of the thread. Outside of `run`, as while a store is opened, it is asked at once."""
        asking = getcurrent()
        if asking.parent is None:
            return question()
        answer: T = asking.parent.switch(question)
        return answer

    def close(self) -> None:
        """End the thread once it has answered."""
        self._resting = None
        self._thread.shutdown(wait=False)
