"""What lies outside the events and may be erased, held against what they commit to; nothing of it can be replayed.

A row that is gone may have been erased, so only what is there is looked at; but for the nonce of a grant that lives,
which nothing erases and without which it is refused for ever. A person's own name stands under a keyed
look-up, which no event has: whoever has the key ring can hold the two against each other.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from ledger.events import AnyEvent, GrantAuthorized, GrantIssued
from ledger.private import commitment, context_value
from ledger.recorders.rows import Reads, StreamKey

PAGE_ROWS: Final = 500

_GRANTS: Final = "SELECT stream, client_id, subject_id, nonce, salt, device, session FROM private_grants"
_HEAD: Final = "SELECT 1 FROM streams WHERE id = ?"
_COLUMNS: Final = ("client_id", "subject_id", "nonce", "device", "session")
_CONTEXTS: Final = (
    "SELECT c.stream, c.commitment, c.address, c.user_agent, g.salt FROM private_contexts c"
    " JOIN private_grants g ON g.stream = c.stream"
)
_SUBJECTS: Final = "SELECT subject_id, lookup, subject FROM private_subjects"

Lookup = Callable[[str], bytes]
"""The key of a person's row."""


class Unlike(Protocol):
    """Told of a row that is not what was recorded: table, key and column, and the problem where it is another."""

    def __call__(self, table: str, key: str, column: str, problem: str = ...) -> None: ...


class PrivateRows:
    """What events say of private rows, kept aside while they are replayed."""

    def __init__(self, scratch: sqlite3.Connection) -> None:
        self._scratch = scratch
        self._begun: list[tuple[object, ...]] = []
        self._reasons: list[tuple[str, str]] = []
        scratch.execute(
            "CREATE TABLE begun (id ANY PRIMARY KEY, name TEXT NOT NULL, client_id TEXT NOT NULL,"
            " subject_id TEXT NOT NULL, nonce TEXT NOT NULL, device TEXT, session TEXT) STRICT"
        )
        scratch.execute("CREATE TABLE nonces (id ANY PRIMARY KEY) STRICT")
        scratch.execute("CREATE TABLE reasons (event_id TEXT PRIMARY KEY, reason TEXT NOT NULL) STRICT, WITHOUT ROWID")

    def heed(self, event: AnyEvent, stream: StreamKey) -> None:
        """Take an event in."""
        if event.v == 1 and isinstance(event, GrantIssued | GrantAuthorized):
            device = event.device if isinstance(event, GrantIssued) else None
            said = event.client_id, event.subject_id, event.nonce_sha256, device, event.session
            self._begun.append((stream, event.stream, *said))
        elif (reason := getattr(event, "reason", None)) is not None:
            self._reasons.append((event.event_id, reason))

    def write(self) -> None:
        """Put aside what has come."""
        self._scratch.executemany("INSERT OR IGNORE INTO begun VALUES (?, ?, ?, ?, ?, ?, ?)", self._begun)
        self._scratch.executemany("INSERT OR IGNORE INTO reasons VALUES (?, ?)", self._reasons)
        self._begun.clear()
        self._reasons.clear()

    def of_no_grant(self, reads: Reads, known: Callable[[StreamKey], bool]) -> Iterator[StreamKey]:
        """Rows of grants that the log does not have: somebody has deleted all events of each, and the head. Where a
        head is left that is told of it, and `known` says of which streams there is more to tell."""
        for stream, *_ in _pages(reads, _GRANTS, ("stream",)):
            if self._of(stream) is None and not known(stream) and not reads.select(_HEAD, (stream,)):
                yield stream

    def compare(self, reads: Reads, unlike: Unlike, lookup: Lookup | None) -> None:
        """Tell of whatever is not as it was recorded. Nothing is ever said of what it holds."""
        for stream, client_id, subject_id, nonce, salt, device, session in _pages(reads, _GRANTS, ("stream",)):
            if nonce is not None:
                self._scratch.execute("INSERT INTO nonces VALUES (?)", (stream,))
            begun = self._of(stream)
            if begun is None:
                continue
            name, *said = begun
            is_now = (
                client_id, subject_id, said[2] if nonce is None else hashlib.sha256(nonce).hexdigest(),
                *(None if text is None else commitment(salt, what, text)
                  for what, text in (("device", device), ("session", session))),
            )  # fmt: skip
            for column, must_be, is_so in zip(_COLUMNS, said, is_now, strict=True):
                if must_be != is_so:
                    unlike("private_grants", name, column)
        for stream, said, address, user_agent, salt in _pages(reads, _CONTEXTS, ("c.stream", "c.commitment")):
            if (begun := self._of(stream)) is not None and said != commitment(
                salt, "context", context_value(address, user_agent)
            ):
                unlike("private_contexts", f"{begun[0]}, {said}", "address")
        for event_id, said in self._scratch.execute("SELECT event_id, reason FROM reasons"):
            found = reads.reason(event_id)
            if found is not None and said != commitment(found[0], "reason", found[1]):
                unlike("private_reasons", event_id, "text")
        for subject_id, key, subject in _pages(reads, _SUBJECTS, ("subject_id",)):
            if lookup is not None and lookup(subject) != key:
                unlike("private_subjects", subject_id, "subject")

    def _of(self, stream: StreamKey) -> tuple[Any, ...] | None:
        begun: tuple[Any, ...] | None = self._scratch.execute(
            "SELECT name, client_id, subject_id, nonce, device, session FROM begun WHERE id = ?", (stream,)
        ).fetchone()
        return begun


def _pages(reads: Reads, start: str, key: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """All rows of a statement by their key, which its first columns are, read in pages."""
    end = f" ORDER BY {', '.join(key)} LIMIT {PAGE_ROWS}"
    page = reads.select(f"{start}{end}")
    while page:
        yield from page
        above = f" WHERE ({', '.join(key)}) > ({', '.join('?' * len(key))})"
        page = reads.select(f"{start}{above}{end}", page[-1][: len(key)])
