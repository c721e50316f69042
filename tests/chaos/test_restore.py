"""An older backup is put back: it is recognised, nothing is served on it unknowingly, and what was lost stays lost.

The head file beside the key ring says how far the log had come (I-23); a token that the log does not know yet says it,
too (I-15).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.canary import check_left
from tests.chaos.files import check_files
from tests.chaos.processes import TroubledServer
from tests.server_process import eventually
from tests.servers import OPERATORS, Grant
from tests.wire import FORM, Answer, Json, form_bytes, request_bytes

METADATA = {"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"}
SERVED_ALWAYS = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/{name}"} | METADATA


@dataclass
class Past:
    """What happened before and after the backup, and the tokens that clients are left with."""

    steady: Grant
    """Refreshed before the backup: its client holds what the backup calls current."""
    ahead: Grant
    ahead_token: str
    """Refreshed after it: its client holds a generation that the backup has never seen."""
    overtaken: Grant
    overtaken_token: str
    """As the one before; but somebody else presents the token that the backup calls current first."""
    unseen: Grant
    """Issued after it."""
    position: int
    """Where the log had come to."""
    paths: list[tuple[str, str]]
    """Every method and path that the server describes."""


def live_and_restore(server: TroubledServer, backup: Path) -> Past:
    """Live, take a backup, live on, stop, and put the backup back under everything else as it is by then."""
    server.start()
    steady, ahead, overtaken = [server.issue("std") for _ in range(3)]
    steady = _with_token(steady, _refreshed(server, steady.refresh_token))
    paths = [
        (method.upper(), path)
        for path, methods in server.exchange(request_bytes("GET", "/openapi.json")).json()["paths"].items()
        for method in methods
    ]
    assert 0 == server.terminate()
    shutil.copy(server.database, backup)
    server.start()
    ahead_token = _refreshed(server, ahead.refresh_token)
    overtaken_token = _refreshed(server, overtaken.refresh_token)
    unseen = server.issue("std")
    assert 0 == server.terminate()
    position = check_files(server.database, []).position
    shutil.copy(backup, server.database)
    for suffix in ("-wal", "-shm"):
        server.database.with_name(server.database.name + suffix).unlink(missing_ok=True)
    return Past(steady, ahead, ahead_token, overtaken, overtaken_token, unseen, position, paths)


def _refreshed(server: TroubledServer, token: str) -> str:
    answer = server.refresh("std", token)
    assert 200 == answer.status, answer.body
    return str(answer.json()["refresh_token"])


def _with_token(grant: Grant, token: str) -> Grant:
    return Grant(grant.grant_id, grant.client, grant.subject, grant.access_token, token)


def check_unready(server: TroubledServer, paths: list[tuple[str, str]]) -> None:
    """Assert that nothing is served but what says so: 503 everywhere, to whoever asks, until it is acknowledged."""
    eventually(lambda: server.health("/healthz") == 200, within_seconds=30, what="/healthz 200")
    assert 503 == server.health("/readyz"), "a log that has lost its end is served"
    assert len(paths) > 20
    for method, path in paths:
        answer = ask(server, method, path)
        if path in SERVED_ALWAYS:
            assert path == "/readyz" or 503 != answer.status, f"{method} {path}: {answer.status}"
        else:
            assert 503 == answer.status, f"{method} {path}: {answer.status} {answer.body!r}"
            assert "temporarily_unavailable" == answer.json()["error"]


def ask(server: TroubledServer, method: str, path: str) -> Answer:
    """Ask as somebody who may: a client where forms are taken, elsewhere an operator with all that is wanted."""
    path = path.replace("{id}", "0" * 32).replace("{grant_id}", "0" * 32).replace("{client_id}", "std")
    if method == "POST" and any(word in path for word in ("token", "revoke", "introspect")) and "/grants" not in path:
        fields = {"token": "x", "refresh_token": "x", "grant_type": "refresh_token", **server.credentials("std")}
        if not path.startswith(("/subjects", "/clients")):
            return server.exchange(request_bytes(method, path, headers={"Content-Type": FORM}, body=form_bytes(fields)))
    role = "issuer" if (method, path) == ("POST", "/grants") else "security"
    headers = {"Authorization": f"Bearer {OPERATORS[role]}", "Content-Type": "application/json"}
    body: Json = {"subject": "a", "reason": "b", "token": "x", "client_id": "std", "scope": "read"}
    wanted = {"/grants": ("client_id", "subject", "scope"), "/explain": ("token",), "/grants/search": ("subject",)}
    members = wanted.get(path, ("subject", "reason") if path == "/subjects/revoke" else ("reason",))
    content = json.dumps({name: body[name] for name in members}).encode() if method == "POST" else b""
    return server.exchange(request_bytes(method, path, headers=headers, body=content))


def check_flagged(server: TroubledServer, grant: Grant, token: str) -> None:
    """Assert that a token ahead of the log is refused, and that it is on record once, with the suspension."""
    first, again = [server.refresh("std", token) for _ in range(2)]
    assert (400, "suspended") == (first.status, first.json().get("reason")), first.body
    assert first.body == again.body
    topics = [topic for topic in server.topics(grant.grant_id) if not topic.startswith("grant.token")]
    assert ["grant.issued", "grant.rollback_detected", "grant.suspended"] == topics
    assert {"active": False} == server.introspect(grant.access_token)


@contextmanager
def restored(folder: Path, **options: Json) -> Iterator[tuple[TroubledServer, Past]]:
    """A server on a backup that was put back, not started yet."""
    server = TroubledServer(folder / "server", **options)
    try:
        yield server, live_and_restore(server, folder / "backup.db")
    finally:
        server.kill()
    check_left(server)


def test_a_restored_backup_serves_nobody_until_it_is_acknowledged(tmp_path: Path) -> None:
    """Unready; acknowledged beside the running server; then on above what was lost, and no lost successor comes again.

    A token ahead of the log is flagged once, and so is the lost successor of a generation that was redeemed anew.
    """
    with restored(tmp_path) as (server, past):
        server.start(wait=False)
        check_unready(server, past.paths)
        process = server.process
        done = server.command("restore", "acknowledge", "--json")
        assert 0 == done.returncode, done
        assert past.position <= int(json.loads(done.stdout)["lost_position"])
        server.wait_ready()

        steady = server.refresh("std", past.steady.refresh_token)
        assert 200 == steady.status, steady.body
        assert past.position < int(steady.header("Ledger-Position") or 0)
        check_flagged(server, past.ahead, past.ahead_token)

        anew = server.refresh("std", past.overtaken.refresh_token)
        assert 200 == anew.status, anew.body
        assert past.overtaken_token != anew.json()["refresh_token"], "a lost successor was minted again"
        check_flagged(server, past.overtaken, past.overtaken_token)

        unseen = server.refresh("std", past.unseen.refresh_token)
        assert 400 == unseen.status
        assert "reason" not in unseen.json()
        issued = server.issue("std")
        assert 200 == server.refresh("std", issued.refresh_token).status

        assert process is server.process
        server.restart()
        assert 200 == server.refresh("std", steady.json()["refresh_token"]).status
        assert 1 == server.command("restore", "acknowledge").returncode
        assert 0 == server.command("rebuild").returncode
        assert 0 == server.terminate()
        topics = check_files(server.database, []).topics
        assert (1, 2) == (topics["ledger.restored"], topics["grant.rollback_detected"])


def test_without_a_head_file_the_token_alone_tells(tmp_path: Path) -> None:
    """`HEAD_FILE=off`: nothing says at the start that the log is short; the first token ahead of it does (I-15)."""
    with restored(tmp_path, settings={"HEAD_FILE": "off"}) as (server, past):
        server.start()
        assert "head_file_off" in server.log()
        assert 200 == server.refresh("std", past.steady.refresh_token).status
        check_flagged(server, past.ahead, past.ahead_token)
        assert 0 == server.terminate()
        assert 1 == check_files(server.database, []).topics["grant.rollback_detected"]


def test_a_backup_that_nobody_recognises_is_caught(tmp_path: Path) -> None:
    """The broken twins: a head file that went back with the database, and a ledger that overlooks what is ahead."""
    with restored(tmp_path, twin="overlooks_what_is_ahead") as (server, past):
        server.keys_file.with_name(server.keys_file.name + ".head").unlink()
        server.start(wait=False)
        with pytest.raises(AssertionError, match="a log that has lost its end is served"):
            check_unready(server, past.paths)
        with pytest.raises(AssertionError, match="invalid_grant"):
            check_flagged(server, past.ahead, past.ahead_token)
