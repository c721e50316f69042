"""A folder with a ledger in it and no server: commands run there as processes of their own."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.commands import run_here
from tests.server_process import PROJECT, free_port, run_program

SECONDS_MAX = 30

DAMAGED_AUTHORITY = (
    "UPDATE streams SET v = v + 1 WHERE name = 'keys'",
    "UPDATE streams SET v = v + 1 WHERE name = 'client:www'",
    "UPDATE streams SET name = 'kezs' WHERE name = 'keys'",
    "DELETE FROM streams WHERE name = 'keys'",
    "DELETE FROM streams",
)
"""Ways to keep the ledger from being opened that a replay of its events mends."""


class Place:
    """A folder in which the program is run, with the settings that a server there would have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.settings = {
            "DATABASE_URL": f"sqlite:///{folder / 'token-ledger.db'}",
            "KEYS_FILE": str(folder / "token-ledger.keys"),
            "PORT": str(free_port()),
            "ALLOW_PLAIN_HTTP": "1",
        }

    def run(self, *arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. A setting given as an empty text is not set."""
        done = run_program(arguments, self.folder, self.environment(**settings), stdin.encode(), SECONDS_MAX)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def here(self, *arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """The same in this process, where that which starts is not what is tried."""
        done = run_here(arguments, self.folder, self.environment(**settings), stdin)
        return subprocess.CompletedProcess(arguments, *done)

    def environment(self, **settings: str) -> dict[str, str]:
        """The caller's environment without settings, ours on top, these on top of those."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TOKEN_LEDGER_")}
        path = os.pathsep.join([str(PROJECT), *filter(None, [inherited.get("PYTHONPATH")])])
        own = {f"TOKEN_LEDGER_{name}": value for name, value in (self.settings | settings).items()}
        return inherited | {"PYTHONPATH": path} | own

    def refused(self, *arguments: str, stdin: str = "", **settings: str) -> str:
        """Run a command that must be refused: the one line that it says."""
        done = self.run(*arguments, stdin=stdin, **settings)
        assert 2 == done.returncode, done
        assert 1 == done.stderr.count("\n"), done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr.removesuffix("\n").removeprefix("token-ledger: ")

    def files(self) -> Mapping[str, bytes]:
        """Every file but locks, with its content."""
        found = [path for path in self.folder.iterdir() if path.is_file() and path.suffix != ".lock"]
        return {path.name: path.read_bytes() for path in found}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty folder."""
    return Place(tmp_path / "here")


@pytest.fixture(scope="session")
def new_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a new ledger, to be copied."""
    place = Place(tmp_path_factory.mktemp("new") / "ledger")
    assert 0 == place.run("init").returncode
    return place.folder


@pytest.fixture
def made(place: Place, new_ledger: Path) -> Place:
    """A folder with a new ledger in it."""
    shutil.copytree(new_ledger, place.folder, dirs_exist_ok=True)
    return place
