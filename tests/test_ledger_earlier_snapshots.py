"""Snapshots of the release before are read as they are, and written anew with the next event of their stream (I-13)."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger import earlier_snapshots, snapshots
from ledger.answers import TokenAnswer
from ledger.clients import Client
from ledger.grant import Grant
from tests.earlier import of_format_2
from tests.ledgers import Opened, open_ledger, replayed

pytestmark = pytest.mark.anyio

HEAD = bytes(range(32))


async def grown(opened: Opened) -> TokenAnswer:
    return await opened.chain(await opened.issue(), 3)


def put_back(opened: Opened) -> None:
    """Every snapshot as the release before had written it, and nothing remembered."""
    for name, v, head, state in opened.rows("SELECT name, v, head, state FROM streams"):
        aggregate = snapshots.decode(state, name, v, head, snapshots.kind_of(name))
        assert aggregate is not None
        opened.connection.execute(
            "UPDATE streams SET state = ? WHERE name = ?", (of_format_2(v, head, aggregate), name)
        )
    opened.ledger.memory.forget_everything()


def events_asked_for(asked: list[str]) -> list[str]:
    return [sql for sql in asked if sql.startswith(("SELECT", "WITH")) and "events" in sql]


async def refreshed(opened: Opened, last: TokenAnswer) -> list[str]:
    """Refresh once: what of the log was read for it."""
    asked: list[str] = []
    opened.connection.set_trace_callback(asked.append)
    await opened.refresh(last)
    opened.connection.set_trace_callback(None)
    return events_asked_for(asked)


async def test_a_grant_goes_on_from_it_without_a_replay(tmp_path: Path) -> None:
    """I-22: an update of the program costs one row a grant, whatever its age; the row is then as it is today."""
    async with open_ledger(tmp_path) as opened:
        last = await grown(opened)
        put_back(opened)
        assert [] == await refreshed(opened, last)
        ((state, v),) = opened.rows("SELECT state, v FROM streams WHERE name = ?", f"grant:{last.grant_id}")
        assert [snapshots.FORMAT, v] == msgspec.msgpack.decode(state.rstrip(b"\0"))[:2]
        opened.check_memory()


async def test_without_the_reader_it_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin of the test above."""
    monkeypatch.setattr(earlier_snapshots, "FORMAT", 1)
    async with open_ledger(tmp_path) as opened:
        last = await grown(opened)
        put_back(opened)
        assert [] != await refreshed(opened, last)


async def test_a_retry_has_its_windows(tmp_path: Path) -> None:
    """What told a lost answer from reuse before the update tells it after."""
    async with open_ledger(tmp_path) as opened:
        before = await grown(opened)
        last = await opened.refresh(before)
        put_back(opened)
        again = await opened.refresh(before)
        assert last.refresh_token == again.refresh_token
        grant = opened.ledger.memory.streams[f"grant:{last.grant_id}"].aggregate
        assert grant == replayed(opened.path, f"grant:{last.grant_id}")


@pytest.mark.parametrize("kind", [Client, Grant])
def test_all_is_read_back(kind: type[Client] | type[Grant]) -> None:
    """Whatever the aggregate."""
    aggregate = kind(v=7)
    assert (7, HEAD, aggregate) == earlier_snapshots.decode(of_format_2(7, HEAD, aggregate).rstrip(b"\0"), kind)


def damaged(at: int, value: Any) -> bytes:
    members: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(Grant(v=7)))
    members[Grant.__struct_fields__.index("previous")] = [1, "a", "a", [], [1, [], None, None, None, "opaque", 1, 2, 3]]
    redemption = members[Grant.__struct_fields__.index("previous")]
    redemption += [0, None, None, None, 0, 0, []]
    redemption[at:] = value
    return msgspec.msgpack.encode((2, 7, HEAD, members, True))


def test_what_is_damaged_below_is_whole() -> None:
    """Else the tests of damage would show nothing."""
    assert earlier_snapshots.decode(damaged(12, []), Grant) is not None


@pytest.mark.parametrize(
    "blob",
    [
        damaged(6, ["yesterday", None, None, 0, 0, []]),
        damaged(6, [None, 17, None, 0, 0, []]),
        damaged(1, []),
        damaged(5, ["five", None, None, None, 0, 0, []]),
        msgspec.msgpack.encode((2, 7, HEAD, [], True)),
        msgspec.msgpack.encode((2, 7, HEAD, [7] * 50, True)),
        msgspec.msgpack.encode((1, 7, HEAD, [], True)),
        b"",
        b"\x93",
    ],
    ids=["text", "number", "short", "version", "empty", "numbers", "format", "nothing", "cut"],
)
def test_a_damaged_one_is_none(blob: bytes) -> None:
    """Never trusted, never fatal: the stream is replayed."""
    assert None is earlier_snapshots.decode(blob, Grant)
