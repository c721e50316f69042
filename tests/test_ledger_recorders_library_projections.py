"""The `eventsourcing` library projects a ledger's events: what was there before, what comes, where it stopped."""

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import OperationalError, Tracking, TrackingRecorder
from eventsourcing.popo import POPOTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteCursor, SQLiteTrackingRecorder

from ledger.events import GrantIssued, TokenRotated
from ledger.recorders import postgres_readers
from ledger.recorders.library import Busy, LedgerLog, LedgerRecorder, Recorded
from tests.archives import archive
from tests.ledgers import ELSEWHERE, Opened, check_ledger, open_ledger
from tests.library_logs import database_of, log_of

pytestmark = pytest.mark.anyio


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


async def test_a_projection_of_the_librarys_follows_the_ledger(followed: Opened) -> None:
    """The library's runner on our log: what was there before, and what is recorded while it runs, each once."""
    answer = await followed.chain(await followed.issue(), 5)
    with runner(followed, InMemory) as running:
        await asyncio.to_thread(running.wait, answer.position, 5)
        assert (1, 5) == (running.view.total("issued www"), running.view.total("rotated"))
        answers = await asyncio.gather(*(followed.issue(str(n)) for n in range(20)))
        answers = await asyncio.gather(*map(followed.refresh, answers))
        await asyncio.to_thread(running.wait, max(each.position for each in answers), 5)
        assert (21, 25) == (running.view.total("issued www"), running.view.total("rotated"))


async def test_a_projection_on_a_file_goes_on_where_it_stopped(followed: Opened, tmp_path: Path) -> None:
    """Its tracking table, in a database of its own, says which position came last."""
    env = {"TOTALS_PERSISTENCE_MODULE": "eventsourcing.sqlite", "TOTALS_SQLITE_DBNAME": str(tmp_path / "totals.db")}
    answer = await followed.issue()
    for expected in (2, 4, 6):
        answer = await followed.chain(answer, 2)
        with runner(followed, OnFile, **env) as running:
            await asyncio.to_thread(running.wait, answer.position, 5)
            assert (1, expected) == (running.view.total("issued www"), running.view.total("rotated"))
    check_ledger(followed.path)


async def test_a_projection_that_fails_tells_its_error(followed: Opened) -> None:
    """The library's runner ends with it; the ledger goes on."""

    class Broken(InMemory):
        def add(self, what: str, tracking: Tracking) -> None:
            raise ZeroDivisionError

    answer = await followed.issue()
    with runner(followed, Broken) as running, pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(running.run_forever, 5)
    await followed.refresh(answer)


ALARM = "grant.reuse_detected"


async def alarmed(opened: Opened) -> None:
    """Present a token that was retired, from elsewhere."""
    first = await opened.issue("eve")
    await opened.refresh(await opened.refresh(first))
    await opened.refused(first, source=ELSEWHERE)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(8):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What followers look at, in steps of four events: after which position, how much was found, up to where."""
    asked: list[tuple[int, int, int]] = []
    look = LedgerRecorder.look

    def noted(recorder: LedgerRecorder, after: int, limit: int, topics: Sequence[str] = ()) -> Any:
        found, last = look(recorder, after, 4, topics)
        asked.append((after, len(found), last))
        return found, last

    monkeypatch.setattr(LedgerRecorder, "look", noted)
    return asked


async def test_a_follower_reads_each_event_once(followed: Opened, looks: list[tuple[int, int, int]]) -> None:
    """Whether it has use for it or not, and in bounded steps: to look again costs the same in a long log (I-22)."""
    await followed.chain(await followed.issue(), 8)
    await alarmed(followed)
    end = followed.last_position()
    with log_of(followed) as log, log.recorder.subscribe(topics=[ALARM]) as subscription:
        assert ALARM == (await asyncio.to_thread(next, subscription)).topic
        await until(lambda: looks[-2:] == [(end, 0, end)] * 2)
    steps = [(after, last) for after, _, last in looks if last > after]
    assert len(steps) > 4
    assert [0, *(last for _, last in steps[:-1])] == [after for after, _ in steps], "each goes on where the last ended"
    assert 1 == sum(found for _, found, _ in looks)


async def test_a_follower_of_few_topics_goes_on_while_the_rest_is_archived(
    followed: Opened, looks: list[tuple[int, int, int]]
) -> None:
    """I-23: it has looked at what it has no use for. Begun anew where it was last told something it is refused, rather
    than led past what was archived since: nobody looked there for it."""
    await alarmed(followed)
    with log_of(followed) as log, log.recorder.subscribe(topics=[ALARM]) as subscription:
        alarm = await asyncio.to_thread(next, subscription)
        ended = await followed.chain(await followed.issue("bob"), 3)
        await followed.act("revoke", ended.grant_id)
        followed.clock.pass_seconds(60)
        await followed.issue("carl")
        end = followed.last_position()
        await until(lambda: looks[-1] == (end, 0, end))
        assert 0 < (await archive(followed)).events
        await alarmed(followed)
        assert end < (await asyncio.to_thread(next, subscription)).id
        again = log.recorder.subscribe(gt=alarm.id, topics=[ALARM])
        with again, pytest.raises(OperationalError, match="were archived: start a follower after it"):
            await asyncio.to_thread(next, again)


async def test_a_follower_waits_while_the_store_is_busy(
    tmp_path: Path, on_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction of somebody else's that writes and stays open holds every reader up: a follower goes on when it is
    over, and has missed nothing."""
    monkeypatch.setattr(postgres_readers, "SECONDS_MAX", 0.2)
    busy = threading.Event()
    look = LedgerRecorder.look

    def noted(recorder: LedgerRecorder, *asked: Any) -> Any:
        try:
            return look(recorder, *asked)
        except Busy:
            busy.set()
            raise

    monkeypatch.setattr(LedgerRecorder, "look", noted)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        with log_of(opened) as log, log.recorder.subscribe(gt=answer.position) as subscription:
            with psycopg.connect(database_of(opened)) as other:
                other.execute("SELECT pg_current_xact_id()")
                answer = await opened.refresh(answer)
                assert await asyncio.to_thread(busy.wait, 5)
            told = [await asyncio.to_thread(next, subscription) for _ in range(2)]
        assert ["grant.token_redeemed", "grant.token_rotated"] == [each.topic for each in told]
        assert answer.position == told[-1].id
