"""Opening the store on PostgreSQL: what is refused, with one line each, and where positions go on (I-09)."""

import asyncio
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ledger import operators
from ledger.clients import LOCAL_OPERATOR
from ledger.recorders import postgres as postgres_store
from ledger.recorders import postgres_opening, postgres_schema
from ledger.recorders.errors import StoreError
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_errors import translated
from ledger.refusals import LedgerError, Unavailable
from projections import INLINE
from tests.engines import url_of
from tests.ledgers import Clock, Opened, check_ledger, open_ledger, two_nodes
from tests.postgres import running
from tests.server_process import eventually
from tests.test_ledger_recorders_postgres import OURS, asked, refreshed

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]


def test_what_init_has_not_made_is_not_opened(postgres_url: str) -> None:
    """`init` alone makes tables; what others have made there is left alone."""
    with pytest.raises(LedgerError, match="token-ledger init"):
        PostgresStore(postgres_url, INLINE).open("ring")
    store = PostgresStore(postgres_url, INLINE)
    assert (True, False) == (store.init("ring"), store.init("ring"))
    with pytest.raises(LedgerError, match="another key ring"):
        store.init("another")
    store.close()


def test_a_database_of_an_earlier_release_is_refused_by_name(postgres_url: str) -> None:
    """Its tables are others: nothing is read from them, and `init` does not touch them."""
    store = PostgresStore(postgres_url, INLINE)
    assert store.init("ring")
    with closing(Address(postgres_url).connect()) as connection:
        connection.execute("UPDATE meta SET value = '4' WHERE key = 'schema'")
        connection.execute("DROP FUNCTION ledger_move")  # it had none
    for opening in (store.open, store.init):
        with pytest.raises(LedgerError, match="schema 4 is not the 5 of this release"):
            opening("ring")


@pytest.mark.parametrize("name", ["ledger_append", "ledger_archive", "ledger_move", "ledger_refresh"])
def test_tables_without_this_releases_functions_are_not_served(postgres_url: str, name: str) -> None:
    """One line says what makes them; then they serve."""
    store = PostgresStore(postgres_url, INLINE)
    store.init("ring")
    with closing(Address(postgres_url).connect()) as connection:
        connection.execute(f"DROP FUNCTION {name}".encode())
    with pytest.raises(LedgerError, match=r"functions are missing; `token-ledger init` makes them$"):
        store.open("ring")
    again = PostgresStore(postgres_url, INLINE)
    assert not again.init("ring")
    again.open("ring")
    again.close()


def test_an_older_releases_function_is_not_served(postgres_url: str) -> None:
    """I-20: it would pass over rows that it does not know, or write them behind what erases them, and an erasure would
    say that it has done what it has not. A newer one, that knows more, serves."""
    PostgresStore(postgres_url, INLINE).init("ring")
    with closing(Address(postgres_url).connect()) as connection:
        asked = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = 'ledger_append'"
        ((made,),) = connection.execute(asked).fetchall()
        kept = re.search(r"    IF p_rows \? 'keep_reason' THEN.*?END IF;\n", made, re.DOTALL)
        assert kept is not None
        late = made.replace(kept[0], "").replace(
            "    IF p_rows ? 'forget_nonce'", f"{kept[0]}    IF p_rows ? 'forget_nonce'"
        )
        for older in (made.replace("'claim_grant'", "'claim'"), late):
            connection.execute(older.encode())
            with pytest.raises(LedgerError, match=r": this release's functions are missing; `token-ledger init` makes"):
                PostgresStore(postgres_url, INLINE).open("ring")
        connection.execute(made.replace("END IF;", "END IF; IF p_rows ? 'more' THEN END IF;", 1).encode())
        with closing(PostgresStore(postgres_url, INLINE)) as store:
            store.open("ring")


@pytest.fixture
def serving(postgres_url: str) -> Iterator[str]:
    """A store that was made by the owner of its tables, for another user who may do what serving needs; its URL."""
    store = PostgresStore(postgres_url, INLINE)
    store.init("ring")
    role = f"serving_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}".encode())
        connection.execute(f"REVOKE UPDATE, DELETE ON events FROM {role}".encode())
        yield postgres_url.replace("//postgres@", f"//{role}@")
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ("INSERT ON events", "INSERT on events"),
        ("DELETE, INSERT ON private_contexts", "DELETE on private_contexts, INSERT on private_contexts"),
        ("UPDATE ON current_tokens_v1", "UPDATE on current_tokens_v1"),
        ("SELECT ON archived", "SELECT on archived"),
        ("EXECUTE ON ROUTINE ledger_refresh", "EXECUTE on ledger_refresh"),
        ("EXECUTE ON ROUTINE ledger_append", "EXECUTE on ledger_append"),
    ],
)
def test_a_user_who_lacks_a_right_is_told_which(postgres_url: str, serving: str, right: str, expected: str) -> None:
    """At the start, not by the one request in a thousand that would need it."""
    role = conninfo_to_dict(serving)["user"]
    with closing(Address(postgres_url).connect()) as connection:
        whose = "PUBLIC" if "EXECUTE" in right else role
        connection.execute(f"REVOKE {right} FROM {whose}".encode())
    with pytest.raises(LedgerError, match=f": the user lacks rights: {expected}$"):
        PostgresStore(serving, INLINE).open("ring")


def test_a_user_who_may_not_see_it_is_told_of_what(postgres_url: str, serving: str) -> None:
    """Where a right is lacking that even looking needs."""
    with closing(Address(postgres_url).connect()) as connection:
        connection.execute(f"REVOKE SELECT ON control FROM {conninfo_to_dict(serving)['user']}".encode())
    with pytest.raises(StoreError, match=r"^PostgreSQL failed: permission denied for table control \(42501\)$"):
        PostgresStore(serving, INLINE).open("ring")


@pytest.mark.parametrize("table", ["streams", "private_grants"])
def test_rows_that_a_policy_hides_are_not_taken_for_rows_that_are_gone(
    postgres_url: str, serving: str, table: str
) -> None:
    """I-10: a token whose stream a policy hides would be refused for ever, a person who is erased would be kept. So
    nothing is served, and who serves already is given an error for an answer."""
    with closing(PostgresStore(serving, INLINE)) as store, closing(Address(postgres_url).connect()) as owner:
        store.open("ring")
        owner.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
        with pytest.raises(StoreError, match=rf'row-level security policy for table "{table}" \(42501\)$'):
            store._asked(lambda connection: connection.execute(f"SELECT FROM {table}".encode()))
        with pytest.raises(LedgerError, match=f": the user lacks rights: BYPASSRLS for {table}$"):
            PostgresStore(serving, INLINE).open("ring")
        with closing(PostgresStore(postgres_url, INLINE)) as of_the_owner:  # whom no policy holds
            of_the_owner.open("ring")


@pytest.mark.parametrize("earlier", [False, True])
def test_whoever_publishes_the_tables_keeps_nothing_from_being_written(postgres_url: str, *, earlier: bool) -> None:
    """I-05: of a table that is published the server changes no row that it cannot name to others. Refreshes, which
    change none of those, would go on, and neither a revocation nor a reuse could be recorded."""
    store = PostgresStore(postgres_url, INLINE)
    store.init("ring")
    with closing(Address(postgres_url).connect()) as connection:
        connection.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        if earlier:
            for table in postgres_schema.identities(INLINE):
                connection.execute(f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT".encode())
                with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
                    connection.execute(f"DELETE FROM {table}".encode())
                assert table in str(translated(refused.value))
            store.init("ring")
        for table in postgres_schema.tables(INLINE):
            connection.execute(f"DELETE FROM {table}".encode())


def test_who_may_not_clear_pages_does_not_say_that_it_has(postgres_url: str, serving: str) -> None:
    """`erase`: the server only warns whoever does not own the tables, and clears nothing."""
    store = PostgresStore(serving, INLINE)
    store.open("ring")
    with pytest.raises(Unavailable, match="only the owner of the tables may clear their pages"):
        store.truncate_log()
    store.close()
    for told in ("warning", "debug5"):  # whoever owns them has, however much else the server tells
        owned = PostgresStore(f"{postgres_url}&options=-cclient_min_messages%3D{told}", INLINE)
        assert owned.truncate_log()


def test_what_an_older_transaction_still_sees_is_not_said_to_be_cleared(postgres_url: str, serving: str) -> None:
    """`erase` beside a dump: the server keeps rows for it, and nothing would clear them after it."""
    store = PostgresStore(postgres_url, INLINE)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("INSERT INTO private_subjects VALUES ('a', 'b', 'somebody')")
        with psycopg.connect(postgres_url) as dump:
            dump.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            dump.execute("SELECT count(*) FROM events")
            connection.execute("DELETE FROM private_subjects")
            assert not store.truncate_log()
    eventually(store.truncate_log, what="cleared once the dump has ended")


def test_what_takes_too_long_to_clear_is_not_said_to_be_cleared(
    postgres_url: str, serving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`erase`: of a few rows among millions the server would clear none by itself, so what does is named."""
    monkeypatch.setattr(postgres_store, "_CLEAR", "DO $$ BEGIN RAISE query_canceled; END $$")  # as a time limit does
    with pytest.raises(Unavailable, match="let the tables' owner run DO "):
        PostgresStore(postgres_url, INLINE).truncate_log()


async def test_an_erasure_that_a_dump_still_sees_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while; whoever repeats it, once the dump has ended, is not told so again."""
    monkeypatch.setattr(operators, "CLEARING_TRIES_MAX", 2)
    async with open_ledger(tmp_path) as opened:
        await opened.issue("somebody")
        with psycopg.connect(url_of(opened.path) or "") as dump:
            dump.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            dump.execute("SELECT count(*) FROM events")
            with pytest.raises(Unavailable, match="an older reader, such as a dump, still sees it"):
                await opened.ledger.operators.erase(LOCAL_OPERATOR, "somebody")
        monkeypatch.undo()
        assert not await opened.ledger.operators.erase(LOCAL_OPERATOR, "somebody")


async def test_a_store_that_could_lose_what_it_acknowledged_is_refused(tmp_path: Path, postgres_url: str) -> None:
    """I-09: `synchronous_commit = off` is read back, and the ledger does not open."""
    async with open_ledger(tmp_path) as opened:
        pass
    name = (url_of(opened.path) or "").partition("?")[0].rpartition("/")[2]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    with pytest.raises(LedgerError, match="synchronous_commit is off"):
        async with open_ledger(tmp_path, seed=2, clients=None):
            pass


def test_a_server_that_no_power_cut_may_meet_is_told_of(postgres_url: str) -> None:
    """I-09: that is all of the server, so its owner has decided it: the ledger serves, and says so as it starts."""
    with running(fsync="on", full_page_writes="on") as durable:
        problems = []
        for url in (postgres_url, durable.create_database()):
            with closing(PostgresStore(url, INLINE)) as store:
                store.init("ring")
                store.open("ring")
                problems.append(store.power_cut)
    told, nothing = problems
    assert (told or "").endswith(
        "off at this server: fsync, full_page_writes; a power cut could lose what was acknowledged"
    )
    assert nothing is None


async def test_a_node_that_comes_back_to_what_could_lose_it_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """I-09: the setting was changed while it served, and its connection lost. It says so, in one line however often it
    tries, and once the setting is right it serves again."""
    monkeypatch.setattr(postgres_store, "OUTCOME_SECONDS_MAX", 0.2)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        ((name,),) = asked(opened, "SELECT current_database()")
        asked(opened, f"ALTER DATABASE {name} SET synchronous_commit = off")
        asked(opened, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
        end = opened.last_position()
        with pytest.raises(Unavailable):
            await opened.refresh(answer)
        waiting = asyncio.create_task(refreshed(opened, answer))
        await asyncio.sleep(0.5)
        (told,) = [vars(each)["fields"]["problem"] for each in caplog.records if each.message == "store_not_durable"]
        assert "synchronous_commit is off: what was acknowledged could be lost" in told
        assert (told, end) == (opened.ledger.commits.last_error, opened.last_position())
        asked(opened, f"ALTER DATABASE {name} SET synchronous_commit = on")
        answer = await waiting
        assert end < answer.position
        await opened.refresh(answer)
    check_ledger(opened.path)


async def test_a_log_that_was_moved_into_a_younger_cluster_goes_on_above_its_end(tmp_path: Path) -> None:
    """Transaction ids begin anew there: positions do not."""
    clock = Clock()
    async with open_ledger(tmp_path, clock=clock) as opened:
        answer = await opened.refresh(await opened.issue())
        # As if this cluster were younger than the one that the log comes from.
        asked(opened, "UPDATE events SET position = position + (1::bigint << 40)")
        asked(opened, "UPDATE events SET back = back + (1::bigint << 40) WHERE back > 0")
        asked(opened, "UPDATE streams SET position = position + (1::bigint << 40)")
        asked(opened, "UPDATE current_tokens_v1 SET position = position + (1::bigint << 40)")
        end = opened.last_position()
    (tmp_path / "ledger.head").unlink()  # there the positions would be those of the log
    async with open_ledger(tmp_path, clock=clock, seed=2, clients=None) as opened:
        answer = await opened.refresh(answer)
        assert end < answer.position
        with opened.store.reader() as reader:
            assert answer.position == reader.after(answer.position - 1, 9)[-1].position
    check_ledger(opened.path)


async def moved(nodes: Sequence[Opened]) -> tuple[int, list[int]]:
    """Where the log ended when it was moved, while nodes served from it, into a cluster that is younger; and the
    positions of what they wrote once they were all cut off and had found it there, at once."""
    asked(nodes[0], "UPDATE control SET position_offset = 1::bigint << 40")  # as if this one were older until then
    grants = [await nodes[0].issue(f"person-{number}") for number in range(8)]
    end = nodes[0].last_position()
    asked(nodes[0], "UPDATE control SET position_offset = 0")
    asked(nodes[0], f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
    turns = (refreshed(nodes[place % len(nodes)], each) for place, each in enumerate(grants))
    return end, [answer.position for answer in await asyncio.gather(*turns)]


async def test_nodes_that_find_their_log_in_a_younger_cluster_go_on_above_its_end(tmp_path: Path) -> None:
    """Whoever serves looks when it comes back, not only when it starts; followers miss nothing."""
    async with two_nodes(tmp_path) as nodes:
        end, positions = await moved(nodes)
        assert end < min(positions)
        with nodes[0].store.reader() as reader:
            assert set(positions) <= {each.position for each in reader.after(end, 99)}


async def test_a_node_that_looks_at_its_start_alone_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives positions below the log's end, where no follower looks any more."""
    async with open_ledger(tmp_path) as opened:
        monkeypatch.setattr(postgres_opening, "go_on_above", lambda connection: None)
        end, positions = await moved([opened])
        assert end > max(positions)
