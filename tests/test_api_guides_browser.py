"""The guides and the reference in a real browser: pages that lead to each other, and fetch nothing from elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Route

import api
from tests.browsers import Seen, browser
from tests.mutual_tls import mutual

GUIDES = {path.stem for path in (Path(api.__file__).parent / "docs").glob("*.md")}
LINKS = "links => links.map(each => each.href)"


def walk(seen: Seen, url: str) -> set[str]:
    """Go to every page that can be reached from /docs, by its address. A place of a page that is not there fails."""
    found, waiting = set[str](), {f"{url}/docs"}
    while waiting:
        address = waiting.pop()
        found.add(address)
        answer = seen.page.goto(address)
        assert answer is not None
        assert 200 == answer.status, address
        if address.endswith(".json"):
            continue
        links = [str(link).partition("#") for link in seen.page.eval_on_selector_all("a[href]", LINKS)]
        assert {url} == {"/".join(link.split("/")[:3]) for link, _, _ in links}, "no page leads elsewhere"
        places = {place for link, _, place in links if place and link == address}
        there = set(seen.page.eval_on_selector_all("[id]", "all => all.map(each => each.id)"))
        assert set() == places - there, address
        waiting |= {link for link, _, _ in links} - found
    return found


@pytest.fixture
def visit(tmp_path: Path) -> Iterator[tuple[Seen, str]]:
    """A browser that has gone nowhere yet, and where the server is."""
    with browser() as started, mutual(tmp_path, "") as ledger:
        page = started.new_context(ignore_https_errors=True).new_page()
        yield Seen(page), ledger.running.server.settings.issuer


def test_every_page_is_reached_and_fetches_nothing_from_elsewhere(visit: tuple[Seen, str]) -> None:
    """The whole of `/docs`: each guide, the reference, its document; no link is dead, no rule of a page is broken."""
    seen, url = visit
    assert {f"{url}/docs", f"{url}/openapi.json", *(f"{url}/docs/{name}" for name in GUIDES)} == walk(seen, url)
    assert ({url}, []) == (seen.servers, seen.complaints)


def test_a_page_that_fetches_from_elsewhere_is_caught(visit: tuple[Seen, str]) -> None:
    """The broken twin: a picture from another server, which the page's own policy keeps out, too."""
    seen, url = visit

    def with_picture(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text() + "<img src=https://elsewhere.example/x.png>")

    seen.page.route("**/docs", with_picture)
    seen.page.goto(f"{url}/docs")
    assert ["Content Security Policy" in said for said in seen.complaints] == [True], seen.complaints
