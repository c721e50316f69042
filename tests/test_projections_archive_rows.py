"""What the rows about the archive say is held against its lines, and its lines against the segments' names (I-14)."""

import gzip
import zlib
from pathlib import Path

import pytest

from ledger import segments
from ledger.recorders import archived
from ledger.segments import folder_of
from projections.archive_rows import Claims
from tests.archived_twins import archived_twin, lived, rebuilt
from tests.archives import archive, reopened, twin
from tests.engines import alter, only_on_sqlite
from tests.ledgers import SECURITY, open_ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_store", "made_small")]

CLAIMS = (
    "state = 'revoked' WHERE state = 'active'",
    "state = 'active' WHERE state = 'revoked'",
    "state = 'suspended' WHERE state = 'expired'",
    "reason = 'reuse' WHERE reason = 'termination'",
    "reason = NULL WHERE reason IS NOT NULL",
    "generation = generation + 100 WHERE generation IS NOT NULL",
    "generation = NULL WHERE generation IS NOT NULL",
)
OF_ITS_LINES = (
    "said = replace(said, 'requested_by', 'requested_at') WHERE said IS NOT NULL",
    "said = NULL WHERE said IS NOT NULL",
    "said_v = NULL, said_position = NULL, said = NULL WHERE said IS NOT NULL",
    "said_v = said_v - 1 WHERE said IS NOT NULL",
    "said_position = said_position + 1 WHERE said IS NOT NULL",
    "withheld = 1",
    "at = replace(at, '2026', '2025')",
    "from_position = from_position - 1",
    "to_position = to_position + 1",
    "back = back + 1",
    "line = line + 1",
    "at_byte = at_byte + 1",
    "segment = segment + 1 WHERE segment < (SELECT max(id) FROM segments)",
    "head = (SELECT min(b.head) FROM archived b WHERE b.stream <> archived.stream)",
)


def missed(folder: Path, alterations: tuple[str, ...]) -> list[str]:
    """Those after which a rebuild says that the history holds: of a copy for each."""
    found = []
    for each in alterations:
        copy = twin(folder)
        assert alter(copy / "ledger.db", f"UPDATE archived SET {each}") > 0, each
        if rebuilt(copy).history_holds:
            found.append(each)
    return found


async def test_an_altered_row_is_a_history_that_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column of `archived`. The twin that takes a row's word for what the stream had come to is deceived."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    assert [] == rebuilt(other).differences
    assert [] == missed(other, CLAIMS + OF_ITS_LINES)
    monkeypatch.setattr(Claims, "_holds", lambda self, *of: True)
    assert [*CLAIMS] == missed(other, CLAIMS)


@pytest.mark.parametrize(
    "what", ["UPDATE streams SET state = head", "UPDATE streams SET name = name || 'x'", "DELETE FROM streams"]
)
@pytest.mark.parametrize("whose", ["client", "subject"])
async def test_a_head_that_is_to_be_healed_is_held_against_no_row(tmp_path: Path, whose: str, what: str) -> None:
    """Whether an epoch had ended a grant its events say, not the snapshot that a rebuild is there to heal."""
    async with open_ledger(tmp_path) as opened:
        grants = [await opened.issue() for _ in range(3)]
        opened.clock.pass_seconds(5)
        if whose == "client":
            await opened.ledger.operators.revoke_client(SECURITY, "www", None, None)
        else:
            await opened.ledger.operators.revoke_subject(SECURITY, "alice", None, None)
        opened.clock.pass_seconds(1)
        assert await archive(opened, opened.clock.now) is not None
    assert alter(opened.path, "UPDATE archived SET state = state WHERE state = 'revoked'") >= len(grants)
    assert 1 <= alter(opened.path, f"{what} WHERE name LIKE '{whose}:%'")
    with pytest.raises(AssertionError, match="there is something to heal"):  # which is tried where the history holds
        rebuilt(tmp_path)
    assert alter(opened.path, "UPDATE archived SET state = 'active' WHERE state = 'revoked'") >= len(grants)
    with pytest.raises(AssertionError, match="there is something to heal"):  # a grant may have moved before the epoch
        rebuilt(tmp_path)


async def test_a_row_that_says_of_an_epoch_what_never_was_is_found(tmp_path: Path) -> None:
    """Nobody has ended the client or the person."""
    async with open_ledger(tmp_path) as opened:
        grant = await opened.issue()
        for _ in range(70):
            opened.clock.pass_seconds(1)
            grant = await opened.refresh(grant)
        await opened.issue("bob")
        opened.clock.pass_seconds(1)
        assert await archive(opened, opened.clock.now) is not None
    assert rebuilt(tmp_path).history_holds
    assert alter(opened.path, "UPDATE archived SET state = 'revoked' WHERE generation IS NOT NULL") >= 1
    assert not rebuilt(tmp_path).history_holds


async def test_what_is_left_of_a_withheld_piece_is_held_against_its_hashes(tmp_path: Path) -> None:
    """The text that a line was made of gives its hash; what a stream ends with is what its head says."""
    other = await withheld_ledger(tmp_path)
    assert [] == rebuilt(other).differences
    assert rebuilt(other).withheld
    gone = " WHERE withheld = 1"
    alterations = [
        "withheld = 0 WHERE withheld = 1",
        "said = replace(said, 'requested_by', 'requested_at') WHERE withheld = 1 AND said IS NOT NULL",
        "said_position = said_position + 1 WHERE withheld = 1 AND said IS NOT NULL",
        "said_v = said_v - 1 WHERE withheld = 1 AND said IS NOT NULL",
        *(f"{each}{gone}" for each in ("to_position = to_position + 1", "generation = 99", "reason = 'reuse'")),
        f"at = replace(at, '2026', '2025'){gone}",
        f"at = 'x'{gone}",
    ]
    assert [] == missed(other, tuple(alterations))


async def withheld_ledger(folder: Path) -> Path:
    """A closed ledger of whose archive all is withheld that may be."""
    _, clock = await lived(folder / "lived", 8)
    other, _ = await archived_twin(folder / "lived", clock)
    async with reopened(other, clock, "withholder") as opened:
        for _ in range(2):
            await archive(opened, withhold_before=opened.clock.now + 1)
    return other


async def test_a_flipped_bit_is_found_where_nothing_can_be_replayed_any_more(tmp_path: Path, each_store: str) -> None:
    """A segment's name is the SHA-256 of its bytes: the hashes that an auditor kept are to be found in it."""
    other = await withheld_ledger(tmp_path)
    if each_store == "sqlite":
        for segment in folder_of(other / "ledger.db").iterdir():
            data = bytearray(segment.read_bytes())
            data[-5] ^= 1  # of the length that gzip notes
            segment.write_bytes(data)
    else:
        assert alter(other / "ledger.db", "UPDATE segment_pages SET bytes = set_byte(bytes, 9, 7)")
    found = rebuilt(other)
    assert not found.history_holds
    assert "000" in " ".join(each.key for each in found.differences if each.column == "archive")


_COLUMNS = (
    "to_v, from_v, from_position, to_position, back, head, at, state, reason, generation, segment, at_byte, line,"
    " withheld, said_v, said_position, said"
)


@pytest.mark.parametrize("withheld", [0, 1])
async def test_a_row_copied_to_another_stream_is_found(tmp_path: Path, each_store: str, withheld: int) -> None:
    """The same lines would be a second stream of the same name, and take the place of the first in its head."""
    if withheld:
        other = await withheld_ledger(tmp_path)
    else:
        _, clock = await lived(tmp_path / "lived", 8)
        other, _ = await archived_twin(tmp_path / "lived", clock)
    assert [] == rebuilt(other).differences
    elsewhere = "stream + 500" if each_store == "sqlite" else "overlay(stream::text placing 'ffff' from 1)::uuid"
    copy = f"INSERT INTO archived (stream, {_COLUMNS}) SELECT {elsewhere}, {_COLUMNS} FROM archived"
    assert 1 == alter(other / "ledger.db", f"{copy} WHERE from_v = 1 AND withheld = {withheld} LIMIT 1")
    found = rebuilt(other)
    assert not found.history_holds
    assert all(each.table == "events" for each in found.differences)


@only_on_sqlite
async def test_a_text_that_is_none_any_more_is_a_history_that_does_not_hold(tmp_path: Path) -> None:
    """One flipped bit, and SQLite gives the text to nobody: a rebuild reads it all the same, and goes on."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    texts = [f"{each} = CAST(x'f261' AS TEXT) WHERE {each} IS NOT NULL" for each in ("at", "state", "reason", "said")]
    assert [] == missed(other, tuple(texts))
    assert alter(other / "ledger.db", "UPDATE segments SET name = CAST(x'f2' AS TEXT) WHERE id = 1") == 1
    assert not rebuilt(other).history_holds


@only_on_sqlite
async def test_a_position_altered_in_a_segment_is_found(tmp_path: Path) -> None:
    """The links hold the bytes of events together; their positions are held by the segment's name alone."""
    _, clock = await lived(tmp_path / "lived", 8)
    other, _ = await archived_twin(tmp_path / "lived", clock)
    first = min(folder_of(other / "ledger.db").iterdir())
    lines = gzip.decompress(first.read_bytes()).splitlines()
    read = segments.event_of(lines[1])
    assert read is not None
    lines[1] = segments.line_of(read[0] + 100_000, read[1])
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    first.write_bytes(packer.compress(b"".join(line + b"\n" for line in lines)) + packer.flush())
    assert first.name in {each.key for each in rebuilt(other).differences}


@pytest.mark.parametrize("broken", [False, True])
async def test_a_segment_that_pieces_lie_in_is_never_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """Whatever its own row says; and a rebuild names it. The twin that believes the row loses events for good."""
    monkeypatch.setattr(segments, "KEPT_SECONDS", 0)
    if broken:
        monkeypatch.setattr(archived, "REPLACED", "SELECT id, name FROM segments WHERE finished = 2")
    async with open_ledger(tmp_path) as opened:
        over, clock = await opened.issue("ann"), opened.clock
        await opened.act("revoke", over.grant_id)
        await opened.chain(await opened.issue("bob"), 1)
        await archive(opened)
    assert 1 == alter(tmp_path / "ledger.db", "UPDATE segments SET finished = 2")
    (found,) = rebuilt(tmp_path).differences
    assert "it counts as replaced, and pieces still lie in it" == found.problem
    async with reopened(tmp_path, clock) as opened:
        names = opened.store.segments.names()
        await archive(opened)
        assert broken != (set(names) <= set(opened.store.segments.names()))
