"""When lines of the archive are withheld: what the log bears witness to, how often it is looked, and by whom."""

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from ledger import archiving
from ledger.recorders import postgres_segments
from ledger.recorders.errors import StoreBusy
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_segments import PostgresSegments
from ledger.withholding import Withholding
from tests.archived_twins import archived_twin, lived, rebuilt
from tests.archives import archive, reopened
from tests.engines import alter, only_on_postgres
from tests.ledgers import SECURITY, Opened, client, open_ledger, with_policy

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def test_runs_of_the_same_day_do_not_look_at_the_whole_archive_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every segment costs, with nothing in it due, it costs once a day; whoever asks for a run gets all of it."""
    looked: list[int] = []
    real = Withholding._due

    def counted(self: Withholding, segment: int, before: int, withhold_before: int) -> Any:
        looked.append(segment)
        return real(self, segment, before, withhold_before)

    monkeypatch.setattr(Withholding, "_due", counted)
    monkeypatch.setattr(archiving, "REST_SECONDS", 0.0)
    async with open_ledger(tmp_path) as opened:
        over = await opened.issue("ann")
        await opened.act("revoke", over.grant_id)
        for hours, expected in ((0, 1), (1, 0), (22, 0), (2, 1), (1, 0)):
            opened.clock.pass_seconds(hours * 3600)
            await opened.issue(f"after {hours}")
            opened.clock.pass_seconds(1)
            now, days = opened.clock.now, 30 * 86_400 * 10**6
            looked.clear()
            await opened.ledger.archiving.run(now, now - days, regular=True)
            assert expected == len(looked), hours
        await archive(opened, now, now - days)
        assert 1 == len(looked)


@only_on_postgres
@pytest.mark.usefixtures("made_small")
@pytest.mark.parametrize("broken", [False, True])
async def test_whoever_looks_at_many_segments_stays_the_one_who_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """Also where none of them is due, and nothing is written for long. The twin says nothing meanwhile, and another
    process takes over."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    monkeypatch.setattr(postgres_segments, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(postgres_segments, "KEEP_EVERY_SECONDS", 0.05)
    taken: list[bool] = []
    async with reopened(other, clock, "one") as opened:
        assert isinstance(opened.store, PostgresStore)
        another = PostgresSegments(opened.store.address)

        def slow(self: Withholding, segment: int, before: int, withhold_before: int) -> Any:
            if len(taken) < 6:
                time.sleep(0.2)
                taken.append(another.claim(regular=True))
            return [], []

        monkeypatch.setattr(Withholding, "_due", slow)
        if broken:
            monkeypatch.setattr(PostgresSegments, "keep", lambda self: None)
        with contextlib.suppress(StoreBusy):  # the twin is told so as it ends
            await archive(opened, withhold_before=opened.clock.now + 1)
        another.close()
    assert broken == any(taken)


AFTER, RETENTION = 90 * 86_400 * 10**6, 730 * 86_400 * 10**6


async def run_of_the_hour(opened: Opened) -> int:
    """As the settings have it; how many events were withheld."""
    now = opened.clock.now
    return (await archive(opened, now - AFTER, now - RETENTION)).withheld


@pytest.mark.parametrize("broken", [False, True])
async def test_a_clock_that_was_wrong_destroys_no_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """I-23: a run at a moment that nothing in the log bears witness to, also where a refresh was recorded at it. The
    twin that believes the clock gives up what a living grant's history says, and what ended a moment ago."""
    if broken:
        monkeypatch.setattr(Withholding, "_lag", lambda self, before: 0)
    async with open_ledger(tmp_path, clients=(client(), client("ever", policy=UNLIMITED))) as opened:
        lives, over = await opened.issue("ann"), await opened.issue("bob")
        ever = await opened.issue("eve", client_id="ever")
        lives = await opened.chain(lives, 2)
        await opened.act("revoke", over.grant_id)
        expected = await opened.refresh(ever, client_id="ever")
        opened.clock.pass_seconds(5 * 365 * 86_400)
        ever = await opened.refresh(expected, client_id="ever")
        assert (7 if broken else 0) == await run_of_the_hour(opened)
        opened.clock.pass_seconds(60 - 5 * 365 * 86_400)
        assert 0 == await run_of_the_hour(opened)
        if not broken:
            await opened.chain(lives, 1)
    assert (2 if broken else 0) == rebuilt(tmp_path).withheld_count


UNLIMITED = with_policy("standard", refresh_token_ttl_seconds=None, grant_ttl_seconds=None)


@pytest.mark.parametrize("altered", ["'{' || body", """replace(body, '"at":"2', '"at":"x')"""])
async def test_an_altered_event_bears_no_witness(tmp_path: Path, altered: str) -> None:
    """And ends no run: what it is a rebuild says."""
    async with open_ledger(tmp_path) as opened:
        over, clock = await opened.issue("ann"), opened.clock
        await opened.act("revoke", over.grant_id)
        for _ in range(20):
            await opened.issue("bob")
        await opened.ledger.archiving.run(clock.now + 1)
    but_the_last = "position < (SELECT max(position) FROM events) AND body LIKE '%grant.issued%'"
    assert 19 == alter(tmp_path / "ledger.db", f"UPDATE events SET body = {altered} WHERE {but_the_last}")
    async with reopened(tmp_path, clock) as opened:
        assert 2 == (await archive(opened, withhold_before=clock.now + 1)).withheld


async def test_what_only_the_clock_says_is_over_is_withheld_once_the_log_says_how_late_it_is(tmp_path: Path) -> None:
    """Most grants end like this: nobody uses them any more. Their tokens can be made by nobody then."""
    async with open_ledger(tmp_path) as opened:
        grant = await opened.issue("ann")
        await opened.chain(grant, 2)
        for days, expected in ((200, 0), (500, 0), (150, 6), (1, 0)):
            await opened.issue(f"after {days}")
            opened.clock.pass_seconds(days * 86_400)
            assert expected == await run_of_the_hour(opened), days
        for expected in (1, 0):  # to its last event the log says how late it is, and no further
            opened.clock.pass_seconds(3_000 * 86_400)
            assert expected == await run_of_the_hour(opened)
        nonces = opened.rows("SELECT nonce IS NULL FROM private_grants ORDER BY stream")
        assert [1, 1, 1, 0, 0] == [none for (none,) in nonces]
        opened.check_memory()
    assert 3 == rebuilt(tmp_path).withheld_count


@pytest.mark.parametrize("whose", ["person", "client"])
async def test_what_ended_all_grants_at_once_happened_to_each_of_them(tmp_path: Path, whose: str) -> None:
    """A grant that nobody had used for years, and that was ended yesterday with all of its person's or client's: its
    history is what an inquiry asks for. One that had expired by then was not ended by that."""
    async with open_ledger(tmp_path, clients=(client(), client("ever", policy=UNLIMITED))) as opened:
        ended, _expired = await opened.issue("ann", client_id="ever"), await opened.issue("ann")
        opened.clock.pass_seconds(800 * 86_400)
        if whose == "person":
            await opened.ledger.operators.revoke_subject(SECURITY, "ann", "stolen", None)
        else:
            for client_id in ("ever", "www"):
                await opened.ledger.operators.revoke_client(SECURITY, client_id, "stolen", None)
        of_ended = "SELECT withheld FROM archived JOIN streams ON id = stream WHERE name = ?"
        for days, withheld, expected in ((91, 1, 0), (650, 0, 0), (91, 3, 1)):
            await opened.issue(f"after {days}")
            opened.clock.pass_seconds(days * 86_400)
            assert withheld == await run_of_the_hour(opened), days
            assert [(expected,)] == opened.rows(of_ended, f"grant:{ended.grant_id}"), days


async def test_an_end_that_cannot_be_read_gives_up_nothing(tmp_path: Path) -> None:
    """And ends no run: of the grants that it ended nobody can tell since when they are over."""
    async with open_ledger(tmp_path) as opened:
        await opened.issue("ann")
        over = await opened.issue("bob")
        await opened.act("revoke", over.grant_id)
        await opened.ledger.operators.revoke_subject(SECURITY, "ann", "stolen", None)
        await opened.issue("eve")
        await archive(opened)
        clock = opened.clock
    sql = "UPDATE events SET body = replace(body, '\"at\":\"2', '\"at\":\"x') WHERE body LIKE '%subject.revoked%'"
    assert 1 == alter(tmp_path / "ledger.db", sql)
    async with reopened(tmp_path, clock) as opened:
        assert 2 == (await archive(opened, withhold_before=clock.now + 1)).withheld
