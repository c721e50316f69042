"""What an aggregate is, or was at a moment, and what outside a grant has ended or blocked it by then.

Now is all that was recorded, whatever the clock says: a clock that was put back revives nothing (I-16). An event's `at`
never runs backwards within its stream, so "at T" is the stream up to its last event that is not later than T. Where
nothing is later the snapshot answers; else the stream is folded in pages, in constant memory.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, TypeVar

from ledger import snapshots, times
from ledger.clients import Client
from ledger.commands import EpochEnd
from ledger.epochs import Raise, Subject, first_hit
from ledger.events import AnyEvent, ClientRevoked, SubjectRevoked, decode
from ledger.recorded import recorded
from ledger.recorders.rows import Head, Reads, StoredEvent
from projections.current_tokens import Row

PAGE_EVENTS = 1_000

_T = TypeVar("_T", bound=snapshots.Aggregate)


def stored_events(reads: Reads, name: str) -> Iterator[StoredEvent]:
    """A stream's events, oldest first, read in pages. Raises HistoryBroken where one is not as it was recorded."""
    last_v = 0
    while page := recorded(reads, name, last_v + 1, last_v + PAGE_EVENTS):
        yield from page
        last_v = page[-1].v


def last_reached(last_v: int, reached: Callable[[StoredEvent], bool], event_at: Callable[[int], StoredEvent]) -> int:
    """The last version of a stream for which `reached` holds, 0 where none; it must hold for all before that one.

    Found by halving: some twenty looks in a stream of a million events, one where nothing came later.
    """
    low, high = 0, last_v + 1
    middle = last_v
    while high - low > 1:
        if reached(event_at(middle)):
            low = middle
        else:
            high = middle
        middle = (low + high) // 2
    return low


def aggregate(reads: Reads, name: str, kind: type[_T], until: int | None = None) -> _T:
    """The aggregate of a stream as it is, or was at a moment (microseconds); a new one where nothing happened yet."""
    return _of_head(reads, name, reads.stream(name), kind, until)


def _of_head(reads: Reads, name: str, head: Head | None, kind: type[_T], until: int | None) -> _T:
    if head is None:
        return kind()
    now = snapshots.decode(head.state, name, head.v, head.head, kind)
    if now is not None and (until is None or now.at <= until):
        return now
    then = kind()
    for _, event in _events(reads, name, until):
        then.evolve(event)
    return then


def _events(reads: Reads, name: str, until: int | None) -> Iterator[tuple[int, AnyEvent]]:
    last = None if until is None else times.text(until)
    for each in stored_events(reads, name):
        event = decode(each.body)
        if last is not None and event.at > last:  # texts of times sort like the moments they name
            return
        yield each.position, event


class Passed(NamedTuple):
    """An epoch that ended a grant: where its raise stands in the log, the raise, and the end as the rules put it."""

    position: int
    event: Raise
    end: EpochEnd


class Outside:
    """What has ended or blocked grants from outside them: by now, or with `then` by a past moment.

    `at` (microseconds) is the moment that grants are judged at. One a question, not for long: it remembers every
    client and subject that it was asked about.
    """

    def __init__(self, reads: Reads, at: int, *, then: bool = False) -> None:
        self.reads = reads
        self.at = at
        self._until = at if then else None
        self._clients: dict[str, Client] = {}
        self._subjects: dict[str, Subject] = {}
        self._raises: dict[str, list[tuple[int, Raise]]] = {}

    def ask_for(self, rows: Collection[Row]) -> None:
        """Say of which grants `ended_by` is going to be asked: one by one each client and person is a question, which
        takes its time where the store is far away."""
        clients = [f"client:{client_id}" for client_id in {row.client_id for row in rows} - self._clients.keys()]
        subjects = [f"subject:{subject_id}" for subject_id in {row.subject_id for row in rows} - self._subjects.keys()]
        heads = self.reads.heads([*clients, *subjects])
        for name in clients:
            self._clients[_id_in(name)] = _of_head(self.reads, name, heads.get(name), Client, self._until)
        for name in subjects:
            self._subjects[_id_in(name)] = _of_head(self.reads, name, heads.get(name), Subject, self._until)

    def client(self, client_id: str) -> Client:
        """The client as it was; a new one, which is not enabled, where it was never registered."""
        found = self._clients.get(client_id)
        if found is None:
            found = self._clients[client_id] = aggregate(self.reads, f"client:{client_id}", Client, self._until)
        return found

    def subject(self, subject_id: str) -> Subject:
        """What had ended a person's grants."""
        found = self._subjects.get(subject_id)
        if found is None:
            found = self._subjects[subject_id] = aggregate(self.reads, f"subject:{subject_id}", Subject, self._until)
        return found

    def ended_by(self, row: Row) -> Passed | None:
        """The raise that ended a grant by epoch: the first in the log, of its client or subject, that hits it."""
        issued_at = row.issued_at_us
        found: list[Passed] = []
        if self.client(row.client_id).epoch.hits(row.client_epoch, issued_at):
            found += self._first(f"client:{row.client_id}", row.client_epoch, issued_at)
        if self.subject(row.subject_id).epoch.hits(row.subject_epoch, issued_at):
            found += self._first(f"subject:{row.subject_id}", row.subject_epoch, issued_at)
        return min(found, key=lambda each: each.position, default=None)

    def _first(self, stream: str, issued_number: int, issued_at: int) -> Iterator[Passed]:
        raises = self._raises.get(stream)
        if raises is None:
            raises = self._raises[stream] = [
                (position, event)
                for position, event in _events(self.reads, stream, self._until)
                if isinstance(event, ClientRevoked | SubjectRevoked)
            ]
        for position, event in raises:
            if (end := first_hit((event,), issued_number, issued_at)) is not None:
                yield Passed(position, event, end)
                return


def _id_in(name: str) -> str:
    return name.partition(":")[2]
