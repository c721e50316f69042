"""What the archive's own time is over for: lines of grants that ended long ago become the hashes of themselves.

A segment is never rewritten. Another one takes its place, block by block and line by line the same, but that the lines
whose time is over are withheld (`segments.withheld`): whoever knew the hashes of the old one's lines finds them all.
The new segment is closed, read back and held against the old one before any piece's row names it. The old one goes with
a later run, on PostgreSQL the next and on SQLite one some days later, so that whoever still reads an older moment, or
has a copy of it, finds it.

What a withheld event said nobody can tell any more. The stream's head, its snapshot, the grant's row and the event that
its end follows from stay in the store.
"""

import logging
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from ledger import snapshots, times
from ledger.batch import Batch
from ledger.decisions import Decisions
from ledger.events import decode
from ledger.grant import Grant
from ledger.movable import Judging
from ledger.presenting import Desk, forget_nonces
from ledger.recorders import archived
from ledger.recorders.errors import ArchiveDamaged
from ledger.recorders.rows import Piece, StreamKey
from ledger.recorders.store import Store
from ledger.segments import Block, event_of, number_of, withheld
from ledger.threads import in_thread

PIECES_A_STEP: Final = 250
LOOKS_EVERY: Final = 86_400 * times.SECOND
"""So long after a regular run has looked at all segments the next one does. What is due is so by the day."""

log = logging.getLogger("ledger")


class Moved(NamedTuple):
    """Where a piece's lines lie from now on: the parameters of its row's update."""

    segment: int
    at_byte: int
    withheld: int
    stream: StreamKey
    to_v: int
    before: int


class Withholding:
    """Withholds what is due in the archive of one store. Used by the run that archives: never two at a time."""

    def __init__(self, store: Store, decisions: Decisions, desk: Desk) -> None:
        self._store = store
        self._desk = desk
        self._segments = store.segments
        self._decisions = decisions
        self._damage: ArchiveDamaged | None = None
        self._looks_again_from = 0

    async def finish(self) -> None:
        """Do what a crash, or the run before, has left: pieces that still name a segment that was replaced, and the
        segments that none names any more."""
        self._damage = None
        for name, old in await in_thread(self._rows, archived.REPLACING):
            try:
                await self._move(str(name), int(str(old)))
            except ArchiveDamaged as error:
                self._noted(error)
        for number, name in await in_thread(self._rows, archived.REPLACED):
            # A crash before this line leaves the segment, after it only its row: the next run does it again.
            if await in_thread(self._segments.remove, str(name)):
                await self._decisions.decided(partial(_drop, number), ours=True)

    async def run(self, before: int, withhold_before: int, *, regular: bool = False) -> int:
        """Withhold whatever belongs to grants that are over by `before` (microseconds) and to which nothing has
        happened since `withhold_before`, segment by segment; how many events that were.

        Nobody can undo this, so the clock's word is not enough: how late it is the log has to say. Both moments are
        counted back from the last event that is older than `before`. What is recorded while a clock is wrong is younger
        than that as long as the clock is wrong by the same amount: it bears witness only to a clock that is wrong for
        as long as events stay out of the archive. So a grant that is used, and no event says is over, is never taken
        for one that has expired. In a log in which nothing happens any more nothing is withheld any more either.

        Every segment is looked at, whether anything in it is due or not. A `regular` run, one of many in a day, looks a
        day after this process has.
        """
        lag = await in_thread(self._lag, before)
        before, withhold_before = before - lag, max(0, withhold_before - lag)
        if regular and withhold_before < self._looks_again_from:
            return 0
        count = 0
        for (number,) in await in_thread(self._rows, archived.FINISHED):
            await in_thread(self._segments.keep)
            due, nonces = await in_thread(self._due, int(str(number)), before, withhold_before)
            if due:
                try:
                    name = await in_thread(self._replacement, due)
                    await self._forget_nonces(nonces)
                    await self._move(name, int(str(number)))
                except ArchiveDamaged as error:
                    self._noted(error)
                else:
                    count += sum(each.to_v - each.from_v + 1 for each in due)
        self._looks_again_from = withhold_before + LOOKS_EVERY
        return count

    def _noted(self, error: ArchiveDamaged) -> None:
        """A segment that is damaged stays as it is, for whoever puts another copy in its place; others go on."""
        log.error("archive_segment_damaged", extra={"fields": {"problem": str(error)}})
        self._damage = self._damage or error

    def say_damage(self) -> None:
        """Raise ArchiveDamaged where a segment was that this run has met, once it has done what it could."""
        if self._damage is not None:
            raise self._damage

    async def _forget_nonces(self, names: list[str]) -> None:
        """Of grants that only the clock said were over as they moved. A crash after this leaves them without tokens,
        and their lines for the next run."""
        for at in range(0, len(names), PIECES_A_STEP):
            step = names[at : at + PIECES_A_STEP]
            await self._decisions.decided(partial(forget_nonces, desk=self._desk, names=step), ours=True)

    def _rows(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        with self._store.reader() as reads:
            return reads.select(sql, parameters)

    def _lag(self, before: int) -> int:
        """How much earlier than `before` the last event happened that is older: in the archive, or outside, where it is
        found by halving."""
        with self._store.reader() as reads:
            at = max((times.known(str(at)) or 0 for (at,) in reads.select(archived.NEWEST)), default=0)
            low, high = 0, int(str(reads.select("SELECT coalesce(max(position), 0) FROM events")[0][0])) + 1
            while high - low > 1:
                middle = (low + high) // 2
                found = reads.raw_after(middle - 1, 1)
                happened_at = _happened_at(found[0].body) if found else before
                if happened_at is not None and happened_at < before:
                    at, low = max(at, happened_at), found[0].position
                else:
                    high = middle
        return max(0, before - 1 - at)

    def _due(self, segment: int, before: int, withhold_before: int) -> tuple[list[Piece], list[str]]:
        """The pieces in a segment whose time is over, and which of their grants still have a nonce; none as long as
        they are fewer than half of those whose grants are over, because a segment is to be written for many of them at
        once. Whether a grant is over its snapshot says, not what was written down when the piece moved: an expiry may
        have been a wrong clock's. That a person's or a client's grants were ended happened to each of them, though no
        event of theirs says so."""
        with self._store.reader() as reads:
            judging, over, names = Judging(reads, before), {}, {}
            for stream, to_v, name, v, head, state in reads.select(archived.WHOLE_IN_SEGMENT, (segment,)):
                grant = snapshots.decode(state, name, v, head, snapshots.kind_of(name))  # type: ignore[arg-type]  # the tables are STRICT
                if isinstance(grant, Grant) and judging.standing(grant)[2]:
                    over[stream, to_v] = grant.at < withhold_before and _before(judging.last_at(grant), withhold_before)
                    names[stream] = str(name)
            if not any(over.values()) or sum(over.values()) * 2 < len(over):
                return [], []
            due = [each for each in reads.of_segment(segment) if over.get((each.stream, each.to_v))]
            streams = dict.fromkeys(each.stream for each in due)
            return due, [names[each] for each in streams if reads.select(archived.HAS_NONCE, (each,))]

    def _replacement(self, due: list[Piece]) -> str:
        """Write the segment that takes another one's place; its name once it is durable."""
        name = due[0].name
        self._segments.check(name)  # what was altered is not to be hashed as if it were what had been recorded
        by_block: dict[int, list[Piece]] = {}
        for piece in due:
            by_block.setdefault(piece.at_byte, []).append(piece)
        with self._store.reader() as reads:
            writer = self._segments.write(archived.next_number(reads, self._segments))
        try:
            for block in self._segments.blocks(name):
                writer.add_block(_withheld(block, by_block.pop(block.at_byte, [])))
            if by_block:
                raise _misplaced(name)
        except BaseException:
            writer.abandon()
            raise
        return writer.close()

    async def _move(self, name: str, old: int) -> None:
        """Let every piece of a segment name the one that replaces it."""
        number, size = number_of(name), await in_thread(self._segments.bytes_of, name)
        for step in await in_thread(self._moves, name, old):
            await in_thread(self._segments.keep)
            # A crash before this is durable: the piece names the old segment, after it the new one; both are there.
            await self._decisions.decided(partial(_switch, (number, name, size, old), step), ours=True)
        for (replaced,) in await in_thread(self._rows, archived.NAME, old):
            await in_thread(self._segments.retire, str(replaced))
        await self._decisions.decided(partial(_replace, number, old), ours=True)

    def _moves(self, name: str, old: int) -> list[list[Moved]]:
        self._segments.check(name)
        with self._store.reader() as reads:
            pieces = reads.of_segment(old)
        if not pieces:
            return []
        self._segments.check(pieces[0].name)
        places = dict(self._paired(name, pieces[0].name))
        number = number_of(name)
        moves = []
        for piece in pieces:
            block = places.get(piece.at_byte)
            if block is None:
                raise _misplaced(pieces[0].name)
            lines = block.lines[piece.line : piece.line + piece.to_v - piece.from_v + 1]
            gone = {event_of(line) is None for line in lines}
            if len(gone) != 1:
                raise ArchiveDamaged(f"{name}: a piece of it is withheld in part")
            moves.append(Moved(number, block.at_byte, int(gone.pop()), piece.stream, piece.to_v, old))
        return [moves[at : at + PIECES_A_STEP] for at in range(0, len(moves), PIECES_A_STEP)]

    def _paired(self, name: str, old: str) -> Iterator[tuple[int, Block]]:
        """Where each block of the old segment begins, and its counterpart, held against it line by line."""
        for block, before in zip(self._segments.blocks(name), self._segments.blocks(old), strict=True):
            same = len(block.lines) == len(before.lines) and all(
                line in (was, withheld(was)) for line, was in zip(block.lines, before.lines, strict=True)
            )
            if not same:
                raise ArchiveDamaged(f"{name}: its lines are not those of {old}, which it is to replace")
            yield before.at_byte, block


def _before(at: int | None, moment: int) -> bool:
    return at is not None and at < moment


def _happened_at(body: bytes) -> int | None:
    """When an event happened; None where it was altered: it says nothing."""
    try:
        return times.known(decode(body).at)
    except msgspec.DecodeError:
        return None


def _withheld(block: Block, due: list[Piece]) -> list[bytes]:
    """The lines of a block, those of some pieces withheld. Raises ArchiveDamaged where they are not theirs."""
    lines = list(block.lines)
    for piece in due:
        to = piece.line + piece.to_v - piece.from_v
        last = event_of(lines[to]) if to < len(lines) else None
        if last is None or (last[0], sha256(last[1]).digest()) != (piece.to_position, piece.head):
            raise _misplaced(piece.name)
        lines[piece.line : to + 1] = map(withheld, lines[piece.line : to + 1])
    return lines


def _misplaced(name: str) -> ArchiveDamaged:
    return ArchiveDamaged(f"{name}: its blocks hold other lines than the store says")


def _switch(segment: tuple[object, ...], step: list[Moved], batch: Batch) -> None:
    batch.private(None, archived.ADD_SEGMENT, *segment)
    for moved in step:
        batch.private(None, archived.MOVE_PIECE, *moved)


def _replace(number: int, old: int, batch: Batch) -> None:
    batch.private(None, archived.FINISH_SEGMENT, number)
    batch.private(None, archived.REPLACE_SEGMENT, old)


def _drop(number: object, batch: Batch) -> None:
    batch.private(None, archived.DROP_SEGMENT, number)
