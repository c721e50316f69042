"""The rules of refresh as a small executable model: what every command to a grant must answer and record.

A second reading of the rules, for judging the first: `decide` is a function of the grant's events (`model_history.py`
reads them), a command and what stands outside the grant. It keeps nothing and asserts nothing; where the two readings
differ, one of them is wrong.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from ledger import commands, times
from ledger.commands import GrantCommand, Rules
from ledger.policy import SECONDS_MAX
from ledger.refusals import Refusal
from ledger.times import SECOND
from tests import model_codes
from tests.model_answers import (
    Answer,
    Served,
    access_token,
    fact,
    idle_end,
    keyless,
    presenter_members,
    refuse,
    stored,
)
from tests.model_history import Fact, History, State, event_id, least, micros

Words: TypeAlias = tuple[str, ...]


def decide(history: History, command: GrantCommand, rules: Rules) -> Answer:
    """What must come of a command. The events of the answer are whole, as stored."""
    now = max(command.at, history.at)
    match command:
        case commands.IssueGrant():
            now, stream = max(now, command.issued_at_least), f"grant:{command.grant_id}"
            answer = _issue(command, rules, now)
        case commands.AuthorizeGrant():
            now, stream = max(now, command.issued_at_least), f"grant:{command.grant_id}"
            answer = model_codes.authorize(command, rules, now)
        case commands.ExchangeCode():
            stream = history.issued["stream"]
            answer = model_codes.exchange(history, command, rules, now)
        case commands.RedeemToken():
            stream = history.issued["stream"]
            answer = Redemption(history, command, rules).decide()
        case _:
            stream = history.issued["stream"]
            answer = _act(history, command, history.judge(now, rules.epoch_end), rules)
    for v, event in enumerate(answer.events, len(history.events) + 1):
        event |= {"stream": stream, "v": v, "at": times.text(now), "command_id": command.command_id}
        event["control"] = rules.control
    return answer


# ---------------------------------------------------------------- acts


def _act(history: History, command: GrantCommand, state: State, rules: Rules) -> Answer:
    """Acts change what is not so yet, and are answered alike where it is. Whoever ends a grant is told so only with an
    end on record: what the clock says it may take back."""
    recorded = bool(history.of("revoked", "expired")) or rules.epoch_end is not None
    match command:
        case commands.RevokeByClient(client_id=who) | commands.RevokeAccessToken(client_id=who) if (
            who != history.issued["client_id"]
        ):
            return refuse(Refusal.UNKNOWN_TOKEN)
        case commands.RevokeByClient():
            ends = fact("revoked", reason_class="completion", requested_by=f"client:{command.client_id}")
            return Answer([] if recorded else [ends])
        case commands.RevokeAccessToken():
            ends = fact("access_token_revoked", issued_v=command.issued_v, requested_by=f"client:{command.client_id}")
            over = state.ended and state.refusal is not Refusal.EXPIRED_IDLE
            return Answer([] if over or history.access_token_revoked(command.issued_v) else [ends])
        case commands.RevokeGrant(reason_class=reason_class, reason=reason, requested_by=who):
            ends = fact("revoked", reason_class=reason_class, reason=reason, requested_by=who)
            return Answer([] if recorded else [ends])
        case commands.SuspendGrant(reason_class=reason_class, reason=reason, requested_by=who):
            if state.ended:
                return refuse(Refusal.CONFLICT)
            stops = fact("suspended", reason_class=reason_class, reason=reason, requested_by=who)
            return Answer([] if state.status == "suspended" else [stops])
        case commands.ReinstateGrant(reason=reason, requested_by=who, trust=trust):
            if trust not in (None, "current"):
                return refuse(Refusal.INVALID_REQUEST)
            if state.ended or (state.reason_class in ("reuse", "rollback") and trust is None):
                return refuse(Refusal.CONFLICT)
            goes_on = fact("reinstated", reason=reason, requested_by=who, trust=trust)
            return Answer([goes_on] if state.status == "suspended" else [])
        case commands.RecordForeignClient(presenter=other, generation=g):
            members = {"presented_generation": g, "presenter_client_id": other.client_id} | presenter_members(other)
            known = history.of("foreign_client_presented")
            return Answer([] if known else [fact("foreign_client_presented", **members)])
        case commands.CountPresentations():
            return _count(history, command, state)
    raise AssertionError(command)


def _count(history: History, command: commands.CountPresentations, state: State) -> Answer:
    """Counts grow from the issuance, and from the end anew; told past powers of two and at a stop, 32 times each."""
    told = history.counted(state)
    end = state.at if state.ended and state.at is not None and not history.of("revoked", "expired") else 0
    before = told[-1]["count"] if told else 0
    count = before + command.count
    passed = before.bit_length() != count.bit_length()
    if len(told) >= 32 or not (passed or command.at_stop):
        return Answer()
    first_at = times.micros(told[0]["first_at"]) if told else max(command.first_at, end)
    span = {"first_at": times.text(first_at), "last_at": times.text(max(command.last_at, first_at))}
    last = {"last_generation": command.last_generation, "last_context": command.last_context}
    return Answer([fact("presentations_counted", count=count, **span, **last)])


# ---------------------------------------------------------------- lifetimes and access tokens


def _issue(command: commands.IssueGrant, rules: Rules, now: int) -> Answer:
    client = rules.client
    if client is None or (not client.authenticates and keyless(client, command.bound_jkt, command.bound_x5t_s256)):
        return refuse(Refusal.INVALID_REQUEST)
    policy, own_idle, own_life = client.policy, command.refresh_token_ttl_seconds, command.grant_ttl_seconds
    for own, most in ((own_idle, policy.refresh_token_ttl_seconds), (own_life, policy.grant_ttl_seconds)):
        if own is not None and not 1 <= own <= (SECONDS_MAX if most is None else most):
            return refuse(Refusal.INVALID_REQUEST)
    if not set(command.scope) <= set(client.scope):
        return refuse(Refusal.INVALID_SCOPE)
    if not set(command.resource or ()) <= set(client.resource):
        return refuse(Refusal.INVALID_TARGET)
    off, life = policy.refresh_token_ttl_seconds == 0, least(own_life, policy.grant_ttl_seconds)
    absolute = None if life is None else now + life * SECOND
    idle = absolute if off else idle_end(now, own_idle, policy.refresh_token_ttl_seconds, absolute)
    resource = command.resource or client.resource[:1] or None
    cnf = command.bound_jkt, command.bound_x5t_s256
    token = access_token(rules, command.at, absolute, tuple(dict.fromkeys(command.scope)), resource, cnf)
    same = ("client_id", "subject_id", "nonce_sha256", "issued_by", "session", "device", "auth_time", "acr", "amr")
    bound = () if client.authenticates else ("bound_jkt", "bound_x5t_s256")
    members = token | {name: getattr(command, name) for name in (*same, *bound)}
    members |= {f"policy_{name}": getattr(policy, name) for name in policy.__struct_fields__}
    members |= {"client_epoch": rules.client_epoch, "subject_epoch": rules.subject_epoch}
    members |= {"idle_seconds": own_idle, "idle_expires_at": stored(idle), "absolute_expires_at": stored(absolute)}
    events = [fact("issued", generation=0, key_id=rules.active_key_id, **members)]
    events += [fact("refresh_token_withheld")] if off else []
    return Answer(events, Served(1, None if off else 0, rules.active_key_id, idle, absolute, len(events)))


# ---------------------------------------------------------------- a refresh token is presented


class Redemption:
    """One presentation of a refresh token: g is the generation presented, c the current one."""

    def __init__(self, history: History, command: commands.RedeemToken, rules: Rules) -> None:
        self.history, self.command, self.rules = history, command, rules
        self.wall, self.now = command.at, max(command.at, history.at)
        self.g, self.c = command.generation, history.current or 0
        self.idle, self.absolute = history.expiry()
        self.context = command.presenter.context

    def decide(self) -> Answer:
        """The order of checks: whose it is, its key, the grant's status, the verdict on the generation."""
        presenter, issued = self.command.presenter, self.history.issued
        bound = {"proof_jkt": issued.get("bound_jkt"), "proof_x5t_s256": issued.get("bound_x5t_s256")}
        needed = {name: key for name, key in bound.items() if key is not None}
        proven = all(getattr(presenter, name) == key for name, key in needed.items())
        if self.rules.client is None or presenter.client_id != issued["client_id"] or self.history.current is None:
            return refuse(Refusal.UNKNOWN_TOKEN)
        if not proven and not presenter.authenticated:
            return refuse(Refusal.UNKNOWN_TOKEN)
        if keyless(self.rules.client, presenter.proof_jkt, presenter.proof_x5t_s256):
            return refuse(Refusal.INVALID_REQUEST)
        self.client, self.policy = self.rules.client, self.rules.client.policy
        self.recognised = presenter.authenticated or (proven and bool(needed))
        state = self.history.judge(self.now, self.rules.epoch_end)
        if state.status == "expired" and state.event_id is None:
            return self.expire("idle" if state.refusal is Refusal.EXPIRED_IDLE else "absolute", state.at)
        if state.refusal is not None:
            return refuse(state.refusal, state.event_id, counts=True)
        return self.verdict()

    def verdict(self) -> Answer:
        distrusted = self.rules.distrusted.get(self.command.key_id)
        if distrusted is not None and (self.g < self.c or not self.recognised):
            return refuse(Refusal.KEY_DISTRUSTED, distrusted)
        if self.g > self.c or self.command.key_id != self.history.made(self.g)["key_id"]:
            return self.ahead()
        # In the last second of the grant `expires_in` would be 0: nothing is served any more.
        over = self.absolute is not None and self.absolute - self.now < SECOND
        if self.g == self.c:
            return self.expire("absolute", self.absolute) if over else self.current()
        if self.g == self.c - 1:
            kind = self.kind_of_retry()
            if kind is not None and over:
                return self.expire("absolute", self.absolute)
            return self.reuse("late_retry") if kind is None else self.retry(kind)
        return self.straggler() if self.is_straggler() else self.reuse("fork")

    # ------------------------------------------------------------ refused, and what that leaves behind

    def presented(self, topic: str, **members: Any) -> Fact:
        return fact(topic, presented_generation=self.g, **members, **presenter_members(self.command.presenter))

    def id_of_new(self, number: int) -> str:
        return f"{self.history.issued['stream']}/{len(self.history.events) + number}"

    def retired_by(self) -> str:
        return event_id(self.history.made(self.g + 1))

    def expire(self, kind: str, moment: int | None) -> Answer:
        refusal = Refusal.EXPIRED_IDLE if kind == "idle" else Refusal.EXPIRED_ABSOLUTE
        event = self.presented("expired", kind=kind, expired_at=stored(moment))
        return Answer([event], refused=refusal, event_id=self.id_of_new(1))

    def ahead(self) -> Answer:
        """The log has lost what this token proves: the grant is stopped once, from then on the token is refused."""
        if not self.command.fresh:
            return Answer(stale=True)
        for event in self.history.of("rollback_detected"):
            return refuse(Refusal.ROTATED, event_id(event), counts=True)
        found = self.presented("rollback_detected", current_generation=self.c)
        stops = fact("suspended", reason_class="rollback", requested_by="ledger:rollback")
        return Answer([found, stops], refused=Refusal.SUSPENDED, event_id=self.id_of_new(2))

    def is_straggler(self) -> bool:
        """Whether the context that has just redeemed c-1 sends c-2 once more."""
        until = micros(self.history.made(self.c), "concurrent_until")
        if self.g != self.c - 2 or until is None or self.now > until or self.history.windows_closed():
            return False
        return bool(self.context == self.history.redeemed(self.c - 1)[-1]["context"])

    def straggler(self) -> Answer:
        return refuse(Refusal.ROTATED, self.retired_by(), counts=True)

    def reuse(self, label: str) -> Answer:
        first, action = self.history.redeemed(self.g)[0], self.policy.on_reuse
        if action in ("alert", "revoke_subject") and not self.recognised:
            action = "revoke"
        event = self.presented(
            "reuse_detected",
            current_generation=self.c,
            label=label,
            seconds_since_redeemed=(self.now - times.micros(first["at"])) // SECOND,
            first_context=first["context"],
            action=action,
        )
        if action == "alert":
            since = max([0, *(other["v"] for other in self.history.of("reinstated"))])
            told = [one for one in self.history.of("reuse_detected") if one["label"] == label and one["v"] > since]
            if told and self.c < told[-1]["current_generation"] + 10:
                return refuse(Refusal.ROTATED, self.retired_by(), counts=True)
            return Answer([event], refused=Refusal.ROTATED, event_id=self.retired_by())
        ends = fact(
            "suspended" if action == "suspend" else "revoked", reason_class="reuse", requested_by="ledger:reuse"
        )
        answer = Answer([event, ends], refused=Refusal.REUSE_DETECTED, event_id=self.id_of_new(2))
        answer.ends_subject = action == "revoke_subject"
        return answer

    # ------------------------------------------------------------ scope and resource

    def scope(self, carried: set[str]) -> Words | Refusal:
        """What a request comes to, in the granted order."""
        granted = self.history.issued["scope"]
        ceiling = set(granted) & set(self.client.scope)
        most = carried & ceiling if self.policy.scope_mode == "ratchet" else ceiling
        asked = set(self.command.scope or ()) - ({"offline_access"} - most)
        if not asked and carried and not carried & ceiling:
            return Refusal.NO_SCOPE_LEFT
        if not asked <= most:
            return Refusal.INVALID_SCOPE
        return tuple(word for word in granted if word in (asked or carried & ceiling))

    def token(self, carried: set[str]) -> Fact | Refusal:
        """The access token that a request comes to."""
        scope, granted, asked = self.scope(carried), self.history.issued.get("resource"), self.command.resource
        if isinstance(scope, Refusal):
            return scope
        if not set(asked or ()) <= set(granted or ()):
            return Refusal.INVALID_TARGET
        resource = tuple(asked or granted or ()) or None
        cnf = self.command.presenter.proof_jkt, self.command.presenter.proof_x5t_s256
        return access_token(self.rules, self.wall, self.absolute, scope, resource, cnf)

    # ------------------------------------------------------------ served

    def current(self) -> Answer:
        """An access token, and the successor or, in reuse mode, the same again."""
        if self.command.retry_after_seconds is not None:
            return refuse(Refusal.TOO_FAST)
        carried, policy = self.history.carried(), self.policy
        token = self.token(carried)
        if isinstance(token, Refusal):
            return refuse(token)
        idle, g, key_id = self.idle, self.g, self.command.key_id
        if policy.refresh_token_ttl_seconds != 0:
            own = self.history.issued.get("idle_seconds")
            idle = idle_end(self.now, own, policy.refresh_token_ttl_seconds, self.absolute)
        distrusted = key_id in self.rules.distrusted
        reuses = policy.rotation == "reuse" and (self.recognised or self.client.unbound_reuse) and not distrusted
        members = (
            token | presenter_members(self.command.presenter) | {"idle_expires_at": stored(idle) if reuses else None}
        )
        events = [fact("token_redeemed", generation=g, **members)]
        events += self.change_of_scope(carried, token["scope"])
        if not reuses:
            g, key_id = g + 1, self.rules.active_key_id
            events.append(
                fact("token_rotated", generation=g, key_id=key_id, idle_expires_at=stored(idle), **self.windows())
            )
        before = len(self.history.events)
        return Answer(events, Served(before + 1, g, key_id, idle, self.absolute, before + len(events)))

    def windows(self) -> Mapping[str, Any]:
        ends = {
            "concurrent_until": self.policy.concurrent_seconds,
            "retry_until": self.policy.retry_window_seconds,
            "unconfirmed_until": self.policy.unconfirmed_seconds,
        }
        until = {name: stored(self.now + seconds * SECOND) for name, seconds in ends.items() if seconds}
        return until | {"retry_budget": self.policy.retry_budget}

    def change_of_scope(self, carried: set[str], scope: Words) -> list[Fact]:
        """What the grant carries from now on, where that was asked for; clamping by today's ceiling moves nothing."""
        after, asked = set(scope), set(self.command.scope or ()) & set(scope)
        if not asked or self.policy.scope_mode == "rfc6749" or after == carried:
            return []
        before = tuple(word for word in self.history.issued["scope"] if word in carried)
        who = f"client:{self.client.client_id}"
        topic = "scope_reduced" if after < carried else "scope_restored"
        return [fact(topic, scope_before=before, scope_after=scope, requested_by=who)]

    # ------------------------------------------------------------ retries

    def counts(self, kind: str) -> bool:
        """Whether a retry uses the budget: all do but a concurrent one from the redeemer's own context, and where the
        wall clock has fallen behind all do."""
        behind = self.wall < self.history.at - self.rules.clock_skew_seconds * SECOND
        return kind != "concurrent" or behind or self.context != self.history.redeemed(self.g)[-1]["context"]

    def kind_of_retry(self) -> str | None:
        """Which retry of the immediate predecessor it is, by the windows frozen in its rotation; None: it is none."""
        made = self.history.made(self.c)
        if self.history.redeemed(self.c) or self.history.windows_closed():
            return None
        counted = {g: any(retry["counts"] for retry in self.history.retries(g)) for g in range(self.g - 10, self.g + 1)}
        left = counted.pop(self.g) or sum(counted.values()) < made["retry_budget"]
        for kind, window in (
            ("concurrent", "concurrent_until"),
            ("lost_response", "retry_until"),
            ("unconfirmed", "unconfirmed_until"),
        ):
            until = micros(made, window)
            if until is None or self.now > until or (kind == "unconfirmed" and not self.recognised):
                continue
            if left or not self.counts(kind):
                return kind
        return None

    def retry(self, kind: str) -> Answer:
        """The same successor; the winner's access token or, for another wish, one of the retry's own."""
        winner, made = self.history.redeemed(self.g)[-1], self.history.made(self.c)
        token = self.token(self.history.carried(winner["v"]))
        if isinstance(token, Refusal):
            return refuse(token)
        minted = [retry for retry in self.history.retries(self.g) if "access_token_expires_at" in retry]
        fits = [
            event["v"] for event in (winner, *minted) if self.lives(event) and _wish(event) == _wish(fact("", **token))
        ]
        if not fits and len(minted) >= 16:
            return refuse(Refusal.ROTATED, event_id(made), counts=True)
        members = {} if fits else token
        events = [self.presented("retry_served", kind=kind, counts=self.counts(kind), **members)]
        minted_v = fits[0] if fits else len(self.history.events) + 1
        redemption = [event["v"] for event in self.history.events if event["command_id"] == winner["command_id"]]
        last_v = redemption[-1] if minted_v == winner["v"] else minted_v
        served = Served(minted_v, self.c, made["key_id"], self.idle, self.absolute, last_v, kind)
        return Answer(events if not fits or self.is_news(kind) else [], served)

    def lives(self, token: Fact) -> bool:
        """Whether an access token may be given once more."""
        distrusted = token["format"] == "jwt" and token["signing_key_id"] in self.rules.distrusted
        expired = self.wall >= times.micros(token["access_token_expires_at"])
        ahead = times.micros(token["access_token_issued_at"]) > self.wall + self.rules.clock_skew_seconds * SECOND
        return not (distrusted or expired or ahead or self.history.access_token_revoked(token["v"]))

    def is_news(self, kind: str) -> bool:
        """Each kind is told once, and once more where it first counts or first comes from elsewhere."""
        here = self.history.redeemed(self.g)[-1]["context"]
        told = [retry for retry in self.history.retries(self.g) if retry["kind"] == kind]
        first_counts = self.counts(kind) and not any(retry["counts"] for retry in told)
        first_elsewhere = self.context != here and all(retry["context"] == here for retry in told)
        return not told or first_counts or first_elsewhere


def _wish(token: Fact) -> list[Any]:
    return [token.get(name) for name in ("scope", "resource", "cnf_jkt", "cnf_x5t_s256")]
