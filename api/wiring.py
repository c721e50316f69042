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
from ledger.owner import Owned
from ledger.randomness import system_randomness
from ledger.recorders.errors import StoreError
from ledger.recorders.sqlite import SQLiteStore
from ledger.recorders.store import Store
from ledger.refusals import LedgerError
from projections import INLINE

NO_DRIVER = "TOKEN_LEDGER_DATABASE_URL: PostgreSQL needs its driver, the extra `postgres`: pip install '.[postgres]'"
NO_LEDGER = "there is no ledger here yet; `token-ledger init` creates one"


class Database:
    """Where the store is. Its text is for people: a file, or a database and its server, without any password."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError where DATABASE_URL names none that can be used."""
        self._url = settings.database_url
        self._path = settings.sqlite_path
        self._text = str(self._path)
        if self._path is None:
            try:
                import ledger.recorders.postgres  # noqa: F401  # and with it all of the extra
                from ledger.recorders.postgres_connections import Address
            except ImportError:
                raise SettingsError(NO_DRIVER) from None
            try:
                self._text = str(Address(self._url).place)
            except LedgerError as error:
                raise SettingsError(str(error)) from None

    def __str__(self) -> str:
        return self._text

    def is_new(self) -> bool:
        """Whether there is no ledger here yet; an empty file counts as none. Raises LedgerError."""
        if self._path is not None:
            return is_new(self._path)
        from ledger.recorders.postgres_connections import Address
        from ledger.recorders.postgres_readers import PostgresReaders

        try:
            return not PostgresReaders(Address(self._url)).holds_ledger()
        except StoreError as error:
            raise LedgerError(str(error)) from None

    def check_makeable(self) -> None:
        """Raises LedgerError where a new one could not be made, before anything is."""
        if self._path is not None and not self._path.absolute().parent.is_dir():
            raise LedgerError(f"{self}: cannot be created: there is no such folder")

    def open(self, ring_id: str, *, create: bool) -> Store:
        """Open it; make it where it is new and `create` says so. Raises LedgerError."""
        if self._path is not None:
            store = SQLiteStore(self._path, INLINE)
            store.open(ring_id)
            return store
        from ledger.recorders.postgres import PostgresStore

        made = PostgresStore(self._url, INLINE)
        try:
            if create:
                made.init(ring_id)
            made.open(ring_id)
        except StoreError as error:
            made.close()
            raise LedgerError(str(error)) from None
        return made


def is_new(database: Path) -> bool:
    """Whether there is no SQLite database here yet; an empty file counts as none."""
    try:
        return database.stat().st_size == 0
    except OSError:
        return True


@asynccontextmanager
async def open_ledger(
    settings: Settings,
    *,
    create: bool,
    on_fatal: Callable[[str], None] = lambda line: None,
    to_heal: bool = False,
) -> AsyncIterator[Ledger]:
    """Open the store of these settings, on SQLite as its only owner, until the block ends.

    `create` makes key ring and database where there are none; both are durable on entry. `on_fatal` is called when the
    store has failed and the process must end; `to_heal` is as in `Ledger.open`. Raises SettingsError, Owned,
    LedgerError; whatever was wrong has then changed nothing.
    """
    database = Database(settings)
    head_file = HeadFile(settings.head_file)
    head_file.check_writable()
    ring = _ring(settings.keys_file, database, create)
    store = database.open(ring.ring_id, create=create)
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
            to_heal=to_heal,
        )
    except StoreError as error:
        store.close()
        raise LedgerError(f"{database}: {error}") from None
    except BaseException:
        store.close()
        raise
    try:
        yield ledger
    finally:
        await ledger.close()


def _ring(keys_file: Path, database: Database, create: bool) -> KeyRing:
    """The key ring; a new one only for a new database. A crash after making it leaves one that the next start takes."""
    new = database.is_new()
    if new and not create:
        raise LedgerError(f"{database}: {NO_LEDGER}")
    if new:
        database.check_makeable()
    if keys_file.exists() or keys_file.is_symlink():
        return KeyRing.load(keys_file)
    if not new:
        raise LedgerError(
            f"{keys_file}: there is no key ring here, and {database} works with its own alone: put it back"
        )
    try:
        return KeyRing.create(keys_file)
    except LedgerError:
        if keys_file.exists():
            raise Owned(f"{keys_file}: another process has just made it, and makes {database}") from None
        raise


@asynccontextmanager
async def open_app(settings: Settings, *, to_heal: bool = False) -> AsyncIterator[Asgi]:
    """Open the ledger for one command where no server runs: the same application that its socket would lead to.
    `to_heal` is as in `Ledger.open`."""
    from api.app import create_app

    async with open_ledger(settings, create=False, to_heal=to_heal) as ledger:
        yield create_app(ledger, settings)
