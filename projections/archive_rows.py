"""What the store's rows about its archive say, held against the lines themselves.

A row is shown, and decides what is withheld, so one that was altered is a history that does not hold. What a piece's
row says of its lines can be seen at once. What it says of the stream, state, reason class and generation, is what that
had come to when the piece moved, at the piece's last event or at a later one: it holds if it does so at one of them.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec

from ledger import snapshots, times
from ledger.events import AnyEvent, decode
from ledger.grant import Grant
from ledger.moving import SAYING
from ledger.recorders.errors import ArchiveDamaged
from ledger.recorders.rows import Piece, Reads, StreamKey
from ledger.segments import event_of, line_of, withheld

ARCHIVE: Final = "archive"
UNFOUNDED: Final = "its row in `archived` says a state, reason or generation that the stream never had since"

_COLUMNS: Final = ("from_position", "to_position", "head", "at", "said_v", "said_position", "said")
_HEAD: Final = "SELECT name, v, position, head, state FROM streams WHERE id = ? AND v = ?"

AUTHORITIES_IN_MEMORY_MAX: Final = 1_000

Claim: TypeAlias = tuple[str, str | None, int | None]


def decoded(body: bytes) -> AnyEvent | None:
    """The event of some stored bytes; None where they are none."""
    try:
        return decode(body)
    except msgspec.DecodeError:
        return None


def events_of(piece: Piece, lines: Sequence[bytes]) -> list[tuple[int, bytes, AnyEvent | None]]:
    """Position, stored bytes and event of each line of a piece. Raises ArchiveDamaged where its row says otherwise."""
    found = []
    for line in lines:
        read = event_of(line)
        if read is None:
            raise ArchiveDamaged(f"{piece.name}: a line of the piece is withheld, and its row does not say so")
        found.append((*read, decoded(read[1])))
    position, body, last = found[-1]
    said: tuple[object, ...] = (None, None, None)
    for v, (said_position, said_body, event) in enumerate(found, start=piece.from_v):
        if isinstance(event, SAYING):
            said = v, said_position, said_body
    must_be = (found[0][0], position, hashlib.sha256(body).digest(), piece.at if last is None else last.at, *said)
    is_now = (
        piece.from_position, piece.to_position, piece.head, piece.at,
        piece.said_v, piece.said_position, None if piece.said is None else piece.said.encode(),
    )  # fmt: skip
    for column, says, is_so in zip(_COLUMNS, is_now, must_be, strict=True):
        if says != is_so:
            raise ArchiveDamaged(f"{piece.name}: the lines of the piece are not what its row says: {column}")
    return found


def check_withheld(piece: Piece, lines: Sequence[bytes]) -> None:
    """Every line of a withheld piece is a hash, and what is left of it is the text of one. Raises ArchiveDamaged."""
    if any(event_of(line) is not None for line in lines):
        raise ArchiveDamaged(f"{piece.name}: the row of the piece says that it is withheld, and a line of it is not")
    if piece.said_v is None and piece.said_position is None and piece.said is None:
        return
    at = (piece.said_v or 0) - piece.from_v
    if not 0 <= at < len(lines) or lines[at] != withheld(
        line_of(piece.said_position or 0, (piece.said or "").encode())
    ):
        raise ArchiveDamaged(f"{piece.name}: what the row of the piece still tells is not what was withheld: said")


class Claims:
    """What rows say of streams, as far as it has not been true yet. That an epoch ended a grant is looked at last, when
    all clients and persons have been replayed."""

    def __init__(self, scratch: sqlite3.Connection) -> None:
        """What only an epoch can bear out is written down in `scratch`: it may be all grants of a large archive."""
        self._open: dict[StreamKey, dict[Claim, int]] = {}
        self._scratch = scratch
        scratch.execute(
            "CREATE TABLE IF NOT EXISTS by_epoch (stream ANY PRIMARY KEY, to_v INTEGER, client TEXT, subject TEXT,"
            " of_client INTEGER, of_subject INTEGER, issued_at INTEGER) STRICT"
        )
        scratch.execute("DELETE FROM by_epoch")

    def made(self, piece: Piece, aggregate: Any) -> None:
        """A piece of a stream that has come to `aggregate` with the piece's last event."""
        claim = (piece.state, piece.reason, piece.generation)
        if not self._holds(piece.stream, piece.to_v, claim, aggregate):
            self._open.setdefault(piece.stream, {})[claim] = piece.to_v

    def check_head(self, reads: Reads, piece: Piece) -> None:
        """The same of a withheld piece that a stream ends with: its head tells what nobody can fold any more. Raises
        ArchiveDamaged."""
        for name, v, position, head, state in reads.select(_HEAD, (piece.stream, piece.to_v)):
            aggregate = snapshots.decode(state, name, v, head, snapshots.kind_of(name))  # type: ignore[arg-type]  # the tables are STRICT
            claim = (piece.state, piece.reason, piece.generation)
            if (position, head) != (piece.to_position, piece.head) or not (
                aggregate is None
                or (self._holds(piece.stream, piece.to_v, claim, aggregate) and aggregate.at == times.known(piece.at))
            ):
                raise ArchiveDamaged(f"{piece.name}: the row of a withheld piece is not what its stream's head says")

    def moved_on(self, stream: StreamKey, aggregate: Any) -> None:
        """A stream has come to `aggregate` with one more event."""
        claims = self._open.get(stream)
        if claims is not None:
            self._open[stream] = {
                claim: v for claim, v in claims.items() if not self._holds(stream, v, claim, aggregate)
            }
            if not self._open[stream]:
                del self._open[stream]

    def forget(self, stream: StreamKey) -> None:
        """Nobody can tell any more."""
        self._open.pop(stream, None)

    def unfounded(self, replayed: Callable[[str], Any]) -> Iterator[tuple[StreamKey, int]]:
        """Whatever was never true: the stream, and the last version of the piece. `replayed` gives what a client or
        person has come to, None where that cannot be told: then nothing is held against a row."""
        for stream, claims in self._open.items():
            yield stream, min(claims.values())
        seen = lru_cache(AUTHORITIES_IN_MEMORY_MAX)(replayed)
        rows = "SELECT stream, to_v, client, subject, of_client, of_subject, issued_at FROM by_epoch ORDER BY subject"
        for stream, v, client_id, subject_id, of_client, of_subject, issued_at in self._scratch.execute(rows):
            client, subject = seen(f"client:{client_id}"), seen(f"subject:{subject_id}")
            if client is None or subject is None or client.epoch.hits(of_client, issued_at):
                continue
            if not subject.epoch.hits(of_subject, issued_at):
                yield stream, v

    def _holds(self, stream: StreamKey, v: int, claim: Claim, aggregate: Any) -> bool:
        state, reason, generation = claim
        if not isinstance(aggregate, Grant):
            return claim == ("active", None, None)
        if generation != aggregate.generation:
            return False
        own, stopped = aggregate.end, aggregate.suspension
        if own is not None:
            return (state, reason) == (own.status, own.reason_class)
        if (state, reason) == ("expired", "expiry"):
            return aggregate.idle_expires_at is not None  # a clock said so, which may have been wrong
        if (state, reason) == ("revoked", None):
            ids, epochs = (aggregate.client_id, aggregate.subject_id), (aggregate.client_epoch, aggregate.subject_epoch)
            row = (stream, v, *ids, *epochs, aggregate.issued_at)
            self._scratch.execute("INSERT OR REPLACE INTO by_epoch VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            return True
        return (state, reason) == (("active", None) if stopped is None else ("suspended", stopped.reason_class))
