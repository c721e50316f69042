"""Who of the operating side acts, when, and by which command: what every event outside the grants begins with."""

from typing import TypedDict

import msgspec

from ledger import times


class Beginning(TypedDict):
    """The members that an event outside the grants begins with."""

    stream: str
    v: int
    at: str
    command_id: str
    requested_by: str


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One act on clients, operators, subjects or keys. `at` is the wall clock in microseconds as it was taken up;
    `command_id` stays the same when a lost race makes it be decided again (I-11)."""

    at: int
    command_id: str
    requested_by: str

    def begins(self, stream: str, v: int, last_at: int) -> Beginning:
        """How the event after version `v` of a stream begins. Times of one stream never run backwards."""
        return {
            "stream": stream,
            "v": v + 1,
            "at": times.text(max(self.at, last_at)),
            "command_id": self.command_id,
            "requested_by": self.requested_by,
        }
