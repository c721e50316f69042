"""What the commit path needs of a store, whatever its engine.

A store that only this process writes to is locked while a batch is decided, so what the batch reads stays true until
it is committed. One that others write to is *optimistic*: a batch is decided on what memory holds, and the commit
checks its premises (`premises.py`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ledger.inline import Inline
from ledger.recorders.premises import Written
from ledger.recorders.rows import Head, Reads, StoredEvent, StreamKey, Work
from ledger.segments import SegmentStore

Derive = Callable[[Reads], Sequence[tuple[str, Sequence[tuple[object, ...]]]]]
"""Finds what is to be written: statements with `?`, each with the rows to run it for."""


class Store(Protocol):
    """A store that is open. All belongs to the commit path but `segments`, `reader` and `settled`, and of an optimistic
    one `truncate_log` and `rewrite`. Everything raises StoreError."""

    @property
    def inline(self) -> tuple[Inline, ...]: ...
    @property
    def optimistic(self) -> bool:
        """Whether others may write while a batch is decided."""
        ...

    @property
    def reached(self) -> int:
        """How often it was reached. Whoever is reached anew may be another server, which never had what was read or
        acknowledged before."""
        ...

    @property
    def power_cut(self) -> str | None:
        """How a power cut could lose what was acknowledged, as the store's owner has decided; None: it could not."""
        ...

    @property
    def segments(self) -> SegmentStore:
        """Where its archive lies."""
        ...

    def run(self, act: Callable[[], None]) -> None:
        """Run what decides on the event loop. Where it has to wait for an answer it is suspended, and this returns."""
        ...

    def begin(self) -> tuple[int, int]:
        """Begin a batch; the control counter and the clients file's last serial (0: none) that it stands on.

        Raises StoreBusy where nothing can begin now; no transaction is open then.
        """
        ...

    def control(self) -> tuple[int, int]:
        """The control counter and serial as the store says now. Raises ControlMissing."""
        ...

    def last(self) -> int:
        """The position after which the next batch's begin."""
        ...

    def new_key(self, name: str) -> StreamKey:
        """The key of a stream that begins in this batch. It may be given again where the batch is rolled back."""
        ...

    def end(self) -> int:
        """The last position of the log; 0 where there is none yet."""
        ...

    def head(self, name: str) -> Head | None: ...
    def event_at(self, name: str, v: int) -> StoredEvent | None: ...
    def within(self) -> Reads:
        """Reading for decisions: what this process has committed, and whatever it may learn of others' writes."""
        ...

    def write(self, work: Work) -> None:
        """Take a batch's work; nothing is durable yet. LostRace where a head had moved: nothing may be kept then."""
        ...

    def commit(self) -> Written | None:
        """Make it durable, from the commit thread. Of an optimistic store it says what became of it."""
        ...

    def checkpoint_due(self) -> bool:
        """After a commit, from the commit thread: whether `checkpoint` is to be called before anything else is."""
        ...

    def checkpoint(self) -> None:
        """Move what was committed from the log into its place, from the commit thread. Raises StoreBroken alone: what
        may heal is tried again after later commits, and one of those says so once the log is far too long."""
        ...

    def is_there(self, work: Work) -> Written | None:
        """After a commit that failed, from the commit thread: what of the work is in the store all the same (I-11);
        None where it is not, or nobody can know."""
        ...

    def rollback(self) -> None: ...
    def truncate_log(self) -> bool:
        """Take what was erased out of the places where the engine still keeps it; False: not now, try again."""
        ...

    def reader(self) -> AbstractContextManager[Reads]:
        """A read-only view of one committed moment, for one thread at a time; it sees every acknowledged write."""
        ...

    def settled(self) -> AbstractContextManager[Reads]:
        """As `reader`, of a moment at which nothing was on its way into the log: what comes later stands behind all
        that is seen."""
        ...

    def rewrite(self, derive: Derive) -> int:
        """Run the statements that `derive` finds, in one transaction that has the store to itself, and `derive` inside
        it; how many rows they were run for. Durable on return. A store that only this process writes to is rewritten on
        the event loop between two batches, an optimistic one from any other thread. Raises StoreError."""
        ...

    def close(self) -> None: ...


class Wire:
    """A connection that is waited at: its descriptor is readable once something has come. Each has one of its own, so
    the same one is the same connection."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor


class OptimisticStore(Store, Protocol):
    """A store that others write to."""

    def send(self) -> Wire | None:
        """Send what was taken without waiting, on the event loop: where there is something for `arrived` later. None
        where `commit` must be called, from a thread that may wait; it may be called also later, and goes on from
        there."""
        ...

    def arrived(self) -> Written | None:
        """What became of what was sent; None while the answer is not whole: wait until more can be read."""
        ...
