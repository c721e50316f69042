"""Incidents: who was first, who came again, the gap, what was obtained since, and what is still alive."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger import times
from ledger.answers import Source
from ledger.policy import PRESETS
from projections import reuse_incidents
from projections.reuse_incidents import RETRY, ReuseIncidents, incidents
from tests.facts import AT, GRANT_ID, fact
from tests.stocked import DAY, ELSEWHERE, HOME, OPERATOR, Stocked, stocked


def told(at: Stocked, /, **asked: Any) -> dict[str, Any]:
    """A page of incidents as JSON."""
    with at.store.reader() as reads:
        found = incidents(reads, at.now, **({"limit": 100} | asked))
    answer: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return answer


async def alerting(at: Stocked) -> None:
    """Let the client's reuse be told and do nothing."""
    await at.clients("www", policy=msgspec.structs.replace(PRESETS["standard"], on_reuse="alert"))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (fact("grant.reuse_detected", label="late_retry"), [(0, (7, GRANT_ID, AT, "late_retry"))]),
        (fact("grant.retry_served", counts=True), [(0, (7, GRANT_ID, AT, RETRY))]),
        (fact("grant.retry_served", counts=False), []),
        (fact("grant.token_redeemed"), []),
        (fact("grant.revoked"), []),
        (fact("client.disabled"), []),
    ],
)
def test_a_row_is_a_reuse_or_a_retry_that_used_the_budget(event: Any, expected: object) -> None:
    """All else stands in the event; nearly every command adds nothing."""
    assert expected == list(ReuseIncidents().rows([event], [7]))


def test_each_event_of_a_command_is_looked_at() -> None:
    """A reuse stands beside the end that it causes."""
    events = [fact("grant.reuse_detected"), fact("grant.revoked", v=2)]
    assert [(0, (7, GRANT_ID, AT, "fork"))] == list(ReuseIncidents().rows(events, [7, 8]))


async def test_a_fork_tells_both_holders_the_gap_and_what_was_obtained(tmp_path: Path) -> None:
    """RFC 9700 4.14.2: the thief came first here, went on twice, and the owner's old token gave it away."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        at.pass_seconds(100)
        stolen = await at.refresh(issued.refresh_token, source=ELSEWHERE)
        at.pass_seconds(30)
        await at.refresh(stolen.refresh_token, source=ELSEWHERE, scope=("read",))
        at.pass_seconds(54)
        await at.refused(issued.refresh_token, source=HOME)
        [incident] = told(at)["incidents"]
        stream = f"grant:{issued.grant_id}"
        first, second = incident["first_context"], incident["context"]
        assert first != second
        obtained = [
            {
                "event_id": f"{stream}/2", "at": "2026-11-25T10:01:40.000000Z", "generation": 0, "context": first,
                "scope": "read openid profile", "format": "opaque", "expires_at": "2026-11-25T10:06:40.000000Z",
            },
            {
                "event_id": f"{stream}/4", "at": "2026-11-25T10:02:10.000000Z", "generation": 1, "context": first,
                "scope": "read", "format": "opaque", "expires_at": "2026-11-25T10:07:10.000000Z",
            },
        ]  # fmt: skip
        disclosed = incident.pop("disclosed")
        for each in incident["obtained"]:
            assert {"context": disclosed["first_context"]} == each.pop("disclosed")
        assert incident == {
            "event_id": f"{stream}/7", "grant_id": issued.grant_id, "client_id": "www", "subject": "alice",
            "at": "2026-11-25T10:03:04.000000Z", "label": "fork", "presented_generation": 0, "current_generation": 2,
            "gap": 2, "seconds_since_redeemed": 84, "action": "revoke", "first_context": first, "context": second,
            "same_context": False, "auth_method": "client_secret_post", "obtained": obtained, "obtained_more": False,
            "alive": {"status": "revoked", "refresh_token": False}, "presentations_counted": 0,
        }  # fmt: skip
        assert "203.0.113.9\nthief/2" == disclosed["first_context"]["value"]
        assert "198.51.100.7\napp/1" == disclosed["context"]["value"]


async def test_each_place_that_something_was_obtained_from_is_told(tmp_path: Path) -> None:
    """A thief who goes on from a third place, which neither of the two that the incident names is; until erased."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        stolen = await at.refresh(issued.refresh_token, source=ELSEWHERE)
        await at.refresh(stolen.refresh_token, source=Source("192.0.2.77", "python/3"))
        at.pass_seconds(60)
        await at.refused(issued.refresh_token, source=HOME)
        [incident] = told(at)["incidents"]
        places = [each["disclosed"]["context"]["value"] for each in incident["obtained"]]
        assert ["203.0.113.9\nthief/2", "192.0.2.77\npython/3"] == places
        await at.ledger.operators.erase(OPERATOR, "alice")
        [incident] = told(at)["incidents"]
        assert [False, False] == ["disclosed" in each for each in incident["obtained"]]


async def test_what_is_still_alive_is_told_until_when(tmp_path: Path) -> None:
    """Under `alert` the family lives on: its refresh token, and access tokens until the last expiry."""
    async with stocked(tmp_path) as at:
        await alerting(at)
        issued = await at.issue()
        first = await at.refresh(issued.refresh_token)
        await at.refresh(first.refresh_token)
        at.pass_seconds(60)
        await at.refused(issued.refresh_token, source=ELSEWHERE)
        alive = {
            "status": "active",
            "refresh_token": True,
            "refresh_token_until": "2026-12-25T10:00:00.000000Z",
            "access_tokens_until": "2026-11-25T10:05:00.000000Z",
        }
        assert alive == told(at)["incidents"][0]["alive"]
        at.pass_seconds(240)
        del alive["access_tokens_until"]
        assert alive == told(at)["incidents"][0]["alive"]
        at.pass_seconds(31 * DAY)
        assert {"status": "expired", "refresh_token": False} == told(at)["incidents"][0]["alive"]


async def test_an_epoch_and_a_disabled_client_end_what_is_alive(tmp_path: Path) -> None:
    """Opaque access tokens die with their grant or its client's disabling, at once."""
    async with stocked(tmp_path) as at:
        await alerting(at)
        issued = await at.issue()
        first = await at.refresh(issued.refresh_token)
        await at.refresh(first.refresh_token)
        at.pass_seconds(60)
        await at.refused(issued.refresh_token)
        await at.clients("other")
        assert {"status": "suspended", "refresh_token": False} == told(at)["incidents"][0]["alive"]
        await at.ledger.operators.revoke_subject(OPERATOR, "alice", None, None)
        assert {"status": "revoked", "refresh_token": False} == told(at)["incidents"][0]["alive"]


async def test_a_counted_retry_is_suspect_from_another_context_alone(tmp_path: Path) -> None:
    """From the redeemer's own context a lost answer is no incident, though it counts on the budget."""
    async with stocked(tmp_path) as at:
        own, other = await at.issue(), await at.issue()
        for issued in (own, other):
            await at.refresh(issued.refresh_token)
        at.pass_seconds(30)
        await at.refresh(own.refresh_token)
        assert [] == told(at)["incidents"]
        await at.refresh(other.refresh_token, source=ELSEWHERE)
        [incident] = told(at)["incidents"]
        assert ("suspect_retry", "none", "lost_response") == (
            incident["label"], incident["action"], incident["kind"],
        )  # fmt: skip
        assert (0, 1, 1, 30, False) == (
            incident["presented_generation"], incident["current_generation"], incident["gap"],
            incident["seconds_since_redeemed"], incident["same_context"],
        )  # fmt: skip
        assert "203.0.113.9\nthief/2" == incident["disclosed"]["context"]["value"]
        assert "198.51.100.7\napp/1" == incident["disclosed"]["first_context"]["value"]


async def test_the_redeemer_is_the_one_that_rotated_in_a_family_that_was_reused_before(tmp_path: Path) -> None:
    """Where one generation was redeemed again and again, its retry is compared with the redemption that retired it."""
    async with stocked(tmp_path) as at:
        await at.clients("www", policy=PRESETS["stable"])
        issued = await at.issue()
        await at.refresh(issued.refresh_token, source=HOME)
        await at.clients("www")
        await at.refresh(issued.refresh_token, source=ELSEWHERE)
        at.pass_seconds(30)
        await at.refresh(issued.refresh_token, source=ELSEWHERE)
        assert [] == told(at)["incidents"]
        await at.refresh(issued.refresh_token, source=HOME)
        assert ["suspect_retry"] == [each["label"] for each in told(at)["incidents"]]


async def test_pages_join_to_the_whole_and_since_is_inclusive(tmp_path: Path) -> None:
    """Log order; innocent retries between take no place on a page; the last cursor goes on tomorrow."""
    async with stocked(tmp_path) as at:
        for number in range(9):
            issued = await at.issue(f"person {number}")
            await at.refresh(issued.refresh_token)
            at.pass_seconds(30)
            await at.refresh(issued.refresh_token, source=HOME if number % 3 == 1 else ELSEWHERE)
        whole = told(at)["incidents"]
        assert 6 == len(whole)
        for limit in (1, 2, 3, 6):
            paged: list[Any] = []
            cursor: str | None = "0"
            while cursor is not None:
                page = told(at, after=int(cursor), limit=limit)
                assert limit == len(page["incidents"])
                paged += page["incidents"]
                cursor, last = page.get("next_cursor"), page["cursor"]
            assert whole == paged
            assert ([], last) == ((empty := told(at, after=int(last)))["incidents"], empty["cursor"])
        moment = times.micros(whole[2]["at"])
        assert whole[2:] == told(at, since=moment)["incidents"]
        assert whole[3:] == told(at, since=moment + 1)["incidents"]


async def test_one_page_looks_at_a_bounded_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many innocent retries there are: a short page, and a cursor that leads on."""
    monkeypatch.setattr(reuse_incidents, "SCANNED_MAX", 3)
    monkeypatch.setattr(reuse_incidents, "PAGE_ROWS", 2)
    async with stocked(tmp_path) as at:
        for _ in range(5):
            issued = await at.issue()
            await at.refresh(issued.refresh_token)
            at.pass_seconds(30)
            await at.refresh(issued.refresh_token)
        await at.refresh(issued.refresh_token, source=ELSEWHERE)
        page = told(at)
        assert ([], page["cursor"]) == (page["incidents"], page["next_cursor"])
        page = told(at, after=int(page["cursor"]))
        assert (1, False) == (len(page["incidents"]), "next_cursor" in page)


async def test_a_page_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """However slowly the store answers each page tells an incident more, and together they tell all."""
    async with stocked(tmp_path) as at:
        for _ in range(3):
            issued = await at.issue()
            await at.refresh((await at.refresh(issued.refresh_token)).refresh_token)
            at.pass_seconds(100)
            await at.refused(issued.refresh_token)
        whole = told(at)
        found, cursor = [], 0
        for left in (2, 1, 0):
            page = told(at, after=cursor, go_on=lambda: False)
            assert (1, left > 0) == (len(page["incidents"]), "next_cursor" in page)
            found += page["incidents"]
            cursor = int(page["cursor"])
        assert (whole["incidents"], whole["cursor"]) == (found, str(cursor))
        times_up = iter((True, False))
        assert 2 == len(told(at, go_on=lambda: next(times_up))["incidents"])


async def test_only_the_latest_access_tokens_are_listed(tmp_path: Path) -> None:
    """Bounded: the last sixteen, which alone can be alive, and a word that there were more."""
    async with stocked(tmp_path) as at:
        await alerting(at)
        issued = await at.issue()
        token, retired = issued.refresh_token, issued.refresh_token
        for number in range(50):
            retired = token if number == 10 else retired
            token = (await at.refresh(token)).refresh_token
        await at.refused(issued.refresh_token)
        await at.refused(retired)
        [incident] = told(at)["incidents"]
        assert (16, True) == (len(incident["obtained"]), incident["obtained_more"])
        assert list(range(34, 50)) == [each["generation"] for each in incident["obtained"]]


async def test_presentations_without_an_event_are_counted_too(tmp_path: Path) -> None:
    """I-21: after the end nothing is appended; the incident adds what events and memory have counted."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        first = await at.refresh(issued.refresh_token)
        await at.refresh(first.refresh_token)
        at.pass_seconds(60)
        for _ in range(4):
            await at.refused(issued.refresh_token, source=ELSEWHERE)
        waiting = at.ledger.desk.presentations.waiting
        assert 3 == told(at, waiting=waiting)["incidents"][0]["presentations_counted"]
        await at.flushed()
        await at.refused(issued.refresh_token, source=ELSEWHERE)
        assert 4 == told(at, waiting=waiting)["incidents"][0]["presentations_counted"]


async def test_an_erased_person_leaves_the_incident_and_nothing_personal(tmp_path: Path) -> None:
    """Contexts stay comparable as commitments; the texts and the subject are gone."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        first = await at.refresh(issued.refresh_token)
        await at.refresh(first.refresh_token)
        at.pass_seconds(60)
        await at.refused(issued.refresh_token, source=ELSEWHERE)
        before = told(at)["incidents"][0]
        await at.ledger.operators.erase(OPERATOR, "alice")
        after = told(at)["incidents"][0]
        assert (False, {}) == ("subject" in after, after["disclosed"])
        assert before["first_context"] == after["first_context"] != after["context"]


async def test_an_incident_is_told_though_its_history_lacks_an_event(tmp_path: Path) -> None:
    """Whoever deletes an event hides no incident by it, of this grant or another; that there was more is said."""
    async with stocked(tmp_path) as at:
        await alerting(at)
        issued = [await at.issue(), await at.issue()]
        for each in issued:
            first = await at.refresh(each.refresh_token)
            await at.refresh(first.refresh_token)
            await at.refused(each.refresh_token, source=ELSEWHERE)
        at.connection.execute("DELETE FROM events WHERE v = 2 AND body LIKE ?", (f"%grant:{issued[0].grant_id}%",))
        found = {each["grant_id"]: (len(each["obtained"]), each["obtained_more"]) for each in told(at)["incidents"]}
        assert {issued[0].grant_id: (0, True), issued[1].grant_id: (2, False)} == found
