"""What is over moves into the archive, and every answer stays (I-23), whatever happened and wherever a run is cut."""

import asyncio
import contextlib
import copy
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger import times
from ledger.answers import Source, TokenAnswer
from ledger.archiving import Report
from ledger.recorders.archived import Archived
from ledger.recorders.errors import Withheld
from ledger.recorders.rows import Piece, StoredEvent
from ledger.refusals import LedgerError, Unavailable
from ledger.segments import folder_of
from projections import INLINE, current_tokens, grant_history
from projections.rebuild import Rebuilt, rebuild
from tests.archives import CLIENTS, Given, answers, archive, differing, made_small, past, presented, reopened, twin
from tests.engines import alter, only_on_sqlite, readers_of, stand_for, url_of
from tests.ledger_check import check_ledger, copied
from tests.ledgers import HOME, LOCAL_OPERATOR, Clock, open_ledger

__all__ = ["made_small"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

SEEDS = (1, 8, 21)


async def lived(folder: Path, seed: int, acts: int = 60) -> tuple[Given, Clock]:
    """A closed ledger with a past."""
    folder.mkdir()
    async with open_ledger(folder, clients=CLIENTS) as opened:
        assert opened.ledger._ticker is not None
        opened.ledger._ticker.cancel()
        given = await past(opened, Random(seed), acts)
        return given, opened.clock


async def asked(folder: Path, given: Given, clock: Clock) -> list[Any]:
    """All that can be asked, all tokens presented once more, and all asked again."""
    async with reopened(folder, clock) as opened:
        before = await answers(opened, given)
        outcomes = await presented(opened, given, Random("order"))
        after = await answers(opened, given)
    return compared(folder, 0, [before, outcomes, after])


def compared(folder: Path, since: int, told: list[Any]) -> list[Any]:
    """What was told, with the names of events after a position in place of theirs where positions follow from the
    transactions of a whole server: no two ledgers on one have the same."""
    if url_of(folder / "ledger.db") is None:
        return told
    events: dict[int, str] = {}
    with closing(readers_of(folder / "ledger.db")) as readers, readers.settled() as reads:
        for name, v in reads.select("SELECT name, v FROM streams WHERE position > ?", (since,)):
            for each in reversed(range(1, int(str(v)) + 1)):
                try:
                    stored = reads.event_at(str(name), each)
                except Withheld:
                    break
                if stored is None or stored.position <= since:
                    break
                events[stored.position] = f"{name}/{each}"
    return [renamed(each, events) for each in told]


def renamed(told: Any, events: dict[int, str]) -> Any:
    """The same with positions replaced, numbers and texts, at whatever depth."""
    if isinstance(told, dict):
        return {name: renamed(value, events) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return [renamed(each, events) for each in told]
    if isinstance(told, int) or (isinstance(told, str) and told.isdecimal()):
        return events.get(int(told), told)
    return told


async def archived_twin(folder: Path, clock: Clock) -> tuple[Path, Report]:
    """A copy of a closed ledger, archived."""
    other = twin(folder)
    async with reopened(other, clock, "archiver") as opened:
        return other, await archive(opened)


def rebuilt(folder: Path) -> Rebuilt:
    """A rebuild of a closed ledger, which must heal nothing."""

    def refuse(_: object) -> None:
        raise AssertionError("there is something to heal")

    with closing(readers_of(folder / "ledger.db")) as readers:
        return rebuild(readers.settled, INLINE, refuse)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("made_small")
async def test_an_archived_ledger_answers_as_its_twin_does(
    tmp_path: Path, seed: int, count: Callable[[int, int], int]
) -> None:
    """I-23: views, lists, histories at any moment, incidents, explanations, introspection; then every token presented
    again, with the events that this records."""
    for one in range(seed, seed + count(1, 60)):
        given, clock = await lived(tmp_path / f"lived-{one}", one)
        folder = tmp_path / f"lived-{one}"
        before = check_ledger(folder / "ledger.db")
        other, report = await archived_twin(folder, clock)
        assert report.events > 30
        assert before == check_ledger(other / "ledger.db")
        assert before.events == rebuilt(other).events
        assert {} == differing(await asked(folder, given, clock), await asked(other, given, clock))
        check_ledger(other / "ledger.db")


def _without_archive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Archived, "events", lambda *_: [])


def _with_what_is_said_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(current_tokens, "_SELECT", current_tokens._SELECT.replace("coalesce(e.body, a.said)", "e.body"))


def _with_one_version_too_few(patch: pytest.MonkeyPatch) -> None:
    def too_few(self: Archived, piece: Piece) -> list[StoredEvent]:
        return stored(self, piece)[:-1]

    stored = Archived._stored
    patch.setattr(Archived, "_stored", too_few)


def _with_another_position(patch: pytest.MonkeyPatch) -> None:
    def moved(self: Archived, piece: Piece) -> list[StoredEvent]:
        return [each._replace(position=each.position + 1) for each in stored(self, piece)]

    stored = Archived._stored
    patch.setattr(Archived, "_stored", moved)


def _without_incidents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Archived, "at_position", lambda *_: None)


TWINS = (
    _without_archive,
    _with_what_is_said_left_out,
    _with_one_version_too_few,
    _with_another_position,
    _without_incidents,
)


@only_on_sqlite  # what is broken is the same code on either store
@pytest.mark.parametrize("breaking", TWINS, ids=lambda twin: twin.__name__)
@pytest.mark.usefixtures("made_small")
async def test_a_ledger_that_reads_its_archive_wrongly_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaking: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The broken twins of the test above."""
    given, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    expected = await asked(tmp_path / "lived", given, clock)
    breaking(monkeypatch)
    try:
        found = await asked(other, given, clock)
    except Exception:
        return  # a reader that misses what it must find fails loudly too
    assert differing(expected, found)


def checked(folder: Path) -> Any:
    """What is in order, as far as two ledgers can have it in common."""
    found = msgspec.to_builtins(check_ledger(folder / "ledger.db"))
    return found if url_of(folder / "ledger.db") is None else {**found, "position": None}


@pytest.mark.usefixtures("made_small")
async def test_archiving_while_things_go_on_changes_nothing(
    tmp_path: Path, count: Callable[[int, int], int], each_store: str
) -> None:
    """I-23: a ledger that is archived again and again, to any moment, goes on like one that never is."""
    for seed in range(count(2, 40) if each_store == "sqlite" else count(1, 10)):
        one = tmp_path / f"{seed}" / "ledger"
        one.parent.mkdir()
        mine, clock = await lived(one, seed, 20)
        other = twin(one)
        given = {one: mine, other: copy.deepcopy(mine)}
        for phase in range(3):
            now = clock.now
            for folder in (one, other):
                async with reopened(folder, Clock(now), f"{seed} {phase}") as opened:
                    await past(opened, Random(f"{seed} {phase}"), 20, given[folder])
                    clock = opened.clock
            async with reopened(other, clock, f"{seed} {phase} archiver") as opened:
                days = Random(f"{seed} {phase} before").choice((0, 0, 3, 20))
                await archive(opened, clock.now + 1 - days * 86_400 * times.SECOND)
                opened.check_memory()
        assert given[one] == given[other]
        assert checked(one) == checked(other)
        assert {} == differing(await asked(one, given[one], clock), await asked(other, given[other], clock))
        check_ledger(other / "ledger.db")
        assert [] == rebuilt(other).differences


# ------------------------------------------------------------ cut anywhere


def cut_at_every_step(
    folder: Path, clock: Clock, work: Path, stride: int, way: str = "as it is"
) -> list[tuple[Path, bool]]:
    """Archive copies of a ledger, the n-th killed at the n-th thing that touches the disk, for one n in `stride`: each
    copy, and whether it was killed. The last one was not."""
    url = url_of(folder / "ledger.db")
    asked = [str(folder), str(work), str(clock.now), way, str(stride), *([] if url is None else [url])]
    process = subprocess.run(
        [sys.executable, "-m", "tests.archive_worker", *asked], capture_output=True, text=True, check=False
    )
    assert 0 == process.returncode, process.stderr
    found = []
    for line in process.stdout.splitlines():
        copy, status, copy_url = json.loads(line)
        if copy_url is not None:
            stand_for(Path(copy) / "ledger.db", copy_url)
        found.append((Path(copy), status == -signal.SIGKILL))
    return found


def taken_over(folder: Path) -> None:
    """Let a minute have passed since a process was killed that archived: then others may."""
    if url_of(folder / "ledger.db") is not None:
        assert 1 == alter(folder / "ledger.db", "UPDATE archiver SET until = '-infinity'")


def log_of(folder: Path) -> list[tuple[str, int, str]]:
    """Every event of a closed ledger, wherever it lies: stream, version, bytes."""
    with closing(readers_of(folder / "ledger.db")) as readers, readers.reader() as reads:
        names = [str(name) for (name,) in reads.select("SELECT name FROM streams ORDER BY id")]
        return [(name, each.v, each.body) for name in names for each in reads.events(name, 1, 1_000_000)]


@pytest.mark.usefixtures("made_small")
async def test_a_run_that_is_killed_anywhere_loses_nothing_and_is_finished_by_the_next(
    tmp_path: Path, count: Callable[[int, int], int], each_store: str
) -> None:
    """I-09, I-23: after SIGKILL at each step every event is there, in one place or in both; the next run leaves what an
    undisturbed one leaves."""
    _, clock = await lived(tmp_path / "lived", 21, 35)
    expected, before = log_of(tmp_path / "lived"), check_ledger(tmp_path / "lived" / "ledger.db")
    stride = count(3 if each_store == "sqlite" else 5, 1)
    copies = cut_at_every_step(tmp_path / "lived", clock, tmp_path / "cut", stride)
    *killed, (undisturbed, was_killed) = copies
    assert not was_killed
    assert len(killed) > 20 // stride
    assert all(each for _, each in killed)
    left = shape(undisturbed)
    for cut, _ in killed:
        assert before == check_ledger(cut / "ledger.db"), cut
        assert expected == log_of(cut), cut
        taken_over(cut)
        async with reopened(cut, clock, "next") as opened:
            await archive(opened)
        assert left == shape(cut), cut
        assert before == check_ledger(cut / "ledger.db"), cut
        assert not left_over(cut), cut


def left_over(folder: Path) -> bool:
    """Whether anything lies there of a segment that never became whole."""
    if url_of(folder / "ledger.db") is None:
        return (folder_of(folder / "ledger.db") / "segment.new").exists()
    unnamed = "DELETE FROM segment_pages WHERE segment NOT IN (SELECT id FROM whole_segments)"
    return alter(folder / "ledger.db", unnamed) > 0


def shape(folder: Path) -> tuple[Any, ...]:
    """What a run leaves: the events that stay, and which pieces there are."""
    with copied(folder / "ledger.db") as connection:
        return (
            connection.execute("SELECT position FROM events ORDER BY position").fetchall(),
            connection.execute("SELECT stream, from_v, to_v, head, state FROM archived ORDER BY 1, 3").fetchall(),
            connection.execute("SELECT count(*) FROM segments WHERE NOT finished").fetchall(),
        )


async def test_deleting_before_the_pieces_are_durable_is_caught(tmp_path: Path) -> None:
    """The broken twin of the test above: events leave in a transaction before the one that writes their pieces."""
    _, clock = await lived(tmp_path / "lived", 21, 35)
    expected = log_of(tmp_path / "lived")
    copies = cut_at_every_step(tmp_path / "lived", clock, tmp_path / "cut", 3, "deletes first")
    assert any(expected != log_of(cut) for cut, killed in copies if killed)


# ------------------------------------------------------------ what moves


async def test_an_ended_grant_leaves_one_row(tmp_path: Path) -> None:
    """State, reason class, last generation, hash of the last event, versions and positions, and where they lie."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        await opened.chain(first, 2)
        await opened.act("revoke", first.grant_id, reason="over")
        events = opened.grant_events(first)
        positions = [int(str(position)) for (position,) in opened.rows(_POSITIONS, f"grant:{first.grant_id}")]
        await opened.issue("bob")
        report = await archive(opened)
        assert (len(events), 1, 1, 0) == (report.events, report.pieces, report.segments, report.foreign)
        (row,) = opened.rows(
            "SELECT from_v, to_v, from_position, to_position, back, hex(head), at, state, reason, generation, withheld,"
            " said_v, said_position FROM archived"
        )
        head = opened.rows("SELECT hex(head) FROM streams WHERE name = ?", f"grant:{first.grant_id}")[0][0]
        last = events[-1]
        assert (1, last.v, positions[0], positions[-1], 0, head, last.at, "revoked", "termination", 2) == row[:10]
        assert (0, last.v, positions[-1]) == row[10:]
        assert [] == opened.rows(_POSITIONS, f"grant:{first.grant_id}")
        assert Report() == await archive(opened)


_POSITIONS = "SELECT e.position FROM events e JOIN streams s ON s.id = e.stream WHERE s.name = ? ORDER BY e.position"


async def test_a_short_grant_that_lives_stays_and_of_a_long_one_moves_what_is_old(tmp_path: Path) -> None:
    """Part of a stream moves only where the row that is left is worth it; nothing that is younger does."""
    async with open_ledger(tmp_path) as opened:
        short, long = await opened.issue("ann"), await opened.issue("bob")
        await opened.chain(short, 5)
        last = await opened.chain(long, 100)
        before = opened.clock.now
        opened.clock.pass_seconds(1)
        last = await opened.chain(last, 20)
        report = await archive(opened, before)
        moved = [event for event in opened.grant_events(long) if event.at < times.text(before)]
        assert [] == moved
        assert 200 > report.events > 150
        assert 11 == len(opened.grant_events(short))
        assert (await opened.refresh(last)).refresh_token is not None
        check_ledger(opened.path)


@pytest.mark.usefixtures("made_small")
async def test_the_last_event_of_the_log_stays(tmp_path: Path) -> None:
    """Positions go on above it: none is ever given twice, also when everything else has moved."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        await opened.act("revoke", answer.grant_id)
        last = opened.last_position()
        await archive(opened)
        assert last == opened.last_position()
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert last == opened.ledger.acknowledged_position
        await opened.issue("bob")
        assert last < opened.last_position()
        check_ledger(opened.path)


@pytest.mark.usefixtures("made_small")
async def test_what_happens_to_an_archived_grant_later_is_appended_and_archived_in_its_turn(tmp_path: Path) -> None:
    """A presentation after the end is counted in an event of its own, linked to one that lies in a segment."""
    async with open_ledger(tmp_path) as opened:
        assert opened.ledger._ticker is not None
        opened.ledger._ticker.cancel()
        answer = await opened.issue()
        await opened.act("revoke", answer.grant_id)
        await opened.issue("bob")
        await archive(opened)
        for _ in range(3):
            await opened.refused(answer)
        opened.clock.pass_seconds(61)
        await opened.ledger.afterwards.flush_presentations(opened.clock.now)
        assert ["presentations_counted"] == opened.topics(answer)
        await opened.issue("eve")
        check_ledger(opened.path)
        assert 1 == (await archive(opened)).events
        assert [] == opened.topics(answer)
        check_ledger(opened.path)
        assert [] == rebuilt(tmp_path).differences


@pytest.mark.usefixtures("made_small")
async def test_the_nonce_of_a_grant_that_an_epoch_ended_is_forgotten_with_it(tmp_path: Path) -> None:
    """Nobody shall be able to make its tokens; one that lives keeps it."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue("ann")
        lives = await opened.issue("bob")
        await opened.ledger.operators.revoke_subject(LOCAL_OPERATOR, "ann", None, None)
        opened.clock.pass_seconds(1)
        await opened.chain(lives, 6)
        await archive(opened)
        assert [(1, 0), (2, 1)] == opened.rows(
            "SELECT row_number() OVER (ORDER BY stream), nonce IS NOT NULL FROM private_grants ORDER BY stream"
        )
        opened.check_memory()


@pytest.mark.usefixtures("made_small")
async def test_erasing_a_person_works_on_what_is_archived(tmp_path: Path) -> None:
    """Private rows are in no segment: they go, and every event stays as it was hashed."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue("ann", device="Ann's phone")
        await opened.chain(answer, 3)
        await opened.act("revoke", answer.grant_id, reason="Ann has left")
        await opened.issue("bob")
        await archive(opened)
        kept = opened.store.segments
        lines = b"".join(line for name in kept.names() for block in kept.blocks(name) for line in block.lines)
        assert b"grant.issued" in lines
        for text in (b"Ann", b"ann", HOME.address.encode(), HOME.user_agent.encode()):
            assert text not in lines
        assert await opened.ledger.operators.erase(LOCAL_OPERATOR, "ann")
        assert [] == opened.rows("SELECT * FROM private_reasons WHERE event_id LIKE ?", f"grant:{answer.grant_id}/%")
        check_ledger(opened.path)
        with opened.store.reader() as reads:
            told = grant_history.history(reads, answer.grant_id, opened.clock.now, limit=100, discloses=True)
        assert told is not None
        assert all(event.disclosed is msgspec.UNSET for event in told.events)


async def test_a_history_that_does_not_hold_is_not_buried(tmp_path: Path) -> None:
    """I-14: nothing moves from where a link is broken, and a rebuild finds it as before."""
    async with open_ledger(tmp_path) as opened:
        clock = opened.clock
        answer = await opened.issue()
        await opened.chain(answer, 3)
        await opened.act("revoke", answer.grant_id)
        await opened.issue("bob")
    sql = "UPDATE events SET body = replace(body, 'openid', 'banana') WHERE v = 4 AND body LIKE '%openid%'"
    assert 1 == alter(tmp_path / "ledger.db", sql)
    async with reopened(tmp_path, clock) as opened:
        assert 4 == (await archive(opened)).events
        assert 5 == opened.grant_events(answer)[0].v
    assert not rebuilt(tmp_path).history_holds


# ------------------------------------------------------------ what is lost


async def archived_grants(folder: Path) -> tuple[str, str]:
    """A closed ledger with two grants, one of them archived; a refresh token of each."""
    async with open_ledger(folder) as opened:
        over, lives = await opened.issue("ann"), await opened.issue("bob")
        await opened.act("revoke", over.grant_id)
        await opened.chain(lives, 1)
        await archive(opened)
        assert over.refresh_token is not None
        assert lives.refresh_token is not None
        return over.refresh_token, lives.refresh_token


@only_on_sqlite
@pytest.mark.parametrize("harm", ["removed", "cut off"])
async def test_a_store_without_its_segments_is_not_served(tmp_path: Path, harm: str) -> None:
    """I-23: what was moved is nowhere else; the loss is recognised, by one line that names the file."""
    await archived_grants(tmp_path)
    (segment,) = folder_of(tmp_path / "ledger.db").iterdir()
    data = segment.read_bytes()
    if harm == "removed":
        segment.unlink()
    else:
        segment.write_bytes(data[:-1])
    with pytest.raises(LedgerError, match=f"the archive segment {segment.name} .*; put it back"):
        async with open_ledger(tmp_path, seed=2, clients=None):
            pass
    segment.write_bytes(data)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        check_ledger(opened.path)


async def test_a_damaged_block_keeps_nobody_else_from_being_served(tmp_path: Path, each_store: str) -> None:
    """Whoever asks for what lies in it is told to ask again; everyone else gets their answer. A rebuild names it."""
    over, lives = await archived_grants(tmp_path)
    if each_store == "sqlite":
        (segment,) = folder_of(tmp_path / "ledger.db").iterdir()
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)
    else:
        sql = "UPDATE segment_pages SET bytes = set_byte(bytes, 99, 255 - get_byte(bytes, 99))"
        assert 1 == alter(tmp_path / "ledger.db", sql)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        explained, refreshed = await asyncio.gather(
            opened.ledger.operators.explain(over), opened.refresh(lives), return_exceptions=True
        )
        assert isinstance(explained, Unavailable)
        assert isinstance(refreshed, TokenAnswer)
        refused = await opened.refused(over)  # its end stands in the head: no event is needed to refuse it
        assert "revoked_by_operator" == refused.refusal.value
    found = rebuilt(tmp_path)
    assert not found.history_holds
    assert {("events", "archive")} <= {(each.table, each.column) for each in found.differences}


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
async def test_a_segment_of_another_log_is_put_aside(tmp_path: Path) -> None:
    """What an older backup has not moved yet is taken over; what it never had, or has otherwise, is left alone."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    await archived_grants(tmp_path / "one")
    async with open_ledger(tmp_path / "two", seed="two") as opened:
        await opened.issue("bob")
        folder = folder_of(opened.path)
        shutil.copytree(folder_of(tmp_path / "one" / "ledger.db"), folder)
        before = opened.events()
        report = await archive(opened)
        assert (0, 0) == (report.events, report.segments)
        assert report.foreign > 0
        assert before == opened.events()
        assert all(path.name.endswith(".foreign") for path in folder.iterdir())
        check_ledger(opened.path)


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
async def test_an_older_database_takes_over_what_was_archived_since(tmp_path: Path) -> None:
    """I-23: a backup from before the run, put back beside the archive of after it, has every event in both places."""
    given, clock = await lived(tmp_path / "lived", 8)
    expected = log_of(tmp_path / "lived")
    other, report = await archived_twin(tmp_path / "lived", clock)
    shutil.copytree(folder_of(other / "ledger.db"), folder_of(tmp_path / "lived" / "ledger.db"))
    async with reopened(tmp_path / "lived", clock, "next") as opened:
        again = await archive(opened)
        assert (report.events, report.segments, 0) == (again.events, again.segments, again.foreign)
    assert expected == log_of(tmp_path / "lived")
    check_ledger(tmp_path / "lived" / "ledger.db")
    assert {} == differing(await asked(other, given, clock), await asked(tmp_path / "lived", given, clock))


# ------------------------------------------------------------ beside the work


@pytest.mark.usefixtures("made_small")
async def test_refreshes_go_on_while_a_run_moves_the_past(tmp_path: Path) -> None:
    """Bounded steps among the refreshes' own transactions; two runs at once are one after the other."""
    async with open_ledger(tmp_path) as opened:
        olds = [await opened.issue(f"old-{number}") for number in range(8)]
        for old in olds:
            await opened.chain(old, 4)
            await opened.act("revoke", old.grant_id)
        hot = await opened.issue("hot")
        before = opened.clock.now + 1
        opened.clock.pass_seconds(1)  # else what is refreshed meanwhile could move too, and would be run after for ever
        running = [asyncio.create_task(archive(opened, before)) for _ in range(2)]
        refreshed = 0
        while not all(task.done() for task in running):
            hot = await opened.refresh(hot)
            refreshed += 1
        reports = [await task for task in running]
        assert refreshed > 10
        assert sum(report.events for report in reports) >= 8 * 10
        check_ledger(opened.path)
        opened.check_memory()


@pytest.mark.usefixtures("made_small")
async def test_a_run_that_is_broken_off_is_finished_by_the_next(tmp_path: Path) -> None:
    """A command that is interrupted, a server that stops: whatever moved stays moved."""
    _, clock = await lived(tmp_path / "lived", 8)
    expected = log_of(tmp_path / "lived")
    async with reopened(tmp_path / "lived", clock) as opened:
        for passes in range(0, 60, 3):
            task = asyncio.create_task(archive(opened))
            for _ in range(passes):
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await archive(opened)
        assert Report() == await archive(opened)
    assert expected == log_of(tmp_path / "lived")
    check_ledger(tmp_path / "lived" / "ledger.db")


async def test_a_refresh_takes_at_most_300_bytes_in_the_archive(tmp_path: Path) -> None:
    """What the archive is for: a quarter of the JSON, the issuances and ends included."""
    async with open_ledger(tmp_path) as opened:
        chance, refreshes = Random(7), 0
        grants = [await opened.issue(f"person-{number}") for number in range(40)]
        for _ in range(12):
            for number, grant in enumerate(grants):
                opened.clock.pass_seconds(chance.random() * 1800)
                source = Source(f"198.51.100.{number}", chance.choice(("app/1", "app/2")))
                grants[number] = await opened.refresh(grant, source=source)
                refreshes += 1
        for grant in grants:
            await opened.act("revoke", grant.grant_id)
        await opened.issue("later")
        report = await archive(opened)
        assert report.events >= 2 * refreshes
        assert 300 >= report.bytes / refreshes
