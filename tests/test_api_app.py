"""The application as a whole: no path redirects, the local door opens from inside only, faults are 500 in JSON."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from api.metadata import OAUTH_PLACE
from api.server import Server
from api.settings import Settings
from ledger.head_file import Acknowledged
from tests.asking import Asking, asking, bearer, credentials
from tests.serving import logged
from tests.wire import INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH, Connection, request_bytes


@pytest.mark.parametrize(
    "path",
    [
        "/token/", "//token", "/token//", f"{TOKEN_PATH}/", f"/{TOKEN_PATH}", f"{REVOKE_PATH}/", f"{INTROSPECT_PATH}/",
        "/grants/", "/grants/search/", "/healthz/", "/docs/", "/", "", "/TOKEN", "/token/x", "/openapi.json/",
        "/.well-known/oauth-authorization-server/", "/.well-known/x", "/oauth/v2/jwks/", "/authorizations/",
    ],
)  # fmt: skip
async def test_a_path_that_is_none_is_404_and_leads_nowhere(tmp_path: Path, path: str) -> None:
    """A client that follows a redirect sends its secret wherever the Host header says; the token lives."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        for method in ("GET", "POST"):
            sent = await _sent(ledger.app, method, path, token)
            assert 404 == sent[0]["status"]
            assert not [name for name, _ in sent[0]["headers"] if name == b"location"]
            assert b"evil.example" not in sent[1]["body"]
        assert 200 == (await ledger.refresh("www", token)).status_code


async def _sent(app: Any, method: str, path: str, token: str = "", **state: Any) -> list[Any]:
    """What an application sends for a request that no client library would let through."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": f"grant_type=refresh_token&refresh_token={token}".encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"evil.example"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "client": ("192.0.2.1", 1), "state": state,
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


async def test_the_log_of_requests_holds_nothing_that_was_asked_for(tmp_path: Path) -> None:
    """I-20: anybody may put anything where a path has a parameter, without being let in; its pattern is told."""
    asked = {
        ("GET", "/grants/alice@example.com"): ("/grants/{grant_id}", 401),
        ("POST", "/clients/Secr3t!/of/alice/revoke"): ("/clients/{client_id:path}/revoke", 401),
        ("PUT", "/grants/alice@example.com/events"): ("/grants/{grant_id}/events", 405),
        ("GET", "/docs/alice@example.com"): ("/docs/{name}", 404),
        ("GET", "/docs/running"): ("/docs/{name}", 200),
        ("GET", "/alice@example.com"): (None, 404),
        ("POST", "/token"): ("/token", 400),
        ("GET", "/healthz"): ("/healthz", 200),
    }
    async with asking(tmp_path) as ledger:
        server = Server(ledger.app, Settings(port=0, allow_plain_http=True, log_level="debug"))
        await server.start()

        def ask() -> None:
            with Connection(("127.0.0.1", server.settings.port), timeout_seconds=5) as connection:
                for method, path in asked:
                    connection.exchange(request_bytes(method, path))

        with logged() as lines:
            await asyncio.to_thread(ask)
        await server.stop()
    told = [record.__dict__["fields"] for record in lines.records if record.msg == "request"]
    assert [*asked.values()] == [(fields["path"], fields["status"]) for fields in told]


async def test_the_local_door_opens_by_the_servers_mark_alone(tmp_path: Path) -> None:
    """The mark is set by whoever accepted the connection; nothing that is sent can set it."""
    async with asking(tmp_path) as ledger:
        assert 404 == (await _sent(ledger.app, "GET", "/local/keys"))[0]["status"]
        assert 404 == (await _sent(ledger.app, "GET", "/local/keys", local=False))[0]["status"]
        assert 200 == (await _sent(ledger.app, "GET", "/local/keys", local=True))[0]["status"]
        assert 401 == (await _sent(ledger.app, "GET", "/grants"))[0]["status"]
        assert 200 == (await _sent(ledger.app, "GET", "/grants", local=True))[0]["status"]


FAULTS = [
    ("POST", "/token", "refresh", {"grant_type": "refresh_token", "refresh_token": "x"}),
    ("POST", "/revoke", "revoke_token", {"token": "x"}),
    ("POST", "/introspect", "introspect", {"token": "x"}),
]


@pytest.mark.parametrize(("method", "path", "name", "fields"), FAULTS)
async def test_a_fault_behind_a_clients_endpoint_is_500_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, name: str, fields: Any
) -> None:
    """No detail outside, one line in the log, and the next request is served."""
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("www"))["refresh_token"]
        with monkeypatch.context() as broken, logged() as lines:
            broken.setattr(type(ledger.ledger), name, _fails)
            answer = await ledger.ask(method, path, data={**fields, **credentials("www")})
            assert (500, b'{"error":"server_error"}') == (answer.status_code, answer.content)
            assert "request_failed" in lines.events
        assert 200 == (await ledger.refresh("www", token)).status_code


async def test_a_fault_behind_an_operators_endpoint_is_500_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alike, and alike for what anybody may read."""
    async with asking(tmp_path) as ledger:
        with monkeypatch.context() as broken:
            broken.setattr(type(ledger.ledger.operators), "record_read", _fails)
            broken.setattr(type(ledger.ledger), "readiness", lambda self: 1 / 0)
            for path in ("/grants", "/readyz"):
                sent = await _sent(ledger.app, "GET", path, local=True)
                assert (500, b'{"error":"server_error"}') == (sent[0]["status"], sent[1]["body"])


async def _fails(*_: object) -> None:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("path", ["/token", "/revoke", "/introspect", "/explain"])
async def test_a_client_that_leaves_early_is_answered_nothing(tmp_path: Path, path: str) -> None:
    """Nobody is there to read it, and nothing has happened."""
    async with asking(tmp_path) as ledger:
        before = ledger.opened.last_position()
        sent: list[Any] = []

        async def gone() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", bearer("admin")["Authorization"].encode())]
        scope: Any = {
            "type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "client": None,
            "state": {},
        }  # fmt: skip
        await ledger.app(scope, gone, send)
        assert ([], before) == (sent, ledger.opened.last_position())


async def _unasked() -> Any:
    raise AssertionError("the body was asked for")


async def test_a_web_socket_is_turned_away(tmp_path: Path) -> None:
    """There are none here, and asking for one is no fault."""
    async with asking(tmp_path) as ledger:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        for path in ("/token", "/nowhere"):
            scope: Any = {"type": "websocket", "path": path, "headers": [], "state": {}}
            await ledger.app(scope, _unasked, send)
        assert ["websocket.close"] * 2 == [message["type"] for message in sent]


async def test_nothing_is_read_of_a_request_whose_sender_may_not_ask(tmp_path: Path) -> None:
    """A stranger's megabytes cost nothing."""
    async with asking(tmp_path) as ledger:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        for authorization in (b"Bearer nobody", bearer("auditor")["Authorization"].encode()):
            scope = {
                "type": "http", "method": "POST", "path": "/explain", "headers": [(b"authorization", authorization)],
                "query_string": b"", "client": ("192.0.2.1", 1), "state": {},
            }  # fmt: skip
            await ledger.app(scope, _unasked, send)
        assert [401, 403] == [message["status"] for message in sent if "status" in message]


async def test_two_copies_of_the_application_share_nothing_but_the_ledger(tmp_path: Path) -> None:
    """No globals: counts and throttling belong to one application."""

    async def failures(ledger: Asking) -> str:
        text = (await ledger.ask("GET", "/metrics")).text
        return next(line for line in text.splitlines() if line.startswith("token_ledger_authentication_failures"))

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    async with asking(first) as one, asking(second) as other:
        await one.form("/token", {"client_id": "www", "client_secret": "wrong"})
        assert (await failures(one)).endswith(" 1.0")
        assert (await failures(other)).endswith(" 0.0")


async def test_a_log_that_lost_something_answers_503_until_that_is_dealt_with(tmp_path: Path) -> None:
    """I-23: also what needs no look-up, such as a token that looks forged because its key was lost, or a new secret."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        token = {"token": "rt1_" + "A" * 72}
        ledger.ledger.log_end.behind = Acknowledged(10**6, ledger.clock.now)
        asked = [
            await ledger.refresh("www", issued["refresh_token"]),
            await ledger.refresh("www", "forged"),
            await ledger.form(TOKEN_PATH, {"client_id": "www", "client_secret": "changed since"}),
            await ledger.form("/introspect", token | credentials("www")),
            await ledger.form(INTROSPECT_PATH, token),
            await ledger.form("/revoke", token | credentials("www")),
            await ledger.form(REVOKE_PATH, token),
            await ledger.ask("GET", "/grants", headers={"Authorization": "Bearer changed-since"}),
            await ledger.operator("security", "GET", f"/grants/{'0' * 32}"),
            await ledger.operator("security", "POST", "/explain", token),
            await ledger.ask("GET", "/reuse", local=True),
        ]
        assert {(503, "60")} == {(answer.status_code, answer.headers.get("retry-after")) for answer in asked}
        for path, status in (
            ("/healthz", 200),
            ("/readyz", 503),
            ("/metrics", 200),
            ("/openapi.json", 200),
            (OAUTH_PLACE, 200),
        ):
            assert status == (await ledger.ask("GET", path)).status_code
        assert 200 == (await ledger.ask("POST", "/local/restore/acknowledge", local=True)).status_code
        assert 200 == (await ledger.refresh("www", issued["refresh_token"])).status_code
