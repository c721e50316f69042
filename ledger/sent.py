"""A batch that was sent to a store, whose outcome the event loop waits for: no thread is woken to wait, nor to tell.

Whatever takes long or goes wrong is a thread's: it may wait, reconnect, and look for what was written.
"""

import asyncio
import os
from collections.abc import Callable

from ledger.batch import Batch
from ledger.recorders.store import OptimisticStore, Wire

PATIENCE_SECONDS = 1.0
"""So long the loop waits; then a thread does, with the store's own patience."""


class Sent:
    """At most one batch at a time, on the event loop.

    The loop watches the connection as long as it is the same one, and nobody but the loop hears from it: each batch is
    one message there and one back, and nothing is set up for it. What is watched is a descriptor of our own, so that
    its number is nobody else's, whoever closes the connection on whatever thread.
    """

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
        self._wire: Wire | None = None
        self._descriptor = -1
        self._sent_at = 0.0
        self._closed = False

    def send(self, batch: Batch) -> None:
        """Send what the store has taken of this batch."""
        try:
            wire = None if self._closed else self._store.send()
            if wire is not None and wire is not self._wire:
                self._watch(wire)
        except Exception as error:
            self._on_left(batch, error)
            return
        if wire is None or self._wire is None:
            self._on_left(batch, None)
        else:
            self._batch, self._sent_at = batch, self._loop.time()

    def leave(self, after_seconds: float = PATIENCE_SECONDS) -> None:
        """Leave a batch to a thread whose outcome has been waited for so long."""
        if self._batch is not None and self._loop.time() - self._sent_at >= after_seconds:
            batch, self._batch = self._batch, None
            self._on_left(batch, None)

    def close(self) -> None:
        """Leave all to the thread from now on."""
        self._closed = True
        self.leave(0.0)
        self._forget()

    def _watch(self, wire: Wire) -> None:
        """Watch this connection from now on. Where the loop cannot, whoever was sent is on its way all the same."""
        self._forget()
        try:
            descriptor = os.dup(wire.descriptor)
        except OSError:  # no more of them
            return
        try:
            self._loop.add_reader(descriptor, self._arrived)
        except (OSError, RuntimeError):
            os.close(descriptor)
        else:
            self._wire, self._descriptor = wire, descriptor

    def _forget(self) -> None:
        if self._wire is not None:
            self._wire = None
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _arrived(self) -> None:
        batch = self._batch
        if batch is None:  # what a thread has asked, or the end of the connection: it would be told without end
            self._forget()
            return
        try:
            batch.written = self._store.arrived()
        except Exception as error:
            self._batch = None
            self._on_left(batch, error)
            return
        if batch.written is not None:
            self._batch = None
            self._on_written(batch)
