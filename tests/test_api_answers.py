"""Answers: JSON that no cache keeps, errors of RFC 6749 5.2, and a template that says what the encoder would."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.answers import (
    CLOSE,
    Answer,
    BadRequest,
    describable,
    empty_answer,
    invalid_client,
    invalid_token,
    json_answer,
    method_not_allowed,
    oauth_error,
    token_answer,
)
from api.forms import TooLarge
from ledger.answers import TokenAnswer

TOKEN = "rt1_" + "A" * 72
NOT_STORED = {b"cache-control": b"no-store", b"pragma": b"no-cache", b"vary": b"Origin"}


def headers(answer: Answer) -> dict[bytes, bytes]:
    assert len(answer.headers) == len(dict(answer.headers)), "a header stands twice"
    return dict(answer.headers)


async def test_an_answer_is_sent_as_one_start_and_one_body() -> None:
    """ASGI: two messages, which the server joins into one write."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    answer = json_answer(201, {"a": 1})
    await answer.send(send)
    await answer({}, None, send)
    assert 2 * [
        {"type": "http.response.start", "status": 201, "headers": answer.headers},
        {"type": "http.response.body", "body": b'{"a":1}'},
    ] == [*sent]


def test_a_json_answer_is_not_stored_and_knows_its_length() -> None:
    """TE-10: both headers on everything; the media type without a charset (RFC 8259 11)."""
    answer = json_answer(200, {"name": "Zoë"}, headers=[(b"ledger-position", b"7")])
    expected = {b"content-type": b"application/json", b"content-length": b"15", b"ledger-position": b"7"}
    assert expected | NOT_STORED == headers(answer)
    assert '{"name":"Zoë"}' == answer.body.decode()


def test_an_empty_answer_has_no_body_and_no_media_type() -> None:
    """RFC 7009 2.2: a revocation is acknowledged with nothing."""
    answer = empty_answer()
    assert (200, b"") == (answer.status, answer.body)
    assert {b"content-length": b"0"} | NOT_STORED == headers(answer)


def test_an_error_has_the_shape_of_rfc_6749_and_no_null() -> None:
    """RFC 6749 5.2 and TE-11: what is not there is left out."""
    answer = oauth_error(400, "invalid_grant", "the token is not current", reason="rotated", event_id=None)
    assert {"error": "invalid_grant", "error_description": "the token is not current", "reason": "rotated"} == (
        json.loads(answer.body)
    )
    assert {"error": "invalid_grant"} == json.loads(oauth_error(400, "invalid_grant").body)


def test_a_refusal_for_now_says_how_long() -> None:
    """RFC 9110 10.2.3: whole seconds."""
    assert b"17" == headers(oauth_error(503, "temporarily_unavailable", retry_after_seconds=17))[b"retry-after"]


@given(st.text())
def test_a_description_keeps_to_the_characters_of_the_specification(text: str) -> None:
    """TE-12: error_description holds 0x20-21, 0x23-5B and 0x5D-7E only, whatever it is made of."""
    assert {*describable(text)} <= {*map(chr, [0x20, 0x21, *range(0x23, 0x5C), *range(0x5D, 0x7F)])}


def test_a_description_stays_readable() -> None:
    """Quotes become apostrophes; the rest that may not stand there becomes a question mark."""
    assert "send 'x' ?? ok?" == describable('send "x" \\é ok\n')


def test_a_client_is_challenged_only_where_it_used_the_header() -> None:
    """D11: with a challenge many clients hide the error from their user, so 400 where none is due."""
    challenged, plain = invalid_client(True), invalid_client(False)
    assert (401, b'Basic realm="token-ledger"') == (challenged.status, headers(challenged)[b"www-authenticate"])
    assert 400 == plain.status
    assert b"www-authenticate" not in headers(plain)
    assert "invalid_client" == json.loads(plain.body)["error"]


def test_an_operator_is_challenged_with_bearer() -> None:
    """RFC 6750 3.1."""
    answer = invalid_token()
    assert (401, b"Bearer", "invalid_token") == (
        answer.status,
        headers(answer)[b"www-authenticate"],
        json.loads(answer.body)["error"],
    )


def test_a_wrong_method_is_told_the_right_one() -> None:
    """TE-1: 405 with Allow."""
    answer = method_not_allowed("POST")
    assert (405, b"POST") == (answer.status, headers(answer)[b"allow"])


def test_a_malformed_request_answers_for_itself() -> None:
    """One `except BadRequest` serves every endpoint; the one for a body too large ends the connection as well."""
    assert (400, "invalid_request", "no") == _refusal(BadRequest("no"))
    assert (400, "invalid_target", "no") == _refusal(BadRequest("no", error="invalid_target"))
    assert (413, "invalid_request", "the body is longer than 8192 bytes") == _refusal(TooLarge(8192))
    assert CLOSE in TooLarge(8192).answer().headers
    assert CLOSE not in BadRequest("no").answer().headers


def _refusal(error: BadRequest) -> tuple[int, str, str]:
    body = json.loads(error.answer().body)
    return error.answer().status, body["error"], body["error_description"]


def token_found(
    access: str, refresh: str | None, scope: tuple[str, ...], expires: int, timeout: int | None
) -> TokenAnswer:
    """What the ledger gives, of a grant without an end."""
    return TokenAnswer(
        access_token=access,
        refresh_token=refresh,
        scope=scope,
        token_type="bearer",
        expires_in=expires,
        refresh_token_timeout=timeout,
        authorization_expires_in=None,
        position=1,
        grant_id="0" * 32,
    )


def test_a_token_answer_has_the_members_of_the_specification() -> None:
    """RFC 6749 5.1 and RF-14: all five always, the finite lifetimes, the position as a header."""
    found = TokenAnswer(
        access_token="at1_x",
        refresh_token=TOKEN,
        scope=("read", "openid"),
        token_type="bearer",
        expires_in=300,
        refresh_token_timeout=2_592_000,
        authorization_expires_in=31_536_000,
        position=4711,
        grant_id="0" * 32,
    )
    answer = token_answer(found, found.position)
    expected = (
        f'{{"access_token":"at1_x","refresh_token":"{TOKEN}","scope":"read openid","token_type":"bearer",'
        '"expires_in":300,"refresh_token_timeout":2592000,"authorization_expires_in":31536000}'
    )
    assert expected == answer.body.decode()
    assert {
        b"content-type": b"application/json",
        b"content-length": str(len(expected)).encode(),
        b"ledger-position": b"4711",
    } | NOT_STORED == headers(answer)


def test_a_withheld_refresh_token_and_an_unlimited_lifetime_are_left_out() -> None:
    """D10: never null."""
    answer = token_answer(token_found("a", None, (), 1, None), None)
    assert {"access_token": "a", "scope": "", "token_type": "bearer", "expires_in": 1} == json.loads(answer.body)
    assert b"ledger-position" not in headers(answer)


LETTERS = st.text("ABCXYZabcxyz0189_-")  # what tokens and ids are made of


@given(
    LETTERS,
    st.none() | LETTERS,
    st.lists(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)).map(tuple),
    st.integers(),
    st.none() | st.integers(0),
    st.none() | LETTERS,
)
def test_the_template_says_what_the_encoder_would(
    access: str, refresh: str | None, scope: tuple[str, ...], expires: int, timeout: int | None, grant: str | None
) -> None:
    """A template that lets one quote through would let a scope write members; quotes and backslashes are tried too."""
    answer = token_answer(token_found(access, refresh, scope, expires, timeout), None, grant_id=grant)
    expected = {
        "access_token": access,
        "refresh_token": refresh,
        "scope": " ".join(scope),
        "token_type": "bearer",
        "expires_in": expires,
        "refresh_token_timeout": timeout,
        "grant_id": grant,
    }
    assert {name: value for name, value in expected.items() if value is not None} == json.loads(answer.body)
    assert len(answer.body) == int(headers(answer)[b"content-length"])


@pytest.mark.parametrize("text", ['", "admin": "1', "a\\"])
def test_a_template_without_the_guard_is_caught(text: str) -> None:
    """The broken twin: what a template alone would have sent is another object, or none."""
    assert {"scope": text} != _read(f'{{"scope":"{text}"}}')


def _read(body: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def test_an_answer_shows_no_body() -> None:
    """I-20: an answer in a traceback shows no token."""
    assert "<Answer 200, 7 bytes>" == repr(json_answer(200, {"a": 1}))
