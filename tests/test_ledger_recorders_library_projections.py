"""The `eventsourcing` library projects a ledger's events: what was there before, what comes, where it stopped."""

import asyncio
from abc import abstractmethod
from pathlib import Path

import pytest
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import Tracking, TrackingRecorder
from eventsourcing.popo import POPOTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteCursor, SQLiteTrackingRecorder

from ledger.events import GrantIssued, TokenRotated
from ledger.recorders.library import LedgerLog, Recorded
from tests.ledgers import Opened, check_ledger
from tests.library_logs import database_of

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
