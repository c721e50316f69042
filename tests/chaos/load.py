"""Many clients at work on one server, from a thread of their own, until they are told to stop."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from types import TracebackType

from tests.chaos.chains import Chain
from tests.chaos.ends import Ender
from tests.chaos.exchange import Unanswered

AWAY_SECONDS = 0.05
"""How long a client waits before it asks a server again that is away or has said 503."""


class Load:
    """While the block runs, every chain refreshes and every ender ends, each as fast as it is answered.

    With `until_closed` a chain leaves as soon as an answer has ended its connection: its balancer sends it elsewhere.
    """

    def __init__(self, chains: Sequence[Chain], enders: Sequence[Ender] = (), *, until_closed: bool = False) -> None:
        self.chains = chains
        self.enders = enders
        self._until_closed = until_closed
        self._began = threading.Event()
        self._stopping = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> "Load":
        self._thread.start()
        self._began.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
        self.stop()

    def _abandon(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._work.cancel)

    def stop(self) -> None:
        """Let every client finish the exchange it is in. Raises what went wrong in one."""
        self._stopping.set()
        self._thread.join()
        if self._failed:
            raise self._failed[0]

    @property
    def refreshes(self) -> int:
        """How many refreshes were acknowledged so far, in all of the chains' lives."""
        return sum(chain.acknowledged for chain in self.chains)

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass  # the trial has failed already
        except BaseException as error:
            self._failed.append(error)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.gather(*map(self._refresh, self.chains), *map(self._end, self.enders))
        self._began.set()
        await self._work

    async def _refresh(self, chain: Chain) -> None:
        try:
            while not self._stopping.is_set():
                before = chain.acknowledged
                await chain.step()
                if self._until_closed and chain.told_to_close:
                    break
                if chain.acknowledged == before:
                    await asyncio.sleep(AWAY_SECONDS)
        finally:
            chain.close()

    async def _end(self, ender: Ender) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    await ender.step()
                except Unanswered:
                    await asyncio.sleep(AWAY_SECONDS)
        finally:
            ender.close()


def converge(chains: Sequence[Chain], enders: Sequence[Ender] = ()) -> None:
    """Let every client ask again after the trouble; their faults tell what went wrong."""

    async def ask() -> None:
        await asyncio.gather(*(chain.converge() for chain in chains), *(ender.confirm() for ender in enders))

    asyncio.run(ask())
