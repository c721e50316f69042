"""Signing keys: derived from the ring or kept in it, the same signature again, read by their own algorithm only."""

import base64
import hmac
import json
from collections.abc import Mapping
from functools import lru_cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk, jws

from ledger import signing
from ledger.keyring import Alg, KeyNotHeld, KeyRing
from tests.rings import CREATED_AT, RING_ID, check_concealed, key_secret, known_ring

TYP = "at+jwt"
P256_ORDER = 2**256 - 2**224 + 2**192 - 0x4319055258E8617B0C46353D039CDAAF
"""SEC 2, 2.4.2."""


@lru_cache(maxsize=1)
def rsa_key() -> bytes:
    return signing.new_rsa_key()


@lru_cache(maxsize=1)
def ring_of_all() -> KeyRing:
    """Keys 1 and 2 sign by ES256, 3 by EdDSA, 4 by RS256."""
    ring = known_ring().with_new_key(CREATED_AT, alg="EdDSA", randomness=lambda size: key_secret(3)[:size])
    return ring.with_new_key(CREATED_AT, alg="RS256", rsa=rsa_key(), randomness=lambda size: key_secret(4)[:size])


def material_by_hand(key_id: int, purpose: str, length: int) -> bytes:
    """HKDF (RFC 5869) from its two equations."""
    extracted = hmac.digest(bytes.fromhex(RING_ID), key_secret(key_id), "sha256")
    info = f"token-ledger 1, key {key_id}, {purpose}".encode()
    made = block = b""
    for number in (1, 2):
        block = hmac.digest(extracted, block + info + bytes([number]), "sha256")
        made += block
    return made[:length]


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize(("key_id", "alg"), [(1, "ES256"), (3, "EdDSA"), (4, "RS256")])
def test_what_a_key_signs_an_unmodified_library_verifies(key_id: int, alg: str) -> None:
    """RFC 7515: the published key is enough, and it alone is enough."""
    key = ring_of_all().signing_key(key_id)
    text = key.sign(b'{"sub":"alice"}', TYP)
    public = jwk.import_key(key.public)
    found = jws.deserialize_compact(text, public, algorithms=[alg])
    assert {"typ": TYP, "alg": alg, "kid": f"00112233-{key_id}"} == found.headers()
    assert b'{"sub":"alice"}' == found.payload
    assert (key_id, b'{"sub":"alice"}') == signing.read(ring_of_all(), text, TYP)


@pytest.mark.parametrize("key_id", [1, 3, 4])
def test_a_signature_is_the_same_again(key_id: int) -> None:
    """A lost answer is given again to the byte, also by another process: nothing is drawn."""
    made = {ring.signing_key(key_id).sign(b"{}", TYP) for ring in (ring_of_all(), anew(ring_of_all())) for _ in "ab"}
    assert 1 == len(made)


def test_a_signature_that_draws_a_nonce_is_caught() -> None:
    """Broken twin of the test above: the library's own ES256 signs differently each time."""
    key = jwk.generate_key("EC", "P-256")
    assert 2 == len({jws.serialize_compact({"alg": "ES256"}, b"{}", key) for _ in "ab"})


def test_the_nonce_is_that_of_rfc_6979() -> None:
    """Known answer: RFC 6979 A.2.5, P-256 with SHA-256, the message `sample`."""
    private = ec.derive_private_key(0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721, ec.SECP256R1())
    algorithm = signing._REGISTRY.algorithms["ES256"]
    assert (
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
        "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    ) == algorithm.sign(b"sample", jwk.ECKey(private, private)).hex()


def test_the_keys_follow_from_the_ring() -> None:
    """By another road: HKDF, then a number below the order of P-256 (FIPS 186-5 A.2.1), or the key itself (RFC 8032).

    So a ring made by any release has had them all the time, and a backup of the ring is a backup of them.
    """
    number = int.from_bytes(material_by_hand(2, "access token signature, ES256", 48), "big") % (P256_ORDER - 1) + 1
    point = ec.derive_private_key(number, ec.SECP256R1()).public_key().public_numbers()
    public = ring_of_all().signing_key(2).public
    assert (point.x, point.y) == tuple(int.from_bytes(base64.urlsafe_b64decode(public[m] + "=")) for m in "xy")
    seed = material_by_hand(3, "access token signature, EdDSA", 32)
    raw = ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert raw == base64.urlsafe_b64decode(ring_of_all().signing_key(3).public["x"] + "=")


@pytest.mark.parametrize("key_id", [1, 3, 4])
def test_the_public_key_is_public(key_id: int) -> None:
    """RFC 7517: kid, use and alg, and no private member (RFC 7518 6.2.2, 6.3.2)."""
    public = ring_of_all().signing_key(key_id).public
    assert {"kid", "kty", "use", "alg"} <= public.keys()
    assert public.keys() <= {"kid", "kty", "use", "alg", "crv", "x", "y", "n", "e"}
    assert not jwk.import_key(public).is_private
    assert signing.RSA_BITS == 3072
    assert key_id != 4 or 512 == len(public["n"])


@pytest.mark.parametrize("key_id", [1, 3, 4])
def test_the_length_is_known_before_it_is_signed(key_id: int) -> None:
    key = ring_of_all().signing_key(key_id)
    for size in range(7):
        assert len(key.sign(b"x" * size, TYP)) == key.characters(b"x" * size)


def test_a_key_that_is_not_held_is_named() -> None:
    """A text under a key that another node has already may be ours; one of another ring never is."""
    more = ring_of_all()
    with pytest.raises(KeyNotHeld):
        signing.read(known_ring(), more.signing_key(3).sign(b"{}", TYP), TYP)
    with pytest.raises(KeyNotHeld):
        known_ring().signing_key(3)
    other = KeyRing("f" * 32, more.root, more.keys)
    assert signing.read(known_ring(), other.signing_key(3).sign(b"{}", TYP), TYP) is None


KIDS = ["00112233-0", "00112233-01", "00112233-256", "00112233-1000", "00112233-", "00112233-x", "00112233-²", "1", "",
        "00112233-1 ", "00112233--1", "00112234-1", None, 1, ["00112233-1"], {"00112233-1": 1}]  # fmt: skip


@pytest.mark.parametrize("kid", KIDS, ids=repr)
def test_a_kid_has_one_spelling(kid: object) -> None:
    """What names no key of this ring is looked for nowhere."""
    assert signing.read(known_ring(), f"{segment({'alg': 'ES256', 'typ': TYP, 'kid': kid})}.e30.AAAA", TYP) is None


def signed_by(key: jwk.Key, header: Mapping[str, object], alg: str) -> str:
    return jws.serialize_compact({"alg": alg, **header}, b"{}", key, algorithms=[alg])


def test_a_text_is_checked_by_its_keys_own_algorithm() -> None:
    """RFC 8725 3.1, 3.2: no `none`, no HMAC under the public key, no other type, no header that brings its own key."""
    ring = known_ring()
    key = ring.signing_key(1)
    header = {"kid": key.kid, "typ": TYP}
    public = jwk.ECKey.import_key(key.public).as_pem(private=False)
    mine = jwk.generate_key("EC", "P-256")
    hmac_key = jwk.OctKey(public, public)
    head, payload, signature = key.sign(b"{}", TYP).split(".")
    forged = [
        f"{segment({'alg': 'none', **header})}.{payload}.",
        signed_by(hmac_key, header, "HS256"),
        signed_by(mine, header, "ES256"),
        signed_by(mine, {**header, "jwk": mine.as_dict(private=False)}, "ES256"),
        key.sign(b"{}", "JWT"),
        key.sign(b"{}", "AT+JWT"),
        f"{head}.{payload}.",
        f"{head}..{signature}",
        f"{head}.{segment({'a': 1})}.{signature}",
        f"{segment({'alg': 'ES256', **header, 'crit': ['x'], 'x': 1})}.{payload}.{signature}",
        f"{segment({'alg': 'ES256', **header, 'b64': False, 'crit': ['b64']})}.{payload}.{signature}",
    ]
    assert [None] * len(forged) == [signing.read(ring, text, TYP) for text in forged]
    assert (1, b"{}") == signing.read(ring, f"{head}.{payload}.{signature}", TYP)


HEADS = ["1", '"x alg"', '["alg"]', '{"alg":1}', "[" * 180, "{}", "null", '{"alg":"ES256","kid":[]}', "é", "\ud800"]


@pytest.mark.parametrize("head", HEADS, ids=ascii)
def test_what_is_no_header_is_no_fault(head: str) -> None:
    encoded = base64.urlsafe_b64encode(head.encode("utf-8", "surrogatepass")).decode().rstrip("=")
    for text in (f"{encoded}.e30.AAAA", f"{head}.e30.AAAA", f"{encoded}", f"{encoded}.."):
        assert signing.read(known_ring(), text, TYP) is None


@given(st.text() | st.builds(".".join, st.lists(st.text("abeyJ0_-=.{}[]", max_size=40), min_size=2, max_size=4)))
def test_no_text_is_a_fault(text: str) -> None:
    assert signing.read(known_ring(), text, TYP) is None


@given(place=st.integers(0, 400), letter=st.sampled_from("AZaz09-_."))
def test_one_letter_changed_is_nothing_of_ours(place: int, letter: str) -> None:
    """What is signed is signed to the letter; at most the unused bits of the signature's last one may differ."""
    text = known_ring().signing_key(1).sign(b'{"sub":"alice"}', TYP)
    place %= len(text) - 1
    changed = text[:place] + letter + text[place + 1 :]
    assert (changed == text) == (signing.read(known_ring(), changed, TYP) is not None)


def test_no_text_of_a_signing_key_shows_it() -> None:
    """I-20."""
    ring = ring_of_all()
    for key_id, purpose in ((1, "ES256"), (3, "EdDSA")):
        key = ring.signing_key(key_id)
        assert f"<SigningKey 00112233-{key_id}>" == repr(key)
        secret = material_by_hand(key_id, f"access token signature, {purpose}", 48 if purpose == "ES256" else 32)
        check_concealed(key, secret)
        private = jwk.import_key(key._key.as_dict(private=True))
        check_concealed(key, base64.urlsafe_b64decode(str(private["d"]) + "="))
    check_concealed(ring.signing_key(4), rsa_key()[-200:])
    check_concealed(ring, rsa_key()[-200:])
    check_concealed(ring.keys[4], rsa_key()[-200:])


def anew(ring: KeyRing) -> KeyRing:
    """The same ring as another process reads it."""
    return KeyRing(ring.ring_id, ring.root, ring.keys)


def test_each_ring_key_has_its_own_signing_key() -> None:
    algs: list[Alg] = [ring_of_all().keys[key_id].alg for key_id in (1, 2, 3, 4)]
    assert ["ES256", "ES256", "EdDSA", "RS256"] == algs == [ring_of_all().signing_key(i).alg for i in (1, 2, 3, 4)]
    assert 2 == len({ring_of_all().signing_key(key_id).public["x"] for key_id in (1, 2)})
