"""The `eventsourcing` library reads a ledger's store as its own: repository, notification log; and writes nothing."""

import asyncio
import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.persistence import (
    MapperDeserialisationError,
    Notification,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from ledger.events import TokenRotated
from ledger.recorders.library import FoldedGrant, LedgerLog, LedgerMapper, LedgerRecorder, Recorded, fold_grant
from ledger.recorders.sqlite import SQLiteStore
from tests.ledgers import SECURITY, Clock, Opened, open_ledger
from tests.library_logs import database_of, log_of

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- repository


async def test_the_repository_folds_a_grant_to_what_the_ledger_knows(followed: Opened) -> None:
    """The library's `Application.repository`, with a projector function on our events."""
    answer = await followed.chain(await followed.issue(), 70)
    with log_of(followed) as log:
        folded: FoldedGrant = log.repository.get(f"grant:{answer.grant_id}", projector_func=fold_grant)
        assert followed.ledger.memory.streams[f"grant:{answer.grant_id}"].aggregate == folded.grant
        assert (f"grant:{answer.grant_id}", 141) == (folded.id, folded.version)
        assert log.grant(answer.grant_id) == folded.grant
        with pytest.raises(AggregateNotFoundError):
            log.grant("0" * 32)


async def test_the_repository_goes_back_to_any_version(followed: Opened) -> None:
    """As of each version: the generation that was current then."""
    answer = await followed.chain(await followed.issue(), 40)
    with log_of(followed) as log:
        generations = [log.grant(answer.grant_id, version=v).generation for v in range(1, 82)]
        assert [(v - 1) // 2 for v in range(1, 82)] == generations


async def test_the_repositorys_cache_is_brought_up_to_date(followed: Opened) -> None:
    """What the library keeps it fast-forwards with the events that came since, and hands out copies."""
    answer = await followed.issue()
    with log_of(followed, AGGREGATE_CACHE_MAXSIZE="10") as log:
        first = log.grant(answer.grant_id)
        answer = await followed.chain(answer, 3)
        assert (0, 3) == (first.generation, log.grant(answer.grant_id).generation)
        assert log.grant(answer.grant_id) is not log.grant(answer.grant_id)


# ---------------------------------------------------------------- notification log


async def test_the_notification_log_is_the_log(followed: Opened) -> None:
    """Every event of every stream in log order: ids are positions, states the stored bytes, section by section."""
    await followed.chain(await followed.issue(), 12)
    await followed.ledger.operators.revoke_subject(SECURITY, "alice", "r", None)
    seen: list[Notification] = []
    with log_of(followed) as log:
        section_id: str | None = "1,10"
        while section_id:
            section = log.notification_log[section_id]
            seen += section.items
            section_id = section.next_id
        assert followed.last_position() == log.recorder.max_notification_id()
    rows = followed.rows(
        "SELECT e.position, s.name, e.v, e.body FROM events e JOIN streams s ON s.id = e.stream ORDER BY 1"
    )
    assert rows == [(each.id, each.originator_id, each.originator_version, each.state.decode()) for each in seen]
    assert [event.topic for event in followed.events()] == [each.topic for each in seen]


async def test_the_notification_log_is_filtered_by_our_topics(followed: Opened) -> None:
    """The topics are the events' permanent names."""
    await followed.chain(await followed.issue(), 3)
    with log_of(followed) as log:
        rotated = log.notification_log.select(None, 10, topics=["grant.token_rotated", "grant.revoked"])
        assert ["grant.token_rotated"] * 3 == [each.topic for each in rotated]
        first = [each.id for each in log.notification_log.select(rotated[0].id, 10, topics=["grant.token_rotated"])]
        after = log.notification_log.select(
            rotated[0].id, 10, topics=["grant.token_rotated"], inclusive_of_start=False, stop=rotated[1].id
        )
        assert [each.id for each in rotated] == first
        assert [rotated[1].id] == [each.id for each in after]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
async def test_a_stream_is_selected_from_either_end(followed: Opened, length: int) -> None:
    """`gt`, `lte`, `desc` and `limit` mean what they mean in the library's own recorders."""
    for _ in range(length):
        await followed.ledger.operators.record_read(SECURITY, "q")
    with log_of(followed) as log:
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


# ---------------------------------------------------------------- nothing is written


async def test_nothing_is_recorded_by_the_librarys_path(followed: Opened) -> None:
    """Finished bytes show no decision: refused in one line, nothing changed, the ledger none the wiser."""
    answer = await followed.issue()
    before = followed.rows("SELECT * FROM events"), followed.rows("SELECT * FROM streams")
    with log_of(followed) as log:
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
    assert before == (followed.rows("SELECT * FROM events"), followed.rows("SELECT * FROM streams"))
    followed.check_memory()
    await followed.refresh(answer)


async def test_stored_bytes_come_back_as_they_were(followed: Opened) -> None:
    """The mapper makes events of bytes and the same bytes of events; it believes no bytes that are another's."""
    first, second = await followed.chain(await followed.issue(), 1), await followed.chain(await followed.issue(), 1)
    with log_of(followed) as log:
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


async def test_neither_cipher_nor_compressor(followed: Opened) -> None:
    """Events are stored as they are hashed; whoever configures otherwise is told at once."""
    with pytest.raises(ProgrammingError, match="no cipher, no compressor"):
        log_of(followed, COMPRESSOR_TOPIC="zlib")


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


async def test_another_process_reads_beside_the_owner(followed: Opened) -> None:
    """Reading needs no ownership: what is durable is seen, what comes is followed."""
    answer = await followed.chain(await followed.issue(), 3)
    process = subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, database_of(followed), answer.grant_id],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    with process:
        assert process.stdout is not None
        first = await asyncio.to_thread(process.stdout.readline)
        assert f"3 {answer.position}\n" == first
        issued = await followed.issue()
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
