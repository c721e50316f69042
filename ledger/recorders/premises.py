"""Work whose premises are checked when it is written: what it was decided on may have moved in the meantime.

A store that many write to is not locked while a batch is decided. So the batch says of each stream that it used, to
write it or only to answer from it, which version that was; and what hangs together: one request's streams and rows are
a unit, written together or not at all.
"""

from typing import Final, NamedTuple

from ledger.inline import Inline
from ledger.recorders.rows import StreamKey, Work

BASE: Final = 1 << 62
"""From here on a number stands for a place in its batch: the position is given when the batch is written."""


class Written(NamedTuple):
    """What became of a batch: the number that its places are counted from, None where authority had moved and nothing
    was written; and the units that were lost because something of theirs had moved. `unknown` are those of the lost
    that may have been written all the same, and must not be decided again."""

    base: int | None
    lost: frozenset[int]
    unknown: frozenset[int] = frozenset()


class CheckedWork(Work):
    """Work that says what it stands on. `units` is how many there are; `unit_of` gives a stream's by its name, and
    `private_units` stand beside `private`."""

    __slots__ = ("names", "now", "private_units", "projected", "read", "stands_on", "unit_of", "units")

    def __init__(self, inline: tuple[Inline, ...]) -> None:
        super().__init__(inline)
        self.now = 0
        self.stands_on = (0, 0)  # control counter and serial
        self.units = 0
        self.unit_of: dict[str, int] = {}
        self.private_units: list[int] = []
        self.read: list[tuple[StreamKey, int, int]] = []
        self.names: dict[StreamKey, str] = {}
        # By table, kind and key, because one statement changes a row once: what comes later says it all again.
        self.projected: dict[str, dict[object, tuple[str, tuple[object, ...]]]] = {}

    def add_row(self, number: int, kind: int, stream: str, parameters: tuple[object, ...]) -> None:
        """Add what one inline projection has written for a stream."""
        each = self.inline[number]
        key = parameters[0] if each.writes[kind].kind == "insert" else parameters[-1]
        self.projected.setdefault(f"{each.name}/{kind}", {})[key] = (stream, parameters)
