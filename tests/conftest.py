"""The two tiers: by default seeded and small, with `--full` the counts that the promises were made with."""

import gc
import os
import sys
from collections.abc import Callable, Generator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from tests.memory import in_memory

LACKING = [name for name in ("greenlet", "psycopg") if find_spec(name) is None]
"""What the store on PostgreSQL needs and is not installed: no test is run then, for most of them need it, too."""

# shared_server, own_server; place, made; postgres, postgres_url; each_store, on_postgres; appending; database, sqlite;
# nobody_looks; made_small; followed; house; parties; what the chaos trials counted
_WITH_FIXTURES = (
    "forking", "postgres", "engines", "appending", "servers", "places", "sqlite_stores", "ledgers", "archives",
    "library_logs", "authority_houses", "certificate_clients", "chaos.figures",
)  # fmt: skip
pytest_plugins = [] if LACKING else [f"tests.{name}" for name in _WITH_FIXTURES]
FULL_TIMEOUT_SECONDS = 3600


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run every trial with its full count; takes hours")


@pytest.hookimpl(tryfirst=True)  # before the time-out's own plugin reads the option
def pytest_configure(config: pytest.Config) -> None:
    if LACKING:
        raise pytest.UsageError(f"the tests need {' and '.join(LACKING)}: pip install -e '.[dev]'")
    # Slow cores make any single example late at times, which says nothing about the property.
    common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], stateful_step_count=50)
    settings.register_profile("default", common, max_examples=200, derandomize=True)
    settings.register_profile("full", common, max_examples=2_000, print_blob=True)
    settings.load_profile("full" if config.option.full else "default")
    if config.option.full and config.option.timeout is None:
        config.option.timeout = FULL_TIMEOUT_SECONDS


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where nothing compiled may be written beside the sources, write it to pytest's own cache: hundreds of processes
    are started here, and each would compile all that it imports. This process's workers and theirs inherit it.

    By default what tests write lies in memory, where there is room: on a disk each waits for its syncs most of the
    time. `tests/chaos` stays on the disk, and so does all of it with `--full`."""
    if not session.config.option.full and (folder := in_memory()) is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))
    if sys.dont_write_bytecode and session.config.pluginmanager.has_plugin("cacheprovider"):
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(session.config.cache.mkdir("bytecode"))
        sys.dont_write_bytecode = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: the collector of garbage need not look at it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether this run is of the full tier."""
    return bool(pytestconfig.option.full)


@pytest.fixture(scope="session")
def count(full: bool) -> Callable[[int, int], int]:
    """Choose between a trial's count in the default tier and in the full one: `count(6, 60)`."""
    return lambda default, in_full: in_full if full else default


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run every `async def` test on the event loop that the server runs on."""
    return "asyncio", {"use_uvloop": True}
