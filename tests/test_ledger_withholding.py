"""Past the archive's own time lines become their hashes, and whatever can still be told is told as before (I-23)."""

import contextlib
import os
import shutil
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger import movable, segments
from ledger.recorders.errors import ArchiveDamaged
from ledger.recorders.postgres import PostgresStore
from ledger.refusals import LedgerError
from ledger.segments import folder_of
from ledger.withholding import Withholding
from projections import INLINE, reuse_incidents
from projections.replay import Replay
from tests.archived_twins import archived_twin, compared, cut_at_every_step, lived, rebuilt, taken_over
from tests.archives import Given, answers, archive, differing, presented, reopened, twin
from tests.engines import alter, archive_folder, only_on_sqlite
from tests.ledger_check import check_ledger, copied
from tests.ledgers import ELSEWHERE, Clock, Opened, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]

FORGOTTEN_FOR_EVER = ("history", "incidents", "explain at1_", "explain ey", "explain ac1_")
"""Questions whose answers rest on events that were withheld."""


async def withheld_twin(folder: Path, clock: Clock) -> tuple[Path, int]:
    """A copy of a closed ledger, archived and then withheld; how many events that were."""
    other, _ = await archived_twin(folder, clock)
    async with reopened(other, clock, "withholder") as opened:
        report = await archive(opened, withhold_before=opened.clock.now + 1)
        assert (0, 0) == (report.events, report.foreign)
    return other, report.withheld


def lines_of(folder: Path) -> list[bytes]:
    """Every line of every segment that the store names, in order of pieces, read by no code of the ledger's."""
    found = []
    with copied(folder / "ledger.db") as connection, archive_folder(folder / "ledger.db") as segments_folder:
        for name, at_byte, line, count in connection.execute(
            "SELECT g.name, a.at_byte, a.line, a.to_v - a.from_v + 1"
            " FROM archived a JOIN segments g ON g.id = a.segment ORDER BY a.stream, a.to_v"
        ):
            data = (segments_folder / name).read_bytes()[at_byte:]
            found += zlib.decompressobj(31).decompress(data).splitlines()[line : line + count]
    return found


@pytest.mark.usefixtures("made_small")
async def test_withheld_lines_are_the_hashes_of_what_they_were_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    """RFC 6962 2.1: an auditor who kept the leaf hashes finds every one of them."""
    _, clock = await lived(tmp_path / "lived", 8)
    archived, _ = await archived_twin(tmp_path / "lived", clock)
    withheld, count = await withheld_twin(tmp_path / "lived", clock)
    gone = 0
    for line, now in zip(lines_of(archived), lines_of(withheld), strict=True):
        gone += line != now
        assert now in (line, b"#" + b64encode(sha256(b"\0" + line).digest()))
    assert count == gone > 30
    with copied(withheld / "ledger.db") as connection:
        assert connection.execute("SELECT sum(to_v - from_v + 1) FROM archived WHERE withheld").fetchall() == [(count,)]
    check_ledger(withheld / "ledger.db")


@pytest.mark.usefixtures("made_small")
async def test_a_life_in_two_segments_of_which_one_is_withheld(tmp_path: Path) -> None:
    """Its row says what the grant had come to when the piece moved, which was more than the piece tells."""
    async with open_ledger(tmp_path) as opened:
        grant = await opened.chain(await opened.issue(), 6)
        opened.clock.pass_seconds(1)
        before = opened.clock.now
        grant = await opened.chain(grant, 4)
        assert 13 == (await archive(opened, before)).events
        await opened.act("revoke", grant.grant_id)
        opened.clock.pass_seconds(10)
        due = opened.clock.now
        for _ in range(3):
            await opened.act("revoke", (await opened.issue()).grant_id)
        await opened.issue()
        opened.clock.pass_seconds(1)
        assert 13 == (await archive(opened, withhold_before=due)).withheld
        assert "revoked_by_operator" == (await opened.refused(grant)).refusal.value
        check_ledger(opened.path)
    found = rebuilt(tmp_path)
    assert ([], [f"grant:{grant.grant_id}/13"]) == (found.differences, found.withheld)


@pytest.mark.usefixtures("made_small")
async def test_what_can_be_told_without_the_events_is_told_as_before(tmp_path: Path) -> None:
    """I-23: standing, ends and lists; explanations, introspection and refusals of refresh tokens; the rest says that it
    is withheld, and nothing else."""
    given, clock = await lived(tmp_path / "lived", 8)
    other, count = await withheld_twin(tmp_path / "lived", clock)
    before, after = await asked(tmp_path / "lived", given, clock), await asked(other, given, clock)
    assert {} == {
        question: both
        for question, both in differing(before, after).items()
        if not question.partition(" ")[2].startswith(FORGOTTEN_FOR_EVER)
    }
    hidden = 0
    for question in before[0]:
        if question.startswith("history"):
            events, now = told(before[0][question]), told(after[0][question])
            assert events.keys() == now.keys()
            for event_id, event in events.items():
                no_more = {**{name: event[name] for name in ("event_id", "stream", "v")}, "withheld": True}
                assert now[event_id] in (event, no_more)
                hidden += now[event_id] != event
    assert hidden >= count


def told(pages: Any) -> dict[str, Any]:
    """The events of some pages of a history. An epoch's place among withheld ones nobody can tell."""
    return {event["event_id"]: event for page in pages for event in page["events"]}


async def asked(folder: Path, given: Given, clock: Clock) -> list[Any]:
    """As for what is archived, but for moments that nobody can tell of, and codes."""
    given = Given(given.grants, given.refresh, given.access, [])
    async with reopened(folder, clock) as opened:
        last = opened.ledger.acknowledged_position
        before = await answers(opened, given, moments=False)
        outcomes = await presented(opened, given, Random("order"))
        after = await answers(opened, given, moments=False)
    return compared(folder, last, [before, outcomes, after])


async def archived_again(opened: Opened) -> int:
    """Archive what has happened, beside grants that end after it; the moment between. Their ends keep what is archived
    with them from being withheld."""
    opened.clock.pass_seconds(60)
    between = opened.clock.now
    living = [await opened.issue(f"lives {number}") for number in range(4)]
    opened.clock.pass_seconds(60)
    for each in living:
        await opened.act("revoke", each.grant_id)
    await opened.issue("last of the log again")
    opened.clock.pass_seconds(1)
    await archive(opened)
    return between


async def test_an_incident_of_a_partly_withheld_grant_is_told_with_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-23: as before, but for the access tokens that nobody can list any more; and it keeps no other from being told.
    Of a retry whose redemption is withheld nobody can say whether it was one."""
    monkeypatch.setattr(movable, "PART_EVENTS_MIN", 4)
    async with open_ledger(tmp_path) as opened:
        forked, late, early = [await opened.issue(person) for person in ("ann", "bob", "eve")]
        ahead = await opened.chain(forked, 3)
        retried, known = await opened.chain(late, 3), await opened.chain(early, 3)
        await opened.refresh(retried)
        await opened.issue("last of the log")
        await archive(opened)
        await opened.refresh(known)
        opened.clock.pass_seconds(30)
        await opened.refresh(ahead)
        for each in (retried, known):
            await opened.refresh(each, source=ELSEWHERE)
        for each in (forked, late, early):
            await opened.refused(each, source=ELSEWHERE)
        between = await archived_again(opened)
        before = incidents_of(opened)
        assert (await archive(opened, withhold_before=between)).withheld > 0
        assert [(0,), (1,)] == opened.rows("SELECT DISTINCT withheld FROM archived ORDER BY withheld")
        check_ledger(opened.path)
        after = incidents_of(opened)
        assert ["suspect_retry", "suspect_retry", "fork", "fork", "fork"] == [each["label"] for each in before.values()]
        (gone,) = before.keys() - after.keys()
        assert ("suspect_retry", late.grant_id) == (before[gone]["label"], before[gone]["grant_id"])
        for event_id, incident in after.items():
            was = before[event_id]
            left = incident["obtained"]
            assert left == was["obtained"][len(was["obtained"]) - len(left) :]
            assert incident == {**was, "obtained": left, "obtained_more": True}
        left_of = {each["subject"]: (len(each["obtained"]), len(before[id]["obtained"])) for id, each in after.items()}
        assert {"ann": (1, 4), "bob": (0, 4), "eve": (1, 4)} == left_of


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("from_v = from_v + 1", "the archive has a gap before version 2"),
        ("head = (SELECT head FROM streams WHERE name = 'keys')", "a broken link"),
        ("to_position = to_position + 1", "the way back is broken"),
    ],
)
async def test_what_is_left_of_a_withheld_piece_is_held_against_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, problem: str
) -> None:
    """I-14: of a grant whose later events are there the check finds that a withheld one was dropped or altered."""
    monkeypatch.setattr(movable, "PART_EVENTS_MIN", 4)
    async with open_ledger(tmp_path) as opened:
        stolen = await opened.issue()
        current = await opened.chain(stolen, 3)
        await opened.issue("last of the log")
        await archive(opened)
        await opened.refresh(current)
        await opened.refused(stolen, source=ELSEWHERE)
        between = await archived_again(opened)
        await archive(opened, withhold_before=between)
        pieces = opened.rows(
            "SELECT a.withheld FROM archived a JOIN streams s ON s.id = a.stream WHERE s.name = ? ORDER BY a.to_v",
            f"grant:{stolen.grant_id}",
        )
        assert [(1,), (0,)] == pieces
        check_ledger(opened.path)
        assert 1 == alter(opened.path, f"UPDATE archived SET {change} WHERE withheld = 1")
        with pytest.raises(AssertionError, match=problem):
            check_ledger(opened.path)


async def test_a_page_of_incidents_looks_at_a_bounded_number_of_withheld_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short page, and a cursor that leads on past them, to the end also where nothing else comes."""
    monkeypatch.setattr(reuse_incidents, "SCANNED_MAX", 3)
    async with open_ledger(tmp_path) as opened:

        async def forked(person: str) -> str:
            first = await opened.issue(person)
            await opened.chain(first, 2)
            await opened.refused(first, source=ELSEWHERE)
            return first.grant_id

        for number in range(7):
            await forked(f"person {number}")
        opened.clock.pass_seconds(1)
        await opened.issue("last of the log")
        rows = [position for (position,) in opened.rows("SELECT position FROM reuse_incidents_v1 ORDER BY position")]
        await archive(opened)
        assert (await archive(opened, withhold_before=opened.clock.now + 1)).withheld > 0

        def page(after: int) -> tuple[list[str], str, bool]:
            with opened.store.reader() as reads:
                found = reuse_incidents.incidents(reads, opened.clock.now, after=after, limit=1)
            return [each.grant_id for each in found.incidents], found.cursor, found.next_cursor == found.cursor

        assert ([], str(rows[2]), True) == page(0)
        assert ([], str(rows[5]), True) == page(rows[2])
        assert ([], str(rows[6]), False) == page(rows[5])
        grant_id = await forked("somebody")
        (last,) = opened.rows("SELECT max(position) FROM reuse_incidents_v1")[0]
        assert ([grant_id], str(last), False) == page(rows[5]) == page(rows[6])


def incidents_of(opened: Opened) -> dict[str, Any]:
    """All incidents by the ids of their events, in the order of the log."""
    with opened.store.reader() as reads:
        page = reuse_incidents.incidents(reads, opened.clock.now, limit=100)
    return {each["event_id"]: each for each in msgspec.to_builtins(page)["incidents"]}


@pytest.mark.usefixtures("made_small")
async def test_a_rebuild_names_what_it_cannot_replay(tmp_path: Path) -> None:
    """I-13: what is withheld is compared with nothing, and said; all else is as replayed."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await withheld_twin(tmp_path / "lived", clock)
    found = rebuilt(other)
    with copied(other / "ledger.db") as connection:
        rows = connection.execute(
            "SELECT s.name || '/' || max(a.to_v) FROM archived a JOIN streams s ON s.id = a.stream"
            " WHERE a.withheld GROUP BY s.id ORDER BY s.id"
        ).fetchall()
    assert [name for (name,) in rows] == found.withheld
    assert (len(rows), [], True) == (found.withheld_count, found.differences, found.history_holds)
    alter(other / "ledger.db", "UPDATE current_tokens_v1 SET scope = 'admin'")
    with pytest.raises(AssertionError, match="something to heal"):
        rebuilt(other)


@pytest.mark.usefixtures("made_small")
async def test_withholding_that_is_killed_anywhere_is_finished_by_the_next_run(
    tmp_path: Path, count: Callable[[int, int], int], each_store: str
) -> None:
    """I-23: after SIGKILL at each step every piece is there, withheld or not; the next run leaves what an undisturbed
    one leaves, and no file that nothing names."""
    _, clock = await lived(tmp_path / "lived", 21, 35)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    full, stride = lines_of(other), count(3 if each_store == "sqlite" else 5, 1)
    *killed, (undisturbed, was_killed) = cut_at_every_step(other, clock, tmp_path / "cut", stride, "withholds")
    assert not was_killed
    assert len(killed) > 12 // stride
    expected = lines_of(undisturbed)
    for cut, _ in killed:
        for line, now in zip(full, lines_of(cut), strict=True):
            assert now in (line, segments.withheld(line))
        taken_over(cut)
        for _ in range(2):  # the file of what was replaced goes a run later
            async with reopened(cut, clock, "next") as opened:
                await archive(opened, withhold_before=opened.clock.now + 1)
        assert expected == lines_of(cut), cut
        with copied(cut / "ledger.db") as connection, archive_folder(cut / "ledger.db") as folder:
            named = {name for (name,) in connection.execute("SELECT name FROM segments")}
            assert named == {path.name for path in folder.iterdir() if segments.digest_of(path.name)}, cut
        assert [] == rebuilt(cut).differences


@pytest.mark.usefixtures("made_small")
async def test_a_segment_that_differs_from_what_it_is_to_replace_never_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: one whose writer garbles a line is found when it is read back, and nothing names it."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    before = lines_of(other)
    write = segments.SegmentWriter.add_block

    def garbling(self: segments.SegmentWriter, lines: list[bytes]) -> None:
        write(self, [*lines[:-1], lines[-1].replace(b"0", b"1", 1)])

    monkeypatch.setattr(segments.SegmentWriter, "add_block", garbling)
    async with reopened(other, clock, "withholder") as opened:
        with pytest.raises(ArchiveDamaged, match="not those of"):
            await archive(opened, withhold_before=opened.clock.now + 1)
    assert before == lines_of(other)


def damage_first_segment(folder: Path, each_store: str) -> None:
    """Flip a bit in the first segment of a closed ledger."""
    if each_store == "sqlite":
        first = min(folder_of(folder / "ledger.db").iterdir())
        data = bytearray(first.read_bytes())
        data[40] ^= 1
        first.write_bytes(data)
    else:
        sql = "UPDATE segment_pages SET bytes = set_bit(bytes, 320, 1 - get_bit(bytes, 320))"
        assert 1 == alter(folder / "ledger.db", f"{sql} WHERE segment = 1 AND at_byte = 0")


@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("broken", [False, True])
async def test_one_damaged_segment_keeps_no_other_from_being_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each_store: str, *, broken: bool
) -> None:
    """It stays as it is, every run says so at its end, and a line in the log names it. The twin breaks off there."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    damage_first_segment(other, each_store)
    if broken:
        monkeypatch.setattr(Withholding, "_noted", _raise)
    async with reopened(other, clock, "withholder") as opened:
        first = opened.store.segments.names()[0]
        for _ in range(2):
            with pytest.raises(ArchiveDamaged, match=first):
                await archive(opened, withhold_before=opened.clock.now + 1)
        assert broken == ([] == opened.rows("SELECT 1 FROM archived WHERE withheld"))
        assert first in opened.store.segments.names()


def _raise(self: Withholding, error: ArchiveDamaged) -> None:
    raise error


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("broken", [False, True])
async def test_what_was_altered_is_not_hashed_as_if_it_had_been_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """I-14: lines that are not those of the segment's name, of whatever length. The twin makes an alteration official:
    its hashes stand in a segment whose name is right."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    first = min(folder_of(other / "ledger.db").iterdir())
    data = first.read_bytes()
    async with reopened(other, clock, "withholder") as opened:
        kept = opened.sqlite.segments
        if broken:
            monkeypatch.setattr(kept, "check", lambda name: None)
        *_, (last, lines) = [block for block in kept.blocks(first.name) if len(block.lines) > 1]
        changed = [*(line.replace(b"-12-", b"-11-") for line in lines[:-1]), lines[-1]]
        assert changed != lines
        first.write_bytes(data[:last] + packed(changed))
        with contextlib.nullcontext() if broken else pytest.raises(ArchiveDamaged, match="named by"):
            await archive(opened, withhold_before=opened.clock.now + 1)
        if broken:
            return
        _, end = segments.block_at(lambda at: data[at : at + 100_000], first.name, 0)
        first.write_bytes(data[:end])
        with pytest.raises(ArchiveDamaged, match="named by"):
            await archive(opened, withhold_before=opened.clock.now + 1)
        first.write_bytes(data)
        await archive(opened, withhold_before=opened.clock.now + 1)
    assert rebuilt(other).history_holds


def packed(lines: list[bytes]) -> bytes:
    """Lines as a block."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(b"".join(line + b"\n" for line in lines)) + packer.flush()


@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("altered", ["line = line + 1", "at_byte = at_byte + 1", "head = said"])
async def test_a_row_that_leads_to_other_lines_withholds_none_of_them(tmp_path: Path, altered: str) -> None:
    """They may be a living grant's."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    copy = twin(other)
    if altered == "head = said":
        altered = "head = (SELECT min(b.head) FROM archived b WHERE b.stream <> archived.stream)"
    assert alter(other / "ledger.db", f"UPDATE archived SET {altered}") > 0
    async with reopened(other, clock, "withholder") as opened:
        with contextlib.suppress(ArchiveDamaged):
            await archive(opened, withhold_before=opened.clock.now + 1)
        assert [] == opened.rows("SELECT 1 FROM archived WHERE withheld")
    async with reopened(copy, clock, "withholder") as opened:
        await archive(opened, withhold_before=opened.clock.now + 1)
        assert [] != opened.rows("SELECT 1 FROM archived WHERE withheld")


def blocks_in_memory(opened: Opened) -> segments.BlocksInMemory:
    """What a reader would find without looking where segments lie."""
    if isinstance(opened.store, PostgresStore):
        return opened.store._readers.in_memory
    return opened.sqlite.segments.in_memory


@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("broken", [False, True])
async def test_a_replaced_segment_is_there_for_whoever_looks_at_an_older_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each_store: str, *, broken: bool
) -> None:
    """A rebuild that takes longer than two runs, for one. The twin removes files a run later, and it raises a false
    alarm; what PostgreSQL shows of a moment stays as it was."""
    if broken:
        monkeypatch.setattr(segments, "KEPT_SECONDS", 0)
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    async with reopened(other, clock, "withholder") as opened:
        kept = opened.store.segments
        before = set(kept.names())
        with opened.store.reader() as reads, contextlib.closing(Replay(INLINE)) as replay:
            reads.select("SELECT 1 FROM streams")
            for _ in range(2):
                await archive(opened, withhold_before=opened.clock.now + 1)
            blocks_in_memory(opened)._kept.clear()
            for _ in (*replay.check_segments(reads), *replay.follow(reads)):
                pass
            assert (broken and each_store == "sqlite") == bool(replay.broken)
        assert before - set(kept.names()) if broken or each_store == "postgres" else before < set(kept.names())
    async with reopened(other, clock, "once more"):
        pass  # all that the store names is there


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("broken", [False, True])
async def test_a_backup_finds_what_its_database_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """As the guide has it: the database, and the folder after it. What was replaced goes when its days are over; the
    twin's goes at once, and its backup is not served."""
    if broken:
        monkeypatch.setattr(segments, "KEPT_SECONDS", 0)
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    backup, folder = tmp_path / "backup", folder_of(other / "ledger.db")
    shutil.copytree(other, backup, ignore=shutil.ignore_patterns("*.archive"))
    for segment in folder.iterdir():  # it is not since they were made that the days count
        os.utime(segment, (0, 0))
    async with reopened(other, clock, "withholder") as opened:
        for _ in range(2):
            await archive(opened, withhold_before=opened.clock.now + 1)
        shutil.copytree(folder, folder_of(backup / "ledger.db"))
        if not broken:
            for segment in folder.iterdir():
                os.utime(segment, (time.time() - segments.KEPT_SECONDS,) * 2)
            await archive(opened)
        names = opened.store.segments.names()
        assert [(name,) for name in names] == opened.rows("SELECT name FROM segments ORDER BY id")
        assert [] == opened.rows("SELECT 1 FROM segments WHERE finished = 2")
    with pytest.raises(LedgerError, match="missing") if broken else contextlib.nullcontext():
        async with reopened(backup, clock, "restored"):
            pass
    assert broken or [] == rebuilt(backup).differences
