"""No token and no secret anywhere but where it belongs (I-20); and of an erased person nothing at all.

A server lives through all that there is: every kind of success and refusal, misplaced tokens, a kill under load, new
keys, commands. Then everything that it has left is searched for everything that it must not hold.
"""

import base64
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from tests.chaos.canary import (
    Canary,
    canary_of,
    files_beside,
    nonces_in,
    spellings,
    tokens_in,
    values_in,
)
from tests.chaos.chains import chains_of, faults_of
from tests.chaos.ends import Ender
from tests.chaos.files import check_files, report
from tests.chaos.load import Load, converge
from tests.chaos.processes import TroubledServer
from tests.server_process import eventually
from tests.servers import OPERATORS, SECRETS, Grant, basic
from tests.wire import FORM, INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH, form_bytes, request_bytes

SEED = 20_261_125
TOKENS = 120
IDEMPOTENCY_KEY = "canary-idempotency-8d2f40c1"
WRONG_SECRET = "canary-wrong-secret-55e0"
PERSON = {
    "subject": "Änne Canary-7f3a <anne@canary.example>",
    "device": "Änne's canary phone",
    "session": "canary-session-19c4",
}
PERSONS_PLACE = "127.77.33.91"
PERSONS_AGENT = "CanaryBrowser/7.7 (Änne)"
REASONS = ["canary asked for it by letter", "canary was on holiday"]
COMMANDS = [
    ("grants", "--json"),
    ("grant", "history", "{grant}", "--json"),
    ("reuse", "--json"),
    ("keys", "rotate"),
]
MORE_COMMANDS = [
    ("keys", "activate", "2"),
    ("keys", "list", "--json"),
    ("grants", "--client", "std"),
    ("grant", "show", "{grant}", "--json"),
    ("grant", "history", "{ended}"),
    ("reuse",),
    ("rebuild",),
]
"""Those of the full tier; a process each."""


class Lived:
    """What a server has left, and what it must not hold."""

    def __init__(self, server: TroubledServer) -> None:
        self.server = server
        self.said: dict[str, bytes] = {}
        self.nonces: dict[str, bytes] = {}

    def command(self, *arguments: str, stdin: str = "") -> None:
        """Run a command and keep what it says."""
        done = self.server.command(*arguments, stdin=stdin)
        assert done.returncode in (0, 1), done.stderr
        self.said[" ".join(arguments[:2])] = done.stdout + done.stderr

    def places(self) -> dict[str, bytes]:
        """Files, logs, what commands and metrics said, and how the process calls itself."""
        server = self.server
        assert server.process is not None
        process = Path(f"/proc/{server.process.pid}")
        shown = {f"/proc {name}": (process / name).read_bytes() for name in ("cmdline", "comm", "environ")}
        logs = {path.name: path.read_bytes() for path in (server.log_file, server.error_file)}
        metrics = server.exchange(request_bytes("GET", "/metrics")).body
        return files_beside(server.database) | logs | self.said | {"metrics": metrics} | shown


def live(lived: Lived, commands: Sequence[tuple[str, ...]]) -> None:
    """Let everything happen once; a command's words may name a grant, or one that has ended."""
    server = lived.server
    chains, ender = chains_of(server, 16), Ender(server, Random(SEED))
    everything_once(server)
    misplaced(server)
    with Load(chains, [ender]) as load:
        time.sleep(0.4)
        eventually(lambda: ender.ends, within_seconds=60, what="the end of a grant")
        server.kill()
        load.stop()
    check_files(server.database, chains, [ender])
    server.settings["LOG_FORMAT"] = "json"
    server.start()
    converge(chains, [ender])
    report(faults_of(chains) + ender.faults)
    grant = server.issue("std")
    for words in commands:
        lived.command(*(word.format(grant=grant.grant_id, ended=ender.ends[0].grant_id) for word in words))
    lived.command("apply", str(server.clients_file), "--json")
    lived.command("explain", "--json", stdin=ender.ends[0].token)
    assert 200 == server.refresh("std", server.issue("std").refresh_token).status


def everything_once(server: TroubledServer) -> None:
    """Issue idempotently, refresh, retry, narrow, reuse, revoke, suspend, reinstate, introspect, explain."""
    body = {"client_id": "susp", "subject": "somebody", "scope": "read"}
    for _ in range(2):
        told = server.operator("issuer", "POST", "/grants", body, headers={"Idempotency-Key": IDEMPOTENCY_KEY})
        assert 201 == told.status
    suspended = told.json()
    newest = server.refresh("susp", suspended["refresh_token"]).json()["refresh_token"]
    assert "reuse_detected" == server.refresh("susp", suspended["refresh_token"]).json()["reason"]
    trusted = {"trust": "current", "reason": "canary"}
    assert 200 == server.operator("admin", "POST", f"/grants/{suspended['grant_id']}/reinstate", trusted).status
    assert 200 == server.refresh("susp", newest, scope="read").status
    for times_used in range(3):
        code = server.authorize("code", session="of another person")["code"]
        assert (
            400 == server.exchange(server.exchange_request("code", code, redirect_uri="https://wrong.example")).status
        )
        for _ in range(times_used):
            server.exchange(server.exchange_request("code", code))
        server.operator("security", "POST", "/explain", {"token": code})
    for client in ("www", "std", "keep", "basic", "spa"):
        grant = server.issue(client)
        server.introspect(grant.access_token)
        server.refresh(client, grant.refresh_token)
        server.refresh(client, grant.refresh_token, agent="another")
        server.operator("security", "POST", "/explain", {"token": grant.refresh_token})
        if client != "basic":
            server.introspect(grant.refresh_token, client)
            assert 200 == server.revoke(client, grant.access_token).status
            assert 200 == server.revoke(client, grant.refresh_token).status


def misplaced(server: TroubledServer) -> None:
    """Put tokens and secrets where none belong: query, path, headers, wrong forms and broken JSON."""
    grant = server.issue("std")
    token, secret = grant.refresh_token, str(SECRETS["std"])
    fields = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "std", "client_secret": secret}
    query = form_bytes(fields).decode()
    form = {"Content-Type": FORM}
    bearer = {"Authorization": f"Bearer {token}"}
    operator = {"Authorization": f"Bearer {OPERATORS['admin']}", "Content-Type": "application/json"}
    for raw in (
        request_bytes("POST", f"{TOKEN_PATH}?{query}", headers=form, body=form_bytes(fields)),
        request_bytes("GET", f"{TOKEN_PATH}?{query}"),
        request_bytes("GET", f"/grants/{token}", headers=operator),
        request_bytes("GET", f"/{secret}/{token}", headers=bearer),
        request_bytes("POST", TOKEN_PATH, headers=form | {"X-Token": token}, body=f"refresh_token={token}%00".encode()),
        request_bytes("POST", TOKEN_PATH, headers=form, body=form_bytes(fields) + b"&refresh_token=" + token.encode()),
        request_bytes("POST", TOKEN_PATH, headers=form, body=form_bytes(fields | {"client_secret": WRONG_SECRET})),
        request_bytes("POST", TOKEN_PATH, headers=form, body=form_bytes(fields | {"refresh_token": token[:-1] + "_"})),
        request_bytes("POST", TOKEN_PATH, headers=form, body=form_bytes(fields) + b"&x=" + b"y" * 9000),
        request_bytes(
            "POST", TOKEN_PATH, headers={"Content-Type": "application/json"}, body=json.dumps(fields).encode()
        ),
        request_bytes(
            "POST", REVOKE_PATH, headers=form | {"Authorization": basic("std", WRONG_SECRET)}, body=b"token=x"
        ),
        request_bytes("POST", INTROSPECT_PATH, headers=form | bearer, body=form_bytes({"token": token})),
        request_bytes("POST", "/explain", headers=operator, body=f'{{"token": "{token}"'.encode()),
        request_bytes("POST", "/grants", headers=operator, body=json.dumps({"scope": secret, "x": token}).encode()),
        f"{token} {secret}\r\n\r\n".encode(),
        f"POST {TOKEN_PATH} HTTP/1.1\r\nHost: {token}\r\n{secret}\r\n\r\n".encode(),
    ):
        with server.connect() as connection:
            assert connection.exchange(raw).status < 500
    assert 200 == server.refresh("std", token).status, "something of it was taken for a request"


def person(server: TroubledServer) -> list[Grant]:
    """Somebody with two grants, used from one place, looked at, stopped for reasons, one of them reused."""
    grants = []
    for client in ("std", "www"):
        told = server.operator("issuer", "POST", "/grants", {"client_id": client, "scope": "read", **PERSON})
        body = told.json()
        grants.append(Grant(body["grant_id"], client, PERSON["subject"], body["access_token"], body["refresh_token"]))
        agent = PERSONS_AGENT.encode().decode("latin-1")
        for _ in range(2):
            server.refresh(client, grants[-1].refresh_token, source=PERSONS_PLACE, agent=agent)
    for act, reason in zip(("suspend", "reinstate"), REASONS, strict=True):
        told = server.operator("admin", "POST", f"/grants/{grants[0].grant_id}/{act}", {"reason": reason})
        assert 200 == told.status, told.body
    assert 200 == server.operator("security", "POST", "/grants/search", {"subject": PERSON["subject"]}).status
    return grants


def person_canary() -> Canary:
    canary = Canary()
    for name, text in {**PERSON, "address": PERSONS_PLACE, "user agent": PERSONS_AGENT}.items():
        canary.add(name, text)
    for number, reason in enumerate(REASONS):
        canary.add(f"reason {number}", reason)
    return canary


def test_no_secret_is_anywhere_and_of_the_erased_nothing(tmp_path: Path, full: bool) -> None:
    """Database, write-ahead log, shared memory, logs at DEBUG, what commands and metrics say: all of it is searched."""
    server = TroubledServer(tmp_path / "server")
    server.by_command = True  # so that what the kernel shows of it is what it shows of any
    try:
        server.start()
        lived = Lived(server)
        grants = person(server)
        persons_nonces = nonces_in(server.database)
        live(lived, COMMANDS + MORE_COMMANDS if full else COMMANDS)
        nonces = nonces_in(server.database)

        canary, places = canary_of(server, TOKENS), lived.places()
        canary.add("an Idempotency-Key", IDEMPOTENCY_KEY)
        canary.add("a wrong secret", WRONG_SECRET)
        assert {"token-ledger.db", "token-ledger.db-wal", "token-ledger.db-shm", "server.log"} <= places.keys()
        where_they_belong = {"clients": server.clients_file.read_bytes(), "ring": server.keys_file.read_bytes()}
        assert 10 < len(canary.found_in(where_they_belong)), "the search finds nothing"
        assert [] == canary.found_in(places) + tokens_in(places)
        values = values_in(server.database)
        assert [] == canary.found_in(values)
        canary_of_nonces = Canary()
        for name, nonce in nonces.items():
            canary_of_nonces.add(name, nonce)
        kept = {place: content for place, content in values.items() if place != "private_grants.nonce"}
        assert [] == canary_of_nonces.found_in(kept)
        files = {"token-ledger.db", "token-ledger.db-wal"}
        assert [] == canary_of_nonces.found_in({name: places[name] for name in places.keys() - files})

        said = person_canary()
        for name in persons_nonces.keys() & nonces.keys():
            said.add(name, nonces[name])
        found = {line.split(" in ")[0] for line in said.found_in(files_beside(server.database) | values)}
        assert {*PERSON, "address", "user agent", "reason 0", "reason 1"} <= found, "there was nothing to erase"
        lived.said.clear()
        lived.command("erase", "--subject", PERSON["subject"])
        lived.said.clear()
        for arguments in (
            ("grants", "--json"),
            ("reuse", "--json"),
            ("grant", "history", grants[0].grant_id, "--json"),
        ):
            lived.command(*arguments)
        assert [] == said.found_in(lived.places())
        assert [] == said.found_in(values_in(server.database))
        assert 0 == server.terminate(), server.tail()
        check_files(server.database, [])
        assert [] == said.found_in(files_beside(server.database))
    finally:
        server.kill()
    server.check_log()


@pytest.mark.parametrize("spelling", range(len(spellings(b"rt1_" + bytes(range(65, 85))))))
def test_a_planted_secret_is_found(tmp_path: Path, spelling: int) -> None:
    """The broken twin: in whatever form a secret is left in a file, it is named."""
    secret = b"rt1_" + bytes(range(65, 85))
    canary = Canary()
    canary.add("it", secret)
    planted = sorted(spellings(secret))[spelling]
    (tmp_path / "token-ledger.db-wal").write_bytes(bytes(5000) + planted + bytes(5000))
    shutil.copy(tmp_path / "token-ledger.db-wal", tmp_path / "other.db")
    assert ["it in token-ledger.db-wal"] == canary.found_in(files_beside(tmp_path / "token-ledger.db"))


def test_base64_is_found_wherever_it_begins() -> None:
    """A secret inside something longer that was encoded as a whole."""
    secret = bytes(range(200, 232))
    for before in range(7):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            content = encode(bytes(range(before)) + secret + b"after")
            assert any(spelling in content for spelling in spellings(secret)), before
