"""Files that are there whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger import whole_files

KILLED_AT = """
import os, signal, sys
from ledger import whole_files
setattr(os, sys.argv[2], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
whole_files.write_over(sys.argv[1], b"new" * 9999, durable=True)
"""


def test_a_new_file_is_private_and_alone(tmp_path: Path) -> None:
    """The key ring's file is nobody else's from its first moment, and nothing is left beside it."""
    os.umask(os.umask(0o022) & 0)  # the umask has no say
    whole_files.write_new(str(tmp_path / "f"), b"one")
    assert b"one" == (tmp_path / "f").read_bytes()
    assert 0o600 == stat.S_IMODE((tmp_path / "f").stat().st_mode)
    assert ["f"] == os.listdir(tmp_path)


def test_a_new_file_never_replaces_one(tmp_path: Path) -> None:
    """Of ten that make the same file at the same moment one succeeds, and what it wrote stays."""

    def attempt(number: int) -> int | None:
        try:
            whole_files.write_new(str(tmp_path / "f"), b"%d" % number * 1000)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(10) as pool:
        made = [number for number in pool.map(attempt, range(10)) if number is not None]
    assert 1 == len(made)
    assert b"%d" % made[0] * 1000 == (tmp_path / "f").read_bytes()
    assert ["f"] == os.listdir(tmp_path)


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    """Where the file is mounted through a link, the link survives a replacement."""
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    whole_files.write_over(str(tmp_path / "link"), b"new", durable=True)
    assert (tmp_path / "link").is_symlink()
    assert b"new" == (tmp_path / "target").read_bytes()
    assert 0o600 == stat.S_IMODE((tmp_path / "target").stat().st_mode)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, call: str) -> None:
    """A process killed on the way has changed nothing that a reader sees."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", KILLED_AT, str(path), call], check=False)
    assert -signal.SIGKILL == run.returncode
    assert b"old" == path.read_bytes()


def calls_of(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> list[str]:
    """The calls that matter for durability, in order, while `work` runs."""
    calls: list[str] = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def kept_fsync(descriptor: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", kept_fsync)

    def kept_replace(old: str, new: str) -> None:
        calls.append("replace")
        replace(old, new)

    def kept_link(old: str, new: str) -> None:
        calls.append("link")
        link(old, new)

    monkeypatch.setattr(os, "replace", kept_replace)
    monkeypatch.setattr(os, "link", kept_link)
    work()
    monkeypatch.undo()
    return calls


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable means file, then name, then folder: in another order a power cut leaves a name without content."""
    path = str(tmp_path / "f")
    expected = ["sync file", "link", "sync folder"]
    assert expected == calls_of(monkeypatch, lambda: whole_files.write_new(path, b"one"))
    expected = ["sync file", "replace", "sync folder"]
    assert expected == calls_of(monkeypatch, lambda: whole_files.write_over(path, b"two", durable=True))
    assert ["replace"] == calls_of(monkeypatch, lambda: whole_files.write_over(path, b"six", durable=False))


def test_what_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a refused rename costs the new content and nothing else."""
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            whole_files.write_over(str(path), b"new", durable=True)
        monkeypatch.undo()
        assert (b"old", ["f"]) == (path.read_bytes(), os.listdir(tmp_path))
