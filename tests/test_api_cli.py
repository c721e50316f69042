"""The command line itself: names, help, exit codes, one line for every error."""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
import pytest
from click.testing import CliRunner

from api import cli
from api.cli import grants, options
from tests.server_process import program

GROUPS: Mapping[str, list[str]] = {
    "grant": ["show", "history", "revoke", "suspend", "reinstate"],
    "keys": ["list", "rotate", "activate", "distrust"],
    "restore": ["acknowledge"],
}
COMMANDS = [[name] for name in cli.COMMANDS] + [[group, name] for group in GROUPS for name in GROUPS[group]]


def command(folder: Path, *arguments: str, stdin: bytes = b"", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a process of its own in a folder, with these settings and no others."""
    environment = {f"TOKEN_LEDGER_{name}": value for name, value in settings.items()}
    done = subprocess.run([*program(), *arguments], cwd=folder, env=environment, input=stdin, capture_output=True)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_commands_are_those_of_the_documentation() -> None:
    """A user finds each of them by its name."""
    expected = "demo serve init apply issue grants grant revoke hash explain reuse rebuild archive keys erase restore"
    assert expected == " ".join(cli.COMMANDS)
    root = click.Context(cli.token_ledger)
    for group, names in GROUPS.items():
        loaded = cli.token_ledger.get_command(root, group)
        assert isinstance(loaded, click.Group)
        assert set(names) == set(loaded.commands)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` says how to use it and exits 0, whatever the settings are."""
    assert 0 == cli.run([*arguments, "--help"])
    said = capsys.readouterr()
    assert said.out.startswith(f"Usage: token-ledger {' '.join(arguments)}")
    assert "" == said.err
    assert all(len(line) <= 100 for line in said.out.splitlines())


def test_the_list_of_commands_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """`token-ledger --help` is where a newcomer begins."""
    assert 0 == cli.run(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, (_, text) in cli.COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, text] for line in lines), name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["grants", "--colour"], "No such option"),
        (["grants", "--state", "asleep"], "'asleep' is not one of"),
        (["grant", "show"], "Missing argument 'ID'"),
        (["issue", "--client", "www"], "Missing option '--subject'"),
        (["keys", "activate", "256"], "256 is not in the range 1<=x<=255"),
        (["revoke", "--reason", "r"], "either --subject or --client"),
        (["revoke", "--reason", "r", "--client", "c", "--subject", "s"], "either --subject or --client"),
        (["hash", "Secr3t!"], "Got unexpected extra argument"),
        (["explain", "rt1_x"], "Got unexpected extra argument"),
        (["--config", "nowhere.toml", "grants"], "the settings file nowhere.toml cannot be read"),
        (["grants", "--config", "nowhere.toml"], "the settings file nowhere.toml cannot be read"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Standard error holds one line, standard output nothing."""
    monkeypatch.chdir(tmp_path)
    assert 2 == cli.run(arguments)
    said = capsys.readouterr()
    assert "" == said.out
    assert said.err.startswith("token-ledger: ")
    assert expected in said.err
    assert 1 == said.err.count("\n")


@pytest.mark.parametrize(
    ("arguments", "secret"),
    [
        (["hash", "Secr3t!"], "Secr3t!"),
        (["explain", f"rt1_{'A' * 72}"], "AAAA"),
        (["explain", "one", "two"], "two"),
        ([f"at1_{'A' * 72}"], "AAAA"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(
    arguments: list[str],
    secret: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What belonged on standard input: errors of commands end up in logs and mails (I-20)."""
    monkeypatch.chdir(tmp_path)
    assert 2 == cli.run(arguments)
    assert secret not in capsys.readouterr().err


def test_what_a_person_sent_never_ends_the_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    """One fact, one line: control characters and separators are escaped."""
    assert 2 == cli.run(["gr\nants\u2028"])
    assert "token-ledger: No such command 'gr\\nants\\u2028' (see token-ledger --help)\n" == capsys.readouterr().err


def test_a_fault_of_ours_is_one_line_that_says_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback, and nothing of what the fault held: it may be a secret."""

    def broken(_: click.Context, name: str) -> click.Command:
        raise ValueError("a secret")

    monkeypatch.setattr(cli.Commands, "get_command", lambda self, ctx, name: broken(ctx, name))
    assert 2 == cli.run(["grants"])
    err = capsys.readouterr().err
    assert err.startswith("token-ledger: internal error: ValueError at test_api_cli.py:")
    assert "secret" not in err


def test_settings_come_from_a_file_before_or_after_the_command(tmp_path: Path) -> None:
    """The environment wins over the file."""
    (tmp_path / "a.toml").write_text('database_url = "sqlite:///a.db"\nkeys_file = "a.keys"\n')
    assert 0 == command(tmp_path, "init", "--config", "a.toml").returncode
    # The ring has been used beside another log, which its head file would say.
    other = command(tmp_path, "--config", "a.toml", "init", DATABASE_URL="sqlite:///b.db", HEAD_FILE="off")
    assert 0 == other.returncode
    assert {"a.db", "b.db", "a.keys", "a.keys.head", "a.toml"} == {
        path.name for path in tmp_path.iterdir() if path.suffix != ".lock"
    }


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`token-ledger … | head -1` ends in silence."""
    shell = f"{' '.join(program())} --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "" == done.stderr
    assert done.stdout.startswith("Usage: ")


def test_a_command_loads_only_what_it_needs() -> None:
    """Starting is most of a command's time: no web server where none is asked for."""
    code = "import sys; from api import cli; cli.run(['grants', '--help']); print([m for m in %r if m in sys.modules])"
    heavy = ["uvicorn", "starlette", "cryptography", "asyncio.events", "eventsourcing", "ssl", "prometheus_client"]
    done = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.splitlines()[-1]


def test_a_long_history_asks_for_the_state_then_with_its_first_page_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer to it may be a replay from the first event: asked with each page that would be work without end."""
    questions = []

    def answered(local: object, method: str, path: str, **more: object) -> Any:
        query = parse_qs(urlsplit(path).query)
        questions.append(query.get("at"))
        number = int(query.get("cursor", ["0"])[0]) + 1
        page: dict[str, Any] = {"grant_id": "0" * 32, "events": [{"v": number}], "cursor": str(number)}
        page |= {"next_cursor": str(number)} if number < 3 else {}
        return page | ({"state": {"status": "active"}} if "at" in query else {})

    monkeypatch.setattr(options, "ask", answered)
    monkeypatch.setattr(grants, "reached", nullcontext)
    done = CliRunner().invoke(grants.grant, ["history", "0" * 32, "--at", "2026-11-25T10:00:00Z", "--json"])
    assert [["2026-11-25T10:00:00Z"], None, None] == questions
    assert {
        "grant_id": "0" * 32,
        "events": [{"v": 1}, {"v": 2}, {"v": 3}],
        "cursor": "3",
        "state": {"status": "active"},
    } == json.loads(done.stdout)
