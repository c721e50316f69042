"""The head file: last acknowledged position and its time, whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.head_file import Acknowledged, HeadFile
from ledger.refusals import LedgerError
from tests.rings import CREATED_AT

GOLDEN = b'{"position":"9223372036854775807","at":"2025-11-25T17:18:50.000001Z"}\n'


def test_the_file_of_today_reads_for_ever(tmp_path: Path) -> None:
    """Golden bytes: a 64-bit position as text, a time with six digits."""
    path = tmp_path / "head"
    HeadFile(path).write(2**63 - 1, CREATED_AT + 1)
    assert GOLDEN == path.read_bytes()
    assert Acknowledged(2**63 - 1, CREATED_AT + 1) == HeadFile(path).read()
    assert ["head"] == os.listdir(tmp_path)


def test_the_last_write_is_read(tmp_path: Path) -> None:
    """A shorter record leaves nothing of a longer one; going back is not this file's to judge."""
    head = HeadFile(str(tmp_path / "head"))
    assert head.read() is None
    for position in (1, 10**18, 7):
        head.write(position, CREATED_AT)
        assert Acknowledged(position, CREATED_AT) == head.read()


def test_off_knows_and_writes_nothing() -> None:
    """Without a path nothing is written, nothing is known and nothing fails."""
    head = HeadFile(None)
    head.write(1, CREATED_AT)
    head.check_writable()
    assert (True, None) == (head.off, head.read())
    assert not HeadFile("head").off


@pytest.mark.parametrize("content", [b"", b"\0" * 70])
def test_a_blank_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    """What a power cut can leave of an unsynced file says nothing, and must not keep a whole ledger from starting."""
    (tmp_path / "head").write_bytes(content)
    assert HeadFile(tmp_path / "head").read() is None


@pytest.mark.parametrize(
    "content",
    [
        GOLDEN[:-2], GOLDEN[1:], GOLDEN[:20], b"\0" + GOLDEN, GOLDEN + GOLDEN, b"17", b"{}", b"null", b"\xff", b"\n",
        GOLDEN.replace(b'"9223372036854775807"', b"17"), GOLDEN.replace(b"9223372036854775807", b"-1"),
        GOLDEN.replace(b"9223372036854775807", b"9" * 20), GOLDEN.replace(b"9223372036854775807", b"017"),
        GOLDEN.replace(b"9223372036854775807", b"9223372036854775808"),
        GOLDEN.replace(b"807", b"807\\n"), GOLDEN.replace(b"001Z", b"001Z\\n"),
        GOLDEN.replace(b"-11-25", b"-13-25"), GOLDEN.replace(b"000001Z", b"000001+00:00"),
        GOLDEN.replace(b"}", b',"more":1}'), b"[" * 5000,
    ],
)  # fmt: skip
def test_a_garbled_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    """Something else under that name is never taken for a position and never overwritten unasked."""
    path = tmp_path / "head"
    path.write_bytes(content)
    with pytest.raises(LedgerError) as caught:
        HeadFile(path).read()
    expected = "this is no head file or a damaged one; remove it to have it written anew from the log"
    assert f"{path}: {expected}" == str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """A folder under that name, or a folder on the way that is a file."""
    with pytest.raises(LedgerError, match=r"^\S+: cannot read the head file: Is a directory$"):
        HeadFile(tmp_path).read()
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"^\S+/file/head: cannot read the head file: Not a directory$"):
        HeadFile(tmp_path / "file" / "head").read()


def test_what_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    """Start-up refuses where `write` would fail, with the same line, and a check leaves nothing behind."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    why = {"none/head": "No such file or directory", "file/head": "Not a directory", "folder": "i"}
    for name, reason in why.items():
        head = HeadFile(tmp_path / name)
        for attempt in (head.check_writable, lambda head=head: head.write(1, CREATED_AT)):
            with pytest.raises(LedgerError, match=rf"^\S+/{name}: cannot write the head file: (?i:{reason})"):
                attempt()
    for name in ("head", "folder/head"):
        HeadFile(tmp_path / name).check_writable()
    assert {"file", "folder"} == set(os.listdir(tmp_path))


def test_a_check_leaves_the_file_alone(tmp_path: Path) -> None:
    """The position of before must be there to be compared with."""
    head = HeadFile(tmp_path / "head")
    head.write(5, CREATED_AT)
    head.check_writable()
    assert (Acknowledged(5, CREATED_AT), ["head"]) == (head.read(), os.listdir(tmp_path))


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    """Whoever means none by /dev/null, and may write beside it, would else have a file there; a pipe would be waited
    for without end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(LedgerError, match=rf"/{name}: the head file is not a regular file; `off` does without"):
            HeadFile(tmp_path / name).check_writable()
    assert {"pipe", "link"} == set(os.listdir(tmp_path))


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    """SIGKILL at any moment: what is read is one of the records that were written, never half of one."""
    path = tmp_path / "head"
    script = """
import sys
from ledger.head_file import HeadFile
head = HeadFile(sys.argv[1])
head.write(0, 0)
print("begun", flush=True)
position = 0
while True:
    position += 1
    head.write(position, position)
"""
    for delay in (0.0, 0.003, 0.01, 0.02, 0.03):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert b"begun\n" == writer.stdout.readline()
            try:
                writer.wait(delay)
            except subprocess.TimeoutExpired:
                writer.send_signal(signal.SIGKILL)
        head = HeadFile(path).read()
        assert head is not None
        assert head.position == head.at
