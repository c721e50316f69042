"""Many clients at work on one server, from a thread of their own, until they are told to stop."""

import asyncio
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
        self._stopping = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

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
        except BaseException as error:
            self._failed.append(error)

    async def _run(self) -> None:
        await asyncio.gather(*map(self._refresh, self.chains), *map(self._end, self.enders))

    async def _refresh(self, chain: Chain) -> None:
        while not self._stopping.is_set():
            before = chain.acknowledged
            await chain.step()
            if self._until_closed and chain.told_to_close:
                break
            if chain.acknowledged == before:
                await asyncio.sleep(AWAY_SECONDS)
        chain.close()

    async def _end(self, ender: Ender) -> None:
        while not self._stopping.is_set():
            try:
                await ender.step()
            except Unanswered:
                await asyncio.sleep(AWAY_SECONDS)
        ender.close()


def converge(chains: Sequence[Chain], enders: Sequence[Ender] = ()) -> None:
    """Let every client ask again after the trouble; their faults tell what went wrong."""

    async def ask() -> None:
        await asyncio.gather(*(chain.converge() for chain in chains), *(ender.confirm() for ender in enders))

    asyncio.run(ask())
