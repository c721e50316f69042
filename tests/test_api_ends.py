"""Ends of all grants of a person or a client over HTTP: shapes, who may, what is told of nobody."""

from pathlib import Path

import pytest

from tests.asking import KIOSK, SECOND_ISSUER, asking
from tests.wire import Json

REASON = {"reason": "password changed"}


async def test_a_persons_grants_end_at_once(tmp_path: Path) -> None:
    """V67, I-06: at every client, from the answer on; the person's other spelling is another person."""
    async with asking(tmp_path) as ledger:
        ended = [await ledger.issue(client, subject="alice") for client in ("www", "oth")]
        other = await ledger.issue("www", subject="Alice")
        answer = await ledger.operator("issuer", "POST", "/subjects/revoke", {"subject": "alice", **REASON})
        assert (200, {"known": True, "epoch": 1}) == (answer.status_code, answer.json())
        for client, issued in zip(("www", "oth"), ended, strict=True):
            told = (await ledger.refresh(client, issued["refresh_token"])).json()
            assert ("invalid_grant", "revoked_by_subject") == (told["error"], told["reason"])
            assert told["event_id"].startswith("subject:")
        assert 200 == (await ledger.refresh("www", other["refresh_token"])).status_code


async def test_a_person_never_seen_is_said_to_be_unknown_and_nothing_is_recorded(tmp_path: Path) -> None:
    """Nobody must believe that something was ended."""
    async with asking(tmp_path) as ledger:
        before = ledger.opened.last_position()
        answer = await ledger.operator("security", "POST", "/subjects/revoke", {"subject": "nobody", **REASON})
        assert (200, {"known": False}) == (answer.status_code, answer.json())
        assert before == ledger.opened.last_position()


async def test_a_clients_grants_end_at_once(tmp_path: Path) -> None:
    """One event, however many grants; a second time it changes nothing and answers alike."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("w w")
        answer = await ledger.operator("admin", "POST", "/clients/w%20w/revoke", REASON)
        assert (200, {"client_id": "w w", "epoch": 1}) == (answer.status_code, answer.json())
        assert "revoked_by_operator" == (await ledger.refresh("w w", issued["refresh_token"])).json()["reason"]
        before = ledger.opened.last_position()
        again = await ledger.operator("admin", "POST", "/clients/w%20w/revoke", REASON)
        assert (answer.json(), before) == (again.json(), ledger.opened.last_position())


async def test_a_client_that_never_was_is_404(tmp_path: Path) -> None:
    """Also one whose id could be a path."""
    async with asking(tmp_path) as ledger:
        for client in ("nobody", "a/b", "www/x", "%2e%2e"):
            answer = await ledger.operator("admin", "POST", f"/clients/{client}/revoke", REASON)
            assert (404, "not_found") == (answer.status_code, answer.json()["error"])


async def test_before_spares_what_was_issued_later(tmp_path: Path) -> None:
    """Any offset will do; the future and a time without an offset will not."""
    async with asking(tmp_path) as ledger:
        early = await ledger.issue("www", subject="alice")
        ledger.clock.pass_seconds(60)
        late = await ledger.issue("www", subject="alice")
        body = {"subject": "alice", **REASON, "before": "2026-11-25T11:01:00+01:00"}
        answer = await ledger.operator("security", "POST", "/subjects/revoke", body)
        assert {"known": True, "epoch": 1} == answer.json()
        assert 400 == (await ledger.refresh("www", early["refresh_token"])).status_code
        assert 200 == (await ledger.refresh("www", late["refresh_token"])).status_code
        for before in ("2026-11-25T10:01:00", "2026-11-25T10:01:01Z", "now"):
            for path in ("/subjects/revoke", "/clients/www/revoke"):
                wrong = {**REASON, "before": before} | ({"subject": "alice"} if path.startswith("/s") else {})
                answer = await ledger.operator("security", "POST", path, wrong)
                assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


@pytest.mark.parametrize(
    "body", [{}, {"subject": "a"}, {"subject": "", **REASON}, {"subject": "a", "reason": "x" * 201}]
)
async def test_a_body_lacks_nothing(tmp_path: Path, body: Json) -> None:
    """A reason belongs to every end of many grants."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.operator("security", "POST", "/subjects/revoke", body)
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


async def test_an_issuer_that_is_limited_to_clients_may_not_end_a_person(tmp_path: Path) -> None:
    """A person's grants at other clients are none of its business."""
    async with asking(tmp_path, more=SECOND_ISSUER) as ledger:
        answer = await ledger.ask("POST", "/subjects/revoke", headers=KIOSK, json={"subject": "a", **REASON})
        assert (403, "insufficient_scope") == (answer.status_code, answer.json()["error"])
