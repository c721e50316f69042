"""The check that every trial ends with finds what is wrong with a store: each broken store here must be caught."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.ledgers import ELSEWHERE, SECURITY, check_ledger, client, open_ledger


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which a little of everything has happened."""
    folder = tmp_path_factory.mktemp("healthy")
    asyncio.run(fill(folder))
    check_ledger(folder / "ledger.db")
    return folder / "ledger.db"


async def fill(folder: Path) -> None:
    async with open_ledger(folder, clients=[client(), client("other")]) as opened:
        answer = await opened.chain(await opened.issue(), 3, every_seconds=100)
        await opened.refresh(answer, source=ELSEWHERE, scope=("read",))
        other = await opened.issue("bob", client_id="other")
        reused = await opened.issue("carol")
        await opened.chain(reused, 3, every_seconds=100_000)
        await opened.refused(reused)
        await opened.act("suspend", other.grant_id, reason="lost phone")
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", "asked for it", None)
        await opened.ledger.operators.record_read(SECURITY, "grants")


def damaged(healthy: Path, folder: Path, *statements: str) -> Path:
    path = folder / "damaged.db"
    shutil.copy(healthy, path)
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement
        connection.commit()
    return path


ROTATED = "SELECT position FROM events WHERE body ->> 'topic' = 'grant.token_rotated' ORDER BY position LIMIT 1"
LAST = "SELECT max(position) FROM events"

DAMAGES = {
    "a changed event": (
        "a broken link",
        f"UPDATE events SET body = replace(body, 'budget\":3', 'budget\":2') WHERE position = ({ROTATED})",
    ),
    "a changed last event": (
        "the head is not its last event's",
        f"UPDATE events SET body = replace(body, 'grants', 'grant') WHERE position = ({LAST})",
    ),
    "a dropped event": ("names itself", f"DELETE FROM events WHERE position = ({ROTATED})"),
    "a dropped last event": ("a stream without events", f"DELETE FROM events WHERE position = ({LAST})"),
    "a stream without a head": ("events without a stream", "DELETE FROM streams WHERE name = 'audit'"),
    "bytes in another form": (
        "not in canonical form",
        f"UPDATE events SET body = replace(body, ',', ', ') WHERE position = ({ROTATED})",
    ),
    "a wrong way back": ("the way back is broken", f"UPDATE events SET back = back - 1 WHERE position = ({ROTATED})"),
    "a head behind": ("the head is not its last event's", "UPDATE streams SET v = v - 1 WHERE name LIKE 'grant:%'"),
    "a snapshot of another moment": (
        "the snapshot stands for something else|Expected",
        "UPDATE streams SET state = (SELECT state FROM streams WHERE name = 'audit') WHERE name = 'keys'",
    ),
    "a counter ahead": ("does not count the events of authority", "UPDATE control SET counter = counter + 1"),
    "an inline row too few": ("current_tokens_v1: live and replayed rows differ", "DELETE FROM current_tokens_v1"),
    "an inline row that lies": (
        "current_tokens_v1: live and replayed rows differ",
        "UPDATE current_tokens_v1 SET client_epoch = client_epoch + 1",
    ),
    "a head that lies": ("what questions ask", "UPDATE streams SET generation = generation + 1"),
    "an incident too many": (
        "reuse_incidents_v1: live and replayed rows differ",
        "INSERT INTO reuse_incidents_v1 SELECT max(position) + 1, grant_id, at, label FROM reuse_incidents_v1",
    ),
    "another nonce": ("another nonce", "UPDATE private_grants SET nonce = zeroblob(32) WHERE nonce IS NOT NULL"),
    "a nonce kept": ("its nonce is still there", "UPDATE private_grants SET nonce = zeroblob(32) WHERE nonce IS NULL"),
    "another device": ("another device", "UPDATE private_grants SET device = 'Bob’s phone'"),
    "another context": ("a context row that nobody named", "UPDATE private_contexts SET address = '192.0.2.1'"),
    "another reason": ("another reason", "UPDATE private_reasons SET text = 'none'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_found(healthy: Path, tmp_path: Path, damage: str) -> None:
    """I-13, I-14: events, links, heads, snapshots, counter, private and inline rows, one by one."""
    line, statement = DAMAGES[damage]
    path = damaged(healthy, tmp_path, statement)
    with pytest.raises(Exception, match=line):
        check_ledger(path)


def test_checking_changes_nothing(healthy: Path) -> None:
    """Neither file nor log: what a trial left behind can be looked at afterwards."""
    before = {each.name: each.read_bytes() for each in healthy.parent.iterdir()}
    checked = check_ledger(healthy)
    assert before == {each.name: each.read_bytes() for each in healthy.parent.iterdir()}
    assert sum(checked.topics.values()) == checked.events == checked.position
