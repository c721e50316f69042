"""Plain code that asks a thread: suspended meanwhile, and nothing of one run is left for the next."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial

import pytest
from greenlet import getcurrent, greenlet

from ledger.recorders.hops import Hops

pytestmark = pytest.mark.anyio


@pytest.fixture
def hops() -> Iterator[Hops]:
    made = Hops()
    yield made
    made.close()


async def test_a_question_is_answered_by_the_thread_while_the_loop_goes_on(hops: Hops) -> None:
    """The code goes on where it stood, on the loop's own thread."""
    seen: list[object] = []
    done = asyncio.Event()
    asked = threading.Event()

    def act() -> None:
        seen.append(hops.ask(lambda: asked.wait(20) and threading.current_thread().name))
        seen.append(threading.current_thread())
        done.set()

    hops.run(act)
    assert [] == seen
    asked.set()
    await asyncio.wait_for(done.wait(), 20)
    assert ["store_0", threading.main_thread()] == seen


async def test_one_greenlet_runs_one_act_after_the_other(hops: Hops) -> None:
    """Also where it has asked; what a rested one has run is not kept alive."""
    ran: list[greenlet] = []
    asked = asyncio.Event()

    def asking() -> None:
        hops.ask(int)
        ran.append(getcurrent())
        asked.set()

    hops.run(lambda: ran.append(getcurrent()))
    hops.run(asking)
    await asyncio.wait_for(asked.wait(), 20)
    hops.run(lambda: ran.append(getcurrent()))
    assert [ran[0]] * 3 == ran
    assert getcurrent() is not ran[0]

    class Act:
        def __call__(self) -> None:
            ran.clear()

    act = Act()
    kept = weakref.ref(act)
    hops.run(act)
    del act
    gc.collect()
    assert (None, []) == (kept(), ran)


async def test_what_an_act_sets_for_itself_is_not_the_next_ones(hops: Hops) -> None:
    """Such as what log lines are to say of the request under way: also where the act was suspended in between."""
    about: ContextVar[str] = ContextVar("about", default="nobody")
    seen: list[str] = []
    done = asyncio.Event()

    def asks(who: str) -> None:
        seen.append(about.get())
        about.set(who)
        hops.ask(int)
        seen.append(about.get())
        done.set()

    for who in ("one", "other"):
        done.clear()
        hops.run(partial(asks, who))
        await asyncio.wait_for(done.wait(), 20)
    assert ["nobody", "one", "nobody", "other"] == seen
    assert "nobody" == about.get()


async def test_an_act_that_fails_fails_whoever_ran_it_and_no_other(hops: Hops) -> None:
    """The error is told, and the next act runs."""
    ran: list[str] = []

    def fails() -> None:
        raise ValueError("defect")

    hops.run(lambda: None)
    with pytest.raises(ValueError, match="defect"):
        hops.run(fails)
    hops.run(lambda: ran.append("next"))
    assert ["next"] == ran


async def test_an_error_of_the_thread_is_raised_where_it_was_asked(hops: Hops) -> None:
    """There it may be dealt with."""
    told: list[str] = []
    done = asyncio.Event()

    def act() -> None:
        try:
            hops.ask(lambda: int("no number"))
        except ValueError as error:
            told.append(str(error))
        done.set()

    hops.run(act)
    await asyncio.wait_for(done.wait(), 20)
    assert ["invalid literal for int() with base 10: 'no number'"] == told


async def test_who_runs_while_another_waits_has_one_of_its_own(hops: Hops) -> None:
    """Nobody goes on in another's place."""
    ran: list[str] = []
    done, asked = asyncio.Event(), threading.Event()

    def waits() -> None:
        hops.ask(lambda: asked.wait(20))
        ran.append("first")
        done.set()

    hops.run(lambda: None)  # so that there is one that rests
    hops.run(waits)
    hops.run(lambda: ran.append("second"))
    asked.set()
    await asyncio.wait_for(done.wait(), 20)
    assert ["second", "first"] == ran


async def test_on_another_thread_it_begins_anew(hops: Hops) -> None:
    """A greenlet belongs to the thread that it began on."""
    ran: list[str] = []
    hops.run(lambda: ran.append(threading.current_thread().name))
    await asyncio.to_thread(hops.run, lambda: ran.append("elsewhere"))
    hops.run(lambda: ran.append("here again"))
    assert ["MainThread", "elsewhere", "here again"] == ran
