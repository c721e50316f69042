"""Honest clients: chains of refreshes that know what they were told, and what they were not.

A `Chain` holds one grant. It presents its token until it is answered, goes on with the successor, and remembers what
every token it presented brought. Whatever happens to the server in between, a chain can say afterwards what must be
on record (`redeemed_between`) and what its token must still buy (`converge`).
"""

import asyncio
import base64
from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.chaos.exchange import Line, NotBegun, Unanswered
from tests.servers import Grant, Server
from tests.wire import Answer

SCOPES = ("read", "read openid profile", "")
"""What a chain that narrows asks for, in turn; the last is what it carries."""


class Chain:
    """One grant and its client. Owned by one event loop at a time; tokens stay out of the repr."""

    def __init__(
        self,
        server: Server,
        grant: Grant,
        *,
        senders: int = 1,
        narrows: bool = False,
        pause_seconds: float = 0.0,
        dribble_seconds: float = 0.0,
    ) -> None:
        """`senders` send every request at once, each on its own connection, as tabs of one browser do."""
        self.server = server
        self.grant = grant
        self.token = grant.refresh_token
        self.access_token = grant.access_token
        self.reuses = grant.client == "keep"
        self.narrows = narrows
        self.pause_seconds = pause_seconds
        self.dribble_seconds = dribble_seconds
        self.brought: dict[str, set[str]] = defaultdict(set)
        self.statuses: Counter[int] = Counter()
        self.acknowledged = 0
        self.unknown = 0
        self.pending = False
        self.unanswered = 0
        self.faults: list[str] = []
        self._lines = [Line(server) for _ in range(senders)]

    def __repr__(self) -> str:
        return f"Chain({self.grant.client}, {self.grant.grant_id}, generation {generation_of(self.token)})"

    # -- under load ----------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Present the token once from every sender, and go on with its successor where it was told."""
        if self.pause_seconds:
            await asyncio.sleep(self.pause_seconds)
        raw = self.request()
        presented = self.token
        found = await asyncio.gather(
            *(line.ask(raw, dribble_seconds=self.dribble_seconds) for line in self.lines_to_ask()),
            return_exceptions=True,
        )
        answers = [each for each in found if isinstance(each, Answer)]
        for each in found:
            if isinstance(each, Unanswered):
                self.unanswered += not isinstance(each, NotBegun)
            elif isinstance(each, BaseException):
                raise each
        for answer in answers:
            self.take(presented, answer)
        if any(answer.status == 200 for answer in answers):
            self._go_on(presented)
        else:  # lost, or 503: whether it was redeemed is unknown
            self.unknown += 1
            self.pending = True

    def lines_to_ask(self) -> Sequence[Line]:
        """Where the token is presented now: from every sender at once."""
        return self._lines

    def request(self) -> bytes:
        """The request to send now: the same one until a successor was told."""
        scope = SCOPES[self.acknowledged % len(SCOPES)] if self.narrows else ""
        return self.server.refresh_request(self.grant.client, self.token, **({"scope": scope} if scope else {}))

    def take(self, presented: str, answer: Answer) -> None:
        """Judge an answer: 200, or 503 where the store is away; nothing else is right for an honest client."""
        self.statuses[answer.status] += 1
        if answer.status == 200:
            body = answer.json()
            self.brought[presented].add(body["refresh_token"])
            self.access_token = body["access_token"]
            if len(self.brought[presented]) > 1:
                self._fault(f"two successors for generation {generation_of(presented)} (I-03)")
        elif answer.status == 503:
            if answer.json()["error"] != "temporarily_unavailable" or int(answer.header("Retry-After") or 0) < 1:
                self._fault(f"503 in another shape: {answer.body!r}")
        else:
            self._fault(f"{answer.status} {answer.body!r}")

    def _go_on(self, presented: str) -> None:
        (self.token, *_) = self.brought[presented]
        self.acknowledged += 1
        self.pending = False

    def _fault(self, what: str) -> None:
        self.faults.append(f"{self!r}: {what}")

    @property
    def told_to_close(self) -> bool:
        """Whether an answer has ended one of its connections."""
        return not all(line.connected for line in self._lines)

    def close(self) -> None:
        for line in self._lines:
            line.close()

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def redeemed_between(self) -> tuple[int, int]:
        """How many redemptions must and may be on record."""
        return self.acknowledged, self.acknowledged + (self.unknown if self.reuses else self.pending)

    async def converge(self) -> None:
        """Ask again for what may have got lost, twice; then go on with what it brought. All of it must succeed."""
        presented, raw = self.token, self.request()
        first, again = [await line.ask(raw) for line in (self._lines[0], self._lines[-1])]
        for answer in (first, again):
            self.take(presented, answer)
        if {200} != {first.status, again.status}:
            self._fault(f"the retry was answered {first.status}, {again.status}")
            return
        if not self.reuses and first.json()["access_token"] != again.json()["access_token"]:
            self._fault("two access tokens for one redemption")
        self._go_on(presented)
        presented = self.token
        self.take(presented, await self._lines[-1].ask(self.request()))
        if self.brought[presented]:
            self._go_on(presented)
        self.acknowledged += self.reuses  # the second of its first two was a redemption of its own
        self.close()


def generation_of(token: str) -> int:
    """The generation that a refresh token names, after its version, key id and grant id."""
    return int.from_bytes(base64.urlsafe_b64decode(token[4:])[18:22])


def chains_of(server: Server, count: int) -> list[Chain]:
    """Issue grants and give each a client: most rotate, some reuse, some send twice, some narrow."""
    found = []
    for number in range(count):
        client = ("std", "std", "mob", "std", "keep", "std", "std", "mob")[number % 8]
        senders = 2 if number % 8 in (1, 2) else 1
        found.append(Chain(server, server.issue(client), senders=senders, narrows=number % 8 == 3))
    return found


def faults_of(chains: list[Chain]) -> list[str]:
    """What any of them has met that it must not."""
    return [fault for chain in chains for fault in chain.faults]
