"""One row a grant: what each event sets, what a refresh costs, and that lists come by index in log order."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger.events import (
    AnyEvent,
    GrantAuthorized,
    GrantEvent,
    GrantIssued,
    GrantSuspended,
    SubjectErased,
    TokenRedeemed,
    TokenRotated,
    decode,
)
from ledger.grant import Grant
from ledger.policy import PRESETS
from ledger.recorders.reading import StoreReader
from projections.current_tokens import TABLE, WRITES, CurrentTokens, folded, one, page
from tests.facts import AT, GRANT_ID, LATER, fact
from tests.stocked import Stocked, stocked

INSERT, RESCOPE, TURN, LIMIT = range(4)


def rows(*events: AnyEvent, first_position: int = 7) -> list[tuple[int, tuple[object, ...]]]:
    return list(CurrentTokens().rows(events, range(first_position, first_position + len(events))))


def test_an_issuance_is_one_insert_of_every_column() -> None:
    """I-13: the row is whole with its first event; scopes are words, times the event's own texts."""
    expected = (
        GRANT_ID, 7, "www", "5" * 32, "operator:login-app", 1, 2, "read openid", AT, LATER, "read openid", "active",
        None,
    )  # fmt: skip
    assert [(INSERT, expected)] == rows(fact(GrantIssued))
    assert len(expected) == 1 + len(WRITES[INSERT].columns)


def test_a_sign_in_is_an_insert_without_a_generation_that_ends_with_its_code() -> None:
    """Until the exchange nothing is current; whoever asks later than the code's end finds an expired grant."""
    ((kind, values),) = rows(fact(GrantAuthorized, code_expires_at=LATER))
    named = dict(zip((WRITES[INSERT].key, *WRITES[INSERT].columns), values, strict=True))
    assert (INSERT, LATER, AT) == (kind, named["absolute_expires_at"], named["issued_at"])


def test_an_exchange_updates_the_row_that_the_sign_in_began() -> None:
    """`issued_at`, epochs and scope are those of the sign-in; token and lifetimes come now."""
    assert [(LIMIT, (LATER, GRANT_ID))] == rows(fact(GrantIssued, v=2))


def test_a_refresh_touches_no_row_here() -> None:
    """The hot path: what it changes stands in the head of the grant's stream, also where its token is reused."""
    redeemed, rotated = fact(TokenRedeemed, v=2, generation=0), fact(TokenRotated, v=3, generation=1)
    assert [] == rows(redeemed, rotated)
    assert [] == rows(redeemed)


def test_the_short_way_of_a_refresh_comes_to_the_same_as_the_long_one() -> None:
    """Whatever stands between them, a redemption and its rotation set nothing."""
    redeemed, rotated = fact(TokenRedeemed, v=2, generation=4), fact(TokenRotated, v=3, generation=5)
    assert rows(fact(GrantSuspended, v=3), first_position=8) == rows(redeemed, fact(GrantSuspended, v=3), rotated)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("grant.scope_reduced", [(RESCOPE, ("read", GRANT_ID))]),
        ("grant.scope_restored", [(RESCOPE, ("read", GRANT_ID))]),
        ("grant.suspended", [(TURN, ("suspended", 7, GRANT_ID))]),
        ("grant.reinstated", [(TURN, ("active", 7, GRANT_ID))]),
        ("grant.revoked", [(TURN, ("revoked", 7, GRANT_ID))]),
        ("grant.expired", [(TURN, ("expired", 7, GRANT_ID))]),
        ("grant.refresh_token_withheld", []),
        ("grant.retry_served", []),
        ("grant.reuse_detected", []),
        ("grant.rollback_detected", []),
        ("grant.access_token_revoked", []),
        ("grant.foreign_client_presented", []),
        ("grant.presentations_counted", []),
        ("client.disabled", []),
        ("audit.read", []),
    ],
)
def test_what_each_other_event_sets(topic: str, expected: Sequence[object]) -> None:
    """A closed list: an event that is added without a line here fails the type check of the projection."""
    assert expected == rows(fact(topic))


def test_no_column_but_the_key_is_set_by_two_kinds_of_update() -> None:
    """So the order between the kinds of update in a batch does not matter."""
    updated = [column for write in WRITES if write.kind == "update" for column in write.columns]
    assert sorted(set(updated)) == sorted(updated)
    assert set(updated) < set(WRITES[INSERT].columns)


def test_events_of_other_streams_yield_nothing() -> None:
    """Only grants have rows here."""
    assert [] == rows(fact(SubjectErased), fact(SubjectErased, v=2))


async def test_a_refresh_touches_no_index_and_lists_need_no_sorting(tmp_path: Path) -> None:
    """Bytes a refresh: no updated column is in an index. Lists by client and subject come by index, in log order."""
    async with stocked(tmp_path) as at:
        with at.store.reader() as reads:
            indexed = {
                column
                for (index,) in reads.select("SELECT name FROM pragma_index_list(?)", (TABLE,))
                for (column,) in reads.select("SELECT name FROM pragma_index_info(?)", (index,))
            }
            assert {"grant_id", "client_id", "subject_id"} == indexed
            for column in ("client_id", "subject_id"):
                plan = reads.select(
                    f"EXPLAIN QUERY PLAN SELECT * FROM {TABLE} WHERE position > 1 AND {column} = 'x'"
                    " ORDER BY position LIMIT 9"
                )
                told = " ".join(str(row[3]) for row in plan)
                assert f"USING INDEX {TABLE}_{column.removesuffix('_id')}" in told
                assert "TEMP B-TREE" not in told


@pytest.mark.parametrize("clients", [None, ("www",), ("www", "app"), ("www", "app", "other")])
@pytest.mark.parametrize("subject_id", [None, "5" * 32])
async def test_no_page_is_found_by_sorting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Sequence[str] | None, subject_id: str | None
) -> None:
    """However many clients an issuer is limited to: a page costs its own rows, not all those of its clients."""
    asked: list[tuple[str, Sequence[object]]] = []
    select = StoreReader.select

    def noted(self: StoreReader, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        asked.append((sql, parameters))
        return select(self, sql, parameters)

    async with stocked(tmp_path) as at:
        monkeypatch.setattr(StoreReader, "select", noted)
        with at.store.reader() as reads:
            page(reads, issued_by="operator:login-app", subject_id=subject_id, clients=clients, limit=9)
            [(sql, parameters)] = asked
            told = " ".join(str(row[3]) for row in select(reads, f"EXPLAIN QUERY PLAN {sql}", parameters))  # type: ignore[arg-type]  # SQLite's
        assert "SEARCH t USING" in told
        assert "TEMP B-TREE" not in told


async def many(at: Stocked, chance: Random, count: int) -> list[str]:
    """Grants of three persons and two clients, worked on at random; their ids in order."""
    await at.clients("www", "app")
    issued = []
    for _ in range(count):
        client_id = chance.choice(("www", "app"))
        answer = await at.issue(chance.choice(("ann", "bob", "eve")), client_id)
        issued.append(answer.grant_id)
        for _ in range(chance.randrange(4)):
            scope = chance.choice((None, ("read",), ("read", "openid")))
            answer = await at.refresh(answer.refresh_token, client_id=client_id, scope=scope)
            at.pass_seconds(chance.randrange(100))
    return issued


async def test_pages_go_on_by_cursor_and_every_filter_holds(tmp_path: Path) -> None:
    """Oldest first; a page continues where the last ended; filters combine; nothing twice, nothing lost."""
    async with stocked(tmp_path) as at:
        issued = await many(at, Random(1), 25)
        with at.store.reader() as reads:
            everything = page(reads, limit=1000)
            assert issued == [row.grant_id for row in everything]
            paged: list[Any] = []
            while some := page(reads, after=paged[-1].position if paged else 0, limit=4):
                paged += some
            assert everything == paged
            for client_id in ("www", "app"):
                expected = [row for row in everything if row.client_id == client_id]
                assert expected
                assert expected == page(reads, client_id=client_id, limit=1000)
                assert expected == page(reads, clients=(client_id,), limit=1000)
                assert expected == page(reads, clients=(client_id, "nobody"), limit=1000)
                subject_id = expected[0].subject_id
                expected = [row for row in expected if row.subject_id == subject_id]
                assert expected == page(reads, client_id=client_id, subject_id=subject_id, limit=1000)
            assert everything == page(reads, issued_by="operator:login-app", clients=("app", "www"), limit=1000)
            assert [] == page(reads, issued_by="operator:other", limit=1000)
            assert [] == page(reads, clients=(), limit=1000)
            assert everything[3] == one(reads, issued[3])
            assert one(reads, "0" * 32) is None


@pytest.mark.parametrize("preset", ["standard", "stable"])
async def test_a_row_is_what_its_events_fold_to_and_what_the_aggregate_says(tmp_path: Path, preset: str) -> None:
    """I-13, for rotating and reusing policies: the live row, the folded row and the aggregate agree after every act."""
    async with stocked(tmp_path) as at:
        await at.clients("www", policy=PRESETS[preset])
        answer = await at.issue()
        for scope in (None, ("read",), None, ("read", "openid", "profile"), ("openid",)):
            at.pass_seconds(10)
            answer = await at.refresh(answer.refresh_token, scope=scope)
            with at.store.reader() as reads:
                stored = reads.events(f"grant:{answer.grant_id}", 1, 100)
                row = one(reads, answer.grant_id)
            assert row == folded(stored)
            grant = Grant()
            for each in stored:
                event = decode(each.body)
                assert isinstance(event, GrantEvent)
                grant.evolve(event)
            assert row is not None
            assert (grant.generation, " ".join(grant.carried)) == (row.generation, row.scope)
            assert (grant.last_redeemed_at, grant.idle_expires_at) == (row.last_redeemed_at_us, row.idle_expires_at_us)
            assert row.last_redeemed_at is None or row.last_redeemed_at in stored[-1].body
