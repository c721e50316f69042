"""A PostgreSQL that was reached anew is another one, which lacks what the last one had: a standby that was behind.

What it lacks is lost, and nobody here can bring it back. But it is said at once, and nothing is decided on it.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from ledger import application, operating
from ledger.answers import TokenAnswer
from ledger.commits import Commits
from ledger.events import LedgerStarted
from ledger.head_file import HeadFile
from ledger.log_end import LogEnd
from ledger.memory import Memory
from ledger.recorders import postgres
from ledger.refusals import Refusal, Refused, Unavailable
from tests.engines import standing_for
from tests.ledger_check import check_ledger
from tests.ledgers import OPERATORS, Clock, Opened, caller, client, open_ledger
from tests.postgres import Server, running

T = TypeVar("T")

WWW, XX, YY = client("www"), client("xx"), client("yy")
SERVED_SECONDS_MAX = 6.0


class Nodes:
    """Nodes of one store, each with a folder and a head file of its own; they have one key ring."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.url = url
        self.clock = Clock()
        self._folder = folder
        self._stack = stack
        self._opened = 0

    @asynccontextmanager
    async def node(self, name: str) -> AsyncIterator[Opened]:
        folder = self._folder / name
        if not folder.exists():
            folder.mkdir()
            self._stack.enter_context(standing_for(folder / "ledger.db", self.url))
        if self._opened:
            shutil.copy(self._folder / "a" / "ledger.keys", folder / "copied.keys")
            (folder / "copied.keys").rename(folder / "ledger.keys")
        clients = None if self._opened else (WWW, XX, YY)
        self._opened += 1
        async with open_ledger(folder, clock=self.clock, seed=self._opened, clients=clients) as opened:
            yield opened


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def nodes(server: Server, tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(server.create_database(), tmp_path, stack)


@pytest.fixture
def nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node serves on, as one does that has acknowledged nothing of what is gone: what follows is about what it knew.
    It does nothing by itself: it must not meet the standby before that has got another history."""
    monkeypatch.setattr(application, "TICK_SECONDS", 3600.0)
    monkeypatch.setattr(Commits, "look", lambda self, decide: None)
    monkeypatch.setattr(LogEnd, "meet", lambda self, reads: True)


async def served(act: Callable[[], Awaitable[T]]) -> T | None:
    """What comes of it as soon as the store is reached again; None where nobody is served in time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SERVED_SECONDS_MAX
    while loop.time() < until:
        try:
            return await act()
        except Unavailable:
            await asyncio.sleep(0.05)
    return None


async def told(node: Opened, answer: TokenAnswer, client_id: str) -> str:
    """How a refresh ends."""
    try:
        await node.refresh(answer, client_id=client_id)
    except Refused as refused:
        return refused.refusal.name
    return "200"


async def test_who_has_acknowledged_what_is_gone_says_so_and_answers_nobody(server: Server, nodes: Nodes) -> None:
    """I-23: also where another node has written on, past the very position that was acknowledged."""
    async with nodes.node("a") as a:
        first = await a.issue()
        standby = server.standby()
        second = await served(lambda: a.refresh(first))
        lost = await a.refresh(second)
        server.fail_over(standby)
        async with nodes.node("b") as b:
            await write_beyond(b, lost.position)
            assert await served(lambda: a.refresh(lost)) is None
            assert "restore acknowledge" in (a.ledger.readiness() or "")
            assert a.ledger.behind is not None
            assert lost.position == a.ledger.behind.position
            assert b.ledger.behind is None, "it has acknowledged nothing that is gone"
            assert await b.refresh(await b.issue("bob")) is not None
    known = HeadFile(a.path.parent / "ledger.head.lost").read()
    assert known is not None
    assert lost.position == known.position, "a stop does not make the loss forgotten"


async def test_nothing_is_recorded_then(server: Server, nodes: Nodes) -> None:
    """I-23: neither by the ledger's own work that was in line when it was found out, nor at a stop, of what had been
    counted: it would stand on a log whose loss nobody has acknowledged."""
    async with nodes.node("a") as a:
        first, over = await a.issue(), await a.issue("bob")
        await a.act("revoke", over.grant_id)
        standby = server.standby()
        await served(lambda: a.refresh(first))
        for _ in range(3):
            await a.refused(over)
        assert list(a.ledger.desk.presentations.due(nodes.clock.now, all_of_them=True))
        server.fail_over(standby)
        end = a.last_position()
        async with asyncio.timeout(20):
            while a.ledger.behind is None:
                own = a.ledger.commits.submit(partial(operating.record_life, kind=LedgerStarted), ours=True)
                assert isinstance((await asyncio.gather(own, return_exceptions=True))[0], Unavailable)
                await asyncio.sleep(0.05)
    assert end == a.last_position()


async def test_who_does_without_a_head_file_is_told_and_serves_on(
    server: Server, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With `off` no command could say that the loss is known: it has no head file either, to know of one."""
    monkeypatch.setattr(HeadFile, "off", True)
    async with nodes.node("a") as a:
        first = await a.issue()
        standby = server.standby()
        await served(lambda: a.refresh(first))
        server.fail_over(standby)
        assert await served(lambda: a.refresh(first)) is not None
        assert a.ledger.behind is None
    assert "log_lacks_what_was_acknowledged" in [record.getMessage() for record in caplog.records]


async def test_who_is_started_afterwards_finds_out_too(server: Server, nodes: Nodes) -> None:
    """I-23: by the head file, though the log has gone on beyond it. Once that was acknowledged it is so for good."""
    async with nodes.node("a") as a:
        first = await a.issue()
        standby = server.standby()
        lost = await served(lambda: a.refresh(first))
        assert lost is not None
    server.fail_over(standby)
    async with nodes.node("b") as b:
        await write_beyond(b, lost.position)
        async with nodes.node("a") as a:
            assert a.ledger.behind is not None
            with pytest.raises(Unavailable):
                await a.refresh(lost)
            assert await a.ledger.operators.restore_acknowledge() is not None
            assert Refusal.SUSPENDED is (await a.refused(lost)).refusal
            assert await a.refresh(await a.issue()) is not None
        async with nodes.node("a") as a:
            assert a.ledger.behind is None
    check_ledger(b.path)


async def test_what_one_node_has_acknowledged_to_be_lost_all_know(server: Server, nodes: Nodes) -> None:
    """Two that were running have both lost something: said once, both go on, though the log had gone on before."""
    async with nodes.node("a") as a, nodes.node("b") as b:
        first, other = await a.issue(), await b.issue("bob")
        standby = server.standby()
        await served(lambda: a.refresh(first))
        await served(lambda: b.refresh(other))
        server.fail_over(standby)
        async with nodes.node("c") as c:
            await write_beyond(c, max(a.ledger.acknowledged_position, b.ledger.acknowledged_position))
            async with asyncio.timeout(20):
                while a.ledger.behind is None or b.ledger.behind is None:
                    await asyncio.sleep(0.05)
            assert await a.ledger.operators.restore_acknowledge() is not None
            shutil.copy(a.path.parent / "ledger.keys", b.path.parent / "ledger.keys")
            assert await served(lambda: b.refresh(other)) is not None
            assert (None, None) == (a.ledger.readiness(), b.ledger.readiness())


async def write_beyond(node: Opened, position: int | None) -> None:
    """Until the log has gone on past a position that was given on the server that is gone."""
    assert position is not None
    while node.last_position() <= position:
        await node.issue("carol")


async def on_the_same_number(server: Server, nodes: Nodes) -> tuple[str | None, str | None]:
    """A node hears that xx is no client any more, which is lost then; on the standby the same change of authority, by
    its number, is that yy is none. How refreshes of both end at that node, which has acknowledged nothing since."""
    async with nodes.node("a") as a:
        of_xx, of_yy = await a.issue("px", client_id="xx"), await a.issue("py", client_id="yy")
        standby = server.standby()
        async with nodes.node("b") as b:
            await served(lambda: b.apply(WWW, YY, operators=OPERATORS))
            assert "UNKNOWN_TOKEN" == await served(lambda: told(a, of_xx, "xx"))
        server.fail_over(standby)
        async with nodes.node("c") as c:
            await c.apply(WWW, XX, operators=OPERATORS)
            return await served(lambda: told(a, of_xx, "xx")), await served(lambda: told(a, of_yy, "yy"))


@pytest.mark.usefixtures("nothing_is_missed")
async def test_the_same_number_is_not_the_same_authority(server: Server, nodes: Nodes) -> None:
    """I-06: what was ended on the server that serves now is refused, what was ended on the dead one alone is not."""
    assert ("200", "UNKNOWN_TOKEN") == await on_the_same_number(server, nodes)


@pytest.mark.usefixtures("nothing_is_missed")
async def test_who_went_by_the_number_alone_would_serve_whom_somebody_has_ended(
    server: Server, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin."""
    monkeypatch.setattr(Memory, "stands_on", lambda self, control: control == self.authority.control)
    assert ("UNKNOWN_TOKEN", "200") == await on_the_same_number(server, nodes)


async def on_a_head_of_the_dead(server: Server, nodes: Nodes) -> None:
    """A node has seen how far another had brought a grant, which is lost; on the standby it came as far by other
    events. Then the first node brings it on. The record is checked."""
    async with nodes.node("a") as a:
        first = await a.issue()
        other = await a.refresh(await a.issue("bob"))
        standby = server.standby()
        async with nodes.node("b") as b:
            lost = await served(lambda: b.refresh(first))
            assert lost is not None
            assert await served(lambda: a.ledger.introspect(caller(), lost.access_token)) is not None
        server.fail_over(standby)
        async with nodes.node("c") as c:
            again = await c.refresh(first)
            # What met the end of the connection is read anew in any case; so let that be about another grant.
            assert await served(lambda: a.ledger.introspect(caller(), other.access_token)) is not None
            assert await served(lambda: a.refresh(again)) is not None
            check_ledger(c.path)


@pytest.mark.usefixtures("nothing_is_missed")
async def test_a_head_that_only_the_dead_server_had_is_not_written_on(server: Server, nodes: Nodes) -> None:
    """I-13: the chain of hashes holds."""
    await on_a_head_of_the_dead(server, nodes)


@pytest.mark.usefixtures("nothing_is_missed")
async def test_who_went_by_the_version_alone_would_break_the_chain(
    server: Server, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin."""
    monkeypatch.setattr(Memory, "stands_on", lambda self, control: control == self.authority.control)
    with pytest.raises(AssertionError):
        await on_a_head_of_the_dead(server, nodes)


@pytest.mark.usefixtures("server")
async def test_who_reaches_it_before_the_functions_are_there_heals_once_they_are(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-24: a restore has not made them yet. It waits, says why, and needs no restart."""
    monkeypatch.setattr(postgres, "OUTCOME_SECONDS_MAX", 0.5)
    async with nodes.node("a") as a:
        first = await a.issue()
        with psycopg.connect(nodes.url, autocommit=True) as connection:
            connection.execute("ALTER FUNCTION ledger_refresh RENAME TO away")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            async with asyncio.timeout(30):
                while "token-ledger init" not in (a.ledger.commits.last_error or ""):
                    assert await served(lambda: a.refresh(first)) is None
            connection.execute("ALTER FUNCTION away RENAME TO ledger_refresh")
        assert await served(lambda: a.refresh(first)) is not None
        assert a.ledger.readiness() is None
