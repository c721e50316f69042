"""The numbers of streams on SQLite: a grant's follows from its id, and nothing depends on it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import batch, new_grants
from ledger.randomness import system_randomness
from ledger.recorders import sqlite_keys
from ledger.recorders.reading import Reader, StoreReader
from ledger.recorders.sqlite import SQLiteStore
from ledger.recorders.sqlite_keys import COUNTED_BELOW, number_of
from ledger.refusals import Refusal
from ledger.tokens import new_grant_id
from tests.ledgers import SECURITY, Opened, check_ledger, open_ledger

DAY_US = 86_400_000_000
NOW_US = 1_795_000_000_000_000
EVERY_BIT = "019e" + "f" * 28
ALIKE = ("019ee2a3b4c57def8000000000abcdef", "019ee2a3b4c57abc8000123456abcdef")
"""Two ids of one millisecond that come to the same number."""


def test_numbers_grow_with_the_ids() -> None:
    """Whatever is drawn: grants that began at about the same time lie beside each other."""
    ids = [new_grant_id(NOW_US + day * DAY_US, system_randomness()) for day in range(0, 30_000, 100)]
    numbers = [number_of(f"grant:{grant_id}") for grant_id in ids]
    assert all(number is not None and COUNTED_BELOW <= number < 2**63 - 2**21 for number in numbers)
    assert numbers == sorted(numbers, key=lambda number: number or 0)
    assert len(numbers) == len({*numbers})


@pytest.mark.parametrize(
    "name",
    ["keys", "ledger", f"client:{EVERY_BIT}", f"subject:{EVERY_BIT}", "grant:", "grant:1", f"grant:{EVERY_BIT}0",
     f"grant:{EVERY_BIT.upper()}", f"grant:{'0' * 32}", f"grant:{'f' * 32}", "grant:\ud800"],
)  # fmt: skip
def test_what_is_no_grants_id_or_out_of_bounds_is_counted(name: str) -> None:
    """So that it neither meets a grant's number nor leaves 63 bits."""
    assert number_of(name) is None


def test_no_number_is_given_twice(sqlite: SQLiteStore) -> None:
    """Neither in one transaction, nor where the store has it already."""
    sqlite.begin()
    numbers = [sqlite.new_key(f"grant:{grant_id}") for grant_id in ALIKE]
    assert numbers == [number_of(f"grant:{ALIKE[0]}"), numbers[0] + 1]
    sqlite._connection.execute("INSERT INTO streams VALUES (?, 'x', 1, 1, x'', x'', NULL, NULL, NULL)", (numbers[0],))
    sqlite.commit()
    sqlite.begin()
    assert [numbers[0] + 1] == [sqlite.new_key(f"grant:{ALIKE[1]}")]
    assert [1, 2] == [sqlite.new_key("keys"), sqlite.new_key("audit")]
    sqlite.rollback()


async def of_one_number(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens of two grants whose ids come to the same number, in one batch."""
    ids: Iterator[str] = iter(ALIKE)
    with monkeypatch.context() as patched:
        patched.setattr(new_grants, "new_grant_id", lambda *_: next(ids))
        answers = await asyncio.gather(opened.issue("alice"), opened.issue("bob"))
    opened.ledger.memory.forget_everything()
    assert {*ALIKE} == {answer.grant_id for answer in answers}
    return [answer.refresh_token or "" for answer in answers]


@pytest.mark.anyio
async def test_grants_of_one_number_are_two_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is found, and is its own, from the first batch on and after a start."""
    async with open_ledger(tmp_path) as opened:
        tokens = await of_one_number(opened, monkeypatch)
        answers = await asyncio.gather(*map(opened.refresh, tokens))
        assert {*ALIKE} == {answer.grant_id for answer in answers}
        assert 2 == len(opened.rows("SELECT DISTINCT stream FROM private_grants"))
    async with open_ledger(tmp_path) as opened:
        for answer in answers:
            await opened.refresh(answer)
    check_ledger(tmp_path / "ledger.db")


@pytest.mark.anyio
async def test_by_numbers_alone_one_of_them_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above: nobody asks by the name."""
    async with open_ledger(tmp_path) as opened:
        tokens = await of_one_number(opened, monkeypatch)
        monkeypatch.setattr(StoreReader, "_grant_rows", lambda *_: [])
        await opened.refresh(tokens[0])
        assert Refusal.UNKNOWN_TOKEN is (await opened.refused(tokens[1])).refusal


@pytest.mark.anyio
async def test_grants_of_an_earlier_release_have_counted_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found by their names, beside new ones; what is counted goes on where it was."""
    async with open_ledger(tmp_path) as opened:
        with monkeypatch.context() as patched:
            patched.setattr(sqlite_keys, "number_of", lambda _: None)
            old = await opened.issue("alice")
        new = await opened.issue("bob")
        await opened.ledger.operators.revoke_subject(SECURITY, "carol", None, None)
        numbers = [id for (id,) in opened.rows("SELECT id FROM streams ORDER BY id")]
        assert [*range(1, len(numbers)), number_of(f"grant:{new.grant_id}")] == numbers
        opened.ledger.memory.forget_everything()
        await asyncio.gather(opened.refresh(old), opened.refresh(new))
    check_ledger(tmp_path / "ledger.db")


def test_nothing_is_looked_up_by_its_name_to_refresh_a_grant(sqlite: SQLiteStore) -> None:
    """What the numbers are for: each row is found by its number, but for that of the person's end."""
    plan = sqlite._connection.execute(f"EXPLAIN QUERY PLAN {Reader._sql_grants_by_number}", ("[]",)).fetchall()
    searches = [detail for *_, detail in plan if detail.startswith("SEARCH")]
    by_number = [each for each in searches if "INTEGER PRIMARY KEY" in each]
    assert ["s", "p"] == [each.split()[1] for each in by_number]
    assert ["e"] == [each.split()[1] for each in searches if each not in by_number]


async def ended_again(opened: Opened) -> bool:
    """Whether a second end of a client reaches a grant that was issued after the first, when the clock had gone back:
    by its id it is older than one that had ended before."""
    operators = opened.ledger.operators
    await opened.issue("alice")
    await operators.revoke_client(SECURITY, "www", None, None)
    opened.clock.pass_seconds(-3600)
    later = await opened.issue("bob")
    await opened.refresh(later)
    opened.ledger.memory.forget_everything()
    await operators.revoke_client(SECURITY, "www", None, None)
    try:
        await opened.refused(later)
    except AssertionError:
        return False
    return True


@pytest.mark.anyio
async def test_an_end_reaches_the_grant_that_is_the_newest_in_the_log(tmp_path: Path) -> None:
    """I-06, whatever clock gave the ids."""
    async with open_ledger(tmp_path) as opened:
        assert await ended_again(opened)


@pytest.mark.anyio
async def test_by_the_ids_alone_an_end_would_miss_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above: nobody asks the projection, which is in the order of the log."""
    monkeypatch.setattr(batch, "grants_tables", lambda _: ())
    async with open_ledger(tmp_path) as opened:
        assert not await ended_again(opened)
