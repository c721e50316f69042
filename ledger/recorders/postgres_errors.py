"""PostgreSQL's errors in the store's own words. Whoever runs a statement translates what it raises."""

import psycopg
from psycopg import errors

from ledger.recorders.errors import LostRace, StoreBusy, StoreError, StoreFull, StoreUnreachable

_BUSY = (
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.TooManyConnections,
)
_FULL = (errors.DiskFull, errors.OutOfMemory)


def translated(error: psycopg.Error) -> StoreError:
    """What an engine error means for the caller. Never the engine's own text: it may repeat what was sent. But for a
    right or a replica identity that is lacking, or a key that is there already: those name a table, function or key,
    and nothing else."""
    if isinstance(error, errors.UniqueViolation):
        return LostRace(f"somebody else has written in between: {error.diag.constraint_name}")
    if isinstance(error, _BUSY):
        return StoreBusy(f"PostgreSQL did not get to it in time: {_name(error)}")
    if isinstance(error, _FULL):
        return StoreFull("no room left where PostgreSQL keeps its data")
    if error.sqlstate is None or error.sqlstate[:2] in ("08", "57", "25"):
        return StoreUnreachable(f"the connection to PostgreSQL was lost: {_name(error)}")
    if isinstance(error, errors.InsufficientPrivilege | errors.ObjectNotInPrerequisiteState):
        return StoreError(f"PostgreSQL failed: {error.diag.message_primary} ({error.sqlstate})")
    return StoreError(f"PostgreSQL failed: {_name(error)}")


def _name(error: psycopg.Error) -> str:
    return type(error).__name__ + ("" if error.sqlstate is None else f" ({error.sqlstate})")
