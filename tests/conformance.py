"""What both conformance suites check of an answer, said once, in our own words."""

import math
from collections import Counter
from collections.abc import Iterable

from tests.servers import Server
from tests.wire import FORM, REVOKE_PATH, TOKEN_PATH, Answer, form_bytes, request_bytes

SCOPE = "read openid profile"
BITS_IN_LENGTH_MIN = 128
BITS_OF_SHANNON_MIN = 96


def shannon_bits(token: str) -> float:
    """Return the Shannon entropy of a text by the frequencies of its own characters, in bits."""
    return -sum(count * math.log2(count / len(token)) for count in Counter(token).values())


def varied_bits(tokens: Iterable[str]) -> float:
    """Return how many bits many tokens vary by, place by place, at most: a counter or a fixed prefix adds nothing."""
    return sum(math.log2(len(set(column))) for column in zip(*tokens, strict=True))


def check_success(answer: Answer) -> None:
    """200, JSON, no-store, a bearer token that cannot be guessed and a lifetime that makes sense; no ID token."""
    assert 200 == answer.status, answer.body
    assert "application/json" == answer.header("Content-Type")
    assert "no-store" == answer.header("Cache-Control")
    body = answer.json()
    assert "bearer" == body["token_type"].lower()
    assert 0 < body["expires_in"] <= 31_536_000
    assert "id_token" not in body
    for token in (body["access_token"], body["refresh_token"]):
        assert all("\x20" <= character <= "\x7e" for character in token), "RFC 6749 A.12, A.17"
        assert 6 * len(token) >= BITS_IN_LENGTH_MIN
        assert shannon_bits(token) > BITS_OF_SHANNON_MIN


def check_refused(answer: Answer, *errors: str) -> None:
    """400, or 401 for a client that is not who it says; JSON; one of these errors, well spelled."""
    assert answer.status in ((400, 401) if "invalid_client" in errors else (400,)), answer.body
    assert "application/json" == answer.header("Content-Type")
    assert answer.json()["error"] in errors
    assert not set(answer.json().get("error_description", "")) & set("\r\n\t")


def unauthenticated(server: Server, token: str, *, path: str = TOKEN_PATH, **fields: str) -> Answer:
    """Send a refresh, or a revocation, with no more than these members beside the token."""
    form = {"token": token} if path == REVOKE_PATH else {"grant_type": "refresh_token", "refresh_token": token}
    raw = request_bytes("POST", path, headers={"Content-Type": FORM}, body=form_bytes(form | fields))
    return server.exchange(raw, source=server.new_address())
