"""Segments: gzip files of export lines that any tool reads, named by their bytes, whole or not there."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path

import pytest

from ledger import segments
from ledger.recorders.errors import ArchiveDamaged
from ledger.segments import Segments, event_of, folder_of, line_of, withheld

BODY = '{"at":"2026-11-25T10:00:00.000000Z","reason":"a \\",\\"position\\":\\"7\\"}","stream":"grant:é","v":1}'.encode()


def written(folder: Path, *blocks: list[bytes], number: int = 1) -> str:
    """A segment of these blocks."""
    writer = Segments(folder).write(number)
    for lines in blocks:
        writer.add_block(lines)
    return writer.close()


def test_a_line_is_the_stored_bytes_between_their_names_and_the_position() -> None:
    """Canonical JSON (RFC 8785) around bytes that are never made again; positions are strings."""
    line = line_of(9_007_199_254_740_993, BODY)
    assert b'{"event":' + BODY + b',"position":"9007199254740993"}' == line
    assert (9_007_199_254_740_993, BODY) == event_of(line)
    assert {"event": json.loads(BODY), "position": "9007199254740993"} == json.loads(line)


def test_a_withheld_line_is_the_leaf_hash_of_what_it_was() -> None:
    """RFC 6962 2.1; withholding twice changes nothing."""
    line = line_of(7, BODY)
    assert b"#" == withheld(line)[:1]
    assert hashlib.sha256(b"\0" + line).digest() == b64decode(withheld(line)[1:])
    assert withheld(line) == withheld(withheld(line))
    assert event_of(withheld(line)) is None


def test_any_tool_reads_a_segment_and_its_name_says_its_bytes(tmp_path: Path) -> None:
    """`zcat` shows an auditor every line."""
    lines = [line_of(position, BODY) for position in range(1, 8)]
    name = written(tmp_path / "archive", lines[:3], lines[3:], number=42)
    data = (tmp_path / "archive" / name).read_bytes()
    assert f"000042-{hashlib.sha256(data).hexdigest()}.jsonl.gz" == name
    assert lines == gzip.decompress(data).splitlines()
    shown = subprocess.run(["zcat", tmp_path / "archive" / name], capture_output=True, check=True)
    assert lines == shown.stdout.splitlines()
    assert 0o600 == (tmp_path / "archive" / name).stat().st_mode & 0o777
    assert 0o700 == (tmp_path / "archive").stat().st_mode & 0o777


def test_a_system_that_takes_no_advice_has_segments_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS knows no `posix_fadvise`: what was written stays in memory there, and is as durable."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    name = written(tmp_path, [line_of(1, BODY)])
    Segments(tmp_path).check(name)


def test_one_block_is_found_without_reading_the_others(tmp_path: Path) -> None:
    """By the byte that it begins at; lines fill a block up to its size."""
    writer = Segments(tmp_path).write(1)
    lines = [line_of(position, BODY * 20) for position in range(1, 200)]
    for line in lines:
        writer.add(line)
    name = writer.close()
    read = Segments(tmp_path)
    blocks = list(read.blocks(name))
    assert lines == [line for block in blocks for line in block.lines]
    assert len(blocks) > 3
    assert all(sum(map(len, block.lines)) < segments.BLOCK_BYTES + len(lines[-1]) for block in blocks)
    assert [block.lines for block in blocks] == [read.lines(name, block.at_byte) for block in blocks]


def test_a_damaged_block_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    """I-14: every block carries a checksum, the whole file its hash."""
    name = written(tmp_path, [line_of(1, BODY)], [line_of(2, BODY)], [line_of(3, BODY)])
    places = [block.at_byte for block in Segments(tmp_path).blocks(name)]
    data = bytearray((tmp_path / name).read_bytes())
    data[places[1] + 20] ^= 1
    (tmp_path / name).write_bytes(data)
    read = Segments(tmp_path)
    assert [line_of(1, BODY)] == read.lines(name, places[0])
    assert [line_of(3, BODY)] == read.lines(name, places[2])
    with pytest.raises(
        ArchiveDamaged, match=f"{name}: the block at byte {places[1]} of this archive segment is damaged"
    ):
        read.lines(name, places[1])
    with pytest.raises(ArchiveDamaged, match="not those that it is named by"):
        read.check(name)


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_segment_that_was_cut_off_is_found(tmp_path: Path, cut: int) -> None:
    """A copy that broke off in the middle of a block."""
    name = written(tmp_path, [line_of(1, BODY)], [line_of(2, BODY)])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-cut])
    with pytest.raises(ArchiveDamaged, match="ends within the block"):
        list(Segments(tmp_path).blocks(name))


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    """One line with the name of the file."""
    read = Segments(tmp_path / "no such folder")
    assert [] == read.names()
    assert (0, None) == (read.last_number(), read.bytes_of("000001-x.jsonl.gz"))
    with pytest.raises(ArchiveDamaged, match=r"000001-x\.jsonl\.gz: this archive segment cannot be read"):
        read.lines("000001-x.jsonl.gz", 0)


def test_an_unfinished_segment_is_no_segment(tmp_path: Path) -> None:
    """What a crash or an error leaves is written over by the next; numbers are never given twice."""
    writer = Segments(tmp_path).write(1)
    writer.add(line_of(1, BODY))
    assert [] == Segments(tmp_path).names()
    writer.abandon()
    assert [] == list(tmp_path.iterdir())
    left = Segments(tmp_path).write(1)
    left.add_block([line_of(1, BODY * 100)])
    assert isinstance(left._place, segments._File)
    left._place._file.close()  # as a killed process does
    name = written(tmp_path, [line_of(2, BODY)])
    assert [name] == Segments(tmp_path).names()
    assert [line_of(2, BODY)] == Segments(tmp_path).lines(name, 0)
    Segments(tmp_path).put_aside(name)
    assert ([], 1) == (Segments(tmp_path).names(), Segments(tmp_path).last_number())


def test_a_removed_segment_is_gone_from_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody forgets that it was there: else a power cut brings back lines that were withheld since, and
    nothing that would ever remove them. So too where the file had gone, and nobody knows whether that was durable."""
    name = written(tmp_path, [line_of(1, BODY)])
    kept, synced = Segments(tmp_path), []
    monkeypatch.setattr(segments, "_sync", lambda folder: synced.append(list(folder.iterdir())))
    kept.retire(name)
    assert not kept.remove(name)
    os.utime(tmp_path / name, (time.time() + 86_400,) * 2)  # the clock was put back since
    assert not kept.remove(name)
    assert [] == synced
    os.utime(tmp_path / name, (0, 0))
    assert kept.remove(name)
    assert kept.remove(name)
    assert [[], []] == synced


def test_blocks_in_memory_are_few(tmp_path: Path) -> None:
    """Whatever is asked for, the last few blocks alone are remembered."""
    name = written(tmp_path, *([line_of(position, BODY)] for position in range(1, 3 * segments.BLOCKS_IN_MEMORY_MAX)))
    read = Segments(tmp_path)
    for block in read.blocks(name):
        read.lines(name, block.at_byte)
    assert segments.BLOCKS_IN_MEMORY_MAX == len(read.in_memory)


def test_the_archive_lies_beside_its_database() -> None:
    """As the write-ahead log does."""
    assert Path("data/token-ledger.db.archive") == folder_of(Path("data/token-ledger.db"))


def test_segments_lie_beside_the_file_by_whatever_link_it_is_reached(tmp_path: Path) -> None:
    """Whoever opens it by its own name, or backs up its folder, has them; but for those of before, beside the link."""
    (tmp_path / "data").mkdir()
    link = tmp_path / "link.db"
    link.symlink_to("data/token-ledger.db")
    assert tmp_path / "data" / "token-ledger.db.archive" == folder_of(link)
    (tmp_path / "link.db.archive").mkdir()
    assert tmp_path / "link.db.archive" == folder_of(link)
