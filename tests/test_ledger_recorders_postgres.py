"""The store on PostgreSQL when its server, its connection or somebody else's lock is in the way."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psycopg
import pytest

from ledger import commits
from ledger.answers import Caller, TokenAnswer
from ledger.application import Options
from ledger.recorders import postgres as postgres_store
from ledger.recorders import postgres_connections, postgres_reading
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_connections import Address, Connection
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.premises import CheckedWork, Written
from ledger.refusals import Unavailable
from ledger.single_use import SingleUse
from ledger.times import SECOND
from tests import engines, postgres_proxy
from tests.engines import url_of
from tests.ledgers import HOME, OPTIONS, START, Opened, caller, check_ledger, open_ledger
from tests.postgres import Server, running
from tests.postgres_proxy import Proxy, proxied

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

BACK_SECONDS_MAX = 10.0
"""I-24: so long after a fault has healed a refresh may take to succeed again."""


@pytest.fixture
def options(full: bool, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Options, and with them every time that somebody is waited for: a quarter of it, unless `--full`."""
    if full:
        return OPTIONS
    guards = postgres_connections._GUARDED
    for guard, shorter in (("'5s'", "'1250ms'"), ("'4s'", "'1s'")):
        assert guard in guards
        guards = guards.replace(guard, shorter)
    monkeypatch.setattr(postgres_connections, "_GUARDED", guards)
    monkeypatch.setattr(postgres_connections, "SECONDS_MAX", 2)  # for connecting libpq knows no less
    for module, name in (
        (postgres_connections, "ANSWER_SECONDS_MAX"),
        (postgres_store, "OUTCOME_SECONDS_MAX"),
        (commits, "UNREADY_AFTER_SECONDS"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) / 4)
    return msgspec.structs.replace(OPTIONS, request_timeout_seconds=OPTIONS.request_timeout_seconds / 4)


@asynccontextmanager
async def behind_a_proxy(
    folder: Path, postgres: Server, seed: int = 1, options: Options = OPTIONS
) -> AsyncIterator[tuple[Opened, Proxy]]:
    """A ledger whose way to the server goes through a proxy."""
    path = folder / "ledger.db"
    if (url := url_of(path)) is None:
        url = postgres.create_database()
    direct = engines._urls[path] = postgres.over_tcp(url)
    with proxied(postgres.port) as proxy:
        engines._urls[path] = direct.replace(f":{postgres.port}/", f":{proxy.port}/")
        async with open_ledger(folder, seed=seed, options=options) as opened:
            engines._urls[path] = direct  # for whoever looks
            yield opened, proxy


def asked(opened: Opened, sql: str) -> list[tuple[object, ...]]:
    """Ask or tell the server something, past the ledger."""
    url = url_of(opened.path)
    assert url is not None
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


OURS = "application_name LIKE 'token-ledger %' AND datname = current_database()"


async def refreshed(opened: Opened, answer: TokenAnswer, within_seconds: float = BACK_SECONDS_MAX) -> TokenAnswer:
    """Refresh until it succeeds, as a client does that is told to ask again."""
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            return await opened.refresh(answer)
        except Unavailable:
            assert time.monotonic() < deadline, "not back in time (I-24)"
            await asyncio.sleep(0.05)


async def test_a_connection_that_was_ended_is_made_anew(tmp_path: Path) -> None:
    """An administrator ends it while nobody asks: the next request is answered, without an error."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        for _ in range(5):
            asked(opened, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
            answer = await opened.refresh(answer)
            assert opened.ledger.readiness() is None
    check_ledger(opened.path)


async def test_a_batch_whose_connection_was_ended_before_it_wrote_is_decided_again(tmp_path: Path) -> None:
    """It waited for a lock, so nothing of it was written, which is found out: everybody is answered all the same."""
    async with open_ledger(tmp_path) as opened:
        answers = [await opened.issue(f"person-{n}") for n in range(5)]
        url = url_of(opened.path)
        assert url is not None
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(f"SELECT pg_advisory_lock({LOCK})".encode())
            waiting = asyncio.gather(*(opened.refresh(each) for each in answers))
            while not asked(opened, f"SELECT 1 FROM pg_stat_activity WHERE {OURS} AND wait_event_type = 'Lock'"):
                await asyncio.sleep(0.01)
            asked(opened, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
            await asyncio.sleep(0.2)
        done = await waiting
        assert 5 == len({answer.refresh_token for answer in done})
        assert ["issued", "token_redeemed", "token_rotated"] == opened.topics(done[0])
    check_ledger(opened.path)


@pytest.mark.parametrize("together", [1, 8])
async def test_an_answer_that_was_lost_is_found_out(
    tmp_path: Path, postgres: Server, together: int, count: Callable[[int, int], int]
) -> None:
    """I-10, I-11: COMMIT was durable and its answer was cut: our own write is recognised, and everybody is answered
    with what it says; nobody is taken for a thief."""
    async with behind_a_proxy(tmp_path, postgres) as (opened, proxy):
        answers = [await opened.issue(f"person-{n}") for n in range(together)]
        cuts = count(6, 200) // (2 if together > 1 else 1)
        for _ in range(cuts):
            proxy.cuts = 1
            answers = list(await asyncio.gather(*(opened.refresh(each) for each in answers)))
            assert max(answer.position for answer in answers) == opened.ledger.acknowledged_position
        assert cuts == proxy.cut
        for answer in answers:
            assert cuts == opened.topics(answer).count("token_rotated")
            assert answer.position == opened.rows("SELECT position FROM streams WHERE name = ?",
                                                  f"grant:{answer.grant_id}")[0][0]  # fmt: skip
        opened.check_memory()
    check_ledger(opened.path)


async def test_a_batch_that_is_looked_for_cannot_be_written_any_more(tmp_path: Path, postgres: Server) -> None:
    """I-10, I-11: the way to the server was cut while the batch waited there for a lock, and its backend does not
    notice. It is ended before anybody looks, or it would write after its requests were decided again."""
    async with behind_a_proxy(tmp_path, postgres) as (opened, proxy):
        answer = await opened.issue()
        url = url_of(opened.path)
        assert url is not None
        waits = f"SELECT pid FROM pg_stat_activity WHERE {OURS} AND wait_event_type = 'Lock'"
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE events IN SHARE MODE")
            refresh = asyncio.create_task(opened.refresh(answer))
            while not (left := asked(opened, waits)):
                await asyncio.sleep(0.01)
            proxy.part()
            proxy.parted = False
            deadline = time.monotonic() + 2  # before it gives up by itself
            while {*left} & {*asked(opened, waits)}:
                assert time.monotonic() < deadline, "it may still be written"
                await asyncio.sleep(0.01)
        await refresh
        assert ["issued", "token_redeemed", "token_rotated"] == opened.topics(answer)
    check_ledger(opened.path)


async def test_what_another_has_written_meanwhile_is_not_taken_for_ones_own(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-06, I-11: a revocation was lost on its way, and where its event would stand another node's is by the time that
    it is looked for. It is decided again: else it would be acknowledged, and the grant would live."""
    found, loop = postgres_store._found, asyncio.get_running_loop()
    monkeypatch.setattr(postgres_proxy, "ROTATION", b"grant.revoked")
    async with (
        behind_a_proxy(tmp_path, postgres) as (opened, proxy),
        open_ledger(tmp_path, seed=2, clients=None) as other,
    ):
        first = await opened.issue()
        elsewhere: list[TokenAnswer] = []

        def late(connection: Connection, work: CheckedWork) -> Written | None:
            if not elsewhere:
                elsewhere.append(asyncio.run_coroutine_threadsafe(other.refresh(first), loop).result())
            return found(connection, work)

        monkeypatch.setattr(postgres_store, "_found", late)
        proxy.cuts, proxy.cut_when = 1, "before"
        await opened.act("revoke", first.grant_id)
        assert (1, 1) == (proxy.cut, len(elsewhere))
        assert ["issued", "token_redeemed", "token_rotated", "revoked"] == opened.topics(first)
    check_ledger(opened.path)


async def test_a_cut_answer_that_is_not_looked_for_is_unknown(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above: nobody can be answered. The retry is served all the same (I-10)."""
    monkeypatch.setattr(PostgresStore, "is_there", lambda self, work: None)
    async with behind_a_proxy(tmp_path, postgres) as (opened, proxy):
        first = await opened.issue()
        proxy.cuts = 1
        with pytest.raises(Unavailable):
            await opened.refresh(first)
        second = await refreshed(opened, first)
        assert ["issued", "token_redeemed", "token_rotated", "retry_served"] == opened.topics(first)
        await opened.refresh(second)
    check_ledger(opened.path)


def showing(identifier: str) -> Caller:
    """A client with an assertion that may be used once."""
    spends = SingleUse(kind="assertion", owner="www", identifier=identifier, expires_at=START + 60 * SECOND)
    return msgspec.structs.replace(caller(), auth_method="private_key_jwt", single_use=(spends,))


async def lose_an_answer_to_who_spends(folder: Path, postgres: Server, contested: bool) -> None:
    """An answer is cut to a batch in which a grant is refreshed, and assertions are spent by who appends nothing;
    `contested`: the refresh is lost to another node's, so that of the whole batch no event is there."""
    async with behind_a_proxy(folder, postgres) as (opened, proxy):
        first, second = await opened.issue("first"), await opened.issue("second")
        current = await opened.refresh(second)
        await opened.refresh(second)  # a retry that is recorded; the next one is no news
        if contested:
            async with open_ledger(folder, seed=2, clients=None) as other:
                await other.refresh(first)
        ledger = opened.ledger
        assert second.refresh_token is not None
        assert current.refresh_token is not None
        proxy.cuts = 1
        answer, *told = await asyncio.gather(
            opened.refresh(first),
            ledger.introspect(showing("1"), current.refresh_token),
            ledger.refresh(showing("2"), HOME, second.refresh_token, None, None),
            return_exceptions=True,
        )
        assert 1 == proxy.cut
        assert isinstance(answer, TokenAnswer)
        assert [Unavailable, Unavailable] == [type(each) for each in told], "refused for a use of their own"
        assert await ledger.introspect(showing("3"), current.refresh_token) is not None
        again = await ledger.refresh(showing("4"), HOME, second.refresh_token, None, None)
        assert current.refresh_token == again.refresh_token
        assert [(4,)] == opened.rows("SELECT count(*) FROM single_use")
        opened.check_memory()
    check_ledger(opened.path)


@pytest.mark.parametrize("contested", [False, True], ids=["written", "lost"])
async def test_whose_use_may_have_been_written_is_not_refused_for_it(
    tmp_path: Path, postgres: Server, contested: bool
) -> None:
    """I-10: no event says whether such a request was written. It is not decided again, where it would find its own
    assertion used: it is told that nobody knows, and comes with a new one."""
    await lose_an_answer_to_who_spends(tmp_path, postgres, contested)


@pytest.mark.parametrize("contested", [False, True], ids=["written", "lost"])
async def test_deciding_it_again_would_find_its_own_use(
    tmp_path: Path, postgres: Server, contested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above: whoever left no event passes for lost."""
    found = postgres_store._found

    def by_events_alone(connection: Connection, work: CheckedWork) -> Written | None:
        written = found(connection, work)
        return None if written is None or not written.base else written._replace(unknown=frozenset())

    monkeypatch.setattr(postgres_store, "_found", by_events_alone)
    with pytest.raises(AssertionError, match="a use of their own"):
        await lose_an_answer_to_who_spends(tmp_path, postgres, contested)


async def test_a_network_that_parts_heals(tmp_path: Path, postgres: Server, options: Options) -> None:
    """I-24: unready while the server is away, and back by itself; who has waited too long is told to ask again."""
    async with behind_a_proxy(tmp_path, postgres, options=options) as (opened, proxy):
        answer = await opened.refresh(await opened.issue())
        proxy.part()
        waiting = asyncio.create_task(opened.refresh(answer))
        deadline = time.monotonic() + 9
        while opened.ledger.readiness() is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        proxy.parted = False
        with contextlib.suppress(Unavailable):
            answer = await waiting
        await refreshed(opened, answer)
        assert opened.ledger.readiness() is None
    check_ledger(opened.path)


async def test_a_network_that_falls_silent_is_given_up(tmp_path: Path, postgres: Server, options: Options) -> None:
    """Nothing comes back and nothing is closed: nobody waits for longer than a request may, and it heals."""
    async with behind_a_proxy(tmp_path, postgres, options=options) as (opened, proxy):
        answer = await opened.refresh(await opened.issue())
        proxy.silent.set()
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await opened.refresh(answer)
        assert time.monotonic() - begun < options.request_timeout_seconds + 2
        proxy.silent.clear()
        await refreshed(opened, answer)
    check_ledger(opened.path)


async def test_a_server_that_is_started_again_is_found_again(
    tmp_path: Path, count: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-09, I-24: killed under load and started again; nothing acknowledged is lost, no family is ended, and the ledger
    goes on without a restart of its own."""
    with running(fsync="on") as server:
        monkeypatch.setattr(engines, "_servers", [server])
        async with open_ledger(tmp_path) as opened:
            newest = {n: await opened.issue(f"person-{n}") for n in range(6)}
            stop = asyncio.Event()

            async def walk(n: int) -> None:
                while not stop.is_set():
                    newest[n] = await refreshed(opened, newest[n], 30)

            walks = [asyncio.create_task(walk(n)) for n in newest]
            for _ in range(count(2, 20)):
                await asyncio.sleep(0.5)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                before = opened.ledger.refreshed
                healed = time.monotonic()
                while opened.ledger.refreshed == before:
                    assert time.monotonic() - healed < BACK_SECONDS_MAX
                    await asyncio.sleep(0.02)
            stop.set()
            await asyncio.gather(*walks)
            for answer in newest.values():
                assert answer.position <= opened.last_position()
                assert "revoked" not in opened.topics(answer)
                await opened.refresh(answer)
        check_ledger(opened.path)
        engines._urls.clear()


async def test_whoever_holds_the_lock_is_not_waited_for_without_end(tmp_path: Path, options: Options) -> None:
    """Somebody keeps the lock on authority: requests are told to ask again when their time has passed, the node says
    that it is unready, and when the lock is given back it goes on."""
    async with open_ledger(tmp_path, options=options) as opened:
        answer = await opened.issue()
        url = url_of(opened.path)
        assert url is not None
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(f"SELECT pg_advisory_lock({LOCK})".encode())
            with pytest.raises(Unavailable):
                await opened.refresh(answer)
            assert opened.ledger.readiness() is not None
        await refreshed(opened, answer)
        assert opened.ledger.readiness() is None
    check_ledger(opened.path)


@pytest.mark.usefixtures("appending")
async def test_an_answer_that_comes_byte_by_byte_is_waited_for(tmp_path: Path, postgres: Server) -> None:
    """Half of one says nothing yet, whoever waits for it."""
    async with behind_a_proxy(tmp_path, postgres) as (opened, proxy):
        answer = await opened.refresh(await opened.issue())
        proxy.bytewise.set()
        answer = await opened.chain(answer, 3)
        assert 4 == opened.topics(answer).count("token_rotated")
        proxy.bytewise.clear()


@pytest.mark.usefixtures("appending")
async def test_a_row_that_somebody_has_locked_stalls_nobody_else(tmp_path: Path) -> None:
    """A transaction of somebody else's keeps one grant's row: its request is decided again and again until its time has
    passed, all others are answered as ever."""
    async with open_ledger(tmp_path) as opened:
        held, *others = [await opened.refresh(await opened.issue(f"person-{n}")) for n in range(4)]
        url = url_of(opened.path)
        assert url is not None
        with psycopg.connect(url) as other:
            other.execute("SELECT FROM streams WHERE name = %s FOR UPDATE", (f"grant:{held.grant_id}",))
            waiting = asyncio.create_task(opened.refresh(held))
            await asyncio.sleep(0.05)  # it comes alone: whoever waits for the row keeps all who come behind it
            for _ in range(5):
                others = list(await asyncio.gather(*(opened.refresh(each) for each in others)))
            assert not waiting.done()
        await waiting
    check_ledger(opened.path)


async def test_what_is_asked_for_goes_by_index_before_anything_was_counted(tmp_path: Path) -> None:
    """The planner knows nothing of a new store's tables: a way back along a stream must not read all events at each of
    its steps all the same."""
    async with open_ledger(tmp_path) as opened:
        answer = await opened.chain(await opened.issue(), 40)
        assert 1 == len(opened.store.within().events(f"grant:{answer.grant_id}", 5, 5))
        url = url_of(opened.path)
        assert url is not None
        with Address(url).connect() as connection:  # with the guards that all of ours have
            explained = connection.execute(f"EXPLAIN (COSTS off) {postgres_reading._WALK}".encode(), (1, 2, 3))
            plan = "\n".join(line for (line,) in explained.fetchall())
        assert ("Nested Loop" in plan, "Join" in plan, "Seq Scan" in plan) == (True, False, False)
