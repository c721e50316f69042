"""One batch: what its decisions read and append. What outlives it is in `memory`."""

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import msgspec

from ledger import snapshots
from ledger.credentials import taken_back
from ledger.events import AnyEvent, decode, linked
from ledger.grant import Grant
from ledger.inline import grants_tables
from ledger.memory import Loaded, Memory
from ledger.private import PrivateGrant
from ledger.recorded import recorded
from ledger.recorders.errors import ArchiveDamaged, EventsAltered, HeadMissing, HistoryBroken, Withheld
from ledger.recorders.premises import Written
from ledger.recorders.private_rows import PROBE
from ledger.recorders.rows import GrantsOf, Head, StoredEvent, Work
from ledger.recorders.store import Store
from ledger.refusals import Forgotten, Unavailable

A = TypeVar("A", bound=snapshots.Aggregate)
D = TypeVar("D")
W = TypeVar("W")

_NEWEST = "SELECT grant_id FROM {} WHERE {} = ? ORDER BY position DESC LIMIT 1"

AUTHORITY_KINDS = ("client", "operator", "subject", "keys")
REPLAY_PAGE_EVENTS = 1000


def is_authority(name: str) -> bool:
    """Whether what happens to a stream of this name changes what others may do."""
    return name.partition(":")[0] in AUTHORITY_KINDS


class Batch:
    """The work of one transaction on the store. Raises StoreBusy at once where the write lock is taken.

    Decisions get at streams by `load`, `grant` or `create`, and append with `append`. `now` is the wall clock, read
    once a batch; `control` the counter that this transaction stands on.
    """

    __slots__ = (
        "_also_changed",
        "_authority_touched",
        "_fetched",
        "_heads",
        "_touched",
        "command_id",
        "control",
        "credentials_moved",
        "erased",
        "idempotency",
        "last_at",
        "memory",
        "now",
        "position",
        "reason",
        "redeemed",
        "serial",
        "single_use",
        "store",
        "subjects",
        "when_done",
        "work",
        "written",
    )  # fmt: skip

    new_work: ClassVar[type[Work]] = Work

    def __init__(self, store: Store, memory: Memory) -> None:
        self.store = store
        self.memory = memory
        self.control, self.serial = store.begin()
        if not memory.stands_on(self.control):
            try:
                memory.read_anew(self.control)
            except BaseException:
                store.rollback()
                raise
        self.work = self.new_work(store.inline)
        self.now = memory.clock()
        self.command_id = ""
        self.position = memory.position
        self.last_at: str | None = None
        self._touched: dict[str, tuple[Loaded, int]] = {}
        self._also_changed: set[str] = set()
        self._fetched: dict[str, tuple[Head, PrivateGrant | None] | None] = {}
        self._heads: dict[str, Head | None] = {}
        self._authority_touched = False
        # Whose credentials, by stream, it has changed: who is decided after that showed what counted before.
        self.credentials_moved: frozenset[str] = frozenset()
        # What this batch has made and no look-up in the store can find yet.
        self.idempotency: dict[bytes, str] = {}
        self.single_use: dict[bytes, int] = {}
        self.subjects: dict[bytes, str | None] = {}
        self.reason: tuple[str, bytes, str] | None = None
        self.erased: set[str] = set()
        self.redeemed: dict[str, int] = {}  # how often, by grant, where a burst limit counts it
        self.written: Written | None = None
        # What is to be noted outside the store once this batch is durable: one that is decided again notes it once.
        self.when_done: list[Callable[[], None]] = []

    def decide_all(self, taken: Sequence[W], decide: Callable[["Batch", W], tuple[D, bool]]) -> list[tuple[W, D, bool]]:
        """Decide each in turn."""
        return [(each, *decide(self, each)) for each in taken]

    # ------------------------------------------------------------ reading

    def ask_for(self, names: Sequence[str]) -> None:
        """Say which grants are going to be loaded: those that were not read yet are read in one question."""
        if cold := self._cold(names):
            self._fetch(cold)

    def _cold(self, names: Sequence[str]) -> list[str]:
        streams, fetched = self.memory.streams, self._fetched
        return [name for name in names if name not in streams and name not in fetched]

    def _fetch(self, names: Sequence[str]) -> None:
        grants, subjects = self.store.within().grants(names)
        self._fetched.update(dict.fromkeys(names))
        self._fetched.update(grants)
        self.memory.authority.hold_subjects(subjects)

    def load(self, name: str) -> Loaded | None:
        """A stream by name, None where nothing ever happened to it."""
        loaded = self.memory.streams.get(name)
        if loaded is not None:
            return loaded
        loaded = self._loaded_grant(name) if name.startswith("grant:") else self._loaded(name)
        if loaded is not None:
            self.memory.streams[name] = loaded
        return loaded

    def reload(self, name: str) -> Loaded | None:
        """Read a stream from the store again, unless this batch has appended to it."""
        if name not in self._touched:
            self.memory.streams.pop(name, None)
        return self.load(name)

    def grant(self, grant_id: str) -> tuple[Loaded, Grant] | None:
        """A grant by its id (32 hex digits)."""
        loaded = self.load("grant:" + grant_id)
        if loaded is None:
            return None
        assert isinstance(loaded.aggregate, Grant)
        return loaded, loaded.aggregate

    def event_at(self, name: str, v: int) -> AnyEvent:
        """One event of a stream, of the store or of this batch. It must exist."""
        stored = self._stored(name, v)
        if stored is None:
            return decode(self._appended(name, v)[1])
        try:
            return decode(stored.body)
        except msgspec.DecodeError:
            raise Unavailable(str(EventsAltered(f"{name}/{v}"))) from None

    def page(self, name: str, from_v: int) -> list[AnyEvent]:
        """A page of a stream's events in the store from a version on, oldest first; none of this batch. Raises as
        `event_at` does."""
        try:
            found = self.store.within().events(name, from_v, from_v + REPLAY_PAGE_EVENTS - 1)
            return [decode(stored.body) for stored in found]
        except msgspec.DecodeError:
            raise Unavailable(str(EventsAltered(f"{name}/{from_v}"))) from None
        except Withheld as error:
            raise Forgotten(str(error)) from None
        except (ArchiveDamaged, HistoryBroken) as error:
            raise Unavailable(str(error)) from None

    def position_at(self, loaded: Loaded, v: int) -> int:
        """The position of one event of a stream, of the store or of this batch. It must exist.

        Remembered for the event that was asked for last: a token that is presented again and again asks for one."""
        if loaded.known_position is not None and loaded.known_position[0] == v:
            return loaded.known_position[1]
        stored = self._stored(loaded.name, v)
        if stored is None:
            return self._appended(loaded.name, v)[0]
        loaded.known_position = v, stored.position
        return stored.position

    def _stored(self, name: str, v: int) -> StoredEvent | None:
        """Raises Unavailable where the store cannot tell, Forgotten where it must not any more: then this request
        alone cannot be answered."""
        try:
            return self.store.event_at(name, v)
        except Withheld as error:
            raise Forgotten(str(error)) from None
        except (ArchiveDamaged, HistoryBroken) as error:
            raise Unavailable(str(error)) from None

    def _appended(self, name: str, v: int) -> tuple[int, str]:
        stream = self.memory.streams[name].id
        for position, id, at_v, _, body in self.work.events:
            if id == stream and at_v == v:
                return position, body
        raise LookupError(f"{name}/{v} is neither in the store nor in this batch")

    def issued_since(self, column: GrantsOf, value: str, unbounded: int) -> bool:
        """Whether a grant of this client or person was issued under the epoch number `unbounded` or a later one: a
        further raise would end it."""
        names = [name for name, (_, v) in self._touched.items() if v == 0]
        reads = self.store.within()
        newest = reads.newest_grant(column, value)
        if newest is not None:
            names.append(newest)
        # A private row may have been altered or lost: a grant that it hides is to end all the same.
        for table in grants_tables(self.store.inline):
            names += [f"grant:{grant_id}" for (grant_id,) in reads.select(_NEWEST.format(table, column), (value,))]
        epoch = "client_epoch" if column == "client_id" else "subject_epoch"
        return any(
            isinstance(loaded.aggregate, Grant)
            and getattr(loaded.aggregate, column) == value
            and getattr(loaded.aggregate, epoch) >= unbounded
            for name in names
            if (loaded := self.load(name)) is not None
        )

    def has_grants(self, subject_id: str) -> bool:
        """Whether a grant was ever of a person of this id, or begins in this batch."""
        loaded = (each.aggregate for each, _ in self._touched.values())
        if any(isinstance(grant, Grant) and grant.subject_id == subject_id for grant in loaded):
            return True
        reads = self.store.within()
        return reads.newest_grant("subject_id", subject_id) is not None or any(
            reads.select(_NEWEST.format(table, "subject_id"), (subject_id,))
            for table in grants_tables(self.store.inline)
        )

    def _loaded(self, name: str) -> Loaded | None:
        head = self._heads[name] if name in self._heads else self.store.head(name)
        if head is None:
            return None
        kind = snapshots.kind_of(name)
        aggregate = snapshots.decode(head.state, name, head.v, head.head, kind) or self._replayed(name, kind)
        return Loaded(name, head.id, head.v, head.position, head.head.hex(), aggregate, is_authority=is_authority(name))

    def _loaded_grant(self, name: str) -> Loaded | None:
        found = self._found_grant(name)
        if found is None:
            return None
        (id, v, position, head, state), private = found
        grant = snapshots.decode(state, name, v, head, Grant) or self._replayed(name, Grant)
        grant.share(name)
        if grant.subject_id in self.erased:
            private = None
        return Loaded(name, id, v, position, head.hex(), grant, private)

    def _found_grant(self, name: str) -> tuple[Head, PrivateGrant | None] | None:
        if name not in self._fetched:
            self._fetch([name])
        return self._fetched.pop(name)

    def _replayed(self, name: str, kind: type[A]) -> A:
        aggregate = kind()
        reader = self.store.within()
        from_v = 1
        try:
            while page := recorded(reader, name, from_v, from_v + REPLAY_PAGE_EVENTS - 1):
                for stored in page:
                    aggregate.evolve(decode(stored.body))
                    from_v += 1
        except msgspec.DecodeError:
            raise Unavailable(str(EventsAltered(f"{name}/{from_v}"))) from None
        except (ArchiveDamaged, HistoryBroken, Withheld) as error:
            raise Unavailable(str(error)) from None
        return aggregate

    # ------------------------------------------------------------ appending

    def create(self, name: str, aggregate: snapshots.Aggregate) -> Loaded:
        """A stream that does not exist yet. It comes to be, and into memory, with its first event."""
        return Loaded(name, 0, 0, 0, None, aggregate, is_authority=is_authority(name))

    def load_or_create(self, name: str) -> Loaded:
        """As `load_or_create_all`, of one."""
        return self.load_or_create_all((name,))[0]

    def load_or_create_all(self, names: Sequence[str]) -> list[Loaded]:
        """Streams by name, none of a grant, made where nothing ever happened to one; all together, for there may be
        thousands. To be asked for before anything of the request is appended: raises Unavailable where events of one
        may be there, and its head is gone."""
        cold = self._cold(names)
        heads = self.store.within().heads(cold)
        self._heads = {name: heads.get(name) for name in cold}
        try:
            found = [self.load(name) for name in names]
        finally:
            self._heads = {}
        new = [name for name, loaded in zip(names, found, strict=True) if loaded is None]
        if new and not self.memory.heads_are_whole:
            if (lost := self.store.within().headless(new)) is not None:
                raise Unavailable(str(HeadMissing(lost)))
            self.memory.heads_are_whole = not self.store.optimistic
        return [each or self.create(name, snapshots.kind_of(name)()) for name, each in zip(names, found, strict=True)]

    def append(self, loaded: Loaded, events: Sequence[AnyEvent]) -> list[int]:
        """Append one command's events to a stream: bytes made, linked, folded, projected. Returns their positions.

        In memory only: durable when the batch is committed, together with everything else in it.
        """
        memory = self.memory
        if loaded.name not in self._touched:
            self._touched[loaded.name] = (loaded, loaded.v)
            if not loaded.v:
                loaded.id = self.store.new_key(loaded.name)
                memory.streams[loaded.name] = loaded
        positions, rows, id = [], self.work.events, loaded.id
        position, back, head, v = memory.position, loaded.position, loaded.head, loaded.v
        evolve = loaded.aggregate.evolve
        for event in events:
            stored, head = linked(event, head)
            position += 1
            v = event.v
            rows.append((position, id, v, back, stored.decode()))
            evolve(event)
            positions.append(position)
            back = position
        memory.position = self.position = loaded.position = position
        loaded.head, loaded.v = head, v
        self.last_at = events[-1].at
        self.work.project(events, positions)
        if loaded.is_authority:
            self._move_authority(loaded.name, events)
        return positions

    def _move_authority(self, name: str, events: Sequence[AnyEvent]) -> None:
        authority = self.memory.authority
        self._authority_touched = True
        self.control += 1
        self.work.control = self.control
        before = authority.credentials_of(name)
        for event in events:
            authority.evolve(event)
        if before is not None and taken_back(before, authority.credentials_of(name)):
            self.credentials_moved |= {name}
        authority.control = self.control

    def private(self, loaded: Loaded | None, sql: str, *parameters: object) -> None:
        """Write private rows in the batch's transaction, in order, after events and heads. `loaded` is the stream whose
        memory goes with them: forgotten too where the batch does not happen."""
        self.work.private.append((sql, parameters))
        if loaded is not None:
            self._also_changed.add(loaded.name)

    def forget_person(self, subject_id: str) -> None:
        """Their private rows are deleted in this batch: nothing that it decides afterwards may use or add to them."""
        self.erased.add(subject_id)
        self.memory.subjects.pop(subject_id, None)
        for name, loaded in self.memory.streams.items():
            if isinstance(loaded.aggregate, Grant) and loaded.aggregate.subject_id == subject_id:
                loaded.private = None
                loaded.forget_contexts()
                self._also_changed.add(name)

    def probe(self) -> None:
        """Write something that says nothing new, to learn whether the store can commit.

        It is another text each time: what would stay the same SQLite does not write, so a full disk would pass.
        """
        self.private(None, PROBE, self.command_id)

    # ------------------------------------------------------------ ending

    @property
    def writes(self) -> bool:
        """Whether there is anything to make durable."""
        return self.work.writes

    @property
    def must_commit(self) -> bool:
        """Whether the store has something to do before anybody is answered."""
        return self.writes

    def write(self) -> None:
        """Put everything into the open transaction. Raises StoreError; nothing is durable yet."""
        for loaded, v_before in self._touched.values():
            self._add_head(loaded, v_before)
        if self.writes:
            self.store.write(self.work)

    def _add_head(self, loaded: Loaded, v_before: int) -> None:
        assert loaded.head is not None
        head = bytes.fromhex(loaded.head)
        state, asked = snapshots.encode(loaded.v, head, loaded.aggregate), snapshots.asked(loaded.aggregate)
        self.work.add_head(loaded.id, loaded.name, loaded.v, loaded.position, head, state, asked, v_before)

    def settle(self, done: list[tuple[W, D, bool]]) -> tuple[list[tuple[W, D, bool]], list[W]]:
        """After the commit: who is answered, and who is to be decided again. Here the commit was all or nothing."""
        return done, []

    def forget(self) -> None:
        """The batch did not happen, or nobody knows: forget whatever it touched. The transaction may still be open."""
        memory = self.memory
        for name in (*self._touched, *self._also_changed):
            memory.streams.pop(name, None)
        try:
            self.store.rollback()
            memory.position = self.store.last()
            if self._authority_touched:
                memory.authority.reload(self.store.within(), -1)
        finally:
            if self._authority_touched:
                memory.forget_everything()
