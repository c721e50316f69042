"""Nonces of DPoP proofs (RFC 9449 8): handed out by the minute, alike on all nodes, unknown to anybody else."""

import re

from api.dpop_nonces import SLOT_SECONDS, SLOTS_BACK, Nonces
from ledger.keyring import KeyRing
from tests.ledgers import START, Clock

RING = KeyRing.new(START)


def nonces(clock: Clock, ring: KeyRing = RING) -> Nonces:
    return Nonces(lambda: ring, clock)


def test_a_nonce_is_written_in_the_letters_of_the_standard() -> None:
    """RFC 9449 8.1: NQCHAR, as in a scope; long enough that nobody guesses one."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{24}", nonces(Clock()).current())


def test_all_nodes_of_one_ring_agree() -> None:
    """Two processes that share nothing but the ring's file hand out the same, and take each other's; also where one's
    clock is a minute ahead, and after a key was rotated in."""
    clock, ahead = Clock(), Clock(START + SLOT_SECONDS * 1_000_000)
    one, other = nonces(clock), nonces(ahead, RING.with_new_key(START))
    assert one.current() == nonces(Clock(), RING.with_new_key(START)).current()
    assert one.accepts(other.current())
    assert other.accepts(one.current())


def test_another_ring_has_other_nonces() -> None:
    """Whoever lacks the ring cannot tell what the next minute's is."""
    clock = Clock()
    assert not nonces(clock).accepts(nonces(clock, KeyRing.new(START)).current())


def test_a_nonce_serves_for_four_to_five_minutes() -> None:
    """A new one each minute; the last few stay good, so that a client may use the one of its last answer."""
    clock = Clock(START // (SLOT_SECONDS * 1_000_000) * SLOT_SECONDS * 1_000_000)
    found = nonces(clock)
    given = [found.current()]
    for _ in range(SLOTS_BACK):
        clock.pass_seconds(SLOT_SECONDS)
        given.append(found.current())
    clock.pass_seconds(SLOT_SECONDS - 1)
    assert len(set(given)) == SLOTS_BACK + 1
    assert all(map(found.accepts, given))
    clock.pass_seconds(1)
    assert [False, True, True, True, True] == [found.accepts(each) for each in given]


def test_what_was_never_handed_out_is_not_taken() -> None:
    """Nothing, a piece, a nonce and more, letters of other alphabets."""
    found = nonces(Clock())
    current = found.current()
    for text in ("", current[:-1], current + "=", current.swapcase(), "ä", "\ud800"):
        assert not found.accepts(text)
