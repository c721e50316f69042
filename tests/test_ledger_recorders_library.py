"""The `eventsourcing` library reads a ledger's store as its own: repository, notification log, projections.

Of the library's own cases those run here that ask what a recorder selects and what a subscription yields; a recorder
of the test's own writes what they insert. Those that try how a recorder inserts have nothing to try: ours refuses.
"""

import asyncio
import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from eventsourcing import cryptography
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    MapperDeserialisationError,
    Notification,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    StoredEvent,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.popo import POPOTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteCursor, SQLiteTrackingRecorder

from ledger.events import GrantIssued, TokenRotated
from ledger.recorders.library import FoldedGrant, LedgerLog, LedgerMapper, LedgerRecorder, Recorded, fold_grant
from ledger.recorders.readers import Readers
from ledger.recorders.rows import Work
from ledger.recorders.sqlite import SQLiteStore
from tests.engines import url_of
from tests.ledgers import SECURITY, Clock, Opened, check_ledger, open_ledger

# The library's cases import another implementation of the cipher that they use; we have no need of it otherwise.
sys.modules.setdefault("eventsourcing.cipher", cryptography)
from eventsourcing.tests import persistence as cases  # noqa: E402  # after that

pytestmark = pytest.mark.anyio


@pytest.fixture
async def opened(tmp_path: Path, each_store: str) -> AsyncIterator[Opened]:
    async with open_ledger(tmp_path) as ledger:
        yield ledger


def database_of(opened: Opened) -> str:
    """What names it: a URL where the test's ledgers lie on PostgreSQL."""
    return url_of(opened.path) or str(opened.path)


def log_of(opened: Opened, **env: str) -> LedgerLog:
    return LedgerLog({"LEDGER_DATABASE": database_of(opened), **env})


# ---------------------------------------------------------------- repository


async def test_the_repository_folds_a_grant_to_what_the_ledger_knows(opened: Opened) -> None:
    """The library's `Application.repository`, with a projector function on our events."""
    answer = await opened.chain(await opened.issue(), 70)
    with log_of(opened) as log:
        folded: FoldedGrant = log.repository.get(f"grant:{answer.grant_id}", projector_func=fold_grant)
        assert opened.ledger.memory.streams[f"grant:{answer.grant_id}"].aggregate == folded.grant
        assert (f"grant:{answer.grant_id}", 141) == (folded.id, folded.version)
        assert log.grant(answer.grant_id) == folded.grant
        with pytest.raises(AggregateNotFoundError):
            log.grant("0" * 32)


async def test_the_repository_goes_back_to_any_version(opened: Opened) -> None:
    """As of each version: the generation that was current then."""
    answer = await opened.chain(await opened.issue(), 40)
    with log_of(opened) as log:
        generations = [log.grant(answer.grant_id, version=v).generation for v in range(1, 82)]
        assert [(v - 1) // 2 for v in range(1, 82)] == generations


async def test_the_repositorys_cache_is_brought_up_to_date(opened: Opened) -> None:
    """What the library keeps it fast-forwards with the events that came since, and hands out copies."""
    answer = await opened.issue()
    with log_of(opened, AGGREGATE_CACHE_MAXSIZE="10") as log:
        first = log.grant(answer.grant_id)
        answer = await opened.chain(answer, 3)
        assert (0, 3) == (first.generation, log.grant(answer.grant_id).generation)
        assert log.grant(answer.grant_id) is not log.grant(answer.grant_id)


# ---------------------------------------------------------------- notification log


async def test_the_notification_log_is_the_log(opened: Opened) -> None:
    """Every event of every stream in log order: ids are positions, states the stored bytes, section by section."""
    await opened.chain(await opened.issue(), 12)
    await opened.ledger.operators.revoke_subject(SECURITY, "alice", "r", None)
    seen: list[Notification] = []
    with log_of(opened) as log:
        section_id: str | None = "1,10"
        while section_id:
            section = log.notification_log[section_id]
            seen += section.items
            section_id = section.next_id
        assert opened.last_position() == log.recorder.max_notification_id()
    rows = opened.rows(
        "SELECT e.position, s.name, e.v, e.body FROM events e JOIN streams s ON s.id = e.stream ORDER BY 1"
    )
    assert rows == [(each.id, each.originator_id, each.originator_version, each.state.decode()) for each in seen]
    assert [event.topic for event in opened.events()] == [each.topic for each in seen]


async def test_the_notification_log_is_filtered_by_our_topics(opened: Opened) -> None:
    """The topics are the events' permanent names."""
    await opened.chain(await opened.issue(), 3)
    with log_of(opened) as log:
        rotated = log.notification_log.select(None, 10, topics=["grant.token_rotated", "grant.revoked"])
        assert ["grant.token_rotated"] * 3 == [each.topic for each in rotated]
        first = [each.id for each in log.notification_log.select(rotated[0].id, 10, topics=["grant.token_rotated"])]
        after = log.notification_log.select(
            rotated[0].id, 10, topics=["grant.token_rotated"], inclusive_of_start=False, stop=rotated[1].id
        )
        assert [each.id for each in rotated] == first
        assert [rotated[1].id] == [each.id for each in after]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
async def test_a_stream_is_selected_from_either_end(opened: Opened, length: int) -> None:
    """`gt`, `lte`, `desc` and `limit` mean what they mean in the library's own recorders."""
    for _ in range(length):
        await opened.ledger.operators.record_read(SECURITY, "q")
    with log_of(opened) as log:
        select = log.recorder.select_events

        def versions(**which: Any) -> list[int]:
            return [each.originator_version for each in select("audit", **which)]

        everything = list(range(1, length + 1))
        assert everything == versions()
        for gt in (None, 0, 1, 62, 63, 64, length - 1, length, length + 5):
            for lte in (None, 0, 1, 63, 64, 65, length, length + 5):
                expected = [v for v in everything if (gt is None or v > gt) and (lte is None or v <= lte)]
                assert expected == versions(gt=gt, lte=lte)
                assert expected[::-1] == versions(gt=gt, lte=lte, desc=True)
                for limit in (1, 2, 64, 1000):
                    assert expected[:limit] == versions(gt=gt, lte=lte, limit=limit)
                    assert expected[::-1][:limit] == versions(gt=gt, lte=lte, desc=True, limit=limit)
        assert [] == select("grant:0")
        assert [] == select("grant:0", desc=True, limit=1)


# ---------------------------------------------------------------- projections


class View(TrackingRecorder):
    """How often each client's grants were issued and rotated."""

    @abstractmethod
    def add(self, what: str, tracking: Tracking) -> None: ...
    @abstractmethod
    def total(self, what: str) -> int: ...


class InMemory(POPOTrackingRecorder, View):
    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, int] = {}

    def add(self, what: str, tracking: Tracking) -> None:
        with self._database_lock:
            self._assert_tracking_uniqueness(tracking)
            self._insert_tracking(tracking)
            self.totals[what] = self.total(what) + 1

    def total(self, what: str) -> int:
        return self.totals.get(what, 0)


class OnFile(SQLiteTrackingRecorder, View):
    def construct_create_table_statements(self) -> list[str]:
        return [
            *super().construct_create_table_statements(),
            "CREATE TABLE IF NOT EXISTS totals (what TEXT PRIMARY KEY, total INTEGER)",
        ]

    def add(self, what: str, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute("INSERT INTO totals VALUES (?, 1) ON CONFLICT DO UPDATE SET total = total + 1", (what,))

    def total(self, what: str) -> int:
        with self.datastore.transaction(commit=False) as cursor:
            return self._total(cursor, what)

    def _total(self, cursor: SQLiteCursor, what: str) -> int:
        cursor.execute("SELECT total FROM totals WHERE what = ?", (what,))
        row = cursor.fetchone()
        return int(row[0]) if row else 0


class Totals(Projection[View]):
    """A projection of the library's on our events."""

    name = "totals"
    topics = ("grant.issued", "grant.token_rotated", "grant.token_redeemed")

    @singledispatchmethod
    def process_event(self, recorded: Recorded, tracking: Tracking) -> None:
        match recorded.event:
            case GrantIssued(client_id=client_id):
                self.view.add(f"issued {client_id}", tracking)
            case TokenRotated():
                self.view.add("rotated", tracking)
            case _:
                self.view.insert_tracking(tracking)


def runner(opened: Opened, view: type[View], **env: str) -> ProjectionRunner[LedgerLog, View]:
    settings = {"LEDGER_DATABASE": database_of(opened), **env}
    return ProjectionRunner(application_class=LedgerLog, projection_class=Totals, view_class=view, env=settings)


async def test_a_projection_of_the_librarys_follows_the_ledger(opened: Opened) -> None:
    """The library's runner on our log: what was there before, and what is recorded while it runs, each once."""
    answer = await opened.chain(await opened.issue(), 5)
    with runner(opened, InMemory) as running:
        await asyncio.to_thread(running.wait, answer.position, 5)
        assert (1, 5) == (running.view.total("issued www"), running.view.total("rotated"))
        answers = await asyncio.gather(*(opened.issue(str(n)) for n in range(20)))
        answers = await asyncio.gather(*map(opened.refresh, answers))
        await asyncio.to_thread(running.wait, max(each.position for each in answers), 5)
        assert (21, 25) == (running.view.total("issued www"), running.view.total("rotated"))


async def test_a_projection_on_a_file_goes_on_where_it_stopped(opened: Opened, tmp_path: Path) -> None:
    """Its tracking table, in a database of its own, says which position came last."""
    env = {"TOTALS_PERSISTENCE_MODULE": "eventsourcing.sqlite", "TOTALS_SQLITE_DBNAME": str(tmp_path / "totals.db")}
    answer = await opened.issue()
    for expected in (2, 4, 6):
        answer = await opened.chain(answer, 2)
        with runner(opened, OnFile, **env) as running:
            await asyncio.to_thread(running.wait, answer.position, 5)
            assert (1, expected) == (running.view.total("issued www"), running.view.total("rotated"))
    check_ledger(opened.path)


async def test_a_projection_that_fails_tells_its_error(opened: Opened) -> None:
    """The library's runner ends with it; the ledger goes on."""

    class Broken(InMemory):
        def add(self, what: str, tracking: Tracking) -> None:
            raise ZeroDivisionError

    answer = await opened.issue()
    with runner(opened, Broken) as running, pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(running.run_forever, 5)
    await opened.refresh(answer)


# ---------------------------------------------------------------- nothing is written


async def test_nothing_is_recorded_by_the_librarys_path(opened: Opened) -> None:
    """Finished bytes show no decision: refused in one line, nothing changed, the ledger none the wiser."""
    answer = await opened.issue()
    before = opened.rows("SELECT * FROM events"), opened.rows("SELECT * FROM streams")
    with log_of(opened) as log:
        rotated = TokenRotated(
            stream=f"grant:{answer.grant_id}", v=2, at="2026-11-25T10:00:00.000000Z", command_id="c", prev="0" * 64,
            control=0, generation=1, key_id=1, retry_budget=0,
        )  # fmt: skip
        recorded = Recorded(rotated.stream, rotated.v, rotated)
        stored = log.mapper.to_stored_event(recorded)
        with pytest.raises(NotSupportedError, match="appended by its own commands only"):
            log.recorder.insert_events([stored])
        with pytest.raises(NotSupportedError, match="appended by its own commands only"):
            log.save(recorded)
        with pytest.raises(NotSupportedError):
            log.factory.aggregate_recorder("snapshots")
        for recorder in (log.factory.tracking_recorder, log.factory.process_recorder):
            with pytest.raises(NotSupportedError, match="a store of its own"):
                recorder()
    assert before == (opened.rows("SELECT * FROM events"), opened.rows("SELECT * FROM streams"))
    opened.check_memory()
    await opened.refresh(answer)


async def test_stored_bytes_come_back_as_they_were(opened: Opened) -> None:
    """The mapper makes events of bytes and the same bytes of events; it believes no bytes that are another's."""
    first, second = await opened.chain(await opened.issue(), 1), await opened.chain(await opened.issue(), 1)
    with log_of(opened) as log:
        stored = list(log.recorder.select_events(f"grant:{first.grant_id}"))
        assert stored == [log.mapper.to_stored_event(log.mapper.to_domain_event(each)) for each in stored]
        theirs = log.recorder.select_events(f"grant:{second.grant_id}")[1]
        swapped = dataclasses.replace(stored[1], state=theirs.state)
        for wrong, line in (
            (swapped, "these are the bytes of"),
            (dataclasses.replace(stored[1], state=b"{}"), "topic"),
        ):
            with pytest.raises(MapperDeserialisationError, match=line):
                log.mapper.to_domain_event(wrong)


async def test_neither_cipher_nor_compressor(opened: Opened) -> None:
    """Events are stored as they are hashed; whoever configures otherwise is told at once."""
    with pytest.raises(ProgrammingError, match="no cipher, no compressor"):
        log_of(opened, COMPRESSOR_TOPIC="zlib")


async def test_bad_settings_are_one_clear_line(tmp_path: Path) -> None:
    """Bad input: no database named, none there, one of something else."""
    with pytest.raises(OSError, match="LEDGER_DATABASE is not set"):
        LedgerLog()
    with pytest.raises(OperationalError, match="cannot be read"):
        LedgerLog({"LEDGER_DATABASE": str(tmp_path / "none.db")})
    assert not (tmp_path / "none.db").exists()
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(OperationalError, match="this database is no token ledger"):
        LedgerLog({"LEDGER_DATABASE": str(tmp_path / "other.db")})


_OTHER_PROCESS = """
import sys
import threading
from ledger.recorders.library import LedgerLog
with LedgerLog({"LEDGER_DATABASE": sys.argv[1]}) as log:
    last = log.recorder.max_notification_id()
    print(log.grant(sys.argv[2]).generation, last, flush=True)
    with log.recorder.subscribe(gt=last) as subscription:
        print(next(subscription).id, flush=True)
"""


async def test_another_process_reads_beside_the_owner(opened: Opened) -> None:
    """Reading needs no ownership: what is durable is seen, what comes is followed."""
    answer = await opened.chain(await opened.issue(), 3)
    process = subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, database_of(opened), answer.grant_id],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    with process:
        assert process.stdout is not None
        first = await asyncio.to_thread(process.stdout.readline)
        assert f"3 {answer.position}\n" == first
        issued = await opened.issue()
        assert f"{issued.position}\n" == await asyncio.to_thread(process.stdout.readline)
    assert 0 == process.returncode


async def test_a_follower_misses_nothing_of_two_nodes(tmp_path: Path, on_postgres: str) -> None:
    """Batches of two processes get their positions in one order and are seen in another: whoever follows the log gets
    each event once, in log order, and none is ever behind what was told before."""
    clock = Clock()
    async with (
        open_ledger(tmp_path, clock=clock) as one,
        open_ledger(tmp_path, clock=clock, seed=2, clients=None) as other,
    ):
        found: list[int] = []
        with log_of(one) as log:
            following = threading.Thread(target=_follow, args=(log, found))
            following.start()
            await asyncio.gather(*(_chains(node, name) for node in (one, other) for name in ("ann", "bob", "eve")))
            await one.ledger.operators.revoke_subject(SECURITY, "ann", "the last word", None)
            await asyncio.to_thread(following.join, 10)
        assert found == [row[0] for row in one.rows("SELECT position FROM events ORDER BY position")]
        assert len(found) > 100


async def _chains(node: Opened, subject: str) -> None:
    await node.chain(await node.issue(subject), 15)


def _follow(log: LedgerLog, found: list[int]) -> None:
    """Until the last word."""
    with log.recorder.subscribe() as subscription:
        for each in subscription:
            found.append(each.id)
            if each.topic == "subject.revoked":
                return


async def test_reading_leaves_what_a_crash_left_as_it_was(tmp_path: Path) -> None:
    """A reader never check-points: the log of a killed owner stays the evidence that it is."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (tmp_path / "live").mkdir()
    async with open_ledger(tmp_path / "live") as opened:
        answer = await opened.chain(await opened.issue(), 3)
        for suffix in ("", "-wal", "-shm"):
            (copy / f"ledger.db{suffix}").write_bytes((tmp_path / "live" / f"ledger.db{suffix}").read_bytes())
    before = [(copy / f"ledger.db{suffix}").read_bytes() for suffix in ("", "-wal")]
    with LedgerLog({"LEDGER_DATABASE": str(copy / "ledger.db")}) as log:
        assert 3 == log.grant(answer.grant_id).generation
    assert before == [(copy / f"ledger.db{suffix}").read_bytes() for suffix in ("", "-wal")]


# ---------------------------------------------------------------- the library's own cases


class Inserting(LedgerRecorder):
    """Our recorder with a writer of the test's own, which puts the cases' events where a ledger's would lie."""

    def __init__(self, store: SQLiteStore) -> None:
        super().__init__(Readers(store.path))
        self._store = store

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        store, work = self._store, Work(())
        store.begin()
        try:
            position = store.last()
            positions = []
            for event in stored_events:
                position += 1
                name, asked = str(event.originator_id), (None, None, None)
                head = store.head(name)
                known = head.v if head else 0
                if event.originator_version != known + 1:
                    raise IntegrityError
                body = msgspec.json.encode({"topic": event.topic, "state": event.state.decode()}).decode()
                stream, back = (head.id, head.position) if head else (store.new_key(name), 0)
                work.events.append((position, stream, event.originator_version, back, body))
                work.add_head(stream, name, event.originator_version, position, b"", b"", asked, known)
                store.write(work)
                work = Work(())
                positions.append(position)
            store.commit()
        except BaseException:
            store.rollback()
            raise
        return positions

    def select_events(self, *args: Any, **kwargs: Any) -> list[StoredEvent]:
        return [_as_inserted(each) for each in super().select_events(*args, **kwargs)]

    def select_notifications(self, *args: Any, **kwargs: Any) -> list[Notification]:
        return [_as_inserted(each) for each in super().select_notifications(*args, **kwargs)]


def _as_inserted(stored: Any) -> Any:
    return dataclasses.replace(stored, state=msgspec.json.decode(stored.state)["state"].encode())


class SelectingCases(cases.ApplicationRecorderTestCase[ApplicationRecorder]):
    """The library's cases on selecting and subscribing, each run by a function below."""

    __test__ = False
    recorder: ClassVar[LedgerRecorder]

    def create_recorder(self) -> ApplicationRecorder:
        return self.recorder

    def new_originator_id(self) -> str:
        return str(super().new_originator_id())


@pytest.mark.parametrize("case", ["test_insert_select", "optional_test_insert_subscribe"])
def test_a_case_of_the_librarys_own(tmp_path: Path, case: str) -> None:
    """What the library asks of every application recorder that it reads from."""
    run_case(tmp_path, case)


def run_case(folder: Path, case: str) -> None:
    store = SQLiteStore(folder / "ledger.db", ())
    store.open("0" * 32)
    SelectingCases.recorder = Inserting(store)
    try:
        SelectingCases(case).debug()
    finally:
        SelectingCases.recorder._readers.close()
        store.close()


def test_a_case_of_the_librarys_own_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: a recorder that counts `start` wrongly is caught by the same case."""

    def off_by_one(self: Any, start: int | None, *args: Any, **kwargs: Any) -> Any:
        return select(self, None if start is None else start + 1, *args, **kwargs)

    select = LedgerRecorder.select_notifications
    monkeypatch.setattr(LedgerRecorder, "select_notifications", off_by_one)
    with pytest.raises(AssertionError):
        run_case(tmp_path, "test_insert_select")


def test_the_module_is_one_of_the_librarys(tmp_path: Path) -> None:
    """It holds exactly one factory, so its name alone is a setting."""
    store = SQLiteStore(tmp_path / "ledger.db", ())
    store.open("0" * 32)
    env = {"PERSISTENCE_MODULE": "ledger.recorders.library", "LEDGER_DATABASE": str(tmp_path / "ledger.db")}
    with Application[str](env) as application:
        assert isinstance(application.recorder, LedgerRecorder)
        assert isinstance(application.mapper, LedgerMapper)
        assert application.recorder.max_notification_id() is None
        assert [] == application.notification_log.select(1, 10)
    store.close()
