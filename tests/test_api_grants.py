"""Grants over HTTP: looking by role, history, acts that end or stop one."""

from pathlib import Path

import pytest

from api import clients_file
from tests.asking import ASKED, KIOSK, SECOND_ISSUER, Asking, asking
from tests.wire import Json

# ---------------------------------------------------------------- looking


async def test_a_grant_as_it_stands(tmp_path: Path) -> None:
    """The shape of a living grant, null members left out."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", subject="alice")
        answer = await ledger.operator("security", "GET", f"/grants/{issued['grant_id']}")
        assert {
            "grant_id": issued["grant_id"],
            "client_id": "www",
            "subject": "alice",
            "status": "active",
            "scope": "read openid profile",
            "granted_scope": "read openid profile",
            "generation": 0,
            "issued_at": "2026-11-25T10:00:00.000000Z",
            "idle_expires_at": "2026-11-26T10:00:00.000000Z",
            "absolute_expires_at": "2026-12-25T10:00:00.000000Z",
        } == answer.json()


@pytest.mark.parametrize(
    ("role", "sees_subject"), [("issuer", True), ("auditor", False), ("security", True), ("admin", True)]
)
async def test_who_a_grant_belongs_to_is_for_some_roles(tmp_path: Path, role: str, sees_subject: bool) -> None:
    """Security and admin, and the issuer of the grant; an auditor sees what happened, not to whom."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", subject="alice")
        one = (await ledger.operator(role, "GET", f"/grants/{issued['grant_id']}")).json()
        page = (await ledger.operator(role, "GET", "/grants")).json()["grants"]
        found = (await ledger.operator(role, "POST", "/grants/search", {"subject": "alice"})).json()["grants"]
        assert [one] == page == found
        assert sees_subject == ("subject" in one)


async def test_an_issuer_sees_and_ends_only_what_it_issued(tmp_path: Path) -> None:
    """Another's grant is not there: 404, and no list holds it."""
    async with asking(tmp_path, more=SECOND_ISSUER) as ledger:
        others = await ledger.issue("www", subject="alice")
        own = (await ledger.ask("POST", "/grants", headers=KIOSK, json=ASKED)).json()
        for path in ("/grants", "/grants?client_id=www"):
            page = (await ledger.ask("GET", path, headers=KIOSK)).json()
            assert [own["grant_id"]] == [grant["grant_id"] for grant in page["grants"]]
        found = await ledger.ask("POST", "/grants/search", headers=KIOSK, json={"subject": "alice"})
        assert [own["grant_id"]] == [grant["grant_id"] for grant in found.json()["grants"]]
        before = len(ledger.asked())
        for answer in (
            await ledger.ask("GET", f"/grants/{others['grant_id']}", headers=KIOSK),
            await ledger.ask("POST", f"/grants/{others['grant_id']}/revoke", headers=KIOSK),
        ):
            assert (404, "not_found") == (answer.status_code, answer.json()["error"])
        assert before == len(ledger.asked())
        ended = await ledger.ask("POST", f"/grants/{own['grant_id']}/revoke", headers=KIOSK)
        assert ("revoked", "withdrawal") == (ended.json()["status"], ended.json()["end"]["reason_class"])
        assert 200 == (await ledger.refresh("www", others["refresh_token"])).status_code


async def test_an_issuer_that_lost_a_client_neither_sees_nor_ends_its_grants(tmp_path: Path) -> None:
    """`clients` limits what it does now, whatever it issued before."""
    async with asking(tmp_path, more=SECOND_ISSUER) as ledger:
        own = (await ledger.ask("POST", "/grants", headers=KIOSK, json=ASKED)).json()
        text = (ledger.opened.folder / "clients.toml").read_text().replace('clients = ["www"]', 'clients = ["oth"]')
        (ledger.opened.folder / "clients.toml").write_text(text)
        file = clients_file.load(ledger.opened.folder / "clients.toml")
        await ledger.ledger.operators.apply(file.clients, file.operators)
        for method, path in (("GET", ""), ("POST", "/revoke")):
            answer = await ledger.ask(method, f"/grants/{own['grant_id']}{path}", headers=KIOSK)
            assert 404 == answer.status_code
        assert [] == (await ledger.ask("GET", "/grants", headers=KIOSK)).json()["grants"]
        assert 200 == (await ledger.refresh("www", own["refresh_token"])).status_code


@pytest.mark.parametrize("grant_id", ["x", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32, "%00" * 32])
async def test_what_names_no_grant_is_404(tmp_path: Path, grant_id: str) -> None:
    """32 lower-case hex digits, of a grant that there is; nothing is recorded of the rest."""
    async with asking(tmp_path) as ledger:
        before = ledger.opened.last_position()
        for method, path in [("GET", ""), ("GET", "/events"), ("POST", "/revoke"), ("POST", "/suspend")]:
            answer = await ledger.operator("admin", method, f"/grants/{grant_id}{path}")
            assert (404, "not_found") == (answer.status_code, answer.json()["error"])
        assert before == ledger.opened.last_position()


async def test_lists_go_on_by_cursor_in_log_order(tmp_path: Path) -> None:
    """The last page has a cursor too: tomorrow's grants follow it."""
    async with asking(tmp_path) as ledger:
        issued = [(await ledger.issue(client))["grant_id"] for client in ("www", "oth", "www", "www", "oth")]
        seen: list[str] = []
        cursor = ""
        sizes = []
        while True:
            page = (await ledger.operator("auditor", "GET", f"/grants?limit=2{cursor}")).json()
            sizes.append(len(page["grants"]))
            seen += [grant["grant_id"] for grant in page["grants"]]
            cursor = f"&cursor={page['cursor']}"
            if "next_cursor" not in page:
                break
            assert page["cursor"] == page["next_cursor"]
        assert (issued, [2, 2, 1]) == (seen, sizes)
        later = (await ledger.issue("www"))["grant_id"]
        page = (await ledger.operator("auditor", "GET", f"/grants?limit=2{cursor}")).json()
        assert [later] == [grant["grant_id"] for grant in page["grants"]]


async def test_lists_are_filtered_by_client_and_judged_state(tmp_path: Path) -> None:
    """A frozen expiry counts though no event says so yet; a page may hold fewer than its limit."""
    async with asking(tmp_path) as ledger:
        short = (await ledger.issue("www", refresh_token_ttl_seconds=10))["grant_id"]
        long = (await ledger.issue("www"))["grant_id"]
        other = (await ledger.issue("oth"))["grant_id"]
        ledger.clock.pass_seconds(10)

        async def listed(query: str) -> list[str]:
            page = (await ledger.operator("auditor", "GET", f"/grants?{query}")).json()
            return [grant["grant_id"] for grant in page["grants"]]

        assert [long, other] == await listed("state=active")
        assert [short] == await listed("state=expired")
        assert [long] == await listed("client_id=www&state=active")
        assert [] == await listed("client_id=nobody")
        assert [short, long, other] == await listed("client_id=")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=-1", "limit=x", "limit=1.5", "limit=1&limit=1", "cursor=x", "cursor=-1", "cursor=1e3",
        "cursor=9223372036854775808", "state=dead", "subject=alice", "colour=blue", "client_id=%FF",
    ],
)  # fmt: skip
async def test_a_query_that_cannot_be_meant_is_400(tmp_path: Path, query: str) -> None:
    """Subjects never stand in a URL; a filter that is misspelled must not list everything."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.operator("admin", "GET", f"/grants?{query}")
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])


async def test_a_search_finds_a_person_byte_for_byte(tmp_path: Path) -> None:
    """Another spelling is another person, and a person never seen has no grants."""
    async with asking(tmp_path) as ledger:
        issued = (await ledger.issue("www", subject="Ann@example.com"))["grant_id"]

        async def found(**body: Json) -> list[str]:
            answer = await ledger.operator("admin", "POST", "/grants/search", body)
            assert 200 == answer.status_code, answer.text
            return [grant["grant_id"] for grant in answer.json()["grants"]]

        assert [issued] == await found(subject="Ann@example.com")
        assert [issued] == await found(subject="Ann@example.com", client_id="www", state="active", limit=10_000)
        assert [] == await found(subject="ann@example.com")
        assert [] == await found(subject="Ann@example.com", client_id="oth")
        refused = await ledger.operator("admin", "POST", "/grants/search", {"subject": "x", "limit": 0})
        assert 400 == refused.status_code


async def test_a_history_shows_what_was_stored(tmp_path: Path) -> None:
    """`data` holds the stored members that do not stand beside it; whoever may sees the texts behind commitments."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www", device="Alice's phone")
        await ledger.refresh("www", issued["refresh_token"])
        path = f"/grants/{issued['grant_id']}/events"
        told = (await ledger.operator("security", "GET", path)).json()
        assert ["grant.issued", "grant.token_redeemed", "grant.token_rotated"] == [
            event["topic"] for event in told["events"]
        ]
        first = told["events"][0]
        assert f"grant:{issued['grant_id']}/1" == first["event_id"]
        assert {"salt", "name", "value"} == set(first["disclosed"]["device"])
        assert ["read", "openid", "profile"] == first["data"]["scope"]
        assert not {"topic", "stream", "v", "at", "command_id", "prev"} & set(first["data"])
        plain = (await ledger.operator("auditor", "GET", path)).json()
        assert all("disclosed" not in event for event in plain["events"])
        pages = [(await ledger.operator("auditor", "GET", f"{path}?limit=2")).json()]
        pages.append((await ledger.operator("auditor", "GET", f"{path}?cursor={pages[0]['next_cursor']}")).json())
        assert plain["events"] == pages[0]["events"] + pages[1]["events"]


async def test_an_issuer_that_is_also_auditor_reads_the_texts_of_its_own_grants_alone(tmp_path: Path) -> None:
    """One more role takes nothing away: in the history too, the texts are for the issuer of the grant."""
    async with asking(tmp_path, more=SECOND_ISSUER.replace('["issuer"]', '["issuer", "auditor"]')) as ledger:
        others = await ledger.issue("www", device="Bob's phone")
        own = (await ledger.ask("POST", "/grants", headers=KIOSK, json=ASKED | {"device": "Alice's phone"})).json()
        for grant, device, subject in ((own, "Alice's phone", "alice"), (others, None, None)):
            path = f"/grants/{grant['grant_id']}/events?at=2026-11-25T10:00:00Z"
            told = (await ledger.ask("GET", path, headers=KIOSK)).json()
            disclosed = told["events"][0].get("disclosed", {})
            assert (device, subject) == (disclosed.get("device", {}).get("value"), told["state"].get("subject"))


async def test_a_history_tells_the_state_at_a_moment(tmp_path: Path) -> None:
    """Judged over the whole history, not the page; any offset will do, none or the future will not."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        ledger.clock.pass_seconds(60)
        await ledger.operator("admin", "POST", f"/grants/{issued['grant_id']}/revoke", {"reason": "lost phone"})
        path = f"/grants/{issued['grant_id']}/events"

        async def state(at: str) -> tuple[int, str | None]:
            answer = await ledger.operator("auditor", "GET", f"{path}?limit=1&at={at}")
            return answer.status_code, answer.json().get("state", {}).get("status")

        assert (200, "active") == await state("2026-11-25T10:00:30Z")
        assert (200, "active") == await state("2026-11-25T11:00:30%2B01:00")
        assert (200, "active") == await state("2026-11-25T11:00:30+01:00")
        assert (200, "revoked") == await state("2026-11-25T10:01:00.000000Z")
        assert (404, None) == await state("2026-11-25T09:59:59Z")
        early = await ledger.operator("auditor", "GET", f"{path}?at=2026-11-25T09:59:59Z")
        assert "no such grant, or none yet at that moment" == early.json()["error_description"]
        assert (400, None) == await state("2026-11-25T10:00:30")
        assert (400, None) == await state("2026-11-25T10:02:00Z")
        assert (400, None) == await state("yesterday")


async def test_each_question_is_recorded_once_and_by_whom(tmp_path: Path) -> None:
    """Who looked at what: the name of the question and the grant, never what was sought."""
    async with asking(tmp_path) as ledger:
        grant_id = (await ledger.issue("www", subject="alice"))["grant_id"]
        await ledger.operator("auditor", "GET", "/grants?client_id=www")
        await ledger.operator("security", "POST", "/grants/search", {"subject": "alice"})
        await ledger.operator("issuer", "GET", f"/grants/{grant_id}")
        await ledger.operator("admin", "GET", f"/grants/{grant_id}/events")
        await ledger.operator("admin", "POST", f"/grants/{grant_id}/suspend")
        assert [
            ("grants.list", None, "operator:audit"),
            ("grants.search", None, "operator:soc"),
            ("grants.get", grant_id, "operator:login-app"),
            ("grants.events", grant_id, "operator:ops"),
        ] == ledger.asked()


# ---------------------------------------------------------------- acting


async def test_acts_answer_with_the_grant_and_change_it_once(tmp_path: Path) -> None:
    """An act that changes nothing answers alike and writes nothing; a suspension can be taken back, an end cannot."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        path = f"/grants/{issued['grant_id']}"

        async def act(name: str, body: Json = None) -> tuple[int, str | None]:
            answer = await ledger.operator("security", "POST", f"{path}/{name}", body)
            return answer.status_code, answer.json().get("status", answer.json().get("error"))

        assert (200, "suspended") == await act("suspend", {"reason": "asked by phone"})
        position = ledger.opened.last_position()
        assert (200, "suspended") == await act("suspend", {})
        assert position == ledger.opened.last_position()
        assert "suspended" == (await ledger.refresh("www", issued["refresh_token"])).json()["reason"]
        assert (200, "active") == await act("reinstate")
        assert (200, "revoked") == await act("revoke", {"reason": "asked again"})
        assert (200, "revoked") == await act("revoke")
        assert (409, "conflict") == await act("suspend")
        assert (409, "conflict") == await act("reinstate")


async def test_the_reason_is_told_to_those_who_may_read_it(tmp_path: Path) -> None:
    """An event holds a commitment; the text stands beside it for security and admin."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        path = f"/grants/{issued['grant_id']}"
        await ledger.operator("admin", "POST", f"{path}/revoke", {"reason": "lost phone"})
        told = (await ledger.operator("admin", "GET", path)).json()
        assert "lost phone" == told["disclosed"]["reason"]["value"]
        assert "lost phone" not in (await ledger.operator("auditor", "GET", path)).text


async def test_reinstating_after_reuse_wants_trust(tmp_path: Path) -> None:
    """Without `trust` 409, with another value 400."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("susp")
        newest = (await ledger.refresh("susp", issued["refresh_token"])).json()["refresh_token"]
        await ledger.refresh("susp", issued["refresh_token"])
        path = f"/grants/{issued['grant_id']}/reinstate"
        assert 409 == (await ledger.operator("admin", "POST", path, {})).status_code
        assert 400 == (await ledger.operator("admin", "POST", path, {"trust": "all"})).status_code
        assert 200 == (await ledger.operator("admin", "POST", path, {"trust": "current"})).status_code
        assert 200 == (await ledger.refresh("susp", newest)).status_code


@pytest.mark.parametrize("body", [{"reason": "x" * 201}, {"reason": 7}, {"why": "x"}, {"trust": "current"}])
async def test_an_acts_body_is_strict(tmp_path: Path, body: Json) -> None:
    """`trust` is for reinstating alone."""
    async with asking(tmp_path) as ledger:
        grant_id = (await ledger.issue("www"))["grant_id"]
        answer = await ledger.operator("admin", "POST", f"/grants/{grant_id}/revoke", body)
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
        assert "active" == (await _status(ledger, grant_id))


async def _status(ledger: Asking, grant_id: str) -> str:
    return str((await ledger.operator("admin", "GET", f"/grants/{grant_id}")).json()["status"])


async def test_grants_of_a_client_that_is_away_are_suspended_and_come_back(tmp_path: Path) -> None:
    """Removed from the file it is answered as an unknown one, and its grants are blocked."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        file = clients_file.load(ledger.opened.folder / "clients.toml")
        await ledger.ledger.operators.apply([each for each in file.clients if each.client_id != "www"], file.operators)
        told = (await ledger.operator("admin", "GET", f"/grants/{issued['grant_id']}")).json()
        assert ("suspended", "client_disabled") == (told["status"], told["blocked_by"])
        assert "invalid_client" == (await ledger.refresh("www", issued["refresh_token"])).json()["error"]
        await ledger.ledger.operators.apply(file.clients, file.operators)
        assert 200 == (await ledger.refresh("www", issued["refresh_token"])).status_code
