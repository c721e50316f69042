"""Every question has one answer on both engines, asked of the same history; and what PostgreSQL alone must show."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_readers import PostgresReaders
from ledger.recorders.readers import Readers
from ledger.recorders.rows import Reads
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

    def ask(self, question: Callable[[Reads], Any]) -> Any:
        """Ask both; the answer, which must be one."""
        with self.sqlite.reader() as reads:
            expected = question(reads)
        with self.postgres.reader() as reads:
            assert expected == question(reads)
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
    rows = twice.ask(lambda reads: reads.select("SELECT grant_id FROM current_tokens_v1 ORDER BY position"))
    assert len(rows) > 5
    return [str(grant_id) for (grant_id,) in rows]


def test_streams_and_their_events(twice: Twice) -> None:
    """Heads, pages from either end, single events, what does not exist."""
    names = [str(name) for (name,) in twice.ask(lambda reads: reads.select("SELECT name FROM streams ORDER BY id"))]
    for name in [*names, "grant:none", "", "grant:'; DROP TABLE events; --", "grant:100%s?"]:
        head = twice.ask(lambda reads, name=name: reads.stream(name))
        last = 0 if head is None else head.v
        for span in ((1, last), (1, 1), (2, 3), (last, last + 9), (3, 2), (last + 1, last + 2)):
            twice.ask(lambda reads, name=name, span=span: reads.events(name, *span))
        twice.ask(lambda reads, name=name, v=last: reads.event_at(name, v))


def test_the_log_in_its_order(twice: Twice) -> None:
    """By pages, as texts and as bytes, and told with names and by topics."""
    position = 0
    while page := twice.ask(lambda reads, after=position: reads.after(after, 50)):
        raw = twice.ask(lambda reads, after=position: reads.raw_after(after, 50))
        assert [each.body.encode() for each in page] == [each.body for each in raw]
        position = page[-1].position
    for topics in ((), ("grant.issued",), ("grant.token_rotated", "client.revoked"), ("no' OR 1=1",), ("%",)):
        found = twice.ask(lambda reads, topics=topics: reads.told(3, position - 1, topics, 20))
        assert bool(found) == (topics in ((), ("grant.issued",), ("grant.token_rotated", "client.revoked")))


def test_grants_as_operators_see_them(twice: Twice) -> None:
    """`current_tokens_v1`: one, pages by every filter, counts, judged now and later."""
    for grant_id in grant_ids(twice):
        twice.ask(lambda reads, id=grant_id: current_tokens.one(reads, id))
        for days in (0, 1, 400):
            at = twice.now + days * DAY * 1_000_000
            twice.ask(lambda reads, id=grant_id, at=at: grant_views.grant(reads, id, at, lambda row: True))
    filters: list[dict[str, Any]] = [
        {}, {"client_id": "www"}, {"issued_by": "operator:login-app"}, {"clients": ["app", "www"]}, {"clients": []},
        {"client_id": "nobody"}, {"state": "revoked"}, {"state": "active", "client_id": "app"}, {"after": 40},
        {"client_id": "w?w%s$1"},
    ]  # fmt: skip
    for chosen in filters:
        for limit in (1, 7, 500):
            twice.ask(
                lambda reads, chosen=chosen, limit=limit: msgspec.to_builtins(
                    grant_views.grants(reads, twice.now, limit=limit, discloses=lambda row: True, **chosen)
                )
            )
    for client_id in ("www", "app", "nobody"):
        twice.ask(lambda reads, id=client_id: grant_views.live_count(reads, id, twice.now))


def test_histories(twice: Twice) -> None:
    """Events with epochs among them, states at a moment, disclosed texts."""
    for grant_id in grant_ids(twice):
        for at in (None, twice.now, twice.now - 20 * DAY * 1_000_000):
            told = twice.ask(
                lambda reads, id=grant_id, at=at: msgspec.to_builtins(
                    history(reads, id, twice.now, at=at, after=1, limit=5, discloses=True)
                )
            )
            assert told is None or told["grant_id"] == grant_id


def test_incidents(twice: Twice) -> None:
    """`reuse_incidents_v1`, by pages and since a moment."""
    for since in (None, twice.now - 200 * 1_000_000, twice.now):
        for limit in (1, 50):
            twice.ask(
                lambda reads, since=since, limit=limit: msgspec.to_builtins(
                    reuse_incidents.incidents(reads, twice.now, since=since, limit=limit)
                )
            )
    assert twice.ask(lambda reads: len(reuse_incidents.incidents(reads, twice.now, limit=50).incidents)) >= 2
