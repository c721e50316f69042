"""The demo, as the process that a newcomer starts, and its lines as a newcomer pastes them."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.cli.demo import itself
from tests.server_process import PROJECT, program, run_program
from tests.terminals import on_a_terminal
from tests.wire import Json

STEPS = (
    "A person signs in",
    "Rotation",
    "A lost answer, retried",
    "Narrowing",
    "Restoring",
    "Reuse is detected",
    "The history that this left",
)
NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no cURL here to paste the lines into")
SECONDS_MAX = 40.0


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: the demo's socket lies in it, and the address of one holds a hundred bytes."""
    return tmp_path_factory.mktemp("demo")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What a newcomer has set: nothing of ours. Temporary folders go into the test's own."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TOKEN_LEDGER_")}
    path = os.pathsep.join([str(PROJECT), *filter(None, [inherited.get("PYTHONPATH")])])
    return inherited | {"PYTHONPATH": path, "TMPDIR": str(folder)} | more


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that goes on serving, and what it has printed until then; it is ended where the test did not."""
    with subprocess.Popen(
        [*program(), "demo", "--port", "0"], cwd=folder, env=environment(folder), stdout=-1, stderr=-1, text=True
    ) as process:
        try:
            assert process.stdout is not None
            printed = ""
            for line in process.stdout:
                printed += line
                if line.startswith("Serving "):
                    break
            yield process, printed
        finally:
            if process.poll() is None:
                process.kill()


def once(folder: Path, port: str = "0") -> subprocess.CompletedProcess[str]:
    """The demo's walk alone, to its end."""
    done = run_program(("demo", "--once", "--port", port), folder, environment(folder), b"", SECONDS_MAX)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def too_wide(printed: str, folder: Path) -> list[str]:
    """The lines that a terminal of 100 columns would break, were the temporary folder an everyday one."""
    return [line for line in printed.replace(str(folder), "/tmp").splitlines() if len(line) > 100]


def pasted(printed: str, comment: str) -> Json:
    """Paste the cURL line under a comment into a shell; the JSON that it prints."""
    after = printed.split(f"# {comment}\n", 1)[1]
    command = re.match(r"(?:.*\\\n)*.*\n", after)
    assert command is not None
    assert command[0].startswith("curl ")
    done = subprocess.run(["bash", "-c", command[0]], capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


def test_once_walks_through_and_exits_0(tmp_path: Path) -> None:
    """Every step is there in order, no line is too wide, nothing is left behind; plain text where no terminal is."""
    done = once(tmp_path)
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    places = [done.stdout.index(f"\n{number}  {title}\n") for number, title in enumerate(STEPS)]
    assert places == sorted(places)
    assert [] == too_wide(done.stdout, tmp_path)
    assert "\x1b" not in done.stdout
    assert "Every step came out as it should.\n" == done.stdout[-34:]
    assert [] == list(tmp_path.iterdir())


def test_once_shows_real_answers(tmp_path: Path) -> None:
    """Rotation gives another token, the retry the lost one, narrowing and restoring their scopes, reuse its refusal."""
    done = once(tmp_path)
    assert 0 == done.returncode, done
    printed = done.stdout
    tokens = re.findall(r'^(R\d) "refresh_token": "(rt1_[\w-]{72})"$', printed, re.MULTILINE)
    assert ["R0", "R1", "R2", "R3", "R4"] == [name for name, _ in tokens]
    assert 5 == len({token for _, token in tokens})
    presented = re.findall(r"^  -d refresh_token=(rt1_[\w-]{72})$", printed, re.MULTILINE)
    by_name = {token: name for name, token in tokens}
    assert ["R0", "R1", "R1", "R2", "R3", "R0", "R4"] == [by_name[token] for token in presented]
    scopes = re.findall(r'^   "scope": "([^"]*)"$', printed, re.MULTILINE)
    assert ["read openid profile"] * 3 + ["read profile", "read openid profile"] == scopes
    assert 2 == printed.count('   "reason": "reuse_detected"\n')
    assert 14 <= len(re.findall(r"^ {1,2}\d+  \d\d:\d\d:\d\d\.\d{3}  \w+ ", printed, re.MULTILINE)) <= 15


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ('"stable"', "the refresh token is the same as before, and it should have been rotated"),
        ('"strict"', "the answer is 400, and 200 is due"),
        ('{ scope_mode = "ratchet" }', "the answer is 400, and 200 is due"),
        ('{ scope_mode = "rfc6749" }', "the history holds other events than it should"),
        ('{ on_reuse = "alert" }', 'the answer\'s reason is not "reuse_detected", as it should be'),
        ('{ on_reuse = "suspend" }', "the history holds other events than it should"),
    ],
)
def test_a_walk_that_goes_another_way_exits_1(tmp_path: Path, policy: str, expected: str) -> None:
    """The broken twins: a ledger whose rules are others is no demo of these; one line says where it went astray."""
    code = (
        "import sys; from api.cli import demo, run; "
        f"demo.CLIENTS_FILE = demo.CLIENTS_FILE.replace('\"standard\"', {policy!r}); "
        "sys.exit(run(['demo', '--once', '--port', '0']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, timeout=SECONDS_MAX
    )
    assert 1 == done.returncode, done.stderr
    assert done.stderr.startswith(f"token-ledger: {expected}"), done.stderr
    assert 1 == done.stderr.count("\n")
    assert "Every step came out" not in done.stdout


@NEEDS_CURL
def test_what_it_prints_to_paste_shows_what_it_says(tmp_path: Path) -> None:
    """The live line twice: one successor. The retired token: a reuse caught, and its grant's current token dead."""
    with serving(tmp_path) as (process, printed):
        first, second = (pasted(printed, "a live token: paste me twice") for _ in range(2))
        assert first["refresh_token"] == second["refresh_token"]
        assert first["access_token"] == second["access_token"]
        caught = pasted(printed, "a retired token")
        assert ("invalid_grant", "reuse_detected") == (caught["error"], caught["reason"])
        assert caught == pasted(printed, "the current token of the same grant")
        assert process.stdout is not None
        assert " event=reuse_detected " in process.stdout.readline()
        history = pasted(printed, "an auditor asks what happened")
        assert "grant.revoked" in [event["topic"] for event in history["events"]]
        assert [] == too_wide(printed, tmp_path)
        process.terminate()
        assert 0 == process.wait(SECONDS_MAX)
        assert [] == list(tmp_path.iterdir())


@NEEDS_CURL
def test_the_tutorials_request_works_as_it_is_typed(tmp_path: Path) -> None:
    """RFC 6749 6: five members, and a refresh token that differs from the one sent."""
    with serving(tmp_path) as (_, printed):
        url = re.search(r"^Serving (\S+) until", printed, re.MULTILINE)
        assert url is not None
        token = pasted(printed, "the login application asks for a grant")["refresh_token"]
        line = (
            f"curl -k {url[1]}/oauth/v2/oauth-token -d grant_type=refresh_token -d client_id=www"
            f" -d 'client_secret=Secr3t!' -d refresh_token={token}"
        )
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=SECONDS_MAX, check=True)
        body = json.loads(done.stdout)
        assert {"access_token", "refresh_token", "scope", "token_type", "expires_in"} <= set(body)
        assert token != body["refresh_token"]
        assert ("bearer", 300, "read openid profile") == (body["token_type"].lower(), body["expires_in"], body["scope"])


def test_commands_work_beside_it(tmp_path: Path) -> None:
    """The printed settings lead other commands to it."""
    with serving(tmp_path) as (process, printed):
        exported = re.findall(r"^export (\w+)=(\S+)$", printed, re.MULTILINE)
        assert ["TOKEN_LEDGER_DATABASE_URL", "TOKEN_LEDGER_KEYS_FILE"] == [name for name, _ in exported]

        def command(*arguments: str) -> Json:
            told = environment(tmp_path, **dict(exported))
            done = run_program((*arguments, "--json"), tmp_path, told, b"", SECONDS_MAX)
            done.check_returncode()
            return json.loads(done.stdout)

        assert 3 == len(command("grants")["grants"])
        assert ["fork"] == [incident["label"] for incident in command("reuse")["incidents"]]
        process.send_signal(signal.SIGINT)
        assert 0 == process.wait(SECONDS_MAX)
        assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("begun_as", "typed"),
    [
        ("/opt/token ledger/api/__main__.py", f"{shlex.quote(sys.executable)} -m api"),
        ("/opt/token ledger/token-ledger", "'/opt/token ledger/token-ledger'"),
    ],
)
def test_the_commands_to_paste_can_be_run(monkeypatch: pytest.MonkeyPatch, begun_as: str, typed: str) -> None:
    """As the demo itself was, where the program is not on the path: a file of the package is no program."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [begun_as, "demo"])
    assert typed == itself()


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """Exit code 2, and what to do about it; nothing is left behind."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = once(tmp_path, port)
    assert (2, "") == (done.returncode, done.stdout)
    said = f"127.0.0.1 port {port} is taken: another process listens there; stop it, or choose a port with --port"
    assert said in done.stderr
    assert 1 == done.stderr.count("\n")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(("more", "coloured"), [({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_is_for_terminals_that_want_it(tmp_path: Path, more: dict[str, str], coloured: bool) -> None:
    """On a terminal tokens have colours, unless NO_COLOR says otherwise; the words are the same."""
    exit_code, printed = on_a_terminal(
        [*program(), "demo", "--once", "--port", "0"], tmp_path, environment(tmp_path, **more)
    )
    assert 0 == exit_code, printed
    assert coloured == ("\x1b[" in printed)
    assert "Every step came out as it should." in printed
