"""The store on PostgreSQL while its commits wait for a standby that is away: what no standby has is told to nobody."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from ledger.application import Options
from ledger.refusals import Unavailable
from tests.ledgers import OPTIONS, SECURITY, Opened, check_ledger, open_ledger
from tests.postgres import Server
from tests.test_ledger_recorders_postgres import OURS, asked, options, refreshed

__all__ = ["options"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

AWAY_SECONDS = 15.0
"""Longer than an answer is waited for, and an outcome looked for after it. A quarter of it where those are."""

BACKENDS_MAX = 4
"""One that waits with a batch, one that tries to get behind it, readers."""


@contextmanager
def no_standby(postgres: Server) -> Iterator[None]:
    """Commits wait for a standby, and there is none."""

    def tell(setting: str) -> None:
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("SET synchronous_commit = local")
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{setting}'".encode())
            connection.execute("SELECT pg_reload_conf()")

    tell("nobody")
    while not commit_waits(postgres):  # the server heeds it a moment later
        pass
    try:
        yield
    finally:
        tell("")


def commit_waits(postgres: Server) -> bool:
    """Whether a commit waits for a standby by now."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as asking:
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as trying:
            pid = trying.info.backend_pid

            def commit() -> None:
                with contextlib.suppress(psycopg.Error):  # it is ended where it waits
                    trying.execute("SELECT pg_logical_emit_message(true, 'trial', '')")

            thread = threading.Thread(target=commit)
            thread.start()
            waits = False
            while thread.is_alive() and not waits:
                waiting = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
                waits = asking.execute(waiting, (pid,)).fetchone() is not None
            asking.execute("SELECT pg_terminate_backend(%s)", (pid,))
            thread.join()
        return waits


def rotations(opened: Opened) -> int:
    """How many of the one grant's rotations anybody can see."""
    ((count,),) = asked(opened, "SELECT count(*) FROM events WHERE body LIKE '%token_rotated%'")
    assert isinstance(count, int)
    return count


def our_backends(opened: Opened) -> int:
    return len(asked(opened, f"SELECT 1 FROM pg_stat_activity WHERE {OURS}"))


async def test_a_commit_that_waits_for_a_standby_is_not_shown_by_looking_for_it(
    tmp_path: Path, postgres: Server, options: Options
) -> None:
    """I-09, I-11: PostgreSQL lets everybody see a commit whose wait is ended, on one machine as it is. So it is left
    waiting: its outcome is unknown, nobody reads it, and it is there when a standby is."""
    async with open_ledger(tmp_path, options=options) as opened:
        answer = await opened.issue()
        with no_standby(postgres):
            away_seconds = AWAY_SECONDS * options.request_timeout_seconds / OPTIONS.request_timeout_seconds
            refused, deadline = 0, time.monotonic() + away_seconds
            while time.monotonic() < deadline:
                with pytest.raises(Unavailable):
                    await opened.refresh(answer)
                refused += 1
                assert 0 == rotations(opened)
                await asyncio.sleep(0.1)
            assert refused > 1
            assert our_backends(opened) <= BACKENDS_MAX
        await refreshed(opened, answer)
        assert 1 == rotations(opened)
    check_ledger(opened.path)


async def test_what_a_primary_alone_had_when_it_crashed_is_not_told(
    tmp_path: Path, postgres: Server, options: Options, full: bool
) -> None:
    """I-09: after its restart everybody sees what it had committed for itself; nothing is decided on that before a
    standby has it."""
    async with open_ledger(tmp_path, options=options) as opened:
        answer = await opened.issue()
        with no_standby(postgres):
            refresh = asyncio.create_task(opened.refresh(answer))
            while not asked(opened, f"SELECT 1 FROM pg_stat_activity WHERE {OURS} AND wait_event = 'SyncRep'"):
                await asyncio.sleep(0.01)
            postgres.kill()
            postgres.start()
            assert 1 == rotations(opened)
            with pytest.raises(Unavailable):
                await refresh
            deadline = time.monotonic() + (AWAY_SECONDS if full else 0.1)
            while time.monotonic() < deadline:
                with pytest.raises(Unavailable):  # nor who writes nothing, and would wait for no standby
                    await opened.ledger.introspect(SECURITY, answer.refresh_token or "")
                with pytest.raises(Unavailable):
                    await opened.refresh(answer)
                await asyncio.sleep(0.1)
            assert our_backends(opened) <= BACKENDS_MAX
        again = await refreshed(opened, answer)
        assert 1 == rotations(opened)
        await opened.refresh(again)
    check_ledger(opened.path)
