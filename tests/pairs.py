"""Two nodes on one PostgreSQL in the place of one server: whoever connects comes to the other one each time."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.chaos.processes import TroubledServer
from tests.postgres import Server as Postgres
from tests.servers import Server, running
from tests.wire import Connection, Json

EACH = ("sqlite", "two-nodes")
"""What a trial is run on: one process with its file, or two processes on one database."""


class Pair(Server):
    """A server, and another one beside it on the same database, keys and clients: every second connection is its. What
    one has made or read, the other is asked about next; a grant's requests come to both in turn. One remembers all that
    it has read, and has to find out what of it is true; the other forgets nearly everything at once."""

    def __init__(self, folder: Path, **options: Json) -> None:
        super().__init__(folder, **options)
        self.other = TroubledServer(folder / "other", twin="remembers_little", **options)
        self.other.keys_file, self.other.tokens, self.other.secrets = self.keys_file, self.tokens, self.secrets
        self.other.settings |= {
            "HEAD_FILE": str(self.other.folder / "token-ledger.head"),
            "CLIENTS_FILE": str(self.clients_file),
            "ISSUER": self.issuer,
        }
        self._turn = itertools.cycle((self.port, self.other.port))

    def start(self, *, wait: bool = True) -> "Pair":
        super().start(wait=wait)
        self.other.start(wait=wait)
        return self

    def connect(self, *, source: str = "127.0.0.1", timeout_seconds: float = 30.0) -> Connection:
        address = "127.0.0.1", next(self._turn) if self.other.process is not None else self.port
        return Connection(address, source=source, tls=self.client_tls, timeout_seconds=timeout_seconds)

    def kill(self) -> None:
        super().kill()
        self.other.kill()

    def stop(self) -> None:
        super().stop()
        self.other.stop()


@contextmanager
def _running_pair(folder: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    pair = Pair(folder, settings=settings)
    try:
        pair.start()
        yield pair
    except BaseException:
        pair.kill()
        raise
    pair.stop()


def serving(folder: Path, postgres: Postgres | None, settings: Mapping[str, str]) -> AbstractContextManager[Server]:
    """One process on SQLite; where there is a PostgreSQL, two on a new database of its."""
    if postgres is None:
        return running(folder, settings=settings)
    url = postgres.over_tcp(postgres.create_database())
    return _running_pair(folder, {**settings, "DATABASE_URL": url})
