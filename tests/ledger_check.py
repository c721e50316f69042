"""Everything that must hold of a store, whoever wrote it and however that ended: `check_ledger`.

It shares no code with what it checks beyond the events' shapes and the aggregates' `evolve`: links, versions, heads,
snapshots, the control counter, commitments and inline rows are all made anew here, from the stored bytes alone.
"""

import hashlib
import json
import shutil
import sqlite3
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from ledger import snapshots
from ledger.events import (
    AnyEvent,
    GrantAuthorized,
    GrantEvent,
    GrantExpired,
    GrantFact,
    GrantIssued,
    GrantRevoked,
    TokenRotated,
    decode,
)
from ledger.grant import Grant
from ledger.inline import Inline
from projections import INLINE
from tests.engines import archive_folder, copy_into, url_of

AUTHORITY = ("client", "operator", "subject", "keys")


class Checked(msgspec.Struct, frozen=True):
    """What was found in order: how many events of each topic, the last position, each stream's last version."""

    topics: dict[str, int]
    position: int
    versions: dict[str, int]

    @property
    def events(self) -> int:
        """All events."""
        return sum(self.topics.values())


class _Stored(msgspec.Struct, frozen=True):
    position: int
    stream: int
    v: int
    back: int
    body: str
    event: AnyEvent


class _Begun(msgspec.Struct, frozen=True):
    """What a stream's events that are left go on from: nothing, or what its last withheld piece said of its end."""

    v: int = 0
    position: int = 0
    prev: str | None = None
    at: str = ""
    generation: int | None = -1


def check_ledger(path: Path, inline: Sequence[Inline] = INLINE) -> Checked:
    """Fold the whole log of a store and compare everything that follows from it. Raises AssertionError for the first
    thing that is wrong.

    Of a stream of which something is withheld nothing can be replayed: of that one the pieces and what is left of its
    events are checked, and how they hang together.

    The store may be open in this or another process, or left behind by a killed one: it is copied, not touched. Do not
    call it while somebody writes.
    """
    with copied(path) as connection, archive_folder(path) as folder:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall(), "the file itself is damaged"
        streams = {row[0]: row[1:] for row in connection.execute("SELECT * FROM streams")}
        rows: list[tuple[int, int, int, int, str]] = connection.execute(
            "SELECT position, stream, v, back, body FROM events"
        ).fetchall()
        begun: dict[int, _Begun] = {}
        rows = sorted([*rows, *_archived(connection, folder, begun)])
        stored = [_Stored(position, stream, v, back, body, decode(body)) for position, stream, v, back, body in rows]
        by_stream: dict[int, list[_Stored]] = defaultdict(list)
        for each in stored:
            if each.stream not in begun or each.v > begun[each.stream].v:
                by_stream[each.stream].append(each)
        assert streams.keys() == by_stream.keys() | begun.keys(), "a stream without events, or events without a stream"
        for number, (name, v, position, head, state, *asked) in streams.items():
            end = _check_stream(name, by_stream[number], begun.get(number, _Begun()))
            assert end == (v, position, head.hex()), f"{name}: the head is not its last event's"
            if number not in begun:
                _check_snapshot(name, by_stream[number], v, head, state, tuple(asked))
        _check_control(connection, stored)
        _check_private(connection, {number: (row[0], by_stream[number]) for number, row in streams.items()}, begun)
        whole = [each for each in stored if each.stream not in begun]
        _check_inline(connection, whole, inline, [streams[number][0].partition(":")[2] for number in begun])
    return Checked(
        dict(Counter(each.event.topic for each in stored)),
        stored[-1].position if stored else 0,
        {row[0]: row[1] for row in streams.values()},
    )


@contextmanager
def copied(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy with its write-ahead log, so that checking neither recovers nor checkpoints what is checked."""
    if (url := url_of(path)) is not None:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            copy_into(connection, url)
            yield connection
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        for suffix in ("", "-wal"):
            if (beside := path.with_name(path.name + suffix)).exists():
                shutil.copy(beside, f"{copy}{suffix}")
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            yield connection


def _archived(
    connection: sqlite3.Connection, folder: Path, begun: dict[int, _Begun]
) -> Iterator[tuple[int, int, int, int, str]]:
    """I-23: each piece of the archive lies where its row says, in a segment that is what its name says, and is the part
    of its stream before everything that is not archived. Of what is withheld there are hashes, one for each event;
    `begun` is told where a stream goes on behind it."""
    for name, size in connection.execute("SELECT name, bytes FROM segments"):
        data = (folder / name).read_bytes()
        assert size == len(data), f"{name}: not as long as the store says"
        assert name.split("-")[1].split(".")[0] == hashlib.sha256(data).hexdigest(), f"{name}: named by other bytes"
    last_v: dict[int, int] = defaultdict(int)
    for row in connection.execute(
        "SELECT a.stream, a.from_v, a.to_v, a.from_position, a.to_position, a.back, a.head, a.at, g.name, a.at_byte,"
        " a.line, a.withheld, a.generation, a.said_v, a.said_position, a.said FROM archived a"
        " JOIN segments g ON g.id = a.segment ORDER BY a.stream, a.to_v"
    ):
        stream, from_v, to_v, from_position, to_position, back, head, at, name, at_byte, line, *more = row
        withheld, generation, *said = more
        assert last_v[stream] + 1 == from_v, f"stream {stream}: the archive has a gap before version {from_v}"
        last_v[stream] = to_v
        with (folder / name).open("rb") as file:
            file.seek(at_byte)
            member = zlib.decompressobj(31).decompress(file.read())
        raw = member.splitlines()[line : line + to_v - from_v + 1]
        if withheld:
            assert all(each.startswith(b"#") for each in raw), f"stream {stream}/{to_v}: withheld, and still there"
            begun[stream] = _Begun(to_v, to_position, head.hex(), at, generation)
            continue
        lines = [json.loads(each) for each in raw]
        positions = [int(each["position"]) for each in lines]
        bodies = [json.dumps(each["event"], separators=(",", ":"), ensure_ascii=False) for each in lines]
        assert (from_position, to_position) == (positions[0], positions[-1]), f"stream {stream}: other positions"
        assert head == hashlib.sha256(bodies[-1].encode()).digest(), f"stream {stream}/{to_v}: another hash"
        assert at == lines[-1]["event"]["at"], f"stream {stream}/{to_v}: another time"
        assert said == [None, None, None] or said[1:] == [positions[said[0] - from_v], bodies[said[0] - from_v]]
        for v, position, body in zip(range(from_v, to_v + 1), positions, bodies, strict=True):
            yield position, stream, v, back, body
            back = position


def _check_stream(name: str, stored: list[_Stored], begun: _Begun) -> tuple[int, int, str | None]:
    """I-14: versions 1, 2, 3 …; each event linked to the bytes before it; its bytes in the one canonical form. The last
    one's version, position and hash."""
    prev, back, at, generation, v = begun.prev, begun.position, begun.at, begun.generation, begun.v
    behind_withheld = begun.v > 0
    for v, each in enumerate(stored, start=begun.v + 1):
        event, where = each.event, f"{name}/{v}"
        assert (name, v, v) == (event.stream, event.v, each.v), f"{where}: names itself {event.event_id}"
        assert back == each.back, f"{where}: the way back is broken"
        assert prev == event.prev, f"{where}: a broken link"
        assert at <= event.at, f"{where}: time runs back"
        members = json.loads(each.body)
        canonical = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert canonical == each.body, f"{where}: not in canonical form"
        assert None not in members.values(), f"{where}: a null was stored"
        if isinstance(event, GrantIssued | TokenRotated):
            follows = generation is None or generation + 1 == event.generation
            # The row of a withheld piece says what the stream had come to as it moved, by its end or later.
            had_by_then = behind_withheld and generation is not None and event.generation <= generation
            assert follows or had_by_then, f"{where}: a generation is missing or doubled (I-01)"
            generation, behind_withheld = event.generation, False
        prev, back, at = hashlib.sha256(each.body.encode()).hexdigest(), each.position, event.at
    return v, back, prev


def _check_snapshot(
    name: str, stored: list[_Stored], v: int, head: bytes, state: bytes, asked: snapshots.Asked
) -> None:
    """I-13: snapshot and columns beside the head are what a replay comes to."""
    kind = snapshots.KINDS[name.partition(":")[0]]
    replayed = kind()
    for each in stored:
        replayed.evolve(each.event)
    frame = tuple[int, int, bytes, msgspec.Raw, bool]  # and zeros behind it, which only take up room
    form, at_v, at_head, live, _ = msgspec.msgpack.decode(state.rstrip(b"\0"), type=frame)
    assert (snapshots.FORMAT, v, head) == (form, at_v, at_head), f"{name}: the snapshot stands for something else"
    told = msgspec.msgpack.decode(live, type=kind)
    if isinstance(told, Grant):  # the head says its name
        assert told.stream == ""
        told.stream = name
    assert replayed == told, f"{name}: the snapshot is not what a replay comes to"
    columns = [getattr(replayed, each, None) for each in ("generation", "last_redeemed_at", "idle_expires_at")]
    assert (*columns,) == asked, f"{name}: what questions ask is not what a replay comes to"


def _check_control(connection: sqlite3.Connection, stored: list[_Stored]) -> None:
    """I-06: the counter moves with every event of authority, and each grant's event names the one it was decided on."""
    ((counter, floor),) = connection.execute("SELECT counter, position_floor FROM control").fetchall()
    moved = 0
    for each in stored:
        if each.event.stream.partition(":")[0] in AUTHORITY:
            moved += 1
        elif isinstance(each.event, GrantFact):
            assert moved == each.event.control, f"{each.event.event_id}: decided on another control counter"
    assert moved == counter, "the control counter does not count the events of authority"
    assert not floor or floor < stored[-1].position, "positions lag behind an acknowledged restore"


def _check_private(
    connection: sqlite3.Connection, streams: dict[int, tuple[str, list[_Stored]]], begun: Container[int]
) -> None:
    """Private rows say what the events committed to, and the nonce is gone with the end that an event says."""
    salts: dict[int, bytes] = {}
    for row in connection.execute(
        "SELECT stream, client_id, subject_id, nonce, salt, device, session FROM private_grants"
    ):
        number, client_id, subject_id, nonce, salt, device, session = row
        if number in begun:
            continue
        name, stored = streams[number]
        salts[number] = salt
        first = stored[0].event
        assert isinstance(first, GrantIssued | GrantAuthorized), f"{name}: a private row of no grant"
        assert (client_id, subject_id) == (first.client_id, first.subject_id), f"{name}: a private row of another"
        for said, what, text in (
            (getattr(first, "device", None), "device", device),
            (first.session, "session", session),
        ):
            assert said == (None if text is None else _commitment(salt, what, text)), f"{name}: another {what}"
        # The idle end of a refresh token leaves access tokens alone, and their secrets need the nonce.
        ended = any(
            isinstance(each.event, GrantRevoked)
            or (isinstance(each.event, GrantExpired) and each.event.kind == "absolute")
            for each in stored
        )
        assert (nonce is None) or not ended, f"{name}: ended, and its nonce is still there"
        assert nonce is None or hashlib.sha256(nonce).hexdigest() == first.nonce_sha256, f"{name}: another nonce"
        if isinstance(first, GrantAuthorized):
            _check_exchange(name, first, [each.event for each in stored if isinstance(each.event, GrantIssued)])
    for number, said, address, agent in connection.execute(
        "SELECT stream, commitment, address, user_agent FROM private_contexts"
    ):
        if number in begun:
            continue
        assert said == _commitment(salts[number], "context", f"{address}\n{agent}"), "a context row that nobody named"
        assert any(said in each.body for each in streams[number][1]), "a context row that no event names"
    partly = {name for number, (name, _) in streams.items() if number in begun}
    named = {each.event.event_id: each.event for _, stored in streams.values() for each in stored}
    for event_id, salt, text in connection.execute("SELECT event_id, salt, text FROM private_reasons"):
        if event_id.partition("/")[0] in partly:
            continue
        assert getattr(named[event_id], "reason", None) == _commitment(salt, "reason", text), (
            f"{event_id}: another reason"
        )


def _check_exchange(name: str, authorized: GrantAuthorized, issued: list[GrantIssued]) -> None:
    """A code is exchanged once at most (PK-3), while it lives, and what comes of it repeats what was agreed to."""
    assert 1 >= len(issued), f"{name}: a code was exchanged {len(issued)} times"
    for event in issued:
        for member in (
            "client_id",
            "subject_id",
            "client_epoch",
            "subject_epoch",
            "nonce_sha256",
            "issued_by",
            "session",
        ):
            assert getattr(authorized, member) == getattr(event, member), f"{name}: issued with another {member}"
        assert event.at < authorized.code_expires_at, f"{name}: its code had expired"
        assert set(event.scope) <= set(authorized.scope), f"{name}: more scope than was agreed to"


def _commitment(salt: bytes, name: str, value: str) -> str:
    text = json.dumps([salt.hex(), name, value], separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_inline(
    connection: sqlite3.Connection, stored: list[_Stored], inline: Sequence[Inline], but: Sequence[str]
) -> None:
    """I-13: every inline row, but those of some grants, is what its events make when they come one command after the
    other."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as aside:
        for each in inline:
            for statement in each.ddl:
                aside.execute(statement)
        for command in _commands(stored):
            events, positions = [each.event for each in command], [each.position for each in command]
            for projection in inline:
                for index, values in projection.rows(events, positions):
                    aside.execute(projection.writes[index].sql, values)
        for projection in inline:
            select = f"SELECT * FROM {projection.name}"
            some = f" WHERE grant_id NOT IN ({', '.join('?' * len(but))})" if but else ""
            live, replayed = set(connection.execute(select + some, but)), set(aside.execute(select))
            assert set() == live ^ replayed, f"{projection.name}: live and replayed rows differ: {live ^ replayed}"


def _commands(stored: list[_Stored]) -> Iterator[list[_Stored]]:
    """Events that one command appended to one stream together, in log order."""
    together: list[_Stored] = []
    for each in stored:
        if together and (together[0].stream, together[0].event.command_id) != (each.stream, each.event.command_id):
            yield together
            together = []
        together.append(each)
    if together:
        yield together


def replayed(path: Path, name: str) -> Grant:
    """A grant folded from its events alone."""
    with copied(path) as connection:
        rows = connection.execute(
            "SELECT e.body FROM events e JOIN streams s ON s.id = e.stream WHERE s.name = ? ORDER BY e.v", (name,)
        )
        grant = Grant()
        for (body,) in rows.fetchall():
            event = decode(body)
            assert isinstance(event, GrantEvent)
            grant.evolve(event)
        return grant
