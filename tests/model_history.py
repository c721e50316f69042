"""What a grant's events tell about it: the half of the model that only reads.

Slow and plain on purpose: nothing is remembered but the list of events, and every question is a scan over all of it.
So nothing here shares state or folding with the aggregate that is judged by it, nothing is bounded, and a restored
backup is a shorter list. Events are their members as stored (JSON); moments are microseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

from ledger import times
from ledger.commands import AccessToken, EpochEnd, FirstRedemption, Rules
from ledger.refusals import Refusal
from ledger.times import SECOND

Fact: TypeAlias = dict[str, Any]
NEVER = 1 << 62


@dataclass(frozen=True)
class State:
    """How a grant stands at a moment, and what made it so."""

    status: str
    reason_class: str | None = None
    at: int | None = None
    event_id: str | None = None
    refusal: Refusal | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("revoked", "expired")


def micros(event: Fact, member: str) -> int | None:
    """A moment that an event names; None where it is unlimited or off."""
    return times.micros(event[member]) if member in event else None


def least(*moments: int | None) -> int | None:
    """The least of what is limited; None where nothing is."""
    return min((moment for moment in moments if moment is not None), default=None)


def event_id(event: Fact) -> str:
    return f"{event['stream']}/{event['v']}"


class History:
    """One grant, as its events tell it."""

    def __init__(self, events: Sequence[Fact] = ()) -> None:
        self.events: list[Fact] = []
        self._of_topic: dict[str, list[Fact]] = {}
        for event in events:
            self.append(event)

    def append(self, event: Fact) -> None:
        self.events.append(event)
        self._of_topic.setdefault(event["topic"], []).append(event)

    def of(self, *topics: str) -> list[Fact]:
        """All events of these topics (named without `grant.`), oldest first."""
        found = [event for topic in topics for event in self._of_topic.get(f"grant.{topic}", [])]
        return found if len(topics) == 1 else sorted(found, key=itemgetter("v"))

    @property
    def issued(self) -> Fact:
        """The issuance; where the person agreed before, with the time, scope and resources of that."""
        first, issued = self.events[0], self.of("issued")
        if first["topic"] == "grant.issued" or not issued:
            return first
        own = {name: value for name, value in issued[0].items() if name != "resource"}
        return own | {name: first[name] for name in ("at", "scope", "resource") if name in first}

    @property
    def at(self) -> int:
        return times.micros(self.events[-1]["at"]) if self.events else 0

    @property
    def current(self) -> int | None:
        """The current generation; None where refresh tokens are withheld, or none was issued yet."""
        if self.of("refresh_token_withheld") or not self.of("issued"):
            return None
        rotations = self.of("token_rotated")
        return int(rotations[-1]["generation"]) if rotations else 0

    def made(self, generation: int) -> Fact:
        """The event that made a generation: for all but the first, also the one that retired its predecessor."""
        return next(event for event in self.of("issued", "token_rotated") if event["generation"] == generation)

    def redeemed(self, generation: int) -> list[Fact]:
        """All redemptions of a generation: in reuse mode there may be many; the last of a retired one retired it."""
        return [event for event in self.of("token_redeemed") if event["generation"] == generation]

    def retries(self, generation: int) -> list[Fact]:
        return [event for event in self.of("retry_served") if event["presented_generation"] == generation]

    def carried(self, before_v: int = NEVER) -> set[str]:
        """The scope that the grant carried before an event."""
        changes = [event for event in self.of("scope_reduced", "scope_restored") if event["v"] < before_v]
        return set(changes[-1]["scope_after"] if changes else self.issued["scope"])

    def expiry(self) -> tuple[int | None, int | None]:
        """The idle and the absolute end, as frozen."""
        if not self.of("issued"):
            return (micros(self.issued, "code_expires_at"),) * 2
        current = self.current or 0
        setting = (self.redeemed(current) or [self.made(current)])[-1]
        return micros(setting, "idle_expires_at"), micros(self.issued, "absolute_expires_at")

    def first_redemption(self, generation: int) -> FirstRedemption | None:
        redemptions = self.redeemed(generation)
        if not redemptions:
            return None
        first = redemptions[0]
        by = self.made(generation + 1) if generation < (self.current or 0) else first
        return FirstRedemption(context=first["context"], at=times.micros(first["at"]), rotation_event_id=event_id(by))

    def windows_closed(self) -> bool:
        """Whether a reinstatement that asked for trust closed the windows of the current generation's predecessor."""
        made_v = self.made(self.current or 0)["v"]
        return any(event["v"] > made_v and event.get("trust") == "current" for event in self.of("reinstated"))

    def judge(self, at: int, epoch_end: EpochEnd | None) -> State:
        """Own ends are final; else whatever of a frozen expiry and an epoch came first; else a suspension."""
        for event in self.of("revoked", "expired"):
            return _end(event)
        idle, absolute = self.expiry()
        first = least(idle, absolute)
        # Where an epoch has ended it, the clock decides no more: only which of the two moments was the earlier one.
        if first is not None and first <= (max(at, self.at) if epoch_end is None else epoch_end.at):
            refusal = Refusal.EXPIRED_ABSOLUTE if first == absolute else Refusal.EXPIRED_IDLE
            return State("expired", "expiry", first, None, refusal)
        if epoch_end is not None:
            return State("revoked", epoch_end.reason_class, epoch_end.at, epoch_end.event_id, epoch_end.refusal)
        for event in self.of("suspended", "reinstated")[-1:]:
            if event["topic"] == "grant.suspended":
                refusal = Refusal.REUSE_DETECTED if event["reason_class"] == "reuse" else Refusal.SUSPENDED
                return State("suspended", event["reason_class"], micros(event, "at"), event_id(event), refusal)
        return State("active")

    def counted(self, state: State) -> list[Fact]:
        """What was counted of presentations since the issuance, or since the end once there is one.

        A frozen expiry and an epoch have no place among the grant's events: what they begin is told by its moment.
        """
        told = self.of("presentations_counted")
        if not state.ended or state.at is None:
            return told
        own, moment = self.of("revoked", "expired"), NEVER if self.of("revoked") else state.at
        own_v = own[0]["v"] if own else NEVER
        return [event for event in told if event["v"] > own_v or times.micros(event["first_at"]) >= moment]

    def access_token(self, v: int) -> AccessToken:
        """An access token as its event says, read without the ledger's help."""
        event = self.events[v - 1]
        members: dict[str, Any] = {
            name: event.get(name) for name in ("cnf_jkt", "cnf_x5t_s256", "format", "signing_key_id")
        }
        return AccessToken(
            v=v,
            scope=tuple(event["scope"]),
            resource=tuple(event["resource"]) if "resource" in event else None,
            issued_at=times.micros(event["access_token_issued_at"]),
            expires_at=times.micros(event["access_token_expires_at"]),
            **members,
        )

    def access_token_revoked(self, minted_v: int) -> bool:
        return any(event["issued_v"] == minted_v for event in self.of("access_token_revoked"))

    def access_token_active(self, minted_v: int, wall: int, rules: Rules) -> bool:
        """By the wall clock alone, while the grant is neither suspended nor ended otherwise than by idling."""
        token, now = self.events[minted_v - 1], max(wall, self.at)
        state, absolute = self.judge(now, rules.epoch_end), micros(self.issued, "absolute_expires_at")
        stopped = any(event["topic"] == "grant.suspended" for event in self.of("suspended", "reinstated")[-1:])
        idled = state.refusal is Refusal.EXPIRED_IDLE and rules.epoch_end is None and not stopped
        return (
            rules.client is not None
            and (state.status == "active" or idled)
            and (absolute is None or now < absolute)
            and not self.access_token_revoked(minted_v)
            and not (token["format"] == "jwt" and token["signing_key_id"] in rules.distrusted)
            and times.micros(token["access_token_issued_at"]) <= wall + rules.clock_skew_seconds * SECOND
            and wall < times.micros(token["access_token_expires_at"])
        )


def _end(event: Fact) -> State:
    if event["topic"] == "grant.expired":
        refusal = Refusal.EXPIRED_IDLE if event["kind"] == "idle" else Refusal.EXPIRED_ABSOLUTE
        return State("expired", "expiry", micros(event, "expired_at"), event_id(event), refusal)
    told = {"reuse": Refusal.REUSE_DETECTED, "completion": Refusal.REVOKED_BY_CLIENT}
    refusal = told.get(event["reason_class"], Refusal.REVOKED_BY_OPERATOR)
    return State("revoked", event["reason_class"], micros(event, "at"), event_id(event), refusal)
