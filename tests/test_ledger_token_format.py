"""The form of all tokens: one spelling each, nothing believed before the tag, no kind passing for another."""

import base64
import contextlib
import hmac
import itertools
import random
import string
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.keyring import KeyNotHeld, KeyRing, Purpose
from ledger.token_format import TokenFormat
from tests.rings import GRANT_ID, NONCE, key_secret, known_ring, mac_by_hand

NUMBER_MAX = 2**32 - 1
URL_ALPHABET = string.ascii_letters + string.digits + "-_"
REFRESH = TokenFormat("rt1_", secret=Purpose.REFRESH_SECRET, secret_size=20, tag=Purpose.REFRESH_TAG, tag_size=12)
ACCESS = TokenFormat("at1_", secret=Purpose.ACCESS_SECRET, secret_size=16, tag=Purpose.ACCESS_TAG, tag_size=16)
CODE = TokenFormat("ac1_", secret=Purpose.CODE_SECRET, secret_size=16, tag=Purpose.CODE_TAG, tag_size=16)
FORMATS = (REFRESH, ACCESS, CODE)
RING = known_ring(1, 2, 255)

Read = Callable[[KeyRing, str], object]


def token(kind: TokenFormat = REFRESH) -> str:
    """The first token of a kind that holds both letters which base64 spells in two ways."""
    numbered = (kind.write(RING, 1, GRANT_ID, number, NONCE) for number in itertools.count())
    return next(text for text in numbered if "-" in text and "_" in text[4:])


def by_hand(prefix: str, kind: str, key_id: int, number: int, secret_size: int) -> str:
    """A token from its description alone: 54 bytes, base64url, no code of the ledger."""
    body = bytes([1, key_id]) + bytes.fromhex(GRANT_ID) + number.to_bytes(4, "big")
    key, name = key_secret(key_id), f"key {key_id}"
    body += mac_by_hand(key, name, f"{kind} secret", body[2:] + NONCE, secret_size)
    whole = body + mac_by_hand(key, name, f"{kind} tag", body, 32 - secret_size)
    return prefix + base64.urlsafe_b64encode(whole).decode()


def respelled(genuine: str) -> Iterator[str]:
    """Other spellings of a token, which a lenient reader takes for it or for something near it."""
    yield from (genuine + end for end in ("=", "==", "A", "\n", "\r\n", " ", "\x00", "%3D"))
    yield from (start + genuine for start in (" ", "\n", "\ufeff", "Bearer ", '"'))
    yield from (genuine[:-1], genuine[1:], genuine[:4], "", genuine[4:], genuine.upper(), genuine.lower())
    yield from ("RT1_" + genuine[4:], "rt2_" + genuine[4:], "rt1-" + genuine[4:])
    yield from (genuine.replace("-", "+"), genuine.replace("_", "/"), "rt1_" + genuine[4:].replace("_", "/"))
    yield from (genuine[:40] + foreign + genuine[40:] for foreign in ("\n", " ", "!", "=", "\x00", "é", "\ud800"))
    yield from ("rt1_" + foreign * 72 for foreign in "!=+\n\x7f")
    yield from (genuine[:40] + foreign + genuine[41:] for foreign in ("\n", ".", "~", "é", "\uff21", "\u0410"))


def one_letter_off(genuine: str) -> Iterator[str]:
    for place, letter in enumerate(genuine):
        alphabet = URL_ALPHABET if place >= 4 else string.printable
        yield from (genuine[:place] + other + genuine[place + 1 :] for other in alphabet if other != letter)


def one_bit_off(genuine: str) -> Iterator[str]:
    whole = base64.urlsafe_b64decode(genuine[4:])
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 0x80 >> bit % 8
        yield genuine[:4] + base64.urlsafe_b64encode(flipped).decode()


def accepted(read: Read, texts: Iterator[str], genuine: str) -> list[str]:
    """Which of the texts that are not the genuine one a reader takes for a token."""
    found = []
    for text in texts:
        try:
            if text != genuine and read(RING, text) is not None:
                found.append(text)
        except KeyNotHeld:
            pass
    return found


@pytest.mark.parametrize("number", [0, 1, NUMBER_MAX])
@pytest.mark.parametrize("key_id", [1, 255])
def test_a_token_is_its_description(key_id: int, number: int) -> None:
    """Known answer by another road: version, key id, grant id, number, secret, tag, in base64url (RFC 4648 5)."""
    written = [kind.write(RING, key_id, GRANT_ID, number, NONCE) for kind in FORMATS]
    assert [
        by_hand("rt1_", "refresh token", key_id, number, 20),
        by_hand("at1_", "access token", key_id, number, 16),
        by_hand("ac1_", "authorization code", key_id, number, 16),
    ] == written
    assert {76} == {len(text) for text in written}
    assert all(set(text[4:]) <= set(URL_ALPHABET) for text in written)


@given(
    kind=st.sampled_from(FORMATS),
    key_id=st.sampled_from([1, 2, 255]),
    grant=st.binary(min_size=16, max_size=16),
    number=st.integers(0, NUMBER_MAX),
    nonce=st.binary(min_size=32, max_size=32),
    other=st.binary(min_size=32, max_size=32),
)
def test_what_was_written_is_read(
    kind: TokenFormat, key_id: int, grant: bytes, number: int, nonce: bytes, other: bytes
) -> None:
    """Round trip: a token says what it was made of, and its secret is genuine for its own nonce only."""
    parts = kind.read(RING, kind.write(RING, key_id, grant.hex(), number, nonce))
    assert parts is not None
    grant_id, number_read, key_read, secret = parts
    assert (grant.hex(), number, key_id) == (grant_id, number_read, key_read)
    assert kind.genuine(RING, key_id, grant_id, number, secret, nonce)
    assert (other == nonce) == kind.genuine(RING, key_id, grant_id, number, secret, other)
    assert not kind.genuine(RING, key_id, grant_id, number ^ 1, secret, nonce)
    assert not kind.genuine(RING, 3 - key_id if key_id < 3 else 1, grant_id, number, secret, nonce)


def test_only_what_we_wrote_is_read() -> None:
    """Every flipped bit, every other letter and every other spelling is refused, for every kind."""
    for kind in FORMATS:
        genuine = token(kind)
        assert kind.read(RING, genuine) is not None
        for altered in (one_bit_off, one_letter_off, respelled):
            assert [] == accepted(kind.read, altered(genuine), genuine)


def without_tag(ring: KeyRing, text: str) -> object:
    """The broken twin that believes a token before its tag."""
    if len(text) != 76 or not text.startswith("rt1_") or not set(text[4:]) <= set(URL_ALPHABET):
        return None
    whole = base64.urlsafe_b64decode(text[4:])
    return whole[2:18].hex() if whole[0] == 1 and whole[1] in ring.keys else None


def half_a_tag(ring: KeyRing, text: str) -> object:
    """The broken twin that compares the tag's first half."""
    if without_tag(ring, text) is None:
        return None
    whole = base64.urlsafe_b64decode(text[4:])
    return True if ring.mac(whole[1], Purpose.REFRESH_TAG, whole[:42], 12)[:6] == whole[42:48] else None


def lenient(ring: KeyRing, text: str) -> object:
    """The broken twin that decodes as Python does by default: foreign characters are dropped, padding is welcome."""
    try:
        whole = base64.urlsafe_b64decode(text.strip().removeprefix("rt1_") + "==")
    except ValueError:
        return None
    return REFRESH.read(ring, "rt1_" + base64.urlsafe_b64encode(whole).decode())


def test_a_reader_that_forgets_the_tag_is_caught() -> None:
    """Broken twins of the test above: no tag, half of it, a lenient decoder."""
    genuine = token()
    for twin in (without_tag, half_a_tag, lenient):
        assert twin(RING, genuine)
    assert 360 <= len(accepted(without_tag, one_bit_off(genuine), genuine))
    assert 48 == len(accepted(half_a_tag, one_bit_off(genuine), genuine))
    assert accepted(half_a_tag, one_letter_off(genuine), genuine)
    assert {genuine + "=", genuine + "\n", genuine[:40] + "!" + genuine[40:], genuine.replace("_", "/")} & set(
        accepted(lenient, respelled(genuine), genuine)
    ) == {genuine + "=", genuine + "\n", genuine[:40] + "!" + genuine[40:]}


def test_no_kind_passes_for_another() -> None:
    """A token under another kind's prefix is nothing: each kind has keys of its own."""
    for kind in FORMATS:
        for other in FORMATS:
            assert (kind is other) == (other.read(RING, token(other)[:4] + token(kind)[4:]) is not None)


def test_the_tag_is_judged_before_anything_is_believed() -> None:
    """A version, a key id and a shape are only hints; a key that is not held is said, a key id 0 is none."""
    whole = base64.urlsafe_b64decode(token()[4:])

    def text(version: int, key_id: int) -> str:
        return "rt1_" + base64.urlsafe_b64encode(bytes([version, key_id]) + whole[2:]).decode()

    assert REFRESH.read(RING, text(1, 1)) is not None
    for version, key_id in ((0, 1), (2, 1), (255, 1), (1, 0), (1, 2), (2, 77)):
        assert REFRESH.read(RING, text(version, key_id)) is None
    with pytest.raises(KeyNotHeld, match=r"^key 77 is not in the key ring$") as caught:
        REFRESH.read(RING, text(1, 77))
    assert 77 == caught.value.key_id
    with pytest.raises(KeyNotHeld):
        REFRESH.write(RING, 77, GRANT_ID, 0, NONCE)


def test_another_ring_reads_none_of_it() -> None:
    """The tag is keyed: a ring with the same ids and other keys has issued nothing of this."""
    other = KeyRing("f" * 32, RING.root, RING.keys)
    assert all(kind.read(other, token(kind)) is None for kind in FORMATS)


def test_garbage_is_never_more_than_refused() -> None:
    """10,000 seeded texts of any shape: None, or a key that is not held, and no other outcome."""
    draw = random.Random(6)
    full = known_ring(*range(1, 256))

    def garbage() -> str:
        match draw.randrange(4):
            case 0:  # of the right shape, any bytes
                return "rt1_" + base64.urlsafe_b64encode(draw.randbytes(54)).decode()
            case 1:  # of the right shape, version and all, so that only the tag can tell
                return "rt1_" + base64.urlsafe_b64encode(b"\x01" + draw.randbytes(53)).decode()
            case 2:  # of the right length, any character
                return "rt1_" + "".join(chr(draw.randrange(0x110000)) for _ in range(72))
            case _:
                return "".join(draw.choices(string.printable, k=draw.randrange(200)))

    for _ in range(10_000):
        text = garbage()
        assert REFRESH.read(full, text) is None
        with contextlib.suppress(KeyNotHeld):
            assert REFRESH.read(RING, text) is None


@given(st.text(max_size=90))
def test_any_text_is_refused(text: str) -> None:
    """No text that we did not write is read, however odd its characters."""
    assert REFRESH.read(RING, text) is None
    assert REFRESH.read(RING, f"rt1_{text:A<72.72}") is None


def test_tag_and_secret_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both verdicts come from `hmac.compare_digest` alone: with it blinded, everything of the right shape passes."""
    forged = token()[:-16] + "A" * 16
    assert REFRESH.read(RING, forged) is None
    assert not REFRESH.genuine(RING, 1, GRANT_ID, 0, bytes(20), NONCE)
    monkeypatch.setattr(hmac, "compare_digest", lambda one, two: True)
    assert REFRESH.read(RING, forged) is not None
    assert REFRESH.genuine(RING, 1, GRANT_ID, 0, bytes(20), NONCE)
