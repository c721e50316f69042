"""A real ledger on a real file for tests of what is asked of it: a clock that is set, clients, an operator, chains."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import get_args

import msgspec

from ledger import times
from ledger.answers import Caller, GrantAct, IssueRequest, Source, TokenAnswer
from ledger.application import Ledger, Options
from ledger.clients import ClientSpec, Operator, OperatorSpec, Settings
from ledger.events import Words
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.policy import PRESETS, Policy
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import Refused
from projections import INLINE

DAY = 86_400
ACTS = ("issue", "issue", "refresh", "refresh", "refresh", "operate", "subject", "client", "reuse")
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
    def connection(self) -> sqlite3.Connection:
        """The writing connection of a store on SQLite."""
        assert isinstance(self.store, SQLiteStore)
        return self.store._connection

    @property
    def now(self) -> int:
        """The wall clock in microseconds."""
        return self._clock[0]

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass; negative seconds put the clock back."""
        self._clock[0] += int(seconds * times.SECOND)

    async def flushed(self) -> None:
        """Let two minutes pass, after which what was counted in memory is written."""
        self.pass_seconds(120)
        await self.ledger.afterwards.flush_presentations(self.now)

    async def clients(self, *names: str, policy: Policy = PRESETS["standard"], serial: int | None = None) -> None:
        """Let exactly these clients exist."""
        specs = [
            ClientSpec(client_id=name, settings=Settings(auth="client_secret", scope=SCOPE, policy=policy))
            for name in names
        ]
        specs = [msgspec.structs.replace(spec, secrets=("Secr3t!",)) for spec in specs]
        operators = [OperatorSpec(name="login-app", roles=("issuer", "security"), tokens=("operator-token",))]
        await self.ledger.operators.apply(specs, operators, serial=serial)

    async def issue(self, subject: str = "alice", client_id: str = "www", scope: Words = SCOPE[:3]) -> TokenAnswer:
        """A new grant."""
        request = IssueRequest(client_id=client_id, subject=subject, scope=scope, device="phone", session="s-1")
        return await self.ledger.operators.issue(OPERATOR, request, None, b"")

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


async def world(at: Stocked, chance: Random, acts: int) -> list[str]:
    """A ledger with a past: grants issued, used, stopped, ended by all means, time passing."""
    await at.clients("www", "app")
    tokens: dict[str, tuple[str | None, str]] = {}
    for _ in range(acts):
        at.pass_seconds(chance.choice((1, 60, 3600, DAY, 3 * DAY)))
        act = chance.choice(
            ("issue", "issue", "refresh", "refresh", "refresh", "operate", "subject", "client", "reuse")
        )
        person = chance.choice(("ann", "bob", "eve", "joe"))
        before = chance.choice((None, at.now - chance.randrange(9) * DAY * times.SECOND))
        grant_id = chance.choice(list(tokens) or [""])
        if act == "issue" or not tokens:
            client_id = chance.choice(("www", "app"))
            issued = await at.issue(person, client_id)
            tokens[issued.grant_id] = (issued.refresh_token, client_id)
        elif act in ("refresh", "reuse"):
            token, client_id = tokens[grant_id]
            try:
                answer = await at.refresh(token, client_id=client_id)
            except Refused:
                continue
            if act == "refresh":
                tokens[grant_id] = (answer.refresh_token, client_id)
        elif act == "operate":
            try:
                what = chance.choice(get_args(GrantAct))
                await at.ledger.operators.act_on_grant(
                    OPERATOR, grant_id, what, None, "current" if what == "reinstate" else None
                )
            except Refused:
                continue
        elif act == "subject":
            await at.ledger.operators.revoke_subject(OPERATOR, person, None, before)
        elif chance.random() < 0.3:
            await at.ledger.operators.revoke_client(OPERATOR, chance.choice(("www", "app")), None, before)
    return list(tokens)


async def incident(at: Stocked) -> None:
    """A narrowing, a suspect retry and a reuse, so that every table has rows and every kind of write was used."""
    issued = await at.issue("mallory")
    first = await at.refresh(issued.refresh_token, scope=("read",))
    await at.refresh(issued.refresh_token, source=ELSEWHERE)
    await at.refresh(first.refresh_token)
    at.pass_seconds(100)
    await at.refused(issued.refresh_token)
