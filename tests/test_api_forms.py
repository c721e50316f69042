"""Bodies: capped, strict, and never read in two ways (RFC 6749 appendix B, TE-2 to TE-5, TE-14, V5-V10, V25-V34)."""

import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import forms
from api.answers import BadRequest
from api.forms import ClientGone, Form, TooLarge, parse, parse_json, read_body
from api.heads import Headers

FORM = [(b"host", b"x"), (b"content-type", b"application/x-www-form-urlencoded")]
JSON = [(b"content-type", b"application/json")]


def refused(headers: list[tuple[bytes, bytes]], body: bytes) -> str:
    with pytest.raises(BadRequest) as caught:
        parse(headers, body)
    assert (400, "invalid_request") == (caught.value.status, caught.value.error)
    return caught.value.description


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"grant_type=refresh_token&client_id=www", {"grant_type": "refresh_token", "client_id": "www"}),
        (b"client_secret=Secr3t!", {"client_secret": "Secr3t!"}),  # D4: raw
        (b"client_secret=Secr3t%21", {"client_secret": "Secr3t!"}),  # V5
        (b"scope=read+openid", {"scope": "read openid"}),
        (b"scope=read%20openid", {"scope": "read openid"}),
        (b"scope=read openid", {"scope": "read openid"}),  # cURL's -d sends it so
        (b"scope=a%2Bb", {"scope": "a+b"}),
        (b"a=b%26c%3Dd", {"a": "b&c=d"}),
        (b"a=b=c", {"a": "b=c"}),
        (b"a=%C3%BC&b=" + "ü".encode(), {"a": "ü", "b": "ü"}),
        (b"hello=world&audience=x", {"hello": "world", "audience": "x"}),  # V9: kept, for nobody
        (b"scope=&client_secret=&a", {}),  # TE-4: empty is absent
        (b"&a=1&&b=2&", {"a": "1", "b": "2"}),
        (b"a;b=1", {"a;b": "1"}),  # a semicolon separates nothing
        (b"scope[]=a", {"scope[]": "a"}),  # an unknown name like any other
        (b"%73cope=a", {"scope": "a"}),
        (b"=x", {"": "x"}),
        (b"token=%7F", {"token": "\x7f"}),  # for the token's own grammar to refuse
        (b"", {}),
    ],
)
def test_a_form_is_read_as_the_appendix_says(body: bytes, expected: dict[str, str]) -> None:
    """TE-14: plus is a space, percent escapes are UTF-8, nothing else means anything."""
    assert expected == parse(FORM, body).fields


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=20))
def test_what_any_client_encodes_is_read_back(fields: dict[str, str]) -> None:
    """The reading is the inverse of the standard library's writing, for every text but the byte order mark."""
    fields = {_fit(name): _fit(value) for name, value in fields.items()}
    fields.pop("resource", None)
    assert fields == parse(FORM, urlencode(fields).encode()).fields


def _fit(text: str) -> str:
    return text.replace("\ufeff", "f")


@given(st.lists(st.sampled_from(["a", "b", "=", "&", "%41", "%3D", "%", "+", "resource", "c=1", "&d="]), max_size=12))
def test_the_short_way_says_what_the_long_way_says(pieces: list[str]) -> None:
    """A usual form is collected in few steps; whatever is not one goes the long way (TE-4, TE-5)."""
    text = "".join(pieces)
    decode = forms._unescaped if "%" in text else forms._unspaced if "+" in text else None

    def outcome(collect: Callable[[], Form]) -> object:
        try:
            form = collect()
        except BadRequest as error:
            return error.description
        return form.fields, form.resource

    assert outcome(lambda: forms._collect_any(text.split("&"), decode)) == outcome(lambda: forms._collect(text, decode))


TOKENS = ("x", "xyz", "rt1_abc-_", "", "a&b=c", "%41", "a+b", "a=b", "a&b", "&x=", "ü", "üx", "x&refresh_token=y")


@given(
    st.lists(st.sampled_from(["a=1", "b=%41", "refresh_token=T", "c", "resource=r", "scope=x+y", "&", ""]), max_size=6),
    st.sampled_from(TOKENS),
    st.sampled_from(TOKENS),
)
def test_a_form_that_repeats_says_what_it_would_say_alone(parts: list[str], first: str, then: str) -> None:
    """What is remembered of a form is never the answer for another: refused alike, read alike (TE-5, TE-14)."""

    def outcome(headers: list[tuple[bytes, bytes]], body: bytes) -> object:
        try:
            form = parse(headers, body)
        except BadRequest as error:
            return error.description
        return form.fields, form.resource

    kept = Headers(FORM)
    bodies = ["&".join(parts).replace("T", token).encode() for token in (first, first, then, first, then, then)]
    assert [outcome(FORM, body) for body in bodies] == [outcome(kept, body) for body in bodies]


def test_a_form_that_repeats_is_known_again() -> None:
    """The usual refresh: the third of a connection is not taken apart any more, and the twin below would be caught."""
    kept = Headers(FORM)
    for token in ("one", "two", "six"):
        body = f"grant_type=refresh_token&refresh_token={token}&client_id=www".encode()
        said = parse(kept, body).fields
        assert {"grant_type": "refresh_token", "refresh_token": token, "client_id": "www"} == said
    assert kept.repeating is not None
    assert (39, 42, b"grant_type=refresh_token&refresh_token=&client_id=www") == kept.repeating[1:4]


@given(st.data())
def test_no_byte_of_a_form_that_repeats_may_be_another_unseen(data: st.DataObject) -> None:
    """Whatever of a usual form is overwritten, it is read as if it came first."""
    body = b"grant_type=refresh_token&refresh_token=rt1_abcdef&client_id=www&client_secret=a%2Bb+c"
    kept = Headers(FORM)
    parse(kept, body)
    parse(kept, body)
    assert kept.repeating is not None
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from(b"&=%+a1_.~\x00\xc3\xbcZ"))

    def outcome(headers: list[tuple[bytes, bytes]]) -> object:
        try:
            return parse(headers, bytes(changed)).fields
        except BadRequest as error:
            return error.description

    assert outcome(FORM) == outcome(kept)


def test_a_long_form_is_not_kept() -> None:
    """An idle connection keeps no more of its last form than a usual one has."""
    kept = Headers(FORM)
    body = b"refresh_token=x&more=" + b"x" * 8_192
    assert [parse(FORM, body).fields] * 3 == [parse(kept, body).fields for _ in range(3)]
    assert None is kept.repeating


@given(st.binary(max_size=200))
def test_any_bytes_are_a_form_or_a_clear_refusal(body: bytes) -> None:
    """H18: nothing but BadRequest ever leaves the parser."""
    with contextlib.suppress(BadRequest):
        assert isinstance(parse(FORM, body), Form)


@pytest.mark.parametrize(
    "body",
    [
        b"grant_type=refresh_token&grant_type=refresh_token",
        b"scope=a&scope=b",
        b"scope=&scope=b",
        b"scope&scope",
        b"hello=1&hello=1",
        b"scope[]=a&scope[]=b",
        b"scope=a&%73cope=b",
        b"client_id=a&b=c&client_id=a",
    ],
)
def test_a_repeated_parameter_is_refused_even_if_equal_unknown_or_empty(body: bytes) -> None:
    """TE-5, V26: two readers would choose differently."""
    assert refused(FORM, body).startswith("a parameter is given twice: ")


def test_the_refusal_names_a_parameter_but_repeats_no_secret() -> None:
    """V96: a body that starts with a secret where a name belongs is not echoed."""
    assert "a parameter is given twice: scope" == refused(FORM, b"scope=a&scope=b")
    secret = b"rt1_" + b"A" * 72
    assert "a parameter is given twice: one" == refused(FORM, secret + b"&" + secret)
    assert "a parameter is given twice: one" == refused(FORM, b"Secr3t!&Secr3t!")


def test_a_resource_may_be_given_more_than_once() -> None:
    """RFC 8707 2: each value counts, in order; an empty one is absent."""
    form = parse(FORM, b"resource=https://a&x=1&resource=&resource=https%3A%2F%2Fb")
    assert (("https://a", "https://b"), {"x": "1"}) == (form.resource, form.fields)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"token=%E2%82", "UTF-8"),
        (b"token=\xff", "UTF-8"),
        (b"token=%FF", "UTF-8"),
        (b"token=%C0%AF", "UTF-8"),  # overlong
        (b"token=%ED%A0%80", "UTF-8"),  # a surrogate
        (b"\xef\xbb\xbfgrant_type=refresh_token", "byte order mark"),
        (b"%EF%BB%BFgrant_type=refresh_token", "byte order mark"),
        (b"a=1&scope=%EF%BB%BFread", "byte order mark"),
        (b"token=a\0b", "control character"),
        (b"scope=read\r\n", "control character"),
        (b"scope=read\n", "control character"),
        (b"a=\tb", "control character"),
        (b"secret=100%", "percent sign"),
        (b"secret=%zz", "percent sign"),
        (b"secret=%2", "percent sign"),
        (b"&".join(b"f%d=1" % number for number in range(65)), "more than 64 parameters"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes, said: str) -> None:
    """V33, V34 and the list spellings, marks and line ends that real clients have sent: never a silent guess."""
    assert said in refused(FORM, body)


def test_sixty_four_parameters_are_read() -> None:
    """The cap refuses the sixty-fifth, not the sixty-fourth."""
    assert 64 == len(parse(FORM, b"&".join(b"f%d=1" % number for number in range(64))).fields)


@pytest.mark.parametrize(
    "media_type",
    [
        b"application/x-www-form-urlencoded",
        b"Application/X-WWW-Form-URLEncoded",
        b"application/x-www-form-urlencoded;charset=UTF-8",
        b"application/x-www-form-urlencoded; charset=utf-8",
        b"application/x-www-form-urlencoded ; Charset = utf8 ;",
        b'application/x-www-form-urlencoded; charset="UTF-8"',
        b"application/x-www-form-urlencoded; charset='utf-8'",
        b"application/x-www-form-urlencoded;charset=ISO-8859-1",
        b"application/x-www-form-urlencoded; charset=windows-1252; boundary=x",
        b"application/x-www-form-urlencoded;",
        b"application/x-www-form-urlencoded; charset=",
        b"application/x-www-form-urlencoded; charset",
        b" application/x-www-form-urlencoded ",
    ],
)
def test_the_media_type_may_be_spelled_as_clients_spell_it(media_type: bytes) -> None:
    """V6 and what browsers, SDKs and proxies send: any case, quotes, spaces, a trailing semicolon, other charsets."""
    assert {"a": "b!"} == parse([(b"content-type", media_type)], b"a=b%21").fields


@pytest.mark.parametrize("body", [b"a=%E9", b"a=%C3%A9", "a=é".encode(), "a=é".encode("latin-1")])
def test_another_charset_is_refused_beyond_ascii(body: bytes) -> None:
    """Appendix B knows UTF-8 only; where the two readings part, none is chosen."""
    assert "UTF-8" in refused([(b"content-type", b"application/x-www-form-urlencoded; charset=latin1")], body)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([], "missing"),
        ([(b"content-type", b"")], "another"),
        ([(b"content-type", b"application/json")], "another"),
        ([(b"content-type", b"multipart/form-data; boundary=x")], "another"),
        ([(b"content-type", b"text/plain; charset=application/x-www-form-urlencoded")], "another"),
        ([(b"content-type", b"application/x-www-form-urlencoded, application/json")], "another"),
        (2 * [(b"content-type", b"application/x-www-form-urlencoded")], "given twice"),
    ],
)
def test_another_media_type_is_told_the_right_one(headers: list[tuple[bytes, bytes]], told: str) -> None:
    """TE-2, V27, V28: JSON, multipart, none at all and two headers, each told what to send."""
    expected = f"the Content-Type is {told}: send application/x-www-form-urlencoded"
    assert expected == refused(headers, b'{"grant_type":"refresh_token"}')


def test_a_compressed_body_is_refused() -> None:
    """Bytes are counted as decoded, and nothing is decoded but the transfer coding."""
    assert "Content-Encoding" in refused([*FORM, (b"content-encoding", b"gzip")], b"\x1f\x8b\x08")
    assert {"a": "1"} == parse([*FORM, (b"content-encoding", b"identity")], b"a=1").fields


def test_a_form_shows_names_and_no_values() -> None:
    """I-20: a form in a traceback shows no secret."""
    assert "<Form ['client_secret', 'scope'], 0 resources>" == repr(Form({"scope": "a", "client_secret": "Secr3t!"}))


# -- JSON ------------------------------------------------------------------------------------------------------------


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    subject: str
    limit: int = 100


def json_refused(body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_json(JSON if headers is None else headers, body, Asked)
    return caught.value.description


def test_a_json_body_fills_a_struct() -> None:
    """Operators' endpoints take JSON; a charset parameter is harmless."""
    assert Asked("p", 3) == parse_json(JSON, b'{"subject": "p", "limit": 3}', Asked)
    assert Asked("p") == parse_json([(b"content-type", b"application/json; charset=utf-8")], b'{"subject":"p"}', Asked)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"subject": 1}', "the body does not fit: Expected `str`, got `int` - at `$.subject`"),
        (b"{}", "the body does not fit: Object missing required field `subject`"),
        (b'{"subject": "p", "x": 1}', "the body does not fit: Object contains unknown field `x`"),
        (b'{"subject": "p", "limit": 1.5}', "the body does not fit: Expected `int`, got `float` - at `$.limit`"),
        (b"[]", "the body does not fit: Expected `object`, got `array`"),
        (b"", "the body is not JSON (RFC 8259) in UTF-8"),
        (b"subject=p", "the body is not JSON (RFC 8259) in UTF-8"),
        (b'{"subject": "p"} x', "the body is not JSON (RFC 8259) in UTF-8"),
        (b'{"subject": "\xff"}', "the body is not JSON (RFC 8259) in UTF-8"),
        (b'{"subject": "\xed\xa0\x80"}', "the body is not JSON (RFC 8259) in UTF-8"),
        (b'{"subject": "\\ud800"}', "the body is not JSON (RFC 8259) in UTF-8"),
        (b'\xef\xbb\xbf{"subject": "p"}', "the body is not JSON (RFC 8259) in UTF-8"),
        (b'{"subject": "p", "limit": NaN}', "the body is not JSON (RFC 8259) in UTF-8"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the body is not JSON (RFC 8259) in UTF-8"),
    ],
)
def test_json_that_does_not_fit_is_told_where(body: bytes, said: str) -> None:
    """The place and the types, never a value."""
    found = json_refused(body)
    assert said == found or (b"[[[" in body and found.startswith("the body"))


def test_an_unknown_member_that_is_a_token_is_not_repeated() -> None:
    """V96: no token in any description."""
    assert "rt1_***" in json_refused(b'{"rt1_' + b"A" * 72 + b'": 1}')


def test_a_body_of_another_type_is_told_json() -> None:
    """A form sent to an operator's endpoint."""
    assert "the Content-Type is another: send application/json" == json_refused(b"{}", FORM)
    assert "the Content-Type is missing: send application/json" == json_refused(b"{}", [])


# -- reading -----------------------------------------------------------------------------------------------------------


def receiving(*messages: dict[str, Any]) -> forms.Receive:
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    return receive


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_read_in_one_piece_or_in_many() -> None:
    """One message nearly always."""
    assert b"abc" == await read_body(receiving(part(b"abc", False)), 3)
    assert b"abc" == await read_body(receiving(part(b"a", True), part(b"", True), part(b"bc", False)), 3)
    assert b"" == await read_body(receiving({"type": "http.request"}), 3)


async def test_a_body_over_the_limit_is_refused_before_it_is_whole() -> None:
    """H18: at the first byte too many, whatever else would come."""
    with pytest.raises(TooLarge) as caught:
        await read_body(receiving(part(b"ab", True), part(b"cd", True)), 3)
    assert (413, True) == (caught.value.status, caught.value.close)
    with pytest.raises(TooLarge):
        await read_body(receiving(part(b"abcd", False)), 3)


async def test_a_client_that_leaves_midway_is_nobody_to_answer() -> None:
    """Nothing has happened and nothing is written about it."""
    with pytest.raises(ClientGone):
        await read_body(receiving(part(b"ab", True), {"type": "http.disconnect"}), 3)
    with pytest.raises(ClientGone):
        await read_body(receiving({"type": "http.disconnect"}), 3)
