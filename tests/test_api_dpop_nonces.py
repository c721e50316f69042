"""Nonces of DPoP proofs (RFC 9449 8): handed out by the minute, alike on all nodes, unknown to anybody else."""

import re
import shutil
from pathlib import Path

from api.dpop_nonces import SLOT_SECONDS, SLOTS_BACK, Nonces
from ledger.keyring import KeyRing
from tests.asking import asking
from tests.asking_with_proofs import BOUND, OTHER_KEY, refresh, shown, told, topics
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


# ---------------------------------------------------------------- as clients meet them


async def test_a_challenge_makes_a_client_send_its_token_twice_and_that_is_no_reuse(tmp_path: Path) -> None:
    """V77, DP-2, D5: one `DPoP-Nonce`; with it the same token is served, and the answer brings the next nonce."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpn", cnf=BOUND)
        challenge = await refresh(ledger, "dpn", issued["refresh_token"], shown(ledger))
        assert (400, "use_dpop_nonce") == told(challenge)
        (nonce,) = challenge.headers.get_list("dpop-nonce")
        assert ["issued"] == topics(ledger, issued["grant_id"])
        answer = await refresh(ledger, "dpn", issued["refresh_token"], shown(ledger, nonce=nonce))
        assert (200, "DPoP") == told(answer)
        for _ in range(8):  # each answer's nonce serves for the next refresh, however the minutes turn
            ledger.clock.pass_seconds(SLOT_SECONDS * 4)
            (nonce,) = answer.headers.get_list("dpop-nonce")
            answer = await refresh(ledger, "dpn", answer.json()["refresh_token"], shown(ledger, nonce=nonce))
            assert (200, "DPoP") == told(answer)
        found = set(topics(ledger, issued["grant_id"]))
        assert {"issued", "token_redeemed", "token_rotated"} == found


async def test_a_nonce_that_has_aged_out_is_replaced(tmp_path: Path) -> None:
    """RFC 9449 8: the server says when a new one is due; no proof without a nonce is taken after one was given."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpn", cnf=BOUND)
        token = issued["refresh_token"]
        (old,) = (await refresh(ledger, "dpn", token, shown(ledger))).headers.get_list("dpop-nonce")
        ledger.clock.pass_seconds(SLOT_SECONDS * 6)
        for nonce in (old, None):
            answer = await refresh(ledger, "dpn", token, shown(ledger, nonce=nonce))
            assert (400, "use_dpop_nonce") == told(answer)
            (new,) = answer.headers.get_list("dpop-nonce")
            assert old != new
        assert (200, "DPoP") == told(await refresh(ledger, "dpn", token, shown(ledger, nonce=new)))


async def test_no_other_error_brings_a_nonce_and_the_one_at_hand_goes_on_serving(tmp_path: Path) -> None:
    """As the guide says: a 200 and the challenge hand one out, whatever else is refused does not."""
    async with asking(tmp_path) as ledger:
        issued = await ledger.issue("dpn", cnf=BOUND)
        token = issued["refresh_token"]
        (nonce,) = (await refresh(ledger, "dpn", token, shown(ledger))).headers.get_list("dpop-nonce")
        for error, proof, more in (
            ("invalid_scope", shown(ledger, nonce=nonce), {"scope": "read more"}),
            ("invalid_target", shown(ledger, nonce=nonce), {"resource": "https://other.example"}),
            ("invalid_dpop_proof", None, {}),
            ("invalid_grant", shown(ledger, OTHER_KEY, nonce=nonce), {}),
        ):
            answer = await refresh(ledger, "dpn", token, proof, **more)
            assert (400, error) == told(answer)
            assert [] == answer.headers.get_list("dpop-nonce")
        answer = await refresh(ledger, "dpn", token, shown(ledger, nonce=nonce))
        assert (200, 1) == (answer.status_code, len(answer.headers.get_list("dpop-nonce")))


async def test_nobody_else_is_given_a_nonce(tmp_path: Path) -> None:
    """RFC 9449 8.2: handed out where it is asked for; a client that got none need not keep any."""
    async with asking(tmp_path) as ledger:
        for client in ("dpp", "dpc", "www"):
            issued = await ledger.issue(client, cnf=BOUND)
            answer = await refresh(ledger, client, issued["refresh_token"], shown(ledger, nonce="anything"))
            assert (200, []) == (answer.status_code, answer.headers.get_list("dpop-nonce"))


async def test_two_nodes_of_one_ring_take_each_others_nonces(tmp_path: Path) -> None:
    """RFC 9449 8: no node asks another; a rotated key changes nothing."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    async with asking(tmp_path / "one") as one:
        shutil.copy(tmp_path / "one" / "ledger.keys", tmp_path / "other" / "ledger.keys")
        async with asking(tmp_path / "other", seed=2) as other:
            await other.ledger.operators.keys_activate(await other.ledger.operators.keys_rotate())
            issued = await one.issue("dpn", cnf=BOUND)
            here = await refresh(one, "dpn", issued["refresh_token"], shown(one))
            issued = await other.issue("dpn", cnf=BOUND)
            nonce = here.headers["dpop-nonce"]
            there = await refresh(other, "dpn", issued["refresh_token"], shown(other, nonce=nonce))
            assert (200, nonce) == (there.status_code, there.headers["dpop-nonce"])
