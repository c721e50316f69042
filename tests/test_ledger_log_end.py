"""The end of the log: the head file, restored backups, and what a log lacks that was acknowledged (I-23)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ledger import times, tokens
from ledger.answers import TokenAnswer
from ledger.events import LedgerRestored, TokenRotated
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.log_end import LogEnd
from ledger.recorders.errors import StoreBusy
from ledger.refusals import Refusal, Unavailable
from ledger.times import SECOND
from projections import INLINE
from projections.rebuild import rebuild
from tests.engines import alter, back_up, lose, put_back
from tests.ledgers import HOME, SECURITY, Opened, caller, check_ledger, client, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def test_the_head_file_says_the_last_acknowledged_position(tmp_path: Path) -> None:
    """About once a second, and at the end; never ahead of the log."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        head_file = HeadFile(tmp_path / "ledger.head")
        for _ in range(300):
            head = head_file.read()
            if head is not None and head.position == answer.position:
                break
            await asyncio.sleep(0.01)
        assert head is not None
        assert (answer.position, opened.clock.now) == (head.position, head.at)
        answer = await opened.refresh(answer)
    head = head_file.read()
    assert head is not None
    assert answer.position == head.position


async def restored(tmp_path: Path, *, lost: int) -> tuple[Path, TokenAnswer, TokenAnswer]:
    """A folder whose database is older than its head file; what its backup knew, and what was lost."""
    folder, backup = tmp_path / "live", tmp_path / "backup.db"
    folder.mkdir()
    async with open_ledger(folder) as opened:
        kept = await opened.issue()
    back_up(folder / "ledger.db", backup)
    async with open_ledger(folder, seed=2, clients=None) as opened:
        last = await opened.chain(kept, lost)
    put_back(backup, folder / "ledger.db")
    return folder, kept, last


async def test_a_log_behind_its_head_file_answers_nobody_and_records_nothing(tmp_path: Path) -> None:
    """I-23: unready, whatever is asked, until the loss is acknowledged."""
    folder, kept, last = await restored(tmp_path, lost=3)
    async with open_ledger(folder, seed=3, clients=None) as opened:
        assert "restore acknowledge" in (opened.ledger.readiness() or "")
        before = opened.last_position()
        await opened.ledger.started()
        for waiting in (
            opened.refresh(kept),
            opened.refresh(last),
            opened.issue(),
            opened.apply(client()),
            opened.ledger.introspect(caller(), kept.access_token),
            opened.ledger.revoke_token(caller(), HOME, kept.refresh_token or ""),
            opened.act("revoke", kept.grant_id),
            opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None),
            opened.ledger.operators.explain(kept.refresh_token or ""),
            opened.ledger.operators.erase(SECURITY, "alice"),
            opened.ledger.operators.keys_activate(1),
            opened.ledger.operators.record_read(SECURITY, "grants"),
        ):
            with pytest.raises(Unavailable):
                await waiting
        assert before == opened.last_position()
    head = HeadFile(folder / "ledger.head").read()
    assert head is not None
    assert last.position == head.position, "a stop does not make the loss forgotten"


async def test_an_acknowledged_restore_goes_on_above_what_was_lost(tmp_path: Path) -> None:
    """I-15, I-23: positions above the head file's, a new key, and no successor that was handed out before can come
    again: its holder's token is ahead of the log."""
    folder, kept, last = await restored(tmp_path, lost=3)
    async with open_ledger(folder, seed=3, clients=None) as opened:
        from_position = opened.last_position()
        report = await opened.ledger.operators.restore_acknowledge()
        assert report is not None
        assert (from_position, last.position, 2) == (report.from_position, report.lost_position, report.key_id)
        assert report.lost_at > (report.from_at or "")
        assert opened.ledger.readiness() is None
        assert await opened.ledger.operators.restore_acknowledge() is None
        event = next(event for event in opened.events("ledger") if isinstance(event, LedgerRestored))
        assert (str(last.position), report.lost_at) == (event.lost_position, event.lost_at)
        assert opened.last_position() >= last.position + 3
        assert Refusal.SUSPENDED is (await opened.refused(last)).refusal
        assert Refusal.SUSPENDED is (await opened.refused(last)).refusal
        assert ["issued", "rollback_detected", "suspended"] == opened.topics(kept)
        assert 1 == opened.ledger.desk.alarms["ahead_of_log"], "an alarm, once"
        await opened.act("reinstate", kept.grant_id, trust="current")
        answer = await opened.refresh(kept)
        assert answer.refresh_token not in (kept.refresh_token, last.refresh_token)
        rotated = opened.grant_events(kept)[-1]
        assert isinstance(rotated, TokenRotated)
        assert (1, 2) == (rotated.generation, rotated.key_id)
        await opened.refresh(answer)
        elsewhere = HeadFile(tmp_path / "node.head")  # of another machine, which starts after it was all over
        elsewhere.write(last.position or 0, opened.clock.now)
        assert node(opened, elsewhere).behind is None
    async with open_ledger(folder, seed=4, clients=None) as opened:
        assert opened.ledger.readiness() is None
    check_ledger(opened.path)


async def test_a_node_goes_on_when_another_has_acknowledged_the_loss(tmp_path: Path) -> None:
    """Nodes share a store and each has a head file: one that knows of more goes on once that is passed, too."""
    folder, _, last = await restored(tmp_path, lost=3)
    assert last.position is not None
    async with open_ledger(folder, seed=3, clients=None) as opened:
        node = node_that_knows(opened, last.position + 4, tmp_path / "node.head")
        looked_again(opened, node)
        assert node.behind is not None
        await opened.ledger.operators.restore_acknowledge()
        looked_again(opened, node)
        passed = opened.last_position() >= last.position + 4
        assert (node.behind is None) == passed, "no position that it knows of may be given again"
        await opened.issue()
        await opened.issue()
        looked_again(opened, node)
        assert node.behind is None


async def test_whoever_has_acknowledged_less_takes_nothing_back(tmp_path: Path) -> None:
    """I-23: workers have one head file. One that is slower does not write over what another has said in it."""
    async with open_ledger(tmp_path) as opened:
        head_file = HeadFile(tmp_path / "node.head")
        slower, faster = node(opened, head_file), node(opened, head_file)
        for each in (slower, faster):
            await opened.issue()
            each.acknowledge(opened.last_position(), times.text(opened.clock.now))
        for each in (faster, slower):
            each.write()
        head = head_file.read()
        assert head is not None
        assert opened.last_position() == head.position


async def test_what_another_on_this_machine_had_acknowledged_is_missed_too(tmp_path: Path) -> None:
    """I-23: workers have one head file. Whoever reaches the store anew looks for what that says, as at a start."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        head_file = HeadFile(tmp_path / "node.head")
        with opened.ledger.store.reader() as reads:
            node = LogEnd(head_file, reads, opened.last_position)
            node.compare()
            assert node.meet(reads)
            await opened.issue()
            head_file.write(opened.last_position() - 1, opened.clock.now + 1)
        with opened.ledger.store.reader() as reads:
            assert not node.meet(reads)
        assert node.behind is not None
        head = head_file.read()
        node.write()
        assert head == head_file.read(), "nor is it forgotten"


@pytest.mark.parametrize("first", ["the loss", "the head", "what is lost"])
async def test_a_loss_is_remembered_beside_what_others_on_this_machine_acknowledge(tmp_path: Path, first: str) -> None:
    """I-23: workers share the head file, and one that has lost nothing goes on writing it, whoever comes first. Once
    the loss was acknowledged nothing speaks of it any more."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        head_file, lost_file = HeadFile(tmp_path / "node.head"), HeadFile(tmp_path / "node.head.lost")
        one, other = node(opened, head_file), node(opened, head_file)
        one.acknowledge(opened.last_position() + 2, times.text(opened.clock.now + 1))  # on the server that is gone
        for _ in range(4):
            await opened.issue()
        other.acknowledge(opened.last_position(), times.text(opened.clock.now))
        if first == "what is lost":  # it was written before the server was gone, and is written over
            one.write()
            other.write()
        if first == "the head":
            other.write()
        with opened.ledger.store.reader() as reads:
            assert not one.meet(reads)
        for each in (other, one, other):
            each.write()
        started = node(opened, head_file)
        assert one.behind == started.behind is not None
        started.not_behind()
        assert lost_file.read() is None


async def test_who_met_an_older_server_goes_on_once_the_right_one_is_back(tmp_path: Path) -> None:
    """The natural remedy: nothing is lost then, and there is nothing to acknowledge."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        away = node(opened, HeadFile(tmp_path / "node.head"))
        opened.clock.now += SECOND
        await opened.issue()
        away.acknowledge(opened.last_position(), times.text(opened.clock.now))
        away._end = lambda: opened.last_position() - 1  # the older one
        with opened.ledger.store.reader() as reads:
            assert not away.meet(reads)
        away._end = opened.last_position
        with opened.ledger.store.reader() as reads:
            assert away.meet(reads)
        assert away.behind is None
        assert HeadFile(tmp_path / "node.head.lost").read() is None


def node(opened: Opened, head_file: HeadFile) -> LogEnd:
    """The end of the log as another process holds it."""
    with opened.ledger.store.reader() as reads:
        found = LogEnd(head_file, reads, opened.last_position)
    found.compare()
    return found


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("question", [1, 2, 3, 4])
async def test_a_connection_that_is_lost_again_at_any_question_changes_nothing(
    tmp_path: Path, question: int, lost: bool
) -> None:
    """Whether the log has what was acknowledged is found out when it is reached the next time."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        with opened.ledger.store.reader() as reads:
            node = LogEnd(HeadFile(tmp_path / "node.head"), reads, opened.last_position)
        if lost:
            node.acknowledge(node.position, times.text(opened.clock.now + 1))
        opened.clock.now += SECOND
        await opened.issue()
        with opened.ledger.store.reader() as reads:
            with pytest.raises(StoreBusy):
                node.meet(LostAt(reads, question))
            assert node.meet(reads) != lost


class LostAt:
    """Answers questions to a log until the connection is lost at one of them."""

    def __init__(self, reads: Any, question: int) -> None:
        self._reads = reads
        self._left = question

    def __getattr__(self, name: str) -> Any:
        self._left -= 1
        if not self._left:
            raise StoreBusy("the connection was lost")
        return getattr(self._reads, name)


async def test_a_log_that_grows_unacknowledged_is_still_behind(tmp_path: Path) -> None:
    """Somebody without a head file writes on, past what was lost: that heals nothing."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        lost = opened.last_position() + 2
        node = node_that_knows(opened, lost, tmp_path / "node.head")
        for _ in range(4):
            await opened.issue()
        assert opened.last_position() > lost
        looked_again(opened, node)
        assert node.behind is not None


def node_that_knows(opened: Opened, position: int, path: Path) -> LogEnd:
    """The end of the log as another node holds it, which has acknowledged up to `position`."""
    head_file = HeadFile(path)
    head_file.write(position, opened.clock.now)
    with opened.ledger.store.reader() as reads:
        node = LogEnd(head_file, reads, opened.last_position)
    node.compare()
    assert node.behind is not None
    return node


def looked_again(opened: Opened, node: LogEnd) -> None:
    with opened.ledger.store.reader() as reads:
        node.look_again(reads)


async def test_without_an_acknowledgement_a_lost_successor_would_come_again(tmp_path: Path) -> None:
    """The broken twin of the test above: whoever only deletes the head file hands the same successor out twice."""
    folder, kept, _ = await restored(tmp_path, lost=1)
    (folder / "ledger.head").unlink()
    async with open_ledger(folder, seed=3, clients=None) as opened:
        again = await opened.refresh(kept)
        nonce = opened.rows("SELECT nonce FROM private_grants")[0][0]
        assert isinstance(nonce, bytes)
        lost = tokens.derive(opened.ledger.desk.ring, 1, kept.grant_id, 1, nonce)
        assert lost == again.refresh_token


async def test_a_lost_access_token_is_not_taken_for_the_one_that_has_its_place_now(tmp_path: Path) -> None:
    """I-15: versions are given anew after a restore; what a lost event made must not gain what the new one says."""
    folder, kept, last = await restored(tmp_path, lost=1)
    async with open_ledger(folder, seed=3, clients=None) as opened:
        await opened.ledger.operators.restore_acknowledge()
        again = await opened.refresh(kept)
        assert (last.grant_id, ["issued", "token_redeemed", "token_rotated"]) == (again.grant_id, opened.topics(again))
        assert await opened.ledger.introspect(caller(), last.access_token) is None
        assert "unknown" == (await opened.ledger.operators.explain(last.access_token)).verdict
        await opened.ledger.revoke_token(caller(), HOME, last.access_token)
        assert await opened.ledger.introspect(caller(), again.access_token) is not None
    check_ledger(folder / "ledger.db")


async def test_the_floor_of_positions_is_what_restores_have_left(tmp_path: Path) -> None:
    """Whoever raises it lets a log that lacks what was acknowledged pass for one of which that is known."""

    async def named() -> set[tuple[str, str]]:
        found = await asyncio.to_thread(rebuild, opened.store.settled, INLINE, lambda derive: None)
        return {(each.key, each.column) for each in found.differences}

    folder, kept, last = await restored(tmp_path, lost=3)
    async with open_ledger(folder, seed=3, clients=None) as opened:
        before = opened.last_position()
        alter(opened.path, f"UPDATE control SET position_floor = {before}")
        assert {("control", "position_floor")} == await named()
        alter(opened.path, "UPDATE control SET position_floor = 0")
        assert set() == await named()
        await asyncio.gather(*(opened.ledger.operators.restore_acknowledge() for _ in range(3)))
        assert set() == await named()
        await opened.refresh(kept)
        for floor in (0, last.position - 1, opened.last_position()):
            alter(opened.path, f"UPDATE control SET position_floor = {floor}")
            assert {("control", "position_floor")} == await named()


async def test_no_key_id_is_spent_while_the_log_is_behind(tmp_path: Path) -> None:
    """A key that no event names is never used, and there are 255."""
    folder, _, _ = await restored(tmp_path, lost=1)
    async with open_ledger(folder, seed=3, clients=None) as opened:
        with pytest.raises(Unavailable):
            await opened.ledger.operators.keys_rotate()
        assert [1] == sorted(opened.ledger.desk.ring.keys) == sorted(KeyRing.load(folder / "ledger.keys").keys)


async def test_two_acknowledgements_at_once_are_one(tmp_path: Path) -> None:
    """One event, one new key."""
    folder, _, _ = await restored(tmp_path, lost=1)
    async with open_ledger(folder, seed=3, clients=None) as opened:
        reports = await asyncio.gather(*(opened.ledger.operators.restore_acknowledge() for _ in range(3)))
        assert 1 == sum(report is not None for report in reports)
        assert [1, 2] == sorted(opened.ledger.desk.ring.keys)
    assert 1 == check_ledger(opened.path).topics["ledger.restored"]


@pytest.mark.parametrize(
    "of", ["'{}'", 'replace(body, \'"at":"2026\', \'"at":"2025\')', 'replace(body, \'"at":"2\', \'"at":"x\')']
)
async def test_who_has_altered_the_last_event_keeps_nobody_from_starting(tmp_path: Path, of: str) -> None:
    """It is there, whatever it says: a rebuild names it, and for that the ledger has to be open."""
    async with open_ledger(tmp_path) as opened:
        grant = await opened.issue()
    for seed in (2, 3, 4):
        altered = f"UPDATE events SET body = {of} WHERE position = {opened.last_position()}"
        assert 1 == alter(opened.path, altered)
        if seed == 4:
            (tmp_path / "ledger.head").unlink()
        async with open_ledger(tmp_path, seed=seed, clients=None) as opened:
            assert opened.ledger.readiness() is None
            if seed == 2:  # then what was altered is not the last any more, and the head file still names it
                head = (tmp_path / "ledger.head").read_bytes()
                await opened.refresh(grant)
        if seed == 2:
            (tmp_path / "ledger.head").write_bytes(head)
            async with open_ledger(tmp_path, seed=9, clients=None) as opened:
                assert opened.ledger.readiness() is None


async def test_a_restore_is_acknowledged_whose_last_event_was_altered(tmp_path: Path) -> None:
    """The report lacks its time, no more."""
    folder, _, _ = await restored(tmp_path, lost=1)
    last = "(SELECT max(position) FROM events)"
    assert 1 == alter(folder / "ledger.db", f"UPDATE events SET body = '{{}}' WHERE position = {last}")
    async with open_ledger(folder, seed=3, clients=None) as opened:
        report = await opened.ledger.operators.restore_acknowledge()
        assert report is not None
        assert report.from_at is None
        assert opened.ledger.readiness() is None


async def test_a_lost_database_is_behind_too(tmp_path: Path) -> None:
    """A new file beside an old head file: not even the first keys are recorded at positions that were used."""
    folder, _, last = await restored(tmp_path, lost=1)
    lose(folder / "ledger.db")
    async with open_ledger(folder, seed=3, clients=None) as opened:
        assert [] == opened.events()
        assert opened.ledger.readiness() is not None
        await opened.ledger.operators.restore_acknowledge()
        assert opened.last_position() > last.position
        await opened.apply(client())
        await opened.refresh(await opened.issue())
        assert opened.ledger.readiness() is None
    check_ledger(opened.path)


async def test_a_missing_head_file_beside_a_log_is_written_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can tell whether something was lost, so somebody should know."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
    (tmp_path / "ledger.head").unlink()
    caplog.clear()
    async with open_ledger(tmp_path, seed=2, clients=None):
        assert ["head_file_missing"] == [record.getMessage() for record in caplog.records]
    head = HeadFile(tmp_path / "ledger.head").read()
    assert head is not None
    assert answer.position == head.position
