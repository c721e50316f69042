"""Grants by the million and histories by the hundred thousand, made as their issuer and client would make them.

Every grant and every rotation is decided by the ledger's own rules and written by its own commits, as the same events,
heads, private rows and projection rows as any other; only that many of them share one durable transaction. So it works
on every store, and what it leaves behind passes the same checks.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice

from ledger import issuing, redeeming, tokens
from ledger.answers import Caller, IssueRequest, Source
from ledger.application import Ledger
from ledger.batch import Batch
from ledger.clients import LOCAL_OPERATOR
from ledger.events import Words

IN_ONE_BATCH = 1000
"""So many decisions to a transaction: the disk is then waited for once in some ten milliseconds of work, and a batch
stays far below what a store may set as the greatest number of its events."""


def persons(count: int, *, client_id: str, scope: Words, first: int = 0) -> Iterator[IssueRequest]:
    """Requests for grants of one client, each of another person: `person-0`, …, counted from `first`."""
    for number in range(first, first + count):
        yield IssueRequest(client_id=client_id, subject=f"person-{number}", scope=scope)


async def issue_many(ledger: Ledger, requests: Iterable[IssueRequest]) -> AsyncIterator[list[str]]:
    """New grants. Gives the refresh tokens of each batch once it is durable, in the order of the requests."""
    left = iter(requests)
    while some := list(islice(left, IN_ONE_BATCH)):
        yield await ledger.commits.submit(_issuing(ledger, some))


def _issuing(ledger: Ledger, requests: list[IssueRequest]) -> Callable[[Batch], list[str]]:
    def decide(batch: Batch) -> list[str]:
        made = []
        for request in requests:
            batch.command_id = ledger.memory.new_command_id()
            made.append(issuing.issue(batch, ledger.desk, LOCAL_OPERATOR, request, None, b"").refresh_token or "")
        return made

    return decide


async def rotate_many(ledger: Ledger, token: str, count: int, *, client_id: str) -> str:
    """Redeem a refresh token and its successors, so many in all; the token that is current then. Durable on return."""
    for left in range(count, 0, -IN_ONE_BATCH):
        token = await ledger.commits.submit(_redeeming(ledger, token, min(left, IN_ONE_BATCH), client_id))
    return token


def _redeeming(ledger: Ledger, first: str, count: int, client_id: str) -> Callable[[Batch], str]:
    caller = Caller(client_id=client_id, authenticated=True, auth_method="client_secret_post")
    source = Source("127.0.0.1", "bulk")

    def decide(batch: Batch) -> str:
        token = first
        for _ in range(count):
            batch.command_id = ledger.memory.new_command_id()
            presented = tokens.parse(ledger.desk.ring, token)
            assert presented is not None
            answer = redeeming.redeem(batch, ledger.desk, caller, source, presented, None, None).made()
            token = answer.refresh_token or ""
        return token

    return decide
