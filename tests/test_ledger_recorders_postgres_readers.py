"""Every question has one answer on both engines, asked of the same history; and what PostgreSQL alone must show."""

import asyncio
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger.recorders import postgres_readers, postgres_reading, postgres_schema
from ledger.recorders.errors import StoreBroken, StoreBusy, StoreError, StoreUnreachable
from ledger.recorders.postgres_connections import SECONDS_MAX, Address, Connection
from ledger.recorders.postgres_keys import key_of
from ledger.recorders.postgres_readers import PostgresReaders
from ledger.recorders.postgres_reading import PostgresReader
from ledger.recorders.postgres_schema import LOCK, schema
from ledger.recorders.postgres_sql import POSITION_BITS, numbered
from ledger.recorders.readers import Readers
from ledger.recorders.reading import POSITION_MAX
from ledger.recorders.reading import Reader as SQLiteReader
from ledger.recorders.rows import Head, Reads, StoredEvent
from ledger.segments import Segments, folder_of
from ledger.times import SECOND
from projections import INLINE, current_tokens, grant_views, reuse_incidents
from projections.grant_history import history
from projections.rebuild import Heal, Rebuilt, rebuild
from tests.postgres import Server, running
from tests.server_process import PROJECT
from tests.stocked import DAY, incident, stocked, world
from tests.two_stores import copy_to_postgres


class Twice:
    """One history, to be read from SQLite and from PostgreSQL."""

    def __init__(self, path: Path, url: str, now: int) -> None:
        self.path = path
        self.url = url
        self.now = now
        self.sqlite = Readers(path)
        self.postgres = PostgresReaders(Address(url))
        with self.sqlite.reader() as reads:
            self._keys = {id: key_of(str(name)) for id, name in reads.select("SELECT id, name FROM streams")}

    def ask(self, question: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Ask both; the answer, which must be one."""
        with self.sqlite.reader() as reads:
            expected = msgspec.to_builtins(self._keyed(question(reads, *values, **named)))
        with self.postgres.reader() as reads:
            assert expected == msgspec.to_builtins(question(reads, *values, **named))
        return expected

    def _keyed(self, answer: Any) -> Any:
        """What SQLite says, with the keys that PostgreSQL has for its streams' numbers."""
        if isinstance(answer, list):
            return [self._keyed(each) for each in answer]
        if isinstance(answer, Head):
            return answer._replace(id=self._keys[answer.id])
        return answer._replace(stream=self._keys[answer.stream]) if isinstance(answer, StoredEvent) else answer


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Any:
    """A past of every kind."""
    folder, now = tmp_path_factory.mktemp("past"), 0

    async def lived() -> int:
        async with stocked(folder) as at:
            await world(at, Random(7), 120)
            await incident(at)
            return at.now

    now = asyncio.run(lived())
    url = postgres.create_database()
    copy_to_postgres(folder / "ledger.db", url)
    found = Twice(folder / "ledger.db", url, now)
    yield found
    found.postgres.close()
    found.sqlite.close()
    postgres.drop_database(url)


def grant_ids(twice: Twice) -> list[str]:
    rows = twice.ask(select, "SELECT grant_id FROM current_tokens_v1 ORDER BY position")
    assert len(rows) > 5
    return [str(grant_id) for (grant_id,) in rows]


def select(reads: Reads, sql: str) -> list[tuple[object, ...]]:
    return reads.select(sql)


def everybody(row: object) -> bool:
    return True


def test_streams_and_their_events(twice: Twice) -> None:
    """Heads, pages from either end, single events, what does not exist."""
    names = [str(name) for (name,) in twice.ask(select, "SELECT name FROM streams ORDER BY position")]
    for name in [*names, "grant:none", "", "grant:'; DROP TABLE events; --", "grant:100%s?", "grant:\0"]:
        head = twice.ask(lambda reads, name: reads.stream(name), name)
        last = 0 if head is None else head[1]
        for span in ((1, last), (1, 1), (2, 3), (last, last + 9), (3, 2), (last + 1, last + 2)):
            twice.ask(lambda reads, *asked: reads.events(*asked), name, *span)
        twice.ask(lambda reads, *asked: reads.event_at(*asked), name, last)


def test_many_streams_at_once(twice: Twice) -> None:
    """Of which there are heads, and that none of them has lost its own."""
    names = ("keys", "client:nobody", "client:www")
    assert ["client:www", "keys"] == twice.ask(lambda reads: sorted(reads.heads(names)))
    assert twice.ask(lambda reads: reads.headless(names)) is None


def test_the_log_in_its_order(twice: Twice) -> None:
    """By pages, as texts and as bytes, and told with names and by topics."""
    position = 0
    while page := twice.ask(lambda reads, after: reads.after(after, 50), position):
        raw = twice.ask(lambda reads, after: [each.body.decode() for each in reads.raw_after(after, 50)], position)
        assert [each[-1] for each in page] == raw
        position = page[-1][0]
    known = ((), ("grant.issued",), ("grant.token_rotated", "client.revoked"))
    for topics in (*known, ("no' OR 1=1",), ("%",)):
        found = twice.ask(lambda reads, topics: reads.told(3, position - 1, topics, 20), topics)
        assert bool(found) == (topics in known)


def test_grants_as_operators_see_them(twice: Twice) -> None:
    """`current_tokens_v1`: one, pages by every filter, counts, judged now and later."""
    for grant_id in grant_ids(twice):
        twice.ask(current_tokens.one, grant_id)
        for days in (0, 1, 400):
            twice.ask(grant_views.grant, grant_id, twice.now + days * DAY * SECOND, everybody)
    filters: list[dict[str, Any]] = [
        {}, {"client_id": "www"}, {"issued_by": "operator:login-app"}, {"clients": ["app", "www"]}, {"clients": []},
        {"client_id": "nobody"}, {"state": "revoked"}, {"state": "active", "client_id": "app"}, {"after": 40},
        {"client_id": "w?w%s$1"}, {"client_id": "\0"},
    ]  # fmt: skip
    for chosen in filters:
        for limit in (1, 7, 500):
            twice.ask(grant_views.grants, twice.now, limit=limit, discloses=everybody, **chosen)
    for client_id in ("www", "app", "nobody"):
        twice.ask(grant_views.live_count, client_id, twice.now)


def test_histories(twice: Twice) -> None:
    """Events with epochs among them, states at a moment, disclosed texts."""
    for grant_id in grant_ids(twice):
        for at in (None, twice.now, twice.now - 20 * DAY * SECOND):
            told = twice.ask(history, grant_id, twice.now, at=at, after=1, limit=5, discloses=everybody)
            assert told is None or told["grant_id"] == grant_id


def test_incidents(twice: Twice) -> None:
    """`reuse_incidents_v1`, by pages and since a moment."""
    for since in (None, twice.now - 200 * SECOND, twice.now):
        for limit in (1, 50):
            twice.ask(reuse_incidents.incidents, twice.now, since=since, limit=limit)
    assert len(twice.ask(reuse_incidents.incidents, twice.now, limit=50)["incidents"]) >= 2


def test_no_question_reads_a_whole_table(twice: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-22: of tables that were never counted, too: every plan goes by an index, row by row."""
    plans: dict[str, str] = {}
    asked = PostgresReader._rows

    def explained(self: PostgresReader, sql: str, parameters: Sequence[object]) -> list[Any]:
        if sql not in plans:
            plans[sql] = "\n".join(line for (line,) in asked(self, f"EXPLAIN {sql}", parameters))
        return asked(self, sql, parameters)

    monkeypatch.setattr(PostgresReader, "_rows", explained)
    test_streams_and_their_events(twice)
    test_many_streams_at_once(twice)
    test_the_log_in_its_order(twice)
    test_histories(twice)
    test_incidents(twice)
    for chosen in ({}, {"client_id": "www"}, {"issued_by": "operator:login-app"}, {"clients": ["app", "www"]}):
        twice.ask(grant_views.grants, twice.now, limit=9, discloses=everybody, **chosen)
    twice.ask(grant_views.live_count, "www", twice.now)
    assert len(plans) > 15
    for sql, plan in plans.items():
        if "ORDER BY id" not in sql and "ORDER BY position" not in sql:  # the test's own, of everything
            assert not re.search(r"Seq Scan|Hash|Merge", plan), f"{sql}\n{plan}"


def test_another_answer_is_caught(twice: Twice) -> None:
    """The broken twin: one row that differs on one engine."""
    change = "UPDATE current_tokens_v1 SET scope = {} WHERE grant_id = $1"
    (first, *_) = grant_ids(twice)
    with closing(Address(twice.url).connect()) as connection:
        connection.execute(change.format("scope || ' write'"), (first,))
        with pytest.raises(AssertionError):
            twice.ask(grant_views.grant, first, twice.now, everybody)
        connection.execute(change.format("left(scope, -6)"), (first,))
    twice.ask(grant_views.grant, first, twice.now, everybody)


class Healing:
    """Writes what a rebuild heals, as the store does: alone, in one transaction."""

    def __init__(self, url: str) -> None:
        self._address = Address(url)
        self.readers = PostgresReaders(self._address)

    def heal(self, derive: Callable[[Reads], Heal]) -> None:
        with closing(self._address.connect()) as connection:
            connection.execute("BEGIN")
            connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
            for statement, rows in derive(PostgresReader(connection, POSITION_MAX)).statements:
                for row in rows:
                    connection.execute(numbered(statement), row)
            connection.execute("COMMIT")

    def rebuild(self) -> Rebuilt:
        return rebuild(self.readers.settled, INLINE, self.heal)


def in_order(rebuilt: Rebuilt) -> Rebuilt:
    """Streams come in the order of their keys, which is each engine's own."""
    differences = sorted(rebuilt.differences, key=lambda each: (each.table, each.key, each.column))
    return msgspec.structs.replace(rebuilt, differences=differences)


def test_a_rebuild_finds_and_heals_the_same(twice: Twice, postgres: Server) -> None:
    """I-13, I-14: what was altered on both engines is found on both, in the same words, and is gone afterwards."""
    url, path = postgres.create_database(), twice.path.with_name("altered.db")
    shutil.copy(twice.path, path)
    copy_to_postgres(path, url)
    altered = sqlite3.connect(path, isolation_level=None)
    healing = Healing(url)
    with closing(altered), closing(healing.readers):
        assert ([], True) == (healing.rebuild().differences, healing.rebuild().healed)
        another = "'f' || substr(grant_id, 2)"
        for change in (
            "UPDATE current_tokens_v1 SET scope = 'all' WHERE position % 2 = 0",
            f"UPDATE current_tokens_v1 SET grant_id = {another} WHERE state = 'revoked'",
            "UPDATE current_tokens_v1 SET position = -position WHERE state = 'suspended'",
            "DELETE FROM reuse_incidents_v1 WHERE label = 'fork'",
            "UPDATE streams SET position = position + 1 WHERE name LIKE 'client:%'",
        ):
            altered.execute(change)
            with closing(Address(url).connect()) as connection:
                there = change.replace(another, f"({another})::uuid").replace("(grant_id,", "(grant_id::text,")
                connection.execute(there.encode())

        def heal(derive: Callable[[Reads], Heal]) -> None:
            altered.execute("BEGIN")
            for statement, rows in derive(SQLiteReader(altered, Segments(folder_of(path)))).statements:
                altered.executemany(statement, rows)
            altered.execute("COMMIT")

        with closing(Readers(path)) as readers:
            expected = rebuild(readers.reader, INLINE, heal)
            assert in_order(expected) == in_order(healing.rebuild())
            assert (True, True) == (expected.difference_count > 10, expected.healed)
            assert [] == rebuild(readers.reader, INLINE, heal).differences
        assert ([], True) == (healing.rebuild().differences, healing.rebuild().healed)
    postgres.drop_database(url)


# ---------------------------------------------------------------- what one writer never shows


def append(connection: Connection, *, name: str) -> int:
    """Append one event of a stream of its own in the open transaction; its position."""
    ((position,),) = connection.execute(
        f"SELECT (pg_current_xact_id()::text::bigint << {POSITION_BITS}) + 1"
    ).fetchall()
    where = (position, key_of(name))
    connection.execute(
        "INSERT INTO streams (id, position, v, name, head, state) VALUES ($2, $1, 1, $3, '', '')", (*where, name)
    )
    connection.execute("INSERT INTO events (position, stream, back, v, body) VALUES ($1, $2, 0, 1, '{}')", where)
    return int(position)


@pytest.fixture
def written(postgres_url: str) -> Iterator[tuple[Connection, Connection, PostgresReaders]]:
    """Two who write, and readers."""
    address = Address(postgres_url)
    first, second, readers = address.connect(), address.connect(), PostgresReaders(address)
    for statement in schema(INLINE):
        first.execute(statement.encode())
    with closing(first), closing(second), closing(readers):
        yield first, second, readers


Written = tuple[Connection, Connection, PostgresReaders]


def positions(readers: PostgresReaders) -> list[int]:
    with readers.reader() as reads:
        return [each.position for each in reads.after(0, 10)]


def test_nothing_appears_behind_what_was_read(written: Written) -> None:
    """The batch that began first commits last: who saw the later one waits for it, and reads both in order."""
    first, second, readers = written
    first.execute("BEGIN")
    earlier = append(first, name="grant:1")
    second.execute("BEGIN")
    later = append(second, name="grant:2")
    assert [] == positions(readers)  # nothing that is seen stands beyond the horizon: nobody has to wait
    second.execute("COMMIT")
    seen_naively = second.execute("SELECT position FROM events ORDER BY position").fetchall()
    assert [(later,)] == seen_naively, "the broken twin: who looks without a horizon would never see the earlier one"
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(positions, readers)
        with pytest.raises(TimeoutError):
            reading.result(0.3)
        first.execute("COMMIT")
        assert [earlier, later] == reading.result(SECONDS_MAX)


def test_what_begins_after_a_reader_came_does_not_hold_it(written: Written) -> None:
    """Writers without a pause: a reader waits for those it found, never for those who follow."""
    first, second, readers = written
    turns = [first, second]
    first.execute("BEGIN")
    append(first, name="grant:0")
    with ThreadPoolExecutor(1) as threads:
        reading = None
        for turn in range(1, 60):
            beginning, ending = turns[turn % 2], turns[(turn + 1) % 2]
            beginning.execute("BEGIN")
            append(beginning, name=f"grant:{turn}")
            ending.execute("COMMIT")
            if reading is None:
                reading = threads.submit(positions, readers)
            elif reading.done():
                break
            time.sleep(0.02)
        assert reading is not None
        assert reading.done(), "held as long as anybody wrote"
        assert len(reading.result()) >= 1


def test_a_stranger_who_never_ends_is_named(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writing transaction that stays open holds the horizon: readers say so in seconds, they do not hang."""
    first, second, readers = written
    monkeypatch.setattr(postgres_readers, "SECONDS_MAX", 0.5)
    first.execute("BEGIN")
    append(first, name="grant:1")
    second.execute("BEGIN")
    append(second, name="grant:2")
    second.execute("COMMIT")
    with pytest.raises(StoreBusy, match="pg_stat_activity, pg_prepared_xacts"), readers.reader():
        pass
    first.execute("ROLLBACK")
    assert 1 == len(positions(readers))


def test_a_settled_moment_waits_for_batches_and_lets_the_next_ones_go_on(written: Written) -> None:
    """While it is read, batches go on; what they append stands behind all that is seen."""
    first, second, readers = written
    first.execute("BEGIN")
    first.execute(f"SELECT pg_advisory_xact_lock_shared({LOCK})")
    position = append(first, name="grant:1")
    entered, leave = threading.Event(), threading.Event()

    def read() -> list[int]:
        with readers.settled() as reads:
            entered.set()
            leave.wait(SECONDS_MAX)
            return [each.position for each in reads.after(0, 10)]

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        assert not entered.wait(0.3)
        first.execute("COMMIT")
        assert entered.wait(SECONDS_MAX)
        second.execute("BEGIN")
        second.execute(f"SELECT pg_advisory_xact_lock_shared({LOCK})")
        append(second, name="grant:2")
        second.execute("COMMIT")
        leave.set()
        assert [position] == reading.result(SECONDS_MAX)


def test_one_moment_however_long_it_is_read(written: Written) -> None:
    """What commits meanwhile is not seen, and nothing can be written."""
    first, _, readers = written
    with readers.reader() as reads:
        first.execute("BEGIN")
        append(first, name="grant:1")
        first.execute("COMMIT")
        assert (None, []) == (reads.stream("grant:1"), reads.select("SELECT v FROM streams"))
        with pytest.raises(StoreError):
            reads.select("DELETE FROM events RETURNING v")
    assert 1 == len(positions(readers))


def test_a_server_that_was_restarted_is_read_again(tmp_path: Path) -> None:
    """I-24: connections that were kept are all dead; the next question gets a fresh one. While it is away: one line."""
    with running() as server:
        url = server.create_database()
        address = Address(url)
        with closing(address.connect()) as connection:
            for statement in schema(INLINE):
                connection.execute(statement.encode())
        with closing(PostgresReaders(address)) as readers:
            with readers.reader(), readers.reader():
                pass
            server.kill()
            with pytest.raises(StoreUnreachable, match="PostgreSQL database ledger_1 on"):
                positions(readers)
            server.start()
            assert [] == positions(readers)
            with readers.reader() as reads:
                server.kill()
                with pytest.raises(StoreUnreachable):
                    reads.after(0, 1)
            server.start()
            assert [] == positions(readers)


def test_more_questions_than_connections_wait_their_turn(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server gives only so many; who gets none in time is told."""
    monkeypatch.setattr(postgres_readers, "SECONDS_MAX", 0.3)
    readers = PostgresReaders(written[2]._address, connections_max=1)
    with closing(readers), readers.reader(), pytest.raises(StoreBusy, match="in use"), readers.reader():
        pass
    with pytest.raises(StoreBroken), readers.reader():
        pass


def test_a_database_without_our_tables_holds_no_ledger(postgres_url: str, written: Written) -> None:
    """Asked before anything else is."""
    with closing(PostgresReaders(Address(postgres_url))) as readers:
        assert readers.holds_ledger()
    with closing(written[0]) as connection:
        connection.execute("DROP TABLE events")
    with closing(PostgresReaders(Address(postgres_url))) as readers:
        assert not readers.holds_ledger()


def test_whether_a_person_was_ended_costs_no_way_through_all_names(twice: Twice) -> None:
    """Where there are very many grants that way is long, and each that no memory holds asks for its person. The twin
    asks by the name alone."""
    of_subjects = "Index Scan using streams_subjects on streams e"
    plans = []
    for sql in (PostgresReader._sql_grants, PostgresReader._sql_grants.replace(f" AND {postgres_reading._ENDED}", "")):
        with twice.postgres.reader() as reader:
            plans.append(str(reader._rows(f"EXPLAIN {sql}", (reader._keys(["grant:" + "0" * 32]),))))
    assert of_subjects in plans[0]
    assert of_subjects not in plans[1]


def test_the_guide_gives_an_older_database_what_a_new_one_has() -> None:
    guide = (PROJECT / "api" / "docs" / "postgresql.md").read_text("utf-8")
    made = "\n".join(schema(INLINE))
    assert f"ON streams (name) WHERE {postgres_schema.SUBJECTS};\n" in guide
    (filled,) = re.findall(r"ALTER TABLE streams SET \((fillfactor = \d+)\);\n", guide)
    assert f"CREATE INDEX streams_subjects ON streams (name) WHERE {postgres_schema.SUBJECTS}" in made
    assert f"WITH ({filled})" in next(each for each in made.splitlines() if each.startswith("CREATE TABLE streams "))
