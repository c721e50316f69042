"""A batch that was sent to a store, whose outcome the event loop waits for: no thread is woken to wait, nor to tell.

Whatever takes long or goes wrong is a thread's: it may wait, reconnect, and look for what was written.
"""

import asyncio
from collections.abc import Callable

from ledger.batch import Batch
from ledger.recorders.store import OptimisticStore

PATIENCE_SECONDS = 1.0
"""So long the loop waits; then a thread does, with the store's own patience."""


class Sent:
    """At most one batch at a time, on the event loop."""

    def __init__(
        self,
        store: OptimisticStore,
        on_written: Callable[[Batch], None],
        on_left: Callable[[Batch, Exception | None], None],
    ) -> None:
        """`on_written` is told a batch once it is durable; `on_left` one that a thread has to go on with, and the error
        that it met, if any."""
        self._store = store
        self._on_written = on_written
        self._on_left = on_left
        self._loop = asyncio.get_running_loop()
        self._batch: Batch | None = None
        self._descriptor = -1
        self._sent_at = 0.0
        self._closed = False

    def send(self, batch: Batch) -> None:
        """Send what the store has taken of this batch."""
        try:
            descriptor = None if self._closed else self._store.send()
        except Exception as error:
            self._on_left(batch, error)
            return
        if descriptor is None:
            self._on_left(batch, None)
        else:
            self._sent_at = self._loop.time()
            self._wait(batch, descriptor)

    def leave(self, after_seconds: float = PATIENCE_SECONDS) -> None:
        """Leave a batch to a thread whose outcome has been waited for so long."""
        if self._batch is not None and self._loop.time() - self._sent_at >= after_seconds:
            self._on_left(self._no_longer(), None)

    def close(self) -> None:
        """Leave all to the thread from now on."""
        self._closed = True
        self.leave(0.0)

    def _wait(self, batch: Batch, descriptor: int) -> None:
        try:
            self._loop.add_reader(descriptor, self._arrived)
        except (OSError, RuntimeError):  # no more of them: it is on its way all the same
            self._on_left(batch, None)
        else:
            self._batch, self._descriptor = batch, descriptor

    def _no_longer(self) -> Batch:
        # Before anybody closes the descriptor: its number may be another connection's soon.
        self._loop.remove_reader(self._descriptor)
        batch, self._batch = self._batch, None
        assert batch is not None
        return batch

    def _arrived(self) -> None:
        batch = self._no_longer()
        try:
            batch.written = self._store.arrived()
        except Exception as error:
            self._on_left(batch, error)
            return
        if batch.written is None:
            self._wait(batch, self._descriptor)
        else:
            self._on_written(batch)
