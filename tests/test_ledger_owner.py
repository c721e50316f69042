"""One owner of a SQLite file, with real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ledger.owner import Owned, OwnerLock
from ledger.refusals import LedgerError

OWNER = """
import sys
from ledger.owner import OwnerLock
lock = OwnerLock.take(sys.argv[1])
print("taken", flush=True)
sys.stdin.read()
lock.release()
print("released", flush=True)
sys.stdin.read()
"""
FOREIGN = """
import fcntl, sys
held = open(sys.argv[1] + ".lock")
fcntl.flock(held, fcntl.LOCK_EX)
print("taken", flush=True)
sys.stdin.read()
"""
"""A program that is none of ours and has the lock file."""
SHARED = "import fcntl\nfcntl.LOCK_EX = fcntl.LOCK_SH\n"


@contextmanager
def process(script: str, database: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has run the script as far as its first line of output."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        try:
            assert "taken\n" == owner.stdout.readline()
            yield owner
        finally:
            owner.kill()


def both_own(script: str, database: Path) -> bool:
    """Whether two processes that run the script both come to be the owner."""
    with process(script, database):
        second = subprocess.run(
            [sys.executable, "-c", script, str(database)], capture_output=True, stdin=subprocess.DEVNULL, check=False
        )
    return b"taken\n" in second.stdout


def refused(database: Path) -> str:
    with pytest.raises(Owned) as caught:
        OwnerLock.take(database)
    return str(caught.value)


def test_a_second_process_is_told_who_the_owner_is(tmp_path: Path) -> None:
    """One line with the lock file and the owner's process id; the database itself need not exist."""
    database = tmp_path / "token-ledger.db"
    with process(OWNER, database) as owner:
        expected = f"{database}.lock: process {owner.pid} already has the database open, and only one may"
        assert expected == refused(database)
        assert expected == refused(database)  # a refusal takes nothing from the owner
    assert [f"{database.name}.lock"] == os.listdir(tmp_path)


def test_a_lock_that_two_can_hold_is_caught(tmp_path: Path) -> None:
    """Broken twin of the test above: a shared lock."""
    assert not both_own(OWNER, tmp_path / "db")
    assert both_own(SHARED + OWNER, tmp_path / "db")


def test_a_killed_owner_owns_nothing(tmp_path: Path) -> None:
    """I-24: SIGKILL leaves no lock behind, and the next owner's number stands in the file at once."""
    database = tmp_path / "token-ledger.db"
    with process(OWNER, database) as owner:
        owner.kill()
        owner.wait()
        with OwnerLock.take(database) as lock:
            assert f"{os.getpid()}\n" == Path(lock.path).read_text()


def test_a_released_lock_is_free(tmp_path: Path) -> None:
    """After an orderly stop another process may follow at once, while the old one still ends."""
    database = tmp_path / "token-ledger.db"
    with process(OWNER, database) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        owner.stdin.close()
        assert "released\n" == owner.stdout.readline()
        with OwnerLock.take(database) as lock:
            lock.release()
            lock.release()
        OwnerLock.take(database).release()


def test_one_process_does_not_own_twice(tmp_path: Path) -> None:
    """Two ledgers opened on one file in one process are as dangerous as in two."""
    with OwnerLock.take(tmp_path / "db"):
        assert f"{tmp_path}/db.lock: process {os.getpid()} already" in refused(tmp_path / "db")
    OwnerLock.take(tmp_path / "db").release()


def test_a_link_leads_to_the_same_lock(tmp_path: Path) -> None:
    """Two names of one database have one owner."""
    (tmp_path / "db").touch()
    (tmp_path / "link").symlink_to("db")
    with OwnerLock.take(tmp_path / "link"):
        refused(tmp_path / "db")


def test_an_owner_without_a_number_is_still_one(tmp_path: Path) -> None:
    """Where the number is not written yet, or on a full disk never, the line does without."""
    with OwnerLock.take(tmp_path / "db") as lock:
        for content in ("", "what\never\n"):
            Path(lock.path).write_text(content)
            assert f"{tmp_path}/db.lock: another process already has the database open, and only one may" == refused(
                tmp_path / "db"
            )


def test_a_process_that_is_no_owner_any_more_is_not_named(tmp_path: Path) -> None:
    """Somebody else's program holds the file: neither who was killed is named, nor who released it and lives on."""
    database = tmp_path / "db"
    with process(OWNER, database) as killed:
        killed.kill()
        killed.wait()
        assert f"{killed.pid}\n" == Path(f"{database}.lock").read_text()
        with process(FOREIGN, database):
            assert f"{database}.lock: another process already has the database open, and only one may" == refused(
                database
            )
    OwnerLock.take(database).release()
    with process(FOREIGN, database):
        assert "another process already" in refused(database)


def test_a_full_disk_keeps_nobody_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-12: the number in the lock file is for a message only."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with OwnerLock.take(tmp_path / "db"):
        refused(tmp_path / "db")


def test_a_place_without_a_lock_is_one_line(tmp_path: Path) -> None:
    """Where the lock file cannot be made the line says why."""
    with pytest.raises(LedgerError, match=r"^\S+/none/db\.lock: cannot open the lock file: No such file or directory$"):
        OwnerLock.take(tmp_path / "none" / "db")
