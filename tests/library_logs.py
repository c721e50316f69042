"""A ledger whose log the `eventsourcing` library reads, on each store: fixture `followed`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.recorders.library import LedgerLog
from tests.engines import url_of
from tests.ledgers import Opened, open_ledger


@pytest.fixture
async def followed(tmp_path: Path, each_store: str) -> AsyncIterator[Opened]:
    """A ledger, on one store and then on the other, that the library reads."""
    async with open_ledger(tmp_path) as ledger:
        yield ledger


def database_of(opened: Opened) -> str:
    """What names it: a URL where the test's ledgers lie on PostgreSQL."""
    return url_of(opened.path) or str(opened.path)


def log_of(opened: Opened, **env: str) -> LedgerLog:
    return LedgerLog({"LEDGER_DATABASE": database_of(opened), **env})
