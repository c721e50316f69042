"""The world of the model with its grants in PostgreSQL, where two nodes decide in turn on what each remembers.

The aggregate that decides is the one that a node has in memory, or reads back; what it is decided on once the store has
found its premises true must be what the model's own fold of the stored events is. So a node that decides on what the
other one has overtaken is found out at its next answer.
"""

import asyncio
import copy
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psycopg
import uvloop

from ledger import commands
from ledger.batch import Batch
from ledger.commands import Decision, Rules
from ledger.events import GrantEvent, Words, decode
from ledger.grant import Grant, StateMayBeStale
from ledger.policy import Policy
from ledger.refusals import Refused
from projections import INLINE
from tests.engines import MadeStore
from tests.ledgers import Opened, open_ledger
from tests.model_compare import agree
from tests.model_world import World

T = TypeVar("T")

COLD_EVERY_COMMANDS = 5
"""So often a node has forgotten everything before it decides."""


class StoredNodes:
    """Two ledgers on one database, and the loop that they live in while they are asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, url: str, both: Sequence[Opened]) -> None:
        self.loop = loop
        self.url = url
        self.both = both
        self.numbers = itertools.count(1)

    def submit(self, node: Opened, decide: Callable[[Batch], T]) -> T:
        """Let a node decide, in a batch of its own."""
        commits = node.ledger.commits

        async def decided() -> T:
            return await commits.submit(decide, ours=True)

        return self.loop.run_until_complete(decided())

    def forget(self, stream: str) -> None:
        """Let a grant never have been: as when a backup is put back, no node remembers it."""
        for node in self.both:
            node.ledger.memory.streams.pop(stream, None)
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            connection.execute("DELETE FROM events WHERE stream = (SELECT id FROM streams WHERE name = %s)", (stream,))
            connection.execute("DELETE FROM streams WHERE name = %s", (stream,))
            connection.execute("DELETE FROM current_tokens_v1 WHERE grant_id = %s", (stream.removeprefix("grant:"),))

    def stored(self, stream: str) -> tuple[list[str], Grant]:
        """The bytes of a grant's events, and its snapshot."""
        with self.both[0].store.reader() as reader:
            bodies = [each.body for each in reader.events(stream, 1, 10_000)]
        return bodies, self.submit(self.both[0], lambda batch: copy.deepcopy(_read(batch, stream)))


def _read(batch: Batch, stream: str) -> Grant:
    loaded = batch.reload(stream)
    assert loaded is not None
    assert isinstance(loaded.aggregate, Grant)
    return loaded.aggregate


class StoredWorld(World):
    """Each command goes to the next node, which may know the grant from its memory, an old one, or not at all."""

    def __init__(self, nodes: StoredNodes, kind: str, policy: Policy, resource: Words) -> None:
        self.nodes = nodes
        super().__init__(kind, policy, resource)

    def new_grant_id(self) -> str:
        return f"0192f4a0b1c27def8a9b{next(self.nodes.numbers):012x}"

    def decided(self, command: commands.GrantCommand, rules: Rules) -> Decision:
        node = self.nodes.both[self.commands % 2]
        if self.commands % COLD_EVERY_COMMANDS == 0:
            node.ledger.memory.forget_everything()
        stood_on = b""
        stale: StateMayBeStale | None = None

        def decide(batch: Batch) -> Decision | None:
            nonlocal stood_on, stale
            if getattr(command, "fresh", False):
                batch.reload(self.stream)
            loaded = batch.load(self.stream) or batch.create(self.stream, Grant())
            assert isinstance(loaded.aggregate, Grant)
            stood_on, stale = msgspec.msgpack.encode(loaded.aggregate), None
            try:
                decision = loaded.aggregate.decide(command, rules)
            except StateMayBeStale as found:
                stale = found
                return None
            if decision.events:
                batch.append(loaded, copy.deepcopy(decision.events))
            return decision

        try:
            decision = self.nodes.submit(node, decide)
        except Refused:
            self._check_stood_on(stood_on)
            raise
        self._check_stood_on(stood_on)
        if decision is None:
            assert stale is not None
            raise stale
        return decision

    def _check_stood_on(self, state: bytes) -> None:
        """What the answer stands on is what is true, whichever node remembered it (I-12)."""
        told = msgspec.msgpack.decode(state, type=Grant)
        agree("stood on", msgspec.msgpack.encode(self.folded()), msgspec.msgpack.encode(told))

    def restore(self, commits_lost: int) -> None:
        super().restore(commits_lost)
        self.nodes.forget(self.stream)
        self.nodes.submit(self.nodes.both[0], self._append_again)

    def _append_again(self, batch: Batch) -> None:
        """What the backup holds, commit by commit."""
        loaded, begin = batch.create(self.stream, Grant()), 0
        for end, _ in self.commits:
            made: Sequence[GrantEvent] = copy.deepcopy(self.log[begin:end])
            batch.append(loaded, made)
            begin = end

    def check_whole(self) -> None:
        super().check_whole()
        if not self.history.events:
            return
        bodies, snapshot = self.nodes.stored(self.stream)
        told: list[dict[str, Any]] = [json.loads(body) for body in bodies]
        for event in told:
            event.pop("prev", None)
        agree("stored", self.history.events, told)
        agree("links", [decode(body).v for body in bodies], [*range(1, len(bodies) + 1)])
        agree("snapshot", msgspec.msgpack.encode(self.folded()), msgspec.msgpack.encode(snapshot))


@contextmanager
def stored_nodes(folder: Path, url: str, broken: Callable[[str], object] = lambda url: None) -> Iterator[StoredNodes]:
    """Two ledgers on a new database, until the block ends. `broken` is done to it before they decide anything."""
    loop, stack = uvloop.new_event_loop(), AsyncExitStack()

    async def opened(seed: int) -> Opened:
        ledger = open_ledger(folder, seed=seed, store=lambda path: MadeStore(url, INLINE), clients=None)
        return await stack.enter_async_context(ledger)

    try:
        both = [loop.run_until_complete(opened(seed)) for seed in (1, 2)]
        broken(url)
        yield StoredNodes(loop, url, both)
    finally:
        loop.run_until_complete(stack.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
