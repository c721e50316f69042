"""The token endpoint over a real ledger (RFC 6749 3.2, 5 and 6): shapes, order of checks, what a refusal tells whom."""

import gc
from pathlib import Path

import pytest

from ledger.head_file import Acknowledged
from tests.asking import ELSEWHERE, asking, basic, credentials
from tests.servers import SECRETS
from tests.wire import Json

TOKEN_MEMBERS = {
    "access_token", "refresh_token", "scope", "token_type", "expires_in", "refresh_token_timeout",
    "authorization_expires_in",
}  # fmt: skip


async def test_a_refresh_answers_with_all_members_and_a_new_token(tmp_path: Path) -> None:
    """TE-9, RF-14: five members always, the lifetimes where finite, and the position for who authenticated."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        answer = await ledger.refresh("www", issued["refresh_token"])
        body = answer.json()
        assert (200, TOKEN_MEMBERS) == (answer.status_code, set(body))
        assert ("read openid profile", "bearer", 300) == (body["scope"], body["token_type"], body["expires_in"])
        assert (86_400, 30 * 86_400) == (body["refresh_token_timeout"], body["authorization_expires_in"])
        assert issued["refresh_token"] != body["refresh_token"]
        assert str(ledger.opened.last_position()) == answer.headers["ledger-position"]


async def test_a_public_client_gets_no_position(tmp_path: Path) -> None:
    """How busy a ledger is concerns those only who prove who they are."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("spa")
        answer = await ledger.refresh("spa", issued["refresh_token"])
        assert (200, False) == (answer.status_code, "ledger-position" in answer.headers)


async def test_both_paths_are_one_endpoint(tmp_path: Path) -> None:
    """The tutorial's path and the short one."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        fields = {"grant_type": "refresh_token", "refresh_token": issued["refresh_token"], **credentials("www")}
        answer = await ledger.form("/oauth/v2/oauth-token", fields)
        assert 200 == answer.status_code


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
async def test_other_methods_are_told_the_right_one(tmp_path: Path, method: str) -> None:
    """TE-1, V29, V30: never a token, whatever the query says."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        query = f"?grant_type=refresh_token&client_id=www&client_secret=Secr3t!&refresh_token={issued['refresh_token']}"
        answer = await ledger.ask(method, f"/token{query}")
        assert (405, "POST") == (answer.status_code, answer.headers["allow"])
        assert 200 == (await ledger.refresh("www", issued["refresh_token"])).status_code


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Client authentication comes before anything that the parameters say.
        ({"client_id": "www", "client_secret": "wrong", "grant_type": "password"}, (400, "invalid_client")),
        ({"hello": "world"}, (400, "invalid_client")),
        # Then the grant type: there, known, allowed.
        ({**credentials("www")}, (400, "invalid_request")),
        ({**credentials("www"), "grant_type": "password"}, (400, "unsupported_grant_type")),
        ({**credentials("www"), "grant_type": "client_credentials"}, (400, "unsupported_grant_type")),
        ({**credentials("cc"), "grant_type": "refresh_token"}, (400, "unauthorized_client")),
        # Then what the grant type needs, then the token.
        ({**credentials("www"), "grant_type": "refresh_token"}, (400, "invalid_request")),
        ({**credentials("www"), "grant_type": "refresh_token", "refresh_token": ""}, (400, "invalid_request")),
        ({**credentials("www"), "grant_type": "refresh_token", "refresh_token": "nope"}, (400, "invalid_grant")),
    ],
)
async def test_checks_run_in_their_order(tmp_path: Path, fields: Json, expected: tuple[int, str]) -> None:
    """RFC 6749 5.2: what is wrong first is what is told."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.form("/token", fields)
        assert expected == (answer.status_code, answer.json()["error"])


async def test_a_body_of_another_media_type_is_told_the_right_one_before_anything_else(tmp_path: Path) -> None:
    """TE-2: JSON is invalid_request, also with wrong credentials."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("POST", "/token", json={"grant_type": "refresh_token"}, headers=basic("www", "x"))
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
        assert "application/x-www-form-urlencoded" in answer.json()["error_description"]


async def test_a_body_over_the_cap_is_413_and_ends_the_connection(tmp_path: Path) -> None:
    """TE-14: the cap counts before the parameters do."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.form("/token", {"refresh_token": "x" * 9000})
        assert (413, "invalid_request") == (answer.status_code, answer.json()["error"])
        assert "close" == answer.headers["connection"]


async def test_all_strangers_read_the_same_bytes(tmp_path: Path) -> None:
    """I-19: unknown, malformed, foreign, revoked and reused tokens look alike to whoever is not the owner."""
    async with asking(tmp_path) as ledger:
        foreign = (await ledger.issue("www"))["refresh_token"]
        revoked = await ledger.issue("www")
        await ledger.operator("security", "POST", f"/grants/{revoked['grant_id']}/revoke", {})
        reused = await ledger.issue("www")
        await ledger.refresh("www", reused["refresh_token"])
        await ledger.refresh("www", reused["refresh_token"])
        flipped = foreign[:40] + ("A" if foreign[40] != "A" else "B") + foreign[41:]
        tokens = ["nope", flipped, foreign, foreign + "x", revoked["refresh_token"], reused["refresh_token"], "é" * 70]
        answers = [await ledger.refresh("oth", token) for token in tokens]
        assert {400} == {answer.status_code for answer in answers}
        assert 1 == len({answer.content for answer in answers})
        assert 1 == len({tuple(sorted(answer.headers.items())) for answer in answers})
        assert {"error", "error_description"} == set(answers[0].json())


async def test_the_owner_reads_why_and_by_which_event(tmp_path: Path) -> None:
    """RFC 6749 5.2: the same error for the owner, with `reason` and `event_id` beside it."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        stranger = await ledger.refresh("oth", issued["refresh_token"])
        await ledger.refresh("www", issued["refresh_token"])
        owner = (await ledger.refresh("www", issued["refresh_token"])).json()
        assert "reuse_detected" == owner.pop("reason")
        assert owner.pop("event_id").startswith(f"grant:{issued['grant_id']}/")
        assert stranger.json() == owner


@pytest.mark.parametrize("scope", ["read admin", "read  profile", " read", 'say "hi"', "read\tprofile", "READ", "é"])
async def test_a_scope_that_was_never_granted_is_refused_and_consumes_nothing(tmp_path: Path, scope: str) -> None:
    """V15-V18, D5: malformed and excessive alike; the token lives, and so does its whole scope."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        answer = await ledger.refresh("www", token, scope=scope)
        assert (400, "invalid_scope") == (answer.status_code, answer.json()["error"])
        assert scope.strip() not in answer.json()["error_description"]
        assert "read openid profile" == (await ledger.refresh("www", token)).json()["scope"]


@pytest.mark.parametrize("scope", ["admin", 'say "hi"', "read  profile"])
async def test_no_scope_excuses_a_reuse(tmp_path: Path, scope: str) -> None:
    """V54, D6: the token is judged before the scope, a malformed scope too."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        newest = (await ledger.refresh("www", issued["refresh_token"])).json()["refresh_token"]
        answer = await ledger.refresh("www", issued["refresh_token"], scope=scope)
        assert "invalid_grant" == answer.json()["error"]
        assert "reuse_detected" == (await ledger.refresh("www", newest)).json()["reason"]


async def test_a_sender_bound_client_that_shows_no_key_is_refused_and_consumes_nothing(tmp_path: Path) -> None:
    """DP-5, V74: 400, whoever it is; a public one's grant names its key."""
    clients = f"""
[[client]]
id = "keyed"
secret = "{SECRETS["www"]}"
scope = "read"
dpop_bound_access_tokens = true

[[client]]
id = "certified"
auth = "none"
scope = "read"
tls_client_certificate_bound_access_tokens = true
"""
    async with asking(tmp_path, more=clients) as ledger:
        asked = {"client_id": "certified", "subject": "alice", "scope": "read"}
        answer = await ledger.operator("issuer", "POST", "/grants", asked)
        assert (400, "invalid_request") == (answer.status_code, answer.json()["error"])
        confidential = await ledger.issue("keyed", scope="read")
        public = await ledger.issue("certified", scope="read", cnf={"x5t#S256": "k" * 43})
        fields = {"grant_type": "refresh_token", "client_id": "keyed", "client_secret": SECRETS["www"]}
        answer = await ledger.form("/token", fields | {"refresh_token": confidential["refresh_token"]})
        assert (400, "invalid_dpop_proof") == (answer.status_code, answer.json()["error"])
        fields = {"grant_type": "refresh_token", "client_id": "certified"}
        answer = await ledger.form("/token", fields | {"refresh_token": public["refresh_token"]})
        assert (400, "invalid_grant", 2) == (answer.status_code, answer.json()["error"], len(answer.json()))
        for grant_id in (confidential["grant_id"], public["grant_id"]):
            assert ["grant.issued"] == [event.topic for event in ledger.opened.events(f"grant:{grant_id}")]


async def test_an_unknown_resource_is_an_invalid_target_and_consumes_nothing(tmp_path: Path) -> None:
    """RFC 8707 2.2: `resource` may be repeated, and asks for no more than was granted."""
    more = '\n[[client]]\nid = "res"\nsecret = "R3source!"\nresource = ["https://a.example", "https://b.example"]\n'
    more += 'scope = "read"\n'
    async with asking(tmp_path, more=more) as ledger:
        asked = {"client_id": "res", "subject": "x", "scope": "read"}
        both = ["https://a.example", "https://b.example"]
        issued = (await ledger.operator("issuer", "POST", "/grants", {**asked, "resource": both})).json()
        fields = {"grant_type": "refresh_token", "client_id": "res", "client_secret": "R3source!"}
        fields["refresh_token"] = issued["refresh_token"]
        wrong = await ledger.form("/token", {**fields, "resource": ["https://a.example", "https://c.example"]})
        assert (400, "invalid_target") == (wrong.status_code, wrong.json()["error"])
        right = await ledger.form("/token", {**fields, "resource": "https://b.example/"})
        assert 200 == right.status_code
        told = await ledger.form("/introspect", {"token": right.json()["access_token"], **fields})
        assert "https://b.example" == told.json()["aud"]


async def test_unknown_parameters_are_ignored_and_repeated_ones_refused(tmp_path: Path) -> None:
    """TE-3, TE-5."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        twice = await ledger.refresh("www", token, hello=["a", "a"])
        assert (400, "invalid_request") == (twice.status_code, twice.json()["error"])
        assert 200 == (await ledger.refresh("www", token, hello="world")).status_code


async def test_the_burst_limit_is_429_with_whole_seconds(tmp_path: Path) -> None:
    """A public client's grant that is refreshed too fast waits; nothing is appended."""
    async with asking(tmp_path) as ledger:
        ledger.ledger.desk.bursts = type(ledger.ledger.desk.bursts)(2, 1)
        token = (await ledger.issue("spa"))["refresh_token"]
        for _ in range(2):
            token = (await ledger.refresh("spa", token)).json()["refresh_token"]
        before = ledger.opened.last_position()
        answer = await ledger.refresh("spa", token)
        assert (429, "temporarily_unavailable") == (answer.status_code, answer.json()["error"])
        assert int(answer.headers["retry-after"]) >= 1
        assert before == ledger.opened.last_position()


async def test_a_store_that_cannot_answer_is_503_and_burns_nothing(tmp_path: Path) -> None:
    """RFC 7009 2.2.1's pattern: ask again; the token lives."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        ledger.ledger.log_end.behind = Acknowledged(position=1, at=1)
        answer = await ledger.refresh("www", token)
        assert (503, "temporarily_unavailable") == (answer.status_code, answer.json()["error"])
        assert int(answer.headers["retry-after"]) >= 1
        ledger.ledger.log_end.behind = None
        assert 200 == (await ledger.refresh("www", token)).status_code


async def test_an_event_says_where_and_how_the_client_came(tmp_path: Path) -> None:
    """The commitment of a context differs with the address; `auth_method` is the one used."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        first = await ledger.refresh("www", issued["refresh_token"])
        fields = {"grant_type": "refresh_token", "refresh_token": first.json()["refresh_token"]}
        await ledger.form("/token", fields, address=ELSEWHERE, headers=basic("www"))
        events = (await ledger.operator("security", "GET", f"/grants/{issued['grant_id']}/events")).json()["events"]
        redeemed = [event for event in events if event["topic"] == "grant.token_redeemed"]
        assert ["client_secret_post", "client_secret_basic"] == [each["data"]["auth_method"] for each in redeemed]
        assert redeemed[0]["data"]["context"] != redeemed[1]["data"]["context"]
        assert redeemed[1]["disclosed"]["context"]["value"].startswith(f"{ELSEWHERE}\n")


async def test_requests_leave_no_reference_cycles(tmp_path: Path) -> None:
    """Memory of a request is freed when it ends: the collector, which stops everybody, finds nothing to do."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        body = "grant_type=refresh_token&client_id=www&client_secret=Secr3t!&refresh_token="
        token = await _refreshed(ledger.app, body, token)
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                token = await _refreshed(ledger.app, body, token)
            assert gc.collect() < 50
        finally:
            gc.enable()


async def test_refusals_leave_no_reference_cycles(tmp_path: Path) -> None:
    """Neither do those that a batch decides, as of a token that somebody presents again and again."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        body = "grant_type=refresh_token&client_id=www&client_secret=Secr3t!&scope=admin&refresh_token="
        await _asked(ledger.app, body + token)
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                assert 400 == (await _asked(ledger.app, body + token))[0]["status"]
            assert gc.collect() < 50
        finally:
            gc.enable()


async def _refreshed(app: Json, body: str, token: str) -> str:
    """Refresh, and return the token that came."""
    sent = await _asked(app, body + token)
    assert 200 == sent[0]["status"], sent
    found: str = sent[1]["body"].decode().partition('"refresh_token":"')[2].partition('"')[0]
    return found


async def _asked(app: Json, body: str) -> list[Json]:
    """Ask with nothing between test and application that could make cycles of its own."""
    received = [{"type": "http.request", "body": body.encode()}]
    sent: list[Json] = []

    async def receive() -> Json:
        return received.pop()

    async def send(message: Json) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/token", "client": ("192.0.2.1", 1), "state": {},
        "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
    }  # fmt: skip
    await app(scope, receive, send)
    return sent
