"""CORS for clients that live in a browser: who may read what, and that nobody is told more than that (TE-15, V32).

The Fetch standard's protocol, asked in process; `9-browsers.txt` has it byte for byte.
"""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from api import clients_file
from ledger.head_file import Acknowledged
from tests.asking import Asking, asking, basic, bearer, credentials
from tests.servers import FIXTURES
from tests.serving import PARSERS, serving
from tests.wire import INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH, request_bytes

APP = "https://app.example"
EXPOSED = "DPoP-Nonce, WWW-Authenticate, Ledger-Position, Retry-After, Date"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "dpop"}
CROSSING = (TOKEN_PATH, "/token", REVOKE_PATH, "/revoke")


def told(answer: httpx2.Response) -> dict[str, str]:
    """The CORS headers of an answer, by what follows `Access-Control-`."""
    found = answer.headers.multi_items()
    names = [name for name, _ in found]
    assert all(names.count(name) == 1 for name in names if name.startswith("access-control-"))
    return {name.removeprefix("access-control-"): value for name, value in found if name.startswith("access-control-")}


READABLE = {"allow-origin": APP, "expose-headers": EXPOSED}


async def test_every_answer_of_a_crossing_endpoint_names_the_origin(tmp_path: Path) -> None:
    """200, 400, 401, 405, 413, 429 and 503 alike: a page must be able to tell "signed out" from "no network"."""
    origin = {"Origin": APP}
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("web"))["refresh_token"]
        refresh = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "web"}
        answers = [
            (200, await ledger.form("/token", refresh, headers=origin)),
            (400, await ledger.form(TOKEN_PATH, {**refresh, "refresh_token": "x"}, headers=origin)),
            (401, await ledger.form(TOKEN_PATH, {"scope": "read"}, headers={**origin, **basic("www", "wrong")})),
            (405, await ledger.ask("PUT", "/token", headers=origin)),
            (413, await ledger.form("/token", {"a": "x" * 9000}, headers=origin)),
            (200, await ledger.form("/revoke", {"token": "x", "client_id": "web"}, headers=origin)),
            (400, await ledger.form(REVOKE_PATH, {}, headers=origin)),
        ]
        for _ in range(10):
            throttled = await ledger.form("/token", {"client_id": "www", "client_secret": "wrong"}, headers=origin)
        answers.append((429, throttled))
        ledger.ledger.log_end.behind = Acknowledged(10**6, ledger.clock.now)
        answers += [(503, await ledger.form(path, refresh, headers=origin)) for path in CROSSING]
        ledger.ledger.log_end.behind = None
    for status, answer in answers:
        assert (status, READABLE, "Origin") == (answer.status_code, told(answer), answer.headers["vary"])


async def test_a_fault_of_ours_can_be_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 is not "no network" either."""
    async with asking(tmp_path) as ledger:
        monkeypatch.setattr(type(ledger.ledger), "revoke_token", lambda *_: 1 / 0)
        answer = await ledger.form("/revoke", {"token": "x", "client_id": "web"}, headers={"Origin": APP})
        assert (500, READABLE) == (answer.status_code, told(answer))


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "null", "*", "", "https://app.example/", "http://app.example", "HTTPS://APP.EXAMPLE",
        "https://app.example:443", "https://app.example.evil.example", "https://app.example, https://app.example",
        "https://app.example http://localhost:5173", "https://\xe4pp.example",
    ],
)  # fmt: skip
async def test_an_origin_that_no_client_lists_is_served_and_told_nothing(tmp_path: Path, origin: str) -> None:
    """Its browser keeps the answer from the page; the origin is compared byte for byte (RFC 6454 7)."""
    headers = [(b"origin", origin.encode("latin-1"))]
    async with asking(tmp_path) as ledger:
        token = (await ledger.issue("web"))["refresh_token"]
        refresh = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "web"}
        asked = await ledger.ask("OPTIONS", "/token", headers=[*headers, (b"access-control-request-method", b"POST")])
        served = await ledger.ask("POST", "/token", headers=headers, data=refresh)
        assert (405, {}, "Origin") == (asked.status_code, told(asked), asked.headers["vary"])
        assert (200, {}, "Origin") == (served.status_code, told(served), served.headers["vary"])


async def test_two_origins_are_none(tmp_path: Path) -> None:
    """A browser names one; who names two, both listed, is none."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("POST", "/token", headers=[(b"origin", APP.encode())] * 2, data={"client_id": "web"})
        assert (400, {}) == (answer.status_code, told(answer))


async def test_a_request_without_an_origin_gets_no_word_of_it(tmp_path: Path) -> None:
    """But caches learn that another origin would get another answer."""
    async with asking(tmp_path) as ledger:
        for path in CROSSING:
            answer = await ledger.form(path, credentials("www"))
            assert (400, {}, "Origin") == (answer.status_code, told(answer), answer.headers["vary"])


@pytest.mark.parametrize("path", CROSSING)
async def test_a_browser_that_asks_first_is_told_how_it_may(tmp_path: Path, path: str) -> None:
    """V32: 204 without a body; Basic, form and DPoP headers may be sent; nothing is read and nobody is counted."""
    async with asking(tmp_path) as ledger:
        answer = await ledger.ask("OPTIONS", path, headers={"Origin": "http://localhost:5173", **PREFLIGHT})
        assert (204, b"", None) == (answer.status_code, answer.content, answer.headers.get("content-length"))
        assert {
            "allow-origin": "http://localhost:5173",
            "allow-methods": "POST",
            "allow-headers": "Authorization, Content-Type, DPoP",
            "max-age": "7200",
            "expose-headers": EXPOSED,
        } == told(answer)
        plain = await ledger.ask("OPTIONS", path, headers={"Origin": APP})
        assert (405, "POST", READABLE) == (plain.status_code, plain.headers["allow"], told(plain))


@pytest.mark.parametrize("path", [INTROSPECT_PATH, "/introspect", "/grants", "/explain", "/reuse", "/healthz", "/no"])
async def test_no_page_reads_what_is_not_for_browsers(tmp_path: Path, path: str) -> None:
    """Resource servers and operators do not live in browsers; a page of a listed origin gets no more than others."""
    async with asking(tmp_path) as ledger:
        for method, headers in (("POST", bearer("admin")), ("GET", bearer("admin")), ("OPTIONS", PREFLIGHT)):
            answer = await ledger.ask(method, path, headers={"Origin": APP, **headers})
            assert {} == told(answer), (method, path)
            assert method != "OPTIONS" or answer.status_code in (404, 405)


async def test_what_is_listed_counts_from_the_moment_that_it_is(tmp_path: Path) -> None:
    """A new origin is told at once, one taken out is not any more, nor one of a client that has left."""
    other = "https://other.example"
    async with asking(tmp_path) as ledger:

        async def may(origin: str) -> bool:
            return "allow-origin" in told(await ledger.ask("POST", "/token", headers={"Origin": origin}))

        assert [True, False] == [await may(APP), await may(other)]
        await _apply(ledger, tmp_path, FIXTURES.read_text("utf-8").replace(APP, other))
        assert [False, True] == [await may(APP), await may(other)]
        await _apply(ledger, tmp_path, FIXTURES.read_text("utf-8").replace('id = "web"', 'id = "webs"'))
        assert [True, False] == [await may(APP), await may(other)]
        tables = FIXTURES.read_text("utf-8").split("\n\n")
        await _apply(ledger, tmp_path, "\n\n".join(each for each in tables if 'id = "web"' not in each))
        assert [False, False] == [await may(APP), await may(other)]


async def _apply(ledger: Asking, folder: Path, text: str) -> None:
    file = folder / "changed.toml"
    file.write_text(text, "utf-8")
    wanted = clients_file.load(file)
    await ledger.ledger.operators.apply(wanted.clients, wanted.operators, serial=wanted.serial)


# -- the server's part ------------------------------------------------------------------------------------------------


class Marks:
    """An application that remembers whether the server saw an Origin header."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["state"]["names_origin"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


HEADERS: list[dict[str, str]] = [{}, {"Origin": APP}, {"oRiGiN": ""}, {"X-Origin": APP}]


@pytest.mark.parametrize("parser", PARSERS)
def test_the_server_sees_an_origin_in_its_own_pass_over_the_headers(parser: Any) -> None:
    """However it is spelled; so a request without one costs a look-up and no pass of its own."""
    marks = Marks()
    with serving(marks, parser=parser, fast_loop=parser == "httptools") as running:
        asked = [request_bytes("GET", "/", headers=headers) for headers in HEADERS]
        for raw in asked:
            with running.connect() as connection:
                assert 204 == connection.exchange(raw).status
        with running.connect() as connection:  # one behind the other, too, and again
            for raw in (*asked, *asked):
                assert 204 == connection.exchange(raw).status
    assert [False, True, True, False] * 3 == marks.seen
