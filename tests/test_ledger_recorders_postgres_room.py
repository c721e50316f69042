"""The room that heads have beside them on PostgreSQL: a refresh leaves its row on its page, and touches no index."""

from pathlib import Path

import psycopg
import pytest

from tests.bulk import issue_many, persons, rotate_many
from tests.engines import alter, url_of
from tests.ledgers import open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("on_postgres")]

GRANTS = 300
PAGES = "SELECT name, (ctid::text::point)[0] FROM streams WHERE name LIKE 'grant:%'"


def pages(path: Path) -> dict[str, float]:
    """On which page of its table the head of each grant is."""
    url = url_of(path)
    assert url is not None
    with psycopg.connect(url) as connection:
        return dict(connection.execute(PAGES).fetchall())


async def moved_to_another_page(folder: Path, filled: int | None = None) -> int:
    """How many of the grants' heads are on another page once each grant was redeemed twice, one after the other.
    `filled`: percent of a page that may be filled at first, where it is not what `init` says."""
    async with open_ledger(folder) as opened:
        if filled is not None:
            alter(opened.path, f"ALTER TABLE streams SET (fillfactor = {filled})")
        ledger = opened.ledger
        issued = issue_many(ledger, persons(GRANTS, client_id="www", scope=("read", "openid", "profile")))
        tokens = [token async for some in issued for token in some]
        before = pages(opened.path)
        assert len(before) == GRANTS
        for _ in range(2):
            tokens = [await rotate_many(ledger, token, 1, client_id="www") for token in tokens]
        return sum(before[name] != page for name, page in pages(opened.path).items())


async def test_a_head_that_moves_stays_on_its_page(tmp_path: Path) -> None:
    """Though the first redemption doubles what its snapshot says."""
    assert 0 == await moved_to_another_page(tmp_path)


async def test_in_full_pages_it_does_not(tmp_path: Path) -> None:
    """The broken twin of the test above."""
    assert 50 < await moved_to_another_page(tmp_path, filled=90)
