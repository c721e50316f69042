"""What the archive's own time is over for: lines of grants that ended long ago become the hashes of themselves.

A segment is never rewritten. Another one takes its place, block by block and line by line the same, but that the lines
whose time is over are withheld (`segments.withheld`): whoever knew the hashes of the old one's lines finds them all.
The new segment is closed, read back and held against the old one before any piece's row names it. The old one goes with
the next run, so that whoever still reads an older moment finds it.

What a withheld event said nobody can tell any more. The stream's head, its snapshot, the grant's row and the event that
its end follows from stay in the store.
"""

from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

from ledger import times
from ledger.batch import Batch
from ledger.decisions import Decisions
from ledger.recorders import archived
from ledger.recorders.errors import ArchiveDamaged
from ledger.recorders.rows import Piece, StreamKey
from ledger.recorders.store import Store
from ledger.segments import Block, event_of, number_of, withheld
from ledger.threads import in_thread

PIECES_A_STEP: Final = 250


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

    def __init__(self, store: Store, decisions: Decisions) -> None:
        self._store = store
        self._segments = store.segments
        self._decisions = decisions

    async def finish(self) -> None:
        """Do what a crash, or the run before, has left: pieces that still name a segment that was replaced, and the
        segments that none names any more."""
        for name, old in await in_thread(self._rows, archived.REPLACING):
            await self._move(str(name), int(str(old)))
        for number, name in await in_thread(self._rows, archived.REPLACED):
            # A crash before this line leaves the segment, after it only its row: the next run does it again.
            await in_thread(self._segments.remove, str(name))
            await self._decisions.decided(partial(_drop, number), ours=True)

    async def run(self, before: int) -> int:
        """Withhold whatever belongs to grants that are over and to which nothing has happened since `before`
        (microseconds), segment by segment; how many events that were."""
        count = 0
        for (number,) in await in_thread(self._rows, archived.FINISHED):
            due = await in_thread(self._due, int(str(number)), before)
            if due:
                name = await in_thread(self._replacement, due)
                await self._move(name, int(str(number)))
                count += sum(each.to_v - each.from_v + 1 for each in due)
        return count

    def _rows(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        with self._store.reader() as reads:
            return reads.select(sql, parameters)

    def _due(self, segment: int, before: int) -> list[Piece]:
        """The pieces of a segment to withhold now. None as long as more of its grants that are over are not due yet
        than are: they ended at about the same time, and another segment is to be written for many of them at once."""
        with self._store.reader() as reads:
            ended = {
                (stream, to_v): str(at) < times.text(before)
                for stream, to_v, at in reads.select(archived.ENDED_IN_SEGMENT, (segment,))
            }
            pieces = [each for each in reads.of_segment(segment) if (each.stream, each.to_v) in ended]
        due = [each for each in pieces if ended[each.stream, each.to_v]]
        return due if len(due) * 2 >= len(pieces) else []

    def _replacement(self, due: list[Piece]) -> str:
        """Write the segment that takes another one's place; its name once it is durable."""
        lines = {(each.at_byte, each.line + more) for each in due for more in range(each.to_v - each.from_v + 1)}
        name = due[0].name
        with self._store.reader() as reads:
            writer = self._segments.write(archived.next_number(reads, self._segments))
        try:
            for block in self._segments.blocks(name):
                writer.add_block(
                    [
                        withheld(line) if (block.at_byte, number) in lines else line
                        for number, line in enumerate(block.lines)
                    ]
                )
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
        await self._decisions.decided(partial(_replace, number, old), ours=True)

    def _moves(self, name: str, old: int) -> list[list[Moved]]:
        self._segments.check(name)
        with self._store.reader() as reads:
            pieces = reads.of_segment(old)
        if not pieces:
            return []
        places = dict(self._paired(name, pieces[0].name))
        number = number_of(name)
        moves = []
        for piece in pieces:
            block = places[piece.at_byte]
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


def _switch(segment: tuple[object, ...], step: list[Moved], batch: Batch) -> None:
    batch.private(None, archived.ADD_SEGMENT, *segment)
    for moved in step:
        batch.private(None, archived.MOVE_PIECE, *moved)


def _replace(number: int, old: int, batch: Batch) -> None:
    batch.private(None, archived.FINISH_SEGMENT, number)
    batch.private(None, archived.REPLACE_SEGMENT, old)


def _drop(number: object, batch: Batch) -> None:
    batch.private(None, archived.DROP_SEGMENT, number)
