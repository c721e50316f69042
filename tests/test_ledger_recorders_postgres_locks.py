"""The lock on authority: what it keeps in order, and for how long somebody who is frozen may keep it (I-06, I-24)."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from ledger.answers import TokenAnswer
from ledger.recorders import postgres, postgres_connections, postgres_errors, postgres_moves, postgres_refresh
from ledger.recorders.errors import StoreError
from ledger.recorders.rows import Reads
from ledger.refusals import Refusal, Refused, Unavailable
from tests.appending import Appending
from tests.engines import url_of
from tests.ledgers import OPTIONS, SECURITY, Opened, check_ledger, open_ledger, two_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

BACK_SECONDS_MAX = 10.0
WAITING_SECONDS_MAX = 30.0
SHARED = "PERFORM pg_advisory_xact_lock_shared({lock});"
CHECKED = "OR told_serial <> p_serial THEN\n    RETURN;\n  END IF;\n"


def dawdle(appending: Appending) -> None:
    """Let a batch of refreshes take its time between having read the control counter and writing."""
    these = "true" if appending.plain else "p_new_control IS NULL AND cardinality(p_event_v) > 0"
    appending.let(CHECKED, f"{CHECKED}  IF {these} THEN PERFORM pg_sleep(0.4); END IF;\n")


async def until(opened: Opened, sql: str) -> None:
    """Wait until the server's answer to a question has a row."""
    url = url_of(opened.path)
    assert url is not None
    with psycopg.connect(url, autocommit=True) as connection:
        async with asyncio.timeout(WAITING_SECONDS_MAX):
            while not connection.execute(sql.encode()).fetchall():
                await asyncio.sleep(0.01)


async def end_while_a_batch_is_written(folder: Path) -> None:
    """One node ends a person's grants while the other has checked that nobody did, and not written yet."""
    async with two_nodes(folder) as (one, other):
        answer = await other.refresh(await other.issue())  # from where it comes again
        refreshing = asyncio.ensure_future(other.refresh(answer))
        await until(one, "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")
        await one.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        ended_at = one.ledger.acknowledged_position
        answer = await refreshing
        assert answer.position < ended_at, "a refresh behind the acknowledged end of its person"
        assert Refusal.REVOKED_BY_SUBJECT is (await other.refused(answer)).refusal


async def test_an_end_waits_for_the_batches_that_have_not_heard_of_it(tmp_path: Path, appending: Appending) -> None:
    """I-06: what was decided before it is in the log before it, however slow it was; what comes after is refused."""
    dawdle(appending)
    await end_while_a_batch_is_written(tmp_path)


async def test_without_the_lock_a_refresh_would_stand_behind_the_end(tmp_path: Path, appending: Appending) -> None:
    """The broken twin of the test above: batches take no lock."""
    dawdle(appending)
    appending.let(SHARED, "")
    with pytest.raises(AssertionError, match="behind the acknowledged end"):
        await end_while_a_batch_is_written(tmp_path)


# ---------------------------------------------------------------- two at once


async def redeem_on_both(folder: Path, appending: Appending) -> None:
    """One node redeems a token while the other has found that nobody did, and not written yet."""
    taken = "  base := (pg_current_xact_id()"
    these = "true" if appending.plain else "p_new_control IS NULL AND cardinality(p_event_v) > 0"
    appending.let(taken, f"  IF {these} THEN PERFORM pg_sleep(0.4); END IF;\n{taken}")
    async with two_nodes(folder) as (one, other):
        answer = await other.refresh(await other.issue())
        redeeming = asyncio.ensure_future(other.refresh(answer))
        await until(one, "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")
        here, there = await one.refresh(answer), await redeeming
        assert here.refresh_token == there.refresh_token
        assert 2 == one.topics(answer).count("token_rotated"), "redeemed twice"


async def test_a_token_that_two_nodes_redeem_at_once_is_redeemed_once(tmp_path: Path, appending: Appending) -> None:
    """I-01: whoever writes has the row; who finds it taken is lost, and decides again on what has come of it."""
    await redeem_on_both(tmp_path, appending)


async def test_without_the_row_it_would_be_redeemed_by_each(tmp_path: Path, appending: Appending) -> None:
    """The broken twin of the test above: the version is looked at, and the row is not taken. Nor does anybody notice
    that it is not where it was."""
    take_no_row(appending)
    if appending.plain:
        appending.let("ctid = _place AND " if appending.name == "ledger_refresh" else "s.ctid = m.place AND ", "")
        appending.let("RAISE EXCEPTION 'a row that is locked is not where it was'", "NULL")
    with pytest.raises(AssertionError, match="redeemed twice"):
        await redeem_on_both(tmp_path, appending)


@pytest.mark.parametrize("appending", [postgres_refresh, postgres_moves], ids=["alone", "plain"], indirect=True)
async def test_a_row_that_is_not_where_it_was_is_not_written(tmp_path: Path, appending: Appending) -> None:
    """Should what is locked be gone from its place all the same, no event is written without its head."""
    take_no_row(appending)
    with pytest.raises(Unavailable):
        await redeem_on_both(tmp_path, appending)


def take_no_row(appending: Appending) -> None:
    """Let a batch look at the versions and take no row."""
    of = "" if appending.name == "ledger_refresh" else " OF s"
    appending.let(f" FOR NO KEY UPDATE{of} SKIP LOCKED", "")


# ---------------------------------------------------------------- rows that two nodes want


AS_THEY_COME = {
    "private_subjects": {"= ANY (lost) ORDER BY 1": "= ANY (lost)"},
    "private_grants": {
        "SELECT stream FROM private_grants WHERE stream IN (": "SELECT stream FROM (",
        ") ORDER BY stream FOR NO KEY UPDATE": ") AS asked (stream)",
    },
}
"""Tables whose rows another node may be at too, and how the function would take them in whatever order."""


def tell(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Tell or ask the server something, past the ledger."""
    url = url_of(path)
    assert url is not None
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def forget_the_order(path: Path, table: str) -> None:
    """Let the function take the rows of a table as they come."""
    ((definition,),) = tell(path, "SELECT pg_get_functiondef('ledger_append'::regproc)")
    for right, other in AS_THEY_COME[table].items():
        assert 1 == definition.count(right)
        definition = definition.replace(right, other)
    tell(path, definition)


async def want_the_same_rows(folder: Path, table: str, monkeypatch: pytest.MonkeyPatch, *, ordered: bool) -> None:
    """Two nodes write the same rows of a table at once, each from the other end, and slowly."""
    told: list[str] = []

    def noted(error: psycopg.Error) -> StoreError:
        told.append(type(error).__name__)
        return postgres_errors.translated(error)

    async with two_nodes(folder) as (one, other):
        over = [await one.issue(f"person-{n}") for n in range(8)]
        for answer in over:  # the other node knows them too
            assert await other.ledger.introspect(SECURITY, answer.access_token) is not None
        await one.ledger.operators.revoke_client(SECURITY, "www", None, None)
        if not ordered:
            forget_the_order(one.path, table)
        tell(one.path, "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
                       " 'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END'")  # fmt: skip
        slowly = "BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION dawdle()"
        tell(one.path, f"CREATE TRIGGER dawdle {slowly.format(table)}")
        monkeypatch.setattr(postgres, "translated", noted)
        asked: list[Awaitable[object]] = []
        for node, step in ((one, 1), (other, -1)):
            if table == "private_subjects":
                asked += [node.issue(f"new-{n}") for n in range(8)[::step]]
            else:
                asked += [node.refused(answer) for answer in over[::step]]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert "DeadlockDetected" not in told, "they waited for each other"
        assert {TokenAnswer if table == "private_subjects" else Refused} == {*map(type, answers)}


@pytest.mark.parametrize("table", AS_THEY_COME)
async def test_two_nodes_that_want_the_same_rows_do_not_wait_for_each_other(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New persons who come to both at once, and nonces that both forget: whoever came first has all of them."""
    await want_the_same_rows(tmp_path, table, monkeypatch, ordered=True)


@pytest.mark.parametrize("table", AS_THEY_COME)
async def test_rows_that_are_taken_as_they_come_are_waited_for_in_a_circle(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above."""
    with pytest.raises(AssertionError, match="waited for each other"):
        await want_the_same_rows(tmp_path, table, monkeypatch, ordered=False)


# ---------------------------------------------------------------- frozen with the lock


class Frozen:
    """Heals rows in the transaction that has the log to itself, and freezes in it."""

    def __init__(self) -> None:
        self.thawed = threading.Event()

    def derive(self, reads: Reads) -> Sequence[tuple[str, Sequence[tuple[object, ...]]]]:
        self.thawed.wait(60)
        return ()


async def freeze_with_the_lock(folder: Path, idle: str, monkeypatch: pytest.MonkeyPatch, within_seconds: float) -> None:
    """Refresh while somebody is frozen who has the lock alone; `idle` is how long a silent transaction may live."""
    guards = postgres_connections._GUARDED
    five = "'idle_in_transaction_session_timeout', '5s'"
    assert five in guards
    monkeypatch.setattr(postgres_connections, "_GUARDED", guards.replace(five, five.replace("5s", idle)))
    options = msgspec.structs.replace(OPTIONS, request_timeout_seconds=within_seconds / 2)
    async with open_ledger(folder, options=options) as opened:
        answer = await opened.issue()
        frozen = Frozen()
        healing = asyncio.create_task(asyncio.to_thread(opened.store.rewrite, frozen.derive))
        await until(opened, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted")
        try:
            begun = time.monotonic()
            while True:
                try:
                    await opened.refresh(answer)
                    break
                except Unavailable:
                    assert time.monotonic() - begun < within_seconds, "not back in time (I-24)"
        finally:
            frozen.thawed.set()
            told = (await asyncio.gather(healing, return_exceptions=True))[0]
        assert time.monotonic() - begun < within_seconds
        assert isinstance(told, StoreError), "who was ended for silence is told so"
    check_ledger(opened.path)


async def test_who_freezes_with_the_lock_holds_nobody_up_for_long(
    tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-24: the server ends a transaction that has been silent for five seconds (one, unless `--full`), and refreshes
    succeed within ten."""
    await freeze_with_the_lock(tmp_path, "5s" if full else "1s", monkeypatch, BACK_SECONDS_MAX)


async def test_without_an_end_to_silence_everybody_would_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above."""
    with pytest.raises(AssertionError, match="not back in time"):
        await freeze_with_the_lock(tmp_path, "0", monkeypatch, 3.0)
