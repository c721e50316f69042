"""Authority: what stands outside the grants and bears on each of them, held in memory.

Clients, operators and keys are all here; of subjects, whose number has no bound, the epochs asked about lately. One
control counter moves in the same transaction as every change to any of it, and every batch of decisions reads the
counter in the transaction it answers from: while that equals `control`, this view is what the store says (I-06).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec

from ledger import snapshots
from ledger.bounded import make_room
from ledger.clients import Client, Operator
from ledger.commands import ClientRules, EpochEnd, Rules
from ledger.credentials import Credentials, of_client, of_operator, taken_back
from ledger.epochs import Epoch, Raise, Subject, first_hit
from ledger.events import (
    AnyEvent,
    ClientChanged,
    ClientDisabled,
    ClientEvent,
    ClientRegistered,
    ClientRevoked,
    KeyActivated,
    KeyDistrusted,
    KeyEvent,
    KeyRotated,
    OperatorChanged,
    OperatorEvent,
    OperatorRegistered,
    OperatorRemoved,
    SubjectRevoked,
    decode,
)
from ledger.keyring import KeyRing
from ledger.keys import STREAM as KEYS_STREAM
from ledger.keys import Keys
from ledger.recorded import recorded
from ledger.recorders.errors import ArchiveDamaged, HeadMissing, HistoryBroken, Withheld
from ledger.recorders.rows import Head, Reads
from ledger.refusals import Forgotten, Unavailable
from ledger.secret_hashes import secret_hash

SUBJECTS_IN_MEMORY_MAX = 100_000
ENDS_IN_MEMORY_MAX = 10_000
RAISES_IN_MEMORY_MAX = 4_096
RULES_IN_MEMORY_MAX = 10_000
PAGE_EVENTS = 1_000

_HEAD: Final = "SELECT name, id, v, position, head, state FROM streams WHERE "
_NAMED: Final = f"{_HEAD}name IN"
_HEADS: Final = f"{_HEAD}position > ? AND "
# ";" follows ":" in the order of bytes. Three questions in one, because each is led by the index on names.
_MOVED: Final = (
    f"{_HEADS}name >= 'client:' AND name < 'client;'"
    f" UNION ALL {_HEADS}name >= 'operator:' AND name < 'operator;'"
    f" UNION ALL {_HEADS}name = '{KEYS_STREAM}'"
)
_NO_RAISE: Final = Epoch()  # shared by all subjects that nothing ever ended; never folded into
_Aggregate = TypeVar("_Aggregate", bound=snapshots.Aggregate)
_EndKey: TypeAlias = tuple[str, int, str, int, int]


class Held(Protocol):
    """What a grant keeps of its issuance and its end by epoch depends on."""

    @property
    def client_id(self) -> str: ...
    @property
    def subject_id(self) -> str: ...
    @property
    def client_epoch(self) -> int: ...
    @property
    def subject_epoch(self) -> int: ...
    @property
    def issued_at(self) -> int: ...


class Authority:
    """The view of one process. Owned by the event loop; what it hands out is never changed afterwards.

    `control` is the counter that the view stands for; whoever appends to an authority stream calls `evolve` and then
    sets it. Before the first `reload` it is -1, which equals no store's. `rules_now` is another object after any
    change: rules that were asked for while it was this one are as good as new.
    """

    def __init__(self, reads: Callable[[], Reads], *, clock_skew_seconds: int = 10) -> None:
        """`reads` gives reading at the moment that decisions are made in: inside the open transaction, where one is."""
        self._reads = reads
        self._clock_skew_seconds = clock_skew_seconds
        self._control = -1
        self._client_changes = 0
        self._clear()

    def _clear(self) -> None:
        self._clients: dict[str, Client] = {}
        self._operators: dict[str, Operator] = {}
        self._operators_by_hash: dict[str, Operator] = {}
        self._keys = Keys()
        self._client_rules: dict[str, ClientRules] = {}
        self._origins: frozenset[str] | None = None  # gathered when first asked for after a change
        self._read_to = 0
        self._clear_asked()

    def _clear_asked(self) -> None:
        """Forget what is read when it is asked for."""
        self._subjects: dict[str, Epoch] = {}
        self.rules_now: dict[tuple[str, int], Rules] = {}
        self._ends: dict[_EndKey, EpochEnd] = {}
        # Raises folded here, by stream: those of the batch under way are not in the store yet. The number orders them.
        self._raises: dict[str, list[tuple[int, Raise]]] = {}
        self._raises_folded = 0

    # ------------------------------------------------------------ who there is

    @property
    def control(self) -> int:
        """The control counter that this view stands for."""
        return self._control

    @control.setter
    def control(self, counter: int) -> None:
        if counter != self._control:
            self._control = counter
            self.rules_now = {}

    @property
    def clients(self) -> Mapping[str, Client]:
        """Every client that ever was registered, disabled ones too."""
        return MappingProxyType(self._clients)

    @property
    def client_changes(self) -> int:
        """A number that differs after any change to any client."""
        return self._client_changes

    @property
    def operators(self) -> Mapping[str, Operator]:
        """Every operator that ever was registered, removed ones too."""
        return MappingProxyType(self._operators)

    @property
    def keys(self) -> Keys:
        """Which keys sign, verify or are distrusted."""
        return self._keys

    def client(self, client_id: str) -> Client | None:
        """A client by its id; None where it is disabled or never was."""
        client = self._clients.get(client_id)
        return client if client is not None and client.enabled else None

    def lists_origin(self, origin: str) -> bool:
        """Whether a client that is not disabled lists this origin (RFC 6454 7), compared byte for byte."""
        if self._origins is None:
            enabled = (client for client in self._clients.values() if client.enabled)
            self._origins = frozenset(each for client in enabled for each in client.settings.origins or ())
        return origin in self._origins

    def operator_by_token(self, ring: KeyRing, token: str) -> Operator | None:
        """Whose bearer token this is; None: nobody's. Found by its keyed hash, so a guess can aim at none."""
        return self._operators_by_hash.get(secret_hash(ring, token))

    def still(self, client: Client) -> bool:
        """Whether a client that was asked for earlier is there, and shows who it is as it did then."""
        now = self.client(client.client_id)
        return now is client or (now is not None and of_client(now) == of_client(client))

    def credentials(self) -> dict[str, Credentials]:
        """What authentication goes by, of each client and operator by stream, to be compared with what it was."""
        clients = {f"client:{client_id}": of_client(client) for client_id, client in self._clients.items()}
        return clients | {f"operator:{name}": of_operator(each) for name, each in self._operators.items()}

    def credentials_of(self, stream: str) -> Credentials | None:
        """As `credentials`, of one; None where there was none yet."""
        kind, _, name = stream.partition(":")
        if kind == "client":
            client = self._clients.get(name)
            return None if client is None else of_client(client)
        operator = self._operators.get(name) if kind == "operator" else None
        return None if operator is None else of_operator(operator)

    # ------------------------------------------------------------ rules

    def rules(self, grant: Held) -> Rules:
        """What bears on a decision about this grant, the end by epoch included. To be asked where `reads` may be, and
        before anything of the request is appended: raises Unavailable where the store cannot tell."""
        subject = self._subjects.get(grant.subject_id) or self._subject(grant.subject_id)
        client = self._clients.get(grant.client_id)
        # A raise that never was hits nothing: that is so for nearly all, and costs no question then.
        if (subject.number and subject.hits(grant.subject_epoch, grant.issued_at)) or (
            client is not None and client.epoch.number and client.epoch.hits(grant.client_epoch, grant.issued_at)
        ):
            return self._made(grant.client_id, subject.number, self._end(grant))
        return self.rules_now.get((grant.client_id, subject.number)) or self._living(grant.client_id, subject.number)

    def rules_for_issue(self, client_id: str, subject_id: str) -> Rules:
        """What bears on a grant that shall come to be: nothing has ended it."""
        number = self._subject(subject_id).number
        return self.rules_now.get((client_id, number)) or self._living(client_id, number)

    def issued_at_least(self, client_id: str, subject_id: str) -> int:
        """The latest `before` that an epoch of this client or subject has: no new grant is older (microseconds)."""
        client = self._clients.get(client_id)
        of_client = client.epoch.latest_before if client is not None else 0
        return max(of_client, self._subject(subject_id).latest_before)

    def _living(self, client_id: str, subject_epoch: int) -> Rules:
        if len(self.rules_now) >= RULES_IN_MEMORY_MAX:
            self.rules_now.clear()
        rules = self.rules_now[client_id, subject_epoch] = self._made(client_id, subject_epoch, None)
        return rules

    def _made(self, client_id: str, subject_epoch: int, end: EpochEnd | None) -> Rules:
        client = self._clients.get(client_id)
        return Rules(
            control=self._control,
            client=self._client_rules.get(client_id),
            client_epoch=client.epoch.number if client is not None else 0,
            subject_epoch=subject_epoch,
            epoch_end=end,
            active_key_id=self._keys.active_id,
            distrusted=self._keys.distrusted,
            clock_skew_seconds=self._clock_skew_seconds,
        )

    # ------------------------------------------------------------ epochs

    def _subject(self, subject_id: str) -> Epoch:
        epoch = self._subjects.get(subject_id)
        if epoch is None:
            name = f"subject:{subject_id}"
            reads = self._reads()
            head = reads.stream(name)
            with _for_one_alone(name):
                epoch = _aggregate(reads, name, head, Subject).epoch if head is not None else _NO_RAISE
            self._keep_subject(subject_id, epoch)
        return epoch

    def _keep_subject(self, subject_id: str, epoch: Epoch) -> None:
        make_room(self._subjects, SUBJECTS_IN_MEMORY_MAX)
        self._subjects[subject_id] = epoch

    def _end(self, grant: Held) -> EpochEnd:
        """Raises Unavailable, Forgotten where the raise is not as it was recorded, or not there any more: then whoever
        asks about this grant cannot be answered, and nobody else is concerned."""
        key = (grant.client_id, grant.client_epoch, grant.subject_id, grant.subject_epoch, grant.issued_at)
        end = self._ends.get(key)
        if end is None:
            # The first raise that hits is the end for good: no later one changes it.
            with _for_one_alone(f"client:{grant.client_id} or subject:{grant.subject_id}"):
                end = self._first_end(grant)
            make_room(self._ends, ENDS_IN_MEMORY_MAX)
            self._ends[key] = end
        return end

    def _first_end(self, grant: Held) -> EpochEnd:
        found = [
            *self._raises_of(f"client:{grant.client_id}", grant.client_epoch),
            *self._raises_of(f"subject:{grant.subject_id}", grant.subject_epoch),
        ]
        for _, _, event in sorted(found, key=lambda each: each[:2]):
            issued_number = grant.client_epoch if isinstance(event, ClientRevoked) else grant.subject_epoch
            if (end := first_hit((event,), issued_number, grant.issued_at)) is not None:
                return end
        raise AssertionError("an epoch hits a grant and no raise of it does")

    def _raises_of(self, stream: str, above: int) -> Iterator[tuple[int, int, Raise]]:
        """The raises of one stream numbered above `above`, each with what orders them: those in the store by position,
        after them those that only this process has."""
        reads = self._reads()
        last_v = from_v = above  # raise n stands at version n or later
        while page := recorded(reads, stream, from_v + 1, from_v + PAGE_EVENTS):
            for stored in page:
                event = decode(stored.body)
                if isinstance(event, ClientRevoked | SubjectRevoked) and event.epoch > above:
                    yield 0, stored.position, event
            last_v = from_v = page[-1].v
            if len(page) < PAGE_EVENTS:  # there is no other: for each grant that an epoch has ended this is asked
                break
        for number, event in self._raises.get(stream, ()):
            if event.v > last_v and event.epoch > above:
                yield 1, number, event

    # ------------------------------------------------------------ following the log

    def hold_subjects(self, heads: Mapping[str, Head | None]) -> None:
        """Know the epochs of persons, where they are not known yet, from the heads of their streams by subject id
        (None: nothing ever happened)."""
        known = self._subjects
        for subject_id, head in heads.items():
            if subject_id in known:
                continue
            if head is None:
                self._keep_subject(subject_id, _NO_RAISE)
            elif (
                subject := snapshots.decode(head.state, f"subject:{subject_id}", head.v, head.head, Subject)
            ) is not None:
                self._keep_subject(subject_id, subject.epoch)

    def ask_for_subjects(self, subject_ids: Iterable[str]) -> None:
        """Know the epochs of these persons: those that are not known yet are read in one question. After a raise, of
        whomever, none is known."""
        unknown = [each for each in dict.fromkeys(subject_ids) if each not in self._subjects]
        if not unknown:
            return
        names = [f"subject:{each}" for each in unknown]
        names += names[-1:] * ((1 << (len(names) - 1).bit_length()) - len(names))  # few statements, not one a number
        rows: list[tuple[Any, ...]] = self._reads().select(f"{_NAMED} ({', '.join('?' * len(names))})", names)
        heads = {name.partition(":")[2]: Head(*head) for name, *head in rows}
        self.hold_subjects({each: heads.get(each) for each in unknown})

    def distrust(self) -> None:
        """Stand for no store: what was folded here did not happen, or nobody knows. `reload` comes next."""
        self._control = -1

    def reload(self, reads: Reads, control: int) -> None:
        """Read everything anew: what was folded here did not happen after all, or nobody knows what happened.

        All is read before any of it takes the old one's place: where reading has to wait, who authenticates meanwhile
        must not meet half a view.
        """
        self._control = -1  # if reading fails: a view of another moment stands for no store
        found = _moved(reads, -1)
        if not any(name == KEYS_STREAM for name, _, _ in found) and reads.headless((KEYS_STREAM,)):
            raise HeadMissing(KEYS_STREAM)  # else a key that is distrusted would be trusted again
        self._clear()
        self._take(found)
        self._control = control

    def follow(self, reads: Reads, control: int) -> frozenset[str]:
        """Somebody else moved the counter of the store that this view stands for: read what has moved. Nearly always
        that is a person's epoch, which is read when it is next asked about, and no client, operator or key. Returns
        of which streams credentials were taken back. As with `reload` all is read before any of it counts."""
        self._control = -1
        found = _moved(reads, self._read_to)
        before = {name: self.credentials_of(name) for name, _, _ in found}
        self._clear_asked()
        self._take(found)
        self._control = control
        return frozenset(
            name for name, said in before.items() if said is not None and taken_back(said, self.credentials_of(name))
        )

    def _take(self, found: Sequence[tuple[str, int, snapshots.Aggregate]]) -> None:
        for name, position, aggregate in found:
            self._read_to = max(self._read_to, position)
            if isinstance(aggregate, Client):
                self._clients[name.partition(":")[2]] = aggregate
                self._know_client(aggregate)
            elif isinstance(aggregate, Operator):
                self._know_operator(self._operators.get(name.partition(":")[2]), aggregate)
            elif isinstance(aggregate, Keys):
                self._keys = aggregate

    def evolve(self, event: AnyEvent) -> None:
        """Follow an event that this process appends. Events that are none of authority's change nothing."""
        match event:
            case ClientRegistered() | ClientChanged() | ClientDisabled() | ClientRevoked():
                self._evolve_client(event)
            case OperatorRegistered() | OperatorChanged() | OperatorRemoved():
                self._evolve_operator(event)
            case KeyRotated() | KeyActivated() | KeyDistrusted():
                self._evolve_keys(event)
            case SubjectRevoked():
                epoch = copy.copy(self._subject(event.subject_id))
                epoch.evolve(event)
                del self._subjects[event.subject_id]  # the youngest again: until the commit only this view knows it
                self._subjects[event.subject_id] = epoch
            case _:
                return
        if isinstance(event, ClientRevoked | SubjectRevoked):
            self._remember(event)
        self.rules_now = {}

    def _evolve_client(self, event: ClientEvent) -> None:
        client = copy.deepcopy(self._clients.get(event.client_id)) or Client()
        client.evolve(event)
        self._clients[event.client_id] = client
        self._know_client(client)

    def _know_client(self, client: Client) -> None:
        self._client_changes += 1
        self._origins = None
        if client.enabled:
            self._client_rules[client.client_id] = client.rules()
        else:
            self._client_rules.pop(client.client_id, None)

    def _evolve_operator(self, event: OperatorEvent) -> None:
        before = self._operators.get(event.name)
        operator = copy.copy(before) or Operator()
        operator.evolve(event)
        self._know_operator(before, operator)

    def _know_operator(self, before: Operator | None, operator: Operator) -> None:
        for token_hash in before.token_hashes if before is not None else ():
            if self._operators_by_hash.get(token_hash) is before:
                del self._operators_by_hash[token_hash]
        self._operators[operator.name] = operator
        if operator.enabled:
            self._operators_by_hash |= dict.fromkeys(operator.token_hashes, operator)

    def _evolve_keys(self, event: KeyEvent) -> None:
        self._keys = copy.deepcopy(self._keys)
        self._keys.evolve(event)

    def _remember(self, event: Raise) -> None:
        raises = self._raises.pop(event.stream, [])
        make_room(self._raises, RAISES_IN_MEMORY_MAX)
        self._raises_folded += 1
        self._raises[event.stream] = [*raises, (self._raises_folded, event)]


@contextmanager
def _for_one_alone(what: str) -> Iterator[None]:
    """Where events of one stream are not what was recorded, are not there any more, or lie where the archive is
    damaged, only who asks about a grant of theirs cannot be answered; whoever stands in the same batch can."""
    try:
        yield
    except msgspec.DecodeError:
        raise Unavailable(f"{what}: an event is not what was recorded; rebuild names it") from None
    except Withheld as error:
        raise Forgotten(str(error)) from None
    except (ArchiveDamaged, HistoryBroken) as error:
        raise Unavailable(str(error)) from None


def _moved(reads: Reads, above: int) -> list[tuple[str, int, snapshots.Aggregate]]:
    """Every client, operator and the keys, of those whose last event stands above a position, with that position: all
    of one moment. What moves authority has the log to itself, so nothing can appear below what was seen."""
    rows: list[tuple[Any, ...]] = reads.select(_MOVED, (above,) * 3)
    return [
        (name, position, _aggregate(reads, name, Head(id, v, position, digest, state), snapshots.kind_of(name)))
        for name, id, v, position, digest, state in rows
    ]


def _aggregate(reads: Reads, name: str, head: Head, kind: type[_Aggregate]) -> _Aggregate:
    found = snapshots.decode(head.state, name, head.v, head.head, kind)
    return found if found is not None else _replayed(reads, name, kind)


def _replayed(reads: Reads, name: str, kind: type[_Aggregate]) -> _Aggregate:
    aggregate, last_v = kind(), 0
    while page := recorded(reads, name, last_v + 1, last_v + PAGE_EVENTS):
        for stored in page:
            aggregate.evolve(decode(stored.body))
        last_v = page[-1].v
    return aggregate
