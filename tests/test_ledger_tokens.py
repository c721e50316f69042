"""Refresh tokens and grant ids."""

import secrets
import uuid
from datetime import UTC, datetime

import pytest

from ledger import access_tokens, tokens
from ledger.keyring import KeyNotHeld
from tests.rings import CREATED_AT, GRANT_ID, NONCE, check_concealed, known_ring

GOLDEN = "rt1_AQEBmr0ODhB9cIAAEjRWeJq8AAAAB4JLjFc8R9pJkAZcStvQRMyiApLiCfr3WbjKuG2_HCta"


def test_a_refresh_token_is_the_same_for_ever() -> None:
    """Golden text: a token given out once must be read, and derived again after a crash, by every later release."""
    ring = known_ring()
    assert GOLDEN == tokens.derive(ring, 1, GRANT_ID, 7, NONCE)
    presented = tokens.parse(ring, GOLDEN)
    assert presented is not None
    assert presented.secret is not None
    assert (GRANT_ID, 7, 1) == (presented.grant_id, presented.generation, presented.key_id)
    assert "824b8c573c47da4990065c4adbd044cca20292e2" == presented.secret.hex()
    assert tokens.genuine(ring, presented, NONCE)
    assert not tokens.genuine(ring, presented, bytes(32))


def test_each_generation_grant_key_and_nonce_has_its_own_token() -> None:
    """I-03 rests on it: nothing but these four makes a token, and each of them changes its secret."""
    ring = known_ring()
    made = {
        tokens.derive(ring, 1, GRANT_ID, 7, NONCE),
        tokens.derive(ring, 1, GRANT_ID, 8, NONCE),
        tokens.derive(ring, 1, GRANT_ID[::-1], 7, NONCE),
        tokens.derive(ring, 2, GRANT_ID, 7, NONCE),
        tokens.derive(ring, 1, GRANT_ID, 7, bytes(32)),
    }
    parsed = [tokens.parse(ring, text) for text in made]
    assert 5 == len({presented.secret for presented in parsed if presented is not None})


def test_the_successor_outlives_a_rotation_of_keys() -> None:
    """A lost answer can be given again after `keys rotate`: an older key keeps making its tokens."""
    ring = known_ring()
    assert GOLDEN == tokens.derive(ring.with_new_key(CREATED_AT), 1, GRANT_ID, 7, NONCE)


def test_the_ring_alone_makes_no_genuine_token() -> None:
    """Whoever has the ring and not the nonce gets a tag that holds and a secret that does not: an alarm."""
    ring = known_ring()
    forged = tokens.parse(ring, tokens.derive(ring, 1, GRANT_ID, 7, secrets.token_bytes(32)))
    assert forged is not None
    assert not tokens.genuine(ring, forged, NONCE)


def test_a_token_under_a_key_that_is_not_held_is_said() -> None:
    """It may be ours: the ring is to be read again, at most once a second."""
    foreign = tokens.derive(known_ring(1, 9), 9, GRANT_ID, 0, NONCE)
    with pytest.raises(KeyNotHeld) as caught:
        tokens.parse(known_ring(), foreign)
    assert 9 == caught.value.key_id


def test_an_access_token_is_no_refresh_token() -> None:
    """Nor under a refresh token's prefix."""
    ring = known_ring()
    other = access_tokens.derive(ring, 1, GRANT_ID, 7, NONCE)
    assert tokens.parse(ring, other) is None
    assert tokens.parse(ring, "rt1_" + other[4:]) is None


def test_no_text_of_a_presented_token_shows_its_secret() -> None:
    """I-20: a presented token may be logged or raised by mistake without being given away."""
    presented = tokens.parse(known_ring(), GOLDEN)
    assert presented is not None
    assert presented.secret is not None
    assert "<Presented>" == repr(presented)
    check_concealed(presented, presented.secret)


# ---------------------------------------------------------------- grant ids


def test_a_grant_id_is_a_uuid_of_version_7() -> None:
    """RFC 9562 5.7 with the fraction of the millisecond in rand_a (6.2, method 3), 12 bits of shard, 50 random bits."""
    made = tokens.new_grant_id(CREATED_AT + 123_456, lambda count: b"\xff" * count)
    assert "019abc06710b774b8003ffffffffffff" == made
    read = uuid.UUID(made)
    assert (7, uuid.RFC_4122) == (read.version, read.variant)
    milliseconds = read.int >> 80
    assert datetime(2025, 11, 25, 17, 18, 50, 123_000, UTC) == datetime.fromtimestamp(milliseconds / 1000, UTC)
    assert 0.456 == pytest.approx((read.int >> 64 & 0xFFF) / 4096, abs=1 / 4096)
    assert 0 == read.int >> 50 & 0xFFF


def test_grant_ids_sort_by_the_time_they_were_made() -> None:
    """To the microsecond, whatever is drawn: later moments give greater ids."""
    draws = [lambda count: b"\xff" * count, lambda count: bytes(count)]
    moments = [CREATED_AT + step for step in (*range(0, 2_100), 10**6, 10**9, 10**12)]
    made = [tokens.new_grant_id(moment, draws[place % 2]) for place, moment in enumerate(moments)]
    assert made == sorted(made)
    assert len(made) == len(set(made))


def test_grant_ids_of_one_moment_differ() -> None:
    """50 random bits keep the grants of one microsecond apart."""
    assert 1_000 == len({tokens.new_grant_id(CREATED_AT, secrets.token_bytes) for _ in range(1_000)})
    assert (
        50
        == (
            int(tokens.new_grant_id(CREATED_AT, lambda count: b"\xff" * count), 16)
            ^ int(tokens.new_grant_id(CREATED_AT, lambda count: bytes(count)), 16)
        ).bit_count()
    )
