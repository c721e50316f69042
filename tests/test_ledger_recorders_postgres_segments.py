"""The archive within a PostgreSQL database: one process archives at a time, beside all that refresh (I-23)."""

import asyncio
import gzip
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from api.rebuilding import Rebuilding
from ledger.answers import Source, TokenAnswer
from ledger.archiving import Archiving, Report
from ledger.moving import Moving
from ledger.recorders import postgres_archive, postgres_segments
from ledger.recorders.errors import ArchiveDamaged, StoreBusy
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_segments import PostgresSegments
from ledger.refusals import LedgerError, Refusal, Refused
from ledger.segments import line_of
from tests.archives import archive
from tests.engines import alter, url_of
from tests.ledgers import Opened, check_ledger, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

BODY = b'{"at":"2026-11-25T10:00:00.000000Z","stream":"grant:0","v":1}'


def segments_of(opened: Opened) -> PostgresSegments:
    """Where an open ledger's archive lies."""
    assert isinstance(opened.store, PostgresStore)
    return opened.store.segments


def told(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask a database past the ledger."""
    url = url_of(path)
    assert url is not None
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


@asynccontextmanager
async def two_workers(folder: Path) -> AsyncIterator[tuple[Opened, Opened]]:
    """Two ledgers on one database, which know of each other only what lies there."""
    async with (
        open_ledger(folder) as one,
        open_ledger(folder, clock=one.clock, seed="other", clients=None) as other,
    ):
        yield one, other


async def ended_grants(opened: Opened, count: int = 6) -> None:
    """Grants with a past that are over, and one that lives."""
    for number in range(count):
        await opened.chain(answer := await opened.issue(f"person-{number}"), 4)
        await opened.act("revoke", answer.grant_id)
    await opened.issue("lives")


# ------------------------------------------------------------ who archives


async def test_one_process_archives_at_a_time(tmp_path: Path) -> None:
    """Who asks meanwhile is told so at once; when it is released, or was not heard of for long, another may."""
    async with two_workers(tmp_path) as (one, other):
        first, second = segments_of(one), segments_of(other)
        assert first.claim(regular=False)
        assert not second.claim(regular=False)
        with pytest.raises(Refused) as turned_away:
            await archive(other)
        assert turned_away.value.refusal is Refusal.CONFLICT
        first.release(0.0)
        assert second.claim(regular=False)
        assert 1 == alter(one.path, "UPDATE archiver SET until = now() + interval '59 minutes'")
        assert not first.claim(regular=False)
        for until in ("now() - interval '1 second'", "now() + interval '1 day'"):  # as where a clock was put back
            assert 1 == alter(one.path, f"UPDATE archiver SET until = {until}")
            assert first.claim(regular=False)
        for act in (lambda: second.write(1), lambda: second._written(postgres_segments._KEEP)):
            with pytest.raises(StoreBusy, match="another process archives this store by now"):
                act()
        first.release(0.0)


async def test_of_the_regular_runs_of_all_processes_one_is_made(tmp_path: Path) -> None:
    """Every worker on every node begins one every hour: after one there is a rest. Who asks for a run has it."""
    async with two_workers(tmp_path) as (one, other):
        await ended_grants(one)
        one.clock.pass_seconds(1)
        run = partial(Archiving.run, before=one.clock.now, regular=True)
        assert (await run(one.ledger.archiving)).events > 0
        await ended_grants(other, 1)
        one.clock.pass_seconds(1)
        run = partial(Archiving.run, before=one.clock.now, regular=True)
        assert [Report(), Report()] == [await run(each.ledger.archiving) for each in (one, other)]
        assert (await archive(other)).events > 0


async def test_two_runs_at_once_are_one(tmp_path: Path) -> None:
    """Two processes begin in the same moment: one archives, the other is turned away, and nothing is there twice."""
    async with two_workers(tmp_path) as (one, other):
        await ended_grants(one)
        one.clock.pass_seconds(1)
        found = await asyncio.gather(archive(one), archive(other), return_exceptions=True)
        (report,) = [each for each in found if isinstance(each, Report)]
        (turned_away,) = [each for each in found if not isinstance(each, Report)]
        assert isinstance(turned_away, Refused)
        assert 6 * 10 <= report.events
    check_ledger(tmp_path / "ledger.db")


class Freezing(Archiving):
    """Is frozen before its second step goes into the line, until it is let go."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened.store, opened.ledger._decisions, opened.ledger.desk)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._steps = 0

    async def _switch(self, segment: tuple[object, ...], step: list[Moving]) -> None:
        self._steps += 1
        if self._steps == 2:
            self.reached.set()
            await self.go_on.wait()
        await super()._switch(segment, step)


async def frozen_and_overtaken(folder: Path) -> tuple[Report | BaseException, Report]:
    """A process that archives is frozen in the middle, another takes over and withholds all there is, and the first
    goes on."""
    async with two_workers(folder) as (one, other):
        await ended_grants(one)
        one.clock.pass_seconds(1)
        before = check_ledger(one.path)
        freezing = Freezing(one)
        first = asyncio.create_task(freezing.run(one.clock.now))
        await freezing.reached.wait()
        assert 1 == alter(one.path, "UPDATE archiver SET until = now()")
        report = await archive(other, one.clock.now)
        for _ in range(2):  # what was replaced goes a run later
            await archive(other, one.clock.now, one.clock.now)
        freezing.go_on.set()
        (outcome,) = await asyncio.gather(first, return_exceptions=True)
        assert before.versions == {**before.versions, **dict(told(one.path, "SELECT name, v FROM streams"))}
        return outcome, report


@pytest.mark.usefixtures("made_small")
async def test_who_was_frozen_until_another_took_over_changes_nothing(tmp_path: Path) -> None:
    """I-23: it is told so, too; not even a segment that was dropped meanwhile comes back by its hand."""
    outcome, report = await frozen_and_overtaken(tmp_path)
    assert isinstance(outcome, StoreBusy)
    assert report.events > 0
    async with open_ledger(tmp_path, seed="after", clients=None) as opened:
        assert [] == told(opened.path, "SELECT name FROM segments EXCEPT SELECT name FROM whole_segments")
        assert Report() == await archive(opened, opened.clock.now)


@pytest.mark.usefixtures("made_small")
async def test_a_function_that_does_not_ask_who_archives_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above: a segment is named again whose blocks are gone."""
    unguarded = postgres_archive.FUNCTION.replace("IF NOT FOUND THEN", "IF false THEN")
    assert unguarded != postgres_archive.FUNCTION
    monkeypatch.setattr(postgres_archive, "FUNCTION", unguarded)
    await frozen_and_overtaken(tmp_path)
    with pytest.raises(LedgerError, match=r"the archive segment .* is missing; put it back"):
        async with open_ledger(tmp_path, seed="after", clients=None):
            pass


# ------------------------------------------------------------ beside the work


@pytest.mark.usefixtures("made_small")
async def test_workers_refresh_what_is_being_moved(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    """Grants touched by two workers in turn, of whose past a part moves meanwhile: no refresh is lost, none is refused,
    no event is there twice or not at all, and what either remembers is what the store says."""
    async with two_workers(tmp_path) as (one, other):
        await ended_grants(one)
        hot = [await one.issue(f"hot-{number}") for number in range(3)]
        for number, answer in enumerate(hot):
            hot[number] = await one.chain(answer, 30, every_seconds=0)
        before = one.clock.now + 1
        one.clock.pass_seconds(1)
        running = asyncio.create_task(archive(one, before))
        refreshed = 0
        while not running.done() or refreshed < count(30, 300):
            worker = (one, other)[refreshed % 2]
            hot = list(await asyncio.gather(*map(worker.refresh, hot)))
            refreshed += 1
        report = await running
        assert report.events > 6 * 10 + 3 * 40
        assert refreshed >= 30
        for answer in hot:
            ((v,),) = told(one.path, f"SELECT v FROM streams WHERE name = 'grant:{answer.grant_id}'")
            assert 1 + 2 * (30 + refreshed) == v
        assert (await archive(other, before)).events == 0
    check_ledger(tmp_path / "ledger.db")


@pytest.mark.usefixtures("made_small")
async def test_a_rebuild_that_heals_meanwhile_finds_every_event_once(tmp_path: Path) -> None:
    """I-13, I-14: it looks at a moment, and again under the lock of authority; what moves in between it neither misses
    nor counts twice."""
    async with two_workers(tmp_path) as (one, other):
        await ended_grants(one)
        one.clock.pass_seconds(1)
        before = one.clock.now
        assert alter(one.path, "UPDATE current_tokens_v1 SET scope = 'all'") == 7
        lines: list[Any] = []
        running = asyncio.create_task(archive(other, before))
        rebuilds = 0
        while not running.done() or not rebuilds:
            await Rebuilding(one.ledger).run(lines.append)
            alter(one.path, "UPDATE current_tokens_v1 SET scope = 'all'")
            rebuilds += 1
        assert (await running).events >= 60
        found = [line for line in lines if "healed" in line]
        assert [(True, True)] * rebuilds == [(each["healed"], each["history_holds"]) for each in found], lines[-1]
        await Rebuilding(one.ledger).run(lines.append)
        assert {("current_tokens_v1", "scope")} == {
            (each["table"], each["column"]) for each in lines[-1]["differences"]
        }
    check_ledger(tmp_path / "ledger.db")


async def test_a_run_waits_for_no_lock_of_the_events_table(tmp_path: Path) -> None:
    """Somebody reads all of it in a transaction that stays open: nobody waits, and there nothing changes."""
    async with open_ledger(tmp_path) as opened:
        await ended_grants(opened)
        url = url_of(opened.path)
        assert url is not None
        with psycopg.connect(url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            seen = connection.execute("SELECT position, body FROM events ORDER BY position").fetchall()
            began = time.monotonic()
            report = await archive(opened)
            assert report.events >= 6 * 10
            assert time.monotonic() - began < postgres_segments.LEASE_SECONDS
            assert seen == connection.execute("SELECT position, body FROM events ORDER BY position").fetchall()
        assert len(seen) - report.events == len(opened.rows("SELECT * FROM events"))


# ------------------------------------------------------------ the segments


def written(segments: PostgresSegments, *blocks: list[bytes], number: int = 1) -> str:
    """A segment of these blocks."""
    writer = segments.write(number)
    for lines in blocks:
        writer.add_block(lines)
    return writer.close()


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a short segment have several."""
    monkeypatch.setattr(postgres_archive, "PAGE_BYTES", 60)


LINES = [line_of(position, BODY) for position in range(1, 60)]
GATHERED = "SELECT encode(string_agg(bytes, '' ORDER BY at_byte), 'base64') FROM segment_pages WHERE segment = 42"


@pytest.mark.usefixtures("small_pages")
async def test_an_auditor_has_a_segment_as_a_gzip_file_by_plain_sql(tmp_path: Path) -> None:
    """Named by its number and the SHA-256 of those bytes; block by block as it was written."""
    async with open_ledger(tmp_path) as opened:
        segments = segments_of(opened)
        assert segments.claim(regular=False)
        name = written(segments, LINES[:20], LINES[20:], number=42)
        ((text,),) = told(opened.path, GATHERED)
        data = b64decode(text)
        assert LINES == gzip.decompress(data).splitlines()
        assert f"000042-{sha256(data).hexdigest()}.jsonl.gz" == name
        assert [name] == segments.names()
        assert (42, len(data)) == (segments.last_number(), segments.bytes_of(name))
        assert [LINES[:20], LINES[20:]] == [block.lines for block in segments.blocks(name)]
        segments.check(name)
        segments.put_aside(name)
        assert ([], 42, None) == (segments.names(), segments.last_number(), segments.bytes_of(name))
        segments.release(0.0)


@pytest.mark.usefixtures("small_pages")
async def test_what_was_left_unfinished_is_no_segment_and_goes_with_the_next(tmp_path: Path) -> None:
    """After a crash its pages lie there, named by nobody."""
    async with open_ledger(tmp_path) as opened:
        segments = segments_of(opened)
        assert segments.claim(regular=False)
        segments.write(1).add_block(LINES)  # and then it is killed
        assert [(1,)] == told(opened.path, "SELECT DISTINCT segment FROM segment_pages")
        assert [] == segments.names()
        name = written(segments, LINES[:7])
        assert [LINES[:7]] == [block.lines for block in segments.blocks(name)]
        abandoned = segments.write(2)
        abandoned.add_block(LINES)
        abandoned.abandon()
        assert [(1,)] == told(opened.path, "SELECT DISTINCT segment FROM segment_pages")
        segments.remove(name)
        segments.remove(name)
        assert [] == told(opened.path, "SELECT segment FROM segment_pages")
        segments.release(0.0)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        ("UPDATE segment_pages SET bytes = set_byte(bytes, 30, 255 - get_byte(bytes, 30))", "damaged"),
        ("UPDATE segment_pages SET bytes = substr(bytes, 1, length(bytes) - 9)", "ends within the block at byte 0"),
        ("DELETE FROM segment_pages", "ends within the block at byte 0"),
    ],
)
@pytest.mark.usefixtures("small_pages")
async def test_a_page_that_is_not_as_it_was_written_is_found(tmp_path: Path, harm: str, problem: str) -> None:
    """I-14: every block carries a checksum, the whole segment its hash."""
    async with open_ledger(tmp_path) as opened:
        segments = segments_of(opened)
        assert segments.claim(regular=False)
        name = written(segments, LINES[:20], LINES[20:])
        assert 1 == alter(opened.path, f"{harm} WHERE at_byte = 60")
        with pytest.raises(ArchiveDamaged, match=f"{name}: .*{problem}"):
            list(segments.blocks(name))
        with pytest.raises(ArchiveDamaged, match="not those that it is named by"):
            segments.check(name)
        segments.release(0.0)


@pytest.mark.parametrize("lost", ["DELETE FROM whole_segments", "DELETE FROM segment_pages"])
async def test_a_store_without_its_segments_is_not_served(tmp_path: Path, lost: str) -> None:
    """I-23: a dump that was put back without one of the tables is recognised, by one line that names the segment."""
    async with open_ledger(tmp_path) as opened:
        await ended_grants(opened)
        await archive(opened)
    assert alter(tmp_path / "ledger.db", lost) > 0
    with pytest.raises(LedgerError, match=r"the archive segment 000001-\w+\.jsonl\.gz is missing; put it back"):
        async with open_ledger(tmp_path, seed=2, clients=None):
            pass


TABLES = ("segment_pages", "whole_segments", "segments", "archived")


async def test_a_refresh_takes_at_most_300_bytes_in_the_archive(
    tmp_path: Path, count: Callable[[int, int], int]
) -> None:
    """All tables of the archive with all their indexes; issuances and ends included, two dozen refreshes a grant."""
    async with open_ledger(tmp_path) as opened:
        chance, refreshes = Random(7), 0
        grants: list[TokenAnswer] = list(
            await asyncio.gather(*(opened.issue(f"person-{number}") for number in range(count(200, 1000))))
        )
        for _ in range(24):
            opened.clock.pass_seconds(chance.random() * 1800)
            sources = [Source(f"198.51.100.{at % 250}", chance.choice(("app/1", "app/2"))) for at in range(len(grants))]
            grants = list(
                await asyncio.gather(
                    *(opened.refresh(each, source=at) for each, at in zip(grants, sources, strict=True))
                )
            )
            refreshes += len(grants)
        await asyncio.gather(*(opened.act("revoke", grant.grant_id) for grant in grants))
        await opened.issue("later")
        report = await archive(opened)
        assert report.events >= 2 * refreshes
        sizes = {each: told(opened.path, f"SELECT pg_total_relation_size('{each}')")[0][0] for each in TABLES}
        assert 300 >= sum(sizes.values()) / refreshes, sizes
