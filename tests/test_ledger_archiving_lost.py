"""Segments that are missing, damaged or of another log, and databases that are older than theirs (I-23)."""

import asyncio
import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ledger import movable, segments
from ledger.answers import TokenAnswer
from ledger.archiving import Archiving
from ledger.recorders.errors import ArchiveDamaged
from ledger.refusals import LedgerError, Unavailable
from ledger.segments import folder_of
from tests.archived_twins import archived_twin, asked, lived, log_of, rebuilt
from tests.archives import archive, differing, reopened, twin
from tests.engines import alter, only_on_sqlite
from tests.ledger_check import check_ledger
from tests.ledgers import SECURITY, START, client, open_ledger
from tests.sign_ins import app, exchanged, sign_in

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


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


@only_on_sqlite
async def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path) -> None:
    """As where another user has archived while no server ran. Root may look into any, so here it is a file."""
    await archived_grants(tmp_path)
    folder = folder_of(tmp_path / "ledger.db")
    folder.rename(tmp_path / "elsewhere")
    folder.touch()
    with pytest.raises(LedgerError, match=f"{folder}: cannot be looked into: Not a directory"):
        async with open_ledger(tmp_path, seed=2, clients=None):
            pass


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


@pytest.mark.parametrize("harm", ["damaged", "deleted", "altered"])
@pytest.mark.parametrize("whose", ["client", "person"])
async def test_an_end_of_all_that_cannot_be_read_keeps_nobody_else_from_being_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, harm: str
) -> None:
    """Who presents a token of a grant that it ended is told to ask again, whoever stands in the same batch is served:
    how a grant ended is told by its client's or person's events, and these have moved, or are not as recorded."""
    monkeypatch.setattr(movable, "PART_EVENTS_MIN", 1)
    async with open_ledger(tmp_path, clients=(client(), client("other"))) as opened:
        over, lives = await opened.issue("ann"), await opened.issue("bob", client_id="other")
        operators = opened.ledger.operators
        if whose == "client":
            await operators.revoke_client(SECURITY, "www", None, None)
        else:
            await operators.revoke_subject(SECURITY, "ann", None, None)
        await opened.issue("eve")
        if harm == "damaged":
            await archive(opened)
            (segment,) = opened.store.segments.names()
    if harm == "damaged":
        damage(tmp_path, segment)
    else:
        change = "DELETE FROM events" if harm == "deleted" else "UPDATE events SET body = '{' || body"
        assert 1 == alter(tmp_path / "ledger.db", f'{change} WHERE body LIKE \'%"topic":"{TOPICS[whose]}%\'')
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        answers = await asyncio.gather(
            opened.refresh(over), opened.refresh(lives, client_id="other"), return_exceptions=True
        )
        assert [Unavailable, TokenAnswer] == [type(answer) for answer in answers]


TOPICS = {"client": "client.revoked", "person": "subject.revoked"}


@pytest.mark.parametrize("harm", ["damaged", "deleted", "altered"])
async def test_an_older_token_of_which_reuse_cannot_be_told_is_one_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    """I-05: no event of a reuse can be recorded without its first redeemer. Somebody is told, once a grant, without the
    token; what reads whole again is judged again, and the current token works all along."""
    monkeypatch.setattr(movable, "PART_EVENTS_MIN", 4)
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        second = await opened.refresh(first)
        current = await opened.chain(second, 12, every_seconds=100)
        if harm == "damaged":
            await archive(opened)
            (segment,) = opened.store.segments.names()
        clock = opened.clock
    ledger, redeemed = tmp_path / "ledger.db", "body LIKE '%\"generation\":1,%grant.token_redeemed%'"
    if harm == "damaged":
        damage(tmp_path, segment)
    elif harm == "altered":
        assert 1 == alter(ledger, f"UPDATE events SET body = '{{' || body WHERE {redeemed}")
    else:
        assert 1 == alter(ledger, f"DELETE FROM events WHERE {redeemed}")
    async with open_ledger(tmp_path, seed=2, clients=None, clock=clock) as opened:
        with caplog.at_level(logging.WARNING, "ledger"):
            for token in (second, second, second):
                with pytest.raises(Unavailable):
                    await opened.refresh(token)
        (told,) = caplog.records
        assert ("reuse_not_judged", logging.ERROR) == (told.message, told.levelno)
        fields = told.fields  # type: ignore[attr-defined]  # ours
        assert {"grant": first.grant_id, "generation": 1, "problem": fields["problem"]} == fields
        assert fields["problem"]
        assert (second.refresh_token or "")[4:] not in str(fields)
        await opened.refresh(current)
        if harm == "altered":
            assert 1 == alter(ledger, "UPDATE events SET body = substr(body, 2) WHERE body LIKE '{{%'")
            assert "reuse_detected" == (await opened.refused(second)).refusal.value


async def test_a_code_of_which_a_second_use_cannot_be_told_is_one_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 6749 4.1.2: whose code it was stands in the grant's first event. Once it has ended nobody need be told."""
    monkeypatch.setattr(movable, "PART_EVENTS_MIN", 4)
    async with open_ledger(tmp_path, clients=(app(),)) as opened:
        code = await sign_in(opened)
        bought = await exchanged(opened, code)
        for _ in range(8):
            opened.clock.pass_seconds(100)
            bought = await opened.refresh(bought, client_id="app")
        await archive(opened)
        (segment,) = opened.store.segments.names()
        clock = opened.clock
    damage(tmp_path, segment)
    async with open_ledger(tmp_path, seed=2, clients=None, clock=clock) as opened:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await exchanged(opened, code)
        assert [("reuse_not_judged", logging.ERROR)] == [(each.message, each.levelno) for each in caplog.records]
        await opened.act("revoke", bought.grant_id)
        opened.ledger.desk.unjudged.clear()
        with pytest.raises(Unavailable):
            await exchanged(opened, code)
        assert 1 == len(caplog.records)


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


@only_on_sqlite
async def test_a_segment_that_is_found_is_on_the_disk_before_events_leave_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-09: whoever wrote it was killed before its name was on the disk, or somebody has put a copy here. Else a power
    cut takes it, and with it the events that have left the database."""
    synced, real, switch = list[str](), os.fsync, Archiving._switch

    def killed(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".archive"):
            raise OSError(errno.EIO, "as good as killed")
        real(descriptor)

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    async def switched(self: Archiving, *step: Any) -> None:
        assert set(synced) >= {str(folder), *map(str, folder.iterdir())}
        await switch(self, *step)

    async with open_ledger(tmp_path) as opened:
        over, _ = await opened.issue("ann"), await opened.issue("bob")
        await opened.act("revoke", over.grant_id)
        await opened.issue("eve")
        folder = folder_of(opened.path)
        folder.mkdir()
        monkeypatch.setattr(os, "fsync", killed)
        with pytest.raises(OSError, match="killed"):
            await archive(opened)
        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr(Archiving, "_switch", switched)
        assert 1 == (await archive(opened)).segments


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
async def test_a_segment_of_a_number_that_is_taken_is_put_aside(tmp_path: Path) -> None:
    """I-23: a backup was put back without what was archived since, has archived again under the same numbers, and then
    the files of before are put beside: pieces that name a number would lead to the other one's lines."""
    _, clock = await lived(tmp_path / "lived", 8)
    expected = log_of(tmp_path / "lived")
    other, _ = await archived_twin(tmp_path / "lived", clock)
    async with reopened(tmp_path / "lived", clock, "next") as opened:
        assert (await archive(opened, (clock.now + START) // 2)).segments
        folder = folder_of(opened.path)
        own = {path.name for path in folder.iterdir()}
        before = [path for path in folder_of(other / "ledger.db").iterdir() if path.name not in own]
        taken = {f"{path.name}.foreign" for path in before if path.name[:7] in {name[:7] for name in own}}
        assert taken, "the same numbers are there twice"
        for path in before:
            shutil.copy(path, folder)
        await archive(opened)
        assert taken <= {path.name for path in folder.iterdir()}
    assert expected == log_of(tmp_path / "lived")
    check_ledger(tmp_path / "lived" / "ledger.db")
    assert rebuilt(tmp_path / "lived").history_holds


@pytest.mark.usefixtures("made_small")
async def test_nothing_moves_over_an_event_that_was_altered_since_it_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-14: a run was killed between the copy and the first step. Nothing behind that event gives way to a line,
    so a rebuild finds it as before."""

    async def killed(*_: object) -> None:
        raise OSError(errno.EIO, "as good as killed")

    async with open_ledger(tmp_path) as opened:
        over = await opened.issue("ann")
        await opened.chain(over, 6)
        await opened.act("revoke", over.grant_id)
        await opened.issue("bob")
        with monkeypatch.context() as patched:
            patched.setattr(Archiving, "_move", killed)
            with pytest.raises(OSError, match="killed"):
                await archive(opened)
        clock = opened.clock
    sql = "UPDATE events SET body = replace(body, 'openid', 'banana') WHERE v = 4 AND body LIKE '%openid%'"
    assert 1 == alter(tmp_path / "ledger.db", sql)
    async with reopened(tmp_path, clock) as opened:
        await archive(opened)
        assert [] == opened.rows("SELECT to_v FROM archived WHERE to_v > 4"), "the next event tells that it was altered"
    assert not rebuilt(tmp_path).history_holds


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
async def test_another_history_of_the_same_grant_is_left_alone(tmp_path: Path) -> None:
    """I-23: a backup was put back, the grant has gone on otherwise, and the segments of before lie beside it."""
    (tmp_path / "lived").mkdir()
    async with open_ledger(tmp_path / "lived") as opened:
        answer = await opened.issue("ann")
        clock = opened.clock
    other = twin(tmp_path / "lived")
    for folder, seed in ((other, "before"), (tmp_path / "lived", "since")):
        async with reopened(folder, clock, seed) as opened:
            await opened.chain(answer, 2)
            await opened.act("revoke", answer.grant_id)
            await opened.issue("bob")
            if folder == other:
                assert (await archive(opened)).events
    shutil.copytree(folder_of(other / "ledger.db"), folder_of(tmp_path / "lived" / "ledger.db"))
    expected = log_of(tmp_path / "lived")
    async with reopened(tmp_path / "lived", clock, "next") as opened:
        await archive(opened)
    assert expected == log_of(tmp_path / "lived")
    check_ledger(tmp_path / "lived" / "ledger.db")
    assert rebuilt(tmp_path / "lived").history_holds


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
async def test_the_last_event_of_an_older_database_stays(tmp_path: Path) -> None:
    """Whoever does without the head file has put a backup back beside the archive of after it: from its last event
    positions go on, so that none is given twice."""
    (tmp_path / "lived").mkdir()
    async with open_ledger(tmp_path / "lived") as opened:
        answer = await opened.issue("ann")
        await opened.act("revoke", answer.grant_id)
        clock, last = opened.clock, opened.last_position()
    other = twin(tmp_path / "lived")
    async with reopened(other, clock) as opened:
        await opened.issue("bob")
        assert (await archive(opened)).events
    shutil.copytree(folder_of(other / "ledger.db"), folder_of(tmp_path / "lived" / "ledger.db"))
    async with reopened(tmp_path / "lived", clock, "next") as opened:
        await archive(opened)
        assert last == opened.last_position()
        await opened.issue("eve")
    check_ledger(tmp_path / "lived" / "ledger.db")


@pytest.mark.usefixtures("made_small")
async def test_a_part_of_a_copy_is_put_aside_and_the_run_goes_on(tmp_path: Path, each_store: str) -> None:
    """I-24: a file with a segment's name and other bytes, of which the store knows nothing; no event is in it alone.
    One that pieces lie in is never put aside."""
    async with open_ledger(tmp_path) as opened:
        over, lives = await opened.issue("ann"), await opened.issue("bob")
        await opened.act("revoke", over.grant_id)
        await opened.chain(lives, 1)
        name = f"000004-{'ab' * 32}.jsonl.gz"
        if each_store == "sqlite":
            folder_of(opened.path).mkdir()
            (folder_of(opened.path) / name).write_bytes(b"part of a copy")
        else:
            alter(opened.path, f"INSERT INTO whole_segments VALUES (4, '{name}', 14)")
        assert 2 == (await archive(opened)).events
        (segment,) = opened.store.segments.names()
        assert segment.startswith("000005-")
        check_ledger(opened.path)
    assert 1 == alter(tmp_path / "ledger.db", "UPDATE segments SET finished = 0")  # as of a run that was killed
    damage(tmp_path, segment)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        with pytest.raises(ArchiveDamaged, match=segment):
            await archive(opened)
        assert [segment] == opened.store.segments.names()


def damage(folder: Path, segment: str) -> None:
    """Alter a byte in the middle of a segment, or of its first page."""
    path = folder_of(folder / "ledger.db") / segment
    if path.exists():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        sql = "UPDATE segment_pages SET bytes = set_byte(bytes, 99, 255 - get_byte(bytes, 99))"
        assert 0 < alter(folder / "ledger.db", sql)


@only_on_sqlite
@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("fails", ["write", "fsync"])
@pytest.mark.parametrize("broken", [False, True])
async def test_where_the_disk_is_full_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, *, broken: bool
) -> None:
    """It would keep the room that is wanted, until a next run has more. The twin leaves it."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, clock = await lived(tmp_path / "lived", 8)
    async with reopened(tmp_path / "lived", clock) as opened:
        unfinished = folder_of(opened.path) / segments.UNFINISHED
        unfinished.parent.mkdir()
        with monkeypatch.context() as patched:
            if fails == "write":
                patched.setattr(segments._File, "write", full)
            else:
                patched.setattr(os, "fsync", full)
            if broken:
                patched.setattr(segments._File, "abandon", lambda self: self._file.close())
            with pytest.raises(OSError, match="No space left"):
                await archive(opened)
        assert broken == unfinished.exists()
        assert (await archive(opened)).events > 0
        assert not unfinished.exists()
