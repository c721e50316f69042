"""Healing on PostgreSQL beside other nodes: what they have read of it counts no more (I-13)."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api import rebuilding
from ledger import snapshots
from ledger.answers import TokenAnswer
from ledger.epochs import Epoch, Subject
from ledger.grant import Grant
from ledger.recorders import postgres_rewriting
from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.rows import Reads
from ledger.refusals import Refusal
from tests.engines import url_of
from tests.ledgers import SECURITY, Opened, open_ledger, refused, two_nodes
from tests.test_ledger_recorders_postgres import asked, refreshed

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

MORE = ("read", "write")
WAITS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"


def alter(opened: Opened, name: str, kind: type[Any], member: str, value: object) -> None:
    """Change a stream's snapshot past the ledger, as somebody would who knows how."""
    ((v, head, state),) = opened.rows("SELECT v, head, state FROM streams WHERE name = ?", name)
    aggregate = snapshots.decode(state, name, v, head, kind)
    assert aggregate is not None
    setattr(aggregate, member, value)
    write(opened, name, snapshots.encode(v, head, aggregate))


def write(opened: Opened, name: str, state: bytes) -> None:
    """Write a snapshot past the ledger."""
    url = url_of(opened.path)
    assert url is not None
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE streams SET state = %s WHERE name = %s", (state, name))


async def rebuilt(opened: Opened) -> set[tuple[str, str]]:
    """What a rebuild on this node has found wrong, and healed: tables and keys."""
    work = rebuilding._Work(opened.ledger, asyncio.get_running_loop(), lambda line: None)
    found = await asyncio.to_thread(work.run)
    assert found["healed"]
    return {(each["table"], each["key"]) for each in found["differences"]}


async def widened(one: Opened, other: Opened) -> TokenAnswer:
    """A grant for reading alone, for which the other node has given more: its snapshot was altered when it was read."""
    answer = await one.refresh(await one.issue(scope=("read",)))
    alter(one, f"grant:{answer.grant_id}", Grant, "granted", MORE)
    answer = await other.refresh(answer, scope=MORE)
    assert MORE == tuple(answer.scope)
    return answer


async def test_a_healed_snapshot_is_healed_for_every_node(tmp_path: Path) -> None:
    """I-08: a node that has read it before decides on it no more, nor writes it back. What else it has under way
    is answered."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await widened(one, other)

        async def go_on(subject: str) -> None:
            theirs = await other.issue(subject)
            for _ in range(20):
                theirs = await refreshed(other, theirs)

        going_on = asyncio.gather(*(go_on(f"person-{number}") for number in range(4)))
        assert ("streams", f"grant:{answer.grant_id}") in await rebuilt(one)
        await going_on
        assert Refusal.INVALID_SCOPE is await refused(other.refresh(answer, scope=MORE))
        await other.refresh(answer)
        assert set() == await rebuilt(one)


async def test_a_node_that_keeps_what_was_healed_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: nobody is cut off."""
    monkeypatch.setattr(postgres_rewriting, "_CUT_OFF", "SELECT 1")
    async with two_nodes(tmp_path) as (one, other):
        answer = await widened(one, other)
        assert ("streams", f"grant:{answer.grant_id}") in await rebuilt(one)
        answer = await other.refresh(answer, scope=MORE)
        assert MORE == tuple(answer.scope)
        assert ("streams", f"grant:{answer.grant_id}") in await rebuilt(one)


async def test_an_end_that_a_snapshot_lacked_holds_on_every_node_once_it_is_healed(tmp_path: Path) -> None:
    """I-06: what a node knows of persons, clients and operators it reads again, too."""
    async with open_ledger(tmp_path) as one:
        answer = await one.refresh(await one.issue())
        await one.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        ((name,),) = one.rows("SELECT name FROM streams WHERE name LIKE 'subject:%'")
        alter(one, name, Subject, "epoch", Epoch())
        async with open_ledger(tmp_path, clock=one.clock, seed=2, clients=None) as other:
            answer = await other.refresh(answer)
            assert ("streams", name) in await rebuilt(one)
            for each in (one, other):
                assert Refusal.REVOKED_BY_SUBJECT is (await each.refused(answer)).refusal


async def test_who_is_cut_off_comes_back_behind_what_is_written(tmp_path: Path) -> None:
    """It reads nothing before that is there: else it would have the wrong snapshot once more."""
    async with two_nodes(tmp_path) as (one, other):
        answer = await one.refresh(await one.issue(scope=("read",)))
        name = f"grant:{answer.grant_id}"
        ((right,),) = one.rows("SELECT state FROM streams WHERE name = ?", name)
        alter(one, name, Grant, "granted", MORE)
        url = url_of(one.path)
        assert url is not None
        with psycopg.connect(url) as healer:
            healer.execute(postgres_rewriting._ALONE.encode())
            healer.execute("UPDATE streams SET state = %s WHERE name = %s", (right, name))
            healer.execute(postgres_rewriting._CUT_OFF.encode())
            waiting = asyncio.create_task(other.refresh(answer, scope=MORE))
            await asyncio.sleep(0.5)
            assert not waiting.done()
        assert Refusal.INVALID_SCOPE is await refused(waiting)
        await other.refresh(answer)


async def test_whoever_rewrites_is_not_cut_off_itself(tmp_path: Path) -> None:
    """Also where the URL gives all connections a name that begins like those of who decides."""
    async with open_ledger(tmp_path) as opened:
        url = url_of(opened.path)
        assert url is not None
        address = Address(url + ("&" if "?" in url else "?") + "application_name=token-ledger%20mine")
        of_nobody = "INSERT INTO streams SELECT * FROM streams WHERE name = ?"
        assert 1 == await asyncio.to_thread(postgres_rewriting.rewrite, address, lambda reads: [(of_nobody, [("",)])])


async def test_nothing_is_written_anew_beside_a_batch_under_way(tmp_path: Path) -> None:
    """It would be derived from what stood there before that batch, and put over what the batch has written (I-09)."""
    async with open_ledger(tmp_path) as opened:
        url, derived = url_of(opened.path), threading.Event()
        assert url is not None

        def derive(reads: Reads) -> list[tuple[str, list[tuple[object, ...]]]]:
            derived.set()
            return []

        with psycopg.connect(url) as batch:
            batch.execute(f"SELECT pg_advisory_xact_lock_shared({LOCK})".encode())
            rewriting = asyncio.create_task(asyncio.to_thread(opened.store.rewrite, derive))
            while not asked(opened, WAITS):
                assert not derived.is_set()
                await asyncio.sleep(0.01)
        await rewriting
        assert derived.is_set()
