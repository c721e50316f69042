"""The store as the `eventsourcing` library sees it: its repository, notification log and projections on our events.

A persistence module of the library's: `PERSISTENCE_MODULE=ledger.recorders.library` and `LEDGER_DATABASE`, a SQLite
file or postgresql://…, give any `Application[str]` the log of a ledger, beside whoever serves it. Originators are
streams, their ids the streams' names; versions count from 1; notification ids are positions, states the stored bytes.

It reads and does not write. An event of ours is what one transaction makes of a decision: linked to the event before
it, decided on the control counter that the transaction read (I-06), written together with the private row without
which its tokens cannot be made, its snapshot and its inline rows. Finished bytes that come by this way can show none of
that, and forged history with right links would verify for ever; so whatever is to be recorded is refused here and goes
to `ledger.application.Ledger`. Its path stands beside the library's `save` for a second reason: that is one durable
transaction a call, and the disk's pace is what a store of refresh tokens lives or dies by; ours takes in everyone who
waits.

Projections that follow keep their views elsewhere, by a persistence module of the projection's own name. The setting
has a name of its own, lest the library's own SQLite recorder make its tables in the ledger's database.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar
from uuid import UUID

import msgspec
from eventsourcing.application import Application
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    Cipher,
    Compressor,
    DatabaseError,
    InfrastructureFactory,
    ListenNotifySubscription,
    Mapper,
    MapperDeserialisationError,
    Notification,
    NotSupportedError,
    OperationalError,
    ProcessRecorder,
    ProgrammingError,
    ShutDown,
    StoredEvent,
    Subscription,
    TrackingRecorder,
    Transcoder,
)
from eventsourcing.utils import Environment, EnvType

from ledger.events import AnyEvent, GrantFact, decode, encode
from ledger.grant import Grant
from ledger.recorders.errors import StoreBusy, StoreError, StoreUnreachable
from ledger.recorders.readers import Readers
from ledger.recorders.rows import Lends, Reads
from ledger.refusals import LedgerError

POLL_SECONDS = 0.05
"""How often a subscription looks for new events. One look is a step in the log's own order, whatever its length."""

VERSION_MAX = 2**63 - 1

_LAST = (
    "SELECT max(position) FROM"
    " (SELECT position FROM events WHERE position > ? AND position < ? ORDER BY position LIMIT ?) AS next"
)

_T = TypeVar("_T")


class Recorded(msgspec.Struct, frozen=True):
    """One event of ours under the names that the library's protocols ask for."""

    originator_id: str
    originator_version: int
    event: AnyEvent


class Busy(OperationalError):
    """The store did not get to it in time. Nothing is wrong with what was asked: ask again."""


class LedgerMapper(Mapper[str]):
    """Between stored bytes and events. The bytes are canonical JSON that anyone can hash: no cipher, no compressor."""

    def __init__(
        self, transcoder: Transcoder, compressor: Compressor | None = None, cipher: Cipher | None = None
    ) -> None:
        if compressor is not None or cipher is not None:
            raise ProgrammingError("events of a ledger are stored as they are hashed: no cipher, no compressor")
        super().__init__(transcoder)

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        """The stored bytes of an event, made anew: the same that were stored."""
        event = domain_event.event
        return StoredEvent(event.stream, event.v, event.topic, encode(event))

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Read an event back. Raises MapperDeserialisationError: no event of any version, or another one's bytes."""
        try:
            event = decode(stored_event.state)
        except msgspec.DecodeError as error:
            raise MapperDeserialisationError(f"{_name(stored_event)}: {error}") from None
        if (event.stream, event.v) != (stored_event.originator_id, stored_event.originator_version):
            raise MapperDeserialisationError(f"{_name(stored_event)}: these are the bytes of {event.event_id}")
        return Recorded(event.stream, event.v, event)


class LedgerRecorder(ApplicationRecorder):
    """The log of one store, for reading, from any thread and beside the process that owns it."""

    def __init__(self, readers: Lends) -> None:
        self._readers = readers

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Refused, always: see the module. Raises NotSupportedError."""
        raise NotSupportedError(
            "events of a ledger are appended by its own commands only (ledger.application.Ledger); nothing was recorded"
        )

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """A stream's events above version `gt` and up to `lte`, at most `limit` of them from either end."""
        name = str(originator_id)
        from_v, to_v = (gt or 0) + 1, VERSION_MAX if lte is None else lte
        with self._reading() as reader:
            if limit is not None:  # versions have no gaps, so a number of events is a span of versions
                if desc:
                    head = reader.stream(name)
                    to_v = min(to_v, head.v if head else 0)
                    from_v = max(from_v, to_v - limit + 1)
                else:
                    to_v = min(to_v, from_v + limit - 1)
            found = reader.events(name, from_v, to_v)
        events = [StoredEvent(name, each.v, _topic(each.body), each.body.encode()) for each in found]
        return events[::-1] if desc else events

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Events of all streams in log order, from position `start` on (or after it) and up to `stop`.

        What is archived lies there stream by stream: in log order it is not told again. Raises OperationalError where
        some of what is asked for has moved, never a log with holes.
        """
        first = 0 if start is None else start + (not inclusive_of_start)
        with self._reading() as reader:
            _check_not_moved(reader, first)
            return _told(reader, first, VERSION_MAX if stop is None else stop, topics, limit)

    def look(self, after: int, limit: int, topics: Sequence[str] = ()) -> tuple[Sequence[Notification], int]:
        """What the next `limit` events after a position say of `topics`, and the position of the last of these, whether
        it does or not: nothing can appear before it any more. The position itself where there is none yet.

        Raises Busy, where it may be asked again, and what `select_notifications` raises.
        """
        with self._reading() as reader:
            _check_not_moved(reader, after + 1)
            ((last,),) = reader.select(_LAST, (after, reader.horizon, limit))
            if not isinstance(last, int):
                return [], after
            return _told(reader, after + 1, last, topics, limit), last

    def max_notification_id(self) -> int | None:
        """The last position below the horizon; None where nothing was ever recorded."""
        with self._reading() as reader:
            ((position,),) = reader.select("SELECT max(position) FROM events WHERE position < ?", (reader.horizon,))
        assert position is None or isinstance(position, int)
        return position

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        """Every event after position `gt` in log order, and then whatever is recorded, until it is stopped."""
        return LedgerSubscription(self, gt, topics)

    @contextmanager
    def _reading(self) -> Iterator[Reads]:
        try:
            with self._readers.reader() as reader:
                yield reader
        except StoreBusy as error:
            raise Busy(str(error)) from None
        except StoreError as error:
            raise DatabaseError(str(error)) from None


def _check_not_moved(reader: Reads, first: int) -> None:
    ((moved,),) = reader.select("SELECT max(to_position) FROM archived")
    if isinstance(moved, int) and first <= moved:
        raise OperationalError(f"events up to position {moved} were archived: start a follower after it")


def _told(reader: Reads, first: int, last: int, topics: Sequence[str], limit: int) -> list[Notification]:
    rows = reader.told(first, last, topics, limit)
    return [Notification(name, v, _topic(body), body.encode(), position) for position, name, v, body in rows]


class LedgerSubscription(ListenNotifySubscription[LedgerRecorder]):
    """Follows the log by looking, never beyond the horizon: so nothing can appear behind it.

    It goes on from where it has looked, whether there was something of its topics or not, and however long the store
    is busy: each event is read once, and what is archived lies behind it. Any other error ends it.

    A projection's tracking knows less: the last position that it was given. Begun anew, one with `topics` is led on
    from there, and refused where something behind that was archived meanwhile, which nobody could tell from what it
    wants. One that has to be begun anew at any time names no topics, and tracks what it makes nothing of, too.
    """

    def _loop_on_pull(self) -> None:
        try:
            while not self._has_been_stopped:
                self._pull()
                self._has_been_notified.wait(POLL_SECONDS)  # set by `stop` alone
        except BaseException as error:
            self._thread_error = error
            self.stop()

    def _pull(self) -> None:
        while not self._has_been_stopped:
            after = self._last_notification_id or 0
            try:
                found, last = self._recorder.look(after, self._select_limit, self._topics)
            except Busy:
                return
            if last == after:
                return
            if found:
                try:
                    self._notifications_queue.put(found)
                except ShutDown:
                    return
            self._last_notification_id = last


class LedgerFactory(InfrastructureFactory[TrackingRecorder]):
    """Gives an application of the library's the log of the database that `LEDGER_DATABASE` names."""

    LEDGER_DATABASE = "LEDGER_DATABASE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        name = self.env.get(self.LEDGER_DATABASE)
        if not name:
            raise OSError(f"{self.LEDGER_DATABASE} is not set: which ledger's log?")
        self._readers = _readers(name)

    def mapper(
        self, transcoder: Transcoder | None = None, mapper_class: type[Mapper[Any]] | None = None
    ) -> Mapper[Any]:
        """A LedgerMapper, unless another one is asked for."""
        return super().mapper(transcoder, mapper_class or LedgerMapper)

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """The log. Snapshots lie in the heads of streams and are the ledger's own."""
        if purpose != "events":
            raise NotSupportedError(f"a ledger has no recorder for {purpose}: its snapshots are its own")
        return LedgerRecorder(self._readers)

    def application_recorder(self) -> ApplicationRecorder:
        """The log."""
        return LedgerRecorder(self._readers)

    def tracking_recorder(self, tracking_recorder_class: type[Any] | None = None) -> Any:
        """None here: a view is no part of the ledger's database."""
        _kept_elsewhere()

    def process_recorder(self) -> ProcessRecorder:
        """None here: whatever a follower records is no part of the ledger's log."""
        _kept_elsewhere()

    def close(self) -> None:
        """Give the database's readers back."""
        self._readers.close()


class FoldedGrant:
    """A grant under the names that the library's repository asks for; `version` is its last event's."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.grant = Grant()

    @property
    def version(self) -> int:
        return self.grant.v

    @version.setter
    def version(self, version: int) -> None:
        raise ProgrammingError("a grant's version is its last event's")


def fold_grant(grant: FoldedGrant | None, events: Iterable[Recorded]) -> FoldedGrant | None:
    """The library's projector function for grants: None for a stream to which nothing happened."""
    for recorded in events:
        grant = grant or FoldedGrant(recorded.originator_id)
        assert isinstance(recorded.event, GrantFact), "a grant's stream holds a grant's events"
        grant.grant.evolve(recorded.event)
    return grant


class LedgerLog(Application[str]):
    """The library's application on a ledger's log: `repository` and `notification_log`, for reading."""

    name = "ledger"
    env: ClassVar[dict[str, str]] = {"PERSISTENCE_MODULE": __name__}

    def grant(self, grant_id: str, *, version: int | None = None) -> Grant:
        """A grant by its id (32 hex digits) as of a version. Raises AggregateNotFoundError."""
        folded: FoldedGrant = self.repository.get(f"grant:{grant_id}", version=version, projector_func=fold_grant)
        return folded.grant


def _readers(database: str) -> Lends:
    """Readers of the ledger that a file's name or a URL names. Raises OperationalError; never repeats a password."""
    try:
        readers = _on_postgres(database) if database.startswith("postgresql://") else Readers(Path(database))
        found = readers.holds_ledger()
    except (StoreUnreachable, LedgerError) as error:  # they say themselves where
        raise OperationalError(str(error)) from None
    except StoreError as error:
        raise OperationalError(f"{readers}: cannot be read: {error}") from None
    if not found:
        readers.close()
        raise OperationalError(f"{readers}: this database is no token ledger")
    return readers


def _on_postgres(url: str) -> Lends:
    try:  # only whoever uses it needs its driver
        from ledger.recorders.postgres_connections import Address
        from ledger.recorders.postgres_readers import PostgresReaders
    except ImportError:
        raise OperationalError("LEDGER_DATABASE: PostgreSQL needs its driver, the extra `postgres`") from None
    return PostgresReaders(Address(url))


def _kept_elsewhere() -> NoReturn:
    raise NotSupportedError(
        "a projection keeps its view in a store of its own: set <PROJECTION>_PERSISTENCE_MODULE to another module"
    )


class _Topic(msgspec.Struct):
    topic: str


_topic_decoder = msgspec.json.Decoder(_Topic)


def _topic(body: str) -> str:
    return _topic_decoder.decode(body).topic


def _name(stored: StoredEvent) -> str:
    return f"{stored.originator_id}/{stored.originator_version}"
