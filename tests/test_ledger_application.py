"""The ledger as a whole: opening and closing, upkeep, and when it is ready."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.operating import first_keys
from ledger.recorders.errors import StoreError
from ledger.refusals import LedgerError, Unavailable
from projections import INLINE
from projections.rebuild import rebuild
from tests.engines import alter
from tests.faulty_store import locked_by_another_process
from tests.ledgers import OPERATORS, SECURITY, Clock, check_ledger, client, open_ledger, with_policy

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


# ---------------------------------------------------------------- opening and closing


async def test_a_new_ledger_has_the_rings_key_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first events name the keys; a missing head file beside a new log is no reason to warn."""
    async with open_ledger(tmp_path, clients=None) as opened:
        assert ["keys.rotated", "keys.activated"] == [event.topic for event in opened.events()]
        assert [(1, "active")] == [(key.id, key.state) for key in opened.ledger.operators.keys_list()]
        assert opened.ledger.readiness() is None
    assert [] == [record.getMessage() for record in caplog.records]
    head = HeadFile(tmp_path / "ledger.head").read()
    assert head is not None
    assert opened.last_position() == head.position


async def test_keys_that_another_node_has_just_named_are_not_named_again(tmp_path: Path) -> None:
    """Two that were opened on one new log at the same moment: the later finds it done, which is no fault."""
    async with open_ledger(tmp_path, clients=None) as opened:
        ring = KeyRing.load(tmp_path / "ledger.keys")
        await opened.ledger._commits.submit(lambda batch: first_keys(batch, ring), ours=True)
        assert ["keys.rotated", "keys.activated"] == [event.topic for event in opened.events()]


async def test_opened_again_it_goes_on(tmp_path: Path) -> None:
    """Grants, retries and authority are where they were."""
    clock = Clock()
    async with open_ledger(tmp_path, clock=clock) as opened:
        first = await opened.issue()
        second = await opened.refresh(first)
    async with open_ledger(tmp_path, clock=clock, seed=2, clients=None) as opened:
        again = await opened.refresh(first)
        assert (second.refresh_token, second.access_token) == (again.refresh_token, again.access_token)
        await opened.refresh(second)
    check_ledger(opened.path)


async def test_a_log_whose_keys_have_lost_their_head_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """Given the ring's keys once more it would trust again the one that it distrusts: what is to be healed first is
    said, and nothing is recorded. Nor where the events of the keys are gone, too, which nothing heals."""
    async with open_ledger(tmp_path) as opened:
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        await opened.ledger.operators.keys_distrust(1)
        ((keys,),) = opened.rows("SELECT position FROM events ORDER BY position LIMIT 1")
    last = opened.last_position()
    assert 1 == alter(opened.path, "DELETE FROM streams WHERE name = 'keys'")
    with pytest.raises(StoreError, match=r"^keys: there are events that no stream's head speaks of; rebuild puts it"):
        async with open_ledger(tmp_path, seed=2, clients=None):
            pass
    alter(opened.path, f"DELETE FROM events WHERE stream = (SELECT stream FROM events WHERE position = {keys})")
    with pytest.raises(StoreError, match=r"^keys: the log holds events, and no head names a key; rebuild tells"):
        async with open_ledger(tmp_path, seed=2, clients=None):
            pass
    assert 0 == alter(opened.path, f"UPDATE events SET v = v WHERE position > {last}")


@pytest.mark.parametrize("name", ["client:www", "operator:soc", "subject:", "ledger", "audit"])
async def test_a_stream_that_has_lost_its_head_is_not_begun_again(tmp_path: Path, name: str) -> None:
    """A second history of the same name, beside which no rebuild could put the first one back: who would begin it is
    told what to do first, and of a clients file nothing is recorded then."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue()
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        await opened.ledger.started()
        await opened.ledger.operators.record_read(SECURITY, "grants")
    before = opened.last_position()
    lost = partial(alter, opened.path, f"DELETE FROM streams WHERE name LIKE '{name}%'")
    done = 0 if name == "subject:" else lost()  # of a person it is seen at the start, where the engine finds it
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert 1 == (done or lost())
        ledger = opened.ledger
        acts: dict[str, Callable[[], Awaitable[object]]] = {
            "subject:": lambda: ledger.operators.revoke_subject(SECURITY, "alice", None, None),
            "ledger": ledger.started,
            "audit": lambda: ledger.operators.record_read(SECURITY, "grants"),
        }
        asked = acts.get(name, lambda: opened.apply(client("new"), client(), operators=OPERATORS))
        for _ in range(2):
            with pytest.raises(Unavailable, match="there are events that no stream's head speaks of; rebuild puts it"):
                await asked()
        assert before == opened.store.end()


async def test_a_reuse_that_ends_a_person_whose_head_is_gone_records_nothing(tmp_path: Path) -> None:
    """The grant's own end would stand without the person's (section 7): refused before anything is appended."""
    ends_all = client(policy=with_policy("strict", on_reuse="revoke_subject"))
    async with open_ledger(tmp_path, clients=(ends_all,)) as opened:
        await opened.issue()
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        opened.clock.pass_seconds(1)
        first = await opened.issue()
        await opened.refresh(await opened.refresh(first))
    before = opened.last_position()
    async with open_ledger(tmp_path, seed=2, clients=None, clock=opened.clock) as opened:
        assert 1 == alter(opened.path, "DELETE FROM streams WHERE name LIKE 'subject:%'")
        for _ in range(2):
            with pytest.raises(Unavailable, match="there are events that no stream's head speaks of; rebuild puts it"):
                await opened.refresh(first)
        assert before == opened.store.end()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("DELETE FROM control", "the row of the table control is not in the store; rebuild names it"),
        (f"UPDATE control SET position_floor = {2**63 - 1}", "ends where no position is left; rebuild names"),
        (f"UPDATE control SET position_floor = {2**63 - 2}", "ends where no position is left; rebuild names"),
        (f"UPDATE events SET position = {2**63 - 1} WHERE body LIKE '%audit.read%'", "no position is left; rebuild"),
        (f"UPDATE events SET position = {2**63 - 2} WHERE body LIKE '%audit.read%'", "no position is left; rebuild"),
    ],
)
async def test_where_nothing_could_be_appended_it_is_not_opened(tmp_path: Path, damage: str, expected: str) -> None:
    """One line, no fault, and nothing is recorded; for a rebuild it is opened, which names what was altered."""
    async with open_ledger(tmp_path) as opened:
        await opened.ledger.operators.record_read(SECURITY, "grants")
        await opened.issue()
    assert 1 == alter(opened.path, damage)
    for _ in range(2):
        with pytest.raises(StoreError, match=expected):
            async with open_ledger(tmp_path, seed=2, clients=None):
                pass
    async with open_ledger(tmp_path, seed=2, clients=None, to_heal=True) as opened:
        store = opened.store
        found = await asyncio.to_thread(rebuild, store.settled, INLINE, lambda derive: None)
    assert not found.history_holds
    assert {"position", "position_floor", "counter"} & {each.column for each in found.differences}


async def test_a_server_says_when_it_serves(tmp_path: Path) -> None:
    """Two events a life in good order."""
    for seed in (1, 2):
        async with open_ledger(tmp_path, seed=seed) as opened:
            await opened.ledger.started()
            await opened.ledger.stopped()
    checked = check_ledger(opened.path)
    assert (2, 2) == (checked.topics["ledger.started"], checked.topics["ledger.stopped"])


async def test_a_ledger_that_cannot_open_gives_the_store_back(tmp_path: Path) -> None:
    """A store that stays busy, a head file that cannot be read: one line, and the file is free for the next."""
    async with open_ledger(tmp_path):
        pass
    (tmp_path / "ledger.head").write_text("garbage")
    with pytest.raises(LedgerError, match="no head file or a damaged one"):
        async with open_ledger(tmp_path):
            pass
    (tmp_path / "ledger.head").unlink()
    async with open_ledger(tmp_path, seed=2) as opened:
        await opened.issue()


async def test_closing_leaves_no_thread_and_no_answer_behind(tmp_path: Path) -> None:
    """Whoever was in line is answered before the store is given back."""
    async with open_ledger(tmp_path) as opened:
        answers = [asyncio.ensure_future(opened.issue(str(n))) for n in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(opened.ledger.close())
        await asyncio.gather(*answers, closing)
    assert 5 == check_ledger(opened.path).topics["grant.issued"]


# ---------------------------------------------------------------- upkeep


async def test_a_defect_in_one_round_of_upkeep_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next round writes the head file all the same; the defect is a log line."""
    async with open_ledger(tmp_path) as opened:
        write = HeadFile.write
        failed: list[int] = []

        def once(self: HeadFile, position: int, at: int) -> None:
            if not failed:
                failed.append(position)
                raise ZeroDivisionError
            write(self, position, at)

        monkeypatch.setattr(HeadFile, "write", once)
        answer = await opened.issue()
        head = None
        for _ in range(400):
            head = HeadFile(tmp_path / "ledger.head").read()
            if head is not None and head.position == answer.position:
                break
            await asyncio.sleep(0.01)
        assert head is not None
        assert answer.position == head.position
        assert "upkeep_failed" in [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_looking_is_never_kept_waiting_by_the_store(tmp_path: Path) -> None:
    """Readiness is answered from memory, whatever the store does."""
    async with open_ledger(tmp_path) as opened:
        with locked_by_another_process(opened.path):
            assert opened.ledger.readiness() is None
            assert opened.ledger.acknowledged_position == opened.last_position()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM streams WHERE {}",
        "UPDATE streams SET name = 'subject:x' WHERE {}",
        "UPDATE streams SET name = 'sudject:x' WHERE {}",
    ],
)
async def test_a_person_who_was_ended_is_not_back_where_their_head_is_gone(tmp_path: Path, damage: str) -> None:
    """I-06: without it nothing says that they were. A counter that was altered hides nobody, and is no such head."""
    async with open_ledger(tmp_path) as opened:
        first = await opened.issue()
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        await opened.issue("bob")
        await opened.ledger.operators.revoke_subject(SECURITY, "bob", None, None)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        await opened.refused(first)
    for change in ("counter + 1", "counter - 1"):
        assert 1 == alter(opened.path, f"UPDATE control SET counter = {change}")
        async with open_ledger(tmp_path, seed=3, clients=None):
            pass
    ((name, *_), *_) = opened.rows("SELECT name FROM streams WHERE name LIKE 'subject:%'")
    assert 1 == alter(opened.path, damage.format(f"name = '{name}'"))
    with pytest.raises(StoreError, match=f"^{name}: there are events that no stream's head speaks of; rebuild puts it"):
        async with open_ledger(tmp_path, seed=4, clients=None):
            pass
