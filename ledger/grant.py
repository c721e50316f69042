"""The grant: one authorization of one client by one subject, one family of refresh tokens. Its rules.

`decide` takes a command and what stands outside the grant, and says which events come of it or raises `Refused`; it
changes nothing. `evolve` (`grant_state`) follows events and never refuses. What comes of an issuance stands in
`issuance`, of a sign-in and its code in `authorization`, of a presented refresh token in `redeem` and `retired`, the
acts of clients and operators here.
"""

from typing import assert_never

from ledger import times
from ledger.authorization import authorize, exchange
from ledger.commands import (
    AuthorizeGrant,
    Command,
    CountPresentations,
    Decision,
    EpochEnd,
    ExchangeCode,
    GrantCommand,
    IssueGrant,
    RecordForeignClient,
    RedeemToken,
    ReinstateGrant,
    RevokeAccessToken,
    RevokeByClient,
    RevokeGrant,
    Rules,
    SuspendGrant,
)
from ledger.events import (
    AccessTokenRevoked,
    ForeignClientPresented,
    GrantReinstated,
    GrantRevoked,
    GrantSuspended,
    PresentationsCounted,
)
from ledger.grant_state import NOTHING_COUNTED, GrantState, Tally
from ledger.issuance import issue
from ledger.members import shown, stamp
from ledger.policy import PRESENTATIONS_COUNTED_EVENTS_MAX
from ledger.redeem import StateMayBeStale, redeem
from ledger.refusals import Refusal, Refused
from ledger.retired import FirstRedemptionMissing
from ledger.standing import Standing

__all__ = ["FirstRedemptionMissing", "Grant", "StateMayBeStale"]


class Grant(GrantState, array_like=True):
    """The aggregate. `Grant()` is one to which nothing has happened yet."""

    def decide(self, command: GrantCommand, rules: Rules) -> Decision:
        """Say what a command comes to: events to append together or not at all, and the answer.

        Pure. Raises Refused where nothing is to be recorded; StateMayBeStale and FirstRedemptionMissing where the
        caller must look again. Decisions use the later of the wall clock and the grant's last `at` (I-16).
        """
        match command:
            case RedeemToken():
                return redeem(self, command, rules)
            case IssueGrant():
                return issue(self, command, rules)
            case AuthorizeGrant():
                return authorize(self, command, rules)
            case ExchangeCode():
                return exchange(self, command, rules)
            case RevokeByClient():
                return self._revoke_by_client(command, rules)
            case RevokeAccessToken():
                return self._revoke_access_token(command, rules)
            case RevokeGrant():
                return self._revoke(command, rules)
            case SuspendGrant():
                return self._suspend(command, rules)
            case ReinstateGrant():
                return self._reinstate(command, rules)
            case RecordForeignClient():
                return self._record_foreign_client(command, rules)
            case CountPresentations():
                return self._count_presentations(command, rules)
            case _:
                assert_never(command)

    # ------------------------------------------------------------ the client and operators act

    def _revoke_by_client(self, command: RevokeByClient, rules: Rules) -> Decision:
        """A retired token gives the family back as well as the current one (RFC 7009 2.1)."""
        self._is_owned_by(command.client_id)
        if self._is_over_for_good(rules):
            return Decision(events=[])
        event = GrantRevoked(
            **stamp(self, command, rules), reason_class="completion", requested_by=f"client:{command.client_id}"
        )
        return Decision(events=[event])

    def _revoke_access_token(self, command: RevokeAccessToken, rules: Rules) -> Decision:
        """Recorded once, and only where the token could be used now or after a reinstatement: the idle end of the
        refresh token leaves access tokens alone (RFC 7009 2.1)."""
        self._is_owned_by(command.client_id)
        standing = self._standing(command, rules)
        over = standing.status == "revoked" or standing.refusal is Refusal.EXPIRED_ABSOLUTE
        if over or self.access_token_revoked(command.issued_v):
            return Decision(events=[])
        event = AccessTokenRevoked(
            **stamp(self, command, rules), issued_v=command.issued_v, requested_by=f"client:{command.client_id}"
        )
        return Decision(events=[event])

    def _is_owned_by(self, client_id: str) -> None:
        if not self.v or client_id != self.client_id:
            raise Refused(Refusal.UNKNOWN_TOKEN)

    def _revoke(self, command: RevokeGrant, rules: Rules) -> Decision:
        if not self.v:
            raise Refused(Refusal.NOT_FOUND)
        if self._is_over_for_good(rules):
            return Decision(events=[])
        event = GrantRevoked(
            **stamp(self, command, rules),
            reason_class=command.reason_class,
            reason=command.reason,
            requested_by=command.requested_by,
        )
        return Decision(events=[event])

    def _suspend(self, command: SuspendGrant, rules: Rules) -> Decision:
        standing = self._standing(command, rules)
        if standing.ended:
            raise Refused(Refusal.CONFLICT, detail="the grant has ended")
        if standing.status == "suspended":
            return Decision(events=[])
        event = GrantSuspended(
            **stamp(self, command, rules),
            reason_class=command.reason_class,
            reason=command.reason,
            requested_by=command.requested_by,
        )
        return Decision(events=[event])

    def _reinstate(self, command: ReinstateGrant, rules: Rules) -> Decision:
        """After reuse or rollback an operator must say that the current token's holder is to be trusted."""
        if command.trust not in (None, "current"):
            raise Refused(Refusal.INVALID_REQUEST, detail='trust may only be "current"')
        standing = self._standing(command, rules)
        if standing.ended:
            raise Refused(Refusal.CONFLICT, detail="the grant has ended")
        if standing.status == "active":
            return Decision(events=[])
        if standing.reason_class in ("reuse", "rollback") and command.trust is None:
            raise Refused(Refusal.CONFLICT, detail='after reuse or rollback this wants trust "current"')
        event = GrantReinstated(
            **stamp(self, command, rules), reason=command.reason, requested_by=command.requested_by, trust=command.trust
        )
        return Decision(events=[event])

    def _is_over_for_good(self, rules: Rules) -> bool:
        """Whether an event says that it has ended. An expiry that only the clock says would be gone once a wrong clock
        is put right: whoever is told that a grant has ended needs the end on record (I-06, I-16)."""
        return self.end is not None or rules.epoch_end is not None

    def _standing(self, command: Command, rules: Rules) -> Standing:
        if not self.v:
            raise Refused(Refusal.NOT_FOUND)
        return self.judge(command.at, rules.epoch_end)

    # ------------------------------------------------------------ what is only noted

    def _record_foreign_client(self, command: RecordForeignClient, rules: Rules) -> Decision:
        """Once a grant, and nothing follows from it: a wrong client never ends anything (RFC 6749 10.4)."""
        if not self.v or self.foreign_recorded or command.presenter.client_id == self.client_id:
            return Decision(events=[])
        event = ForeignClientPresented(
            **stamp(self, command, rules),
            **shown(command.presenter),
            presented_generation=command.generation,
            presenter_client_id=command.presenter.client_id,
        )
        return Decision(events=[event])

    def presentations_counted(self, at: int, epoch_end: EpochEnd | None) -> int:
        """How many presentations events have counted since the issuance or, once the grant has ended, since then."""
        return self._running_tally(at, epoch_end)[0].count

    def _running_tally(self, at: int, epoch_end: EpochEnd | None) -> tuple[Tally, int]:
        """The tally that goes on, and the earliest moment that it may begin at.

        An end by an event of the grant's own has begun a new one. An epoch or an expiry that no event here tells begins
        one that is known by its first moment: never before that end.
        """
        if self.end is not None:
            return self.tally, 0
        standing = self.judge(at, epoch_end)
        if not standing.ended:
            return self.tally, 0
        assert standing.at is not None
        return (self.tally if self.tally.first_at >= standing.at else NOTHING_COUNTED), standing.at

    def _count_presentations(self, command: CountPresentations, rules: Rules) -> Decision:
        """An event when the count has passed the next power of two, at most 32 before the end and 32 after (I-21)."""
        if not self.v:
            raise Refused(Refusal.NOT_FOUND)
        tally, earliest = self._running_tally(command.at, rules.epoch_end)
        count = tally.count + command.count
        due = count >= 1 << tally.count.bit_length() or command.at_stop
        if command.count < 1 or not due or tally.events >= PRESENTATIONS_COUNTED_EVENTS_MAX:
            return Decision(events=[])
        first_at = tally.first_at or max(command.first_at, earliest)
        event = PresentationsCounted(
            **stamp(self, command, rules),
            count=count,
            first_at=times.text(first_at),
            last_at=times.text(max(command.last_at, first_at)),
            last_generation=command.last_generation,
            last_context=command.last_context,
        )
        return Decision(events=[event])
