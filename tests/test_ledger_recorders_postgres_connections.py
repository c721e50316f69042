"""Getting in: guards of ours on every connection, one clear line where it fails, and no password in any of them."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from ledger.recorders import postgres_connections
from ledger.recorders.errors import StoreError, StoreUnreachable
from ledger.recorders.postgres_connections import SECONDS_MAX, Address
from ledger.refusals import LedgerError
from tests.postgres import Server, running
from tests.postgres_pooler import pooled

SECRET = "p@ss:w/rd?#%2F canary"


def problem_of(act: Callable[[], object]) -> str:
    """The one line that something fails with, and that it is one."""
    with pytest.raises((LedgerError, StoreError)) as raised:
        act()
    line = str(raised.value)
    assert 1 == len(line.splitlines())
    shown = raised.value.__context__ is not None and not raised.value.__suppress_context__
    assert not shown, "the driver's own words would follow in a traceback"
    return line


def test_every_connection_is_guarded(postgres_url: str, postgres: Server) -> None:
    """Nothing waits for longer than five seconds: locks, statements, a silent transaction, the network."""
    for url in (postgres_url, postgres.over_tcp(postgres_url)):
        with closing(Address(url).connect()) as connection:
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                asked = "SELECT setting::int FROM pg_settings WHERE name = $1"
                assert 0 < connection.execute(asked, (name,)).fetchall()[0][0] <= SECONDS_MAX * 1000
            given = connection.info.get_parameters()
            assert (str(SECONDS_MAX), "4000") == (given["connect_timeout"], given["tcp_user_timeout"])
            assert "UTF8" == connection.info.parameter_status("client_encoding")


def test_a_url_may_ask_for_less_never_for_more(postgres_url: str) -> None:
    """`connect_timeout` of the URL counts up to our own bound; everything else that libpq knows passes."""
    for asked, expected in (("2", "2"), ("60", "5"), ("0", "5")):
        with closing(Address(f"{postgres_url}&connect_timeout={asked}").connect()) as connection:
            assert expected == connection.info.get_parameters()["connect_timeout"]
    with closing(Address(f"{postgres_url}&application_name=mine").connect()) as connection:
        assert "mine" == connection.info.get_parameters()["application_name"]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ledger:{SECRET}@127.0.0.1/db",
        f"postgresql://ledger:{SECRET}@127.0.0.1:1/db?nonsense=1",
        "postgresql://ledger:canary@word@127.0.0.1:1/db",
        "postgresql://ledger:canary/word@127.0.0.1:1/db",
        "postgresql://ledger:%zzcanary@127.0.0.1:1/db",
        "postgresql://ledger:canary@[::1/db",
        "postgresql://ledger@127.0.0.1:1/db?password=canary&connect_timeout=canary",
        f"postgresql://ledger:{quote(SECRET, safe='')}@127.0.0.1:1/db",
        f"postgresql://ledger:{quote(SECRET, safe='')}@127.0.0.1:1,127.0.0.1:2/db",
        "postgresql://ledger:canary@nowhere.invalid/db",
        "postgresql://canary:canary@127.0.0.1:1/db",
    ],
)
def test_no_password_in_any_error(url: str) -> None:
    """I-20: of a URL that is none, of one that a password has broken, and of a server that is not there."""
    line = problem_of(lambda: Address(url).connect())
    assert "canary" not in line
    assert "PostgreSQL" in line or "DATABASE_URL" in line


def test_nor_in_a_repr(postgres: Server) -> None:
    """I-20: what a debugger or a log line would show."""
    url = postgres.url("postgres", tcp=True)
    address = Address(url)
    with closing(address.connect()) as connection:
        for shown in (repr(address), str(address.place), repr(connection), str(connection.info)):
            assert postgres.password not in shown
    assert f"PostgreSQL database postgres on 127.0.0.1:{postgres.port}" == str(address.place)


def test_a_wrong_password_is_told_as_such(postgres: Server) -> None:
    """The server's reason, without what was tried."""
    line = problem_of(lambda: Address(postgres.url("postgres", tcp=True, password="canary")).connect())
    where = f"PostgreSQL database postgres on 127.0.0.1:{postgres.port}"
    assert line.startswith(f'{where}: FATAL:  password authentication failed for user "postgres"')
    assert "canary" not in line


def test_what_is_not_there_is_named(postgres: Server) -> None:
    """No such database; no such server; several servers, each with its reason."""
    line = problem_of(lambda: Address(postgres.url("nothere")).connect())
    assert 'database "nothere" does not exist' in line
    line = problem_of(lambda: Address("postgresql://u@127.0.0.1:1/db").connect())
    assert "PostgreSQL database db on 127.0.0.1:1: Connection refused" in line
    line = problem_of(lambda: Address("postgresql://u@127.0.0.1:1,127.0.0.1:2/db").connect())
    assert line.startswith("PostgreSQL database db on 127.0.0.1:1,127.0.0.1:2: ")
    assert "port 1 failed" in line
    assert "port 2 failed" in line


def test_an_old_server_or_another_encoding_is_refused(
    postgres: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we could not serve on is said before anything is."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    line = problem_of(lambda: Address(postgres.url("latin")).connect())
    assert line.endswith("the database's encoding is LATIN1, UTF8 is needed")
    postgres.drop_database(postgres.url("latin"))
    monkeypatch.setattr(postgres_connections, "VERSION_MIN", 990000)
    line = problem_of(lambda: Address(postgres_url).connect())
    assert "PostgreSQL 99 or later is needed, this is " in line


def test_a_pooler_that_lends_by_the_transaction_is_refused(postgres: Server, postgres_url: str) -> None:
    """What is set, prepared and locked there is the next client's: it is said at once. One that lends for as long as a
    client stays is none that anybody notices."""
    with pooled(postgres, postgres_url, by_transaction=True) as url:
        line = problem_of(lambda: Address(url).connect())
        assert line.endswith(": a pooler lends connections by the transaction; session pooling is needed")
    with pooled(postgres, postgres_url, by_transaction=False) as url:
        address = Address(url)
        with closing(address.connect()) as one, closing(address.connect()) as other:
            assert (
                one.execute("SELECT pg_backend_pid()").fetchone() != other.execute("SELECT pg_backend_pid()").fetchone()
            )


def test_a_server_that_says_nothing_is_given_up_on() -> None:
    """A frozen server, or a network that swallows everything: an error within the time-out, never a hang."""
    with running() as server:
        url = server.over_tcp(server.create_database()) + "?connect_timeout=2"
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            assert "timeout expired" in problem_of(lambda: Address(url).connect())
            assert time.monotonic() - begun < SECONDS_MAX
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        Address(url).connect().close()


def test_a_standby_is_not_written_to(tmp_path: Path) -> None:
    """After a fail-over the old primary comes back read-only: connecting goes on to the next server, or says so,
    whatever the URL would be content with."""
    with running() as server:
        url = server.over_tcp(server.create_database())
        server.stop()
        server.start(default_transaction_read_only="on")
        for asked in ("", "?target_session_attrs=any"):
            with pytest.raises(StoreUnreachable, match="read-only"):
                Address(url + asked).connect()
        server.stop()
        server.start(default_transaction_read_only="off")
        Address(url).connect().close()
