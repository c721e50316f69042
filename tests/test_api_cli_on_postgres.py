"""Commands and server on PostgreSQL: `init` alone makes tables, the rest refuses in one line, answers are SQLite's."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from api.wiring import NO_DRIVER, NO_LEDGER
from tests.places import DAMAGED_AUTHORITY, Place
from tests.postgres import Server as Postgres
from tests.servers import Server, clients_toml

CLIENTS = """
[[client]]
id = "www"
secret = "Secr3t!"
scope = "read openid"
[[operator]]
name = "login-app"
token = "a-token-that-is-long-enough-for-an-operator"
roles = ["issuer"]
"""


@pytest.fixture
def there(place: Place, postgres_url: str, postgres: Postgres) -> Place:
    """An empty folder, and an empty database reached with a password."""
    place.settings["DATABASE_URL"] = postgres.over_tcp(postgres_url)
    return place


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert 0 == done.returncode, done
    return done.stdout


# ---------------------------------------------------------------- what is not there


def test_without_tables_all_but_init_refuse_in_one_line(there: Place, postgres: Postgres) -> None:
    """Workers never make tables: a wrong URL must not become a second, empty ledger."""
    (there.folder / "clients.toml").write_text(CLIENTS)
    where = rf"PostgreSQL database ledger_\d+ on 127.0.0.1:{postgres.port}"
    for command in (("serve",), ("rebuild",)):
        assert re.fullmatch(f"{where}: {re.escape(NO_LEDGER)}", there.refused(*command))
    assert {"clients.toml"} == set(there.files())


def test_init_makes_tables_and_is_safe_to_repeat(there: Place, postgres: Postgres) -> None:
    """Key ring and database, once; with another ring or none nothing is changed."""
    said = told(there.run("init"))
    where = rf"PostgreSQL database ledger_\d+ on 127.0.0.1:{postgres.port}"
    assert re.search(rf"key ring .*: created\n{where}: created\n", said)
    ring = (there.folder / "token-ledger.keys").read_bytes()
    again = told(there.run("init"))
    assert 2 == again.count("there already, unchanged")
    assert again.endswith("; its functions are those of this release\n")
    assert ring == (there.folder / "token-ledger.keys").read_bytes()

    (there.folder / "token-ledger.keys").unlink()
    for command in ("init", "grants"):
        assert there.refused(command).endswith("works with its own alone: put it back")
    other = Place(there.folder / "other")
    told(other.here("init"))
    shutil.copy(other.folder / "token-ledger.keys", there.folder)
    for command in ("init", "serve"):
        assert "belongs to another key ring" in there.refused(command)


def test_what_cannot_be_used_is_one_line_without_the_password(there: Place, postgres: Postgres) -> None:
    """Wrong password, no such database, no such server, a URL that is none, a server that would lose what it said."""
    url = there.settings["DATABASE_URL"]
    wrong = url.replace(postgres.password, "a-canary")
    assert 'password authentication failed for user "postgres"' in there.refused("serve", DATABASE_URL=wrong)
    for broken in ("postgresql://me:a-canary@127.0.0.1:1/x", "postgresql://a-canary@x@y"):
        line = there.refused("grants", DATABASE_URL=broken)
        assert "a-canary" not in line.replace('for user "a-canary"', "")
    told(there.here("init"))
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    line = there.refused("serve")
    assert "synchronous_commit is off" in line
    assert postgres.password not in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_the_store_takes_nothing_from_is_one_line(there: Place, workers: str) -> None:
    """It is open, and its first commit fails: exit code 2 and why, no traceback, no defect to be reported."""
    told(there.here("init"))
    with psycopg.connect(there.settings["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("ALTER TABLE events ADD CHECK (v < 0) NOT VALID")
    line = there.refused("serve", WORKERS=workers)
    assert re.fullmatch(r"PostgreSQL database \S+ on \S+: PostgreSQL failed: CheckViolation \(23514\)", line)


def test_without_the_driver_the_extra_is_named(there: Place) -> None:
    """A plain install lacks psycopg."""
    script = "import sys\nsys.modules['psycopg'] = None\nfrom api.cli import run\nsys.exit(run(['grants']))\n"
    done = subprocess.run(
        [sys.executable, "-c", script], env=there.environment(), capture_output=True, text=True, check=False
    )
    assert (2, f"token-ledger: {NO_DRIVER}\n") == (done.returncode, done.stderr)


def test_on_sqlite_the_driver_is_not_loaded(there: Place) -> None:
    """Whoever does not use PostgreSQL pays nothing for it, and needs nothing of it."""
    script = (
        "import sys\n"
        "import api.serving, api.wiring, api.cli.grants, ledger.recorders.library\n"
        "assert 'psycopg' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], env=there.environment(), check=True)


# ---------------------------------------------------------------- what is there


def test_commands_say_what_they_say_on_sqlite(there: Place, tmp_path: Path) -> None:
    """The same commands on both stores: the same words, but for ids, times, tokens and what each store's log keeps."""
    beside = Place(tmp_path / "sqlite")
    said: list[list[str]] = []
    of_the_log: list[str] = []
    for place in (beside, there):
        (place.folder / "clients.toml").write_text(CLIENTS)
        told(place.here("init"))
        lines = [told(place.here("apply", "clients.toml"))]
        issued = json.loads(
            told(place.here("issue", "--client", "www", "--subject", "ann", "--scope", "read", "--json"))
        )
        grant_id = issued["grant_id"]
        for command in (
            ("grants", "--json"),
            ("revoke", "--subject", "ann", "--reason", "asked to"),
            ("grant", "history", grant_id),
            ("erase", "--subject", "ann"),
            ("archive", "--after", "1"),
            ("rebuild",),
        ):
            lines.append(told(place.here(*command)))
            if command[0] == "erase":
                lines[-1], _, last = lines[-1].removesuffix("\n").rpartition("\n")
                of_the_log.append(last)
        lines.append(place.here("explain", stdin=issued["refresh_token"]).stdout)
        said.append([alike(line) for line in lines])
    assert said[0] == said[1]
    holds_not = "its write-ahead log does not hold it any more"
    holds = "PostgreSQL's write-ahead log and free places in its pages hold bytes of it until written over"
    assert [holds_not, holds] == of_the_log


def alike(text: str) -> str:
    """Ids, positions, times, hashes and tokens put to one spelling, and columns that they made wide."""
    tokens_and_hashes = (r"[ra]t1_[\w-]+", r"\b[0-9a-f]{32,64}\b")
    times_and_positions = (r"\d{4}-\d\d-\d\dT[\d:.]+Z", r'"cursor": ?"\d+"', r"\b\d{6,}\b")
    for pattern in (*tokens_and_hashes, *times_and_positions):
        text = re.sub(pattern, "…", text)
    return re.sub(r"[ ─-]+", " ", text)


def test_a_server_and_commands_beside_it(tmp_path: Path, postgres_url: str, postgres: Postgres) -> None:
    """Commands write the store themselves, while it is served; the password stands nowhere that others may look."""
    server = Server(tmp_path, clients=clients_toml(), settings={"DATABASE_URL": postgres.over_tcp(postgres_url)})
    server.secrets.append(postgres.password)
    server.by_command = True
    assert 0 == server.command("init").returncode
    server.start()
    try:
        assert server.process is not None
        title = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert postgres.password.encode() not in title
        grant = server.issue()
        answer = server.refresh("www", grant.refresh_token)
        assert 200 == answer.status
        done = server.command("grant", "revoke", grant.grant_id, "--reason", "seen enough")
        assert 0 == done.returncode, done
        after = server.refresh("www", answer.json()["refresh_token"])
        assert (400, "revoked_by_operator") == (after.status, after.json()["reason"])
        assert 0 == server.command("rebuild").returncode
        assert not list(tmp_path.glob("*.sock"))
        server.restart(kill=True)
        assert 200 == server.refresh("www", server.issue().refresh_token).status
    finally:
        server.stop()


def test_archiving_is_told_to_wait_while_another_process_does(there: Place) -> None:
    """One line and exit code 2; once that one was not heard of for a minute the next has its turn."""
    told(there.here("init"))
    with psycopg.connect(there.settings["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("UPDATE archiver SET holder = 'another', until = now() + interval '30 seconds'")
        assert "another process archives this store" in there.refused("archive", "--after", "1")
        connection.execute("UPDATE archiver SET until = now()")
    nothing = {"events": 0, "pieces": 0, "segments": 0, "bytes": 0, "foreign": 0, "withheld": 0}
    assert nothing == json.loads(told(there.run("archive", "--after", "1", "--json")))
    with psycopg.connect(there.settings["DATABASE_URL"]) as connection:
        assert [("",)] == connection.execute("SELECT holder FROM archiver").fetchall()


def test_what_was_altered_with_sql_is_named(there: Place) -> None:
    """I-14: an event that is another one, and one that is gone; no history with a hole is shown for the whole."""
    (there.folder / "clients.toml").write_text(CLIENTS)
    for command in (("init",), ("apply", "clients.toml")):
        told(there.here(*command))
    issued = json.loads(told(there.here("issue", "--client", "www", "--subject", "ann", "--scope", "read", "--json")))
    for act in ("suspend", "reinstate"):
        told(there.here("grant", act, issued["grant_id"]))
    with psycopg.connect(there.settings["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("UPDATE events SET body = replace(body, '[\"read\"]', '[\"rule\"]') WHERE v = 1")
        altered = there.run("rebuild")
        told_of = there.refused("grant", "history", issued["grant_id"])
        connection.execute("DELETE FROM events WHERE v = 2 AND body LIKE '%\"grant.suspended\"%'")
    name = f"grant:{issued['grant_id']}"
    assert (
        f"differed: table events, key {name}/2, column prev: it is not the hash of the bytes of {name}/1"
        in altered.stdout
    )
    assert "nothing healed" in altered.stdout.splitlines()[-1]
    assert f"{name}/1: what is stored is not what was recorded; rebuild names it" in told_of
    assert f"{name}: of versions 1 to 3 some are not in the store" in there.refused(
        "grant", "history", issued["grant_id"]
    )


def test_rebuild_heals_heads_without_which_nothing_opens(there: Place) -> None:
    """Who there is, and which keys, nobody can tell: every other command says so and what to do, in one line."""
    (there.folder / "clients.toml").write_text(CLIENTS)
    for command in (("init",), ("apply", "clients.toml")):
        told(there.here(*command))
    keys = told(there.here("keys", "list"))
    for damage in DAMAGED_AUTHORITY:
        with psycopg.connect(there.settings["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(damage.encode())
        refused = there.here("keys", "list")
        if "kezs" not in damage:  # here a head is found by its key
            assert (2, True) == (refused.returncode, "; rebuild " in refused.stderr), damage
        found = there.here("rebuild")
        assert (1, "") == (found.returncode, found.stderr), damage
        assert found.stdout.endswith(", healed by this run\n"), damage
        assert "every projection and snapshot equals" in told(there.here("rebuild"))
        assert keys == told(there.here("keys", "list"))


def test_rebuild_heals_what_was_altered(there: Place) -> None:
    """A row and a snapshot that no event made: named, healed in a transaction of its own, gone at the next run."""
    (there.folder / "clients.toml").write_text(CLIENTS)
    for command in (("init",), ("apply", "clients.toml")):
        told(there.here(*command))
    told(there.here("issue", "--client", "www", "--subject", "ann", "--scope", "read"))
    with psycopg.connect(there.settings["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("UPDATE current_tokens_v1 SET scope = 'all'")
        connection.execute("UPDATE streams SET state = '' WHERE name LIKE 'grant:%'")
    found = there.run("rebuild")
    assert (1, "") == (found.returncode, found.stderr)
    assert ["differed: table streams", "differed: table current_tokens_v1", "2 differences, healed by this run"] == [
        line.partition(",")[0] if "differed" in line else line for line in found.stdout.splitlines()
    ]
    assert "every projection and snapshot equals" in told(there.run("rebuild"))
