"""Whether this process was awake all the time, or frozen for longer than a request may take.

Whoever asks a node that is frozen gives up, goes to another one, and on from there. What they had asked lies in the
sockets meanwhile, and is read when the node thaws. Decided then, it would be judged by what is true by now: a token
that its owner has long exchanged would be taken for a stolen one, and an honest client be signed out.
"""

import asyncio
from typing import Final

BEAT_SECONDS: Final = 1.0
STOOD_STILL_SECONDS_MIN: Final = 3.0
"""Less is what a busy machine does at times."""

LATE_SECONDS: Final = 1.0
"""So long after it has thawed a process takes nobody in: by then it has read whatever lay there."""


class Awake:
    """A heart that beats on the event loop, until `close`. Where it has missed beats for so many seconds, requests are
    late from then on, and for a second after the next beat."""

    __slots__ = ("_from", "_loop", "_seconds", "_timer", "_until")

    def __init__(self, loop: asyncio.AbstractEventLoop, request_seconds: float) -> None:
        """`request_seconds`: so long a request may take."""
        self._loop = loop
        self._seconds = max(request_seconds, STOOD_STILL_SECONDS_MIN)
        self._from, self._until = 0.0, loop.time() + self._seconds
        self._timer = loop.call_later(BEAT_SECONDS, self._beat)

    def hears(self, now: float) -> bool:
        """Whether what has come in at a moment of the loop's time was asked not long before."""
        return self._from <= now <= self._until

    def _beat(self) -> None:
        now = self._loop.time()
        if now > self._until:
            self._from = now + LATE_SECONDS
        self._until = now + self._seconds
        self._timer = self._loop.call_later(BEAT_SECONDS, self._beat)

    def close(self) -> None:
        self._timer.cancel()
