"""Opaque access tokens."""

import pytest

from ledger import access_tokens, tokens
from ledger.keyring import KeyNotHeld
from tests.rings import GRANT_ID, NONCE, check_concealed, known_ring

GOLDEN = "at1_AQIBmr0ODhB9cIAAEjRWeJq8AAABLCr-UeL4KhSz4mv6dzehfAwsZABTRSI7F6_K8N9vHpWT"


def test_an_access_token_is_the_same_for_ever() -> None:
    """Golden text: an honest retry gets the same access token again, from a later release too."""
    ring = known_ring()
    assert GOLDEN == access_tokens.derive(ring, 2, GRANT_ID, 300, NONCE)
    presented = access_tokens.parse(ring, GOLDEN)
    assert presented is not None
    assert (GRANT_ID, 300, 2) == (presented.grant_id, presented.v, presented.key_id)
    assert "2afe51e2f82a14b3e26bfa7737a17c0c" == presented.secret.hex()
    assert access_tokens.genuine(ring, presented, NONCE)
    assert not access_tokens.genuine(ring, presented, bytes(32))


def test_each_event_has_its_own_access_token() -> None:
    """The token names the event that froze its scope and expiry: another event, another token."""
    ring = known_ring()
    assert 100 == len({access_tokens.derive(ring, 1, GRANT_ID, v, NONCE) for v in range(1, 101)})


def test_a_refresh_token_is_no_access_token() -> None:
    """Nor under an access token's prefix: a resource server can never be given a refresh token's power."""
    ring = known_ring()
    other = tokens.derive(ring, 1, GRANT_ID, 7, NONCE)
    assert access_tokens.parse(ring, other) is None
    assert access_tokens.parse(ring, "at1_" + other[4:]) is None


def test_a_token_under_a_key_that_is_not_held_is_said() -> None:
    """It may be ours: the ring is to be read again, at most once a second."""
    foreign = access_tokens.derive(known_ring(1, 9), 9, GRANT_ID, 1, NONCE)
    with pytest.raises(KeyNotHeld) as caught:
        access_tokens.parse(known_ring(), foreign)
    assert 9 == caught.value.key_id


def test_no_text_of_a_presented_token_shows_its_secret() -> None:
    """I-20: a presented token may be logged or raised by mistake without being given away."""
    presented = access_tokens.parse(known_ring(), GOLDEN)
    assert presented is not None
    assert "<Presented>" == repr(presented)
    check_concealed(presented, presented.secret)
