"""What one process knows of its store: aggregates with the heads of their streams, the authority, the last position.

It may only ever be what the store holds plus the batch under way: whatever a failed batch touched is forgotten
(`Batch.forget`) and read again.
"""

from collections.abc import Callable

import msgspec

from ledger import snapshots
from ledger.answers import Source
from ledger.authority import Authority
from ledger.bounded import make_room
from ledger.commands import AccessToken, Rules
from ledger.credentials import taken_back
from ledger.private import PrivateGrant
from ledger.randomness import Randomness
from ledger.recorders.rows import Reads, StreamKey
from ledger.recorders.store import Store
from ledger.uses import Uses

STREAMS_IN_MEMORY_MAX = 200_000
SUBJECTS_IN_MEMORY_MAX = 100_000
COMMAND_IDS_DRAWN = 64
CONTEXTS_MAX = 16


class Loaded(msgspec.Struct, eq=False, gc=False):
    """A stream in memory: its head as the store will have it after the batch under way, and its aggregate.

    `source` and `context` are the last source that acted on it and its commitment, so that it costs no hash, and
    `contexts` those before; `private` is the grant's private row, None for other streams; `rules` are what bore on the
    grant when authority was `rules_of`. `known_position` and `known_access` are of the event, and the access token, of
    this grant that were asked for or made last.
    """

    name: str
    id: StreamKey
    v: int
    position: int
    head: str | None
    aggregate: snapshots.Aggregate
    private: PrivateGrant | None = None
    is_authority: bool = False
    source: Source | None = None
    context: str = ""
    contexts: dict[Source, str] | None = None
    rules: Rules | None = None
    rules_of: object = None
    known_position: tuple[int, int] | None = None
    known_access: AccessToken | None = None

    def __repr__(self) -> str:  # a struct's own would show addresses and user agents
        return f"<Loaded {self.name}/{self.v}>"

    def context_of(self, source: Source) -> str | None:
        """The commitment of a source that is remembered; None where it is not."""
        if source == self.source:
            return self.context
        return None if self.contexts is None else self.contexts.get(source)

    def keep_context(self, source: Source, context: str) -> None:
        """Remember a source's commitment, of `CONTEXTS_MAX` at most."""
        if self.source is not None and source != self.source:
            contexts = self.contexts = self.contexts or {}
            if len(contexts) >= CONTEXTS_MAX - 1:
                contexts.clear()
            contexts[self.source] = self.context
        self.source, self.context = source, context

    def forget_contexts(self) -> None:
        """Remember none any more."""
        self.source, self.context, self.contexts = None, "", None


class Memory:
    """What one process knows of its store. Owned by the event loop.

    `credentials_moved`: the streams of which somebody else has changed what authentication goes by, and nobody has
    heeded it yet.
    `holds_all` is asked whenever the store was reached anew whether it has what was acknowledged; `lost_some`: it said
    no, and nobody has heeded it yet. `heads_are_whole`: every stream of the log that is none of a grant was found to
    have its head, in a store that only this process writes to. `subjects` are persons by id as issuers call them, of
    those who were told of last: for grants that were found to live alone, as an erasure ends all others.
    """

    def __init__(self, store: Store, authority: Authority, *, clock: Callable[[], int], randomness: Randomness) -> None:
        """`clock` gives the wall clock in microseconds, `randomness` unguessable bytes."""
        self.store = store
        self.authority = authority
        self.clock = clock
        self.randomness = randomness
        self.streams: dict[str, Loaded] = Uses() if store.optimistic else {}
        self.subjects: dict[str, str] = {}
        self.credentials_moved: frozenset[str] = frozenset()
        self.holds_all: Callable[[Reads], bool] = lambda reads: True
        self.lost_some = False
        self.heads_are_whole = False
        self._reached = store.reached
        self._command_ids: list[str] = []
        self.position = store.last()

    def new_command_id(self) -> str:
        """32 lower-case hex digits, used once."""
        if not self._command_ids:
            drawn = self.randomness(16 * COMMAND_IDS_DRAWN).hex()
            self._command_ids = [drawn[at : at + 32] for at in range(0, len(drawn), 32)]
        return self._command_ids.pop()

    def forget_everything(self) -> None:
        """Know nothing any more: every stream is read anew when it is next asked for."""
        self.streams.clear()
        self.subjects.clear()

    def stands_on(self, control: int) -> bool:
        """Whether what is known is that of the store as it is reached now, where its control counter is `control`."""
        return control == self.authority.control and self.store.reached == self._reached

    def read_anew(self, control: int) -> None:
        """Somebody else has moved the control counter to `control`: read what has moved. Where another server tells the
        counter believe nothing, though it be the same: a standby that has taken over may lack what the last one had,
        and whoever writes there gives the same numbers, versions and positions to other events."""
        self.position = self.store.last()
        reached = self.store.reached
        if reached != self._reached:
            self.forget_everything()
            self.authority.distrust()
            self.lost_some |= not self.holds_all(self.store.within())
        if isinstance(self.streams, Uses):
            self.subjects.clear()  # one may have been erased
            self.streams.forget_authority()  # whether a grant's stream has moved is found out by itself
        else:
            self.forget_everything()
        if self.authority.control >= 0:
            self.credentials_moved |= self.authority.follow(self.store.within(), control)
        else:
            before = self.authority.credentials()
            self.authority.reload(self.store.within(), control)
            after = self.authority.credentials()
            self.credentials_moved |= {who for who, said in before.items() if taken_back(said, after.get(who))}
        self._reached = reached

    def trim(self) -> None:
        """Keep memory bounded: the streams that were loaded first leave first."""
        make_room(self.streams, STREAMS_IN_MEMORY_MAX)
