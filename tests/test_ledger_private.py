"""Personal data and its commitments."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import private
from ledger.keyring import KeyRing
from ledger.private import PrivateGrant, commitment
from tests.engines import alter
from tests.ledgers import open_ledger
from tests.rings import NONCE, check_concealed, known_ring, mac_by_hand

RING = known_ring()
SALT = bytes(range(16))
SALT_HEX = "000102030405060708090a0b0c0d0e0f"

# RFC 8785 3.2.2.2: two-letter escapes where JSON has them, \u00xx in lower case for other controls, all else as it is.
CANONICAL = [
    ("", '""'),
    ("plain", '"plain"'),
    ('\u20ac$\u000f\u000aA\'B"\\\\"/', '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'),  # the RFC's own sample
    ("\b\t\n\f\r", '"\\b\\t\\n\\f\\r"'),
    ("\x00\x01\x0b\x0e\x1a\x1f", '"\\u0000\\u0001\\u000b\\u000e\\u001a\\u001f"'),
    ("\x7f\x80\x9f\xa0", '"\x7f\x80\x9f\xa0"'),
    ("</script>&'", '"</script>&\'"'),
    ("\u2028\u2029\ufeff\ufffe\uffff", '"\u2028\u2029\ufeff\ufffe\uffff"'),
    ("é e\u0301 Å Ω", '"é e\u0301 Å Ω"'),  # never normalised
    ("\U0001f600\U0010ffff", '"\U0001f600\U0010ffff"'),
    ("\u05d3\u05e9", '"\u05d3\u05e9"'),
]


def by_hand(salt_hex: str, name: str, canonical_value: str) -> str:
    return hashlib.sha256(f'["{salt_hex}","{name}",{canonical_value}]'.encode()).hexdigest()


def test_a_commitment_is_the_same_for_ever() -> None:
    """Golden: SHA-256 of `["000102030405060708090a0b0c0d0e0f","reason","stolen phone"]`."""
    assert "ba505557fe41249aafcb402a6dc5e0fd011a960dadd08a4f5840de41a54005be" == commitment(
        SALT, "reason", "stolen phone"
    )


@pytest.mark.parametrize(("value", "canonical"), CANONICAL)
def test_a_commitment_is_of_the_canonical_form(value: str, canonical: str) -> None:
    """RFC 8785: whoever is shown salt, name and value recomputes it with any canonical JSON."""
    assert by_hand(SALT_HEX, "device", canonical) == commitment(SALT, "device", value)


def test_every_control_character_has_its_canonical_escape() -> None:
    """RFC 8785 3.2.2.2 for each of the 32, since one wrong escape makes a commitment that nobody can recompute."""
    short = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
    for code in range(32):
        escaped = short.get(chr(code), f"\\u{code:04x}")
        assert by_hand(SALT_HEX, "device", f'"{escaped}"') == commitment(SALT, "device", chr(code))


@given(st.binary(min_size=16, max_size=16), st.text())
def test_a_commitment_agrees_with_another_encoder(salt: bytes, value: str) -> None:
    """For any text: the standard library's encoder, which for strings has the same form."""
    canonical = json.dumps(value, ensure_ascii=False)
    assert by_hand(salt.hex(), "context", canonical) == commitment(salt, "context", value)


def test_an_encoder_that_escapes_more_is_caught() -> None:
    """Broken twin of the tests above: JSON that is right and not canonical differs on six of the known cases."""
    differing = [value for value, canonical in CANONICAL if json.dumps(value) != canonical]
    assert 6 == len(differing)


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", "\udc00\ud800"])
def test_a_lone_surrogate_has_no_commitment(value: str) -> None:
    """RFC 8785 3.2.2.2: what is no Unicode text must not be hashed as if it were."""
    with pytest.raises(UnicodeEncodeError):
        commitment(SALT, "device", value)


def test_salt_name_and_value_all_count() -> None:
    """Two grants of one device, a device and a session of one name: nothing tells that they are equal."""
    made = [commitment(SALT, "device", "x"), commitment(NONCE[:16], "device", "x"), commitment(SALT, "session", "x")]
    assert 3 == len(set(made))
    assert made[0] == commitment(SALT, "device", "x")


def test_a_context_is_address_and_the_user_agents_first_512_characters() -> None:
    """Equal contexts of one grant have equal commitments; what follows the 512th character is not looked at."""
    assert "127.0.0.1\ncurl/8.1" == private.context_value("127.0.0.1", "curl/8.1")
    assert "::/64\n" == private.context_value("::/64", "")
    assert "a\n" + "é" * 512 == private.context_value("a", "é" * 513)
    assert private.context_value("a", "x" * 512) == private.context_value("a", "x" * 512 + "y")
    assert private.context_value("a", "x" * 511) != private.context_value("a", "x" * 512)


def test_the_nonce_is_named_by_its_hash() -> None:
    """What `grant.issued` says of it."""
    assert hashlib.sha256(NONCE).hexdigest() == private.nonce_sha256(NONCE)


def test_what_is_drawn_comes_from_the_given_source() -> None:
    """Nonce 32 bytes, salt 16, subject id 32 hex digits; nothing else is mixed in."""
    assert NONCE == private.new_nonce(lambda count: NONCE[:count])
    assert SALT == private.new_salt(lambda count: bytes(range(count)))
    assert SALT_HEX == private.new_subject_id(lambda count: bytes(range(count)))


# ---------------------------------------------------------------- keyed look-ups


def test_a_lookup_is_the_same_for_ever() -> None:
    """Known answer by another road: a person must be found again by every later release."""
    root = bytes(range(32))
    assert mac_by_hand(root, "root", "subject lookup", "zoë".encode(), 16) == private.subject_lookup(RING, "zoë")
    expected = mac_by_hand(root, "root", "idempotency key", b'["login-app","k-1"]', 16)
    assert expected == private.idempotency_mac(RING, "login-app", "k-1")
    assert mac_by_hand(root, "root", "idempotency body", b'{"a":1}', 16) == private.body_mac(RING, b'{"a":1}')


def test_a_lookup_needs_the_ring() -> None:
    """Without the ring nobody can try names against the table."""
    assert private.subject_lookup(RING, "alice") != private.subject_lookup(KeyRing.new(0), "alice")


def test_subjects_are_compared_byte_for_byte() -> None:
    """No folding of case, no normalising: two spellings are two persons."""
    names = ["alice", "Alice", "alice ", "\u00e9", "e\u0301", "\uff41lice"]
    assert len(names) == len({private.subject_lookup(RING, name) for name in names})


def test_an_idempotency_key_is_the_operators_own() -> None:
    """Neither another operator's same key nor another split of the same letters is the same."""
    made = {private.idempotency_mac(RING, *pair) for pair in (("a", "bc"), ("ab", "c"), ("b", "bc"), ('a","b', "c"))}
    assert 4 == len(made)


# ---------------------------------------------------------------- what may stand there


@pytest.mark.parametrize("text", ["a", " ", "a" * 255, "é" * 255, "\U0001f600" * 255, "a b@c/d?e#f", "\u2028", "\xad"])
def test_a_subject_may_be(text: str) -> None:
    """1–255 characters, whatever their size in UTF-8."""
    assert private.is_subject(text)
    assert 16 == len(private.subject_lookup(RING, text))


@pytest.mark.parametrize(
    "text", ["", "a" * 256, "a\n", "\na", "a\x00b", "\t", "\x7f", "\x80", "\x85", "\x9f", "\ud800", "a\udfff"]
)
def test_a_subject_may_not_be(text: str) -> None:
    """No control characters (C0, DEL, C1), no lone surrogates, not empty, not longer than 255."""
    assert not private.is_subject(text)


def test_a_reason_is_short_text() -> None:
    """At most 200 characters, line feeds allowed, no lone surrogates."""
    assert all(private.is_reason(text) for text in ("", "x" * 200, "é" * 200, "two\nlines"))
    assert not any(private.is_reason(text) for text in ("x" * 201, "\ud800", "x\udfff"))


def test_no_text_of_a_private_row_shows_it() -> None:
    """I-20: whoever logs a private row by mistake does not show the nonce."""
    row = PrivateGrant(NONCE, SALT, bytes(16))
    check_concealed(row, NONCE, SALT)
    assert "<PrivateGrant>" == repr(row)
    over = row.without_nonce()
    assert (None, SALT, bytes(16)) == (over.nonce, over.salt, over.body_mac)


async def test_a_device_that_is_no_text_any_more_keeps_nobody_from_refreshing(tmp_path: Path) -> None:
    """What no decision needs is not read for one: a flipped bit in it is nothing to those of the same batch either."""
    async with open_ledger(tmp_path) as opened:
        issued = [await opened.issue(f"person-{n}") for n in range(3)]
        opened.connection.execute("UPDATE private_grants SET device = CAST(x'ff' AS TEXT)")
        opened.ledger.memory.forget_everything()
        answers = await asyncio.gather(*(opened.refresh(each) for each in issued))
        assert 3 == len({each.refresh_token for each in answers})


# A person's id may hold any bytes once a bit of it has flipped; PostgreSQL lets nobody write such a text but by force.
NO_TEXT = {
    "sqlite": "UPDATE private_grants SET subject_id = CAST(x'ff' AS TEXT) WHERE {}",
    "postgres": "CREATE CAST (bytea AS text) WITHOUT FUNCTION;"
    " UPDATE private_grants SET subject_id = CAST('\\xff'::bytea AS text) WHERE {}",
}


async def test_a_person_who_is_no_text_any_more_keeps_nobody_from_refreshing(tmp_path: Path, each_store: str) -> None:
    """Whose a grant is its events say: what a flipped bit has made of the column is nothing to those of the same batch,
    nor to the grant itself."""
    async with open_ledger(tmp_path) as opened:
        issued = [await opened.issue(f"person-{n}") for n in range(3)]
        of_one = f"stream = (SELECT id FROM streams WHERE name = 'grant:{issued[1].grant_id}')"
        alter(opened.path, NO_TEXT[each_store].format(of_one))
        opened.ledger.memory.forget_everything()
        answers = await asyncio.gather(*(opened.refresh(each) for each in issued))
        assert 3 == len({each.refresh_token for each in answers})
        assert [] == opened.fatal
