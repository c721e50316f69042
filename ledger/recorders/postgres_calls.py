"""A batch as one call of a function that the server has read before, past the driver's cursors.

Those take as long as the server takes to find a stream.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from psycopg import errors, generators
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from ledger.recorders.postgres_append import Told
from ledger.recorders.postgres_connections import Connection


class Call(ABC):
    """A batch on its way through one connection. All raise psycopg.Error."""

    __slots__ = ("_parameters", "_results", "_sent")

    name: ClassVar[bytes]
    """The function's, and that of its prepared statement."""
    parameters: ClassVar[tuple[tuple[str, str], ...]]
    """Its parameters' names and types."""
    formats: ClassVar[list[Format]]
    ask: ClassVar[str]
    """The statement that calls it, with {} for the parameters."""

    def __init__(self, parameters: list[bytes | None]) -> None:
        self._parameters = parameters
        self._sent = False
        self._results: list[PGresult] = []

    def send(self, connection: Connection) -> bool:
        """Send it, without waiting: True where all of it has left."""
        self._sent = True
        connection.pgconn.send_query_prepared(self.name, self._parameters, self.formats)
        return connection.pgconn.flush() == 0

    def told(self, connection: Connection) -> Told | None:
        """What has become of it; None while the answer is not whole. Something must have arrived."""
        pgconn = connection.pgconn
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                return self._outcome()
            self._results.append(result)
        return None

    def write(self, connection: Connection) -> Told:
        """Send it, if it was not sent, and wait: durable on return, but for what was lost."""
        if not self._sent:
            self.send(connection)
        self._results += connection.wait(generators.execute(connection.pgconn))
        return self._outcome()

    def _outcome(self) -> Told:
        for each in self._results:  # the server commits after it has told the row, and says behind it what then fails
            if each.status != ExecStatus.TUPLES_OK:
                raise errors.error_from_result(each)
        if not self._results:
            raise errors.OperationalError("no answer")
        return self._read(self._results[0])

    @abstractmethod
    def _read(self, row: PGresult) -> Told:
        """What the function has told: each says it in its own way."""


def is_there(connection: Connection, call: type[Call]) -> bool:
    """Whether `init` of this release has made the function."""
    kinds = ", ".join(kind for _, kind in call.parameters)
    question = "SELECT to_regprocedure($1) IS NOT NULL"
    return connection.execute(question, (f"{call.name.decode()}({kinds})",)).fetchone() == (True,)


def prepare(connection: Connection, call: type[Call]) -> None:
    """Have the server read the call once. Raises psycopg.Error."""
    parameters = ", ".join(f"${number}::{kind}" for number, (_, kind) in enumerate(call.parameters, 1))
    connection.pgconn.send_prepare(call.name, call.ask.format(parameters).encode())
    for result in connection.wait(generators.execute(connection.pgconn)):
        if result.status != ExecStatus.COMMAND_OK:
            raise errors.error_from_result(result)


def declared(call: type[Call]) -> str:
    """The function's parameters as its definition names them."""
    return ",\n  ".join(f"p_{name} {kind}" for name, kind in call.parameters)
