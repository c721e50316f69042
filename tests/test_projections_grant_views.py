"""Grants as operators see them: judged at the moment asked, whatever events have said so far."""

import hashlib
import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger import times
from ledger.clients import Operator
from ledger.grant import Grant
from ledger.policy import PRESETS
from ledger.recorders.rows import Reads
from projections import grant_views
from projections.as_of import Outside, aggregate
from projections.current_tokens import Row, one
from projections.grant_views import grant, grants, judge, live_count
from tests.stocked import DAY, OPERATOR, Stocked, stocked, world


def told(at: Stocked, grant_id: str, *, discloses: bool = False, later_seconds: int = 0) -> dict[str, Any]:
    """The grant as JSON."""
    with at.store.reader() as reads:
        found = grant(reads, grant_id, at.now + later_seconds * times.SECOND, lambda row: discloses)
    assert found is not None
    answer: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return answer


async def test_a_fresh_grant_has_exactly_these_members(tmp_path: Path) -> None:
    """What is null is left out; the person only for those who may see them."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        expected = {
            "grant_id": issued.grant_id,
            "client_id": "www",
            "status": "active",
            "scope": "read openid profile",
            "granted_scope": "read openid profile",
            "generation": 0,
            "issued_at": "2026-11-25T10:00:00.000000Z",
            "idle_expires_at": "2026-12-25T10:00:00.000000Z",
            "absolute_expires_at": "2027-11-25T10:00:00.000000Z",
        }
        assert expected == told(at, issued.grant_id)
        assert expected | {"subject": "alice"} == told(at, issued.grant_id, discloses=True)
        with at.store.reader() as reads:
            assert grant(reads, "0" * 32, at.now, lambda row: True) is None


async def test_a_grant_without_refresh_token_has_no_generation(tmp_path: Path) -> None:
    """Off: no current generation from the issuance on."""
    async with stocked(tmp_path) as at:
        await at.clients("www", policy=msgspec.structs.replace(PRESETS["standard"], refresh_token_ttl_seconds=0))
        issued = await at.issue()
        assert "generation" not in told(at, issued.grant_id)
        assert "active" == told(at, issued.grant_id)["status"]


async def test_a_frozen_expiry_counts_though_no_event_says_so(tmp_path: Path) -> None:
    """`end.at` is the frozen moment; an event id is there as soon as an event says so."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        assert "active" == told(at, issued.grant_id, later_seconds=30 * DAY - 1)["status"]
        at.pass_seconds(31 * DAY)
        expected = {"reason_class": "expiry", "at": "2026-12-25T10:00:00.000000Z"}
        shown = told(at, issued.grant_id)
        assert ("expired", expected) == (shown["status"], shown["end"])
        await at.refused(issued.refresh_token)
        assert expected | {"event_id": f"grant:{issued.grant_id}/2"} == told(at, issued.grant_id)["end"]


async def test_an_operators_act_shows_its_reason_to_those_who_may_see_it(tmp_path: Path) -> None:
    """Suspended and back, then revoked: the reason is a commitment that what is disclosed recomputes."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        await at.ledger.operators.act_on_grant(OPERATOR, issued.grant_id, "suspend", "looks odd")
        suspended = told(at, issued.grant_id, discloses=True)
        assert ("suspended", False) == (suspended["status"], "end" in suspended)
        await at.ledger.operators.act_on_grant(OPERATOR, issued.grant_id, "reinstate", None)
        assert "active" == told(at, issued.grant_id)["status"]
        at.pass_seconds(5)
        await at.ledger.operators.act_on_grant(OPERATOR, issued.grant_id, "revoke", "stolen phone")
        shown = told(at, issued.grant_id, discloses=True)
        reason = shown["end"].pop("reason")
        assert "revoked" == shown["status"]
        assert shown["end"] == {
            "reason_class": "termination",
            "at": "2026-11-25T10:00:05.000000Z",
            "event_id": f"grant:{issued.grant_id}/4",
        }
        opened = shown["disclosed"]["reason"]
        assert ("reason", "stolen phone") == (opened["name"], opened["value"])
        triple = json.dumps([opened["salt"], opened["name"], opened["value"]], separators=(",", ":"))
        assert reason == hashlib.sha256(triple.encode()).hexdigest()
        assert "disclosed" not in told(at, issued.grant_id)


async def test_an_epoch_ends_every_grant_that_it_hits_and_no_other(tmp_path: Path) -> None:
    """Ended by epoch is `revoked`; the end names the raise; a later grant of the same person lives."""
    async with stocked(tmp_path) as at:
        first, other = await at.issue("alice"), await at.issue("bob")
        at.pass_seconds(10)
        await at.ledger.operators.revoke_subject(OPERATOR, "alice", "left", None)
        later = await at.issue("alice")
        shown = told(at, first.grant_id, discloses=True)
        assert ("revoked", "withdrawal") == (shown["status"], shown["end"]["reason_class"])
        assert shown["end"]["event_id"].startswith("subject:")
        assert "left" == shown["disclosed"]["reason"]["value"]
        assert "active" == told(at, other.grant_id)["status"] == told(at, later.grant_id)["status"]
        at.pass_seconds(10)
        await at.ledger.operators.revoke_client(OPERATOR, "www", None, at.now - 5 * times.SECOND)
        assert shown["end"]["event_id"] == told(at, first.grant_id)["end"]["event_id"]  # the first one stays its end
        assert "client:www/2" == told(at, other.grant_id)["end"]["event_id"]
        assert "client:www/2" == told(at, later.grant_id)["end"]["event_id"]


async def test_a_disabled_client_blocks_its_grants_and_ends_none(tmp_path: Path) -> None:
    """They show `suspended`, blocked by it, and live again when the client is back; what ended stays ended."""
    async with stocked(tmp_path) as at:
        living, ended = await at.issue(), await at.issue()
        await at.ledger.operators.act_on_grant(OPERATOR, ended.grant_id, "revoke", None)
        await at.clients("other")
        shown = told(at, living.grant_id)
        assert ("suspended", "client_disabled") == (shown["status"], shown["blocked_by"])
        assert ("revoked", False) == ((gone := told(at, ended.grant_id))["status"], "blocked_by" in gone)
        await at.clients("www")
        assert "active" == told(at, living.grant_id)["status"]


async def test_a_clock_that_was_put_back_revives_nothing(tmp_path: Path) -> None:
    """I-16, I-06: what was recorded counts, also where its time lies ahead of the clock now."""
    async with stocked(tmp_path) as at:
        by_person, by_client, blocked = await at.issue("alice"), await at.issue("bob"), await at.issue("bob")
        at.pass_seconds(3600)
        await at.ledger.operators.revoke_subject(OPERATOR, "alice", None, None)
        await at.ledger.operators.act_on_grant(OPERATOR, by_client.grant_id, "revoke", None)
        await at.clients("other")
        at.pass_seconds(-1800)
        assert "revoked" == told(at, by_person.grant_id)["status"] == told(at, by_client.grant_id)["status"]
        assert "suspended" == told(at, blocked.grant_id)["status"]
        with at.store.reader() as reads:
            assert 1 == live_count(reads, "www", at.now)


async def test_lists_filter_by_judged_state_and_go_on_by_cursor(tmp_path: Path) -> None:
    """A page filtered by state may hold fewer than its limit; its cursor leads on all the same."""
    async with stocked(tmp_path) as at:
        ids = [(await at.issue(f"person {number % 3}")).grant_id for number in range(10)]
        await at.ledger.operators.revoke_subject(OPERATOR, "person 1", None, None)
        active, after, pages = [], 0, 0
        while True:
            with at.store.reader() as reads:
                page = grants(reads, at.now, state="active", after=after, limit=3, discloses=lambda row: False)
            pages += 1
            active += [each.grant_id for each in page.grants]
            after = int(page.cursor)
            if page.next_cursor is msgspec.UNSET:
                break
            assert page.cursor == page.next_cursor
        assert [each for number, each in enumerate(ids) if number % 3 != 1] == active
        assert 4 == pages
        with at.store.reader() as reads:
            empty = grants(reads, at.now, after=after, limit=3, discloses=lambda row: False)
        assert (str(after), msgspec.UNSET) == (empty.cursor, empty.next_cursor)
        assert ([], empty.cursor) == (empty.grants, str(after))
        await at.issue()
        with at.store.reader() as reads:
            tomorrow = grants(reads, at.now, after=after, limit=3, discloses=lambda row: False)
        assert 1 == len(tomorrow.grants)


async def test_who_may_see_the_person_is_asked_for_each_grant(tmp_path: Path) -> None:
    """An issuer sees the persons of its own grants only."""
    async with stocked(tmp_path) as at:
        await at.issue("alice", "www")

        def own(row: Row) -> bool:
            return row.issued_by == Operator(name="other").requested_by

        with at.store.reader() as reads:
            [shown] = grants(reads, at.now, limit=10, discloses=own).grants
        assert shown.subject is msgspec.UNSET


@pytest.mark.parametrize("page_max", [1, 7, 1_000])
async def test_the_count_of_living_grants_equals_judging_each(
    tmp_path: Path, page_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended, ended by own events, frozen expiries, the client's epoch or the person's: none of these counts,
    however small the pages are that are counted."""
    monkeypatch.setattr(grant_views, "COUNTED_A_PAGE", page_max)
    async with stocked(tmp_path) as at:
        chance = Random(3)
        await world(at, chance, 60)
        for client_id in ("www", "app"):
            with at.store.reader() as reads:
                page = grants(reads, at.now, client_id=client_id, limit=1000, discloses=lambda row: False)
                living = sum(each.status == "active" for each in page.grants)
                assert living == live_count(reads, client_id, at.now)
        with at.store.reader() as reads:
            assert 0 == live_count(reads, "nobody", at.now)


async def test_the_living_are_counted_in_pages_until_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks is asked before each page whether to go on, and is told nothing rather than half of it."""
    monkeypatch.setattr(grant_views, "COUNTED_A_PAGE", 4)
    async with stocked(tmp_path) as at:
        for number in range(10):
            await at.issue(f"person {number}")
        with at.store.reader() as reads:
            for passes, expected in ((0, None), (3, None), (4, 10)):
                turns = iter([True] * passes)
                assert expected == live_count(reads, "www", at.now, partial(next, turns, False))
                assert not next(turns, False), "it is asked before each page"


@pytest.mark.parametrize("seed", range(4))
async def test_a_row_is_judged_as_the_aggregate_judges_itself(tmp_path: Path, seed: int) -> None:
    """I-13, I-16: in random worlds, at random moments, row and aggregate say the same status, end and event."""
    async with stocked(tmp_path, seed=seed + 1) as at:
        chance = Random(seed)
        ids = await world(at, chance, 60)
        statuses = set()
        with at.store.reader() as reads:
            for grant_id in ids:
                row = one(reads, grant_id)
                assert row is not None
                for moment in (at.now, at.now + chance.randrange(400 * DAY) * times.SECOND):
                    outside = Outside(reads, moment)
                    passed = outside.ended_by(row)
                    end = None if passed is None else passed.end
                    found = aggregate(reads, f"grant:{grant_id}", Grant)
                    assert end == at.ledger.authority.rules(found).epoch_end
                    assert found.judge(moment, end) == judge(reads, row, moment, end)
                    statuses.add(found.judge(moment, end).status)
        assert {"active", "revoked", "expired"} <= statuses


class Counting:
    """Reading that counts its questions: what is asked for together is one."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self.questions = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._reads, name)
        if callable(found):
            self.questions += 1
        return found


async def test_a_page_asks_for_all_its_persons_together(tmp_path: Path) -> None:
    """A store that is far away would else take longer for a long page than a request may. Each is told as by itself,
    those too who were erased or ended."""
    async with stocked(tmp_path) as at:
        ids = [(await at.issue(f"person {number}")).grant_id for number in range(12)]
        await at.ledger.operators.revoke_subject(OPERATOR, "person 1", None, None)
        await at.ledger.operators.erase(OPERATOR, "person 2")
        asked = []
        with at.store.reader() as reads:
            for limit in (3, 12):
                counting = Counting(reads)
                page = grants(counting, at.now, limit=limit, discloses=lambda row: True).grants
                assert [grant(reads, each, at.now, lambda row: True) for each in ids[:limit]] == page
                asked.append(counting.questions)
        assert asked[0] == asked[1]
        assert ["person 0", "person 1", msgspec.UNSET] == [each.subject for each in page[:3]]
        assert ["active", "revoked", "revoked"] == [each.status for each in page[:3]]
