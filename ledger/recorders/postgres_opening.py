"""Making the tables of the store on PostgreSQL, and what must be true of them before a process serves from them.

Tables are made by `init` alone; whoever opens the store only looks. What it refuses it says in one line, and leaves as
it is: tables of another release, key ring or set of projections, functions, rights or archive segments that are
missing, and a server that could lose what it has acknowledged (I-09).
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import psycopg

from ledger.inline import Inline
from ledger.recorders import postgres_append, postgres_archive, postgres_moves, postgres_refresh, postgres_schema
from ledger.recorders.postgres_connections import Address, Connection, Place
from ledger.recorders.postgres_sql import POSITION_BITS
from ledger.recorders.reading import LAST_POSITION_MAX
from ledger.refusals import LedgerError

_ALONE: Final = f"SELECT pg_advisory_xact_lock({postgres_schema.LOCK})"
_HORIZON: Final = (
    f"(pg_snapshot_xmax(pg_current_snapshot())::text::bigint << {POSITION_BITS})"  # noqa: S608  # words of ours alone
    " + (SELECT position_offset FROM control)"
)
# All four rights on every table. Of the log two will do: what archives nothing need not be able to change it.
_LACKING: Final = """
SELECT string_agg(lacking, ', ' ORDER BY lacking) FROM (
  SELECT asked || ' on ' || name AS lacking
    FROM unnest($1::text[]) AS name CROSS JOIN unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS asked
    WHERE NOT has_table_privilege(name, asked) AND (name <> 'events' OR asked IN ('SELECT', 'INSERT'))
  UNION
  SELECT 'BYPASSRLS for ' || name FROM unnest($1::text[]) AS name WHERE row_security_active(name)
  UNION
  SELECT 'EXECUTE on ' || proname FROM pg_proc
    WHERE proname = ANY ('{ledger_append,ledger_archive,ledger_move,ledger_refresh}')
      AND pg_function_is_visible(oid) AND NOT has_function_privilege(oid, 'EXECUTE')
) AS each
"""
_NOT_IDENTIFIED: Final = "SELECT FROM pg_class WHERE oid = to_regclass($1) AND relreplident = 'd'"
# Above a position that no log comes to nothing goes on: whoever opens the ledger is told of that.
_TOO_LOW: Final = f"SELECT coalesce(({postgres_schema.END}), 0) BETWEEN {_HORIZON} AND {LAST_POSITION_MAX}"
_LIFT: Final = f"UPDATE control SET position_offset = position_offset + ({postgres_schema.END}) + 1 - ({_HORIZON})"  # noqa: S608  # words of ours alone


def make(address: Address, inline: Sequence[Inline], ring_id: str) -> bool:
    """Make tables where there are none, and the functions; True where there were no tables. Safe to repeat.

    Raises LedgerError, StoreError. A crash on the way leaves nothing, or all of it.
    """
    wanted = _meta(inline, ring_id)
    connection = address.connect()
    try:
        connection.execute("BEGIN")
        connection.execute(_ALONE.encode())
        if made := not _exists(connection, "meta"):
            if _exists(connection, "events") or _exists(connection, "streams"):
                raise LedgerError(f"{address.place}: there are other tables here; nothing was changed")
            for statement in postgres_schema.schema(inline):
                connection.execute(statement.encode())
            for key, value in wanted.items():
                connection.execute("INSERT INTO meta VALUES ($1, $2)", (key, value))
        _check_meta(connection, address.place, wanted)
        _identify_rows(connection, inline)
        connection.execute(postgres_archive.FUNCTION.encode())
        connection.execute(postgres_append.function(inline, _types(connection)).encode())
        connection.execute(postgres_moves.function().encode())
        connection.execute(postgres_refresh.function().encode())
        connection.execute("COMMIT")
        return made
    except psycopg.Error as error:
        raise LedgerError(f"{address.place}: {address.redacted(error)}") from None
    finally:
        connection.close()


def check(connection: Connection, place: Place, inline: Sequence[Inline], ring_id: str) -> None:
    """Check that this is the ledger that is meant, whole and durable; lift its positions where they would begin anew.

    Raises LedgerError, psycopg.Error.
    """
    if not _exists(connection, "meta"):
        raise LedgerError(f"{place}: there is no ledger here yet; `token-ledger init` creates one")
    _check_meta(connection, place, _meta(inline, ring_id))
    modules = (postgres_append, postgres_archive, postgres_moves)
    if not all(each.is_there(connection) for each in modules):
        raise LedgerError(f"{place}: this release's functions are missing; `token-ledger init` makes them")
    _check_rights(connection, place, inline)
    check_durability(connection, place)
    postgres_archive.check(connection, str(place))
    go_on_above(connection)


def check_durability(connection: Connection, place: Place) -> None:
    """Read back that what is committed over this connection is durable (I-09). Raises LedgerError, psycopg.Error."""
    question = "SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names')"
    ((commit, standbys),) = connection.execute(question).fetchall()
    if commit == "off" or (commit == "local" and standbys):
        raise LedgerError(f"{place}: synchronous_commit is {commit}: what was acknowledged could be lost")


def power_cut(connection: Connection, place: Place) -> str | None:
    """What the server's settings let a power cut do, which its owner has decided for all of its databases; None where
    it may do nothing. Raises psycopg.Error."""
    question = "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY 1"
    off = ", ".join(str(name) for (name,) in connection.execute(question).fetchall())
    return f"{place}: off at this server: {off}; a power cut could lose what was acknowledged" if off else None


def go_on_above(connection: Connection) -> None:
    """Where the log was moved into another cluster its transaction ids begin anew: positions go on above its end.

    Nothing is written over a connection before this was done over it, also where a process that serves was cut off and
    finds the other cluster at the same address. Of several that come at once one lifts them, the others see it: the
    lock keeps them apart, and keeps out the batches of who was here before. A crash leaves it to who comes next.
    Raises psycopg.Error.
    """
    if connection.execute(_TOO_LOW.encode()).fetchone() == (True,):
        connection.execute("BEGIN")
        connection.execute(_ALONE.encode())
        if connection.execute(_TOO_LOW.encode()).fetchone() == (True,):
            connection.execute(_LIFT.encode())
        connection.execute("COMMIT")


def _meta(inline: Sequence[Inline], ring_id: str) -> dict[str, str]:
    names = msgspec.json.encode([each.name for each in inline]).decode()
    return {"inline": names, "ring_id": ring_id, "schema": str(postgres_schema.SCHEMA_VERSION)}


def _check_meta(connection: Connection, place: Place, wanted: Mapping[str, str]) -> None:
    found: dict[str, str] = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    if found.get("schema") != wanted["schema"]:
        raise LedgerError(f"{place}: schema {found.get('schema')} is not the {wanted['schema']} of this release")
    if found.get("ring_id") != wanted["ring_id"]:
        raise LedgerError(f"{place}: this database belongs to another key ring; give it the one it was made with")
    if found.get("inline") != wanted["inline"]:
        raise LedgerError(
            f"{place}: this program has other projection tables than the database ({found.get('inline')})"
        )


def _check_rights(connection: Connection, place: Place, inline: Sequence[Inline]) -> None:
    """A right that one statement in a hundred needs would be missed by one worker, hours later."""
    ((lacking,),) = connection.execute(_LACKING, (postgres_schema.tables(inline),)).fetchall()
    if lacking is not None:
        raise LedgerError(f"{place}: the user lacks rights: {lacking}")


def _identify_rows(connection: Connection, inline: Sequence[Inline]) -> None:
    """Give each table whose rows nothing tells apart what does it, also in a database that an earlier release has made.

    Without it the server changes no row there once somebody publishes the tables: what is refused then is what ends
    grants, while refreshes go on (I-05)."""
    for table, statement in postgres_schema.identities(inline).items():
        if connection.execute(_NOT_IDENTIFIED, (table,)).fetchone() is not None:
            connection.execute(statement.encode())


def _exists(connection: Connection, table: str) -> bool:
    return connection.execute("SELECT to_regclass($1)", (table,)).fetchone() != (None,)


def _types(connection: Connection) -> dict[tuple[str, str], str]:
    """A column's type by its table and name."""
    rows = connection.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = current_schema()"
    )
    return {(table, column): kind for table, column, kind in rows.fetchall()}
