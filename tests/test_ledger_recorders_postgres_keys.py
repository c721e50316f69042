"""The key of a stream on PostgreSQL."""

import hashlib
import uuid

import pytest

from ledger.randomness import system_randomness
from ledger.recorders.postgres_connections import Address
from ledger.recorders.postgres_keys import key_of
from ledger.tokens import new_grant_id


def test_a_grant_is_called_by_its_id() -> None:
    """What a token names is what all rows of its grant carry."""
    assert "0190f3b4a1c27def8123456789abcdef" == key_of("grant:0190f3b4a1c27def8123456789abcdef")
    grant_id = new_grant_id(1_700_000_000_000_000, system_randomness())
    assert (grant_id, 7) == (key_of(f"grant:{grant_id}"), uuid.UUID(grant_id).version)


@pytest.mark.parametrize("name", ["client:www", "subject:0190f3b4a1c27def8123456789abcdef", "keys", "operator:ü", ""])
def test_any_other_stream_by_the_hash_of_its_name(name: str) -> None:
    """RFC 9562 5.8: version 8, so that it is nobody's grant id, which has version 7."""
    key = uuid.UUID(key_of(name))
    assert (8, uuid.RFC_4122) == (key.version, key.variant)
    assert hashlib.sha256(name.encode()).hexdigest()[:12] == key.hex[:12]
    assert key.hex == key_of(name)


@pytest.mark.parametrize(
    "grant_id",
    ["", "1", "0190F3B4A1C27DEF8123456789ABCDEF", "0190f3b4a1c27def8123456789abcdef0", "\ud800", "\0",
     "0190f3b4-a1c2-7def-8123-456789abcdef"],
)  # fmt: skip
def test_what_is_no_grant_id_finds_nothing_and_breaks_nothing(grant_id: str) -> None:
    """Ids come out of requests' paths as anybody types them."""
    assert 8 == uuid.UUID(key_of(f"grant:{grant_id}")).version


def test_nobody_finds_another_stream_as_a_grant() -> None:
    """Who asks for the grant that is called as a client's stream is does not get that stream."""
    key = key_of("client:www")
    assert key != key_of(f"grant:{key}")


def test_the_database_gives_back_the_digits_that_it_was_given(postgres_url: str) -> None:
    """Without hyphens, on every connection of ours; null stays null."""
    with Address(postgres_url).connect() as connection:
        found = connection.execute("SELECT $1::uuid, NULL::uuid", ("0190f3b4a1c27def8123456789abcdef",)).fetchone()
        assert ("0190f3b4a1c27def8123456789abcdef", None) == found
