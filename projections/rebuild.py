"""Prove that every projection row and every snapshot is what a replay of all events comes to (I-13), and heal.

The comparison is made inside one read transaction, events and live rows of the same moment, so it is safe while
serving; nothing waits for it, but the write-ahead log cannot shrink while it reads. What differs is then written anew
under the writer's lock, a few keys at a time, from a replay that has caught up there. Where the history itself does
not hold, nothing is written: rows that follow from altered events would only spread the damage. From a file that is
damaged nothing is even replayed: an index that lacks rows, or a page that is another's, would make it tell anything.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any, Final

import msgspec

from ledger.inline import Inline
from ledger.recorders.rows import Reads
from projections.compare import (
    DIFFERENCES_MAX,
    FILE,
    STREAMS,
    Difference,
    Found,
    Table,
    compare_rows,
    compare_streams,
    tables,
)
from projections.private_rows import Lookup
from projections.replay import Replay

HEALED_AT_ONCE: Final = 100
"""Keys that are written under the writer's lock in one go: milliseconds, then others have their turn."""
CAUGHT_UP_EVENTS: Final = 500
CATCHING_UP_MAX: Final = 20

_REMOVE_HEAD: Final = "DELETE FROM streams WHERE id = ? OR name = ?"
_WRITE_HEAD: Final = (
    "INSERT INTO streams (id, name, v, position, head, state, generation, last_redeemed_at, idle_expires_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

Progress = Callable[[int, int], None]
"""Told how far a rebuild is: positions done, positions in all."""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild found. `differences` names the first of `difference_count`; `healed` says that none is left.

    `withheld` names the first of `withheld_count` streams that cannot be replayed, since the archive's time for their
    events is over, each by the last of these; what is said of them elsewhere was compared with nothing."""

    events: int
    streams: int
    rows: dict[str, int]
    differences: list[Difference]
    difference_count: int
    history_holds: bool
    healed: bool
    withheld: list[str] = []
    withheld_count: int = 0


class Heal(msgspec.Struct, frozen=True):
    """What the writer shall do: statements in order, each for all its parameters, in one transaction; and the streams
    whose aggregates in memory are to be read again, because their snapshot was wrong."""

    statements: list[tuple[str, list[tuple[object, ...]]]]
    streams: list[str]


ApplyHeal = Callable[[Callable[[Reads], Heal]], None]
"""Runs a derivation under the writer's lock, on the writing connection, and then what it says, durable on return."""


def rebuild(
    readers: Callable[[], AbstractContextManager[Reads]],
    inline: Sequence[Inline],
    apply_heal: ApplyHeal,
    progress: Progress = lambda done, total: None,
    lookup: Lookup | None = None,
    at: int | None = None,
) -> Rebuilt:
    """Replay, compare, heal. `readers` gives a view of one committed moment at which nothing was on its way into the
    log, so that what comes later stands behind it. `lookup` tells the key of a person's row, where the key ring is at
    hand; `at` is the wall clock (microseconds), where grants that live are to be told from those that have expired.
    Constant memory; takes as long as one pass over all events. Raises StoreError."""
    with closing(Replay(inline)) as replay:
        found = Found(replay)
        with readers() as reads:
            if damage := reads.damage(lambda: progress(0, 1)):
                return _damaged(damage)
            total = _last_position(reads)
            for _ in replay.check_segments(reads):
                progress(0, total)
            for position in replay.follow(reads):
                progress(position, total)
            found.break_off()
            compare_streams(replay, reads, found)
            for stream in replay.private.of_no_grant(reads, replay.tells_of):
                found.breaks(f"stream {stream}/1", "v", "there are private rows of a grant, the log has none of it")
            replay.private.compare(reads, found.unlike, lookup)
            for name in () if at is None else replay.living_without_nonce(reads, at):
                found.unlike("private_grants", name, "nonce", "it is gone, and the grant lives")
            for each in [] if found.broken else replay.check_control(reads):
                found.breaks(*each)
            for each in replay.check_positions(reads):
                found.breaks(*each)
            rows = {table.name: compare_rows(table, replay, reads, found) for table in tables(inline)}
        events, streams = replay.events, _count(replay, "replayed")
        history_holds = not found.broken
        withheld_count, withheld = replay.withheld(DIFFERENCES_MAX)
        healed = history_holds and _heal(replay, readers, apply_heal, found) and not found.lost
    return Rebuilt(
        events=events,
        streams=streams,
        rows=rows,
        differences=found.differences,
        difference_count=found.count,
        history_holds=history_holds,
        healed=healed,
        withheld=withheld,
        withheld_count=withheld_count,
    )


def _damaged(lines: Sequence[str]) -> Rebuilt:
    differences = [Difference(table=FILE, key="database", column="page", problem=line) for line in lines]
    return Rebuilt(
        events=0,
        streams=0,
        rows={},
        differences=differences,
        difference_count=len(differences),
        history_holds=False,
        healed=False,
    )


def _heal(
    replay: Replay, readers: Callable[[], AbstractContextManager[Reads]], apply_heal: ApplyHeal, found: Found
) -> bool:
    """Write anew whatever differed, as it is by now. A crash on the way leaves the rest to the next rebuild."""
    if not found.count:
        return True
    for _ in range(CATCHING_UP_MAX):  # so that little is left to follow under the lock
        before = replay.events
        with readers() as reads:
            _catch_up(replay, reads)
        if replay.events - before <= CAUGHT_UP_EVENTS:
            break
    by_name = {table.name: table for table in tables(replay.inline)}
    for keys in found.wrong(HEALED_AT_ONCE):
        apply_heal(partial(_derived, replay, by_name, keys))
    return not replay.broken


def _catch_up(replay: Replay, reads: Reads) -> None:
    for _ in replay.follow(reads):
        pass


def _derived(replay: Replay, by_name: dict[str, Table], keys: list[tuple[str, Any]], reads: Reads) -> Heal:
    """What is to be written for some keys, at the moment of the writer's own transaction."""
    _catch_up(replay, reads)
    if replay.broken:  # the history broke while we looked: write nothing that follows from it
        return Heal([], [])
    statements: list[tuple[str, list[tuple[object, ...]]]] = []
    streams = [found for name, key in keys if name == STREAMS and (found := replay.stream(key)) is not None]
    if streams:
        statements.append((_REMOVE_HEAD, [(each.id, each.name) for each in streams]))
        statements.append((_WRITE_HEAD, [tuple(each) for each in streams]))
    for table in by_name.values():
        own = [key for name, key in keys if name == table.name]
        if own:
            rows = [row for key in own if (row := table.one(replay, key)) is not None]
            statements += table.replacing(own, rows)
    return Heal(statements, [each.name for each in streams])


def _last_position(reads: Reads) -> int:
    last = reads.select("SELECT coalesce(max(position), 0) FROM events")[0][0]
    assert isinstance(last, int)
    return last


def _count(replay: Replay, table: str) -> int:
    found: int = replay.scratch.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  # names of ours alone
    return found
