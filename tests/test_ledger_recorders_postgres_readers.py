"""Every question has one answer on both engines, asked of the same history; and what PostgreSQL alone must show."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_readers import PostgresReaders
from ledger.recorders.readers import Readers
from ledger.recorders.rows import Reads
from ledger.times import SECOND
from projections import current_tokens, grant_views, reuse_incidents
from projections.grant_history import history
from tests.postgres import Server
from tests.stocked import DAY, ELSEWHERE, stocked, world
from tests.two_stores import copy_to_postgres


class Twice:
    """One history, to be read from SQLite and from PostgreSQL."""

    def __init__(self, path: Path, url: str, now: int) -> None:
        self.path = path
        self.url = url
        self.now = now
        self.sqlite = Readers(path)
        self.postgres = PostgresReaders(Address(url))

    def ask(self, question: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Ask both; the answer, which must be one."""
        with self.sqlite.reader() as reads:
            expected = msgspec.to_builtins(question(reads, *values, **named))
        with self.postgres.reader() as reads:
            assert expected == msgspec.to_builtins(question(reads, *values, **named))
        return expected


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Any:
    """A past of every kind."""
    folder, now = tmp_path_factory.mktemp("past"), 0

    async def lived() -> int:
        async with stocked(folder) as at:
            await world(at, Random(7), 120)
            issued = await at.issue("mallory")
            first = await at.refresh(issued.refresh_token, scope=("read",))
            await at.refresh(issued.refresh_token, source=ELSEWHERE)
            await at.refresh(first.refresh_token)
            at.pass_seconds(100)
            await at.refused(issued.refresh_token)
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
    names = [str(name) for (name,) in twice.ask(select, "SELECT name FROM streams ORDER BY id")]
    for name in [*names, "grant:none", "", "grant:'; DROP TABLE events; --", "grant:100%s?"]:
        head = twice.ask(lambda reads, name: reads.stream(name), name)
        last = 0 if head is None else head[1]
        for span in ((1, last), (1, 1), (2, 3), (last, last + 9), (3, 2), (last + 1, last + 2)):
            twice.ask(lambda reads, *asked: reads.events(*asked), name, *span)
        twice.ask(lambda reads, *asked: reads.event_at(*asked), name, last)


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
        {"client_id": "w?w%s$1"},
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
            told = twice.ask(history, grant_id, twice.now, at=at, after=1, limit=5, discloses=True)
            assert told is None or told["grant_id"] == grant_id


def test_incidents(twice: Twice) -> None:
    """`reuse_incidents_v1`, by pages and since a moment."""
    for since in (None, twice.now - 200 * SECOND, twice.now):
        for limit in (1, 50):
            twice.ask(reuse_incidents.incidents, twice.now, since=since, limit=limit)
    assert len(twice.ask(reuse_incidents.incidents, twice.now, limit=50)["incidents"]) >= 2


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
