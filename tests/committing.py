"""What trials of commits have in common: ledgers and requests that wait for a disk, and what they are told."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.recorders.errors import StoreBroken, StoreBusy, StoreFull
from ledger.refusals import Unavailable
from tests.faulty_store import Fault, Held, faulty
from tests.ledgers import OPTIONS, Opened

HASTY = msgspec.structs.replace(OPTIONS, request_timeout_seconds=0.4)
BUSY = StoreBusy("another process holds the write lock")
FULL = StoreFull("no room left on the disk")
BROKEN = StoreBroken("the database failed: SQLITE_IOERR_FSYNC")


async def grants(opened: Opened, count: int) -> list[TokenAnswer]:
    return list(await asyncio.gather(*(opened.issue(f"person-{n}") for n in range(count))))


async def hanging(
    opened: Opened, *answers: TokenAnswer, then: Fault = lambda step: step()
) -> tuple[Held, "list[asyncio.Task[TokenAnswer]]"]:
    """Refreshes of these, all in one batch whose COMMIT hangs until it is let go on; and then comes what `then` says.
    Whoever asks meanwhile is in line."""
    held = Held(then)
    faulty(opened).on_commit.append(held)
    flying = [asyncio.ensure_future(opened.refresh(answer)) for answer in answers]
    await held.arrival()
    return held, flying


async def unavailable(waiting: Awaitable[object]) -> None:
    with pytest.raises(Unavailable):
        await waiting


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def fault_after(appended: Callable[[Batch], object] | None = None) -> Callable[[Batch], None]:
    def decide(batch: Batch) -> None:
        if appended is not None:
            appended(batch)
        raise ZeroDivisionError("a defect")

    return decide
