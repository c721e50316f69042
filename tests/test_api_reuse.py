"""Incidents over HTTP: what is told of a reuse, since when, and that reading it is recorded."""

import time
from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings
from projections import reuse_incidents
from tests.asking import ELSEWHERE, ISSUER_URL, asking


async def test_an_incident_says_who_came_when_and_what_was_obtained(tmp_path: Path) -> None:
    """RFC 9700 4.14.2: the label, the gap, both contexts, and what of it still lives."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", subject="alice")
        ledger.clock.pass_seconds(5)
        await ledger.refresh("www", issued["refresh_token"])
        ledger.clock.pass_seconds(7)
        await ledger.refresh("www", issued["refresh_token"], address=ELSEWHERE)
        page = (await ledger.operator("security", "GET", "/reuse")).json()
        [incident] = page["incidents"]
        assert ("late_retry", "revoke", 0, 1, 7) == tuple(
            incident[name]
            for name in ("label", "action", "presented_generation", "current_generation", "seconds_since_redeemed")
        )
        assert (issued["grant_id"], "www", "2026-11-25T10:00:12.000000Z") == (
            incident["grant_id"],
            incident["client_id"],
            incident["at"],
        )
        assert incident["event_id"].startswith(f"grant:{issued['grant_id']}/")
        assert "next_cursor" not in page
        assert [("reuse", None, "operator:soc")] == ledger.asked()


async def test_presentations_after_the_end_are_added_from_memory(tmp_path: Path) -> None:
    """I-21: they are counted, not recorded one by one, and an incident tells the count all the same."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        await ledger.refresh("www", issued["refresh_token"])
        for _ in range(6):
            await ledger.refresh("www", issued["refresh_token"])
        [incident] = (await ledger.operator("admin", "GET", "/reuse")).json()["incidents"]
        assert 5 == incident["presentations_counted"]


async def test_since_is_inclusive_and_lists_go_on_by_cursor(tmp_path: Path) -> None:
    """The clock of events, RFC 3339 with its offset."""
    async with asking(tmp_path) as ledger:
        for _ in range(3):
            ledger.clock.pass_seconds(60)
            issued = await ledger.issue("www")
            await ledger.refresh("www", issued["refresh_token"])
            await ledger.refresh("www", issued["refresh_token"])

        async def found(query: str) -> tuple[int, int, str | None]:
            answer = await ledger.operator("security", "GET", f"/reuse?{query}")
            body = answer.json()
            return answer.status_code, len(body.get("incidents", ())), body.get("next_cursor")

        assert (200, 3, None) == await found("")
        assert (200, 2, None) == await found("since=2026-11-25T10:02:00Z")
        assert (200, 2, None) == await found("since=2026-11-25T11:02:00%2B01:00")
        assert (200, 0, None) == await found("since=2026-11-25T10:03:00.000001Z")
        status, count, cursor = await found("limit=2")
        assert (200, 2) == (status, count)
        assert (200, 1, None) == await found(f"limit=2&cursor={cursor}")
        assert (400, 0, None) == await found("since=2026-11-25T10:02:00")


async def test_a_slow_store_tells_all_in_shorter_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen questions an incident: where the store is far away a page would take longer than a request may."""
    incident = reuse_incidents._Telling.incident

    def slowly(*asked: Any) -> Any:
        time.sleep(0.2)
        return incident(*asked)

    monkeypatch.setattr(reuse_incidents._Telling, "incident", slowly)
    async with asking(tmp_path, settings=Settings(issuer=ISSUER_URL, request_timeout_seconds=1.0)) as ledger:
        for _ in range(6):
            issued = await ledger.issue("www")
            await ledger.refresh("www", issued["refresh_token"])
            await ledger.refresh("www", issued["refresh_token"])
        found, cursor = 0, "0"
        while cursor:
            answer = await ledger.operator("security", "GET", f"/reuse?limit=1000&cursor={cursor}")
            assert 200 == answer.status_code
            found += len(answer.json()["incidents"])
            cursor = answer.json().get("next_cursor", "")
        assert 6 == found
