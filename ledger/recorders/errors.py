"""What a store can say instead of an answer. The recorder translates its engine's errors into these, nobody else."""


class StoreError(Exception):
    """The store did not do what was asked. Whether a commit happened is unknown unless a subclass says otherwise."""


class StoreBusy(StoreError):
    """Somebody else holds the write lock. Nothing happened: ask again."""


class StoreUnreachable(StoreError):
    """The store's server cannot be reached, or went away. It heals by itself; whether a commit happened is unknown."""


class StoreFull(StoreError):
    """No room on the disk. Nothing happened; it heals when there is room again."""


class StoreBroken(StoreError):
    """An input/output error: the outcome is unknown, and the page cache may lie. The process must not go on."""


class LostRace(StoreError):
    """A stream had moved on since it was read. Nothing happened: read it again and decide anew."""


class ArchiveDamaged(StoreError):
    """A part of the archive cannot be read. The store itself is whole: only what lies there cannot be told."""


class HistoryBroken(StoreError):
    """Events of a stream are not as they were recorded. Nobody is given what is there for the truth; `rebuild` names
    each such stream."""


class ControlMissing(HistoryBroken):
    """The one row of the table `control` is gone: how often authority has changed nobody can tell."""

    def __init__(self) -> None:
        super().__init__("the row of the table control is not in the store; rebuild names it")


class PositionsSpent(HistoryBroken):
    """The log seems to end where no position is left above it."""

    def __init__(self) -> None:
        super().__init__("the log, or position_floor, ends where no position is left; rebuild names what was altered")


class EventsMissing(HistoryBroken):
    """Events that a stream's head counts are not there: somebody has deleted them."""

    def __init__(self, stream: str, from_v: int, to_v: int) -> None:
        super().__init__(f"{stream}: of versions {from_v} to {to_v} some are not in the store; rebuild names them")


class HeadMissing(HistoryBroken):
    """Events are there and the head of their stream is not: whoever took it for new would begin it a second time."""

    def __init__(self, stream: str) -> None:
        super().__init__(f"{stream}: there are events that no stream's head speaks of; rebuild puts it back")


class EventsAltered(HistoryBroken):
    """The stored bytes of an event are not those that were recorded."""

    def __init__(self, event_id: str) -> None:
        super().__init__(f"{event_id}: what is stored is not what was recorded; rebuild names it")


class Withheld(StoreError):
    """The bytes of these events were given up when the archive's own time for them was over."""

    def __init__(self, what: str) -> None:
        """`what` names them."""
        super().__init__(f"{what}: withheld since the archive's time was over")
