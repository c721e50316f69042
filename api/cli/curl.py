"""One HTTPS request, sent for real and shown as the cURL line that sends the same."""

import json
import shlex
import ssl
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


class Https:
    """The server to ask, and the certificate to believe. A connection for each request, as cURL does it."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port = port
        self._tls = ssl.create_default_context(cafile=certificate)

    def send(self, request: Request) -> Answer:
        """Send a request and read its answer. Raises OSError where the server is not there."""
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
        headers = {"User-Agent": request.agent or "token-ledger-demo"}
        content = None
        if request.bearer is not None:
            headers["Authorization"] = f"Bearer {request.bearer}"
        if request.form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            content = urlencode(request.form)
        elif request.json is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(request.json)
        connection = HTTPSConnection("localhost", self._port, timeout=ANSWER_SECONDS_MAX, context=self._tls)
        connection.request("GET" if content is None else "POST", request.path, content, headers)
        return connection


def typed(request: Request, url: str, certificate: str) -> Iterator[str]:
    """The cURL line that sends this request, on as many lines as it takes to stay readable."""
    options = []
    if request.agent is not None:
        options.append(f"-A {shlex.quote(request.agent)}")
    if request.bearer is not None:
        options.append(f"-H {shlex.quote(f'Authorization: Bearer {request.bearer}')}")
    if request.json is not None:
        options += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(request.json))}"]
    options += [f"-d {shlex.quote(urlencode({name: value}, safe='!'))}" for name, value in request.form.items()]
    lines = [f"curl --cacert {shlex.quote(certificate)} {url}{request.path}"]
    if len(lines[0]) > LINE_CHARACTERS_MAX - 2:
        lines = [f"curl --cacert {shlex.quote(certificate)}", f"  {url}{request.path}"]
    lines.append(" ")
    for option in options:
        if len(lines[-1]) + len(option) + 3 > LINE_CHARACTERS_MAX:
            lines.append(" ")
        lines[-1] += f" {option}"
    last = len(lines) - 1
    for number, line in enumerate(lines):
        yield line if number == last else f"{line} \\"
