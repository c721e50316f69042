"""Live rows and snapshots against those of a replay: what differs, and where the history itself does not hold."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from ledger import snapshots
from ledger.inline import Inline
from ledger.recorders.rows import Reads, StreamKey
from ledger.snapshots import Aggregate
from projections.replay import Replay, ReplayedStream

PAGE_ROWS: Final = 500
DIFFERENCES_MAX: Final = 1_000
"""Differences that are named; all are counted, and all are healed."""
SHOWN_CHARACTERS_MAX: Final = 80
STREAMS: Final = "streams"
EVENTS: Final = "events"
FILE: Final = "file"
"""Stands for a table where the file itself is damaged."""
POSITION: Final = "position"
"""The column of every inline table that says where the event lies that made the row."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One place where live and replayed differ, or where the history (table `events`) or the database's file (`file`)
    does not hold.

    `live` and `replayed` are None where there is no such row, or where the value is not for showing.
    """

    table: str
    key: str
    column: str
    live: str | None = None
    replayed: str | None = None
    problem: str


class Table:
    """An inline table as its writes know it."""

    def __init__(self, name: str, key: str, columns: tuple[str, ...]) -> None:
        self.name = name
        self.key = key
        self.columns = columns
        names = (key, *columns)
        self._grant_at = names.index("grant_id") if "grant_id" in names else None

    def grant_id(self, row: tuple[Any, ...]) -> str | None:
        """Whose row it is; None in a table that is not about grants."""
        return None if self._grant_at is None else str(row[self._grant_at])

    def rows(self, select: Callable[[str, Sequence[object]], list[tuple[Any, ...]]]) -> Iterator[tuple[Any, ...]]:
        """All rows by key, the key first, read in pages."""
        names = ", ".join((self.key, *self.columns))
        start = f"SELECT {names} FROM {self.name}"  # noqa: S608  # names of ours alone
        order = f"ORDER BY {self.key} LIMIT {PAGE_ROWS}"
        page = select(f"{start} {order}", ())
        while page:
            yield from page
            last = page[-1][0]
            page = select(f"{start} WHERE {self.key} > ? {order}", (last,))
            if page and page[-1][0] == last:  # a key that is no text any more leads back to itself
                return

    def one(self, replay: Replay, key: object) -> tuple[Any, ...] | None:
        """The replayed row of a key."""
        names = ", ".join((self.key, *self.columns))
        found: tuple[Any, ...] | None = replay.scratch.execute(
            f"SELECT {names} FROM {self.name} WHERE {self.key} = ?",  # noqa: S608  # names of ours alone
            (key,),
        ).fetchone()
        return found

    def replacing(self, keys: list[Any], rows: list[tuple[Any, ...]]) -> list[tuple[str, list[tuple[object, ...]]]]:
        """Statements that put these rows in place of whatever stands under these keys."""
        names = (self.key, *self.columns)
        marks = ", ".join("?" * len(names))
        # A row of another key may stand at a position that is ours: no event made that one.
        places = [(row[names.index(POSITION)],) for row in rows]
        return [
            (f"DELETE FROM {self.name} WHERE {self.key} = ?", [(key,) for key in keys]),  # noqa: S608  # names of ours alone
            (f"DELETE FROM {self.name} WHERE {POSITION} = ?", places),  # noqa: S608  # names of ours alone
            (f"INSERT INTO {self.name} ({', '.join(names)}) VALUES ({marks})", rows),  # noqa: S608  # names of ours alone
        ]


def tables(inline: Sequence[Inline]) -> list[Table]:
    """The tables that some projections write."""
    found: dict[str, tuple[str, dict[str, None]]] = {}
    for each in inline:
        for write in each.writes:
            _, columns = found.setdefault(write.table, (write.key, {}))
            columns.update(dict.fromkeys(write.columns))
    return [Table(name, key, tuple(columns)) for name, (key, columns) in found.items()]


class Found:
    """What has been found so far. The keys to heal are kept aside with the replay: their number has no bound."""

    def __init__(self, replay: Replay) -> None:
        self.differences: list[Difference] = []
        self.count = 0
        self.broken = False
        self.lost = False
        self._replay = replay
        replay.scratch.execute(
            "CREATE TABLE to_heal (name TEXT NOT NULL, key ANY NOT NULL, PRIMARY KEY (name, key)) STRICT"
        )

    def differs(self, table: str, key: object, column: str, live: object, replayed: object, problem: str) -> None:
        """A live value is not what the replay says; it can be healed."""
        shown = str(key)
        self._note(
            Difference(
                table=table, key=shown, column=column, live=_shown(live), replayed=_shown(replayed), problem=problem
            )
        )

    def to_heal(self, table: str, key: object) -> None:
        """Let a row be written as replayed."""
        self._replay.scratch.execute("INSERT OR IGNORE INTO to_heal VALUES (?, ?)", (table, key))

    def breaks(self, event_id: str, column: str, problem: str) -> None:
        """The history does not hold."""
        self.broken = True
        self._note(Difference(table=EVENTS, key=event_id, column=column, problem=problem))

    def unlike(self, table: str, key: str, column: str, problem: str = "it is not what was recorded") -> None:
        """A private row is not what an event commits to: no replay has it."""
        self.lost = True
        self._note(Difference(table=table, key=key, column=column, problem=problem))

    def break_off(self) -> None:
        """Add what the replay found on its way: first, so that no number of rows keeps it from being named."""
        for each in self._replay.broken:
            self.breaks(*each)

    def _note(self, difference: Difference) -> None:
        self.count += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)

    def wrong(self, at_once: int) -> Iterator[list[tuple[str, Any]]]:
        """The rows to heal, as (table, key), some at a time."""
        while some := self._replay.scratch.execute("SELECT name, key FROM to_heal LIMIT ?", (at_once,)).fetchall():
            yield some
            self._replay.scratch.executemany("DELETE FROM to_heal WHERE name = ? AND key = ?", some)


def _merged(
    live: Iterator[tuple[Any, ...]], replayed: Iterator[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...] | None, tuple[Any, ...] | None]]:
    """Pair rows by their first column, by which both come in order; None where one side has no such row."""
    left, right = next(live, None), next(replayed, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            yield left, None
            left = next(live, None)
        elif left is None or right[0] < left[0]:
            yield None, right
            right = next(replayed, None)
        else:
            yield left, right
            left, right = next(live, None), next(replayed, None)


def compare_rows(table: Table, replay: Replay, reads: Reads, found: Found) -> int:
    """Compare an inline table row by row; how many rows it must have."""
    count = 0
    aside = table.rows(lambda sql, values: replay.scratch.execute(sql, values).fetchall())
    for live, replayed in _merged(table.rows(reads.select), aside):
        count += replayed is not None
        if live == replayed:
            continue
        grant_id = table.grant_id(live or replayed or ())
        if grant_id is not None and replay.withholds_grant(grant_id):
            continue  # what it must be nobody can tell any more
        if live is None:
            assert replayed is not None
            key = replayed[0]
            found.differs(table.name, key, table.key, None, key, "the row is missing")
        elif replayed is None:
            key = live[0]
            found.differs(table.name, key, table.key, key, None, "no event made this row")
        else:
            key = live[0]
            for column, is_now, must_be in zip(table.columns, live[1:], replayed[1:], strict=True):
                if is_now != must_be:
                    found.differs(table.name, key, column, is_now, must_be, "live and replayed differ")
        found.to_heal(table.name, key)
    return count


def compare_streams(replay: Replay, reads: Reads, found: Found) -> None:
    """Compare every head and snapshot. A stream whose history does not hold has been named already."""
    for live, replayed in _merged(_live_streams(reads), _replayed_streams(replay)):
        if live is not None and not replay.stream_is_broken(live[0]):
            if replayed is None and replay.withholds(live[0]):
                continue
            if replayed is None:
                head = ReplayedStream(*live)
                found.breaks(f"{head.name}/1", "v", f"the head says {head.v} versions, the log has none")
            else:
                _compare_heads(ReplayedStream(*live), ReplayedStream(*replayed), found)
        elif live is None and replayed is not None:
            found.differs(STREAMS, replayed[1], "name", None, replayed[1], "the head is missing")
            found.to_heal(STREAMS, replayed[0])


def _live_streams(reads: Reads) -> Iterator[tuple[Any, ...]]:
    start = "SELECT id, name, v, position, head, state, generation, last_redeemed_at, idle_expires_at FROM streams"
    page = reads.select(f"{start} ORDER BY id LIMIT ?", (PAGE_ROWS,))
    while page:
        yield from page
        page = reads.select(f"{start} WHERE id > ? ORDER BY id LIMIT ?", (page[-1][0], PAGE_ROWS))


def _replayed_streams(replay: Replay) -> Iterator[tuple[Any, ...]]:
    last: StreamKey | None = None
    while page := replay.streams_after(last, PAGE_ROWS):
        yield from page
        last = page[-1].id


def _compare_heads(live: ReplayedStream, replayed: ReplayedStream, found: Found) -> None:
    name, v = replayed.name, replayed.v
    kind = snapshots.kind_of(name)
    snapshot = snapshots.decode(live.state, name, v, replayed.head, kind)
    if live.v > v and (live.position, live.head) != (replayed.position, replayed.head):
        found.breaks(f"{name}/{v + 1}", "v", f"the head says {live.v} versions, the log ends at {v}")
        return
    if live.v == v and live.head != replayed.head and snapshot is None:
        # Head and snapshot agree on another hash: the last event's bytes are not those that were appended.
        found.breaks(f"{name}/{v}", "body", "the stored bytes do not hash to what the stream's head says")
        return
    differs = False
    for column in ("name", "v", "position", "head", "generation", "last_redeemed_at", "idle_expires_at"):
        is_now, must_be = getattr(live, column), getattr(replayed, column)
        if is_now != must_be:
            found.differs(STREAMS, name, column, is_now, must_be, "live and replayed differ")
            differs = True
    for column in _snapshot_differences(live, replayed, snapshot, kind):
        found.differs(STREAMS, name, column, None, None, "the snapshot is not what the events come to")
        differs = True
    if differs:
        found.to_heal(STREAMS, replayed.id)


def _snapshot_differences(
    live: ReplayedStream, replayed: ReplayedStream, snapshot: Aggregate | None, kind: type[Aggregate]
) -> list[str]:
    """Which members of a snapshot are not as replayed: `state.<member>`, or `state` where it is none of this head."""
    if live.state == replayed.state:
        return []
    if snapshot is None:
        return ["state"]
    must_be = snapshots.decode(replayed.state, replayed.name, replayed.v, replayed.head, kind)
    return [f"state.{each}" for each in kind.__struct_fields__ if getattr(snapshot, each) != getattr(must_be, each)]


def _shown(value: object) -> str | None:
    """A value for a person: nothing long, nothing that could be a token, a key or a hash of one."""
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or len(value) > SHOWN_CHARACTERS_MAX or not value.isprintable():
        return None
    return None if value.startswith(("rt1_", "at1_", "h1$")) else value
