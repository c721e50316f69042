"""Whoever deletes or alters an event hides no incident by it, of that grant or of another, on either store."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.reading import Reading
from ledger.answers import TokenAnswer
from ledger.refusals import Unavailable
from projections.reuse_incidents import incidents
from tests.archives import archive
from tests.engines import alter
from tests.ledgers import ELSEWHERE, Opened, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store")]


async def lived(opened: Opened) -> tuple[TokenAnswer, TokenAnswer]:
    """A grant with a retry from elsewhere (version 6; its redemption is version 4), and one with a fork (version 6)."""
    retried, forked = await opened.issue("mallory"), await opened.issue("victim")
    before = await opened.refresh(retried)
    await opened.refresh(before)
    opened.clock.pass_seconds(30)
    await opened.refresh(before, source=ELSEWHERE)
    await opened.chain(forked, 2)
    await opened.refused(forked, source=ELSEWHERE)
    opened.clock.pass_seconds(1)
    await opened.issue("last of the log")
    return retried, forked


async def told(opened: Opened, after: int = 0) -> list[dict[str, Any]]:
    """The incidents, as the server tells them."""
    now = opened.clock.now
    page = await Reading(opened.store, 10).ask(lambda reads: incidents(reads, now, after=after, limit=9))
    found: list[dict[str, Any]] = msgspec.to_builtins(page)["incidents"]
    return found


def gone(opened: Opened, answer: TokenAnswer, v: int) -> None:
    change(opened, answer, v, "DELETE FROM events")


def no_event(opened: Opened, answer: TokenAnswer, v: int) -> None:
    change(opened, answer, v, "UPDATE events SET body = substr(body, 1, 99)")


def change(opened: Opened, answer: TokenAnswer, v: int, statement: str) -> None:
    stream = f"(SELECT id FROM streams WHERE name = 'grant:{answer.grant_id}')"
    assert 1 == alter(opened.path, f"{statement} WHERE v = {v} AND stream = {stream}")


@pytest.mark.parametrize("way", [gone, no_event])
async def test_a_retry_is_told_though_its_redemption_was_deleted_or_altered(
    tmp_path: Path, way: Callable[[Opened, TokenAnswer, int], None]
) -> None:
    """What it says itself; who had been first, and when, is left out."""
    async with open_ledger(tmp_path) as opened:
        retried, _ = await lived(opened)
        retry, fork = await told(opened)
        way(opened, retried, 4)
        now, as_before = await told(opened)
        assert fork == as_before
        for member in ("first_context", "seconds_since_redeemed", "same_context"):
            assert (True, False) == (member in retry, member in now)
        for member in ("event_id", "label", "context", "at", "kind", "alive", "presented_generation", "gap"):
            assert retry[member] == now[member]


async def test_what_is_older_than_the_redemption_keeps_no_retry_from_being_told(tmp_path: Path) -> None:
    """Though both are looked for in one question."""
    async with open_ledger(tmp_path) as opened:
        retried, _ = await lived(opened)
        retry, _ = await told(opened)
        gone(opened, retried, 2)
        now, _ = await told(opened)
        assert {**retry, "obtained": [], "obtained_more": True} == now


@pytest.mark.parametrize("archived", [False, True])
async def test_an_incident_whose_own_event_was_deleted_is_named(tmp_path: Path, *, archived: bool) -> None:
    """As one is that was altered: it is not left out. Who goes on after its position is told the others."""
    async with open_ledger(tmp_path) as opened:
        _, forked = await lived(opened)
        later, _ = await lived(opened)
        assert 4 == len(await told(opened))
        if archived:
            await archive(opened)
            stream = f"(SELECT id FROM streams WHERE name = 'grant:{forked.grant_id}')"
            assert 1 == alter(opened.path, f"DELETE FROM archived WHERE stream = {stream}")
        else:
            gone(opened, forked, 6)
        with pytest.raises(Unavailable, match=f"grant:{forked.grant_id}, position .*rebuild names it") as caught:
            await told(opened)
        position = int(re.findall(r"position (\d+)", str(caught.value))[0])
        assert later.grant_id == (await told(opened, position))[0]["grant_id"]
