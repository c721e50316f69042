"""Snapshots: believed only where format, version and hash are those of the stream's head; else a replay takes over."""

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from ledger import batch as batch_module
from ledger import snapshots
from ledger.answers import TokenAnswer
from ledger.batch import Batch
from ledger.clients import Client
from ledger.grant import Grant
from ledger.recorders import sqlite, sqlite_log
from ledger.recorders.schema import SCHEMA
from ledger.snapshots import FORMAT, Journal, decode, encode, kind_of
from tests.bulk import issue_many, persons, rotate_many
from tests.ledgers import LOCAL_OPERATOR, SECURITY, Opened, check_ledger, client, open_ledger, replayed

pytestmark = pytest.mark.anyio

HEAD = bytes(range(32))


@pytest.mark.parametrize(
    ("stream", "kind"),
    [("grant:00", Grant), ("client:www", Client), ("client:a:b", Client), ("audit", Journal), ("ledger", Journal)],
)
def test_a_streams_name_says_its_aggregate(stream: str, kind: type) -> None:
    """By its first word; ids may hold colons."""
    assert kind is kind_of(stream)


def test_a_snapshot_comes_back_as_it_went() -> None:
    """What was put in, for the version and hash it stands for."""
    journal = Journal(v=7, at=9)
    assert journal == decode(encode(7, HEAD, journal), "ledger", 7, HEAD, Journal)


@pytest.mark.parametrize(
    "blob",
    [
        encode(6, HEAD, Journal(v=7)),
        encode(7, HEAD[::-1], Journal(v=7)),
        msgspec.msgpack.encode((FORMAT + 1, 7, HEAD, Journal(v=7), True)),
        msgspec.msgpack.encode((FORMAT, 7, HEAD)),
        msgspec.msgpack.encode((FORMAT, 7, HEAD, "something else", True)),
        encode(7, HEAD, Journal(v=7)).rstrip(b"\0")[:-1],
        b"",
        b"\xff" * 20,
    ],
    ids=["version", "hash", "format", "short", "state", "cut", "empty", "garbage"],
)
def test_a_snapshot_that_does_not_fit_is_none(blob: bytes) -> None:
    """Never trusted, never fatal."""
    assert decode(blob, "ledger", 7, HEAD, Journal) is None


def test_a_snapshot_with_a_damaged_text_is_none() -> None:
    """Bytes that are no UTF-8 are told by another exception than all other damage."""
    client = Client(client_id="café")
    whole = encode(7, HEAD, client)
    assert client == decode(whole, "client:café", 7, HEAD, Client)
    assert None is decode(whole.replace("é".encode(), b"\xc3\xff"), "client:café", 7, HEAD, Client)


# ---------------------------------------------------------------- in a ledger


async def grown(opened: Opened) -> TokenAnswer:
    return await opened.chain(await opened.issue(), 70)


def forge(opened: Opened, stream: str, state: bytes) -> None:
    """Put another snapshot into a head, and let it be read anew."""
    opened.connection.execute("UPDATE streams SET state = ? WHERE name = ?", (state, stream))
    opened.ledger.memory.forget_everything()


def snapshot(opened: Opened, stream: str) -> tuple[int, bytes, bytes]:
    head = opened.store.head(stream)
    assert head is not None
    return head.v, head.head, head.state


@pytest.mark.parametrize("kind", ["format", "version", "hash", "garbage", "cut"])
async def test_what_does_not_fit_is_replayed_and_written_anew(tmp_path: Path, kind: str) -> None:
    """I-13: the state is that of the events, and the next append leaves a snapshot that fits again."""
    async with open_ledger(tmp_path) as opened:
        last = await grown(opened)
        stream = f"grant:{last.grant_id}"
        v, head, state = snapshot(opened, stream)
        wrong = Grant()  # nothing ever happened: whoever believed it would refuse every token
        forged = {
            "format": msgspec.msgpack.encode((FORMAT + 1, v, head, wrong)),
            "version": encode(v - 1, head, wrong),
            "hash": encode(v, bytes(32), wrong),
            "garbage": b"\x93",
            "cut": state[:-5],
        }[kind]
        forge(opened, stream, forged)
        answer = await opened.refresh(last)
        assert 71 == replayed(opened.path, stream).generation
        assert v + 2 == opened.ledger.memory.streams[stream].v
        assert [(answer.position,)] == opened.rows("SELECT position FROM streams WHERE name = ?", stream)
        opened.check_memory()
    check_ledger(opened.path)


async def test_a_forged_snapshot_that_fits_is_believed_and_found(tmp_path: Path) -> None:
    """The broken twin: whoever can write the file can write a snapshot that fits, and the check against a replay, not
    the loading, is what finds it (I-13)."""
    async with open_ledger(tmp_path) as opened:
        last = await grown(opened)
        stream = f"grant:{last.grant_id}"
        v, head, _ = snapshot(opened, stream)
        grant = replayed(opened.path, stream)
        grant.carried = ("read", "write")
        forge(opened, stream, encode(v, head, grant))
        with pytest.raises(AssertionError, match="the snapshot is not what a replay comes to"):
            check_ledger(opened.path)


async def test_a_replay_of_any_length_comes_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a replay join without gap: shorter than one, a little longer, several."""
    monkeypatch.setattr(batch_module, "REPLAY_PAGE_EVENTS", 20)
    async with open_ledger(tmp_path) as opened:
        answer = await opened.issue()
        stream = f"grant:{answer.grant_id}"
        for until_v in (19, 21, 39, 41, 61):
            at_v = opened.ledger.memory.streams[stream].v
            answer = await opened.chain(answer, (until_v - at_v) // 2)
            kept = opened.ledger.memory.streams[stream].aggregate
            forge(opened, stream, b"")
            batch = Batch(opened.store, opened.ledger.memory)
            loaded = batch.load(stream)
            opened.store.rollback()
            assert loaded is not None
            assert (until_v, kept) == (loaded.v, loaded.aggregate)
            assert kept is not loaded.aggregate
        assert answer.refresh_token is not None


async def test_authority_without_its_snapshots_is_the_same(tmp_path: Path) -> None:
    """Clients, operators, keys and epochs are replayed like any other stream."""
    async with open_ledger(tmp_path) as opened:
        alice, bob = await opened.issue("alice"), await opened.issue("bob")
        await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        await opened.ledger.operators.keys_rotate()
        opened.connection.execute("UPDATE streams SET state = x''")
    async with open_ledger(tmp_path, seed=2, clients=None) as opened:
        assert "revoked_by_subject" == (await opened.refused(alice)).refusal.value
        await opened.refresh(bob)
        assert [(1, "active"), (2, "verifying")] == [(key.id, key.state) for key in opened.ledger.operators.keys_list()]
        await opened.ledger.operators.erase(LOCAL_OPERATOR, "bob")
        assert "revoked_by_subject" == (await opened.refused(bob)).refusal.value


async def test_loading_costs_one_row_whatever_the_age(tmp_path: Path) -> None:
    """I-22: a grant with a long history is read from its head alone, no event of it."""
    async with open_ledger(tmp_path) as opened:
        last = await grown(opened)
        opened.ledger.memory.forget_everything()
        asked: list[str] = []
        opened.connection.set_trace_callback(asked.append)
        await opened.refresh(last)
        opened.connection.set_trace_callback(None)
        assert [] == [sql for sql in asked if sql.startswith(("SELECT", "WITH")) and "events" in sql]


def test_every_kind_of_stream_has_an_aggregate() -> None:
    """Whatever an event's stream may be called, there is somebody to follow it."""
    assert {"grant", "client", "operator", "subject", "keys", "ledger", "audit"} == set(snapshots.KINDS)


@pytest.mark.parametrize("words", [0, 1, 40, 400])
def test_a_snapshot_has_room_to_grow_in_place(words: int) -> None:
    """Its length moves in steps, and what fills it up is no part of what it says (I-13)."""
    grant = Grant(v=1, stream="grant:" + "a" * 32, granted=("scope",) * words)
    blob = snapshots.encode(1, b"h" * 32, grant)
    assert len(blob) in snapshots.ROOMS_BYTES or len(blob) % snapshots.ROOM_STEP_BYTES == 0
    assert grant == snapshots.decode(blob, grant.stream, 1, b"h" * 32, Grant)
    assert grant == snapshots.decode(blob.rstrip(b"\0"), grant.stream, 1, b"h" * 32, Grant)


WORDS = {448: 2, 544: 4, 688: 8, 880: 12, 1216: 20}
"""The length of a snapshot, and of how many scopes with nine letters the grant then has."""


async def pages_split(folder: Path, words: int, room: int | None = None) -> int:
    """How many pages SQLite adds to a table of 60 heads while each is redeemed for the first time, then 69 times more:
    once its version takes another byte, once what it says of the version does. `room`: what snapshots then take."""
    scope = tuple(f"scope:{number:03}" for number in range(words))
    columns = "v, position, head, state, generation, last_redeemed_at, idle_expires_at, id"
    grants = "FROM streams WHERE id IN (SELECT stream FROM private_grants) ORDER BY id"
    (table,) = (each for each in SCHEMA if each.startswith("CREATE TABLE streams "))
    async with open_ledger(folder, clients=[client(scope=scope)]) as opened:
        ledger = opened.ledger
        (tokens,) = [each async for each in issue_many(ledger, persons(60, client_id="www", scope=scope))]
        with closing(sqlite3.connect(":memory:")) as copy:
            copy.execute(f"PRAGMA page_size={sqlite_log.PAGE_BYTES}")
            copy.execute(table)
            before = {row[-1]: row[0] for row in opened.rows(f"SELECT {columns} {grants}")}
            for row in opened.rows(f"SELECT * {grants}"):
                copy.execute("INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            ((filled,),) = copy.execute("PRAGMA page_count")
            for count in (1, 69):
                tokens = [await rotate_many(ledger, token, count, client_id="www") for token in tokens]
                moved = [(*row, before[row[-1]]) for row in opened.rows(f"SELECT {columns} {grants}")]
                before = {row[-2]: row[0] for row in moved}
                assert 60 == copy.executemany(sqlite._MOVE, moved).rowcount
            assert {room or len(moved[0][3])} == {len(row[3]) for row in moved}
            ((pages,),) = copy.execute("PRAGMA page_count")
            return int(pages - filled)


@pytest.mark.parametrize(("room", "words"), WORDS.items())
async def test_a_head_that_moves_splits_no_page(tmp_path: Path, room: int, words: int) -> None:
    """Neither at a grant's first redemption nor later: its row grows in what its page has left."""
    assert room in snapshots.ROOMS_BYTES
    assert 0 == await pages_split(tmp_path, words, room)


async def test_where_rows_fill_a_page_the_first_redemption_splits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test above: a length of which six fill a page to the last byte."""
    monkeypatch.setattr(snapshots, "ROOMS_BYTES", (576,))
    assert 0 < await pages_split(tmp_path, WORDS[448], 576)


@pytest.mark.parametrize("words", WORDS.values())
async def test_without_room_for_the_first_redemption_it_splits_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    """The broken twin again: snapshots that have no more room than they need before."""
    monkeypatch.setattr(snapshots, "ROOMS_BYTES", ())
    monkeypatch.setattr(snapshots, "_redemption_bytes", lambda grant: 0)
    assert 0 < await pages_split(tmp_path, words)


async def test_heads_begin_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """However many begin within a millisecond, SQLite fills pages one after the other."""
    async with open_ledger(tmp_path) as opened:
        asked: list[str] = []
        opened.connection.set_trace_callback(asked.append)
        async for _ in issue_many(opened.ledger, persons(30, client_id="www", scope=("read",))):
            opened.connection.set_trace_callback(None)
        begun = [sql.partition("(")[2].partition(",")[0] for sql in asked if sql.startswith("INSERT INTO streams")]
        numbers = [int(number) for number in begun]
        assert len(numbers) >= 30
        assert numbers == sorted(numbers)
        in_the_log = [number for (number,) in opened.rows("SELECT stream FROM events WHERE v = 1 ORDER BY position")]
        assert in_the_log != sorted(in_the_log), "they were in order before"
