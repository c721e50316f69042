"""Projections written in the append's own transaction, so that what they say is true at the position they stand at.

The recorder asks each `Inline` for the writes that the events of one command come to, collects those of a whole batch,
and runs one statement for each kind of write, never one an event. It keeps the names of its inline tables: a writer
that is wired with another list refuses to open, so no command can leave rows behind.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, Protocol

import msgspec

from ledger.events import AnyEvent


class Write(msgspec.Struct, frozen=True):
    """One kind of statement on an inline table. What changes by itself, as a scope does, has a kind for it alone.

    `insert` takes the values of (key, *columns), `update` those of (*columns, key): `SET columns WHERE key = ?`.
    Every column but the key is set by the insert and by at most one kind of update, and a command yields at most one
    write of each kind: so the order between the kinds of update in a batch does not matter.
    """

    kind: Literal["insert", "update"]
    table: str
    key: str
    columns: tuple[str, ...]

    @property
    def sql(self) -> str:
        """The statement with one `?` a value, in the order described above."""
        if self.kind == "insert":
            marks = ", ".join("?" * (1 + len(self.columns)))
            return f"INSERT INTO {self.table} ({', '.join((self.key, *self.columns))}) VALUES ({marks})"  # noqa: S608  # names of ours alone
        settings = ", ".join(f"{column} = ?" for column in self.columns)
        return f"UPDATE {self.table} SET {settings} WHERE {self.key} = ?"  # noqa: S608  # names of ours alone


class Inline(Protocol):
    """A projection whose rows are written with the events that they come from."""

    @property
    def name(self) -> str:
        """The table, with its version: `<question>_v<N>`. Another shape of rows is another version."""
        ...

    @property
    def ddl(self) -> tuple[str, ...]:
        """The statements that make the table and its indexes where they are not there yet."""
        ...

    @property
    def writes(self) -> tuple[Write, ...]:
        """The kinds of write, in the order in which a batch runs them: inserts stand before updates."""
        ...

    @property
    def heeds(self) -> frozenset[type[AnyEvent]]:
        """The types of event that may write something: a command without one is not asked about."""
        ...

    def rows(self, events: Sequence[AnyEvent], positions: Sequence[int]) -> Iterable[tuple[int, tuple[object, ...]]]:
        """What the events of one command of one stream, at these positions, write: (index into `writes`, values).

        Pure: no clock, no look-up, no memory. Never raises on recorded history; most events yield nothing.
        """
        ...


@cache
def grants_tables(inline: tuple[Inline, ...]) -> tuple[str, ...]:
    """The tables with a row for each grant, key `grant_id`, that says whose it is, as its first event does."""
    return tuple(
        write.table
        for each in inline
        for write in each.writes
        if write.kind == "insert" and write.key == "grant_id" and {"client_id", "subject_id"} <= {*write.columns}
    )


@cache
def heeded(inline: tuple[Inline, ...]) -> frozenset[type[AnyEvent]]:
    """The types of event that one of these projections heeds."""
    return frozenset().union(*[each.heeds for each in inline])
