"""A real ledger on a real file, for tests of the ledger itself: a clock that is set, seeded randomness, any store.

`open_ledger` opens one in a folder, and opens the same one again after `close` or a crash. `check_ledger` says whether
everything in its file holds together.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ledger import times
from ledger.answers import Caller, GrantAct, IssueRequest, Source, TokenAnswer
from ledger.application import Ledger, Options
from ledger.batch import Batch
from ledger.clients import LOCAL_OPERATOR, ClientSpec, Operator, OperatorSpec, Settings
from ledger.commits import Commits
from ledger.events import AnyEvent, GrantIssued, Words, decode
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.policy import PRESETS, Policy
from ledger.private import PrivateGrant
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import Refusal, Refused
from projections import INLINE
from tests.engines import postgres_store, url_of
from tests.ledger_check import Checked, check_ledger, copied, replayed

__all__ = [
    "ELSEWHERE", "HOME", "ISSUER", "LOCAL_OPERATOR", "OPERATORS", "OPTIONS", "SCOPE", "SECURITY", "START", "Checked",
    "Clock", "Opened", "caller", "check_ledger", "client", "open_ledger", "operator", "replayed", "with_policy",
]  # fmt: skip

START = times.micros("2026-11-25T10:00:00.000000Z")
SCOPE: Words = ("read", "openid", "profile", "write")
HOME = Source("198.51.100.7", "app/1")
ELSEWHERE = Source("203.0.113.9", "curl/8")
ISSUER = Operator(name="login-app", enabled=True, roles=("issuer",))
SECURITY = Operator(name="soc", enabled=True, roles=("security",))
OPTIONS = Options(refresh_per_second=0)
"""As by default, but for a limit that would stand in the way of most tests."""


class Clock:
    """The wall clock of a test, in microseconds. It stands still until it is told."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass; negative seconds put the clock back."""
        self.now += int(seconds * times.SECOND)


def client(
    client_id: str = "www",
    *,
    auth: str = "client_secret",
    scope: Words = SCOPE,
    policy: Policy = PRESETS["standard"],
    secret: str = "Secr3t!",
) -> ClientSpec:
    """What a clients file says of one client."""
    settings = Settings(auth=auth, scope=scope, policy=policy)
    return ClientSpec(client_id=client_id, settings=settings, secrets=() if auth == "none" else (secret,))


def operator(name: str = "login-app", roles: Words = ("issuer",), clients: Words | None = None) -> OperatorSpec:
    """What a clients file says of one operator."""
    return OperatorSpec(name=name, roles=roles, tokens=(f"token-of-{name}",), clients=clients)


OPERATORS = (operator(), operator("soc", ("security",)))
"""Those of every ledger here, as it is opened."""


def caller(client_id: str = "www", *, authenticated: bool = True) -> Caller:
    """A client that asks."""
    method = "client_secret_post" if authenticated else "none"
    return Caller(client_id=client_id, authenticated=authenticated, auth_method=method)


class Opened:
    """An open ledger, what lies around it, and short ways to use it. `fatal` holds what `on_fatal` was told."""

    def __init__(self, ledger: Ledger, folder: Path, clock: Clock, fatal: list[str]) -> None:
        self.ledger = ledger
        self.store = ledger.store
        self.folder = folder
        self.clock = clock
        self.fatal = fatal

    @property
    def sqlite(self) -> SQLiteStore:
        """The store, which is one on SQLite."""
        assert isinstance(self.store, SQLiteStore)
        return self.store

    @property
    def connection(self) -> sqlite3.Connection:
        """The writing connection of a store on SQLite."""
        return self.sqlite._connection

    @property
    def path(self) -> Path:
        """The database."""
        return self.folder / "ledger.db"

    # ------------------------------------------------------------ acting

    async def apply(
        self, *clients: ClientSpec, operators: Sequence[OperatorSpec] = (), serial: int | None = None
    ) -> None:
        """Let exactly these clients and operators exist."""
        await self.ledger.operators.apply(clients, operators, serial=serial)

    async def issue(
        self,
        subject: str = "alice",
        *,
        client_id: str = "www",
        scope: Words = SCOPE[:3],
        key: str | None = None,
        body: bytes = b"{}",
        device: str | None = "Alice's phone",
        session: str | None = "session-1",
    ) -> TokenAnswer:
        """A new grant."""
        request = IssueRequest(client_id=client_id, subject=subject, scope=scope, device=device, session=session)
        return await self.ledger.operators.issue(ISSUER, request, key, body)

    async def refresh(
        self,
        token: str | TokenAnswer | None,
        *,
        client_id: str = "www",
        source: Source = HOME,
        scope: Words | None = None,
        authenticated: bool = True,
    ) -> TokenAnswer:
        """Exchange a refresh token, or the one of an answer, for its successor."""
        text = token.refresh_token if isinstance(token, TokenAnswer) else token
        assert text is not None
        return await self.ledger.refresh(caller(client_id, authenticated=authenticated), source, text, scope, None)

    async def refused(
        self, token: str | TokenAnswer | None, *, client_id: str = "www", source: Source = HOME
    ) -> Refused:
        """Present a token that must be refused; the refusal."""
        try:
            await self.refresh(token, client_id=client_id, source=source)
        except Refused as refusal:
            return refusal
        raise AssertionError("the token was taken")

    async def chain(self, answer: TokenAnswer, length: int, *, every_seconds: float = 1) -> TokenAnswer:
        """Refresh a grant that often, in turn; the last answer."""
        for _ in range(length):
            self.clock.pass_seconds(every_seconds)
            answer = await self.refresh(answer)
        return answer

    async def act(self, act: GrantAct, grant_id: str, *, trust: str | None = None, reason: str | None = None) -> None:
        """Let an operator of the security role act on a grant."""
        await self.ledger.operators.act_on_grant(SECURITY, grant_id, act, reason, trust)

    # ------------------------------------------------------------ looking

    def events(self, stream: str | None = None) -> list[AnyEvent]:
        """All events that are durable, or those of one stream, in log order."""
        where = "" if stream is None else "WHERE s.name = ?"
        rows = self.rows(
            f"SELECT e.body FROM events e JOIN streams s ON s.id = e.stream {where} ORDER BY e.position",
            *([] if stream is None else [stream]),
        )
        return [decode(str(body)) for (body,) in rows]

    def grant_events(self, answer: TokenAnswer) -> list[AnyEvent]:
        """The events of an answer's grant."""
        return self.events(f"grant:{answer.grant_id}")

    def issuance(self, answer: TokenAnswer) -> GrantIssued:
        """How an answer's grant came to be."""
        issued = self.grant_events(answer)[0]
        assert isinstance(issued, GrantIssued)
        return issued

    def topics(self, answer: TokenAnswer) -> list[str]:
        """What happened to an answer's grant, `grant.` left out."""
        return [event.topic.removeprefix("grant.") for event in self.grant_events(answer)]

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read from the file on a connection of the test's own: what is durable, whatever the ledger thinks."""
        if url_of(self.path) is not None:
            with copied(self.path) as copy:
                return copy.execute(sql, parameters).fetchall()
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def last_position(self) -> int:
        """The last position that is durable."""
        ((position,),) = self.rows("SELECT max(position) FROM events")
        assert isinstance(position, int)
        return position

    def check_memory(self) -> None:
        """I-12: whatever the ledger believes to know is what its store says."""
        memory = self.ledger.memory
        batch = Batch(self.store, memory)
        try:
            for name, loaded in list(memory.streams.items()):
                head = self.store.head(name)
                assert head is not None, f"{name}: known, and not in the store"
                known = (loaded.id, loaded.v, loaded.position, bytes.fromhex(loaded.head or ""))
                assert known == (head.id, head.v, head.position, head.head), f"{name}: memory is not the store"
                anew = batch.reload(name)
                assert anew is not None
                assert loaded.aggregate == anew.aggregate, f"{name}: another state than the store's"
                assert _private(loaded.private) == _private(anew.private), (
                    f"{name}: another private row than the store's"
                )
                memory.streams[name] = loaded
            assert memory.position == self.store.last()
            assert memory.authority.control in (-1, self.store.control()[0])
        finally:
            self.store.rollback()


def _private(row: PrivateGrant | None) -> list[object]:
    return [] if row is None else [getattr(row, name) for name in row.__slots__]


async def refused(waiting: Awaitable[object]) -> Refusal:
    """Await what must be refused; the reason."""
    try:
        await waiting
    except Refused as refusal:
        return refusal.refusal
    raise AssertionError("it was let through")


StoreMaker = Callable[[Path], SQLiteStore | PostgresStore]


def default_store(path: Path) -> SQLiteStore | PostgresStore:
    """The store as it is served: on SQLite, or on what the fixture `each_store` says."""
    return postgres_store(path) or SQLiteStore(path, INLINE)


@asynccontextmanager
async def open_ledger(
    folder: Path,
    *,
    clock: Clock | None = None,
    seed: int | str = 1,
    options: Options = OPTIONS,
    store: StoreMaker = default_store,
    clients: Sequence[ClientSpec] | None = (client(),),
    to_heal: bool = False,
) -> AsyncIterator[Opened]:
    """Open the ledger of a folder, a new one where there is none, and let `clients` exist in it (None: as they are).

    Opening the same folder again wants another seed, or what was random once comes again.
    """
    clock = clock or Clock()
    keys = folder / "ledger.keys"
    ring = KeyRing.load(keys) if keys.exists() else KeyRing.create(keys, now=clock.now)
    opened_store = store(folder / "ledger.db")
    opened_store.open(ring.ring_id)
    fatal: list[str] = []
    try:
        ledger = await Ledger.open(
            opened_store,
            ring,
            keys,
            HeadFile(folder / "ledger.head"),
            options,
            clock=clock,
            randomness=Random(f"{seed} {folder.name}").randbytes,
            on_fatal=fatal.append,
            to_heal=to_heal,
        )
    except BaseException:
        opened_store.close()
        raise
    opened = Opened(ledger, folder, clock, fatal)
    try:
        if clients is not None and ledger.behind is None:
            await opened.apply(*clients, operators=OPERATORS)
        yield opened
    finally:
        await ledger.close()


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[Opened, Opened]]:
    """Two ledgers on one store, with one key ring, as two processes have them; checked at the end."""
    clock = Clock()
    async with (
        open_ledger(folder, clock=clock) as one,
        open_ledger(folder, clock=clock, seed=2, clients=None) as other,
    ):
        yield one, other
    check_ledger(one.path)


@pytest.fixture
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node hears of what others do by nothing but its own batches."""
    monkeypatch.setattr(Commits, "look", lambda self, decide: None)


def with_policy(preset: str = "standard", **fields: object) -> Policy:
    """A preset with some fields changed."""
    return msgspec.structs.replace(PRESETS[preset], **fields)
