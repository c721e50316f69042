"""A key ring whose every byte is known, its MACs by another road, and the texts a secret may show up as."""

import base64
import copy
import hashlib
import hmac
import logging
import pickle
import pprint
import traceback

import msgspec
import pytest

from ledger.keyring import KeyRing, RingKey

RING_ID = "00112233445566778899aabbccddeeff"
CREATED_AT = 1_764_091_130_000_000  # 2025-11-25T17:18:50Z
GRANT_ID = "019abd0e0e107d708000123456789abc"
NONCE = bytes(range(100, 132))


def key_secret(key_id: int) -> bytes:
    return hashlib.sha256(f"key {key_id}".encode()).digest()


def known_ring(*key_ids: int) -> KeyRing:
    """A ring with these keys, or with keys 1 and 2."""
    keys = {key_id: RingKey(key_id, key_secret(key_id), CREATED_AT) for key_id in key_ids or (1, 2)}
    return KeyRing(RING_ID, bytes(range(32)), keys)


def mac_by_hand(secret: bytes, name: str, purpose: str, message: bytes, size: int) -> bytes:
    """HKDF (RFC 5869) from its two equations and keyed BLAKE2b: what `KeyRing.mac` must come to."""
    extracted = hmac.digest(bytes.fromhex(RING_ID), secret, "sha256")
    info = f"token-ledger 1, {name}, {purpose}".encode()
    subkey = hmac.digest(extracted, info + b"\x01", "sha256")
    return hashlib.blake2b(message, key=subkey, digest_size=size).digest()


def every_text_of(value: object) -> str:
    """All that a log line, a debugger or a traceback makes of a value, in one text."""
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s %r", (value, value), None)
    try:
        raise ValueError(value)
    except ValueError as error:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "\n".join(
        [
            repr(value), str(value), f"{value}", f"{value!r:>9}", ascii(value), repr([value]), repr({"x": value}),
            pprint.pformat(value), record.getMessage(), *trace.format(),
        ]
    )  # fmt: skip


def shown(secret: bytes, text: str) -> bool:
    """Whether a text shows a secret's bytes in one of the usual spellings."""
    spellings = (
        secret.hex(),
        base64.b64encode(secret).decode().rstrip("="),
        base64.urlsafe_b64encode(secret).decode().rstrip("="),
        repr(secret)[2:-1],
    )
    return any(spelling.lower() in text.lower() for spelling in spellings)


def check_concealed(value: object, *secrets: bytes) -> None:
    """I-20: no text of a value shows these secrets or half of one, and nothing that sends objects off will take it."""
    text = every_text_of(value)
    assert not any(shown(secret, text) or shown(secret[: len(secret) // 2], text) for secret in secrets)
    for send in (
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        msgspec.json.encode,
        msgspec.msgpack.encode,
        msgspec.to_builtins,
    ):
        with pytest.raises(TypeError):
            send(value)
