"""Broken twins: the server with one deliberate fault, which the trial of that fault must catch.

`python -m tests.chaos.twins FAULT` serves like `token-ledger serve`.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from api.__main__ import main as program
from api.server import Server
from ledger import authority, memory, presenting, tokens
from ledger.batch import Batch
from ledger.commands import Decision, GrantCommand, RedeemToken, Rules
from ledger.commits import Commits
from ledger.grant import Grant
from ledger.randomness import system_randomness
from ledger.recorders.errors import StoreBusy, StoreError
from ledger.recorders.postgres import PostgresStore
from ledger.recorders.postgres_schema import LOCK
from ledger.recorders.premises import Written
from ledger.recorders.rows import Work
from ledger.recorders.sqlite import SQLiteStore
from ledger.refusals import Refusal, Refused
from ledger.waiting import made

LATE_SECONDS = 0.05
"""So long after its answers a batch of `answers_before_the_commit` is committed."""


def put(owner: object, name: str, fault: object) -> None:
    """Put a fault in the place of what is there."""
    assert hasattr(owner, name), f"{owner} has no {name}"
    setattr(owner, name, fault)


def answers_before_the_commit() -> None:
    """Tell whoever waits as soon as the batch is decided; the commit comes a moment later."""
    init, commit = Commits.__init__, SQLiteStore.commit

    def tell(commits: Commits) -> None:
        for each, answer, refused in commits._line.in_flight:
            if not refused and not each.future.done():
                each.future.set_result(made((each, answer, False))[1])

    class Early:
        """Stands before the commit thread's queue."""

        def __init__(self, commits: Commits) -> None:
            self.commits = commits
            self.queue = commits._handover
            self.get = self.queue.get

        def put(self, left: Any) -> None:
            tell(self.commits)
            self.queue.put(left)

    def early(self: Commits, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        put(self, "_handover", Early(self))
        if self._sent is not None:
            send = self._sent.send

            def send_late(batch: Batch) -> None:
                tell(self)
                self._loop.call_later(LATE_SECONDS, send, batch)

            put(self._sent, "send", send_late)

    def late(self: SQLiteStore) -> None:
        time.sleep(LATE_SECONDS)
        commit(self)

    put(Commits, "__init__", early)
    put(SQLiteStore, "commit", late)


def mints_siblings() -> None:
    """Give another successor each time one is asked for, and accept them all."""
    derive = tokens.derive

    def another(ring: Any, key_id: int, grant_id: str, generation: int, nonce: bytes) -> str:
        return derive(ring, key_id, grant_id, generation, system_randomness()(len(nonce)))

    put(tokens, "derive", another)
    put(tokens, "genuine", lambda *_: True)


def leaves_at_once() -> None:
    """Close every connection at SIGTERM, whatever was begun on it."""
    drain = Server._drain

    async def impatient(self: Server) -> None:
        self._impatient = True
        await drain(self)

    put(Server, "_drain", impatient)


def hides_errors() -> None:
    """Believe that every commit has succeeded."""
    commit, rollback = SQLiteStore.commit, SQLiteStore.rollback

    def hopeful(self: SQLiteStore) -> None:
        try:
            commit(self)
        except StoreError:
            rollback(self)

    put(SQLiteStore, "commit", hopeful)


def overlooks_what_is_ahead() -> None:
    """Take a token that is ahead of the log for an unknown one."""
    decide = Grant.decide

    def blind(self: Grant, command: GrantCommand, rules: Rules) -> Decision:
        if isinstance(command, RedeemToken) and self.generation is not None and command.generation > self.generation:
            raise Refused(Refusal.UNKNOWN_TOKEN)
        return decide(self, command, rules)

    put(Grant, "decide", blind)


def takes_silence_for_failure() -> None:
    """Believe that what was not answered did not happen."""

    def not_there(self: PostgresStore, work: Work) -> Written | None:
        raise StoreBusy("the connection was lost")

    put(PostgresStore, "is_there", not_there)


def commits_in_steps() -> None:
    """Begin, write, do something else, commit; and nothing ends who stays silent meanwhile."""
    commit = PostgresStore.commit

    def in_steps(self: PostgresStore) -> Written:
        connection = self._connected()
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.execute("BEGIN")
        connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})".encode())
        written = commit(self)
        time.sleep(0.1)
        connection.execute("COMMIT")
        return written

    put(PostgresStore, "send", lambda self: None)
    put(PostgresStore, "commit", in_steps)


def remembers_little() -> None:
    """No fault: room for a few streams and tokens, and for the persons of a batch or two, so that nearly every request
    finds its grant's cache cold."""
    put(memory, "STREAMS_IN_MEMORY_MAX", 4)
    put(presenting, "HANDED_OUT_MAX", 4)
    put(authority, "SUBJECTS_IN_MEMORY_MAX", 256)


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        answers_before_the_commit,
        mints_siblings,
        leaves_at_once,
        hides_errors,
        overlooks_what_is_ahead,
        takes_silence_for_failure,
        commits_in_steps,
        remembers_little,
    )
}


def main() -> None:
    """Put the fault in, and serve."""
    FAULTS[sys.argv.pop()]()
    sys.argv.append("serve")
    program()


if __name__ == "__main__":
    main()
