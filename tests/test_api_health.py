"""Health, readiness and metrics: no token needed, nothing of a request becomes a label, no secret among them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from tests.asking import Served, asking, basic
from tests.serving import logged


async def test_a_ledger_that_serves_is_alive_and_ready(tmp_path: Path) -> None:
    """Both without asking the store."""
    async with asking(tmp_path) as ledger:
        alive, ready = await ledger.ask("GET", "/healthz"), await ledger.ask("GET", "/readyz")
        assert (200, {"status": "ok"}) == (alive.status_code, alive.json())
        assert (200, {"status": "ready"}) == (ready.status_code, ready.json())


async def test_a_ledger_that_cannot_serve_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with the reason; the process is alive all the same."""
    async with asking(tmp_path) as ledger:
        monkeypatch.setattr(type(ledger.ledger), "readiness", lambda self: "no commit has succeeded for 5 seconds")
        ready = await ledger.ask("GET", "/readyz")
        assert (503, "unready") == (ready.status_code, ready.json()["status"])
        assert "no commit has succeeded for 5 seconds" == ready.json()["reason"]
        assert 200 == (await ledger.ask("GET", "/healthz")).status_code
        assert 0 == (await ledger.scraped())["token_ledger_ready", ()]


async def test_a_server_on_its_way_out_is_unready_at_once(tmp_path: Path) -> None:
    """SIGTERM: what was begun is answered, and no balancer sends more."""
    async with asking(tmp_path) as ledger:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError("a question without a body")

        scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": [], "state": {"draining": True}}
        await ledger.app(scope, receive, send)
        assert (503, True) == (sent[0]["status"], b"stopping" in sent[1]["body"])


async def test_outcomes_secrets_and_refusals_are_counted(tmp_path: Path) -> None:
    """What a person who watches needs: how it ends, why it is refused, which of a client's secrets is used."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        await ledger.refresh("www", issued["refresh_token"])
        await ledger.refresh("www", issued["refresh_token"])
        await ledger.form("/token", {"x": "y"}, headers=basic("www", "wrong"))
        await ledger.operator("auditor", "GET", f"/grants/{issued['grant_id']}")
        counts = await ledger.scraped()
        expected = {
            ("token_ledger_token_requests_total", (("outcome", "ok"),)): 1,
            ("token_ledger_token_requests_total", (("outcome", "invalid_grant"),)): 1,
            ("token_ledger_token_requests_total", (("outcome", "invalid_client"),)): 1,
            ("token_ledger_token_request_seconds_count", ()): 3,
            ("token_ledger_refusals_total", (("reason", "reuse_detected"),)): 1,
            ("token_ledger_client_secret_used_total", (("client", "www"), ("secret", "0"))): 2,
            ("token_ledger_authentication_failures_total", (("who", "client"),)): 1,
            ("token_ledger_http_answers_total", (("endpoint", "/grants/{grant_id}"), ("status", "200"))): 1,
            ("token_ledger_refreshes_total", ()): 1,
            ("token_ledger_reuse_detected_total", (("label", "late_retry"),)): 1,
            ("token_ledger_reuse_detected_total", (("label", "fork"),)): 0,
            ("token_ledger_ready", ()): 1,
            ("token_ledger_position", ()): ledger.opened.last_position(),
        }
        assert expected == {key: counts[key] for key in expected}


async def test_a_request_is_timed_from_its_last_byte(tmp_path: Path) -> None:
    """How long a client takes to send its body says nothing of the server."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")

        async def slowly() -> AsyncIterator[bytes]:
            yield b"grant_type=refresh_token&refresh_token="
            await asyncio.sleep(0.4)
            yield issued["refresh_token"].encode()

        headers = {**basic("www"), "content-type": "application/x-www-form-urlencoded"}
        began = perf_counter()
        answer = await ledger.ask("POST", "/token", headers=headers, content=slowly())
        whole = perf_counter() - began
        assert 200 == answer.status_code
        # However long the rest took: it is not in the client's pause.
        assert (await ledger.scraped())[("token_ledger_token_request_seconds_sum", ())] <= whole - 0.4


async def test_each_reuse_is_one_log_line_and_one_count(tmp_path: Path) -> None:
    """RFC 9700 4.14.2: told once, when it is durable; what is presented afterwards is no further incident."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        with logged() as lines:
            for _ in range(4):
                await ledger.refresh("www", issued["refresh_token"])
        [line] = [record for record in lines.records if record.msg == "reuse_detected"]
        [reuse] = [event for event in ledger.opened.events() if event.topic == "grant.reuse_detected"]
        assert {
            "grant": issued["grant_id"],
            "client": "www",
            "label": "late_retry",
            "action": "revoke",
            "event_id": reuse.event_id,
        } == line.__dict__["fields"]
        assert 1 == (await ledger.scraped())["token_ledger_reuse_detected_total", (("label", "late_retry"),)]


async def test_no_request_makes_a_label(tmp_path: Path) -> None:
    """Closed lists: whatever is asked, the set of series is bounded, and no token and no secret is among them."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("www")
        for path in ("/a", "/grants/x", f"/grants/{issued['grant_id']}", "/docs/zzz", "/clients/zzz/revoke"):
            for method in ("GET", "POST", "ZZZ"):
                await ledger.operator("admin", method, path)
        await ledger.form("/token", {"client_id": "zzz", "client_secret": "s", "grant_type": "zzz"})
        await ledger.refresh("www", issued["refresh_token"])
        text = (await ledger.ask("GET", "/metrics")).text
        for word in ("zzz", "ZZZ", '/a"', issued["grant_id"], issued["refresh_token"][-24:], "Secr3t!"):
            assert word not in text


async def test_when_the_certificate_runs_out_is_told_where_there_is_one(tmp_path: Path) -> None:
    """Nothing that is no moment, behind a proxy: an alarm would ring. A certificate read later is told from then on."""
    name = ("token_ledger_tls_certificate_expires_timestamp_seconds", ())
    server = Served(None)
    async with asking(tmp_path, server=server) as ledger:
        assert name not in await ledger.scraped()
        server.certificate_expires_at = 1_800_000_000
        assert 1_800_000_000 == (await ledger.scraped())[name]


async def test_the_scraper_gets_the_format_it_asks_for(tmp_path: Path) -> None:
    """OpenMetrics where it is accepted, else the older text."""
    async with asking(tmp_path) as ledger:
        plain = await ledger.ask("GET", "/metrics", headers={"Accept": "*/*"})
        assert plain.headers["content-type"].startswith("text/plain")
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        openmetrics = await ledger.ask("GET", "/metrics", headers=accept)
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")


async def test_an_accept_header_that_means_nothing_gets_the_older_text(tmp_path: Path) -> None:
    """Whoever asks may write anything: versions that are no numbers, or longer ones than are read as such."""
    async with asking(tmp_path) as ledger:
        for media_type in ("text/plain", "application/openmetrics-text"):
            for version in ("1.0.0-rc", "1.0.rc", "rc", "9" * 5000, "1." + "9" * 5000, "1.", ".", "=", "\xff"):
                accept = f"{media_type}; version={version}".encode("latin-1")
                told = await ledger.ask("GET", "/metrics", headers=[(b"Accept", accept)])
                assert 200 == told.status_code, (media_type, version[:20])
                assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
                assert "token_ledger_ready 1.0\n" in told.text
