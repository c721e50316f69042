"""Live equals replayed (I-13), an altered history is found (I-14), what can be healed is, while the ledger serves."""

import asyncio
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger import snapshots
from ledger.clients import Client
from ledger.events import AnyEvent, ScopeReduced
from ledger.grant import Grant
from ledger.inline import Inline
from ledger.keyring import KeyRing
from ledger.private import subject_lookup
from ledger.recorders import reading
from ledger.recorders.reading import Reader
from ledger.recorders.rows import Reads, Work
from ledger.segments import Segments, folder_of
from ledger.times import SECOND
from projections import INLINE, compare, replay
from projections.current_tokens import CurrentTokens
from projections.rebuild import Heal, Rebuilt, rebuild
from tests.earlier import of_format_2
from tests.stocked import DAY, ELSEWHERE, OPERATOR, Stocked, incident, stocked, world


class Copied:
    """A copy of a ledger's database, to be altered with any tool and rebuilt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._segments = Segments(folder_of(path))
        self._ring = KeyRing.load(path.with_name("ledger.keys"))

    def close(self) -> None:
        self.connection.close()

    def lookup(self, subject: str) -> bytes:
        return subject_lookup(self._ring, subject)

    def change(self, sql: str, *parameters: object) -> int:
        return self.connection.execute(sql, parameters).rowcount

    def rows(self, sql: str, *parameters: object) -> list[Any]:
        return self.connection.execute(sql, parameters).fetchall()

    def flip(self, name: str, old: bytes, new: bytes) -> None:
        """Change something on the first page of a table or index, past SQLite."""
        [(page,)] = self.rows("SELECT rootpage FROM sqlite_master WHERE name = ?", name)
        [(size,)] = self.rows("PRAGMA page_size")
        self.connection.close()
        with self.path.open("r+b") as file:
            file.seek(size * (page - 1))
            content = file.read(size)
            file.seek(size * (page - 1))
            file.write(content.replace(old, new, 1))
        assert old in content
        self.connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    @contextmanager
    def reader(self) -> Iterator[Reads]:
        self.connection.execute("BEGIN")
        try:
            yield Reader(self.connection, self._segments)
        finally:
            self.connection.execute("ROLLBACK")

    def heal(self, derive: Callable[[Reads], Heal]) -> None:
        """What the writer does: derive and write in one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        heal = derive(Reader(self.connection, self._segments))
        for statement, rows in heal.statements:
            self.connection.executemany(statement, rows)
        self.connection.execute("COMMIT")

    def rebuild(self, inline: Sequence[Inline] = INLINE) -> Rebuilt:
        return rebuild(self.reader, inline, self.heal, lookup=self.lookup)


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a past of every kind, closed."""
    folder = tmp_path_factory.mktemp("past")

    async def lived() -> None:
        async with stocked(folder) as at:
            await world(at, Random(5), 80)
            await incident(at)
            last = await at.issue("nora")
            await at.ledger.operators.act_on_grant(OPERATOR, last.grant_id, "revoke", "lost", None)

    asyncio.run(lived())
    return folder / "ledger.db"


@pytest.fixture
def copied(past: Path, tmp_path: Path) -> Iterator[Copied]:
    """That past, a copy for each test."""
    shutil.copy(past, tmp_path / "copy.db")
    shutil.copy(past.with_name("ledger.keys"), tmp_path)
    with closing(Copied(tmp_path / "copy.db")) as made:
        yield made


def named(found: Rebuilt) -> set[tuple[str, str]]:
    return {(each.table, each.column) for each in found.differences}


def test_a_ledger_that_nobody_touched_is_what_its_replay_says(copied: Copied) -> None:
    """I-13: every event replayed, every stream, every row of every table; nothing differs."""
    found = copied.rebuild()
    counts = [copied.rows(f"SELECT count(*) FROM {table}")[0][0] for table in ("events", "streams")]
    assert ([], True, True, counts) == (
        found.differences, found.history_holds, found.healed, [found.events, found.streams],
    )  # fmt: skip
    tables = {each.name: copied.rows(f"SELECT count(*) FROM {each.name}")[0][0] for each in INLINE}
    assert tables == found.rows
    assert all(count > 1 for count in tables.values())


@pytest.mark.parametrize(
    ("sql", "table", "column"),
    [
        ("UPDATE current_tokens_v1 SET scope = 'read write'", "current_tokens_v1", "scope"),
        ("UPDATE current_tokens_v1 SET state = 'active'", "current_tokens_v1", "state"),
        ("UPDATE current_tokens_v1 SET subject_id = 'x'", "current_tokens_v1", "subject_id"),
        ("UPDATE current_tokens_v1 SET grant_id = 'x' || grant_id", "current_tokens_v1", "grant_id"),
        ("UPDATE current_tokens_v1 SET position = -position", "current_tokens_v1", "position"),
        ("DELETE FROM current_tokens_v1", "current_tokens_v1", "grant_id"),
        ("DELETE FROM reuse_incidents_v1", "reuse_incidents_v1", "position"),
        ("UPDATE reuse_incidents_v1 SET label = 'late_retry'", "reuse_incidents_v1", "label"),
        ("INSERT INTO reuse_incidents_v1 VALUES (0, 'x', 'y', 'fork')", "reuse_incidents_v1", "position"),
        ("UPDATE streams SET position = position - 1", "streams", "position"),
        ("UPDATE streams SET head = x'00'", "streams", "head"),
        ("UPDATE streams SET name = name || 'x'", "streams", "name"),
        ("UPDATE streams SET state = x'00'", "streams", "state"),
        ("UPDATE streams SET v = v - 1", "streams", "v"),
        ("UPDATE streams SET generation = generation + 1", "streams", "generation"),
        ("UPDATE streams SET last_redeemed_at = NULL", "streams", "last_redeemed_at"),
        ("UPDATE streams SET idle_expires_at = NULL", "streams", "idle_expires_at"),
        ("DELETE FROM streams", "streams", "name"),
    ],
)
def test_an_altered_row_is_named_healed_and_gone_the_next_time(
    copied: Copied, sql: str, table: str, column: str
) -> None:
    """Table, key and column are named; all of them are healed, not only those that are named; the next run is clean."""
    # A snapshot may be written anew with the same contents in other bytes: the second run judges those.
    columns = "id, name, v, position, head" if table == "streams" else "*"
    before = [copied.rows(f"SELECT {columns} FROM {table} ORDER BY 1"), copied.rows("SELECT * FROM events")]
    assert copied.change(sql) > 0
    found = copied.rebuild()
    assert (table, column) in named(found)
    assert {table} == {table for table, _ in named(found)}
    assert (True, True) == (found.history_holds, found.healed)
    assert before == [copied.rows(f"SELECT {columns} FROM {table} ORDER BY 1"), copied.rows("SELECT * FROM events")]
    again = copied.rebuild()
    assert ([], 0, True) == (again.differences, again.difference_count, again.healed)


def test_a_difference_says_what_was_live_and_what_was_replayed(copied: Copied) -> None:
    """A person sees at once what is wrong; what could be a secret is not shown."""
    [(grant_id, scope)] = copied.rows("SELECT grant_id, scope FROM current_tokens_v1 LIMIT 1")
    copied.change("UPDATE current_tokens_v1 SET scope = 'admin' WHERE grant_id = ?", grant_id)
    [difference] = copied.rebuild().differences
    assert ("current_tokens_v1", grant_id, "scope", "admin", scope) == (
        difference.table, difference.key, difference.column, difference.live, difference.replayed,
    )  # fmt: skip
    copied.change("UPDATE current_tokens_v1 SET scope = ? WHERE grant_id = ?", "rt1_" + "A" * 72, grant_id)
    [difference] = copied.rebuild().differences
    assert (None, scope) == (difference.live, difference.replayed)


def test_snapshots_of_the_release_before_are_what_the_replay_says(copied: Copied) -> None:
    """Another format of the same contents is no difference."""
    for id, name, v, head, state in copied.rows("SELECT id, name, v, head, state FROM streams"):
        aggregate = snapshots.decode(state, name, v, head, snapshots.kind_of(name))
        assert aggregate is not None
        copied.change("UPDATE streams SET state = ? WHERE id = ?", of_format_2(v, head, aggregate), id)
    found = copied.rebuild()
    assert ([], True) == (found.differences, found.history_holds)
    assert found.streams > 10


def test_a_snapshot_that_lies_is_named_member_by_member(copied: Copied) -> None:
    """A snapshot of the right head and other contents would be believed: rebuild compares contents, not hashes."""
    rows = copied.rows("SELECT id, name, v, head, state FROM streams WHERE name LIKE 'client:%'")
    for id, name, v, head, state in rows:
        client = snapshots.decode(state, name, v, head, Client)
        assert client is not None
        client.enabled = not client.enabled
        copied.change("UPDATE streams SET state = ? WHERE id = ?", snapshots.encode(v, head, client), id)
    found = copied.rebuild()
    assert {("streams", "state.enabled")} == named(found)
    assert len(rows) == found.difference_count
    assert [] == copied.rebuild().differences


class Forgetful(CurrentTokens):
    """A broken twin of the projection: one kind of event escapes it."""

    def rows(self, events: Sequence[AnyEvent], positions: Sequence[int]) -> Iterable[tuple[int, tuple[object, ...]]]:
        kept = [pair for pair in zip(events, positions, strict=True) if not isinstance(pair[0], ScopeReduced)]
        return super().rows([event for event, _ in kept], [position for _, position in kept])


def test_a_projection_that_misses_a_kind_of_event_is_caught(copied: Copied) -> None:
    """The broken twin: what it would have written is not what the whole history comes to."""
    assert [] == copied.rebuild().differences
    forgetful = [Forgetful(), *INLINE[1:]]
    assert {("current_tokens_v1", "scope")} == named(copied.rebuild(forgetful))
    assert {("current_tokens_v1", "scope")} == named(copied.rebuild())


# ---------------------------------------------------------------- altered history (I-14)


def broken(copied: Copied) -> set[str]:
    """The events that a rebuild complains about. Nothing may be written then, and the next run says the same."""
    everything = [f"* FROM {each}" for each in ("current_tokens_v1", "reuse_incidents_v1", "streams")]
    everything.append("position, stream, v, back, CAST(body AS BLOB) FROM events")
    before = [copied.rows(f"SELECT {each}") for each in everything]
    found = copied.rebuild()
    assert (False, False) == (found.history_holds, found.healed)
    assert before == [copied.rows(f"SELECT {each}") for each in everything]
    return {each.key for each in found.differences if each.table == "events"}


def test_any_flipped_bit_of_any_event_is_found(copied: Copied, count: Callable[[int, int], int]) -> None:
    """I-14: in its middle, in its link, in the last event of a stream."""
    chance = Random(11)
    events = copied.rows("SELECT position, body FROM events")
    last = {row[0] for row in copied.rows("SELECT position FROM streams")}
    chosen = [chance.choice(events) for _ in range(count(60, 2000))]
    chosen += [each for each in events if each[0] in last][:20]
    missed = []
    for position, body in chosen:
        altered = bytearray(body.encode())
        altered[chance.randrange(len(altered))] ^= 1 << chance.randrange(8)
        copied.change("UPDATE events SET body = CAST(? AS TEXT) WHERE position = ?", bytes(altered), position)
        if not broken(copied):
            missed.append(position)
        copied.change("UPDATE events SET body = ? WHERE position = ?", body, position)
    assert [] == missed
    assert [] == copied.rebuild().differences


def test_any_dropped_event_is_found(copied: Copied) -> None:
    """I-14: the first, the last, one between; a gap shows at its successor or at the head."""
    rows = copied.rows("SELECT position, stream, v, back, body FROM events")
    for row in rows[:: max(1, len(rows) // 40)]:
        copied.change("DELETE FROM events WHERE position = ?", row[0])
        stream = json.loads(row[4])["stream"]
        assert any(each.startswith(stream) for each in broken(copied))
        copied.change("INSERT INTO events VALUES (?, ?, ?, ?, ?)", *row)


def test_a_stream_cut_short_is_found_and_not_made_official(copied: Copied) -> None:
    """The last events of a stream are gone and its head still knows them: healing would bury the loss."""
    [(id, name, v)] = copied.rows("SELECT id, name, v FROM streams WHERE v > 4 LIMIT 1")
    copied.change("DELETE FROM events WHERE stream = ? AND v > 2", id)
    assert {f"{name}/3"} == broken(copied)
    assert [(v,)] == copied.rows("SELECT v FROM streams WHERE id = ?", id)


def test_swapped_and_moved_events_are_found(copied: Copied) -> None:
    """I-14: bodies that changed places, a column that says another version, a pointer that leads astray."""
    events = "events WHERE v = 2 AND body LIKE '%grant.token_redeemed%'"
    [(one, first), (other, second)] = copied.rows(f"SELECT position, body FROM {events} LIMIT 2")
    copied.change("UPDATE events SET body = ? WHERE position = ?", second, one)
    copied.change("UPDATE events SET body = ? WHERE position = ?", first, other)
    assert 2 == len(broken(copied))
    copied.change("UPDATE events SET body = ? WHERE position = ?", first, one)
    copied.change("UPDATE events SET body = ? WHERE position = ?", second, other)
    for column in ("v", "back", "stream"):
        copied.change(f"UPDATE events SET {column} = {column} + 1000 WHERE position = ?", one)
        assert broken(copied)
        copied.change(f"UPDATE events SET {column} = {column} - 1000 WHERE position = ?", one)
    assert [] == copied.rebuild().differences


@pytest.mark.parametrize(
    ("forged", "column_v"), [({"stream": "grant:other"}, None), ({"v": 99}, 99), ({"v": 99}, None)]
)
def test_a_forger_who_recomputes_the_hashes_is_found_where_the_event_does_not_fit(
    copied: Copied, forged: dict[str, Any], column_v: int | None
) -> None:
    """The last event altered, head and snapshot made to match it: it still does not follow the event before it."""
    [(id, name, v, position, head, state)] = copied.rows(
        "SELECT id, name, v, position, head, state FROM streams WHERE name LIKE 'grant:%' AND v > 4 LIMIT 1"
    )
    [(body,)] = copied.rows("SELECT body FROM events WHERE position = ?", position)
    altered = json.dumps(json.loads(body) | forged, sort_keys=True, separators=(",", ":"))
    new_v, new_head = column_v or v, hashlib.sha256(altered.encode()).digest()
    snapshot = snapshots.encode(new_v, new_head, snapshots.decode(state, name, v, head, Grant))
    copied.change("UPDATE events SET body = ?, v = ? WHERE position = ?", altered, new_v, position)
    copied.change("UPDATE streams SET v = ?, head = ?, state = ? WHERE id = ?", new_v, new_head, snapshot, id)
    assert broken(copied)


@pytest.mark.parametrize("kind", ["client", "keys", "subject", "grant"])
def test_a_first_event_copied_into_another_stream_is_found(copied: Copied, kind: str) -> None:
    """A second stream of a name: the twin that took it for a head to heal would put the beginning of a history in the
    place of what came of it, and a client that was disabled, a key that was distrusted, would be as on their first
    day."""
    names = copied.rows("SELECT name, id FROM streams WHERE name LIKE ? || '%' AND v > 1", kind)
    for name, id in names[:2]:
        added = copied.change(
            "INSERT INTO events SELECT (SELECT max(position) + 1000 FROM events), stream + 500, v, back, body"
            " FROM events WHERE stream = ? AND v = 1",
            id,
        )
        assert ({f"stream {id + 500}/1"}, 1) == (broken(copied), added), name
        copied.change("DELETE FROM events WHERE stream = ?", id + 500)
    assert names


@pytest.mark.parametrize("kind", ["client:app", "keys", "subject:%", "operator:%"])
def test_a_stream_of_authority_that_is_gone_with_its_head_is_found(copied: Copied, kind: str) -> None:
    """Nothing of its own is left to tell: a person's end would never have been. The grants that were decided on
    afterwards say how often authority had changed."""
    [(id, name), *_] = copied.rows("SELECT id, name FROM streams WHERE name LIKE ?", kind)
    copied.change("DELETE FROM streams WHERE id = ?", id)
    copied.change("DELETE FROM events WHERE stream = ?", id)
    (found,) = broken(copied)
    assert found.startswith("grant:"), name
    copied.change("DELETE FROM events WHERE stream IN (SELECT id FROM streams WHERE name LIKE 'grant:%')")
    copied.change("DELETE FROM streams WHERE name LIKE 'grant:%'")
    copied.change("DELETE FROM private_grants")
    assert {"control"} == broken(copied)


def test_an_end_that_stands_elsewhere_in_the_log_is_found(copied: Copied) -> None:
    """Whoever was refused after it, or served before it: no stream's own links tell where it stood among others'."""
    sql = "SELECT position, stream, body FROM events ORDER BY position"
    (one, first), (other, second) = next(
        ((a[:2]), (b[:2]))
        for a, b in pairwise(copied.rows(sql))
        if '"control"' in a[2] and "subject.revoked" in b[2] and a[1] != b[1]
    )
    for id, old, new in ((first, one, -1), (second, other, one), (first, -1, other)):
        copied.change("UPDATE events SET position = ? WHERE position = ?", new, old)
        copied.change("UPDATE events SET back = ? WHERE stream = ? AND back = ?", new, id, old)
        copied.change("UPDATE streams SET position = ? WHERE id = ? AND position = ?", new, id, old)
    assert 1 == len(broken(copied))


def test_an_act_of_authority_that_stands_behind_what_was_decided_under_it_is_found(copied: Copied) -> None:
    """Whoever moves an end behind a refresh that it forbade makes it look allowed; their number stays."""
    [(last,)] = copied.rows("SELECT max(position) + 1 FROM events")
    [(moved, name)] = copied.rows(
        "SELECT s.position, s.name FROM streams s WHERE s.name LIKE 'client:%' OR s.name LIKE 'subject:%'"
        " ORDER BY s.position LIMIT 1"
    )
    copied.change("UPDATE events SET position = ? WHERE position = ?", last, moved)
    copied.change("UPDATE streams SET position = ? WHERE position = ?", last, moved)
    (found,) = broken(copied)
    assert found.startswith("grant:"), name


@pytest.mark.parametrize("change", ["UPDATE control SET counter = counter - 1", "DELETE FROM control"])
def test_a_counter_that_is_not_what_the_log_comes_to_is_found(copied: Copied, change: str) -> None:
    """With it, whoever cuts off the last change of authority would leave no trace."""
    copied.change(change)
    assert {"control"} == broken(copied)


async def test_a_lowered_serial_is_found(tmp_path: Path) -> None:
    """With it a clients file that was replaced could be applied again, and whom it knew would be back. A file that
    changes nothing raises it without an event: so it may be higher than all events say."""
    async with stocked(tmp_path) as at:
        await at.clients("www", "app", serial=3)
        await at.clients("www", serial=7)
        await at.clients("www", serial=9)
    with closing(Copied(tmp_path / "ledger.db")) as copied:
        assert [] == copied.rebuild().differences
        for serial in (8, 7):
            copied.change("UPDATE control SET serial = ?", serial)
            assert [] == copied.rebuild().differences
        for serial in (6, 3, 0, -1):
            copied.change("UPDATE control SET serial = ?", serial)
            assert {"control"} == broken(copied)


@pytest.mark.parametrize("position", [2**63 - 1, 2**63 - 2])
def test_a_position_above_which_none_is_left_is_found(copied: Copied, position: int) -> None:
    """Nothing could be appended any more; no page of the log leads to the last one of all, and no head need tell."""
    copied.change("INSERT INTO events VALUES (?, 9999, 2, 1, '{}')", position)
    assert f"position {position}" in broken(copied)
    copied.change("DELETE FROM events WHERE position = ?", position)
    copied.change("UPDATE control SET position_floor = ?", position)
    assert {"control"} == broken(copied)


def test_an_altered_event_does_not_spread_into_the_rows(copied: Copied) -> None:
    """The twin that would heal anyway would write the forged scope into the row."""
    [(position, grant_id)] = copied.rows("SELECT position, grant_id FROM current_tokens_v1 LIMIT 1")
    copied.change("UPDATE events SET body = replace(body, 'openid', 'admin!') WHERE position = ?", position)
    assert broken(copied)
    assert [] == copied.rows("SELECT * FROM current_tokens_v1 WHERE granted_scope LIKE '%admin%'")
    assert grant_id


# ---------------------------------------------------------------- private rows


def test_a_grant_that_is_gone_but_for_its_rows_is_found(copied: Copied) -> None:
    """Healing would delete the row that no event made, and with it the last trace that there was such a grant."""
    [(id, name)] = copied.rows("SELECT id, name FROM streams WHERE name LIKE 'grant:%' AND v > 4 LIMIT 1")
    copied.change("DELETE FROM streams WHERE id = ?", id)
    copied.change("DELETE FROM events WHERE stream = ?", id)
    assert {f"stream {id}/1"} == broken(copied), name


@pytest.mark.parametrize(
    ("table", "column", "forged"),
    [
        ("private_grants", "nonce", "randomblob(32)"),
        ("private_grants", "client_id", "'app2'"),
        ("private_grants", "subject_id", "'somebody'"),
        ("private_grants", "device", "'tv'"),
        ("private_grants", "session", "NULL"),
        ("private_contexts", "address", "'192.0.2.1'"),
        ("private_reasons", "text", "'all is well'"),
        ("private_subjects", "subject", "'not ' || subject"),
    ],
)
def test_a_private_row_that_was_altered_is_named_each_time(
    copied: Copied, table: str, column: str, forged: str
) -> None:
    """No replay has it, and it decides whose a token is, and is told for the truth. All else is healed."""
    assert [] == copied.rebuild().differences
    assert copied.change(f"UPDATE {table} SET {column} = {forged} WHERE {column} IS NOT NULL") > 0
    copied.change("UPDATE streams SET generation = 99 WHERE name LIKE 'grant:%'")
    found = copied.rebuild()
    assert {(table, column), ("streams", "generation")} == named(found)
    assert (True, False) == (found.history_holds, found.healed)
    assert {None} == {each.live for each in found.differences if each.table == table}, "nothing private is shown"
    again = copied.rebuild()
    assert ({(table, column)}, False) == (named(again), again.healed)


def test_an_erased_person_is_no_difference(copied: Copied) -> None:
    """What is gone may have been erased: every commitment stands, and nothing is left to hold against it."""
    for table in ("private_contexts", "private_reasons", "private_grants", "private_subjects"):
        assert copied.change(f"DELETE FROM {table}") > 0
    assert [] == copied.rebuild().differences


@pytest.mark.parametrize("how", ["DELETE FROM private_grants", "UPDATE private_grants SET nonce = NULL"])
async def test_a_living_grant_without_a_nonce_is_named_and_no_other(tmp_path: Path, how: str) -> None:
    """It is refused for ever, as one that has ended elsewhere; all others have lost theirs by right, or may have."""
    async with stocked(tmp_path) as at:
        await at.issue("expired")
        at.pass_seconds(40 * DAY)
        act, revoke = at.ledger.operators.act_on_grant, at.ledger.operators.revoke_subject
        ended, living, stopped, *_ = [await at.issue(name) for name in ("end", "living", "stop", "left", "erased")]
        await act(OPERATOR, ended.grant_id, "revoke", None, None)
        await revoke(OPERATOR, "left", None, None)
        await at.ledger.operators.erase(OPERATOR, "erased")
        await act(OPERATOR, stopped.grant_id, "suspend", None, None)
        later = at.now
    with closing(Copied(tmp_path / "ledger.db")) as copied:
        assert [] == rebuild(copied.reader, INLINE, copied.heal, at=later).differences
        copied.change(how)
        for _ in range(2):
            found = rebuild(copied.reader, INLINE, copied.heal, at=later)
            names = {(each.table, each.key, each.column, each.problem) for each in found.differences}
            alive = [("private_grants", f"grant:{each.grant_id}", "nonce") for each in (living, stopped)]
            assert {(*each, "it is gone, and the grant lives") for each in alive} == names
            assert (True, False) == (found.history_holds, found.healed)
        much_later = later + 400 * DAY * SECOND
        assert [] == rebuild(copied.reader, INLINE, copied.heal, at=much_later).differences


# ---------------------------------------------------------------- the file beneath


@pytest.mark.parametrize(
    ("index", "old", "new"),
    [("current_tokens_v1_client", b"www", b"wwv"), ("sqlite_autoindex_streams_1", b"client:www", b"client:wwv")],
)
def test_an_index_that_lacks_a_row_is_named(copied: Copied, index: str, old: bytes, new: bytes) -> None:
    """Whoever asks by the index is not told of the row, while the table itself is what the replay says. Nothing is
    wrong but the index, and it can be made anew."""
    copied.flip(index, old, new)
    found = copied.rebuild()
    assert {("file", "page")} == named(found)
    assert any(f"missing from index {index}" in each.problem for each in found.differences)
    assert (False, False, 0) == (found.history_holds, found.healed, found.events)
    copied.change("REINDEX")
    assert [] == copied.rebuild().differences


def test_a_page_that_is_none_is_named(copied: Copied) -> None:
    """A replay never asks for private rows, and what it makes of other pages depends on them: it may never end."""
    copied.flip("private_grants", b"\x0d", b"\x00")
    assert {("file", "page")} == named(copied.rebuild())


def test_a_check_of_the_file_is_broken_off_like_all_else(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it any more, or the server stops."""

    def gone() -> None:
        raise Gone

    monkeypatch.setattr(reading, "_STEPS", 10)
    with copied.reader() as reads:
        with pytest.raises(Gone):
            reads.damage(gone)
        assert [] == reads.damage(lambda: None)


class Gone(Exception):
    """Nobody listens."""


# ---------------------------------------------------------------- size, and beside a serving ledger


def test_streams_leave_memory_and_come_back(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant memory: with room for a few streams and rows at a time the result is the same."""
    expected = copied.rebuild()
    monkeypatch.setattr(replay, "STREAMS_IN_MEMORY_MAX", 3)
    monkeypatch.setattr(replay, "PAGE_EVENTS", 2)
    monkeypatch.setattr(compare, "PAGE_ROWS", 2)
    assert expected == copied.rebuild()
    copied.change("UPDATE streams SET generation = 99")
    assert copied.rebuild().healed
    assert expected == copied.rebuild()


def test_all_is_counted_and_healed_though_few_are_named(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is bounded, the healing is not."""
    monkeypatch.setattr(compare, "DIFFERENCES_MAX", 2)
    changed = copied.change("UPDATE streams SET generation = 99")
    found = copied.rebuild()
    assert (2, changed, True) == (len(found.differences), found.difference_count, found.healed)
    assert [] == copied.rebuild().differences


def test_progress_ends_at_the_last_position(copied: Copied) -> None:
    """Positions done of positions in all, growing."""
    told: list[tuple[int, int]] = []
    rebuild(copied.reader, INLINE, copied.heal, lambda done, total: told.append((done, total)))
    last = copied.rows("SELECT max(position) FROM events")[0][0]
    assert (last, last) == told[-1]
    assert sorted(told) == told


def test_an_empty_database_is_in_order(copied: Copied) -> None:
    """Nothing to replay, nothing to compare."""
    for table in ("events", "streams", "current_tokens_v1", "reuse_incidents_v1", "private_grants"):
        copied.change(f"DELETE FROM {table}")
    copied.change("UPDATE control SET counter = 0")
    found = copied.rebuild()
    assert ([], 0, 0, True) == (found.differences, found.events, found.streams, found.healed)


def healed(at: Stocked, derive: Callable[[Reads], Heal]) -> None:
    """What the writer does between two batches."""
    at.store.begin()
    heal = derive(at.store.within())
    work = Work(at.store.inline)
    work.private = [(statement, row) for statement, rows in heal.statements for row in rows]
    at.store.write(work)
    at.store.commit()
    for name in heal.streams:
        at.ledger.memory.streams.pop(name, None)


async def rebuilt(at: Stocked, before_heal: Callable[[], Coroutine[Any, Any, None]]) -> Rebuilt:
    """Rebuild in a thread, the healing let in by the loop that serves."""
    loop = asyncio.get_running_loop()

    async def let_in(derive: Callable[[Reads], Heal]) -> None:
        await before_heal()
        await at.ledger.commits.exclusively(lambda: healed(at, derive))

    def heal(derive: Callable[[Reads], Heal]) -> None:
        asyncio.run_coroutine_threadsafe(let_in(derive), loop).result()

    return await asyncio.to_thread(rebuild, at.store.reader, INLINE, heal)


async def nothing() -> None:
    pass


async def test_healing_takes_in_what_was_appended_since_the_comparison(tmp_path: Path) -> None:
    """Rows and snapshots are healed to what they are by then, never back to what they were when compared."""
    async with stocked(tmp_path) as at:
        issued = await at.issue()
        tokens = [(await at.refresh(issued.refresh_token)).refresh_token]
        with closing(Copied(tmp_path / "ledger.db")) as other:
            other.change("UPDATE current_tokens_v1 SET scope = 'x', issued_by = 'nobody'")
            other.change("UPDATE streams SET generation = 99 WHERE name LIKE 'grant:%'")
            other.change("DELETE FROM reuse_incidents_v1")

            async def serve_on() -> None:
                tokens.append((await at.refresh(tokens[-1], scope=("read",))).refresh_token)
                await at.refresh(tokens[-2], source=ELSEWHERE)

            found = await rebuilt(at, serve_on)
            assert (3, True) == (found.difference_count, found.healed)
            rows = (
                "SELECT s.generation, t.scope, t.issued_by FROM current_tokens_v1 t"
                " JOIN streams s ON s.name = 'grant:' || t.grant_id"
            )
            assert [(2, "read", "operator:login-app")] == other.rows(rows)
            again = await rebuilt(at, serve_on)
            assert ([], True) == (again.differences, again.healed)
            await at.refresh(tokens[-1])


async def test_a_rebuild_beside_refreshes_finds_nothing_that_is_not_there(tmp_path: Path) -> None:
    """Events and rows are compared as of one moment, however much is appended meanwhile."""
    async with stocked(tmp_path) as at:
        chains = [(await at.issue(f"person {number}")).refresh_token for number in range(8)]
        looking = asyncio.create_task(several(at))
        refreshes = 0
        while not looking.done():
            answers = await asyncio.gather(*(at.refresh(token) for token in chains))
            chains = [answer.refresh_token for answer in answers]
            refreshes += len(chains)
        assert [[]] * 5 == [found.differences for found in await looking]
        assert refreshes > 0


async def several(at: Stocked) -> list[Rebuilt]:
    return [await rebuilt(at, nothing) for _ in range(5)]
