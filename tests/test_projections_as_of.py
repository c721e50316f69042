"""Aggregates as they are and as they were, with and without a snapshot that can be believed."""

from functools import partial
from pathlib import Path
from random import Random

import msgspec
import pytest

from ledger.clients import Client
from ledger.events import GrantEvent, decode
from ledger.grant import Grant
from ledger.recorders.rows import StoredEvent
from projections import as_of
from projections.as_of import Outside, aggregate, last_reached, stored_events
from projections.current_tokens import page
from tests.stocked import stocked, world


async def test_without_a_snapshot_the_stream_is_folded_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that does not match is ignored: never trusted, never fatal; pages of events join to the whole."""
    monkeypatch.setattr(as_of, "PAGE_EVENTS", 2)
    async with stocked(tmp_path) as at:
        ids = await world(at, Random(2), 60)

        def seen() -> list[object]:
            with at.store.reader() as reads:
                found: list[object] = [aggregate(reads, f"grant:{each}", Grant) for each in ids]
                outside = Outside(reads, at.now)
                return [*found, aggregate(reads, "client:www", Client), *map(outside.ended_by, page(reads, limit=99))]

        expected = seen()
        at.store.begin()
        at.connection.execute("UPDATE streams SET state = x'00'")
        at.store.commit()
        assert expected == seen()
        assert any(isinstance(each, as_of.Passed) for each in expected)


async def test_an_aggregate_then_is_its_events_up_to_then(tmp_path: Path) -> None:
    """At every moment of a past: folding what was not later, and nothing else."""
    async with stocked(tmp_path) as at:
        ids = await world(at, Random(7), 60)
        with at.store.reader() as reads:
            for grant_id in ids[:5]:
                grown = Grant()
                for stored in stored_events(reads, f"grant:{grant_id}"):
                    event = decode(stored.body)
                    assert isinstance(event, GrantEvent)
                    grown.evolve(event)
                    then = aggregate(reads, f"grant:{grant_id}", Grant, grown.at)
                    if then.v == grown.v:  # else more was recorded in the same moment
                        assert msgspec.json.encode(grown) == msgspec.json.encode(then)
                assert grown == aggregate(reads, f"grant:{grant_id}", Grant, grown.at)
                assert Grant() == aggregate(reads, f"grant:{grant_id}", Grant, grown.issued_at - 1)
                assert Grant() == aggregate(reads, "grant:none", Grant)


@pytest.mark.parametrize("last_v", [0, 1, 2, 7, 64, 1000])
def test_the_last_version_reached_is_found_by_halving(last_v: int) -> None:
    """One look where nothing came later, some ten in a thousand; none reached is 0."""
    looks: list[int] = []

    def event_at(v: int) -> StoredEvent:
        looks.append(v)
        return StoredEvent(v * 10, 1, v, 0, "")

    def not_after(position: int, stored: StoredEvent) -> bool:
        return stored.position <= position

    for expected in range(0, last_v + 1, max(1, last_v // 20)):
        looks.clear()
        assert expected == last_reached(last_v, partial(not_after, expected * 10), event_at)
        assert 1 == len(looks) if expected == last_v > 0 else len(looks) <= 12
