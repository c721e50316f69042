"""Commands where no server runs: each opens the file itself, does what the endpoint does, and gives the file back."""

import json
import os
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.cli import init
from ledger.keyring import KeyRing
from ledger.owner import OwnerLock
from tests.commands import run_here
from tests.places import DAMAGED_AUTHORITY, Place
from tests.server_process import program
from tests.servers import clients_toml
from tests.wire import Json


def asked(place: Place, *arguments: str, stdin: str = "", exit_code: int = 0) -> Json:
    """What a command prints for programs."""
    done = run_here((*arguments, "--json"), place.folder, place.environment(), stdin)
    assert (exit_code, "") == (done.exit_code, done.err), done
    return json.loads(done.out)


@pytest.fixture
def known(made: Place) -> Place:
    """A ledger that knows the clients of the tests."""
    (made.folder / "clients.toml").write_text(clients_toml())
    assert 0 == run_here(("apply", "clients.toml"), made.folder, made.environment()).exit_code
    return made


def test_init_makes_a_ledger_and_is_safe_to_repeat(place: Place) -> None:
    """Key ring and database are there, for their owner alone; a second time nothing changes."""
    first = place.run("init")
    assert (0, "") == (first.returncode, first.stderr)
    assert 2 == first.stdout.count("created")
    assert all(
        0o600 == (place.folder / name).stat().st_mode & 0o777 for name in ("token-ledger.db", "token-ledger.keys")
    )
    ring = (place.folder / "token-ledger.keys").read_bytes()
    second = place.run("init")
    assert (0, "") == (second.returncode, second.stderr)
    assert 2 == second.stdout.count("there already, unchanged")
    assert ring == (place.folder / "token-ledger.keys").read_bytes()


def test_init_goes_on_after_a_crash_between_key_ring_and_database(place: Place) -> None:
    """A ring without a database is taken for the next one, never replaced."""
    assert 0 == place.here("init").returncode
    ring = (place.folder / "token-ledger.keys").read_bytes()
    for path in place.folder.glob("token-ledger.db*"):
        path.unlink()
    (place.folder / "token-ledger.keys.head").unlink()
    assert 0 == place.here("init").returncode
    assert ring == (place.folder / "token-ledger.keys").read_bytes()
    assert [] == asked(place, "grants")["grants"]


def test_of_several_inits_at_once_one_makes_the_ledger(place: Place) -> None:
    """The others find it there: who sets up machines may start one on each."""
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: place.run("init"), range(4)))
    assert {(0, "")} == {(each.returncode, each.stderr) for each in done}
    assert any("back up the database together with the key ring" in each.stdout for each in done)
    assert [] == asked(place, "grants")["grants"]


def test_init_waits_for_whoever_has_the_database_open(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment; who keeps it is named."""
    assert 0 == place.here("init").returncode
    with OwnerLock.take(place.folder / "token-ledger.db") as owner:
        monkeypatch.setattr(init, "OWNER_SECONDS_MAX", 0.1)
        refused = place.here("init")
        assert (2, True) == (refused.returncode, "already has the database open" in refused.stderr)
        monkeypatch.undo()
        monkeypatch.setattr(time, "sleep", lambda _: owner.release())
        assert 2 == place.here("init").stdout.count("there already, unchanged")


def test_init_takes_the_key_ring_of_another_that_was_quicker(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It found none, and then there was one: never two rings for one database."""
    create = KeyRing.create

    def late(path: Path) -> KeyRing:
        create(path)
        return create(path)

    monkeypatch.setattr(KeyRing, "create", late)
    done = place.here("init")
    assert (0, "") == (done.returncode, done.stderr)
    assert "token-ledger.keys: there already, unchanged\n" in done.stdout
    assert 0 == place.here("grants").returncode


def test_a_whole_day_without_a_server(known: Place) -> None:
    """Issue, look, suspend, reinstate, explain, end, erase: one after the other on the file."""
    issued = asked(known, "issue", "--client", "www", "--subject", "nora", "--scope", "read openid")
    grant_id = issued["grant_id"]
    assert "current" == asked(known, "explain", stdin=issued["refresh_token"])["verdict"]
    assert "suspended" == asked(known, "grant", "suspend", grant_id)["status"]
    assert "suspended" == asked(known, "explain", stdin=issued["refresh_token"], exit_code=1)["verdict"]
    assert "active" == asked(known, "grant", "reinstate", grant_id)["status"]
    assert [grant_id] == [each["grant_id"] for each in asked(known, "grants", "--subject", "nora")["grants"]]
    assert asked(known, "revoke", "--subject", "nora", "--reason", "left")["known"]
    history = asked(known, "grant", "history", grant_id)["events"]
    expected = ["grant.issued", "grant.suspended", "grant.reinstated", "subject.revoked"]
    assert expected == [event["topic"] for event in history]
    assert "revoked" == asked(known, "explain", stdin=issued["refresh_token"], exit_code=1)["verdict"]
    assert {"known": True} == asked(known, "erase", "--subject", "nora")
    assert not any(b"nora" in content for content in known.files().values())
    assert [] == asked(known, "reuse")["incidents"]
    assert {"differences": []} == asked(known, "rebuild")


@pytest.mark.parametrize("client_id", ["app@corp", "sp ace", "a/b?c#d%41"])
def test_a_client_of_any_lawful_id_can_be_revoked(made: Place, client_id: str) -> None:
    """An id may hold what a URL holds encoded only."""
    (made.folder / "clients.toml").write_text(f'[[client]]\nid = "{client_id}"\nauth = "none"\nscope = "read"\n')
    asked(made, "apply", "clients.toml")
    grant_id = asked(made, "issue", "--client", client_id, "--subject", "ann", "--scope", "read")["grant_id"]
    assert client_id == asked(made, "revoke", "--client", client_id, "--reason", "r")["client_id"]
    assert "revoked" == asked(made, "grant", "show", grant_id)["status"]


def test_archiving_asks_after_how_many_days_and_says_what_it_came_to(known: Place) -> None:
    """Wrong use is exit code 2; a file where nothing is old enough stays as it is."""
    refused = known.here("archive")
    assert (2, "say --after DAYS, or set TOKEN_LEDGER_ARCHIVE_AFTER_DAYS\n") == (
        refused.returncode,
        refused.stderr.partition(": ")[2],
    )
    assert 2 == known.here("archive", "--after", "0").returncode
    nothing = {"events": 0, "pieces": 0, "segments": 0, "bytes": 0, "foreign": 0, "withheld": 0}
    assert nothing == asked(known, "archive", "--after", "1")
    assert "moved: 0 events in 0 pieces\nsegments: 0, 0 bytes\n" == known.here("archive", "--after", "36500").stdout


def test_keys_change_without_a_server(known: Place) -> None:
    """The ring's file holds the new key before the event names it."""
    key_id = known.here("keys", "rotate").stdout.splitlines()[-1]
    assert "2" == key_id
    assert "active" == asked(known, "keys", "activate", key_id)["state"]
    states = {key["id"]: key["state"] for key in asked(known, "keys", "list")["keys"]}
    assert {1: "verifying", 2: "active"} == states
    issued = asked(known, "issue", "--client", "www", "--subject", "olaf", "--scope", "read")
    assert "current" == asked(known, "explain", stdin=issued["refresh_token"])["verdict"]


def test_rebuild_names_what_differed_and_heals_it(known: Place) -> None:
    """I-13: exit code 1 with table, key and column; the next run exits 0."""
    issued = asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'current_tokens_v%'"
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        (table,) = connection.execute(tables).fetchone()
        connection.execute(f"UPDATE {table} SET client_epoch = 7")
    connection.close()
    found = known.run("rebuild")
    assert (1, "") == (found.returncode, found.stderr)
    first, last = found.stdout.splitlines()
    assert first.startswith(f"differed: table {table}, key ")
    assert first.endswith(", column client_epoch")
    assert "1 difference, healed by this run" == last
    assert {"differences": []} == asked(known, "rebuild")
    assert 0 == asked(known, "grant", "show", issued["grant_id"])["generation"]


def test_rebuild_names_a_private_row_that_was_altered(known: Place) -> None:
    """Also whose name it is, which needs the key ring; what it holds is not shown."""
    asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute("UPDATE private_subjects SET subject = 'mallory'")
    connection.close()
    for _ in range(2):
        found = known.here("rebuild")
        assert (1, "") == (found.returncode, found.stderr)
        first, last = found.stdout.splitlines()
        assert first.startswith("differed: table private_subjects, key ")
        assert first.endswith(", column subject: it is not what was recorded")
        assert "healed by this run but for private rows" in last


def test_rebuild_names_a_living_grant_whose_nonce_is_gone(known: Place) -> None:
    """Nobody could say why it is refused."""
    issued = asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")
    assert {"differences": []} == asked(known, "rebuild")
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute("DELETE FROM private_grants")
    connection.close()
    found = known.here("rebuild")
    assert (1, "") == (found.returncode, found.stderr)
    line, last = found.stdout.splitlines()
    expected = f"table private_grants, key grant:{issued['grant_id']}, column nonce: it is gone, and the grant lives"
    assert f"differed: {expected}" == line
    assert last.endswith("a backup has them")


def test_rebuild_names_a_damaged_file_and_replays_nothing(known: Place) -> None:
    """What no table shows, an index that lacks a row, is damage too: exit code 1, each time."""
    asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")
    path = known.folder / "token-ledger.db"
    with sqlite3.connect(path) as connection:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'current_tokens_v1_client'"
        page, size = connection.execute(sql).fetchone()[0], connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    content = path.read_bytes()
    at = content.index(b"www", size * (page - 1))
    path.write_bytes(content[:at] + b"wwv" + content[at + 3 :])
    for _ in range(2):
        found = known.here("rebuild")
        assert (1, "") == (found.returncode, found.stderr)
        *lines, last = found.stdout.splitlines()
        assert "differed: table file, key database, column page: row 1 missing from index" in lines[0]
        assert "nothing replayed or healed: the file of the database is damaged" in last


@pytest.mark.parametrize("damage", ["DELETE FROM streams WHERE {}", "UPDATE streams SET name = 'subject:x' WHERE {}"])
def test_a_person_who_was_ended_is_not_back_where_their_head_is_gone(known: Place, damage: str) -> None:
    """Without it nothing says that they were; what was ended would be served from the next start on."""
    issued = asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")
    asked(known, "revoke", "--subject", "pia", "--reason", "left")
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        assert connection.execute(damage.format("name LIKE 'subject:%'")).rowcount == 1
    connection.close()
    for command in (("keys", "list"), ("init",)):
        found = known.here(*command)
        assert (2, 1) == (found.returncode, found.stderr.count("\n"))
        assert "there are events that no stream's head speaks of; rebuild puts it back" in found.stderr
    assert known.here("rebuild").stdout.endswith(", healed by this run\n")
    assert "revoked" == asked(known, "grant", "show", issued["grant_id"])["status"]


@pytest.mark.parametrize("damage", DAMAGED_AUTHORITY)
def test_rebuild_heals_heads_without_which_nothing_opens(known: Place, damage: str) -> None:
    """Who there is, and which keys, nobody can tell: every other command says so and what to do, in one line."""
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute(damage)
    connection.close()
    for command in (("keys", "list"), ("init",)):
        found = known.here(*command)
        assert (2, 1) == (found.returncode, found.stderr.count("\n"))
        assert "; rebuild " in found.stderr
    found = known.here("rebuild")
    assert (1, "") == (found.returncode, found.stderr)
    assert found.stdout.endswith(", healed by this run\n")
    assert {"differences": []} == asked(known, "rebuild")
    assert [(1, "active")] == [(key["id"], key["state"]) for key in asked(known, "keys", "list")["keys"]]
    asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE current_tokens_v1 SET scope = CAST(x'f265616420' AS TEXT)",
        "UPDATE current_tokens_v1 SET grant_id = CAST(x'ff' AS TEXT)",
        "UPDATE reuse_incidents_v1 SET label = CAST(x'e6' AS TEXT)",
        "UPDATE streams SET name = CAST(x'636c69656e743af7' AS TEXT) WHERE name = 'client:www'",
        "UPDATE streams SET name = CAST(x'ff' AS TEXT) WHERE name LIKE 'grant:%'",
    ],
)
def test_a_text_that_is_none_any_more_is_named_and_healed(known: Place, damage: str) -> None:
    """One flipped bit, and SQLite gives the text to nobody: a rebuild reads it all the same."""
    issued = asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute("INSERT INTO reuse_incidents_v1 VALUES (7, 'g', 'www', 'fork')")
        connection.execute(damage)
    connection.close()
    if "scope" in damage:
        assert known.refused("grants").endswith("a text in the database is not as it was written; rebuild names it")
    found = known.here("rebuild")
    assert (1, "") == (found.returncode, found.stderr)
    assert found.stdout.endswith(", healed by this run\n")
    assert damage.split()[1] in found.stdout
    assert {"differences": []} == asked(known, "rebuild")
    assert [issued["grant_id"]] == [each["grant_id"] for each in asked(known, "grants")["grants"]]


def test_an_altered_event_without_which_nothing_opens_is_named(known: Place) -> None:
    """A client of whom neither snapshot nor event is what it was: a rebuild is still there to tell which."""
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute("UPDATE streams SET state = x'00'")
        connection.execute("UPDATE events SET body = replace(body, 'client.registered', 'client.unheard_of')")
    connection.close()
    found = known.here("grants")
    assert (2, 1) == (found.returncode, found.stderr.count("\n"))
    assert found.stderr.endswith("/1: what is stored is not what was recorded; rebuild names it\n")
    found = known.here("rebuild")
    assert (1, "") == (found.returncode, found.stderr)
    assert "key client:www/1, column body: the stored bytes are no event" in found.stdout
    assert "nothing healed" in found.stdout


def test_an_altered_event_is_named_and_nothing_is_called_healed(known: Place) -> None:
    """I-14: with what is wrong, and again by the next run; what is derived from it is left alone."""
    issued = asked(known, "issue", "--client", "www", "--subject", "pia", "--scope", "read")
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute(
            "UPDATE events SET body = replace(body, '[\"read\"]', '[\"rule\"]') WHERE body LIKE '%issued%'"
        )
    connection.close()
    for _ in range(2):
        found = known.run("rebuild")
        assert (1, "") == (found.returncode, found.stderr)
        first, *_, last = found.stdout.splitlines()
        event = (
            f"differed: table events, key grant:{issued['grant_id']}/1, column body: the stored bytes do not hash to"
        )
        assert first.startswith(event)
        assert last.endswith(", nothing healed: events (table events) are not as they were recorded, a backup has them")
    assert asked(known, "rebuild", exit_code=1)["healed"] is False


def test_a_history_that_lacks_an_event_is_never_shown_as_whole(known: Place) -> None:
    """I-14: whoever asks is told what is not there; other grants, and the grant as it is, are told as ever."""
    issued, other = (
        asked(known, "issue", "--client", "www", "--subject", name, "--scope", "read") for name in ("pia", "rae")
    )
    asked(known, "grant", "suspend", issued["grant_id"])
    asked(known, "grant", "reinstate", issued["grant_id"])
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute("DELETE FROM events WHERE body LIKE '%\"grant.suspended\"%'")
    connection.close()
    done = known.here("grant", "history", issued["grant_id"])
    assert (2, "") == (done.returncode, done.stdout)
    expected = f"grant:{issued['grant_id']}: of versions 1 to 3 some are not in the store; rebuild names them"
    assert expected in done.stderr.splitlines()[-1]
    assert "active" == asked(known, "grant", "show", issued["grant_id"])["status"]
    assert 1 == len(asked(known, "grant", "history", other["grant_id"])["events"])
    assert f"grant:{issued['grant_id']}/3, column v" in known.run("rebuild").stdout


def test_a_history_with_an_altered_event_is_never_shown_as_what_was_recorded(known: Place) -> None:
    """I-14: neither the page with it nor a state that follows from it; the event is named, others are told as ever."""
    issued, other = (
        asked(known, "issue", "--client", "www", "--subject", name, "--scope", "read") for name in ("pia", "rae")
    )
    asked(known, "grant", "suspend", issued["grant_id"])
    at = asked(known, "grant", "history", issued["grant_id"])["events"][0]["at"]
    with sqlite3.connect(known.folder / "token-ledger.db") as connection:
        connection.execute("UPDATE events SET body = replace(body, '[\"read\"]', '[\"rule\"]') WHERE v = 1")
    connection.close()
    expected = f"grant:{issued['grant_id']}/1: what is stored is not what was recorded; rebuild names it"
    for more in ((), ("--at", at), ("--json",)):
        done = known.here("grant", "history", issued["grant_id"], *more)
        assert (2, "") == (done.returncode, done.stdout)
        assert expected in done.stderr.splitlines()[-1]
    assert 2 == known.here("grant", "history", other["grant_id"]).returncode
    assert "suspended" == asked(known, "grant", "show", issued["grant_id"])["status"]
    assert (
        f"column prev: it is not the hash of the bytes of grant:{issued['grant_id']}/1" in known.run("rebuild").stdout
    )


def test_a_restored_backup_is_served_only_after_it_was_acknowledged(known: Place) -> None:
    """I-23: what was lost is named, a new key signs, and what has to be repeated is said."""
    backup = (known.folder / "token-ledger.db").read_bytes()
    issued = asked(known, "issue", "--client", "www", "--subject", "quin", "--scope", "read")
    (known.folder / "token-ledger.db").write_bytes(backup)
    for arguments in (["grants"], ["issue", "--client", "www", "--subject", "q", "--scope", "read"]):
        done = known.here(*arguments)
        assert 2 == done.returncode, done
        assert "Traceback" not in done.stderr
    done = known.run("init")
    logged, said = done.stderr.splitlines()
    assert (2, 2) == (done.returncode, done.stdout.count("there already, unchanged"))
    assert " event=log_behind_head_file log=" in logged
    assert said.endswith("see `token-ledger restore acknowledge`")
    done = known.run("restore", "acknowledge")
    assert 0 == done.returncode, done
    assert "must be repeated" in done.stdout
    active = [key["id"] for key in asked(known, "keys", "list")["keys"] if key["state"] == "active"]
    assert [2] == active
    assert "unknown" == asked(known, "explain", stdin=issued["refresh_token"], exit_code=1)["verdict"]
    assert 1 == known.here("restore", "acknowledge").returncode


def test_commands_at_once_wait_for_one_another(known: Place) -> None:
    """One owner at a time: each of them gets its turn."""
    done: list[subprocess.CompletedProcess[str]] = []

    def issue(number: int) -> None:
        done.append(known.run("issue", "--client", "www", "--subject", f"s{number}", "--scope", "read", "--json"))

    threads = [threading.Thread(target=issue, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [0] * 4 == [each.returncode for each in done], done
    issued = {json.loads(each.stdout)["grant_id"] for each in done}
    assert issued == {each["grant_id"] for each in asked(known, "grants")["grants"]}


def test_a_database_under_a_relative_or_linked_path_is_the_same(known: Place, tmp_path: Path) -> None:
    """One file, one lock, one socket, whatever its name."""
    (tmp_path / "link").symlink_to(known.folder)
    linked = {"DATABASE_URL": f"sqlite:///{tmp_path / 'link' / 'token-ledger.db'}"}
    relative = {"DATABASE_URL": "sqlite:///token-ledger.db"}
    listed = [known.here("grants", "--json", **settings).stdout for settings in ({}, linked, relative)]
    assert 1 == len(set(listed))


def test_standard_output_is_for_the_answer_alone(known: Place) -> None:
    """A warning, as of a missing head file, is a log line on standard error."""
    (known.folder / "token-ledger.keys.head").unlink()
    done = known.run("grants", "--json")
    assert 0 == done.returncode
    assert [] == json.loads(done.stdout)["grants"]
    assert 1 == done.stderr.count("\n")
    assert "event=head_file_missing" in done.stderr


def test_a_pipe_that_closes_early_ends_a_list_in_silence(known: Place) -> None:
    """`token-ledger grants | head -1`."""
    environment = " ".join(f"TOKEN_LEDGER_{name}='{value}'" for name, value in known.settings.items())
    shell = f"{environment} {' '.join(program())} grants | true"
    done = subprocess.run(["bash", "-c", shell], cwd=known.folder, capture_output=True, text=True, check=False)
    assert "" == done.stderr


@pytest.mark.parametrize(
    "command", ["grants --client", "grant show", "revoke --reason r --client", "revoke --reason r --subject"]
)
def test_an_argument_that_is_no_text_is_one_line(known: Place, command: str) -> None:
    """Python hands over bytes that are no UTF-8 as something that no request can carry."""
    said = known.here(*command.split(), "\udcff")
    assert (2, "") == (said.returncode, said.stdout)
    assert said.stderr in (
        "token-ledger: an argument is not UTF-8 text\n",
        "token-ledger: the body is not JSON (RFC 8259) in UTF-8\n",
    )


@pytest.mark.parametrize("key", ["\u20ac", "\udcff", "a\nb"])
def test_an_idempotency_key_that_no_header_can_carry_is_one_line(known: Place, key: str) -> None:
    """It is refused before anything is sent."""
    issue = ("issue", "--client", "www", "--subject", "ann", "--scope", "read", "--idempotency-key")
    said = known.here(*issue, key)
    assert (2, "") == (said.returncode, said.stdout)
    assert "token-ledger: --idempotency-key is 1 to 128 printable ASCII characters\n" == said.stderr
    assert 0 == known.here(*issue, "a b").returncode


@pytest.mark.parametrize("arguments", [("grants",), ("rebuild",), ("--help",)])
def test_whoever_stops_reading_is_told_by_the_exit_code(known: Place, arguments: tuple[str, ...]) -> None:
    """Neither 0, for not all was told, nor 1, for what was asked about may well be so."""
    end, pipe = os.pipe()
    os.close(end)
    with open(pipe, "wb") as nobody:
        process = [*program(), *arguments]
        done = subprocess.run(process, env=known.environment(), stdout=nobody, stderr=subprocess.PIPE, check=False)
    assert (141, b"") == (done.returncode, done.stderr)


def test_an_error_that_nobody_reads_keeps_its_code_and_a_completed_line_is_no_error(tmp_path: Path) -> None:
    """1 would say that a verification failed, and 141 that somebody stopped reading."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*program(), "nonsense"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=writing, check=False)
    os.close(writing)
    assert 2 == done.returncode
    asked = {"_TOKEN_LEDGER_COMPLETE": "bash_complete", "COMP_WORDS": "token-ledger re", "COMP_CWORD": "1"}
    done = subprocess.run([*program()], cwd=tmp_path, env=os.environ | asked, capture_output=True, check=False)
    assert (0, b"") == (done.returncode, done.stderr)
    assert b"rebuild" in done.stdout
