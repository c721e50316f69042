"""A token says in clear which part of a large ledger its grant belongs to, as the guide to scaling has it."""

import re
from base64 import urlsafe_b64decode
from pathlib import Path
from random import Random

import pytest

import api
from ledger import tokens
from ledger.keyring import KeyRing
from ledger.tokens import new_grant_id

GUIDE = Path(api.__file__).parent / "docs" / "scaling.md"


@pytest.mark.parametrize("part", [0, 1, 63, 64, 2048, 4095])
def test_a_balancer_finds_the_part_in_a_token(tmp_path: Path, part: int) -> None:
    """The guide's own two lines, run on a token of a grant whose id has a part in it (RFC 9562 5.7)."""
    grant_id = new_grant_id(1_790_000_000_000_000, Random(part).randbytes)
    assert 0 == (int(grant_id, 16) >> 50) & 0xFFF  # as this release writes it
    grant_id = f"{int(grant_id, 16) | part << 50:032x}"
    ring = KeyRing.create(tmp_path / "keys")
    token = tokens.derive(ring, 1, grant_id, 7, bytes(32))
    lines = re.findall(r"^    ((?:bits|part) = .*)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert 2 == len(lines)
    found: dict[str, int] = {}
    exec("\n".join(lines), {"token": token, "base64url_decode": urlsafe_b64decode}, found)
    assert part == found["part"]
