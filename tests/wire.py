"""HTTP on plain sockets, so that a test decides every byte, and what every answer of the ledger must keep."""

import contextlib
import email.utils
import http.client
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import urlencode, urlsplit

Json = Any  # what json.loads gives: the shapes are checked by the tests, not by types

TOKEN_PATH = "/oauth/v2/oauth-token"
REVOKE_PATH = "/oauth/v2/oauth-revoke"
INTROSPECT_PATH = "/oauth/v2/oauth-introspect"
TOKEN_BEARING_PATHS = frozenset(
    {TOKEN_PATH, "/token", REVOKE_PATH, "/revoke", INTROSPECT_PATH, "/introspect", "/explain"}
)
FORM = "application/x-www-form-urlencoded"

_ERROR_TEXT = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]*")  # RFC 6749 5.2
_SCOPE = re.compile(r"([\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*)?")  # RFC 6749 3.3, or empty
_OPAQUE_TOKEN = re.compile(r"(rt1|at1)_[A-Za-z0-9_-]{72}")
_TOKEN_IN_TEXT = re.compile(rb"(?:rt1|at1|ac1)_[A-Za-z0-9_-]{24,}")
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86,}")
_JWT_IN_TEXT = re.compile(rb"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{24,}")
_LONG_RUN = re.compile(rb"[A-Za-z0-9_-]{24,}")
_TOKEN_MEMBERS = {"access_token", "refresh_token", "scope", "token_type", "expires_in"}


@dataclass(frozen=True)
class Answer:
    """One HTTP answer as it came: header names as sent, the body decoded from its transfer coding only."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """Return the value of a header that may stand once at most."""
        values = self.all(name)
        assert len(values) <= 1, f"header {name} stands {len(values)} times"
        return values[0] if values else None

    def json(self) -> Json:
        """Return the body as JSON; a body that is none fails the test with its first bytes."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise AssertionError(f"{self.status}: the body is not JSON: {self.body[:200]!r}") from None


class Connection:
    """One connection to a server, from a source address of the loopback network (Linux binds any of 127.0.0.0/8)."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        source: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        self.address = address
        plain = socket.create_connection(address, timeout=timeout_seconds, source_address=(source, 0))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls.wrap_socket(plain, server_hostname=address[0], session=session) if tls else plain
        self._stream: BinaryIO = cast(BinaryIO, self.socket.makefile("rb"))

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, raw: bytes) -> None:
        """Send bytes; a peer that has closed already may still have an answer waiting, so that is no error here."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(raw)

    def answer(self, method: str = "POST") -> Answer:
        """Read one final answer; interim ones (RFC 9110 15.2) are passed over."""
        while True:
            line = self._stream.readline(65536)
            if not line:
                raise ConnectionResetError("the server closed the connection without an answer")
            version, status_text, *_ = line.decode("latin-1").split(" ", 2)
            assert version in ("HTTP/1.1", "HTTP/1.0"), line
            headers = tuple(http.client.parse_headers(self._stream).items())
            status = int(status_text)
            if status >= 200:
                return Answer(status, headers, self._body(method, status, headers))

    def _body(self, method: str, status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
        if method == "HEAD" or status in (204, 304):
            return b""
        found = {name.lower(): value for name, value in headers}
        if "chunked" in found.get("transfer-encoding", "").lower():
            return b"".join(iter(self._chunk, b""))
        if "content-length" in found:
            length = int(found["content-length"])
            body = self._stream.read(length)
            assert len(body) == length, f"{len(body)} bytes of {length}, then the connection ended"
            return body
        return self._stream.read()

    def _chunk(self) -> bytes:
        size = int(self._stream.readline(1024).split(b";")[0], 16)
        chunk = self._stream.read(size)
        self._stream.readline(2)
        return chunk

    def exchange(self, raw: bytes) -> Answer:
        """Send one request and read its answer."""
        self.send(raw)
        return self.answer(raw[: raw.find(b" ")].decode("latin-1"))

    def closed_by_peer(self, within_seconds: float) -> bool:
        """Tell whether the server ends the connection within that time; whatever it still sends is dropped."""
        deadline = time.monotonic() + within_seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(65536):
                    return True
            except TimeoutError:
                return False
            except ConnectionResetError:
                return True
        return False

    def cut(self) -> None:
        """End the connection at once (RST), as a network that breaks does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._stream.close()
        self.socket.close()


def request_bytes(
    method: str,
    path: str,
    *,
    host: str = "localhost",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes = b"",
) -> bytes:
    """Build one HTTP/1.1 request; Host and, where a body can be, Content-Length are added."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in pairs)]
    if body or method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def form_bytes(fields: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    """Encode a form as RFC 6749 appendix B says."""
    return urlencode(list(fields.items()) if isinstance(fields, Mapping) else list(fields)).encode("ascii")


def target_of(raw: bytes) -> tuple[str, str]:
    """Return method and path of a request's first line; an absolute-form target gives its path."""
    method, target, *_ = raw.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    return method, target.split("?")[0] if target.startswith("/") else urlsplit(target).path


def check_answer(answer: Answer, method: str, path: str, secrets: Iterable[str] = ()) -> None:
    """Assert what every answer keeps: Date, H where a token is judged, JSON without null, TE-12, no secret (V96)."""
    assert answer.status != 500, f"500 to {method} {path}: {answer.body[:300]!r}"
    assert not 300 <= answer.status < 400, f"no path redirects, yet {method} {path} answered {answer.status}"
    _check_date(answer)
    if path in TOKEN_BEARING_PATHS:
        assert "no-store" == answer.header("Cache-Control"), f"{method} {path}: Cache-Control (TE-10)"
        assert "no-cache" == answer.header("Pragma"), f"{method} {path}: Pragma (TE-10)"
    kind = answer.header("Content-Type") or ""
    if method == "HEAD" or not answer.body:
        return
    if answer.status >= 400:
        assert "application/json" == kind, f"errors are JSON, not {kind!r}: {answer.body[:200]!r}"
    if kind == "application/json" and path != "/openapi.json":
        _check_json(answer, secrets)
    if path in (TOKEN_PATH, "/token") and answer.status == 200:
        check_token_response(answer)


def _check_date(answer: Answer) -> None:
    stamp = answer.header("Date")
    assert stamp, "no Date"
    age_seconds = time.time() - email.utils.parsedate_to_datetime(stamp).timestamp()
    assert -2 <= age_seconds <= 3, f"Date is {age_seconds:.1f} s off"


def _check_json(answer: Answer, secrets: Iterable[str]) -> None:
    body = answer.json()
    assert not _has_null(body), f"null in {body}"
    if answer.status < 400 or not isinstance(body, dict) or "status" in body:
        return
    assert isinstance(body.get("error"), str), f"an error without its code: {body}"
    for member in ("error", "error_description", "error_uri"):
        text = body.get(member, "")
        assert _ERROR_TEXT.fullmatch(text), f"{member} leaves the charset of RFC 6749 5.2: {text!r}"
    told = json.dumps(body) + "".join(value for _, value in answer.headers)
    for pattern in (_TOKEN_IN_TEXT, _JWT_IN_TEXT):
        assert not pattern.search(told.encode()), "an error repeats a token"
    for secret in secrets:
        assert secret not in told, "an error repeats a secret"


def _has_null(value: Json) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def check_token_response(answer: Answer) -> None:
    """Assert the shape of a token response (RFC 6749 5.1, TE-9, TE-11, TE-12, RF-14)."""
    body = answer.json()
    assert "application/json" == answer.header("Content-Type")
    assert _TOKEN_MEMBERS - set(body) <= {"refresh_token"}, f"members missing: {_TOKEN_MEMBERS - set(body)}"
    for member in ("access_token", "refresh_token"):
        if member in body:
            assert _OPAQUE_TOKEN.fullmatch(body[member]) or (
                member == "access_token" and _JWT.fullmatch(body[member]) and len(body[member]) <= 2048
            ), f"{member} is no token"
    assert _SCOPE.fullmatch(body["scope"]), f"scope {body['scope']!r}"
    assert body["token_type"] in ("bearer", "DPoP")
    assert type(body["expires_in"]) is int
    assert 1 <= body["expires_in"] <= 31_536_000
    for member in ("refresh_token_timeout", "authorization_expires_in"):
        assert type(body.get(member, 1)) is int, member
        assert body.get(member, 1) > 0, member
    if "refresh_token_timeout" in body and "authorization_expires_in" in body:
        assert body["refresh_token_timeout"] <= body["authorization_expires_in"]
    assert body["expires_in"] <= body.get("authorization_expires_in", 31_536_000)


def secrets_in(text: bytes, tokens: Iterable[str], secrets: Iterable[str]) -> list[str]:
    """Name what must not stand in a log (V96, I-20): token spellings, the tails of known tokens, known secrets."""
    found = [
        f"a token at byte {match.start()}"
        for pattern in (_TOKEN_IN_TEXT, _JWT_IN_TEXT)
        for match in pattern.finditer(text)
    ]
    tails = {token[-24:].encode() for token in tokens}
    found += [
        f"the tail of a token at byte {match.start()}"
        for match in _LONG_RUN.finditer(text)
        if match.group()[-24:] in tails
    ]
    return found + [f"secret number {number}" for number, secret in enumerate(secrets) if secret.encode() in text]
