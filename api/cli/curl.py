"""One HTTPS request, sent for real and shown as the cURL line that sends the same."""

import json
import os
import shlex
import ssl
import textwrap
from collections.abc import Iterator, Mapping
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

Json = Any

ANSWER_SECONDS_MAX = 20.0
LINE_CHARACTERS_MAX = 100


class Answer(NamedTuple):
    """What came back."""

    status: int
    reason: str
    body: Json


class Request(NamedTuple):
    """What to send: a form, or JSON, or neither. `agent` is the User-Agent where it matters."""

    path: str
    form: Mapping[str, str] = {}
    json: Json = None
    bearer: str | None = None
    agent: str | None = None

    @property
    def method(self) -> str:
        return "POST" if self.form or self.json is not None else "GET"

    def headers(self) -> dict[str, str]:
        found = {"User-Agent": self.agent or "token-ledger-demo"}
        if self.bearer is not None:
            found["Authorization"] = f"Bearer {self.bearer}"
        if self.form:
            found["Content-Type"] = "application/x-www-form-urlencoded"
        elif self.json is not None:
            found["Content-Type"] = "application/json"
        return found

    def content(self) -> bytes | None:
        if self.form:
            return urlencode(self.form).encode("ascii")
        return None if self.json is None else json.dumps(self.json).encode("ascii")


class Https:
    """The server to ask, and the certificate to believe. One connection a request, as cURL does it."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        self.certificate = certificate
        self.url = f"https://localhost:{port}"
        self._tls = ssl.create_default_context(cafile=certificate)

    def send(self, request: Request) -> Answer:
        """Send a request and read its answer."""
        connection = self._sent(request)
        try:
            response = connection.getresponse()
            text = response.read()
            return Answer(response.status, response.reason, json.loads(text) if text else None)
        finally:
            connection.close()

    def send_and_lose_the_answer(self, request: Request) -> None:
        """Send a request, wait for the first byte of its answer, and hang up without reading the rest."""
        connection = self._sent(request)
        assert connection.sock is not None
        connection.sock.recv(1)
        connection.close()

    def _sent(self, request: Request) -> HTTPSConnection:
        connection = HTTPSConnection("localhost", self.port, timeout=ANSWER_SECONDS_MAX, context=self._tls)
        connection.request(request.method, request.path, request.content(), request.headers())
        return connection

    def typed(self, request: Request) -> Iterator[str]:
        """The cURL line that sends this request, on as many lines as it needs to stay readable."""
        words = [f"curl -w '\\n' --cacert {shlex.quote(os.fspath(self.certificate))}", self.url + request.path]
        if request.agent is not None:
            words.append(f"-A {shlex.quote(request.agent)}")
        if request.bearer is not None:
            words.append(f"-H {shlex.quote(f'Authorization: Bearer {request.bearer}')}")
        if request.json is not None:
            words.append("-H 'Content-Type: application/json'")
            words.append(f"-d {shlex.quote(json.dumps(request.json))}")
        words += [f"-d {shlex.quote(urlencode({name: value}, safe='!'))}" for name, value in request.form.items()]
        return _broken(words)


def _broken(words: list[str]) -> Iterator[str]:
    """Break a command between its words, so that no line but that of one long word passes the width."""
    line = words[0]
    for word in words[1:]:
        if len(line) + len(word) + 3 > LINE_CHARACTERS_MAX - 3 or line.startswith("curl"):
            yield line + " \\"
            line = "  " + word
        else:
            line += " " + word
    yield line


def paragraph(text: str) -> str:
    """A text for people, wrapped."""
    return textwrap.fill(" ".join(text.split()), LINE_CHARACTERS_MAX - 2)
