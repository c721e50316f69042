"""The store on PostgreSQL: any number of processes write to it, none owns it.

Guarantees. What `commit` returned from is durable as the server's `synchronous_commit` says; over a connection where
that is off nothing is written, and the store does not open (I-09). A batch is decided in memory and is one call of a
function (`postgres_append.py`, for plain refreshes `postgres_moves.py`, for one of those `postgres_refresh.py`):
events, heads with their snapshots, private rows and projected rows are one transaction, without a round trip in
between.

A connection that is lost is made anew, with a pause that grows; until then nothing is decided. Nothing here ever breaks
for good: an outcome that cannot be found out is told as unknown, and whatever it touched is read again.

The connection is the questions' thread's while a batch is decided, the commit thread's while it is written.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import psycopg

from ledger.inline import Inline
from ledger.recorders import (
    postgres_append,
    postgres_moves,
    postgres_opening,
    postgres_rewriting,
    postgres_schema,
    postgres_work,
)
from ledger.recorders.errors import ControlMissing, StoreBroken, StoreBusy, StoreError, StoreUnreachable
from ledger.recorders.hops import Hops
from ledger.recorders.postgres_append import Appending, Told
from ledger.recorders.postgres_calls import Call
from ledger.recorders.postgres_connections import DECIDES, Address, Connection
from ledger.recorders.postgres_errors import translated
from ledger.recorders.postgres_keys import key_of
from ledger.recorders.postgres_readers import PostgresReaders
from ledger.recorders.postgres_reading import PostgresReader
from ledger.recorders.postgres_segments import PostgresSegments
from ledger.recorders.premises import BASE, CheckedWork, Written
from ledger.recorders.private_rows import SPEND
from ledger.recorders.rows import Head, StoredEvent, Work
from ledger.recorders.store import Derive, Wire
from ledger.refusals import LedgerError, Unavailable

log = logging.getLogger("ledger")

T = TypeVar("T")

RECONNECT_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
OUTCOME_PAUSE_SECONDS: Final = 0.05
OUTCOME_SECONDS_MAX: Final = 5.0
"""So long an outcome is looked for after a connection was lost; then it is unknown."""

_OTHERS: Final = "FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()"
# Not where its commit waits for a standby: whoever ends such a wait lets everybody see what no standby has.
_END_OLD: Final = f"SELECT CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' THEN pg_terminate_backend(pid) END {_OTHERS}"  # noqa: S608  # words of ours alone
_END_WAITS: Final = f"SELECT pg_terminate_backend(pid) {_OTHERS}"
# By index, always, and planned once: a plan that was made while a table was small, or not counted yet, would read all
# of it at every batch by the time that it is large.
_PLANS: Final = (
    "SELECT set_config('enable_seqscan', 'off', false), set_config('enable_mergejoin', 'off', false),"
    " set_config('jit', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false)"
)
# A commit of nothing: it returns when the standbys have whatever can be seen already.
_CONFIRM: Final = "SELECT pg_logical_emit_message(true, 'token-ledger', '')"
# Persons first: rows of theirs go with an erasure alone, so that none is left there says that no older transaction kept
# the server from clearing it, nor the tables after it.
_CLEAR: Final = "VACUUM private_subjects, private_grants, private_contexts, private_reasons, idempotency_keys"
_UNCLEARED: Final = "SELECT pg_stat_get_dead_tuples('private_subjects'::regclass)"
_COUNTED_LATER_BEFORE: Final = 15_00_00  # until then a process of its own counts, and tells twice a second
_COUNTED_SECONDS: Final = 0.6
_NOWHERE: Final = 2**63 - 1


class PostgresStore:
    """One database. `init` makes its tables, `open` to `close` is its use by this process."""

    optimistic: Final = True

    def __init__(self, url: str, inline: Sequence[Inline]) -> None:
        """Raises LedgerError where `url` is none of a PostgreSQL database."""
        self.inline = tuple(inline)
        self.address = Address(url)
        self._name = self._lost_name = ""  # of the connection, so that it can be told from all others
        self._waiting_name = f"{DECIDES}{secrets.token_hex(6)}"
        self._connection: Connection | None = None
        self._wire: Wire | None = None
        self.reached = 0
        self.power_cut: str | None = None
        self.segments = PostgresSegments(self.address)
        self._readers = PostgresReaders(self.address)
        self._hops = Hops()
        self._told: tuple[int, int] | None = (0, 0)
        self._failures = 0
        self._retry_at = 0.0
        self._unreachable = ""
        self._taken: Call | Appending | None = None
        self._closed = False

    # ------------------------------------------------------------ opening and closing

    def init(self, ring_id: str) -> bool:
        """Make tables where there are none, and the functions; True where there were no tables. Safe to repeat.

        Raises LedgerError, StoreError. A crash on the way leaves nothing, or all of it.
        """
        return postgres_opening.make(self.address, self.inline, ring_id)

    def open(self, ring_id: str) -> None:
        """Check the tables and read back the durability. Raises LedgerError, StoreUnreachable; it is closed then."""
        try:
            postgres_opening.check(self._connected(), self.address.place, self.inline, ring_id)
            self.power_cut = postgres_opening.power_cut(self._connected(), self.address.place)
        except psycopg.Error as error:
            self.close()
            raise LedgerError(f"{self.address.place}: {self.address.redacted(error)}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give all connections back. Safe to call twice, and in any state."""
        self._closed = True
        self._readers.close()
        self.segments.close()
        self._hops.close()
        self._drop()

    # ------------------------------------------------------------ the connection

    def _connected(self) -> Connection:
        """The connection; where it was lost, a new one, after a pause that grows. Raises StoreBusy, LedgerError."""
        if self._connection is None:
            if self._closed:
                raise StoreBroken("the database is closed")
            if time.monotonic() < self._retry_at:
                raise StoreBusy(self._unreachable)
            try:
                self._name = f"{DECIDES}{secrets.token_hex(6)}"
                connection = self.address.connect(application_name=self._waiting_name)
                try:
                    postgres_work.register(connection)
                    self._get_behind(connection)
                    connection.execute(_PLANS)
                    if postgres_moves.is_there(connection):
                        connection.execute(postgres_rewriting.WAIT.encode())
                        if self.reached:  # at the start `open` does it
                            self._check_durability(connection)
                            postgres_opening.go_on_above(connection)
                        self._told = _control(connection)
                        postgres_moves.prepare(connection)
                    elif self.reached:  # at the start `open` says what is missing, and ends it
                        raise StoreBusy(f"{self.address.place}: functions are missing; `token-ledger init` makes them")
                except BaseException:
                    connection.close()
                    raise
            except (StoreError, LedgerError, psycopg.Error) as error:
                self._pause(str(translated(error) if isinstance(error, psycopg.Error) else error))
                raise StoreBusy(self._unreachable) from None
            self._connection, self._wire = connection, Wire(connection.pgconn.socket)
            self._failures, self._unreachable = 0, ""
            self.reached += 1
        return self._connection

    def _check_durability(self, connection: Connection) -> None:
        """A setting holds for who connects from then on: what `open` has read is not what another connection has."""
        try:
            postgres_opening.check_durability(connection, self.address.place)
        except LedgerError as error:
            if self._unreachable != str(error):  # once a trouble, not once a try
                log.error("store_not_durable", extra={"fields": {"problem": str(error)}})
            raise

    def _get_behind(self, connection: Connection) -> None:
        """Wait until the standbys have all that can be seen here: a primary that crashed and came back shows what it
        had committed for itself alone (I-09). Of those that waited before and gave up none is left behind."""
        connection.execute(_END_WAITS.encode(), (self._waiting_name,))
        connection.execute(_CONFIRM)
        connection.execute("SELECT set_config('application_name', $1, false)", (self._name,))

    def _pause(self, problem: str) -> None:
        self._retry_at = time.monotonic() + RECONNECT_SECONDS[min(self._failures, len(RECONNECT_SECONDS) - 1)]
        self._failures += 1
        self._unreachable = problem

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    # ------------------------------------------------------------ reading for decisions

    def run(self, act: Callable[[], None]) -> None:
        """Run what decides on the event loop, suspended while the thread of the questions asks."""
        self._hops.run(act)

    def begin(self) -> tuple[int, int]:
        """The control counter and serial as they were when this process last heard; StoreBusy without a connection."""
        if self._connection is None:
            self._hops.ask(self._connected)
        if self._told is None:
            raise ControlMissing
        return self._told

    def control(self) -> tuple[int, int]:
        """The control counter and serial as the store says now. Raises ControlMissing."""
        told = self._asked(_control)
        if told is None:
            raise ControlMissing
        return told

    def last(self) -> int:
        """Positions are given when a batch is written; until then they are places in it."""
        return BASE

    def new_key(self, name: str) -> str:
        """The key of a stream follows from its name."""
        return key_of(name)

    def end(self) -> int:
        """The last position of the log; 0 where there is none yet."""
        ((found,),) = self._asked(lambda connection: connection.execute(postgres_schema.END).fetchall())
        return found or 0

    def head(self, name: str) -> Head | None:
        """The head of a stream as it is now."""
        return self.within().stream(name)

    def event_at(self, name: str, v: int) -> StoredEvent | None:
        """One event of a stream; it is the same at any moment."""
        return self.within().event_at(name, v)

    def within(self) -> PostgresReader:
        """Reading for decisions. Each question sees its own moment; what was read counts only if the commit finds its
        premises true."""
        return _Asking(self)

    def _asked(self, question: Callable[[Connection], T]) -> T:
        return self._hops.ask(partial(self._answer, question))

    def _answer(self, question: Callable[[Connection], T]) -> T:
        """Ask, on whatever thread the connection belongs to now. A connection that is lost meanwhile harms nothing: it
        was only asked. Raises StoreBusy then."""
        try:
            return question(self._connected())
        except psycopg.Error as error:
            problem = translated(error)
            if isinstance(problem, StoreUnreachable):
                self._drop()
                raise StoreBusy(str(problem)) from None
            raise problem from None

    # ------------------------------------------------------------ writing

    def write(self, work: Work) -> None:
        """Take a batch's work. Raises LedgerError where there is too much of it for one transaction."""
        assert isinstance(work, CheckedWork)
        if len(work.events) > postgres_append.PLACES_MAX:
            raise LedgerError(f"more than {postgres_append.PLACES_MAX} events at once")
        self._taken = postgres_moves.moves(work) or Appending(postgres_work.parameters(work, self.segments.holder))

    def send(self) -> Wire | None:
        """Send it, without waiting: where something of the outcome arrives. None where that wants a thread that
        waits."""
        taken, connection = self._taken, self._connection
        if not isinstance(taken, Call) or connection is None:
            return None
        try:
            return self._wire if taken.send(connection) else None
        except psycopg.Error as error:
            raise self._not_told(error) from None

    def arrived(self) -> Written | None:
        """What became of what was sent, as `commit` would say; None while it is not all there."""
        assert isinstance(self._taken, Call)
        assert self._connection is not None
        try:
            told = self._taken.told(self._connection)
        except psycopg.Error as error:
            raise self._not_told(error) from None
        return None if told is None else self._heard(told)

    def commit(self) -> Written:
        """Write it, or wait for what was sent: durable on return, but for what was lost. StoreUnreachable: the outcome
        is unknown."""
        assert self._taken is not None
        connection = self._connection
        if connection is None:  # over another one it would reach a server that may never have had what it stands on
            if self._closed:
                raise StoreBroken("the database is closed")
            self._lost_name = self._name
            raise StoreBusy("the connection was lost before anything was sent")
        try:
            return self._heard(self._taken.write(connection))
        except psycopg.Error as error:
            raise self._not_told(error) from None

    def checkpoint_due(self) -> bool:
        """Never: the server moves its log by itself."""
        return False

    def checkpoint(self) -> None:
        """Nothing: the server does."""

    def _heard(self, told: Told) -> Written:
        self._taken, self._told = None, told.authority
        return told.written

    def _not_told(self, error: psycopg.Error) -> StoreError:
        self._taken = None
        problem = translated(error)
        if isinstance(problem, StoreUnreachable):
            self._lost_name = self._name
            self._drop()
        return problem

    def is_there(self, work: Work) -> Written | None:
        """After a commit whose outcome is unknown: make an end of the old connection, then look for each unit's last
        event. None where nobody can know. Raises StoreBusy where it certainly did not happen."""
        assert isinstance(work, CheckedWork)
        if self._connection is not None:  # the server itself said that it did not happen
            return None
        deadline = time.monotonic() + OUTCOME_SECONDS_MAX
        found: Written | None = None
        while True:
            try:
                connection = self._connected()
                if not connection.execute(_END_OLD, (self._lost_name,)).fetchall():
                    found = _found(connection, work)
                    if found is not None:
                        # Ending a commit that waits for a standby lets it be seen before it is there too. This one
                        # waits behind it.
                        connection.execute(_CONFIRM)
                    break
            except (StoreBusy, psycopg.Error, StoreUnreachable) as error:
                if not isinstance(error, StoreBusy):
                    self._drop()
            if time.monotonic() > deadline or self._closed:
                return None
            time.sleep(OUTCOME_PAUSE_SECONDS)
        if found is None and (work.events or not work.writes):
            raise StoreBusy("the connection was lost, and nothing was written")
        return found

    def rollback(self) -> None:
        """Forget what was taken."""
        self._taken = None

    def truncate_log(self) -> bool:
        """Clear what was erased out of its pages, on a connection of its own: nobody waits for it. The server's log
        keeps it as its backups do, and a page the bytes, now and then, until something is written over them.

        False where it is not cleared yet: a dump, or another transaction of before, still sees it. Raises Unavailable
        where it takes longer than a statement may (of a few rows among many the server would clear none by itself),
        and where this user may not: the server passes over such tables with no more than a warning."""
        said: list[str | None] = []
        try:
            connection = self.address.connect()
        except StoreUnreachable:
            return False
        connection.add_notice_handler(lambda notice: said.append(notice.severity_nonlocalized))
        try:
            connection.execute(_CLEAR)
            if connection.info.server_version < _COUNTED_LATER_BEFORE:
                time.sleep(_COUNTED_SECONDS)
            uncleared = connection.execute(_UNCLEARED).fetchone()
        except psycopg.errors.QueryCanceled:
            raise Unavailable(f"erased, but clearing takes long here: let the tables' owner run {_CLEAR}") from None
        except psycopg.Error:
            return False
        finally:
            connection.close()
        if "WARNING" in said:
            raise Unavailable(
                "erased, but only the owner of the tables may clear their pages: let it repeat the command"
            )
        return uncleared == (0,)

    def reader(self) -> AbstractContextManager[PostgresReader]:
        """A read-only view of one committed moment, for one thread at a time; it sees every acknowledged write."""
        return self._readers.reader()

    def settled(self) -> AbstractContextManager[PostgresReader]:
        """As `reader`, of a moment at which no batch was under way."""
        return self._readers.settled()

    def rewrite(self, derive: Derive) -> int:
        """Run the statements that `derive` finds in a transaction that has the log to itself: see there."""
        return postgres_rewriting.rewrite(self.address, derive)


class _Asking(PostgresReader):
    """Questions for decisions, asked where `Hops` lets them be asked."""

    __slots__ = ("_store",)

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._in_memory = store._readers.in_memory
        self.horizon = _NOWHERE

    def _rows(self, sql: str, parameters: Sequence[object]) -> list[Any]:
        return self._store._asked(lambda connection: connection.execute(sql.encode(), parameters).fetchall())


def _found(connection: Connection, work: CheckedWork) -> Written | None:
    """What of a batch is there, told by the last event of each unit; None where nothing of it is.

    Who spent an identifier and appended nothing left a row that another's copy leaves too, and decided again would be
    refused for its own: of these it stays unknown."""
    reader = PostgresReader(connection, _NOWHERE)
    lasts: dict[int, tuple[int, str, int, str]] = {}
    for place, (_, id, v, _, body) in enumerate(work.events, 1):
        name = work.names[id]
        lasts[work.unit_of[name]] = (place, name, v, body)
    base, there = None, set()
    for unit, (place, name, v, body) in lasts.items():
        found = reader.event_at(name, v)
        if found is not None and found.body == body:
            base = found.position - place
            there.add(unit)
    spent = {unit for unit, (statement, _) in zip(work.private_units, work.private, strict=True) if statement == SPEND}
    unknown = frozenset(spent - lasts.keys())
    if base is None and not unknown:
        return None
    return Written(base or 0, frozenset(range(work.units)) - there, unknown)


def _control(connection: Connection) -> tuple[int, int] | None:
    row = connection.execute("SELECT counter, serial FROM control").fetchone()
    return None if row is None else (row[0], row[1])
