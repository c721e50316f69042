"""Connections to the PostgreSQL that DATABASE_URL names, each with our guards, and what to say where there is none.

Whoever freezes while holding a lock stalls every follower, so nothing waits here for longer than five seconds: not for
a connection, a lock, a statement, a client that has gone silent in a transaction, nor for a network that has.

The URL may hold a password. It reaches libpq, and nothing else: no error, repr or log line repeats the URL, or what
libpq says of it before the password is taken out.
"""

import re
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import RawCursor, errors
from psycopg.conninfo import conninfo_to_dict

from ledger.recorders import postgres_keys
from ledger.recorders.errors import StoreUnreachable
from ledger.refusals import LedgerError

SECONDS_MAX: Final = 5
DECIDES: Final = "token-ledger "
"""How the names of connections begin over which somebody decides and writes batches; each ends in a name of its own."""

VERSION_MIN: Final = 130000
"""PostgreSQL 13: the first whose transaction ids have 64 bits everywhere (`xid8`)."""

_CONNECTING: Final[dict[str, Any]] = {
    "application_name": "token-ledger",
    "connect_timeout": SECONDS_MAX,
    "keepalives_count": 2,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "tcp_user_timeout": 4000,
}
_ALWAYS: Final[dict[str, Any]] = {
    "client_encoding": "UTF8",
    "target_session_attrs": "read-write",  # after a fail-over the old primary is a standby, or soon will be
}
# Row security would leave rows out of an answer without a word: a token that is current would be told as unknown. Off
# means that such a question fails instead.
# A batch reads what is true once it has waited for its lock: that is READ COMMITTED, whatever somebody has set.
# And plans: each of our questions wants few rows, one after the other, by an index. Of a table that it has not counted
# yet, a minute after it was filled, PostgreSQL believes what it likes, and would read all of it to join ten rows.
_GUARDED: Final = (
    "SELECT set_config('statement_timeout', '5s', false), set_config('lock_timeout', '4s', false),"
    " set_config('idle_in_transaction_session_timeout', '5s', false), set_config('jit', 'off', false),"
    " set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),"
    " set_config('enable_mergejoin', 'off', false),"
    " set_config('default_transaction_isolation', 'read committed', false), set_config('row_security', 'off', false),"
    " current_setting('server_version_num')::int, current_setting('server_encoding'), pg_backend_pid()"
)
_WHO: Final = "SELECT pg_backend_pid()"
_LOOKS: Final = 3  # others that are lent the same processes may come between

ANSWER_SECONDS_MAX: Final = SECONDS_MAX + 1
"""So long an answer is waited for: the server has given up before, unless it is frozen itself, or its machine is."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that nobody waits for without end: closed, and so lost, where the server does not answer at all."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """See psycopg's: it waits here for everything that is asked."""
        try:
            return super().wait(gen, interval, timeout or ANSWER_SECONDS_MAX)
        except errors._WaitTimeout:
            self.close()
            raise psycopg.OperationalError("no answer in time") from None


class Place(NamedTuple):
    """Which database: for people, without any secret."""

    host: str
    port: str
    database: str

    def __str__(self) -> str:
        where = ",".join(
            f"{host}:{port or '5432'}" for host, port in zip(self.host.split(","), self._ports(), strict=True)
        )
        return f"PostgreSQL database {self.database} on {where}"

    def _ports(self) -> list[str]:
        hosts, ports = self.host.split(","), self.port.split(",")
        return ports if len(ports) == len(hosts) else [ports[0]] * len(hosts)


class Address:
    """Where the store is and how to get in. Raises LedgerError where the text is no URL of a PostgreSQL database."""

    def __init__(self, url: str) -> None:
        try:
            told = conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # its text repeats pieces of the URL
            raise LedgerError(_NO_URL) from None
        host = str(told.get("host") or told.get("hostaddr") or "localhost")
        port = str(told.get("port") or "5432")
        if "@" in host or any(each and not each.isdecimal() for each in port.split(",")):
            raise LedgerError(_NO_URL)
        self._url = url
        self._secrets = sorted({str(told[name]) for name in _SECRET if told.get(name)}, key=len, reverse=True)
        self._connecting = {name: value for name, value in _CONNECTING.items() if name not in told}
        self._of_our_own = False  # whether it is known that a session is nobody else's
        self._connecting["connect_timeout"] = min(_seconds(told.get("connect_timeout")), SECONDS_MAX)
        self.place = Place(host, port, str(told.get("dbname") or told.get("user") or "of the user's name"))

    def __repr__(self) -> str:
        return f"Address({self.place})"

    def connect(self, **settings: str | int) -> Connection:
        """A connection in autocommit, guards set, statements with `$1` for parameters. `settings` are libpq's own.

        Raises StoreUnreachable (also for a wrong password), LedgerError where the server is none that we can use.
        """
        try:
            connection = self._connected(**settings)
        except psycopg.Error as error:
            raise StoreUnreachable(f"{self.place}: {self.redacted(error)}") from None
        try:
            row = connection.execute(_GUARDED).fetchone()
            assert row is not None
            *_, version, encoding, process = row
            lent = not self._is_ours(connection, process)
        except psycopg.Error as error:
            connection.close()
            raise StoreUnreachable(f"{self.place}: {self.redacted(error)}") from None
        postgres_keys.register(connection)
        if version < VERSION_MIN:
            connection.close()
            raise LedgerError(
                f"{self.place}: PostgreSQL {VERSION_MIN // 10000} or later is needed, this is {version // 10000}"
            )
        if encoding != "UTF8":
            connection.close()
            raise LedgerError(f"{self.place}: the database's encoding is {encoding}, UTF8 is needed")
        if lent:
            connection.close()
            raise LedgerError(f"{self.place}: a pooler lends connections by the transaction; session pooling is needed")
        return connection

    def _connected(self, **settings: str | int) -> Connection:
        return Connection.connect(
            self._url,
            autocommit=True,
            cursor_factory=RawCursor,
            **{**self._connecting, **_ALWAYS, **settings},
        )

    def _is_ours(self, connection: Connection, process: int) -> bool:
        """Whether what we set and prepare stays with us: False where another connection is answered by the same process
        of the server as this one. Asked only where a pooler stands between: there the process that answers is not the
        one that was named at first."""
        if self._of_our_own or process == connection.info.backend_pid:
            return True
        with self._connected() as other:
            # This one twice in a row: of two processes that are lent by turns each would meet its own for ever.
            for each in (other, connection, connection) * _LOOKS:
                if (each.execute(_WHO).fetchone() == (process,)) is (each is other):
                    return False
        self._of_our_own = True
        return True

    def redacted(self, error: BaseException) -> str:
        """What an error says, on one line, without any password of the URL in it."""
        text = "; ".join(line.strip() for line in _BEFORE.sub("", str(error)).splitlines() if line.strip())
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text or type(error).__name__


_SECRET: Final = ("password", "sslpassword")
# What stands before the reason where there is one server to try, which the place says already.
_BEFORE: Final = re.compile(r"\A(connection failed: |connection to server [^\n]*? failed: )+(?![^\n]*\nconnection to)")
_NO_URL: Final = (
    "TOKEN_LEDGER_DATABASE_URL: allowed is postgresql://USER:PASSWORD@HOST:PORT/DATABASE, where a character of the"
    " password such as @ : / ? # % stands as its percent-encoding"
)


def _seconds(raw: object) -> int:
    try:
        return int(str(raw)) or SECONDS_MAX
    except ValueError:
        return SECONDS_MAX
