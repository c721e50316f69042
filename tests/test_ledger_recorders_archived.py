"""Reading over the border between the archive and what is left in the store: nobody sees where it runs (I-22, I-23)."""

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from eventsourcing.persistence import OperationalError

from ledger import movable
from ledger.recorders.archived import Archived
from ledger.recorders.errors import Withheld
from ledger.recorders.library import LedgerFactory
from ledger.recorders.rows import Piece, StoredEvent
from ledger.segments import folder_of
from tests.archives import archive
from tests.engines import only_on_sqlite, url_of
from tests.ledgers import Opened, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

REFRESHES = 150


async def long_grant(opened: Opened, monkeypatch: pytest.MonkeyPatch, cut: int) -> tuple[str, list[StoredEvent]]:
    """A grant of 301 events of which the first `cut` are archived, in pieces of a few; its events as they were."""
    answer = await opened.issue()
    await opened.chain(answer, REFRESHES)
    name = f"grant:{answer.grant_id}"
    with opened.store.reader() as reads:
        before = reads.events(name, 1, 1_000)
    monkeypatch.setattr(movable.Judging, "to_v", lambda self, stream: cut if stream.name == name else 0)
    await archive(opened)
    assert [(cut,)] == opened.rows("SELECT sum(to_v - from_v + 1) FROM archived")
    assert [(2 * REFRESHES + 1 - cut,)] == opened.rows(
        "SELECT count(*) FROM events e JOIN streams s ON s.id = e.stream WHERE s.name = ?", name
    )
    return name, before


@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("cut", [1, 64, 65, 127, 128, 129, 200, 2 * REFRESHES])
async def test_every_page_is_the_same_wherever_the_border_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """Pages, single events and events by position, below, over and above it."""
    async with open_ledger(tmp_path) as opened:
        name, before = await long_grant(opened, monkeypatch, cut)
        last = len(before)
        ends = sorted({1, 2, cut - 1, cut, cut + 1, cut + 2, last // 2, last - 1, last, last + 1} - {0, -1})
        with opened.store.reader() as reads:
            for from_v, to_v in itertools.product(ends, ends):
                assert before[from_v - 1 : to_v] == reads.events(name, from_v, to_v), (from_v, to_v)
            for v in Random(cut).sample(range(1, last + 1), 40):
                assert before[v - 1] == reads.event_at(name, v)
                assert before[v - 1] == reads.event_at_position(name, before[v - 1].position)
            assert reads.event_at(name, last + 1) is None
            assert reads.event_at_position(name, 1) is None
            assert [] == reads.events("grant:" + "0" * 32, 1, 5)


@pytest.mark.usefixtures("made_small")
async def test_one_event_costs_one_block_however_long_the_history_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-22: neither the other pieces nor the other blocks are read."""
    async with open_ledger(tmp_path) as opened:
        name, before = await long_grant(opened, monkeypatch, 280)
        read: list[int] = []
        block = Archived._stored

        def counted(self: Archived, piece: Piece) -> list[StoredEvent]:
            read.append(piece.at_byte)
            return block(self, piece)

        monkeypatch.setattr(Archived, "_stored", counted)
        assert opened.rows("SELECT count(DISTINCT at_byte) FROM archived")[0][0] in range(20, 100)
        with opened.store.reader() as reads:
            assert before[99] == reads.event_at(name, 100)
            assert 1 == len(read)
            assert before[100:103] == reads.events(name, 101, 103)
            assert 3 >= len(read)


async def test_of_a_withheld_piece_the_event_that_its_standing_follows_from_is_still_there(tmp_path: Path) -> None:
    """Who ended it and why is told as before; every other event says that it is withheld."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.chain(answer, 2)
        await opened.act("revoke", answer.grant_id)
        await opened.issue("bob")
        name = f"grant:{answer.grant_id}"
        with opened.store.reader() as reads:
            end = reads.event_at(name, 6)
        await archive(opened, withhold_before=opened.clock.now + 1)
        with opened.store.reader() as reads:
            again = reads.event_at(name, 6)
            assert end is not None
            assert again is not None
            assert (end.position, end.v, end.body) == (again.position, again.v, again.body)
            assert again == reads.event_at_position(name, end.position)
            for asked in (lambda: reads.events(name, 1, 6), lambda: reads.event_at(name, 1)):
                with pytest.raises(Withheld, match="versions 1 to 6 of stream"):
                    asked()
            with pytest.raises(Withheld):
                reads.event_at_position(name, end.position - 1)


@pytest.mark.usefixtures("made_small")
async def test_a_follower_of_the_log_is_never_told_one_with_holes(tmp_path: Path) -> None:
    """Streams read as before; what was archived is refused in log order, and what came after it is told."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.act("revoke", answer.grant_id)
        name = f"grant:{answer.grant_id}"
        factory = LedgerFactory({"LEDGER_DATABASE": url_of(opened.path) or str(opened.path)})
        recorder = factory.application_recorder()
        before = recorder.select_events(name)
        await opened.issue("bob")
        everything = recorder.select_notifications(None, 100)
        await archive(opened)
        assert before == recorder.select_events(name)
        moved = opened.rows("SELECT max(to_position) FROM archived")[0][0]
        assert isinstance(moved, int)
        for start in (None, 1, moved):
            with pytest.raises(OperationalError, match=f"events up to position {moved} were archived"):
                recorder.select_notifications(start, 100)
        later = [each for each in everything if each.id > moved]
        assert later == recorder.select_notifications(moved, 100, inclusive_of_start=False)
        factory.close()


@only_on_sqlite
async def test_a_store_of_an_earlier_release_is_given_its_tables(tmp_path: Path) -> None:
    """They are asked for whenever one is opened; nothing has moved there."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("DROP TABLE archived")
        connection.execute("DROP TABLE segments")
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert [] == opened.rows("SELECT * FROM archived")
    assert not folder_of(tmp_path / "ledger.db").exists()
