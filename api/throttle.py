"""Slow down whoever guesses secrets (RFC 6749 2.3.1): one count per client and source address, in a bounded map.

The count outlives a success on purpose: whoever shares an address with the guesser could else reset it. It is forgotten
15 minutes after the last failure, or when the map is full and it is the one that has been quiet longest.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

FREE_FAILURES = 9
WAIT_SECONDS_MAX = 60
FORGET_SECONDS = 900.0
ENTRIES_MAX = 20_000

UNKNOWN = ""
"""Stands for every client id that is none, so that guessing ids is slowed down too."""

OPERATORS = ":operators"
"""Stands for every operator: a bearer token names nobody. No client has it, for no client id holds a colon."""


class Throttle:
    """Counts failed authentications. `clock` gives seconds that only run forward; `tell` is called with each failure
    that happened here, for those who count the same elsewhere."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        entries_max: int = ENTRIES_MAX,
        tell: Callable[[str, str], None] = lambda who, address: None,
    ) -> None:
        self._clock = clock
        self._tell = tell
        self._entries_max = entries_max
        # (who, address) -> failures, wait until, last failure; the last failure's order is the map's order
        self._failed: OrderedDict[tuple[str, str], tuple[int, float, float]] = OrderedDict()

    def wait_seconds(self, who: str, address: str) -> int:
        """Whole seconds that this caller has to wait before its credentials are looked at; 0: it need not."""
        if not self._failed:
            return 0
        found = self._failed.get((who, address))
        if found is None:
            return 0
        _, until, last = found
        now = self._clock()
        if now - last >= FORGET_SECONDS:
            del self._failed[who, address]
            return 0
        return max(0, math.ceil(until - now))

    def failed(self, who: str, address: str) -> int:
        """Count one failure; return the whole seconds to wait from now on, 0 for each of the first nine."""
        self._tell(who, address)
        return self.heard(who, address)

    def heard(self, who: str, address: str) -> int:
        """As `failed`, of a failure that somebody else tells of."""
        now = self._clock()
        failures, _, last = self._failed.pop((who, address), (0, 0.0, now))
        failures = 1 if now - last >= FORGET_SECONDS else failures + 1
        over = failures - FREE_FAILURES - 1
        wait = 0 if over < 0 else min(WAIT_SECONDS_MAX, 1 << min(over, 6))
        self._failed[who, address] = (failures, now + wait, now)
        if len(self._failed) > self._entries_max:
            self._failed.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._failed)
