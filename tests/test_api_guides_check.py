"""What the guide for operators gives an auditor: the record is checked, and told, with nothing of ours."""

import gzip
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest

from tests.archived_twins import lived
from tests.archives import archive, reopened
from tests.places import Place
from tests.server_process import PROJECT
from tests.servers import clients_toml

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("made_small")]

GUIDE = (PROJECT / "api" / "docs" / "operating.md").read_text("utf-8")
SCRIPT = re.compile(r"^    cat > check\.py <<'END'\n(.*?)^    END\n", re.DOTALL | re.MULTILINE)
HELD = re.compile(r"^    (AT=.*?)\n\n", re.DOTALL | re.MULTILINE)
PRINTS = re.compile(r"^    (G=grant:\w+\n.*?\| jq -cs .*?)$", re.DOTALL | re.MULTILINE)


def blocks(pattern: re.Pattern[str]) -> Iterator[str]:
    yield from map(dedent, pattern.findall(GUIDE))


def check(database: Path) -> tuple[int, list[str]]:
    """Run what the guide prints, by a Python that finds no package of this house; its exit code and its lines."""
    (script,) = blocks(SCRIPT)
    (database.parent / "check.py").write_text(script, "utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "check.py", database.name],
        cwd=database.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "" == done.stderr
    return done.returncode, done.stdout.splitlines()


def change(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        assert 1 == connection.execute(statement).rowcount


async def test_the_script_finds_what_was_altered_and_nothing_else(tmp_path: Path) -> None:
    """Of an archived ledger, part of it withheld: nothing; then an event altered, one gone, a segment damaged."""
    folder = tmp_path / "ledger"
    _, clock = await lived(folder, 9)
    database = folder / "ledger.db"
    async with reopened(folder, clock, "archiver") as opened:
        report = await archive(opened, withhold_before=clock.now + 1)
    assert report.withheld
    code, said = check(database)
    assert 0 == code, said
    assert re.fullmatch(r"\d+ events checked, 0 faults", said[0])

    change(database, """UPDATE events SET body = replace(body, '"at":"2', '"at":"3') WHERE position = 1""")
    change(database, "DELETE FROM events WHERE position = (SELECT max(position) FROM events WHERE v > 1)")
    code, said = check(database)
    assert 1 == code
    assert 1 == sum(line.endswith(": altered") for line in said)
    assert 1 == sum(line.endswith(": gone") for line in said)

    segment = next((folder / "ledger.db.archive").glob("*.gz"))
    segment.write_bytes(segment.read_bytes()[:-9])
    code, said = check(database)
    assert 1 == code
    assert any(line.startswith(f"{segment.name}: ") for line in said)


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("sqlite3")), reason="no jq or no sqlite3 here")
async def test_the_events_of_a_grant_are_printed_as_they_were_stored(tmp_path: Path) -> None:
    """Those in segments and those in the database, each once and in order."""
    folder = tmp_path / "ledger"
    given, clock = await lived(folder, 9)
    grant_id = max(given.refresh, key=lambda one: len(given.refresh[one]))
    async with reopened(folder, clock, "archiver") as opened:
        with opened.store.reader() as reads:
            stored = [event.body for event in reads.events(f"grant:{grant_id}", 1, 1_000_000)]
        await archive(opened)
    assert any(grant_id.encode() in gzip.decompress(one.read_bytes()) for one in folder.glob("*.archive/*.gz"))
    (command,) = blocks(PRINTS)
    command = command.replace("0190f3b4a1c27def8123456789abcdef", grant_id).replace("token-ledger.db", "ledger.db")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert stored == done.stdout.splitlines()


IN_SHORT_PAGES = f"""#!{sys.executable}
import sys
from api import cli
from api.cli import options

options.PAGE_MAX = 2
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.skipif(not shutil.which("jq"), reason="no jq here")
def test_the_list_of_who_held_a_scope_lacks_the_grant_that_cannot_be_told_and_no_other(place: Place) -> None:
    """Its first page may be told, and its state then with it, before a later one is found to be altered."""
    (place.folder / "clients.toml").write_text(clients_toml(), "utf-8")
    assert 0 == place.here("init").returncode
    assert 0 == place.here("apply", "clients.toml").returncode
    issued = [place.here("issue", "--client", "www", "--subject", name, "--scope", "read", "--json") for name in "abc"]
    grants = [json.loads(done.stdout)["grant_id"] for done in issued]
    for act in ("suspend", "reinstate", "suspend", "reinstate"):
        assert 0 == place.here("grant", act, grants[0]).returncode
    at = json.loads(place.here("grant", "history", grants[0], "--json").stdout)["events"][-1]["at"]
    change(
        place.folder / "token-ledger.db", """UPDATE events SET body = replace(body, '"at":"2', '"at":"3') WHERE v = 4"""
    )
    program = place.folder / "token-ledger"
    program.write_text(IN_SHORT_PAGES, "utf-8")
    program.chmod(0o700)
    (command,) = blocks(HELD)
    done = subprocess.run(
        ["bash", "-c", command.replace("2026-11-26T12:00:00Z", at).replace('index("write")', 'index("read")')],
        cwd=place.folder,
        env=place.environment() | {"PATH": f"{place.folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"grant:{grants[0]}/4: what is stored is not what was recorded" in done.stderr
    assert grants[1:] == [json.loads(line)["grant_id"] for line in done.stdout.splitlines()]
