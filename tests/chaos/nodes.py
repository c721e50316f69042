"""Two nodes on one PostgreSQL, each one process behind a way of its own to it, and clients that go from one to the
other with every request."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.appending import NAMES
from tests.chaos.chains import Chain, faults_of
from tests.chaos.exchange import Line
from tests.chaos.files import check_files, report
from tests.chaos.load import converge
from tests.chaos.processes import TroubledServer
from tests.engines import standing_for
from tests.postgres import Server as Postgres
from tests.postgres_proxy import Proxy, proxied
from tests.server_process import eventually
from tests.servers import Grant, Server

CLIENTS = ("std", "std", "mob", "std", "keep", "std", "std", "mob")

WITHOUT_VERSIONS = (
    ("s.id = m.id AND s.v = m.v FOR NO KEY", "s.id = m.id FOR NO KEY"),
    ("id = p_id AND v = p_before FOR NO KEY", "id = p_id FOR NO KEY"),
)
WITHOUT_PREMISES = ("IF cardinality(p_read_id) > 0 THEN", "IF false THEN")
"""Phrases of the functions that append, and what replaces each in a broken twin."""


class Wanderer(Chain):
    """A client whose requests go to each node in turn: its grant is touched by all of them alternately."""

    def __init__(self, nodes: Sequence[Server], grant: Grant, *, turn: int = 0) -> None:
        super().__init__(nodes[0], grant, narrows=turn % 8 == 3)
        self._lines = [Line(node) for node in nodes]
        self._turn = turn

    def lines_to_ask(self) -> Sequence[Line]:
        self._turn += 1
        return [self._lines[self._turn % len(self._lines)]]


@dataclass
class Nodes:
    """`one` reaches the database through `way`, `other` without; both have one key ring. `other` forgets nearly all
    that it has read at once."""

    postgres: Postgres
    url: str
    way: Proxy
    one: Server
    other: Server

    @property
    def both(self) -> tuple[Server, Server]:
        return self.one, self.other

    def wanderers(self, count: int) -> list[Chain]:
        """Clients of grants of their own, that go to each node in turn."""
        return [
            Wanderer(self.both, self.one.issue(CLIENTS[number % len(CLIENTS)]), turn=number) for number in range(count)
        ]

    def stay(self, node: Server, count: int) -> list[Chain]:
        """Clients that know one node alone."""
        return [Chain(node, self.one.issue(CLIENTS[number % len(CLIENTS)])) for number in range(count)]


@contextmanager
def two_nodes(
    folder: Path,
    postgres: Postgres,
    *,
    settings: Mapping[str, str] | None = None,
    broken: Callable[[str], object] = lambda url: None,
) -> Iterator[Nodes]:
    """Two nodes on a new database until the block ends, however it ends. `broken` is done to it before they serve."""
    url = postgres.create_database()
    with proxied(postgres.port) as way:
        direct = postgres.over_tcp(url)
        through = direct.replace(f":{postgres.port}/", f":{way.port}/")
        assert through != direct
        more = {"LOG_LEVEL": "info", **(settings or {})}
        one = Server(folder / "one", settings={**more, "DATABASE_URL": through})
        other = TroubledServer(folder / "other", twin="remembers_little", settings={**more, "DATABASE_URL": direct})
        other.settings["HEAD_FILE"] = str(other.folder / "token-ledger.head")
        other.keys_file, other.tokens = one.keys_file, one.tokens
        for node in (one, other):
            node.settings["ISSUER"] = one.issuer
            node.secrets.append(postgres.password)
        try:
            one.init()
            broken(url)
            for node in (one, other):
                node.start(wait=False)
            for node in (one, other):
                node.wait_ready()
            yield Nodes(postgres, url, way, one, other)
        finally:
            for node in (one, other):
                node.kill()
            postgres.drop_database(url)


def end_well(nodes: Nodes, chains: Sequence[Chain]) -> None:
    """Both are ready; every client asks once more, wherever it likes; both end in order, and the store is whole."""
    eventually(lambda: all(node.health("/readyz") == 200 for node in nodes.both), within_seconds=20.0, what="readiness")
    converge(chains)
    report(faults_of(list(chains)))
    for node in nodes.both:
        assert 0 == node.terminate(), node.tail()
        node.check_log()
    with standing_for(nodes.one.database, nodes.url):
        check_files(nodes.one.database, chains)


def replaced(url: str, right: str, wrong: str) -> None:
    """Let the functions of a database that append lack something, or dawdle where they say so: a broken twin."""
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        made = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = ANY (%s)"
        sources = [source for (source,) in connection.execute(made, ([*NAMES.values()],)).fetchall() if right in source]
        assert sources, f"in no function: {right}"
        for source in sources:
            assert 1 == source.count(right), f"{source.count(right)} times in a function: {right}"
            connection.execute(source.replace(right, wrong).encode())


def versions_forgotten(url: str) -> None:
    """Let all of them write to streams that have moved: a broken twin."""
    for right, wrong in WITHOUT_VERSIONS:
        replaced(url, right, wrong)


def premises_forgotten(url: str) -> None:
    """Let what was only read have moved on unnoticed: a broken twin."""
    replaced(url, *WITHOUT_PREMISES)
