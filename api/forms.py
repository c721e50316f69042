"""Request bodies: read with a cap, then parsed strictly, as forms (RFC 6749 appendix B) or as JSON.

Strict means: what could be read in two ways is refused, because somewhere else it is read the other way. A parameter
given twice, bytes that are no UTF-8, a broken percent escape, a control character in the raw body: all invalid_request,
and nothing has happened.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from hmac import compare_digest
from itertools import repeat
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from api.answers import BadRequest, Header
from api.heads import Headers, Repeating
from api.logs import without_secrets

Receive = Callable[[], Awaitable[Any]]
T = TypeVar("T")

FORM: Final = b"application/x-www-form-urlencoded"
JSON: Final = b"application/json"
FIELDS_MAX: Final = 64
"""More than any grant type of any specification has, and few enough to cost nothing."""

_REPEATING: Final = "refresh_token"  # the one parameter that is another each time
_REPEATING_BYTES_MAX: Final = 8_192  # of a form that an idle connection keeps
_UNRESERVED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"  # RFC 3986 2.3
_REPEATABLE: Final = "resource"  # RFC 8707 2
_BROKEN_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_RAW_CONTROL: Final = re.compile("[\x00-\x1f]")
_PARAMETER_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,40}")
_CHARSET: Final = re.compile(rb"""\s*charset\s*=\s*"?'?([^"'\s]*)"?'?\s*""", re.IGNORECASE)
_BOM: Final = "\ufeff"
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
_ASCII_ESCAPES: Final = {
    form.format(code): chr(code) for code in range(128) for form in ("{:02x}", "{:02X}")
}  # fmt: skip


class TooLarge(BadRequest):
    """The body is longer than this server reads: 413, and the connection ends, for the rest is not read."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is longer than {limit} bytes", status=413, close=True)


class ClientGone(Exception):
    """The client has left before its request was whole, and nothing has happened; or before the end of an answer in
    parts. There is nobody to answer."""


class Form:
    """The parameters of one request: those with a value, one value each, but for `resource`.

    A parameter without a value counts as absent (RFC 6749 3.1). Unknown ones stand here too and are for nobody. The
    repr shows names only: values hold secrets.
    """

    __slots__ = ("fields", "resource")

    def __init__(self, fields: dict[str, str], resource: tuple[str, ...] = ()) -> None:
        self.fields = fields
        self.resource = resource

    def __repr__(self) -> str:
        return f"<Form {sorted(self.fields)}, {len(self.resource)} resources>"


async def read_body(receive: Receive, limit: int) -> bytes:
    """Read a whole body of at most `limit` bytes. Raises TooLarge, or ClientGone where the client left before."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):  # one message nearly always
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(limit)
        return body
    chunks, length = [], 0
    while True:
        if message["type"] != "http.request":
            raise ClientGone
        chunks.append(message.get("body", b""))
        length += len(chunks[-1])
        if length > limit:
            raise TooLarge(limit)
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await receive()


def parse(headers: Sequence[Header], body: bytes) -> Form:
    """Parse a form by the headers it came with. Raises BadRequest; the description says what would be right."""
    seen = Headers.of(headers)
    repeating = seen.repeating
    if repeating is not None:
        token = repeated_token(repeating, body)
        if token is not None:
            return Form({**repeating.fields, _REPEATING: token})
    foreign_charset = seen.foreign_charset
    if foreign_charset is not None:
        form = _parsed(body, foreign_charset)
        seen.repeating = None if foreign_charset else _repeating(body, form)
        return form
    seen.foreign_charset = foreign_charset = _check_media_type(seen, FORM)
    return _parsed(body, foreign_charset)


def repeated_token(repeating: Repeating, body: bytes) -> str | None:
    """The refresh token of a form that differs from another in it alone; None where it differs in more, or has one that
    must be unescaped first."""
    length, begins, ends, around, _ = repeating
    if len(body) != length or not compare_digest(body[:begins] + body[ends:], around):
        return None  # compared like that because there may be a secret, and a guess from someone else
    token = body[begins:ends]
    return None if token.translate(None, _UNRESERVED) else token.decode("ascii")


def _repeating(body: bytes, form: Form) -> Repeating | None:
    """What to know such a form by, of a connection whose headers repeat."""
    token = form.fields.get(_REPEATING)
    if token is None or form.resource or not token.isascii() or len(body) > _REPEATING_BYTES_MAX:
        return None
    before, name, rest = body.partition(b"refresh_token=")
    value, ampersand, after = rest.partition(b"&")
    if (
        value != token.encode("ascii")
        or value.translate(None, _UNRESERVED)
        or not (before == b"" or before[-1:] == b"&")
    ):
        return None
    fields = {name: value for name, value in form.fields.items() if name != _REPEATING}
    before, after = before + name, ampersand + after
    return Repeating(len(body), len(before), len(body) - len(after), before + after, fields)


def _parsed(body: bytes, foreign_charset: bool) -> Form:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None
    if body.translate(None, _PRINTABLE):  # nothing is left of printable ASCII, the usual case
        if _RAW_CONTROL.search(text):
            raise BadRequest("the body holds a control character; form encoding would escape it")
        if _BOM in text:
            raise BadRequest("the body holds a byte order mark")
    if text.count("&") >= FIELDS_MAX:
        raise BadRequest(f"the body has more than {FIELDS_MAX} parameters")
    if "%" in text:
        decode = _unescaped
    elif "+" in text:
        decode = _unspaced
    else:
        decode = None
    if foreign_charset and not unquote_to_bytes(text).isascii():
        raise BadRequest("a form is UTF-8 (RFC 6749 appendix B); this charset is not supported beyond ASCII")
    return _collect(text, decode)


def _collect(text: str, decode: Callable[[str], str] | None) -> Form:
    """The usual form, in few steps: plain names, each given once with a value, no `resource`."""
    pairs = text.split("&")
    fields = {name: value for name, _, value in map(str.partition, pairs, repeat("="))}
    if len(fields) != len(pairs) or _REPEATABLE in fields or "" in fields or "" in fields.values():
        return _collect_any(pairs, decode)
    if decode is not None:
        names = "".join(fields)
        if "%" in names or "+" in names:
            return _collect_any(pairs, decode)
        for name, value in fields.items():
            if "%" in value or "+" in value:
                fields[name] = decode(value)
    return Form(fields)


def _collect_any(pairs: list[str], decode: Callable[[str], str] | None) -> Form:
    """Every form; of the usual one it says the same."""
    fields: dict[str, str] = {}
    resource: tuple[str, ...] = ()
    for pair in pairs:
        name, _, value = pair.partition("=")
        if decode is not None and ("%" in pair or "+" in pair):
            name, value = decode(name), decode(value)
        if name in fields:
            raise BadRequest(f"a parameter is given twice: {name if _PARAMETER_NAME.fullmatch(name) else 'one'}")
        if name == _REPEATABLE:
            resource = (*resource, value) if value else resource
        elif pair:
            fields[name] = value
    if "" in fields.values():  # counted as given until here, for a repeat is a repeat; absent from here on
        fields = {name: value for name, value in fields.items() if value}
    return Form(fields, resource)


def _unspaced(part: str) -> str:
    return part.replace("+", " ")


def _unescaped(part: str) -> str:
    if "+" in part:
        part = part.replace("+", " ")
    if "%" not in part:
        return part
    first, *rest = part.split("%")
    try:  # escapes of ASCII, the usual case, need no bytes in between
        return first + "".join([_ASCII_ESCAPES[piece[:2]] + piece[2:] for piece in rest])
    except KeyError:
        if _BROKEN_ESCAPE.search(part):
            raise BadRequest(
                "the body holds a percent sign that escapes nothing; form encoding writes it as %25"
            ) from None
    try:
        text = unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("a parameter is not UTF-8 once its percent escapes are read") from None
    if _BOM in text:
        raise BadRequest("a parameter holds a byte order mark")
    return text


def parse_json(headers: Sequence[Header], body: bytes, kind: type[T]) -> T:
    """Parse a JSON body into `kind`, a msgspec struct that forbids unknown fields. Raises BadRequest.

    Of a member that is given twice the last counts, as in most parsers. A byte order mark is refused (RFC 8259 8.1).
    """
    _check_media_type(headers, JSON)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        # The library names the place and the types, and an unknown member by its name.
        raise BadRequest(f"the body does not fit: {without_secrets(str(error))[:200]}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("the body is not JSON (RFC 8259) in UTF-8") from None


def _check_media_type(headers: Sequence[Header], wanted: bytes) -> bool:
    """Refuse a body of another media type; tell whether a charset other than UTF-8 is named."""
    found: list[bytes] = []
    for name, value in headers:
        if name == b"content-type":
            found.append(value)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise BadRequest("a body must not be compressed: send it without Content-Encoding")
    if len(found) == 1:
        if found[0] == wanted:
            return False
        media_type, _, parameters = found[0].partition(b";")
        if media_type.strip().lower() == wanted:
            return _names_another_charset(parameters)
    told = "missing" if not found else "given twice" if len(found) > 1 else "another"
    raise BadRequest(f"the Content-Type is {told}: send {wanted.decode()}")


def _names_another_charset(parameters: bytes) -> bool:
    charsets = [found[1].lower() for part in parameters.split(b";") if (found := _CHARSET.fullmatch(part))]
    return any(charset not in (b"utf-8", b"utf8", b"") for charset in charsets)
