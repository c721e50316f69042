"""SQLite's errors in the store's own words. Whoever runs a statement translates what it raises, reading or writing."""

import sqlite3

from ledger.recorders.errors import HistoryBroken, LostRace, StoreBroken, StoreBusy, StoreError, StoreFull

_SHM_FULL = 4874  # SQLITE_IOERR_SHMSIZE: the shared-memory file found no room, which is a full disk

_NO_TEXT = "Could not decode to UTF-8"  # so the driver, not the engine: the disk may be well, and one bit of it was not


def translated(error: sqlite3.Error) -> StoreError:
    """What an engine error means for the caller."""
    code = getattr(error, "sqlite_errorcode", 0)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    primary = code & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy("another process holds the write lock")
    if primary == sqlite3.SQLITE_FULL or code == _SHM_FULL:
        return StoreFull("no room left on the disk")
    if primary == sqlite3.SQLITE_CONSTRAINT:
        # Every key of ours is new when it is decided on: whoever took it meanwhile has written since we read.
        return LostRace(f"somebody else has written in between: {error}")  # which names a table and columns, no more
    if not code and str(error).startswith(_NO_TEXT):  # and goes on with the text itself
        return HistoryBroken("a text in the database is not as it was written; rebuild names it")
    return StoreBroken(f"the database failed: {name}")
