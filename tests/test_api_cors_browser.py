"""CORS in a real browser: what its pages may send to a ledger, and what they read of the answers (TE-15, V32).

One web server gives the page, under two origins that differ by name alone: a client lists the one, nobody the other.
The page makes its key, which cannot be exported, and its proofs itself (RFC 9449), so that the browser asks first.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import pytest
from joserfc.jwk import ECKey
from playwright.sync_api import Browser
from playwright.sync_api import Page as Shown

from api.cors import CrossOrigin
from tests.asking import bearer
from tests.browsers import browser
from tests.mutual_tls import Ledger, mutual
from tests.servers import SECRETS, basic
from tests.wire import INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH

Json = Any

pytestmark = pytest.mark.xdist_group("cors_browser")
"""Together: a second browser costs more than all of these."""

SCRIPT: Final = """
const text = bytes => btoa(String.fromCharCode(...new Uint8Array(bytes)))
  .replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
const part = value => text(new TextEncoder().encode(JSON.stringify(value)));
const P256 = {name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256'};
let pair;

async function newKey() {
  pair = await crypto.subtle.generateKey(P256, false, ['sign']);
  const {kty, crv, x, y} = await crypto.subtle.exportKey('jwk', pair.publicKey);
  return {kty, crv, x, y};
}

async function proof(htu, nonce) {
  const {kty, crv, x, y} = await crypto.subtle.exportKey('jwk', pair.publicKey);
  const claims = {jti: crypto.randomUUID(), htm: 'POST', htu, iat: Math.floor(Date.now() / 1000), nonce};
  const signed = part({typ: 'dpop+jwt', alg: 'ES256', jwk: {kty, crv, x, y}}) + '.' + part(claims);
  return signed + '.' + text(await crypto.subtle.sign(P256, pair.privateKey, new TextEncoder().encode(signed)));
}

async function ask({url, form, headers = {}, dpop = false, nonce, credentials = 'same-origin'}) {
  if (dpop) headers = {...headers, DPoP: await proof(url, nonce)};
  const asked = form ? {method: 'POST', body: new URLSearchParams(form), headers} : {headers};
  let answer;
  try {
    answer = await fetch(url, {...asked, credentials});
  } catch (error) {
    if (error instanceof TypeError) return null;
    throw error;
  }
  return {status: answer.status, headers: Object.fromEntries(answer.headers), body: await answer.text()};
}
"""

CLIENTS: Final = """
[[client]]
id = "page"
auth = "none"
scope = "read"
origins = ["{listed}"]

[[client]]
id = "holder"
auth = "none"
scope = "read"
dpop_bound_access_tokens = true
dpop_nonce_required = true
"""


def refresh_of(token: str) -> dict[str, str]:
    return {"grant_type": "refresh_token", "refresh_token": token}


class Page:
    """A page that the browser shows. What it asks for is None where the browser keeps the answer from it."""

    def __init__(self, shown: Shown, ledger: Ledger) -> None:
        self._shown = shown
        self._ledger = ledger
        self.jkt = ECKey.import_key(shown.evaluate("newKey()")).thumbprint()

    def ask(self, path: str, form: Mapping[str, str] | None = None, **how: Json) -> Json:
        """Fetch, as a form is posted where there is one; the status, all headers that the page sees, and the body."""
        url = self._ledger.running.server.settings.issuer + path
        return self._shown.evaluate("how => ask(how)", {"url": url, "form": form, **how})

    def refresh(self, client: str, token: str, **how: Json) -> Json:
        return self.ask(TOKEN_PATH, {**refresh_of(token), "client_id": client}, **how)

    def fails_to_prove_who_it_is(self) -> Json:
        return self.ask(TOKEN_PATH, refresh_of("x"), headers={"Authorization": basic("www", "wrong")})


class _Gives(BaseHTTPRequestHandler):
    """Gives the page, whatever is asked for."""

    def do_GET(self) -> None:
        content = f"<!doctype html><title>A client</title><script>{SCRIPT}</script>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


class World:
    """A ledger, a web server that gives pages, and a browser."""

    def __init__(self, ledger: Ledger, port: int, browser: Browser) -> None:
        self.ledger = ledger
        self._port = port
        self._browser = browser

    def page(self, name: str) -> Page:
        """Go to the web server by this name, as somebody who knows of no earlier visit."""
        shown = self._browser.new_context(ignore_https_errors=True).new_page()
        shown.goto(f"http://{name}:{self._port}/")
        return Page(shown, self.ledger)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all of these. A client lists the origin of the web server by the name of localhost."""
    with browser() as started, ThreadingHTTPServer(("127.0.0.1", 0), _Gives) as web, ExitStack() as stack:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(web.shutdown)
        clients = CLIENTS.format(listed=f"http://localhost:{web.server_port}")
        ledger = stack.enter_context(mutual(tmp_path_factory.mktemp("browser"), clients))
        yield World(ledger, web.server_port, started)


def of_everything(ledger: Ledger, page: Page) -> dict[str, Json]:
    """Ask for whatever pages may ask for; the answers by what was asked."""
    held, kept = ledger.issue("holder", cnf={"jkt": page.jkt}), ledger.issue("www")
    plain, secret = ledger.issue("page"), {"Authorization": basic("www", str(SECRETS["www"]))}
    challenged = page.refresh("holder", held["refresh_token"], dpop=True)
    nonce = challenged and challenged["headers"].get("dpop-nonce")
    ended = {"token": held["refresh_token"], "client_id": "holder"}
    return {
        "a proof without the nonce": challenged,
        "a proof with it": page.refresh("holder", held["refresh_token"], dpop=True, nonce=nonce),
        "a form": page.refresh("page", plain["refresh_token"]),
        "a secret": page.ask("/token", refresh_of(kept["refresh_token"]), headers=secret),
        "a token that is none": page.refresh("page", "x"),
        "a wrong secret": page.fails_to_prove_who_it_is(),
        "revocation by proof": page.ask(REVOKE_PATH, ended, dpop=True),
        "revocation by form": page.ask("/revoke", {"token": plain["access_token"], "client_id": "page"}),
        "metadata": page.ask("/.well-known/oauth-authorization-server"),
        "OpenID metadata": page.ask("/.well-known/openid-configuration"),
        "keys": page.ask("/oauth/v2/jwks"),
    }


def test_a_page_of_a_listed_origin_reads_every_answer(world: World) -> None:
    """Tokens and errors, and of the headers those that a client goes by: nonce, challenge, position, when to come."""
    page = world.page("localhost")
    found = of_everything(world.ledger, page)
    assert None not in found.values(), found
    seen = {what: (each["status"], each["headers"], json.loads(each["body"] or "{}")) for what, each in found.items()}
    status, headers, body = seen["a proof without the nonce"]
    assert (400, "use_dpop_nonce", True) == (status, body["error"], "dpop-nonce" in headers)
    status, headers, body = seen["a proof with it"]
    assert (200, "DPoP") == (status, body["token_type"])
    assert {"dpop-nonce", "date"} <= set(headers)
    status, headers, body = seen["a form"]
    assert (200, "bearer") == (status, body["token_type"])
    status, headers, body = seen["a secret"]
    assert (200, True) == (status, headers["ledger-position"].isdigit())
    status, headers, body = seen["a token that is none"]
    assert (400, "invalid_grant") == (status, body["error"])
    status, headers, body = seen["a wrong secret"]
    assert (401, "invalid_client") == (status, body["error"])
    assert headers["www-authenticate"].startswith("Basic ")
    assert [200, 200] == [seen[f"revocation by {how}"][0] for how in ("proof", "form")]
    assert seen["metadata"][2]["token_endpoint"].endswith(TOKEN_PATH)
    assert seen["metadata"][2] == seen["OpenID metadata"][2]
    assert {"keys"} == set(seen["keys"][2])
    slowed = [page.fails_to_prove_who_it_is() for _ in range(10)][-1]
    assert (429, True) == (slowed["status"], slowed["headers"]["retry-after"].isdigit())


def test_a_browser_keeps_every_answer_from_a_page_that_nobody_lists(world: World) -> None:
    """What needs no leave to be sent is served all the same; what does is never sent."""
    ledger, page = world.ledger, world.page("127.0.0.1")
    assert {None} == set(of_everything(ledger, page).values())
    plain, held = ledger.issue("page"), ledger.issue("holder", cnf={"jkt": page.jkt})
    assert page.refresh("page", plain["refresh_token"]) is None
    assert page.ask(REVOKE_PATH, {"token": held["refresh_token"], "client_id": "holder"}, dpop=True) is None
    assert ["grant.issued", "grant.token_redeemed", "grant.token_rotated"] == ledger.topics(plain["grant_id"])
    assert ["grant.issued"] == ledger.topics(held["grant_id"])


def test_a_browser_keeps_what_is_for_no_page_from_all_of_them(world: World) -> None:
    """Introspection, what operators ask, and whatever a page asks with the browser's own credentials."""
    page, plain = world.page("localhost"), world.ledger.issue("page")
    assert page.ask(INTROSPECT_PATH, {"token": plain["access_token"], "client_id": "page"}) is None
    assert page.ask("/grants", headers=bearer("auditor")) is None
    assert page.refresh("page", "x", credentials="include") is None
    assert 400 == page.refresh("page", "x")["status"]


def test_a_server_that_tells_browsers_nothing_is_caught(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: the same answers without a word about origins, and no page reads one of them."""

    async def silent(_: CrossOrigin, endpoint: Any, *asked: Any) -> None:
        await endpoint(*asked)

    monkeypatch.setattr(CrossOrigin, "serve", silent)
    assert {None} == set(of_everything(world.ledger, world.page("localhost")).values())
