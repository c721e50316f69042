"""Archive segments as rows of a PostgreSQL database, for whoever archives. What reads them asks as for anything else
(`postgres_reading.py`), within the moment that it sees.

Each call is one statement in a transaction of its own, on a connection of its own: nothing is held between two of them,
so whoever is frozen or killed between them is in nobody's way.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import psycopg

from ledger.recorders import postgres_archive
from ledger.recorders.errors import StoreBroken, StoreBusy, StoreError
from ledger.recorders.postgres_connections import Address, Connection
from ledger.recorders.postgres_errors import translated
from ledger.segments import FOREIGN, Block, SegmentWriter, block_at, check_digest, digest_of, number_of

LEASE_SECONDS: Final = 60
"""So long after it was last heard of a process counts as the one who archives."""

KEEP_EVERY_SECONDS: Final = 10.0

_CLAIM: Final = (
    "UPDATE archiver SET holder = $1, until = clock_timestamp() + make_interval(secs => $2::float)"
    " WHERE until < clock_timestamp() OR ($3::boolean AND holder = '')"
    # Nobody says so late a moment: the server's clock was put back since.
    " OR until > clock_timestamp() + interval '1 hour' RETURNING 1"
)
_RELEASE: Final = (
    "UPDATE archiver SET holder = '', until = clock_timestamp() + make_interval(secs => $2::float)"
    " WHERE holder = $1 RETURNING 1"
)
_HELD: Final = (
    "WITH held AS (UPDATE archiver SET until = clock_timestamp() + make_interval(secs => $2::float)"
    " WHERE holder = $1 RETURNING 1)"
)
_KEEP: Final = _HELD + " SELECT 1 FROM held"  # noqa: S608  # words of ours alone
_WRITE: Final = _HELD + ", done AS ({}) SELECT 1 FROM held"  # noqa: S608  # words of ours alone
_ADD_PAGE: Final = _WRITE.format("INSERT INTO segment_pages SELECT $3::bigint, $4::bigint, $5::bytea FROM held")
_CLOSE: Final = _WRITE.format("INSERT INTO whole_segments SELECT $3::bigint, $4::text, $5::bigint FROM held")
_CLEAR: Final = _WRITE.format("DELETE FROM segment_pages USING held WHERE segment >= $3::bigint")
_REMOVE: Final = _WRITE.format(
    "DELETE FROM segment_pages p USING held, whole_segments w WHERE w.name = $3::text AND p.segment = w.id),"
    " named AS (DELETE FROM whole_segments USING held WHERE name = $3::text"
)
_PUT_ASIDE: Final = _WRITE.format("UPDATE whole_segments SET name = name || $4::text FROM held WHERE name = $3::text")


class PostgresSegments:
    """The segments in one database. See `SegmentStore`; safe to use from any thread. Raises StoreError."""

    def __init__(self, address: Address) -> None:
        self.holder: str | None = None
        self._address = address
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # guards `_connection`
        self._heard_at = 0.0
        self._closed = False

    # ------------------------------------------------------------ who archives

    def claim(self, *, regular: bool) -> bool:
        """Become the one who archives, for LEASE_SECONDS from whatever is written last; False where another is."""
        holder = secrets.token_hex(8)
        if not self._asked(_CLAIM, holder, float(LEASE_SECONDS), not regular):
            return False
        self.holder, self._heard_at = holder, time.monotonic()
        return True

    def keep(self) -> None:
        """Stay the one who archives, which costs nothing if it was said a moment ago."""
        if time.monotonic() - self._heard_at >= KEEP_EVERY_SECONDS:
            self._written(_KEEP)

    def release(self, rest_seconds: float) -> None:
        """Let others archive, and regular runs only after a rest; the connection is given back."""
        holder, self.holder = self.holder, None
        try:
            if holder is not None and not self._asked(_RELEASE, holder, rest_seconds):
                raise _taken()
        finally:
            self._drop()

    # ------------------------------------------------------------ the segments

    def names(self) -> list[str]:
        """The names of all segments that are whole, by number."""
        return [name for (name,) in self._asked("SELECT name FROM whole_segments ORDER BY id") if digest_of(name)]

    def last_number(self) -> int:
        """The highest number that any segment here has, one that was put aside too; 0 where there is none."""
        ((number,),) = self._asked("SELECT coalesce(max(id), 0) FROM whole_segments")
        return int(number)

    def bytes_of(self, name: str) -> int | None:
        """How long a segment is; None where it is not there."""
        rows = self._asked("SELECT bytes FROM whole_segments WHERE name = $1", name)
        return int(rows[0][0]) if rows else None

    def blocks(self, name: str) -> Iterator[Block]:
        """Every block of a segment in order. Raises ArchiveDamaged."""
        read = self._reading(name)
        at_byte = 0
        while read(at_byte):
            block, at_byte = block_at(read, name, at_byte)
            yield block

    def check(self, name: str) -> None:
        """Read a whole segment and compare its bytes with its name. Raises ArchiveDamaged."""
        read, digest, at_byte = self._reading(name), hashlib.sha256(), 0
        while chunk := read(at_byte):
            digest.update(chunk)
            at_byte += len(chunk)
        check_digest(name, digest.hexdigest())

    def settle(self, name: str) -> None:
        """Nothing is to be done: what is seen of a segment was committed."""

    def _reading(self, name: str) -> Callable[[int], bytes]:
        """Reads a segment from front to back, many pages at once."""
        at, chunk = 0, b""

        def read(at_byte: int) -> bytes:
            nonlocal at, chunk
            if not at <= at_byte < at + len(chunk):
                pages = self._asked(postgres_archive.PAGES, number_of(name), at_byte, postgres_archive.PAGES_AT_ONCE)
                at, chunk = at_byte, postgres_archive.joined(pages, at_byte)
            return chunk[at_byte - at :]

        return read

    def write(self, number: int) -> SegmentWriter:
        """Begin the segment of this number. What a crash has left of one like it goes."""
        self._written(_CLEAR, number)
        return SegmentWriter(number, _Pages(self, number))

    def retire(self, name: str) -> None:
        """Nothing is to be noted: whoever looks at an older moment sees the rows of that moment."""

    def remove(self, name: str) -> bool:
        """Delete a segment that nothing refers to. It may be gone already."""
        self._written(_REMOVE, name)
        return True

    def put_aside(self, name: str) -> None:
        """Rename a segment that is of another log, so that nobody looks at it again; its bytes stay."""
        self._written(_PUT_ASIDE, name, FOREIGN)

    # ------------------------------------------------------------ the connection

    def _written(self, sql: str, *parameters: object) -> None:
        """Write as the one who archives. Raises StoreBusy where that is another process by now."""
        if not self._asked(sql, self.holder, float(LEASE_SECONDS), *parameters):
            raise _taken()
        self._heard_at = time.monotonic()

    def _asked(self, sql: str, *parameters: object) -> list[Any]:
        with self._lock:
            if self._closed:
                raise StoreBroken("the database is closed")
            try:
                if self._connection is None:
                    self._connection = self._address.connect()
                return self._connection.execute(sql.encode(), parameters, binary=True).fetchall()
            except psycopg.Error as error:
                self._close_connection()
                raise translated(error) from None

    def _drop(self) -> None:
        with self._lock:
            self._close_connection()

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def close(self) -> None:
        """Ask nothing any more. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._close_connection()


class _Pages:
    """A segment's bytes on their way into rows. What a crash leaves of them nothing names."""

    def __init__(self, segments: PostgresSegments, number: int) -> None:
        self._segments = segments
        self._number = number
        self._at_byte = 0
        self._waiting = bytearray()

    def write(self, at_byte: int, block: bytes) -> None:
        """Add a block. Each page that is full is durable on return."""
        self._waiting += block
        while len(self._waiting) >= postgres_archive.PAGE_BYTES:
            self._add(postgres_archive.PAGE_BYTES)

    def _add(self, size: int) -> None:
        self._segments._written(_ADD_PAGE, self._number, self._at_byte, bytes(self._waiting[:size]))
        self._at_byte += size
        del self._waiting[:size]

    def close(self, name: str, size: int) -> None:
        """Let the pages be a segment. A crash before it is durable: there is none."""
        if self._waiting:
            self._add(len(self._waiting))
        assert self._at_byte == size
        self._segments._written(_CLOSE, self._number, name, size)

    def abandon(self) -> None:
        """Let there be no such pages. Where that cannot be said now the next segment's beginning says it."""
        with suppress(StoreError):
            self._segments._written(_CLEAR, self._number)


def _taken() -> StoreBusy:
    return StoreBusy("another process archives this store by now: this one was not heard of for too long")
