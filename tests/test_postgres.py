"""The PostgreSQL that tests bring along: it starts for anybody, and nothing of it is left behind."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.postgres import Server, binaries, running
from tests.server_process import PROJECT, eventually

_HOLDING = """
import time
from tests.postgres import running
with running() as server:
    print(server.process.pid, server.folder, flush=True)
    time.sleep(60)
"""


def test_databases_are_empty_and_apart(postgres: Server) -> None:
    """What one test makes no other sees; a copy of a database has what that had."""
    one, other = postgres.create_database(), postgres.create_database()
    with psycopg.connect(one, autocommit=True) as connection:
        connection.execute("CREATE TABLE mine (x int)")
    copy = postgres.create_database(one.partition("?")[0].rpartition("/")[2])
    for url, expected in ((one, "mine"), (other, None), (copy, "mine")):
        with psycopg.connect(url) as connection:
            assert (expected,) == connection.execute("SELECT to_regclass('mine')::text").fetchone()
        postgres.drop_database(url)


def test_it_lies_where_nobody_else_looks(postgres: Server) -> None:
    """The socket that asks for no password is in a folder of one user; over TCP there is one."""
    assert 0o700 == postgres.folder.stat().st_mode & 0o777
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url("postgres", tcp=True, password="wrong"))


def test_it_ends_with_those_who_started_it() -> None:
    """Killed without a word: the server goes down with them."""
    command = [sys.executable, "-c", _HOLDING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as holder:
        assert holder.stdout is not None
        pid, folder = holder.stdout.readline().split()
        assert Path(f"/proc/{pid}/cmdline").read_bytes()
        holder.send_signal(signal.SIGKILL)
    eventually(lambda: not _runs(int(pid)), what="the end of PostgreSQL")
    shutil.rmtree(folder)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


def test_a_failure_inside_leaves_nothing() -> None:
    """Whatever a test raises: no process, no folder."""
    seen: list[Server] = []

    def fail() -> None:
        with running() as server:
            seen.append(server)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not seen[0].folder.exists()
    assert seen[0].process is not None
    assert seen[0].process.poll() is not None


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LEDGER_PG_BIN wins, also where it is wrong."""
    monkeypatch.setenv("LEDGER_PG_BIN", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="LEDGER_PG_BIN"):
        binaries()
    monkeypatch.delenv("LEDGER_PG_BIN")
    assert os.access(binaries() / "postgres", os.X_OK)
