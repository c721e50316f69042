"""All events folded anew, aside: what every snapshot and every inline row must be, and whether the history holds.

A replay reads what is archived stream by stream, then the rest of the log in order of positions. What it comes to is
kept in a private temporary database: SQLite makes the file with mode 0600, unlinks it at once, and its pages leave
memory as it grows. Streams touched lately stay in memory, so the work is one pass whatever their number. It can go on
later from where it stopped.

Links checked on the way (I-14): versions without gap, `back` to the event before, `prev` the hash of its stored bytes,
columns equal to the members they repeat, one stream a name, what the archive's rows say of its lines
(`archive_rows.py`). What is wrong breaks that stream: nothing after it is folded. Beside them: how often authority had
changed when an event of a grant was decided (`authority_changes.py`).
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from ledger import snapshots
from ledger.events import AnyEvent
from ledger.grant import Grant
from ledger.inline import Inline, Write
from ledger.recorders.errors import ArchiveDamaged
from ledger.recorders.reading import LAST_POSITION_MAX
from ledger.recorders.rows import Piece, RawEvent, Reads, StreamKey
from projections.archive_rows import ARCHIVE, UNFOUNDED, Claims, check_withheld, decoded, events_of
from projections.authority_changes import CONTROL, AuthorityChanges, event_at
from projections.private_rows import PrivateRows

PAGE_EVENTS: Final = 1_000
PAGE_PIECES: Final = 100
STREAMS_IN_MEMORY_MAX: Final = 8_000
_FLUSHED_STREAMS: Final = STREAMS_IN_MEMORY_MAX // 2
_OF_AUTHORITY: Final = "SELECT id, v, head, state FROM replayed WHERE name = ? AND substr(name, 1, 6) <> 'grant:'"
_WITHOUT_NONCE: Final = (
    "SELECT id, name, v, head, state FROM replayed WHERE substr(name, 1, 6) = 'grant:'"
    " AND id NOT IN (SELECT id FROM nonces)"
)
_EXPIRED_AS_IT_MOVED: Final = "SELECT 1 FROM archived WHERE stream = ? AND state = 'expired' LIMIT 1"
_SEGMENTS: Final = (
    "SELECT s.name, s.finished, EXISTS (SELECT 1 FROM archived a WHERE a.segment = s.id) FROM segments s ORDER BY s.id"
)
_SPENT: Final = "SELECT position FROM events WHERE position > ? ORDER BY position LIMIT 9"
_NO_MORE: Final = "no log comes to such a position, above which none is left"
_SAME_NAME: Final = "another stream of the log has this name"
_HEADLESS: Final = "its events are withheld, and no head tells what they came to"


class Broken(NamedTuple):
    """Where the history does not hold: the event, the column or member, and what is wrong with it in one line."""

    event_id: str
    column: str
    problem: str


class ReplayedStream(NamedTuple):
    """The head that a stream must have: as in the table `streams`."""

    id: StreamKey
    name: str
    v: int
    position: int
    head: bytes
    state: bytes
    generation: int | None
    last_redeemed_at: int | None
    idle_expires_at: int | None


class _Open:
    """A stream under replay."""

    __slots__ = ("aggregate", "head", "name", "position", "v")

    def __init__(self, name: str, v: int, position: int, head: bytes, aggregate: Any) -> None:
        self.name = name
        self.v = v
        self.position = position
        self.head = head
        self.aggregate = aggregate

    def row(self) -> tuple[object, ...]:
        """As it stands in `replayed`, but for its key."""
        state = snapshots.encode(self.v, self.head, self.aggregate)
        return self.name, self.v, self.position, self.head, state, *snapshots.asked(self.aggregate)


class Replay:
    """One replay. For one thread at a time, not always the same one."""

    def __init__(self, inline: Sequence[Inline]) -> None:
        self.inline = tuple(inline)
        self.position = 0
        self.events = 0
        self.broken: list[Broken] = []
        self._broken_streams: set[StreamKey] = set()
        self._open: dict[StreamKey, _Open] = {}
        self._folded: dict[StreamKey, None] = {}  # those of them that the scratch database does not have as they are
        self._command: list[AnyEvent] = []
        self._positions: list[int] = []
        self._key: tuple[StreamKey, str] = (0, "")
        self._claims: Claims
        self._rows: list[list[list[tuple[object, ...]]]] = [[[] for _ in each.writes] for each in self.inline]
        # An empty name is a private temporary database on disk, gone when it is closed or the process dies.
        self.scratch = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self.scratch.execute("PRAGMA journal_mode=OFF")
        self.scratch.execute("PRAGMA synchronous=OFF")
        self.scratch.execute(
            "CREATE TABLE replayed (id ANY PRIMARY KEY, name TEXT NOT NULL, v INTEGER NOT NULL,"
            " position INTEGER NOT NULL, head BLOB NOT NULL, state BLOB NOT NULL, generation INTEGER,"
            " last_redeemed_at INTEGER, idle_expires_at INTEGER) STRICT"
        )
        self.scratch.execute("CREATE INDEX replayed_names ON replayed (name) WHERE substr(name, 1, 6) <> 'grant:'")
        self.scratch.execute(
            "CREATE TABLE withheld (id ANY PRIMARY KEY, name TEXT NOT NULL UNIQUE, to_v INTEGER NOT NULL) STRICT"
        )
        self.scratch.execute("CREATE TABLE names (name TEXT PRIMARY KEY, id ANY NOT NULL) STRICT, WITHOUT ROWID")
        self._changes = AuthorityChanges(self.scratch)
        self.private = PrivateRows(self.scratch)
        for each in self.inline:
            for statement in each.ddl:
                self.scratch.execute(statement)
        self._statements = [[_scratch_sql(write) for write in each.writes] for each in self.inline]
        self.scratch.execute("BEGIN")

    def close(self) -> None:
        """Forget everything."""
        self.scratch.close()

    def follow(self, reads: Reads) -> Iterator[int]:
        """Replay what has been appended since, page by page; each step says at which position it is now.

        What lies in the archive comes first, so that each stream is read from its beginning.
        """
        self._claims = Claims(self.scratch)
        yield from self._follow_archive(reads)
        while page := reads.raw_after(self.position, PAGE_EVENTS):
            for stored in page:
                self._take(reads, stored, decoded(stored.body))
            self.position = page[-1].position
            self.events += len(page)
            self._write_rows()
            self._spill()
            yield self.position
        self._project()
        self._write_rows()
        self._keep(list(self._folded))
        for stream, v in self._claims.unfounded(lambda name: self._authority(reads, name)):
            if stream not in self._broken_streams:
                self._break(stream, Broken(f"{_name(reads, stream)}/{v}", ARCHIVE, UNFOUNDED))

    def _authority(self, reads: Reads, name: str) -> Any:
        """What a client or person has come to by its events; None where they do not hold."""
        for id, v, head, state in self.scratch.execute(_OF_AUTHORITY, (name,)).fetchall():
            broken = id in self._broken_streams
            return None if broken else snapshots.decode(state, name, v, head, snapshots.kind_of(name))
        return None if reads.stream(name) is not None else snapshots.kind_of(name)()

    def check_control(self, reads: Reads) -> list[Broken]:
        """Hold the changes of authority against what was decided under them, and the table `control` against both.
        Where events do not hold anyway, or are withheld, nobody can count; that its row is gone is so all the same."""
        if not reads.select("SELECT 1 FROM control"):
            return [Broken(CONTROL, "counter", "its row is gone: how often authority has changed it does not say")]
        ((withheld,),) = self.scratch.execute("SELECT count(*) FROM withheld WHERE substr(name, 1, 6) <> 'grant:'")
        return [] if self.broken or withheld else [Broken(*each) for each in self._changes.problems(reads)]

    def check_positions(self, reads: Reads) -> list[Broken]:
        """Look for a position above which none is left: nothing could be appended, and no page leads to it."""
        found = [
            Broken(event_at(reads, int(str(position))), "position", _NO_MORE)
            for (position,) in reads.select(_SPENT, (LAST_POSITION_MAX,))
        ]
        if reads.select("SELECT 1 FROM control WHERE position_floor > ?", (LAST_POSITION_MAX,)):
            found.append(Broken(CONTROL, "position_floor", _NO_MORE))
        return found

    def living_without_nonce(self, reads: Reads, at: int) -> Iterator[str]:
        """Grants that have not ended by a moment and yet hold no nonce, by name; to be asked after private rows were
        compared. Where nobody can tell whether one has ended, or a clock once said so, it is passed by."""
        for id, name, v, head, state in self.scratch.execute(_WITHOUT_NONCE):
            grant = snapshots.decode(state, name, v, head, Grant)
            if grant is None or id in self._broken_streams or grant.judge(at, None).ended:
                continue
            client = self._authority(reads, f"client:{grant.client_id}")
            subject = self._authority(reads, f"subject:{grant.subject_id}")
            if client is None or client.epoch.hits(grant.client_epoch, grant.issued_at):
                continue
            if subject is None or subject.erased or subject.epoch.hits(grant.subject_epoch, grant.issued_at):
                continue
            if not reads.select(_EXPIRED_AS_IT_MOVED, (id,)):
                yield name

    def check_segments(self, reads: Reads) -> Iterator[None]:
        """Hold every segment against its name, and against what names it; a step each."""
        for name, finished, named in reads.select(_SEGMENTS):
            if finished == 2 and named:
                self.broken.append(Broken(str(name), ARCHIVE, "it counts as replaced, and pieces still lie in it"))
            if finished != 2 or named:
                try:
                    reads.check_segment(str(name))
                except ArchiveDamaged as error:
                    self.broken.append(Broken(str(name), ARCHIVE, str(error)))
            yield

    def _follow_archive(self, reads: Reads) -> Iterator[int]:
        last: tuple[StreamKey, int] | None = None
        while pieces := reads.pieces(last, self.position, PAGE_PIECES):
            for piece in pieces:
                last = (piece.stream, piece.to_v)
                self._take_piece(reads, piece)
            self._write_rows()
            self._spill()
            yield self.position

    def _take_piece(self, reads: Reads, piece: Piece) -> None:
        if piece.stream in self._broken_streams:
            return
        try:
            lines = reads.lines(piece)
            if piece.withheld:
                check_withheld(piece, lines)
                self._claims.check_head(reads, piece)
            else:
                events = events_of(piece, lines)
        except ArchiveDamaged as error:
            self._break(piece.stream, Broken(f"{_name(reads, piece.stream)}/{piece.from_v}", ARCHIVE, str(error)))
            return
        if piece.withheld:
            self._withhold(reads, piece)
            return
        back = piece.back
        for v, (position, body, event) in enumerate(events, start=piece.from_v):
            if position > self.position:  # else it was there to be followed before it was archived
                self._take(reads, RawEvent(position, piece.stream, v, back, body), event)
                self.events += 1
            back = position
        known = self._open.get(piece.stream)
        if known is not None and piece.stream not in self._broken_streams:
            self._claims.made(piece, known.aggregate)

    def _withhold(self, reads: Reads, piece: Piece) -> None:
        """Nothing of this stream can be replayed: what its first events came to nobody can tell any more."""
        self._claims.forget(piece.stream)
        heads = reads.select("SELECT name FROM streams WHERE id = ?", (piece.stream,))
        if not heads:
            self._break(piece.stream, Broken(f"stream {piece.stream}/{piece.to_v}", ARCHIVE, _HEADLESS))
        for (name,) in heads:
            if self._is_anothers(str(name), piece.stream):
                self._break(piece.stream, Broken(f"{name}/{piece.to_v}", ARCHIVE, _SAME_NAME))
                return
            self._open.pop(piece.stream, None)
            self._folded.pop(piece.stream, None)
            self.scratch.execute("DELETE FROM replayed WHERE id = ?", (piece.stream,))
            self.scratch.execute("INSERT OR REPLACE INTO withheld VALUES (?, ?, ?)", (piece.stream, name, piece.to_v))

    # ------------------------------------------------------------ what it came to

    def withholds(self, id: StreamKey) -> bool:
        """Whether a stream cannot be replayed, since the archive's time for its events is over."""
        return bool(self.scratch.execute("SELECT 1 FROM withheld WHERE id = ?", (id,)).fetchone())

    def withholds_grant(self, grant_id: str) -> bool:
        """The same of a grant's stream."""
        return bool(self.scratch.execute("SELECT 1 FROM withheld WHERE name = ?", (f"grant:{grant_id}",)).fetchone())

    def withheld(self, limit: int) -> tuple[int, list[str]]:
        """How many streams cannot be replayed; some of them, each with its last withheld event's id."""
        ((count,),) = self.scratch.execute("SELECT count(*) FROM withheld")
        rows = self.scratch.execute("SELECT name || '/' || to_v FROM withheld ORDER BY id LIMIT ?", (limit,))
        return count, [name for (name,) in rows]

    def tells_of(self, id: StreamKey) -> bool:
        """Whether a stream is named elsewhere, for what is wrong with it or because it is withheld."""
        return id in self._broken_streams or self.withholds(id)

    def stream_is_broken(self, id: StreamKey) -> bool:
        """Whether a stream's history does not hold; it was then folded only as far as it seemed to."""
        return id in self._broken_streams

    def streams_after(self, id: StreamKey | None, limit: int) -> list[ReplayedStream]:
        """Streams in order of their keys, from the first where `id` is None."""
        if id is None:
            rows = self.scratch.execute("SELECT * FROM replayed ORDER BY id LIMIT ?", (limit,))
        else:
            rows = self.scratch.execute("SELECT * FROM replayed WHERE id > ? ORDER BY id LIMIT ?", (id, limit))
        return [ReplayedStream(*row) for row in rows]

    def stream(self, id: StreamKey) -> ReplayedStream | None:
        """One stream by its key."""
        row = self.scratch.execute("SELECT * FROM replayed WHERE id = ?", (id,)).fetchone()
        return ReplayedStream(*row) if row else None

    # ------------------------------------------------------------ one event

    def _take(self, reads: Reads, stored: RawEvent, event: AnyEvent | None) -> None:
        if stored.stream in self._broken_streams:
            return
        known = self._open.get(stored.stream) or self._recalled(stored.stream)
        if known is None and stored.v > 1 and self.withholds(stored.stream):
            return
        if event is None:
            problem: tuple[str, str] | None = ("body", "the stored bytes are no event")
        else:
            problem = self._fold(known, stored, event)
        if problem is not None:
            self._break(stored.stream, Broken(f"{_name(reads, stored.stream)}/{stored.v}", *problem))

    def _break(self, stream: StreamKey, broken: Broken) -> None:
        self._broken_streams.add(stream)
        self.broken.append(broken)

    def _fold(self, known: _Open | None, stored: RawEvent, event: AnyEvent) -> tuple[str, str] | None:
        """Fold one event into its stream and its command; what is wrong with it instead: (column, problem)."""
        if known is None:
            kind = snapshots.KINDS.get(event.stream.partition(":")[0])
            if kind is None:
                return "stream", "the event names no stream of any kind"
            known = _Open(event.stream, 0, 0, b"", kind())
        problem = _link_problem(known, stored, event)
        if problem is not None:
            return problem
        if not known.v and self._is_anothers(known.name, stored.stream):
            return "stream", _SAME_NAME
        try:
            known.aggregate.evolve(event)
        except Exception as error:  # what was altered may break the fold in any way: that is the finding
            return "body", f"the event cannot be folded: {type(error).__name__}"
        known.v = stored.v
        known.position = stored.position
        known.head = hashlib.sha256(stored.body).digest()
        self._open[stored.stream] = known
        self._folded[stored.stream] = None
        self._claims.moved_on(stored.stream, known.aggregate)
        self._changes.heed(event, stored.position)
        self.private.heed(event, stored.stream)
        key = (stored.stream, event.command_id)
        if key != self._key:
            self._project()
            self._key = key
        self._command.append(event)
        self._positions.append(stored.position)
        return None

    def _is_anothers(self, name: str, stream: StreamKey) -> bool:
        """Whether another stream has had this name: a copy of its first events would take its place in what is written
        anew. From here on the name is this one's, where it was nobody's."""
        self.scratch.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (name, stream))
        ((id,),) = self.scratch.execute("SELECT id FROM names WHERE name = ?", (name,))
        return bool(id != stream)

    def _project(self) -> None:
        """The inline rows of the command that has just ended. One command's events of one stream stand together."""
        if self._command:
            for rows, each in zip(self._rows, self.inline, strict=True):
                for index, parameters in each.rows(self._command, self._positions):
                    rows[index].append(parameters)
            self._command = []
            self._positions = []

    def _write_rows(self) -> None:
        for statements, kinds in zip(self._statements, self._rows, strict=True):
            for statement, rows in zip(statements, kinds, strict=True):
                if rows:
                    self.scratch.executemany(statement, rows)
                    rows.clear()
        self._changes.write()
        self.private.write()

    # ------------------------------------------------------------ streams out of memory

    def _recalled(self, id: StreamKey) -> _Open | None:
        found = self.stream(id)
        if found is None:
            return None
        aggregate = snapshots.decode(found.state, found.name, found.v, found.head, snapshots.kind_of(found.name))
        assert aggregate is not None, "what was just encoded can be read"
        opened = self._open[id] = _Open(found.name, found.v, found.position, found.head, aggregate)
        return opened

    def _spill(self) -> None:
        if len(self._open) > STREAMS_IN_MEMORY_MAX:
            oldest = list(self._open)[:_FLUSHED_STREAMS]
            self._keep([id for id in oldest if id in self._folded])
            for id in oldest:
                del self._open[id]

    def _keep(self, ids: Sequence[StreamKey]) -> None:
        rows = ((id, *self._open[id].row()) for id in ids)
        self.scratch.executemany("INSERT OR REPLACE INTO replayed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for id in ids:
            del self._folded[id]


def _name(reads: Reads, stream: StreamKey) -> str:
    """A stream's name as its head has it: what an altered event says of itself is not to be believed."""
    for (name,) in reads.select("SELECT name FROM streams WHERE id = ?", (stream,)):
        return str(name)
    return f"stream {stream}"


def _link_problem(known: _Open, stored: RawEvent, event: AnyEvent) -> tuple[str, str] | None:
    """What does not fit between an event and the one before it: (column, problem)."""
    if event.stream != known.name:
        return "stream", f"the event says it is of {event.stream}"
    if event.v != stored.v:
        return "v", f"the column says {stored.v}, the event {event.v}"
    if stored.v != known.v + 1:
        return "v", f"version {stored.v} follows version {known.v}"
    if stored.back != known.position:
        return "back", f"it points to position {stored.back}, the event before is at {known.position}"
    if event.prev != (known.head.hex() if known.v else None):
        return "prev", f"it is not the hash of the bytes of {known.name}/{known.v}"
    return None


def _scratch_sql(write: Write) -> str:
    # A history that was altered may issue twice; the replay must come to its end and say so.
    return write.sql.replace("INSERT INTO", "INSERT OR REPLACE INTO", 1)
