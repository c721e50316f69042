"""Keys, as operators turn them over: known first, signing later, distrusted last, and in step with the ring's file."""

import asyncio
from pathlib import Path

import pytest

from ledger.events import TokenRotated
from ledger.keyring import KeyRing
from ledger.recorders.errors import StoreBroken
from ledger.refusals import LedgerError, Refusal, Refused, Unavailable
from tests.engines import only_on_sqlite
from tests.faulty_store import FaultyStore, faulty, instead
from tests.ledgers import HOME, Opened, caller, check_ledger, client, open_ledger, refused

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def ready(opened: Opened) -> None:
    for _ in range(300):
        if opened.ledger.readiness() is None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(opened.ledger.readiness())


async def test_a_key_verifies_first_signs_later_and_is_distrusted_last(tmp_path: Path) -> None:
    """The ring's file holds a key before an event names it; tokens of the old key live on and rotate to the new."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        key_id = await opened.ledger.operators.keys_rotate()
        assert 2 == key_id
        assert [1, 2] == sorted(KeyRing.load(tmp_path / "ledger.keys").keys)
        answer = await opened.refresh(answer)
        assert Refusal.CONFLICT is await refused(opened.ledger.operators.keys_distrust(1))
        await opened.ledger.operators.keys_activate(2)
        await opened.ledger.operators.keys_activate(2)
        answer = await opened.refresh(answer)
        await opened.ledger.operators.keys_distrust(1)
        await opened.ledger.operators.keys_distrust(1)
        assert Refusal.CONFLICT is await refused(opened.ledger.operators.keys_activate(1))
        assert Refusal.NOT_FOUND is await refused(opened.ledger.operators.keys_activate(9))
        assert ["distrusted", "active"] == [key.state for key in opened.ledger.operators.keys_list()]
        await opened.refresh(answer)
        rotations = [event for event in opened.grant_events(answer) if isinstance(event, TokenRotated)]
        assert [1, 2, 2] == [event.key_id for event in rotations]
        assert ["keys.rotated", "keys.activated", "keys.rotated", "keys.activated", "keys.distrusted"] == [
            event.topic for event in opened.events("keys")
        ]
    check_ledger(opened.path)


async def test_a_leaked_key_does_no_harm_and_ends_no_family(tmp_path: Path) -> None:
    """Its retired tokens are refused without action; a public client's current one is not rotated either."""
    async with open_ledger(tmp_path, clients=[client(), client("app", auth="none")]) as opened:
        own, public = await opened.issue(), await opened.issue(client_id="app")
        newer = await opened.chain(own, 3, every_seconds=100)
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        await opened.ledger.operators.keys_distrust(1)
        event_id = opened.events("keys")[-1].event_id
        before = opened.last_position()
        refusal = await opened.refused(own)
        assert (Refusal.KEY_DISTRUSTED, event_id) == (refusal.refusal, refusal.event_id)
        with pytest.raises(Refused) as caught:
            await opened.refresh(public, client_id="app", authenticated=False)
        assert Refusal.KEY_DISTRUSTED is caught.value.refusal
        assert before == opened.last_position()
        await opened.refresh(newer)
    check_ledger(opened.path)


async def test_a_node_whose_ring_lacks_a_key_is_unready_and_heals_by_itself(tmp_path: Path) -> None:
    """It starts all the same, reads the file again once a second, and nobody needs to tell it."""
    async with open_ledger(tmp_path) as opened:
        older = (tmp_path / "ledger.keys").read_bytes()
        answer = await opened.issue()
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        newer = (tmp_path / "ledger.keys").read_bytes()
        answer = await opened.refresh(answer)
    (tmp_path / "ledger.keys").write_bytes(older)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert "the key ring lacks key 2, which the log names" == opened.ledger.readiness()
        assert Refusal.UNKNOWN_TOKEN is (await opened.refused(answer)).refusal
        assert await opened.ledger.introspect(caller(), answer.access_token) is None
        with pytest.raises(Refused) as refused:
            await opened.ledger.revoke_token(caller(), HOME, answer.access_token)
        assert Refusal.UNKNOWN_TOKEN is refused.value.refusal, "not 200: it lives"
        (tmp_path / "ledger.keys").write_bytes(newer)
        await ready(opened)
        await opened.refresh(answer)
    check_ledger(opened.path)


async def test_another_key_of_an_id_is_one_that_the_ring_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A `keys rotate` that is killed before its event leaves a key in this node's file alone, and another node gives
    the id again: the log says which of the two it is. Tokens of the one are no forgeries to who holds the other."""
    keys = tmp_path / "ledger.keys"
    async with open_ledger(tmp_path) as opened:
        orphan = opened.ledger.desk.ring.with_new_key(opened.clock.now)
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        newer = keys.read_bytes()
        answer = await opened.issue()
        listed = opened.ledger.operators.keys_list()
    orphan.save(keys)
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert "the key ring lacks key 2, which the log names" == opened.ledger.readiness()
        assert listed == opened.ledger.operators.keys_list()
        assert Refusal.UNKNOWN_TOKEN is (await opened.refused(answer)).refusal
        with pytest.raises(Refused) as refused:
            await opened.ledger.revoke_token(caller(), HOME, answer.access_token)
        assert Refusal.UNKNOWN_TOKEN is refused.value.refusal, "not 200: it lives"
        with pytest.raises(Unavailable, match=r"^the key ring of this node lacks key 2$"):
            await opened.issue("bob")
        opened.ledger.read_ring()
        assert "the key ring lacks key 2, which the log names" == opened.ledger.readiness(), "SIGHUP brings none back"
        with pytest.raises(LedgerError, match=r"^the key ring of this node lacks key 2, which the log names: copy"):
            await opened.ledger.operators.keys_rotate()
        assert ["key_ring_holds_another_key"] == [
            record.getMessage() for record in caplog.records if record.levelname == "ERROR"
        ]
        keys.write_bytes(newer)
        await ready(opened)
        await opened.refresh(answer)
    check_ledger(opened.path)


async def test_nothing_is_made_or_recorded_with_a_key_that_the_ring_lacks(tmp_path: Path) -> None:
    """The key that signs now is not held: 503 and not a defect, whether issued, again, refreshed or retried."""
    async with open_ledger(tmp_path) as opened:
        older = opened.ledger.desk.ring
        issued, current = await opened.issue(), await opened.issue()
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        newer = opened.ledger.desk.ring
        retired = await opened.issue(key="k")
        retired_by = await opened.refresh(issued)
        opened.ledger.desk.ring = older
        before = opened.last_position()
        for asked in (
            opened.issue(),
            opened.issue(key="k"),
            opened.refresh(current),
            opened.refresh(issued),
        ):
            with pytest.raises(Unavailable, match=r"^the key ring of this node lacks key 2$"):
                await asked
        assert before == opened.last_position()
        opened.ledger.desk.ring = newer
        assert retired.refresh_token == (await opened.issue(key="k")).refresh_token
        assert retired_by.refresh_token == (await opened.refresh(issued)).refresh_token
        await opened.refresh(current)
    check_ledger(opened.path)


@pytest.mark.parametrize("kind", ["refresh", "access"])
async def test_a_token_under_a_key_that_came_later_makes_the_ring_be_read_again(tmp_path: Path, kind: str) -> None:
    """At most once a second, for whichever kind of token comes first."""
    async with open_ledger(tmp_path) as opened:
        older = opened.ledger.desk.ring
        answer = await opened.issue()
        await opened.ledger.operators.keys_activate(await opened.ledger.operators.keys_rotate())
        answer = await opened.refresh(answer)
        opened.ledger.desk.ring = older
        text = answer.refresh_token if kind == "refresh" else answer.access_token
        assert await opened.ledger.introspect(caller(), text or "") is not None
        assert [1, 2] == sorted(opened.ledger.desk.ring.keys)
        opened.ledger.desk.ring = older
        assert await opened.ledger.introspect(caller(), text or "") is None, "not twice within a second"


async def test_a_ring_file_that_is_wrong_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line, and the ring in memory goes on."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        (tmp_path / "ledger.keys").write_bytes(b"{}")
        opened.ledger._ring_file.reread()
        assert ["key_ring_not_read"] == [record.getMessage() for record in caplog.records]
        await opened.refresh(answer)
        with pytest.raises(LedgerError):
            await opened.ledger.operators.keys_rotate()


@only_on_sqlite
async def test_a_key_that_no_event_names_is_never_used(tmp_path: Path) -> None:
    """Killed between the ring's file and the event: the id is passed over."""
    async with open_ledger(tmp_path, store=FaultyStore) as opened:
        faulty(opened).on_commit.append(instead(StoreBroken("the database failed: SQLITE_IOERR")))
        with pytest.raises(Unavailable):
            await opened.ledger.operators.keys_rotate()
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert [1, 2] == sorted(opened.ledger.desk.ring.keys)
        assert [1] == [key.id for key in opened.ledger.operators.keys_list()]
        assert 3 == await opened.ledger.operators.keys_rotate()
    check_ledger(opened.path)
