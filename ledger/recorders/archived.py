"""What a store knows of its archive: one row for each piece, which is a run of one stream's events in one block.

An event lies in `events` or in a piece, never in both: the transaction that writes a piece's row deletes its events. So
a reader, who sees one committed moment, finds each event in exactly one place. One whose questions each see a moment of
their own finds it too, as long as it looks into `events` first: events only ever move from there into the archive.

Questions are written in what both engines read. What is written is SQLite's; a store that puts a batch's work into one
call knows these statements by their texts (`postgres_archive.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ledger.recorders.errors import ArchiveDamaged, Withheld
from ledger.recorders.rows import Piece, Reads, StoredEvent, StreamKey
from ledger.segments import SegmentStore, event_of

TABLES: Final = (
    # One row a closed segment. `finished` is 0 as long as some of its lines may still lie in `events` too, or, where it
    # `replaces` another, as long as some pieces still name that one; 2 once it was replaced, and its file is to go.
    "CREATE TABLE IF NOT EXISTS segments (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL,"
    " replaces INTEGER, finished INTEGER NOT NULL) STRICT",
    # What is left of the events that moved: which ones, where they lie, the hash of the last one, its time, and what
    # the stream had come to by its own events: state, reason class, generation. `said` is the last event of the piece
    # that a standing follows from: lists of grants need it. `back` is the position of the event before the piece.
    "CREATE TABLE IF NOT EXISTS archived (stream INTEGER NOT NULL, to_v INTEGER NOT NULL, from_v INTEGER NOT NULL,"
    " from_position INTEGER NOT NULL, to_position INTEGER NOT NULL, back INTEGER NOT NULL, head BLOB NOT NULL,"
    " at TEXT NOT NULL, state TEXT NOT NULL, reason TEXT, generation INTEGER, segment INTEGER NOT NULL,"
    " at_byte INTEGER NOT NULL, line INTEGER NOT NULL, withheld INTEGER NOT NULL, said_v INTEGER,"
    " said_position INTEGER, said TEXT, PRIMARY KEY (stream, to_v)) STRICT, WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS archived_positions ON archived (stream, to_position)",
    "CREATE INDEX IF NOT EXISTS archived_ends ON archived (to_position)",
    "CREATE INDEX IF NOT EXISTS archived_said ON archived (said_position) WHERE said_position IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS archived_segments ON archived (segment)",
)

ADD_SEGMENT: Final = "INSERT INTO segments VALUES (?, ?, ?, ?, 0) ON CONFLICT (id) DO NOTHING"
FINISH_SEGMENT: Final = "UPDATE segments SET finished = 1 WHERE id = ?"
REPLACE_SEGMENT: Final = "UPDATE segments SET finished = 2 WHERE id = ?"
DROP_SEGMENT: Final = "DELETE FROM segments WHERE id = ? AND finished = 2"
ADD_PIECE: Final = (
    "INSERT INTO archived VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)"
    " ON CONFLICT (stream, to_v) DO NOTHING"
)
MOVE_PIECE: Final = (
    "UPDATE archived SET segment = ?, at_byte = ?, withheld = ? WHERE stream = ? AND to_v = ? AND segment = ?"
)
DELETE_EVENTS: Final = (
    "DELETE FROM events WHERE position IN (SELECT value FROM json_each(?))"
    " AND EXISTS (SELECT 1 FROM archived WHERE stream = ? AND to_v = ?)"
)
"""A JSON array of positions, and the piece that must be there before they go."""

ANY_OF_SEGMENT: Final = "SELECT 1 FROM archived a JOIN segments g ON g.id = a.segment WHERE g.name = ? LIMIT 1"
LAST_MOVED: Final = (
    "SELECT to_v FROM archived WHERE stream = (SELECT id FROM streams WHERE name = ?) ORDER BY to_v DESC LIMIT 1"
)
HAS_NONCE: Final = "SELECT 1 FROM private_grants WHERE stream = ? AND nonce IS NOT NULL"

NOT_TO_BE_MOVED: Final = "SELECT name FROM segments WHERE finished > 0 OR replaces IS NOT NULL"
REPLACING: Final = "SELECT name, replaces FROM segments WHERE finished = 0 AND replaces IS NOT NULL ORDER BY id"
NAME: Final = "SELECT name FROM segments WHERE id = ?"
REPLACED: Final = (
    "SELECT id, name FROM segments WHERE finished = 2"
    " AND NOT EXISTS (SELECT 1 FROM archived a WHERE a.segment = segments.id) ORDER BY id"
)
FINISHED: Final = (
    "SELECT id FROM segments WHERE finished = 1"
    " AND NOT EXISTS (SELECT 1 FROM segments r WHERE r.replaces = segments.id AND r.finished = 0) ORDER BY id"
)
WHOLE_IN_SEGMENT: Final = (
    "SELECT a.stream, a.to_v, s.name, s.v, s.head, s.state FROM archived a JOIN streams s ON s.id = a.stream"
    " JOIN archived z ON z.stream = s.id AND z.to_v = s.v WHERE a.segment = ? AND a.withheld = 0"
)
"""Of the pieces in a segment those whose stream lies in the archive whole, with its snapshot."""
NEWEST: Final = "SELECT at FROM archived ORDER BY to_position DESC LIMIT 1"

_PIECE: Final = (
    "SELECT a.stream, a.from_v, a.to_v, a.from_position, a.to_position, a.back, a.head, g.id, g.name, a.at_byte,"
    " a.line, a.withheld, a.said_v, a.said_position, a.said, a.at, a.state, a.reason, a.generation FROM archived a"
    " JOIN segments g ON g.id = a.segment"
)
_BY_VERSION: Final = f"{_PIECE} WHERE a.stream = ? AND a.to_v >= ? ORDER BY a.to_v LIMIT ?"
_OF_NAME: Final = "a.stream = (SELECT id FROM streams WHERE name = ?)"
_BY_POSITION: Final = f"{_PIECE} WHERE {_OF_NAME} AND a.to_position >= ? ORDER BY a.to_position LIMIT 1"
ANY_AFTER: Final = "SELECT 1 FROM archived WHERE to_position > ? LIMIT 1"
_FIRST: Final = f"{_PIECE} WHERE a.to_position > ? ORDER BY a.stream, a.to_v LIMIT ?"
_AFTER: Final = f"{_PIECE} WHERE (a.stream, a.to_v) > (?, ?) AND a.to_position > ? ORDER BY a.stream, a.to_v LIMIT ?"
_OF_SEGMENT: Final = f"{_PIECE} WHERE a.segment = ? ORDER BY a.at_byte, a.line"

PIECES_A_PAGE: Final = 50

_STREAMS: Final = (
    "SELECT t.id, t.name, t.v, t.position, t.head, t.state,"
    " (SELECT max(b.to_v) FROM archived b WHERE b.stream = t.id) AS moved_v FROM streams t"
)
_MOVABLE: Final = (
    "SELECT s.id, s.name, s.v, s.position, s.head, CASE WHEN s.v > coalesce(s.moved_v, 0) THEN s.state END, s.moved_v,"
    " (SELECT a.head FROM archived a WHERE a.stream = s.id AND a.to_v = s.moved_v) FROM ({}) s ORDER BY s.id"
)
MOVABLE_FIRST: Final = _MOVABLE.format(f"{_STREAMS} ORDER BY t.id LIMIT ?")
MOVABLE_AFTER: Final = _MOVABLE.format(f"{_STREAMS} WHERE t.id > ? ORDER BY t.id LIMIT ?")
"""Streams by key, a page of them whether they have events outside the archive or not: with those that have, the
snapshot; and the last version of those inside with its hash. It is streams that are counted, so however many lie in the
archive whole a page takes no longer."""


class Archived:
    """Questions about what was archived. Raises StoreError."""

    __slots__ = ("_block", "_select")

    def __init__(
        self, select: Callable[[str, Sequence[object]], list[Any]], block: Callable[[Piece], list[bytes]]
    ) -> None:
        """`select` runs a statement written with `?`; `block` gives all lines of the block that a piece lies in."""
        self._select = select
        self._block = block

    def events(self, stream: StreamKey, from_v: int, to_v: int) -> list[StoredEvent]:
        """Those events of a stream from `from_v` to `to_v` that lie in the archive, oldest first.

        Raises Withheld where the bytes of one were given up.
        """
        found: list[StoredEvent] = []
        for piece in self._from(stream, from_v, to_v):
            low, high = max(from_v, piece.from_v), min(to_v, piece.to_v)
            if piece.withheld:
                found.append(self._said(piece, low, high))
            else:
                found += self._stored(piece)[low - piece.from_v : high - piece.from_v + 1]
        return found

    def _from(self, stream: StreamKey, from_v: int, to_v: int) -> Iterator[Piece]:
        """The pieces of a stream with these versions; no more of them are asked for than there can be."""
        while from_v <= to_v:
            page = self._pieces(_BY_VERSION, (stream, from_v, min(PIECES_A_PAGE, to_v - from_v + 1)))
            for piece in page:
                if piece.from_v > to_v:
                    return
                yield piece
            if not page:
                return
            from_v = page[-1].to_v + 1

    def at_position(self, name: str, position: int) -> StoredEvent | None:
        """The archived event of a stream at a position; None where that is in no piece. Raises Withheld."""
        for piece in self._pieces(_BY_POSITION, (name, position)):
            if piece.withheld:
                wanted = piece.said_v if piece.said_position == position and piece.said_v else 0
                return self._said(piece, wanted, wanted)
            return next((each for each in self._stored(piece) if each.position == position), None)
        return None

    def pieces(self, after: tuple[StreamKey, int] | None, above: int, limit: int) -> list[Piece]:
        """Pieces by stream and version after (stream, version), None for the first ones, of those with an event above a
        position."""
        if not self._select(ANY_AFTER, (above,)):  # else all of them would be looked at, to find none
            return []
        if after is None:
            return self._pieces(_FIRST, (above, limit))
        return self._pieces(_AFTER, (*after, above, limit))

    def of_segment(self, segment: int) -> list[Piece]:
        """All pieces that lie in a segment, in its order."""
        return self._pieces(_OF_SEGMENT, (segment,))

    def _pieces(self, sql: str, parameters: Sequence[object]) -> list[Piece]:
        return [Piece(*row) for row in self._select(sql, parameters)]

    def lines(self, piece: Piece) -> list[bytes]:
        """The lines of a piece, oldest first, withheld or not. Raises ArchiveDamaged where there are not so many."""
        count = piece.to_v - piece.from_v + 1
        found = self._block(piece)[piece.line : piece.line + count]
        if len(found) != count:
            raise _other_lines(piece)
        return found

    def _stored(self, piece: Piece) -> list[StoredEvent]:
        found, back = [], piece.back
        for v, line in enumerate(self.lines(piece), start=piece.from_v):
            event = event_of(line)
            if event is None:
                raise _other_lines(piece)
            position, body = event
            found.append(StoredEvent(position, piece.stream, v, back, body.decode()))
            back = position
        return found

    def _said(self, piece: Piece, from_v: int, to_v: int) -> StoredEvent:
        """The one event of a withheld piece that is still there, where it alone is asked for."""
        if piece.said is None or piece.said_position is None or not from_v == to_v == piece.said_v:
            raise Withheld(f"versions {piece.from_v} to {piece.to_v} of stream {piece.stream}")
        return StoredEvent(piece.said_position, piece.stream, to_v, 0, piece.said)


def _other_lines(piece: Piece) -> ArchiveDamaged:
    return ArchiveDamaged(f"{piece.name}: the block at byte {piece.at_byte} holds other lines than the store says")


def next_number(reads: Reads, segments: SegmentStore) -> int:
    """The number of the next segment: above every one that the store names or that lies there."""
    last = reads.select("SELECT coalesce(max(id), 0) FROM segments")[0][0]
    assert isinstance(last, int)
    return max(last, segments.last_number()) + 1
