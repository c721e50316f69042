"""The demo's own pages over HTTP: sign-in, consent, a client; what they refuse, and what no page of theirs holds."""

import re
import ssl
from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest

from tests.asking import asking
from tests.test_demo import serving

ISSUER = {"Authorization": "Bearer demo-login-app"}


class Site(NamedTuple):
    """A demo that serves: where, and the certificate to believe."""

    url: str
    tls: ssl.SSLContext


pytestmark = pytest.mark.xdist_group("demo_site")
"""Together: a second demo costs more than all of these."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One demo for all of these: its visitors know nothing of each other."""
    with serving(tmp_path_factory.mktemp("site")) as (_, printed):
        found = re.search(r"^Serving (\S+) until", printed, re.MULTILINE)
        assert found is not None
        assert f"\n{found[1]}/demo\n" in printed
        certificate = re.search(r"--cacert (\S+)", printed)
        assert certificate is not None
        yield Site(found[1], ssl.create_default_context(cafile=certificate[1]))


@pytest.fixture
def browser(site: Site) -> Iterator[httpx2.Client]:
    """A browser without a window: cookies are kept, redirects followed one by one."""
    with httpx2.Client(base_url=site.url, verify=site.tls) as client:
        yield client


def looked(browser: httpx2.Client, path: str, **how: Any) -> httpx2.Response:
    """Fetch a page and follow its redirects; hold each page against what all of them keep."""
    answer = browser.get(path, **how)
    while answer.status_code == 303:
        answer = browser.get(answer.headers["location"])
    return held(answer)


def posted(browser: httpx2.Client, path: str, fields: Mapping[str, str]) -> httpx2.Response:
    """Post a form, and follow what comes of it."""
    answer = browser.post(path, data=dict(fields))
    while answer.status_code == 303:
        answer = browser.get(answer.headers["location"])
    return held(answer)


def held(answer: httpx2.Response) -> httpx2.Response:
    """No script, nothing from elsewhere, in no frame, kept by nobody, and clearly a demo."""
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; style-src 'sha256-" in policy
    assert policy.endswith("; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
    assert ("no-store", "no-referrer", "nosniff") == (
        answer.headers["cache-control"], answer.headers["referrer-policy"], answer.headers["x-content-type-options"],
    )  # fmt: skip
    assert "<header>Demo: " in answer.text
    assert not re.search(r"<script|\son\w+=|javascript:|\sstyle=|<img|<iframe", answer.text, re.IGNORECASE)
    assert {"data:,"} >= set(re.findall(r'(?:src|<link[^>]* href)="([^"]*)"', answer.text))
    return answer


def fields_of(page: httpx2.Response) -> dict[str, str]:
    """What its form would send: hidden fields, the name that stands there, boxes that are ticked."""
    found = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', page.text))
    found |= dict(re.findall(r'<input type="text" name="([^"]*)" value="([^"]*)"', page.text))
    found |= dict(re.findall(r'<input type="checkbox" name="([^"]*)" value="([^"]*)" checked', page.text))
    return {unescape(name): unescape(value) for name, value in found.items()}


def signed_in(browser: httpx2.Client, **changed: str) -> httpx2.Response:
    """Go through the sign-in page; the client's page afterwards."""
    form = fields_of(looked(browser, "/demo/start"))
    return posted(browser, "/authorize", {**form, "answer": "allow", **changed})


def topics(page: httpx2.Response) -> list[str]:
    return re.findall(r"<code>grant\.(\w+)</code>", page.text)


def tokens(page: httpx2.Response) -> list[str]:
    return re.findall(r"<code>(rt1_[\w-]{72})</code>", page.text)


def test_the_whole_tutorial_in_a_browser(browser: httpx2.Client) -> None:
    """Code flow, rotation, a lost answer retried, narrowing, restoring, reuse: each a button, each on record."""
    assert "Sign in</a>" in looked(browser, "/demo").text
    page = signed_in(browser)
    assert ["authorized", "issued"] == topics(page)
    assert 1 == len(tokens(page))
    form = fields_of(page)
    for act, count in (("refresh", 2), ("again", 2), ("narrow", 3), ("restore", 4)):
        page = posted(browser, "/demo/refresh", {**form, "act": act})
        assert "You are signed in" in page.text
        assert count == len(tokens(page)), act
    page = posted(browser, "/demo/refresh", {**form, "act": "thief"})
    assert "&quot;reason&quot;: &quot;reuse_detected&quot;" in page.text
    assert "Refused: you must sign in anew" in page.text
    assert [
        "authorized", "issued", "token_redeemed", "token_rotated", "retry_served", "token_redeemed",
        "scope_reduced", "token_rotated", "token_redeemed", "scope_restored", "token_rotated", "reuse_detected",
        "revoked",
    ] == topics(page)  # fmt: skip
    assert ["authorized", "issued"] == topics(signed_in(browser, subject="bob"))


def test_the_person_decides_which_scope_is_granted(browser: httpx2.Client) -> None:
    """A box that is not ticked is not sent; what is granted is what the client reads (RFC 6749 5.1)."""
    form = fields_of(looked(browser, "/demo/start"))
    del form["scope openid"]
    page = posted(browser, "/authorize", {**form, "answer": "allow"})
    assert "&quot;scope&quot;: &quot;read profile&quot;" in page.text


def test_a_person_who_refuses_leaves_nothing_behind(browser: httpx2.Client) -> None:
    """RFC 6749 4.1.2.1 `access_denied`: the client says so, and the ledger was never asked."""
    before = len(browser.get("/grants", headers=ISSUER).json()["grants"])
    form = fields_of(looked(browser, "/demo/start"))
    assert "The sign-in page says: access_denied." in posted(browser, "/authorize", {**form, "answer": "no"}).text
    assert before == len(browser.get("/grants", headers=ISSUER).json()["grants"])


def test_forms_of_other_sites_do_nothing(browser: httpx2.Client) -> None:
    """Without the cookie, with another's token or with none: 403, and nothing is authorized or refreshed."""
    form = fields_of(looked(browser, "/demo/start"))
    before = len(browser.get("/grants", headers=ISSUER).json()["grants"])
    for wrong in ({"csrf": ""}, {"csrf": "x" * 43}):
        assert 403 == posted(browser, "/authorize", {**form, **wrong, "answer": "allow"}).status_code
    kept = dict(browser.cookies)
    browser.cookies.clear()
    assert 403 == posted(browser, "/authorize", {**form, "answer": "allow"}).status_code
    assert before == len(browser.get("/grants", headers=ISSUER).json()["grants"])
    browser.cookies.update(kept)
    page = signed_in(browser)
    assert 403 == posted(browser, "/demo/refresh", {"act": "thief"}).status_code
    assert 403 == posted(browser, "/demo/refresh", {"act": "thief", "csrf": "x" * 43}).status_code
    assert topics(page) == topics(looked(browser, "/demo"))


@pytest.mark.parametrize(
    "changed",
    [{"client_id": "other"}, {"redirect_uri": "https://evil.example/"}, {"redirect_uri": ""}],
)
def test_nobody_is_sent_to_an_address_that_is_not_the_clients(browser: httpx2.Client, changed: dict[str, str]) -> None:
    """RFC 6749 4.1.2.1, RFC 9700 4.11: told on the page, with the form as with the request that led to it."""
    query = dict(parse_qsl(urlsplit(browser.get("/demo/start").headers["location"]).query))
    assert 400 == held(browser.get("/authorize", params={**query, **changed})).status_code
    form = fields_of(held(browser.get("/authorize", params=query)))
    assert 400 == held(browser.post("/authorize", data={**form, **changed, "answer": "allow"})).status_code


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
    ],
)
def test_a_request_that_is_wrong_is_told_to_the_client(
    site: Site, browser: httpx2.Client, changed: dict[str, str], error: str
) -> None:
    """RFC 6749 4.1.2.1 with `iss` (RFC 9207 2), and the client says it."""
    query = dict(parse_qsl(urlsplit(browser.get("/demo/start").headers["location"]).query))
    back = browser.get("/authorize", params={**query, **changed}).headers["location"]
    told = dict(parse_qsl(urlsplit(back).query))
    assert {"error": error, "state": query["state"], "iss": site.url} == told
    assert f"The sign-in page says: {error}." in looked(browser, back).text


def test_what_somebody_sent_is_text_on_the_page(browser: httpx2.Client) -> None:
    """Markup in any parameter, in the name, in the scope: shown, or refused, never run; no header grows a line."""
    nasty = '"><script>alert(1)</script>\r\nSet-Cookie: a=b'
    query = dict(parse_qsl(urlsplit(browser.get("/demo/start").headers["location"]).query))
    page = held(browser.get("/authorize", params={**query, "scope": "read " + nasty, "state": nasty}))
    form = fields_of(page)
    assert nasty == form["state"]
    answer = browser.post("/authorize", data={**form, "answer": "no"})
    assert 303 == answer.status_code
    assert "a" not in dict(answer.cookies)
    assert nasty == dict(parse_qsl(urlsplit(answer.headers["location"]).query))["state"]
    page = signed_in(browser, subject="<b>\"Zoë\" & 'co'</b>")
    assert ["authorized", "issued"] == topics(page)
    page = signed_in(browser, subject="line\nfeed")
    assert "The ledger says: subject: 1 to 255 characters without control characters." in page.text


def test_an_answer_that_was_not_asked_for_buys_nothing(site: Site, browser: httpx2.Client) -> None:
    """RFC 6749 10.12, RFC 9207 2.4: another state, another server, the same answer twice: the code is not sent on."""
    form = fields_of(looked(browser, "/demo/start"))
    back = browser.post("/authorize", data={**form, "answer": "allow"}).headers["location"]
    query = dict(parse_qsl(urlsplit(back).query))
    for changed in ({"state": "x" * 43}, {"state": ""}):
        assert 403 == looked(browser, "/demo/callback", params={**query, **changed}).status_code
    page = looked(browser, back)
    assert ["authorized", "issued"] == topics(page)
    assert 403 == looked(browser, back).status_code, "whoever reloads the address sends no code again"
    assert ["authorized", "issued"] == topics(looked(browser, "/demo"))
    form = fields_of(looked(browser, "/demo/start"))
    back = browser.post("/authorize", data={**form, "answer": "allow"}).headers["location"]
    query = dict(parse_qsl(urlsplit(back).query)) | {"iss": "https://evil.example"}
    assert 403 == looked(browser, "/demo/callback", params=query).status_code
    assert site.url in back


def test_other_methods_and_unreadable_requests(browser: httpx2.Client) -> None:
    """405 with what is allowed; a parameter that is given twice, a form that is none: one line on a page."""
    for path, allow in (("/authorize", "GET, POST"), ("/demo", "GET"), ("/demo/refresh", "POST")):
        answer = browser.request("PUT", path)
        assert (405, allow) == (answer.status_code, answer.headers["allow"])
    assert 400 == held(browser.get("/authorize?state=a&state=b")).status_code
    assert 400 == held(browser.post("/authorize", json={})).status_code


@pytest.mark.anyio
async def test_a_real_server_has_none_of_these_pages(tmp_path: Path) -> None:
    """They are the demo's: whoever serves signs people in on a page of their own."""
    async with asking(tmp_path) as ledger:
        for path in ("/authorize", "/demo", "/demo/start", "/demo/callback", "/demo/refresh"):
            assert 404 == (await ledger.ask("GET", path)).status_code
