"""The store on one SQLite file by itself: fixtures `database` and `sqlite`, and how events get in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.events import AuditRead, Event, linked
from ledger.recorders.rows import Work
from ledger.recorders.sqlite import SQLiteStore
from projections import INLINE

RING = "0" * 32
"""The key ring that the stores belong to."""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the test's store lies, or is going to."""
    return tmp_path / "ledger.db"


@pytest.fixture
def sqlite(database: Path) -> Iterator[SQLiteStore]:
    """A store that has just been made."""
    opened = SQLiteStore(database, INLINE)
    opened.open(RING)
    yield opened
    opened.close()


def audit(v: int, question: str = "q") -> AuditRead:
    return AuditRead(
        stream="audit",
        v=v,
        at="2026-11-25T10:00:00.000000Z",
        command_id="c",
        question=question,
        requested_by="operator:o",
    )


def append(store: SQLiteStore, name: str, count: int, *, commit: bool = True) -> list[tuple[int, str]]:
    """Append events to a stream as the commit path would; their positions and bytes."""
    store.begin()
    position = store.last()
    head = store.head(name)
    v, back, prev = (head.v, head.position, head.head.hex()) if head else (0, 0, None)
    number = head.id if head else store.new_key(name)
    work, made, digest = Work(INLINE), [], prev
    for nth in range(1, count + 1):
        event: Event = audit(v + nth, name)
        stored, digest = linked(event, digest)
        work.events.append((position + nth, number, v + nth, back, stored.decode()))
        back = position + nth
        made.append((back, stored.decode()))
    assert digest is not None
    work.add_head(number, name, v + count, back, bytes.fromhex(digest), b"state", (None, None, None), v)
    store.write(work)
    if commit:
        store.commit()
    return made
