"""A real ledger on a real file for tests of what is asked of it: a clock that is set, clients, an operator, chains."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec

from ledger import times
from ledger.answers import Caller, IssueRequest, Source, TokenAnswer
from ledger.application import Ledger, Options
from ledger.clients import ClientSpec, Operator, OperatorSpec, Settings
from ledger.events import Words
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.policy import PRESETS, Policy
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import Refused
from projections import INLINE

START = times.parse("2026-11-25T10:00:00Z") or 0
SCOPE: Words = ("read", "openid", "profile", "write")
HOME = Source("198.51.100.7", "app/1")
ELSEWHERE = Source("203.0.113.9", "thief/2")
OPERATOR = Operator(name="login-app", enabled=True, roles=("issuer", "security"))


class Stocked:
    """The ledger, its store, and the wall clock that it reads."""

    def __init__(self, ledger: Ledger, clock: list[int]) -> None:
        self.ledger = ledger
        self.store = ledger.store
        self._clock = clock

    @property
    def now(self) -> int:
        """The wall clock in microseconds."""
        return self._clock[0]

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass; negative seconds put the clock back."""
        self._clock[0] += int(seconds * times.SECOND)

    async def clients(self, *names: str, policy: Policy = PRESETS["standard"], serial: int | None = None) -> None:
        """Let exactly these clients exist."""
        specs = [
            ClientSpec(client_id=name, settings=Settings(auth="client_secret", scope=SCOPE, policy=policy))
            for name in names
        ]
        specs = [msgspec.structs.replace(spec, secrets=("Secr3t!",)) for spec in specs]
        operators = [OperatorSpec(name="login-app", roles=("issuer", "security"), tokens=("operator-token",))]
        await self.ledger.apply(specs, operators, serial=serial)

    async def issue(self, subject: str = "alice", client_id: str = "www", scope: Words = SCOPE[:3]) -> TokenAnswer:
        """A new grant."""
        request = IssueRequest(client_id=client_id, subject=subject, scope=scope, device="phone", session="s-1")
        return await self.ledger.issue(OPERATOR, request, None, b"")

    async def refresh(
        self, token: str | None, *, client_id: str = "www", source: Source = HOME, scope: Words | None = None
    ) -> TokenAnswer:
        """Exchange a refresh token."""
        assert token is not None
        caller = Caller(client_id=client_id, authenticated=True, auth_method="client_secret_post")
        return await self.ledger.refresh(caller, source, token, scope, None)

    async def refused(self, token: str | None, *, source: Source = HOME) -> Refused:
        """Present a token that must be refused."""
        try:
            await self.refresh(token, source=source)
        except Refused as refusal:
            return refusal
        raise AssertionError("the token was taken")


@asynccontextmanager
async def stocked(folder: Path, *, seed: int = 1) -> AsyncIterator[Stocked]:
    """Open a new ledger in a folder, with the client `www`."""
    clock = [START]
    keys = folder / "ledger.keys"
    ring = KeyRing.create(keys, now=START)
    store = SQLiteStore(folder / "ledger.db", INLINE)
    store.open(ring.ring_id)
    ledger = await Ledger.open(
        store,
        ring,
        keys,
        HeadFile(folder / "ledger.head"),
        Options(),
        clock=lambda: clock[0],
        randomness=Random(seed).randbytes,
    )
    try:
        found = Stocked(ledger, clock)
        await found.clients("www")
        yield found
    finally:
        await ledger.close()
