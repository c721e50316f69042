"""WORKERS=2 on PostgreSQL refresh what a third process archives at the same time (I-23)."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import archive
from tests.engines import standing_for
from tests.ledger_check import check_ledger
from tests.ledgers import Clock, open_ledger
from tests.postgres import Server as Postgres
from tests.servers import Server, clients_toml, running

CHAINS = 3


class Ticking(Clock):
    """The machine's own clock, as the server has it."""

    def __call__(self) -> int:
        return time.time_ns() // 1000


class Chain(threading.Thread):
    """A client that refreshes on and on, over a new connection each time: so either worker has its turn."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.token = server.issue().refresh_token
        self.refreshed = 0
        self.refused: list[object] = []
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set() and not self.refused:
            answer = self._server.refresh("www", self.token)
            if answer.status == 200:
                self.token = answer.json()["refresh_token"]
                self.refreshed += 1
            else:
                self.refused.append((answer.status, answer.body))


@pytest.mark.usefixtures("made_small")
def test_two_workers_refresh_what_a_third_process_archives(
    tmp_path: Path, postgres: Postgres, postgres_url: str, count: Callable[[int, int], int]
) -> None:
    """All of the past that may move does, again and again, of grants that are being refreshed: every refresh is
    answered, and every event is there once."""
    url = postgres.over_tcp(postgres_url)
    settings = {"DATABASE_URL": url, "WORKERS": "2", "REFRESH_PER_SECOND": "0"}
    with running(tmp_path / "server", clients=clients_toml(), settings=settings) as server:
        server.secrets.append(postgres.password)
        for _ in range(3):
            grant = server.issue()
            server.refresh("www", grant.refresh_token)
            server.operator("security", "POST", f"/grants/{grant.grant_id}/revoke", {"reason": "over"})
        folder = tmp_path / "archiver"
        folder.mkdir()
        shutil.copy(server.keys_file, folder / "ledger.keys")
        chains = [Chain(server) for _ in range(CHAINS)]

        async def archived() -> list[int]:
            moved: list[int] = []
            async with open_ledger(folder, clock=Ticking(), clients=None) as opened:
                while len(moved) < count(4, 40) or min(chain.refreshed for chain in chains) < count(20, 400):
                    moved.append((await archive(opened, opened.clock())).events)
                    assert [] == [chain.refused for chain in chains if chain.refused]
            return moved

        with standing_for(folder / "ledger.db", url):
            for chain in chains:
                chain.start()
            try:
                moved = asyncio.run(archived())
            finally:
                for chain in chains:
                    chain.ending.set()
                for chain in chains:
                    chain.join()
            assert sum(moved) > 3 * 4 + CHAINS * count(20, 400)
            assert [200] * CHAINS == [server.refresh("www", chain.token).status for chain in chains]
            server.stop()
            found = check_ledger(folder / "ledger.db")
        redeemed = 3 + sum(chain.refreshed + 1 for chain in chains)
        assert redeemed == found.topics["grant.token_redeemed"] == found.topics["grant.token_rotated"]
