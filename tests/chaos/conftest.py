"""What trials of the full tier need of a machine; what is missing is the reason of a skip."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engines import standing_for
from tests.postgres import Server as Postgres


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder on the disk: what is broken here is broken in the time that a sync takes."""
    with tempfile.TemporaryDirectory(prefix="token-ledger-chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Place(NamedTuple):
    """Where a trial's servers keep their database, and how many processes each is: `settings` gives those of a server
    by the folder that it will have."""

    processes: int
    settings: Callable[[Path], dict[str, str]]


SQLITE = Place(1, lambda folder: {})


@pytest.fixture(params=["sqlite", "two-workers"])
def each_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Run the trial twice: its servers are one process with its file, or two workers on a new PostgreSQL database, for
    which the path of that file stands then."""
    if request.param == "sqlite":
        yield SQLITE
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with ExitStack() as stack:

        def made(folder: Path) -> dict[str, str]:
            url = postgres.create_database()
            stack.callback(postgres.drop_database, url)
            stack.enter_context(standing_for(folder / "token-ledger.db", url))
            return {"DATABASE_URL": postgres.over_tcp(url), "WORKERS": "2"}

        yield Place(2, made)


@pytest.fixture
def only_full(full: bool) -> None:
    """Skip one of several trials of a kind where another one is run."""
    if not full:
        pytest.skip("this one of several belongs to --full")


@pytest.fixture
def needs_strace(full: bool) -> None:
    """Skip where the kernel's tracing cannot be used."""
    if not full:
        pytest.skip("what strace puts into system calls belongs to --full")
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()}")
