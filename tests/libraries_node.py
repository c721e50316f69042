"""The same for libraries of Node.js, fetched as tests/node/package-lock.json pins them, in processes of their own."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.libraries import Place
from tests.wire import Json

PROGRAM = Path(__file__).with_name("node")
NAMES = (
    "openid-client",
    "openid-client, Basic",
    "oauth4webapi",
    "simple-oauth2",
    "oidc-client-ts",
    "oidc-client-ts, public",
    "google-auth-library",
)
WITH_KEYS = ("openid-client, keys", "oauth4webapi, keys")
FETCH_SECONDS_MAX = 300


class NodeError(Exception):
    """What a library threw: its class, and the server's error code and its place where it carries one."""

    def __init__(self, thrown: str, place: str | None, code: str | None, text: str) -> None:
        super().__init__(text)
        self.thrown = thrown
        self.place = place
        self.code = code


def fetched_into(folder: Path) -> Path:
    """Fetch the libraries; return the program that speaks for them, or skip where they cannot be had."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    for name in ("package.json", "package-lock.json", "clients.mjs"):
        shutil.copy(PROGRAM / name, folder)
    fetched = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        timeout=FETCH_SECONDS_MAX,
        check=False,
    )
    if b"ENOTFOUND" in fetched.stderr or b"ECONNREFUSED" in fetched.stderr:
        pytest.skip("npm reaches no registry from here")
    assert 0 == fetched.returncode, fetched.stderr
    return folder / "clients.mjs"


class NodeLibrary:
    """One process that holds one client of one library."""

    def __init__(self, program: Path, name: str, place: Place, tokens: Json = None) -> None:
        told = [place.issuer, place.token_url, place.client_id, place.secret, place.scope]
        self.process = subprocess.Popen(
            ["node", str(program), name, *told, json.dumps(tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert "ready" == self._answer()

    def authorization_url(self) -> str:
        return self._call("authorizationUrl")

    def exchange(self, redirect_to: str) -> str:
        return self._call("exchange", redirect_to)

    def refresh(self) -> str:
        return self._call("refresh")

    def narrow(self, scope: str) -> str:
        return self._call("narrow", scope)

    def close(self) -> None:
        self.process.communicate(timeout=20)

    def _call(self, call: str, argument: str | None = None) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": call, "argument": argument}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline() or '{"thrown": "nothing", "text": "it ended"}')
        if "missing" in answer:
            raise NotImplementedError("the library has no way to do this")
        if "thrown" in answer:
            raise NodeError(answer["thrown"], answer.get("place"), answer.get("code"), answer["text"])
        return str(answer["returned"])
