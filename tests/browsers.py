"""A real browser: whatever Chromium is installed, without a window."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

_PROGRAM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_ARGUMENTS: Final = ["--no-sandbox"] if os.geteuid() == 0 else []


@contextmanager
def browser() -> Iterator[Browser]:
    """Run one until the block ends; skip the test where there is none."""
    if _PROGRAM is None:
        pytest.skip("there is no Chromium here; Debian's package is called chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=_PROGRAM, args=_ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


class Seen:
    """What a page has fetched, by address without its query, and what it has complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.fetched: set[str] = set()
        self.complaints: list[str] = []
        page.on("request", self._fetches)
        page.on("console", self._complains)

    @property
    def servers(self) -> set[str]:
        """From where something was fetched, as `https://host:port`."""
        return {"/".join(each.split("/")[:3]) for each in self.fetched}

    def _fetches(self, request: Request) -> None:
        self.fetched.add(request.url.partition("?")[0])

    def _complains(self, message: ConsoleMessage) -> None:
        if not message.location["url"].endswith("/favicon.ico"):  # nobody's page asks for that
            self.complaints.append(message.text)
