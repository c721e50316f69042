"""The only place that joins recorder, ledger and inline projections: for the server and for every command alike."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from api.local import Asgi
from api.settings import Settings, SettingsError
from ledger.application import Ledger, Options
from ledger.head_file import HeadFile
from ledger.keyring import KeyRing
from ledger.randomness import system_randomness
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import LedgerError
from projections import INLINE


def sqlite_path(settings: Settings) -> Path:
    """The database file. Raises SettingsError where the store is none."""
    if settings.sqlite_path is None:
        raise SettingsError("DATABASE_URL: this version keeps its store on SQLite only: sqlite:///FILE")
    return settings.sqlite_path


def is_new(database: Path) -> bool:
    """Whether there is no database here yet; an empty file counts as none."""
    try:
        return database.stat().st_size == 0
    except OSError:
        return True


@asynccontextmanager
async def open_ledger(
    settings: Settings, *, create: bool, on_fatal: Callable[[str], None] = lambda line: None
) -> AsyncIterator[Ledger]:
    """Open the store of these settings as its only owner, until the block ends.

    `create` makes key ring and database where there are none; both are durable on entry. `on_fatal` is called when the
    store has failed and the process must end. Raises SettingsError, Owned, LedgerError, Unavailable; whatever was wrong
    has then changed nothing.
    """
    database = sqlite_path(settings)
    head_file = HeadFile(settings.head_file)
    head_file.check_writable()
    ring = _ring(settings.keys_file, database, create)
    store = SQLiteStore(database, INLINE)
    store.open(ring.ring_id)
    try:
        ledger = await Ledger.open(
            store,
            ring,
            settings.keys_file,
            head_file,
            Options(
                issuer=settings.issuer,
                request_timeout_seconds=settings.request_timeout_seconds,
                clock_skew_seconds=settings.clock_skew_seconds,
                refresh_burst=settings.refresh_burst,
                refresh_per_second=settings.refresh_per_second,
            ),
            clock=lambda: time.time_ns() // 1000,
            randomness=system_randomness(),
            on_fatal=on_fatal,
        )
    except BaseException:
        store.close()
        raise
    try:
        yield ledger
    finally:
        await ledger.close()


def _ring(keys_file: Path, database: Path, create: bool) -> KeyRing:
    """The key ring; a new one only for a new database. A crash after making it leaves one that the next start takes."""
    new = is_new(database)
    if new and not create:
        raise LedgerError(f"{database}: there is no ledger here yet; `token-ledger init` creates one")
    if new and not database.absolute().parent.is_dir():
        raise LedgerError(f"{database}: cannot be created: there is no such folder")
    if keys_file.exists() or keys_file.is_symlink():
        return KeyRing.load(keys_file)
    if not new:
        raise LedgerError(
            f"{keys_file}: there is no key ring here, and {database} works with its own alone: put it back"
        )
    return KeyRing.create(keys_file)


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[Asgi]:
    """Open the ledger for one command where no server runs: the same application that its socket would lead to."""
    from api.app import create_app

    async with open_ledger(settings, create=False) as ledger:
        yield create_app(ledger, settings)
