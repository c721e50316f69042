"""What happened to a grant, in order: exactly what was stored, the epoch at its place, and the grant as it was then."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger import times
from ledger.policy import PRESETS
from ledger.recorders.reading import Reader
from ledger.recorders.rows import StoredEvent
from projections.current_tokens import one
from projections.grant_history import history, row_then
from tests.histories import check_history, stored_bytes
from tests.stocked import DAY, ELSEWHERE, HOME, OPERATOR, Stocked, stocked


def told(at: Stocked, grant_id: str, /, **asked: Any) -> dict[str, Any]:
    """The history as JSON."""
    asked = {"limit": 1000, "discloses": lambda row: True, **asked}
    with at.store.reader() as reads:
        found = history(reads, grant_id, at.now, **asked)
    assert found is not None
    answer: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return answer


async def lived(at: Stocked) -> str:
    """A grant with two refreshes, a retry from elsewhere, a narrowing; its id."""
    issued = await at.issue()
    at.pass_seconds(5)
    first = await at.refresh(issued.refresh_token)
    at.pass_seconds(2)
    await at.refresh(issued.refresh_token, source=ELSEWHERE)
    at.pass_seconds(60)
    await at.refresh(first.refresh_token, scope=("read",))
    return issued.grant_id


async def test_what_is_told_is_what_was_stored(tmp_path: Path) -> None:
    """I-14: from what is shown the stored bytes can be made again, so anyone can recompute every link."""
    async with stocked(tmp_path) as at:
        grant_id = await lived(at)
        shown = told(at, grant_id)
        check_history(shown["events"])
        with at.store.reader() as reads:
            stored = reads.events(f"grant:{grant_id}", 1, 99)
        assert [each.body.encode() for each in stored] == [stored_bytes(each) for each in shown["events"]]
        assert [str(each.position) for each in stored] == [each["position"] for each in shown["events"]]
        assert (grant_id, "7", False) == (shown["grant_id"], shown["cursor"], "next_cursor" in shown)
        assert f"grant:{grant_id}/4" == shown["events"][3]["event_id"]


async def test_everything_disclosed_recomputes_its_commitment(tmp_path: Path) -> None:
    """Contexts, device, session and reason: SHA-256 of the JSON array `[salt, name, value]`; gone once erased."""
    async with stocked(tmp_path) as at:
        grant_id = await lived(at)
        await at.ledger.operators.act_on_grant(OPERATOR, grant_id, "revoke", "lost “phone”\n")
        opened = 0
        for event in told(at, grant_id)["events"]:
            for member, found in event.get("disclosed", {}).items():
                triple = json.dumps(
                    [found["salt"], found["name"], found["value"]], separators=(",", ":"), ensure_ascii=False
                )
                assert event["data"][member] == hashlib.sha256(triple.encode()).hexdigest()
                opened += 1
        assert 6 == opened  # device and session, three contexts, one reason
        first = told(at, grant_id)["events"]
        assert "198.51.100.7\napp/1" == first[1]["disclosed"]["context"]["value"]
        assert "203.0.113.9\nthief/2" == first[3]["disclosed"]["context"]["value"]
        assert all("disclosed" not in event for event in told(at, grant_id, discloses=lambda row: False)["events"])
        await at.ledger.operators.erase(OPERATOR, "alice")
        after = told(at, grant_id)["events"]
        assert all("disclosed" not in event for event in after)
        assert [event["data"] for event in first] == [event["data"] for event in after]


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_pages_join_to_the_whole(tmp_path: Path, limit: int) -> None:
    """Any limit: no event twice, none lost, the epoch included; what happens later continues the last cursor."""
    async with stocked(tmp_path) as at:
        grant_id = await lived(at)
        await at.ledger.operators.revoke_subject(OPERATOR, "alice", "left", None)
        whole = told(at, grant_id)
        paged: list[Any] = []
        cursor: str | None = "0"
        while cursor is not None:
            page = told(at, grant_id, after=int(cursor), limit=limit)
            assert limit >= len(page["events"])
            paged += page["events"]
            cursor, last = page.get("next_cursor"), page["cursor"]
        assert whole["events"] == paged
        assert [] == told(at, grant_id, after=int(last))["events"]
        assert last == told(at, grant_id, after=int(last))["cursor"]


async def test_the_epoch_that_ended_the_grant_stands_at_its_place(tmp_path: Path) -> None:
    """By position, with its own stream, version and link; events of the grant that follow it come after it."""
    async with stocked(tmp_path) as at:
        await at.ledger.operators.revoke_client(OPERATOR, "www", None, at.now)
        at.pass_seconds(1)
        issued = await at.issue()
        at.pass_seconds(1)
        await at.ledger.operators.revoke_client(OPERATOR, "www", "breach", None)
        at.pass_seconds(1)
        await at.ledger.operators.revoke_client(OPERATOR, "www", None, at.now)
        await at.ledger.operators.revoke_subject(OPERATOR, "alice", None, None)
        await at.refused(issued.refresh_token)
        await at.flushed()
        shown = told(at, issued.grant_id)["events"]
        assert ["grant.issued", "client.revoked", "grant.presentations_counted"] == [each["topic"] for each in shown]
        epoch = shown[1]
        assert ("client:www/3", "client:www", 3, 2) == (
            epoch["event_id"], epoch["stream"], epoch["v"], epoch["data"]["epoch"],
        )  # fmt: skip
        assert 64 == len(epoch["prev"])
        assert "breach" == epoch["disclosed"]["reason"]["value"]
        assert sorted(int(each["position"]) for each in shown) == [int(each["position"]) for each in shown]
        for limit in (1, 2):
            assert shown[limit:] == told(at, issued.grant_id, after=limit)["events"]


async def test_an_epoch_that_came_after_the_end_is_not_told(tmp_path: Path) -> None:
    """Only the end is part of the grant's history: a revoked grant is not ended again, nor is an expired one."""
    async with stocked(tmp_path) as at:
        revoked, expired = await at.issue(), await at.issue()
        await at.ledger.operators.act_on_grant(OPERATOR, revoked.grant_id, "revoke", None)
        at.pass_seconds(31 * DAY)
        await at.ledger.operators.revoke_subject(OPERATOR, "alice", None, None)
        for grant_id, last in ((revoked.grant_id, "grant.revoked"), (expired.grant_id, "grant.issued")):
            assert last == told(at, grant_id)["events"][-1]["topic"]


async def test_the_state_at_a_moment_is_as_it_was_shown_then(tmp_path: Path) -> None:
    """Whatever page is asked for: the grant then, with the expiries, epochs and clients of then; before: none."""
    async with stocked(tmp_path) as at:
        at.pass_seconds(1)
        shown: list[tuple[int, Any]] = []
        issued = await at.issue()
        token = issued.refresh_token

        def note() -> None:
            shown.append((at.now, told(at, issued.grant_id, at=at.now)["state"]))
            at.pass_seconds(10)

        note()
        for scope in (None, ("read",), ("read", "openid")):
            token = (await at.refresh(token, scope=scope)).refresh_token
            note()
        await at.ledger.operators.act_on_grant(OPERATOR, issued.grant_id, "suspend", "odd")
        note()
        await at.ledger.operators.act_on_grant(OPERATOR, issued.grant_id, "reinstate", None)
        note()
        await at.clients("other")
        note()
        await at.clients("www")
        note()
        at.pass_seconds(29 * DAY)
        token = (await at.refresh(token)).refresh_token
        note()
        await at.ledger.operators.revoke_subject(OPERATOR, "alice", "left", None)
        note()
        await at.ledger.operators.revoke_client(OPERATOR, "www", None, None)
        note()
        for moment, state in shown:
            for page in ({}, {"after": 3, "limit": 1}):
                assert state == told(at, issued.grant_id, at=moment, **page)["state"]
                assert state == told(at, issued.grant_id, at=moment + 9 * times.SECOND, **page)["state"]
        assert {"active", "suspended", "revoked"} == {state["status"] for _, state in shown}
        assert ["read openid profile", "read openid profile", "read", "read openid"] == [
            state["scope"] for _, state in shown[:4]
        ]
        assert "client_disabled" == shown[6][1]["blocked_by"]
        with at.store.reader() as reads:
            before = shown[0][0] - 1
            assert history(reads, issued.grant_id, at.now, at=before, limit=9, discloses=lambda row: True) is None
            assert history(reads, "0" * 32, at.now, limit=9, discloses=lambda row: True) is None


async def test_an_expiry_shows_then_as_soon_as_its_moment_had_passed(tmp_path: Path) -> None:
    """I-16: between the frozen moment and the event that says so the grant was expired already."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        at.pass_seconds(40 * DAY)
        await at.refused(issued.refresh_token)
        expires = at.now - 10 * DAY * times.SECOND
        assert "active" == told(at, issued.grant_id, at=expires - 1)["state"]["status"]
        then = told(at, issued.grant_id, at=expires)["state"]
        assert ("expired", False) == (then["status"], "event_id" in then["end"])
        now = told(at, issued.grant_id, at=at.now)["state"]
        assert f"grant:{issued.grant_id}/2" == now["end"]["event_id"]
        assert then["end"]["at"] == now["end"]["at"]


class Counting(Reader):
    """A reader that counts how many events it was made to walk to."""

    def __init__(self, reads: Reader) -> None:
        super().__init__(reads._connection, reads._segments)
        self.walked = 0

    def events(self, name: str, from_v: int, to_v: int) -> list[StoredEvent]:
        found = super().events(name, from_v, to_v)
        self.walked += len(found) + 64
        return found

    def event_at_position(self, name: str, position: int) -> StoredEvent | None:
        self.walked += 1
        return super().event_at_position(name, position)


async def test_a_page_costs_the_same_whatever_the_grants_age(tmp_path: Path, count: Any) -> None:
    """I-22: also with an epoch among the events, and with `at` now."""
    async with stocked(tmp_path) as at:
        await at.clients("www", policy=PRESETS["stable"])
        walked = []
        for redemptions in (30, count(600, 20_000)):
            issued = await at.issue()
            for _ in range(redemptions):
                await at.refresh(issued.refresh_token)
            await at.ledger.operators.revoke_subject(OPERATOR, "alice", None, None)
            with at.store.reader() as reads:
                assert isinstance(reads, Reader)
                counting = Counting(reads)
                page = history(
                    counting, issued.grant_id, at.now, at=at.now, after=7, limit=10, discloses=lambda row: True
                )
            assert page is not None
            assert 10 == len(page.events)
            walked.append(counting.walked)
        assert walked[0] + 64 * 20 >= walked[1]


async def test_the_row_then_equals_the_row_that_was(tmp_path: Path) -> None:
    """I-13: folding up to a moment gives the row that the table held then."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        token, rows = issued.refresh_token, []
        for step in range(12):
            token = (await at.refresh(token, source=HOME, scope=(("read",), None, ("openid",))[step % 3])).refresh_token
            with at.store.reader() as reads:
                rows.append((at.now, one(reads, issued.grant_id)))
            at.pass_seconds(7)
        with at.store.reader() as reads:
            last = rows[-1][1]
            assert last is not None
            assert [row for _, row in rows] == [row_then(reads, last, moment) for moment, _ in rows]
