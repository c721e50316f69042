"""Bad input to real processes: each is one clear line and exit code 2, and nothing is lost."""

import os
import re
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from api.cli.certificate import write_certificate
from tests.places import Place
from tests.server_process import eventually, program
from tests.servers import Server, clients_toml, running

WITHOUT_PRIVILEGES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()
"""Root may write whatever it likes: it starts such a program without that."""

# ---------------------------------------------------------------- settings


def test_an_unknown_setting_in_the_environment_is_named(place: Place) -> None:
    """A typing mistake must not pass for a setting; nothing is created."""
    said = place.refused("serve", KEY_FILE="a.keys")
    assert "TOKEN_LEDGER_KEY_FILE is no setting; is TOKEN_LEDGER_KEYS_FILE meant?" == said
    assert {} == place.files()


def test_an_unknown_setting_in_the_file_is_named(place: Place) -> None:
    """As in the environment, with the file's name."""
    (place.folder / "a.toml").write_text("prot = 1\n")
    assert "a.toml: prot is no setting; is port meant?" == place.refused("serve", "--config", "a.toml")
    assert {"a.toml"} == set(place.files())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"PORT": "eighty"}, "TOKEN_LEDGER_PORT: allowed is a whole number from 0 to 65535"),
        ({"WORKERS": "2"}, "TOKEN_LEDGER_WORKERS: SQLite is served by one process; above 1 needs PostgreSQL as "),
        ({"ALLOW_PLAIN_HTTP": ""}, "TOKEN_LEDGER_TLS_CERT and TOKEN_LEDGER_TLS_KEY are missing: set both, or "),
        ({"TLS_CERT": "tls.pem"}, "TOKEN_LEDGER_TLS_KEY is missing: TOKEN_LEDGER_TLS_CERT alone serves nothing"),
        ({"TLS_CERT": "no.pem", "TLS_KEY": "no.key"}, "TOKEN_LEDGER_TLS_CERT: no.pem cannot be read: No such file"),
        ({"DATABASE_URL": "mysql://a"}, "TOKEN_LEDGER_DATABASE_URL: allowed is sqlite:///FILE"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_served_with_is_named(place: Place, settings: dict[str, str], expected: str) -> None:
    """The line names the setting and what is allowed, and nothing is created."""
    assert place.refused("serve", **settings).startswith(expected)
    assert {} == place.files()


def test_a_certificate_with_the_key_of_another_is_refused(place: Place) -> None:
    """And so is what is no certificate at all."""
    write_certificate(place.folder / "a.pem", place.folder / "a.key")
    write_certificate(place.folder / "b.pem", place.folder / "b.key")
    said = place.refused("serve", TLS_CERT="a.pem", TLS_KEY="b.key")
    assert "TOKEN_LEDGER_TLS_KEY: b.key is not the key of the certificate in a.pem" == said
    said = place.refused("serve", TLS_CERT="a.key", TLS_KEY="a.key")
    assert "TOKEN_LEDGER_TLS_CERT: a.key holds no certificate in PEM that OpenSSL accepts" == said
    assert {"a.pem", "a.key", "b.pem", "b.key"} == set(place.files())


def test_a_taken_port_is_said(place: Place) -> None:
    """What it needs is not there: exit code 2, and no database is made."""
    with socket.create_server(("127.0.0.1", int(place.settings["PORT"]))):
        said = place.refused("serve")
    taken = f"127.0.0.1 port {place.settings['PORT']} is taken: another process listens there"
    assert f"{taken}; stop it, or set TOKEN_LEDGER_PORT" == said
    assert {} == place.files()


def test_a_head_file_that_cannot_be_written_refuses_the_start(place: Place) -> None:
    """A ledger that could not tell that it has lost its end must not serve."""
    said = place.refused("serve", HEAD_FILE="nowhere/head")
    assert said.startswith("nowhere/head: cannot write the head file: No such file or directory")
    assert {} == place.files()


def test_too_few_open_files_refuse_the_start(made: Place) -> None:
    """With fewer it would accept connections, and then not be able to read the archive or write the head file."""
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 12 && exec "$@"', "sh", *program(), "serve"],
        env=made.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 2 == done.returncode
    assert "token-ledger: a server needs 48 open files at least, and may have 12 (ulimit -n)\n" == done.stderr


def test_a_system_without_a_place_for_temporary_files_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no defect of ours to be reported."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(place.folder / "nowhere")])
    done = place.here("demo", "--once")
    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert done.stderr.startswith("token-ledger: No usable temporary directory found in ")


# ---------------------------------------------------------------- key ring


def unreadable(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "not a regular file|Is a directory"


def world_readable(path: Path) -> str:
    path.chmod(0o644)
    return r"others may use the key ring \(mode 0644\): chmod 600 "


def truncated(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-60])
    return "truncated or no key ring"


def missing(path: Path) -> str:
    path.unlink()
    return "there is no key ring here, and .*token-ledger.db works with its own alone: put it back"


@pytest.mark.parametrize("spoil", [unreadable, world_readable, truncated, missing])
@pytest.mark.parametrize("arguments", [("serve",), ("grants",)])
def test_a_key_ring_that_cannot_be_used_is_named(
    made: Place, spoil: Callable[[Path], str], arguments: tuple[str, ...]
) -> None:
    """The line names the file and what to do; the database stays as it is and works once the ring is back."""
    ring = made.folder / "token-ledger.keys"
    kept = ring.read_bytes()
    before = made.files()["token-ledger.db"]
    expected = spoil(ring)
    said = made.refused(*arguments)
    assert said.startswith(str(ring))
    assert re.search(expected, said), said
    assert before == made.files()["token-ledger.db"]
    if ring.is_dir():
        ring.rmdir()
    ring.write_bytes(kept)
    ring.chmod(0o600)
    assert 0 == made.here("grants").returncode


def test_the_key_ring_of_another_database_is_refused(made: Place, tmp_path: Path) -> None:
    """The store remembers its ring: with another one every token would look forged."""
    other = Place(tmp_path / "other")
    assert 0 == other.here("init").returncode
    before = made.files()["token-ledger.db"]
    for arguments in (("serve",), ("grants",), ("init",)):
        said = made.refused(*arguments, KEYS_FILE=other.settings["KEYS_FILE"], HEAD_FILE="off")
        assert said.endswith("this database belongs to another key ring; give it the one it was made with"), said
    assert before == made.files()["token-ledger.db"]
    assert 0 == made.here("grants").returncode


# ---------------------------------------------------------------- database


def test_a_database_that_is_none_stays_as_it_is(made: Place) -> None:
    """Text, somebody else's SQLite database, a folder: nothing is written to any of them."""
    text = made.folder / "text.db"
    text.write_text("nothing like a database, but long enough to be taken for one" * 30)
    foreign = made.folder / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    before = made.files()
    assert made.refused("serve", DATABASE_URL=f"sqlite:///{text}").endswith("this file is no SQLite database")
    said = made.refused("serve", DATABASE_URL=f"sqlite:///{foreign}")
    assert said.endswith("this database is no token ledger; nothing was changed")
    assert str(made.folder) in made.refused("serve", DATABASE_URL=f"sqlite:///{made.folder}")
    assert before == made.files()


def test_a_command_does_not_make_a_database_where_none_is(place: Place) -> None:
    """A typing mistake in its name must not look like a ledger without grants."""
    said = place.refused("grants")
    assert said.endswith("there is no ledger here yet; `token-ledger init` creates one")
    assert {} == place.files()


def test_a_database_in_a_folder_that_is_not_there_is_said(place: Place) -> None:
    """And the key ring is not made for it."""
    said = place.refused("init", DATABASE_URL="sqlite:///nowhere/a.db")
    assert "nowhere/a.db" in said
    assert "no such folder" in said.lower()
    assert {} == place.files()


def test_a_database_that_another_program_has_locked_is_said(made: Place) -> None:
    """Somebody looks into it with another tool, in a transaction that writes."""
    connection = sqlite3.connect(made.folder / "token-ledger.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    said = made.refused("serve")
    assert "another program" in said
    connection.execute("ROLLBACK")
    connection.close()
    assert 0 == made.here("grants").returncode


@pytest.mark.parametrize("spoiled", ["token-ledger.db", "."])
@pytest.mark.parametrize("arguments", [("serve",), ("grants",)])
def test_a_database_that_may_not_be_written_is_said(made: Place, spoiled: str, arguments: tuple[str, ...]) -> None:
    """A file of another user, a folder without rights: named before anything is served, and left as it is."""
    (made.folder / "token-ledger.db.lock").touch()
    before, place = made.files(), made.folder / spoiled
    mode = place.stat().st_mode
    place.chmod(mode & 0o555)
    try:
        done = subprocess.run(
            [*WITHOUT_PRIVILEGES, *program(), *arguments],
            env=made.environment(HEAD_FILE="off"),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        place.chmod(mode)
    line = f"token-ledger: {place.resolve()}: may not be written by this user, which the database needs\n"
    assert (2, "", line) == (done.returncode, done.stdout, done.stderr)
    assert before == made.files()


def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    """One process owns the file; the first one serves on, and commands go through it."""
    with running(tmp_path / "server") as server:
        second = Place(server.folder)
        said = second.refused("serve")
        assert server.process is not None
        assert f"process {server.process.pid} already has the database open, and only one may" in said
        assert 200 == server.health("/readyz")
        assert 0 == server.command("grants").returncode
        assert 200 == server.refresh("www", server.issue("www").refresh_token).status


# ---------------------------------------------------------------- clients file

CLIENT = '[[client]]\nid = "www"\nsecret = "Secr3t!"\nauth = "client_secret"\nscope = "read"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CLIENT + 'colour = "red"\n', 'client "www": field colour: is unknown'),
        (CLIENT.replace("Secr3t!", "Secr3t!\\n"), 'client "www": field secret: '),
        (CLIENT.replace('"client_secret"', '"client_password"'), 'client "www": field auth: may be one of '),
        (CLIENT + "policy = { rotation = 7 }\n", 'client "www": field policy.rotation: '),
        (CLIENT + 'policy = "standart"\n', 'client "www": field policy: may be one of strict, standard, mobile, '),
        (CLIENT + CLIENT, 'client "www": field id: stands twice in the file'),
        ('[[operator]]\nname = "ops"\ntoken = "Secr3t!"\nroles = ["root"]\n', 'operator "ops": field roles: may hold '),
        ("[[client]\n", "is no valid TOML (at line 1, "),
    ],
)
def test_a_clients_file_that_is_wrong_names_file_client_and_field(made: Place, text: str, expected: str) -> None:
    """The line never shows the value: it may be a secret."""
    (made.folder / "clients.toml").write_text(text)
    said = made.refused("apply", "clients.toml")
    assert said.startswith(f"clients.toml: {expected}")
    assert "Secr3t!" not in said
    assert "client_password" not in said


def test_a_wrong_clients_file_changes_nothing_wherever_it_is_read(made: Place) -> None:
    """At `apply`, at its dry run and at the start of a server alike; what ruled before rules on."""
    clients = made.folder / "clients.toml"
    clients.write_text(CLIENT)
    assert 0 == made.here("apply", "clients.toml").returncode
    clients.write_text(CLIENT + '[[client]]\nid = "new"\ncolour = "red"\n')
    expected = 'clients.toml: client "new": field colour: is unknown'
    assert made.refused("apply", "clients.toml").startswith(expected)
    assert made.refused("apply", "--dry-run", "clients.toml").startswith(expected)
    assert made.refused("serve", CLIENTS_FILE="clients.toml").startswith(expected)
    clients.write_text(CLIENT)
    assert "nothing changes\n" == made.here("apply", "clients.toml").stdout


def test_a_clients_file_that_is_not_there_is_named(made: Place) -> None:
    """At `apply` and at the start of a server alike."""
    assert made.refused("apply", "no.toml").startswith("no.toml: cannot be read: No such file or directory")
    assert made.refused("serve", CLIENTS_FILE="no.toml").startswith("no.toml: cannot be read: ")


def test_an_older_clients_file_brings_nothing_back(made: Place) -> None:
    """A serial below the store's last is refused, and so is a file without one (section on clients)."""
    (made.folder / "new.toml").write_text("serial = 7\n" + CLIENT)
    (made.folder / "old.toml").write_text("serial = 6\n" + CLIENT)
    (made.folder / "none.toml").write_text(CLIENT)
    assert 0 == made.here("apply", "new.toml").returncode
    assert "old.toml: serial: 6 is lower than 7, which was applied before" == made.refused("apply", "old.toml")
    assert made.refused("serve", CLIENTS_FILE="old.toml").startswith("old.toml: serial: 6 is lower than 7")
    assert made.refused("apply", "none.toml").startswith("none.toml: serial: missing")


# ---------------------------------------------------------------- a running server


def test_what_is_wrong_at_a_hangup_is_one_log_line_and_changes_nothing(own_server: Server) -> None:
    """SIGHUP reads certificate, key ring and clients file again; the server serves on with what it had."""
    grant = own_server.issue("www")
    own_server.hangup(clients=clients_toml(more='[[client]]\nid = "new"\ncolour = "red"\n'))
    eventually(lambda: "event=reload_failed" in own_server.log(), what="the line about the clients file")
    lines = [line for line in own_server.log().splitlines() if "event=reload_failed" in line]
    assert 1 == len(lines)
    assert 'clients.toml: client \\"new\\": field colour: is unknown' in lines[0]

    own_server.keys_file.chmod(0o644)
    own_server.hangup(clients=clients_toml())
    eventually(lambda: 2 == own_server.log().count("event=reload_failed"), what="the line about the key ring")
    own_server.keys_file.chmod(0o600)

    kept = own_server.keys_file.read_bytes()
    other = Place(own_server.folder / "other")
    assert 0 == other.here("init").returncode
    own_server.keys_file.write_bytes(Path(other.settings["KEYS_FILE"]).read_bytes())
    own_server.hangup()
    eventually(lambda: "this is another key ring" in own_server.log(), what="the line about the other ring")
    own_server.keys_file.write_bytes(kept)
    assert 200 == own_server.refresh("www", grant.refresh_token).status
