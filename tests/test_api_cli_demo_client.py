"""The demo in a real browser: a person signs in, and sees every step of a refresh token's life."""

import re

import pytest

from tests.browsers import Seen, browser
from tests.test_demo import serving


class Person(Seen):
    """Who looks at the page, and presses what is on it."""

    def presses(self, text: str) -> None:
        """Press a button, and wait for the page that comes of it."""
        with self.page.expect_navigation():
            self.page.get_by_role("button", name=re.compile(f"^{re.escape(text)}")).first.click()

    @property
    def tokens(self) -> list[str]:
        """The refresh tokens that stand there."""
        return re.findall(r"rt1_[\w-]{72}", self.page.locator("ul").inner_text())

    @property
    def recorded(self) -> list[str]:
        """What the ledger recorded."""
        return re.findall(r"grant\.(\w+)", self.page.locator("ol").inner_text())


def test_a_person_with_a_browser_can_do_the_whole_tutorial(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sign in, agree to less, refresh, retry, narrow, restore, be robbed: by mouse and keyboard, without a script."""
    with browser() as started, serving(tmp_path_factory.mktemp("demo")) as (_, printed):
        found = re.search(r"^Serving (\S+) until", printed, re.MULTILINE)
        assert found is not None
        url = found[1]
        page = started.new_context(ignore_https_errors=True).new_page()
        person = Person(page)
        page.goto(f"{url}/demo")
        page.get_by_role("link", name="Sign in").click()
        assert page.url.startswith(f"{url}/authorize?")
        assert "Demo: no real sign-in" in page.locator("header").inner_text()
        page.keyboard.press("Control+A")  # the name has the focus
        page.keyboard.type("Zoë <b>'s")
        person.presses("Sign in and allow")

        assert f"{url}/demo" == page.url, "the address with the code in it is left"
        assert "You are signed in" == page.locator("h1").inner_text()
        first = person.tokens
        assert 1 == len(first)
        for button, count in (
            ("Refresh", 2),
            ("Send the last request again", 2),
            ("Refresh, asking for less", 3),
            ("Refresh, asking for all again", 4),
        ):
            person.presses(button)
            assert count == len(person.tokens), button
        page.reload()
        assert 4 == len(person.tokens), "to look again sends nothing again"
        person.presses("Present R0 from another machine")
        assert '"reason": "reuse_detected"' in page.locator("pre").last.inner_text()
        assert "Refused: you must sign in anew" == page.locator("h1").inner_text()
        assert ["authorized", "issued", "token_redeemed", "token_rotated", "retry_served"] == person.recorded[:5]
        assert ["reuse_detected", "revoked"] == person.recorded[-2:]

        page.get_by_role("link", name="Sign in anew").click()
        person.presses("Refuse")
        assert "The sign-in page says: access_denied." in page.locator("body").inner_text()
        assert [] == person.complaints, "whatever the policy of the pages forbids is told here"
        assert {url} == person.servers
