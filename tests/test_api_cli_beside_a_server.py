"""Commands beside a running server: each does what the endpoint does, as operator `local`, and the server serves on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import run_here
from tests.server_process import eventually
from tests.servers import Server, clients_toml, running
from tests.wire import Json

ID = re.compile(r"[0-9a-f]{32}")
HASH = re.compile(r"h1\$[0-9a-f]{64}\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the commands of this file, in a folder whose path is longer than a socket's address."""
    with running(tmp_path_factory.mktemp("beside") / ("deep" * 30) / "server") as started:
        yield started


def said(server: Server, *arguments: str, stdin: str = "", exit_code: int = 0) -> str:
    """What a command prints; nothing stands on standard error where it succeeds, and one line where it fails."""
    done = run_here(arguments, server.folder, server.environment(), stdin)
    assert exit_code == done.exit_code, done
    assert (0 if exit_code == 0 or done.out else 1) == done.err.count("\n"), done.err
    return done.out or done.err


def asked(server: Server, *arguments: str, stdin: str = "", exit_code: int = 0) -> Json:
    """What a command prints for programs."""
    return json.loads(said(server, *arguments, "--json", stdin=stdin, exit_code=exit_code))


def test_the_socket_is_for_its_owner_alone(server: Server) -> None:
    """Mode 0600 is the whole authentication of the operator `local`."""
    sockets = [path for path in server.folder.iterdir() if path.is_socket()]
    assert [server.folder / "token-ledger.db.sock"] == sockets
    assert 0o600 == sockets[0].stat().st_mode & 0o777


def test_issue_gives_tokens_that_work(server: Server) -> None:
    """As `POST /grants`; requested by the operator `local`."""
    issued = asked(server, "issue", "--client", "www", "--subject", "anna", "--scope", "read profile")
    assert "read profile" == issued["scope"]
    assert 200 == server.refresh("www", issued["refresh_token"]).status
    first = server.events(issued["grant_id"])[0]
    assert ("grant.issued", "operator:local") == (first["topic"], first["data"]["issued_by"])


def test_issue_takes_lifetimes_and_an_idempotency_key(server: Server) -> None:
    """The same key and request get the same answer again; a longer lifetime than the policy's is refused."""
    given = ["issue", "--client", "www", "--subject", "ben", "--scope", "read", "--grant-ttl-seconds", "3600"]
    first, second = (asked(server, *given, "--idempotency-key", "k1") for _ in range(2))
    assert first["refresh_token"] == second["refresh_token"]
    assert 3600 >= first["authorization_expires_in"] > 3500
    said(server, *given[:-1], "315360000", exit_code=2)
    said(server, "issue", "--client", "www", "--subject", "ben", "--scope", "admin", exit_code=2)
    no_client = "--client: no client has this id; add it to the clients file and apply it\n"
    assert said(server, "issue", "--client", "nobody", "--subject", "ben", exit_code=2).endswith(f": {no_client}")


def test_for_people_issue_prints_a_member_a_line(server: Server) -> None:
    """Names aligned, values as they are."""
    lines = said(server, "issue", "--client", "www", "--subject", "anna", "--scope", "read").splitlines()
    assert {"access_token", "refresh_token", "scope", "grant_id"} <= {line.split()[0] for line in lines}
    assert 1 == len({len(line) - len(line.split(maxsplit=1)[1]) for line in lines})


def test_grants_lists_by_client_subject_and_state(server: Server) -> None:
    """As `GET /grants` and `POST /grants/search`; a list for people has a title and a line a grant."""
    one, two = server.issue("oth", subject="cleo"), server.issue("oth", subject="dora")
    said(server, "grant", "revoke", two.grant_id, "--reason", "lost device")

    def ids(*arguments: str) -> list[str]:
        return [grant["grant_id"] for grant in asked(server, "grants", *arguments)["grants"]]

    assert [one.grant_id, two.grant_id] == ids("--client", "oth")
    assert [one.grant_id] == ids("--client", "oth", "--state", "active")
    assert [two.grant_id] == ids("--subject", "dora")
    assert [] == ids("--subject", "Dora")
    assert [] == ids("--subject", "dora", "--state", "active", "--client", "oth")
    title, *lines = said(server, "grants", "--client", "oth").splitlines()
    assert ["grant", "status", "client", "generation", "issued", "scope"] == title.split()
    assert [[one.grant_id, "active"], [two.grant_id, "revoked"]] == [line.split()[:2] for line in lines]


def test_grant_shows_one_and_its_history(server: Server) -> None:
    """The state as it is, the history in order, and the state at an earlier time."""
    grant = server.issue("www", subject="emil")
    server.refresh("www", grant.refresh_token)
    shown = asked(server, "grant", "show", grant.grant_id)
    assert (1, "active", "emil") == (shown["generation"], shown["status"], shown["subject"])
    assert "generation           1" in said(server, "grant", "show", grant.grant_id)

    history = asked(server, "grant", "history", grant.grant_id)
    assert ["grant.issued", "grant.token_redeemed", "grant.token_rotated"] == [e["topic"] for e in history["events"]]
    at = history["events"][0]["at"]
    then = asked(server, "grant", "history", grant.grant_id, "--at", at)
    assert (0, 3) == (then["state"]["generation"], len(then["events"]))
    lines = said(server, "grant", "history", grant.grant_id).splitlines()
    assert ["1", "2", "3"] == [line.split()[0] for line in lines]
    assert lines[2].endswith("generation 0 retired, its successor 1 is current")

    no_grant = "token-ledger: no grant has this id (32 hex digits; see token-ledger grants)\n"
    for act in ("show", "history", "revoke"):
        assert no_grant == said(server, "grant", act, "0" * 32, exit_code=1)
    assert no_grant == said(server, "grant", "show", "../keys", exit_code=1)
    assert no_grant == said(server, "grant", "history", "xx", "--at", at, exit_code=1)
    before = said(server, "grant", "history", grant.grant_id, "--at", "2020-01-01T00:00:00Z", exit_code=1)
    assert "token-ledger: no such grant, or none yet at that moment\n" == before
    said(server, "grant", "history", grant.grant_id, "--at", "yesterday", exit_code=2)


def test_grant_is_suspended_reinstated_and_revoked(server: Server) -> None:
    """Each binds at once; what cannot be so is exit code 1."""
    grant = server.issue("www", subject="fay")
    assert "suspended" == asked(server, "grant", "suspend", grant.grant_id, "--reason", "checking")["status"]
    assert "suspended" == server.refresh("www", grant.refresh_token).json()["reason"]
    assert "active" == asked(server, "grant", "reinstate", grant.grant_id)["status"]
    assert 200 == server.refresh("www", grant.refresh_token).status
    assert "revoked" == asked(server, "grant", "revoke", grant.grant_id, "--reason", "left")["status"]
    assert ["reason", "left"] == said(server, "grant", "show", grant.grant_id).splitlines()[-1].split()
    said(server, "grant", "reinstate", grant.grant_id, exit_code=1)
    said(server, "grant", "suspend", grant.grant_id, exit_code=1)
    after_reuse = server.issue("susp", subject="fay")
    server.refresh("susp", after_reuse.refresh_token)
    server.refresh("susp", after_reuse.refresh_token)
    said(server, "grant", "reinstate", after_reuse.grant_id, exit_code=1)
    assert "active" == asked(server, "grant", "reinstate", after_reuse.grant_id, "--trust", "current")["status"]


def test_revoke_ends_all_grants_of_a_subject_or_a_client(server: Server) -> None:
    """By epoch; `--before` spares later ones; an unknown subject or client is exit code 1."""
    grants = [server.issue("www", subject="gina"), server.issue("oth", subject="gina")]
    answer = asked(server, "revoke", "--subject", "gina", "--reason", "left")
    assert answer["known"]
    assert 1 <= answer["epoch"]
    for grant in grants:
        assert "revoked_by_subject" == server.refresh(grant.client, grant.refresh_token).json()["reason"]
    assert {"known": False} == asked(server, "revoke", "--subject", "Gina", "--reason", "left", exit_code=1)
    assert "byte for byte" in said(server, "revoke", "--subject", "Gina", "--reason", "left", exit_code=1)
    said(server, "revoke", "--client", "nobody", "--reason", "left", exit_code=1)
    said(server, "revoke", "--client", "keep", "--reason", "r", "--before", "2999-01-01T00:00:00Z", exit_code=2)
    kept = server.issue("keep")
    answer = asked(server, "revoke", "--client", "keep", "--reason", "r", "--before", "2020-01-01T00:00:00Z")
    assert "keep" == answer["client_id"]
    assert 200 == server.refresh("keep", kept.refresh_token).status
    assert "all grants of client keep are ended, by epoch" in said(
        server, "revoke", "--client", "keep", "--reason", "r"
    )
    assert "revoked_by_operator" == server.refresh("keep", kept.refresh_token).json()["reason"]


def test_explain_says_what_a_token_is(server: Server) -> None:
    """Exit code 0 for what works now, else 1; the token is never echoed."""
    grant = server.issue("www", subject="hugo")
    for token, verdict in ((grant.refresh_token, "current"), (grant.access_token, "access_token_active")):
        explained = asked(server, "explain", stdin=f" {token}\r\n")
        assert (verdict, grant.grant_id) == (explained["verdict"], explained["grant_id"])
    successor = server.refresh("www", grant.refresh_token).json()["refresh_token"]
    assert "current" in said(server, "explain", stdin=successor)
    server.refresh("www", grant.refresh_token)
    dead = said(server, "explain", stdin=grant.refresh_token, exit_code=1)
    assert "revoked" in dead
    assert f"grant:{grant.grant_id}/" in dead
    assert grant.refresh_token not in dead
    assert "unknown" == asked(server, "explain", stdin="rt1_nothing", exit_code=1)["verdict"]
    said(server, "explain", exit_code=2)


def test_reuse_lists_incidents(server: Server) -> None:
    """Which grant saw a retired token, when, from where, with what label."""
    grant = server.issue("www", subject="ida")
    second = server.refresh("www", grant.refresh_token).json()["refresh_token"]
    server.refresh("www", second)
    server.refresh("www", grant.refresh_token, agent="thief")
    found = [each for each in asked(server, "reuse")["incidents"] if each["grant_id"] == grant.grant_id]
    assert [("fork", 0, 2, "revoke")] == [
        (each["label"], each["presented_generation"], each["current_generation"], each["action"]) for each in found
    ]
    [line] = [line for line in said(server, "reuse", "--since", found[0]["at"]).splitlines() if grant.grant_id in line]
    event = found[0]["event_id"].rpartition("/")[2]
    assert [found[0]["at"], "fork", "revoke", event, "127.0.0.1", "127.0.0.1"] == [
        line.split()[column] for column in (0, 1, 2, 7, -2, -1)
    ]
    assert [] == asked(server, "reuse", "--since", "2999-01-01T00:00:00Z")["incidents"]
    said(server, "reuse", "--since", "2999-01-01", exit_code=2)


@pytest.mark.parametrize(
    "question",
    [
        ("grants", "--client"),
        ("grants", "--subject", "pia", "--client"),
        ("grants", "--subject"),
        ("reuse", "--since"),
        ("grant", "history", "0" * 32, "--at"),
    ],
)
def test_an_option_without_a_value_is_not_left_out(server: Server, question: tuple[str, ...]) -> None:
    """A script whose variable is empty is told so, and not of everybody, nor that there is nothing."""
    done = server.command(*question, "")
    told = f"token-ledger: {question[-1]} is given without a value"
    assert (2, b"", told) == (done.returncode, done.stdout, done.stderr.decode().strip())


def test_a_hash_serves_in_a_clients_file(server: Server) -> None:
    """As `secret_hash`, and nothing of the secret is told; a line feed at its end is not part of it."""
    hashed = said(server, "hash", stdin="N3w-s3cret\n")
    assert HASH.fullmatch(hashed)
    assert hashed == said(server, "hash", stdin="N3w-s3cret")
    assert hashed != said(server, "hash", stdin="N3w-s3cret ")
    said(server, "hash", exit_code=2)
    for refused_in_a_file in ("zwei\nZeilen", "caf\u00e9", "x" * 1025, hashed):
        said(server, "hash", stdin=refused_in_a_file, exit_code=2)
    client = f'[[client]]\nid = "hashed"\nsecret_hash = "{hashed.strip()}"\nauth = "client_secret"\nscope = "read"\n'
    operator = f'[[operator]]\nname = "hashed"\ntoken_hash = "{hashed.strip()}"\nroles = ["auditor"]\n'
    file = server.folder / "more.toml"
    file.write_text(clients_toml(more=client + operator))
    differences = asked(server, "apply", str(file))["differences"]
    assert [("client", "hashed", "registered"), ("operator", "hashed", "registered")] == [
        (each["kind"], each["name"], each["change"]) for each in differences
    ]
    issued = asked(server, "issue", "--client", "hashed", "--subject", "jo", "--scope", "read")
    fields = {"grant_type": "refresh_token", "refresh_token": issued["refresh_token"]}
    credentials = {"client_id": "hashed", "client_secret": "N3w-s3cret"}
    assert 200 == server.form("/token", fields | credentials).status


def test_apply_prints_the_difference_and_a_dry_run_records_nothing(server: Server) -> None:
    """With how many live grants a removed and a returning client takes along."""
    file = server.folder / "changed.toml"
    grant = server.issue("post")
    file.write_text(clients_toml(without=["post"]).replace('policy = "mobile"', 'policy = "strict"'))
    dry = said(server, "apply", "--dry-run", str(file)).splitlines()
    assert "dry run: nothing was recorded" == dry.pop()
    assert 200 == server.form("/introspect", {"token": "x", **server.credentials("post")}).status
    assert dry == said(server, "apply", str(file)).splitlines()
    assert any(line.startswith('client "post": disabled') and "suspends 1 live grant" in line for line in dry), dry
    assert any(line.startswith('client "mob": changed') and "got shorter" in line for line in dry), dry
    assert 400 == server.form("/introspect", {"token": "x", **server.credentials("post")}).status
    assert "client_disabled" == asked(server, "grant", "show", grant.grant_id)["blocked_by"]
    file.write_text(clients_toml())
    back = said(server, "apply", str(file))
    assert "brings back 1 live grant" in back
    assert "nothing changes\n" == said(server, "apply", str(file))
    assert 200 == server.refresh("post", grant.refresh_token).status


def test_keys_are_rotated_activated_and_distrusted(server: Server) -> None:
    """A new key verifies first, then signs; the one that signs cannot be distrusted; a distrusted one never signs."""
    before = asked(server, "keys", "list")
    assert [{"id", "state", "created_at"}] == [set(key) for key in before["keys"]][:1]
    active = next(key["id"] for key in before["keys"] if key["state"] == "active")
    key_id = said(server, "keys", "rotate").splitlines()[-1]
    assert key_id.isdigit()
    assert int(key_id) == active + 1
    states = {key["id"]: key["state"] for key in asked(server, "keys", "list")["keys"]}
    assert ("active", "verifying") == (states[active], states[int(key_id)])
    said(server, "keys", "distrust", str(active), exit_code=2)
    assert "active" == asked(server, "keys", "activate", key_id)["state"]
    assert f"key {active} is distrusted\n" == said(server, "keys", "distrust", str(active))
    said(server, "keys", "activate", str(active), exit_code=2)
    said(server, "keys", "activate", "200", exit_code=2)
    assert 200 == server.refresh("www", server.issue("www").refresh_token).status


def test_how_a_key_signs_is_chosen_when_it_is_made(server: Server) -> None:
    """`--alg`; without it as the active key does; what is no algorithm costs no key id."""
    for arguments, alg in ((("--alg", "EdDSA"), "EdDSA"), (("--alg", "RS256"), "RS256"), ((), "ES256")):
        key_id = said(server, "keys", "rotate", *arguments).splitlines()[-1]
        published = server.exchange(b"GET /oauth/v2/jwks HTTP/1.1\r\nHost: localhost\r\n\r\n").json()["keys"]
        assert (alg, key_id) == (published[-1]["alg"], published[-1]["kid"].partition("-")[2])
    said(server, "keys", "rotate", "--alg", "HS256", exit_code=2)
    assert key_id == str(max(key["id"] for key in asked(server, "keys", "list")["keys"]))


def test_erase_removes_a_person(server: Server) -> None:
    """Their grants end, their name is gone; an unknown one is exit code 1."""
    grant = server.issue("www", subject="kim-of-the-north")
    assert {"known": True} == asked(server, "erase", "--subject", "kim-of-the-north")
    assert 400 == server.refresh("www", grant.refresh_token).status
    assert "subject" not in asked(server, "grant", "show", grant.grant_id)
    assert {"known": False} == asked(server, "erase", "--subject", "kim-of-the-north", exit_code=1)
    again = said(server, "erase", "--subject", "kim-of-the-north", exit_code=1)
    assert "nobody of this name is known" in again
    assert "what was erased before is cleared now" in again
    stored = b"".join(path.read_bytes() for path in server.folder.iterdir() if path.is_file())
    assert b"kim-of-the-north" not in stored


def test_rebuild_proves_the_projections_while_serving(server: Server) -> None:
    """Exit code 0 and an empty list of differences; the server serves on."""
    assert {"differences": []} == asked(server, "rebuild")
    assert "every projection and snapshot equals a replay of all events\n" == said(server, "rebuild")
    assert 200 == server.refresh("www", server.issue("www").refresh_token).status


def test_there_is_no_restore_to_acknowledge(server: Server) -> None:
    """Exit code 1: it is not so."""
    assert "lost nothing" in said(server, "restore", "acknowledge", exit_code=1)


def test_init_beside_a_server_changes_nothing(server: Server) -> None:
    """Safe to repeat."""
    lines = said(server, "init").splitlines()
    assert ["there already, unchanged"] * 2 == [line.split(": ")[1] for line in lines]


def test_what_operators_read_is_recorded(server: Server) -> None:
    """One `audit.read` a question, also for the operator `local`; found in the store, there is no endpoint for it."""
    import sqlite3

    with sqlite3.connect(f"file:{server.database}?mode=ro", uri=True) as connection:
        count = "SELECT count(*) FROM events e JOIN streams s ON e.stream = s.id WHERE s.name = 'audit'"
        before = connection.execute(count).fetchone()[0]
        said(server, "reuse")
        eventually(lambda: connection.execute(count).fetchone()[0] == before + 1, what="one more audit.read")
    connection.close()


def test_text_of_others_cannot_command_the_terminal(server: Server) -> None:
    """A device's name with escape sequences is printed escaped, on one line."""
    given = ["--client", "www", "--subject", "lou\u2028\u202egnp", "--scope", "read"]
    issued = asked(server, "issue", *given, "--device", "phone\u009b2J")
    shown = said(server, "grant", "show", issued["grant_id"])
    assert "lou\\u2028\\u202egnp" in shown
    assert "\u2028" not in shown


def test_a_command_after_a_kill_opens_the_file_itself(tmp_path: Path) -> None:
    """The socket that the killed server left behind confuses neither the command nor the next server."""
    with running(tmp_path / "server") as server:
        grant = server.issue("www", subject="mia")
        eventually((server.folder / "token-ledger.keys.head").exists, what="the head file")
        server.kill()
        assert (server.folder / "token-ledger.db.sock").is_socket()
        assert [grant.grant_id] == [each["grant_id"] for each in asked(server, "grants", "--subject", "mia")["grants"]]
        server.start()
        assert [grant.grant_id] == [each["grant_id"] for each in asked(server, "grants", "--subject", "mia")["grants"]]
        assert 0 == server.terminate()
        assert not (server.folder / "token-ledger.db.sock").exists()
        assert [grant.grant_id] == [each["grant_id"] for each in asked(server, "grants", "--subject", "mia")["grants"]]
