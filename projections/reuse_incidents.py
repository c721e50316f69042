"""Which grants saw a retired token, and what do we know? One row a reuse, and one a retry that used the budget."""

from collections.abc import Iterable, Sequence
from typing import Final

from ledger.events import AnyEvent, RetryServed, ReuseDetected
from ledger.inline import Write

TABLE: Final = "reuse_incidents_v1"
RETRY: Final = "retry"
"""How a retry that counted is labelled in the table; which of them are suspect is judged when asked."""

_DDL: Final = (
    # All else stands in the event at this position: a reuse, or a retry that used the budget. Whether the retry came
    # from another context than the redeemer's is no member of its event; the question compares them.
    f"CREATE TABLE {TABLE} (position INTEGER PRIMARY KEY, grant_id TEXT NOT NULL, at TEXT NOT NULL,"
    " label TEXT NOT NULL) STRICT",
)
_GRANT_ID: Final = len("grant:")  # where the id begins in a stream's name
_KINDS: Final = frozenset({ReuseDetected, RetryServed})


class ReuseIncidents:
    """The projection: an insert for each event that may be an incident, nothing for any other."""

    name = TABLE
    ddl = _DDL
    writes = (Write("insert", TABLE, "position", ("grant_id", "at", "label")),)

    def rows(self, events: Sequence[AnyEvent], positions: Sequence[int]) -> Iterable[tuple[int, tuple[object, ...]]]:
        """What one command's events add: see `Inline`."""
        if _KINDS.isdisjoint(map(type, events)):  # nearly every command
            return ()
        return [
            (0, (position, event.stream[_GRANT_ID:], event.at, label))
            for event, position in zip(events, positions, strict=True)
            if (label := _label(event)) is not None
        ]


def _label(event: AnyEvent) -> str | None:
    if isinstance(event, ReuseDetected):
        return event.label
    return RETRY if isinstance(event, RetryServed) and event.counts else None
