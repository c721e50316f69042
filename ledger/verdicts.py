"""What a presented generation may mean, and what is remembered of the one before the current to tell a retry by.

| verdict | when (g presented, c current) |
|---|---|
| current | g = c |
| concurrent, lost_response, unconfirmed | g = c-1 in its windows, c unused: a retry, served with the same successor |
| straggler | g = c-2, while c-1 was just redeemed by the very context that now presents g |
| late_retry | g = c-1 otherwise: no proof of a second holder |
| fork | g <= c-2 otherwise: the successor was itself used, so two parties hold this family |

The windows of a generation are those frozen in the rotation that retired it, and 0 is off. They run from that rotation
and no retry extends them (RFC 9700 4.14.2).
"""

import msgspec

from ledger.commands import AccessToken
from ledger.events import RetryServed, TokenRotated, Words
from ledger.times import moment

RETRY_KINDS = ("concurrent", "lost_response", "unconfirmed")


class Redemption(msgspec.Struct, gc=False, array_like=True):
    """How one generation was redeemed and, once it is rotated away, what its retries may still get.

    `first_at` and `first_context` are those of its first redemption, the rest of its last: where tokens are reused
    these differ; `first_context` None is `context`. `carried` is what the grant carried just before the last one;
    `token` the access token it bought. All times are microseconds.
    """

    first_at: int
    first_context: str | None
    context: str
    carried: Words
    token: AccessToken
    rotation_v: int = 0
    concurrent_until: int | None = None
    retry_until: int | None = None
    unconfirmed_until: int | None = None
    retry_budget: int = 0
    recorded: int = 0  # bits, see `marks`
    minted: tuple[AccessToken, ...] = ()  # by retries, at most RETRY_VARIATIONS_MAX

    def rotated(self, event: TokenRotated) -> None:
        """The generation is retired: its windows are set, once."""
        self.rotation_v = event.v
        self.concurrent_until = moment(event.concurrent_until)
        self.retry_until = moment(event.retry_until)
        self.unconfirmed_until = moment(event.unconfirmed_until)
        self.retry_budget = event.retry_budget

    def close_windows(self) -> None:
        """No retry is served any more, and no straggler is told from a fork."""
        self.concurrent_until = self.retry_until = self.unconfirmed_until = None

    def retry(
        self, at: int, *, foreign: bool, always_counts: bool, proven: bool, budget_left: bool
    ) -> tuple[str, bool] | None:
        """Which retry a presentation of this generation is, and whether it counts on the budget; None: it is none.

        `foreign`: from another context than the redeemer's. `always_counts`: the wall clock cannot be relied on.
        `proven`: the caller authenticated, or holds the key that the grant is bound to.
        """
        counts = foreign or always_counts
        if _open(self.concurrent_until, at) and (budget_left or not counts):
            return "concurrent", counts
        if _open(self.retry_until, at) and budget_left:
            return "lost_response", True
        if _open(self.unconfirmed_until, at) and budget_left and proven:
            return "unconfirmed", True
        return None

    def is_straggler(self, at: int, context: str) -> bool:
        """Whether the generation before this one, presented now, is the redeemer's own late request."""
        return _open(self.concurrent_until, at) and context == self.context

    def is_news(self, kind: str, counts: bool, foreign: bool) -> bool:
        """Each kind is recorded once, and once more where it first counts or first comes from another context."""
        return bool(marks(kind, counts, foreign) & ~self.recorded)

    def tokens_like(
        self, scope: Words, resource: Words | None, cnf_jkt: str | None, cnf_x5t_s256: str | None
    ) -> list[AccessToken]:
        """The access tokens that the same request has bought so far, the redemption's own first."""
        wanted = (scope, resource, cnf_jkt, cnf_x5t_s256)
        return [
            token
            for token in (self.token, *self.minted)
            if wanted == (token.scope, token.resource, token.cnf_jkt, token.cnf_x5t_s256)
        ]

    def served(self, event: RetryServed, minted: AccessToken | None) -> None:
        """A retry of this generation was recorded."""
        self.recorded |= marks(event.kind, event.counts, event.context != self.context)
        if minted is not None:
            self.minted = (*self.minted, minted)


def marks(kind: str, counts: bool, foreign: bool) -> int:
    """Three bits a kind: it happened, it counted, it came from another context than the redeemer's."""
    return (1 | counts << 1 | foreign << 2) << 3 * RETRY_KINDS.index(kind)


def _open(until: int | None, at: int) -> bool:
    return until is not None and at <= until
