"""Authorization codes: derived, one spelling, and no token of another kind."""

import secrets

import pytest

from ledger import access_tokens, codes, tokens
from ledger.keyring import KeyNotHeld
from tests.rings import GRANT_ID, NONCE, check_concealed, known_ring


def test_a_code_is_the_same_whenever_it_is_asked_for() -> None:
    """Nothing of it is at rest: ring and nonce come to it again (RFC 6749 10.10)."""
    ring = known_ring()
    code = codes.derive(ring, 1, GRANT_ID, NONCE)
    assert (76, "ac1_", code) == (len(code), code[:4], codes.derive(known_ring(), 1, GRANT_ID, NONCE))
    presented = codes.parse(ring, code)
    assert presented is not None
    assert (GRANT_ID, 1) == (presented.grant_id, presented.key_id)
    assert codes.genuine(ring, presented, NONCE)
    assert not codes.genuine(ring, presented, bytes(32))
    check_concealed(presented, presented.secret)


def test_each_grant_key_and_nonce_has_its_own_code() -> None:
    """Nothing but these three makes a code, and each of them changes its secret (TE-13: 160 bits)."""
    ring = known_ring()
    made = {
        codes.derive(ring, 1, GRANT_ID, NONCE),
        codes.derive(ring, 1, GRANT_ID[::-1], NONCE),
        codes.derive(ring, 2, GRANT_ID, NONCE),
        codes.derive(ring, 1, GRANT_ID, bytes(32)),
    }
    parsed = [codes.parse(ring, text) for text in made]
    assert 4 == len({presented.secret for presented in parsed if presented is not None})
    assert {20} == {len(presented.secret) for presented in parsed if presented is not None}


def test_no_token_passes_for_a_code_and_no_code_for_a_token() -> None:
    """Each kind has keys of its own: another prefix does not make one of another."""
    ring = known_ring()
    code = codes.derive(ring, 1, GRANT_ID, NONCE)
    refresh, access = tokens.derive(ring, 1, GRANT_ID, 1, NONCE), access_tokens.derive(ring, 1, GRANT_ID, 1, NONCE)
    for other in (refresh, access):
        assert codes.parse(ring, other) is None
        assert codes.parse(ring, "ac1_" + other[4:]) is None
    assert tokens.parse(ring, "rt1_" + code[4:]) is None
    assert access_tokens.parse(ring, "at1_" + code[4:]) is None


def test_a_code_that_is_changed_anywhere_is_none() -> None:
    """A flipped character, one more, one less, white space: nothing we ever made (RF-10)."""
    ring = known_ring()
    code = codes.derive(ring, 1, GRANT_ID, NONCE)
    for place in range(4, len(code)):
        changed = code[:place] + ("A" if code[place] != "A" else "B") + code[place + 1 :]
        try:
            assert codes.parse(ring, changed) is None
        except KeyNotHeld:
            assert place in (5, 6, 7)  # where the key id is written
    for other in (code + "A", code[:-1], f" {code}", f"{code}\n", "", secrets.token_urlsafe(54)):
        assert codes.parse(ring, other) is None


def test_a_code_under_a_key_that_is_not_held_is_said() -> None:
    """It may be ours: the ring's file is to be read again."""
    foreign = codes.derive(known_ring(1, 9), 9, GRANT_ID, NONCE)
    with pytest.raises(KeyNotHeld):
        codes.parse(known_ring(), foreign)
