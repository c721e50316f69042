"""What may happen to a family of refresh tokens: two holders, retries, thefts, clocks, changes, acts, lost backups.

Everything drawn is plain: which holder, which of its tokens counted back from the last, which of a few contexts, scopes
and moments (`model_strategies.py`).
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from hypothesis import seed
from hypothesis import settings as Settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger import commands, times
from ledger.events import Words
from ledger.policy import PRESETS, STANDARD, Policy
from ledger.refusals import Refusal
from ledger.times import SECOND
from tests.model_checker import Token
from tests.model_strategies import (
    GRANTED,
    acts,
    befores,
    behind,
    ceilings,
    changes,
    falls,
    frozen,
    granted,
    jumps,
    late,
    lifetimes,
    nearly,
    on_reuse,
    presets,
    resources,
    scopes,
    then,
)
from tests.model_world import CHALLENGE, CLIENT_SCOPE, RESOURCES, World

STEPS_IN_VAIN: Final = 4

RUNS_PER_SEED = 10
"""Runs of one seed resemble each other: many seeds with few runs each see more than one seed with many."""


def run_worlds(
    seeds: Iterable[int],
    settings: Settings,
    *,
    world: Callable[[str, Policy, Words], World] = World,
    runs: int = RUNS_PER_SEED,
) -> None:
    """Run worlds from each seed. Raises the first disagreement, whose seed stands in the output."""
    for number in seeds:
        print(f"seed {number}")
        machine = seed(number)(type("Family", (Family,), {"new_world": staticmethod(world)}))
        run_state_machine_as_test(machine, settings=Settings(settings, max_examples=runs))


class Family(RuleBasedStateMachine):
    """One client, one subject, one grant after another; every step is judged by the aggregate and by the model."""

    new_world: Callable[[str, Policy, Words], World]

    @initialize(
        preset=presets,
        action=on_reuse,
        tweaks=st.lists(changes, max_size=2),
        kind=st.sampled_from(["confidential"] * 4 + ["public", "public", "key-bound", "certificate-bound"]),
        scope=granted,
        resource=st.sampled_from([None, None, RESOURCES, RESOURCES[:1]]),
        client_resource=st.sampled_from([RESOURCES, RESOURCES, ()]),
        idle_seconds=st.sampled_from([None] * 5 + [40, 7200]),
        life_seconds=st.sampled_from([None] * 5 + [100, 7200]),
        by_code=st.sampled_from([False, False, True]),
    )
    def begin(
        self,
        preset: str,
        action: str,
        tweaks: list[tuple[str, Any]],
        kind: str,
        scope: Words,
        resource: Words | None,
        client_resource: Words,
        idle_seconds: int | None,
        life_seconds: int | None,
        by_code: bool,
    ) -> None:
        given = PRESETS.get(preset) or msgspec.structs.replace(STANDARD, **lifetimes[preset])
        policy = msgspec.structs.replace(given, **dict([("on_reuse", action), *tweaks]))
        self.world, self.idle_for = self.new_world(kind, policy, client_resource), 0
        self.begin_grant(by_code, scope, resource if client_resource else None, idle_seconds, life_seconds)

    def begin_grant(
        self,
        by_code: bool,
        scope: Words,
        resource: Words | None,
        idle_seconds: int | None,
        life_seconds: int | None,
    ) -> None:
        """By a code, which knows no lifetimes of a grant's own, or without."""
        if by_code:
            self.world.sign_in(scope, resource)
        else:
            self.world.issue(scope, resource, idle_seconds, life_seconds)

    def go_on(self) -> World:
        """The world for the next step. What has been suspended for some steps is reinstated, and what has been over
        for some makes room for another grant."""
        world = self.world
        self.idle_for = 0 if world.lives() else self.idle_for + 1
        if self.idle_for > STEPS_IN_VAIN and not world.over() and world.history.current is not None:
            self.reinstate("current")
        elif self.idle_for > STEPS_IN_VAIN:
            world.check_whole()
            self.issue_another(world.commands)
        return world

    def issue_another(self, turn: int) -> None:
        """Another client's rules, another scope, other lifetimes, each in its turn."""
        policy = msgspec.structs.replace(
            PRESETS[("standard", "mobile", "standard", "stable", "strict")[turn % 5]],
            on_reuse=self.world.client.policy.on_reuse,
            access_token_format=("opaque", "jwt")[turn % 2],
            **({"refresh_token_ttl_seconds": None, "grant_ttl_seconds": None} if turn % 7 == 0 else {}),
            **({"refresh_token_ttl_seconds": 0} if turn % 7 == 1 else {}),
        )
        self.world.change_client(policy=policy, scope=CLIENT_SCOPE)
        scope = (GRANTED, GRANTED, ("read", "profile", "offline_access"), ())[turn % 4]
        idle_seconds = (None, None, 40)[turn % 3] if turn % 7 > 1 else None
        self.begin_grant(turn % 3 == 0, scope, None, idle_seconds, (None, None, None, 600)[turn % 4])

    def reinstate(self, trust: str | None) -> None:
        base: dict[str, Any] = self.world.command()
        self.world.submit(commands.ReinstateGrant(**base, reason=None, requested_by="operator:desk", trust=trust))

    def follow(self, then: tuple[int, ...], scope: Words | None = None) -> None:
        """The owner presents one token of its own after another, at once."""
        world = self.go_on()
        for steps_back in then:
            token = self.token("owner", steps_back)
            if token is not None and (world.present(token, "owner", "owner", scope=scope).counts or world.over()):
                return

    def token(self, holder: str, steps_back: int) -> Token | None:
        """A holder's token, counted back from its last; None where it has none. Of a grant without refresh tokens
        somebody presents one all the same."""
        world = self.world
        if world.history.events and world.history.current is None:
            return 0, world.active_key
        held = world.held[holder]
        return held[-1 - min(steps_back, len(held) - 1)] if held else None

    @rule(
        scope=st.sampled_from([GRANTED, ("read", "admin"), ("read", "read")]),
        resource=resources,
        idle_seconds=st.sampled_from([None, 1, 90, 86_400, 400 * 86_400, 4_000_000_000]),
        life_seconds=st.sampled_from([None, 1, 90, 86_400, 400 * 86_400, 0]),
    )
    def another_grant_is_tried(
        self, scope: Words, resource: Words | None, idle_seconds: int | None, life_seconds: int | None
    ) -> None:
        """Perhaps beyond what the client may have; it plays no part in what follows."""
        self.world.try_to_issue(scope, resource, idle_seconds, life_seconds)

    @rule(
        scope=st.sampled_from([GRANTED, GRANTED, ("read", "offline_access"), ("read", "admin"), ()]),
        resource=resources,
        ceiling=st.sampled_from([CLIENT_SCOPE] * 3 + [("read", "openid"), ("write",)]),
        seconds=st.sampled_from([0, 0, 1, 59, 60, 61, -5]),
        end=st.sampled_from(["nobody"] * 3 + ["client", "subject", "operator"] + ["of older ones"] * 2),
        again=st.lists(st.sampled_from([None, "other", "none"]), max_size=2),
    )
    def somebody_else_signs_in(
        self,
        scope: Words,
        resource: Words | None,
        ceiling: Words,
        seconds: int,
        end: str,
        again: list[str | None],
    ) -> None:
        """What becomes of another grant's code; it plays no part in what follows."""
        self.world.try_to_sign_in(scope, resource, ceiling, seconds, end, again)

    # ------------------------------------------------------------ presenting

    @rule(rounds=st.sampled_from([1, 1, 2, 2, 10]), seconds=st.sampled_from([0, 1, 30, 700]), lost=st.booleans())
    def the_owner_refreshes(self, rounds: int, seconds: int, lost: bool) -> None:
        """Rounds of refreshing; of a lost answer the owner keeps the old token, and presents it in the next."""
        world = self.go_on()
        for number in range(rounds):
            token = self.token("owner", 0)
            if token is not None:
                world.present(token, "owner", "owner", lost=lost and number % 2 == 0)
                world.now += seconds * SECOND

    @rule(back=behind, context=st.sampled_from(["owner"] * 6 + ["another"]), scope=scopes, resource=resources)
    def the_owner_asks(self, back: int, context: str, scope: Words | None, resource: Words | None) -> None:
        world, token = self.go_on(), self.token("owner", back)
        if token is not None:
            world.present(token, "owner", context, scope=scope, resource=resource)

    @rule(
        back=behind,
        context=st.sampled_from(["thief"] * 3 + ["owner"]),
        scope=scopes,
        copies=st.booleans(),
        ahead=st.sampled_from([0, 0, 1, 2, 2]),
    )
    def the_thief_presents(self, back: int, context: str, scope: Words | None, copies: bool, ahead: int) -> None:
        """From what it has, or has just copied from the owner, who may have gone some steps on since."""
        world = self.go_on()
        if copies or not world.held["thief"]:
            world.held["thief"] = list(world.held["owner"])
        self.follow((0,) * ahead)
        token = self.token("thief", back)
        if token is not None:
            world.present(token, "thief", context, scope=scope)

    @rule(
        back=st.sampled_from([1, 1, 1, 2]),
        who=st.lists(st.sampled_from(["owner", "owner", "thief", "another"]), min_size=1, max_size=4),
        scope=scopes,
        resource=resources,
        proof=st.sampled_from([None] * 5 + ["right", "other"]),
    )
    def somebody_retries(
        self, back: int, who: list[str], scope: Words | None, resource: Words | None, proof: str | None
    ) -> None:
        """A token right behind the current one, from here and there."""
        world = self.go_on()
        current = world.history.current
        if current is not None and current >= back:
            g = current - back
            for context in who:
                token = g, world.history.made(g)["key_id"]
                world.present(token, "owner", context, scope=scope, resource=resource, proof=proof, lost=True)

    @rule(rounds=st.sampled_from([1, 8, 9, 10, 11]), action=st.sampled_from([None, None, None, "suspend", "revoke"]))
    def the_thief_insists(self, rounds: int, action: str | None) -> None:
        """It comes with its copy, and again when the owner has gone on and perhaps the client's rules have changed."""
        world = self.go_on()
        for _ in range(3):
            self.follow((0,))
        world.held["thief"] = world.held["owner"][:1]
        for gone_on in (0, rounds):
            for _ in range(gone_on if world.lives() else 0):
                self.follow((0,))
            token = self.token("thief", 0)
            if token is not None:
                world.present(token, "thief", "thief")
            if action is not None:
                world.change_policy(on_reuse=action)

    @rule(
        wait=st.sampled_from([0, 5, 11, 30, 59, 61, 700, 4000, "access token", "access token", "last second"]),
        who=st.lists(st.sampled_from(["owner", "owner", "another"]), min_size=1, max_size=3),
        scope=scopes,
        over=st.sampled_from([1, 1, 1, 5]),
    )
    def answers_are_lost(self, wait: int | str, who: list[str], scope: Words | None, over: int) -> None:
        """The owner asks again, after some seconds, as the access token expires or in the grant's last second; perhaps
        for something else, perhaps from elsewhere."""
        world = self.go_on()
        for _ in range(over):
            token = self.token("owner", 0)
            if token is None or not world.lives():
                return
            world.present(token, "owner", "owner", lost=True)
            moments = world.moments()
            last_second = moments.get("absolute", world.now) - SECOND // 2
            named = {"access token": moments["access token"], "last second": last_second}
            world.now = named[wait] if isinstance(wait, str) else world.now + wait * SECOND
            for context in who:
                world.present(token, "owner", context, scope=scope)

    @rule(over=st.integers(2, 18), seconds=st.sampled_from([0, 0, 1]))
    def a_retry_wants_ever_other_things(self, over: int, seconds: int) -> None:
        """One generation is retried with ever other keys."""
        world = self.go_on()
        g = (world.history.current or 0) - 1
        for number in range(over if g >= 0 and world.client.authenticates else 0):
            token = g, world.history.made(g)["key_id"]
            world.present(token, "owner", "owner", proof=f"{number}", lost=True)
            world.now += seconds * SECOND

    @precondition(lambda self: self.world.history.of("authorized"))
    @rule(right=st.sampled_from([False, False, False, True]), proof=st.sampled_from([None, None, "other"]), then=then)
    def a_code_comes_again(self, right: bool, proof: str | None, then: tuple[int, ...]) -> None:
        """With its verifier, as from a thief or a page that was loaded again; more often without."""
        self.world.present_code(challenge=CHALLENGE if right else "x" * 43, proof=proof)
        self.follow(then)

    @rule(proof=st.sampled_from(["right", "other", "none"]), wait=st.sampled_from([None, None, 3]))
    def the_owner_shows_a_key(self, proof: str, wait: int | None) -> None:
        world, token = self.go_on(), self.token("owner", 0)
        if token is not None:
            world.present(token, "owner", "owner", proof=proof, retry_after_seconds=wait)

    # ------------------------------------------------------------ time

    @rule(by=jumps, then=then)
    def time_passes(self, by: int, then: tuple[int, ...]) -> None:
        self.world.now += by
        self.follow(then)

    @rule(by=falls, again=st.booleans(), then=then)
    def the_clock_falls_back(self, by: int, again: bool, then: tuple[int, ...]) -> None:
        """And, perhaps, is put right again."""
        self.world.now -= by
        self.follow(then)
        self.world.now += by if again else 0

    @rule(moment=frozen, by=nearly, then=then)
    def time_reaches_a_frozen_moment(self, moment: str, by: int, then: tuple[int, ...]) -> None:
        """Or just misses it."""
        if self.world.history.events:
            self.world.now = self.world.moments().get(moment, self.world.now) + by
            self.follow(then)

    # ------------------------------------------------------------ what stands outside changes midway

    @rule(change=changes, then=then)
    def the_policy_changes(self, change: tuple[str, Any], then: tuple[int, ...]) -> None:
        self.world.change_policy(**dict([change]))
        self.follow(then)

    @rule(then=st.sampled_from([(0,), (0, 0), (0, 1), (0, 1), (0, 0, 1), (1,)]), stays=st.sampled_from([False, True]))
    def tokens_are_reused(self, then: tuple[int, ...], stays: bool) -> None:
        """For what the owner does now, or until the client's rules change again."""
        self.world.change_policy(rotation="reuse")
        self.follow(then)
        if not stays:
            self.world.change_policy(rotation="rotate")

    @rule(then=then)
    def tokens_rotate_again(self, then: tuple[int, ...]) -> None:
        self.world.change_policy(rotation="rotate")
        self.follow(then)

    @rule(ceiling=ceilings, scope=scopes, then=st.sampled_from([(), (0,), (0,), (0, 0), (0, 1), (1,)]))
    def the_ceiling_moves(self, ceiling: Words, scope: Words | None, then: tuple[int, ...]) -> None:
        self.world.change_client(scope=ceiling)
        self.follow(then, scope)

    @rule(back=behind, authenticates=st.sampled_from([None, None, True, False]))
    def the_client_is_away_for_a_while(self, back: int, authenticates: bool | None) -> None:
        """And comes back as it was, or with another way to authenticate."""
        world, token = self.go_on(), self.token("owner", back)
        world.enabled = False
        world.control += 1
        world.compare_states()
        if token is not None:
            assert world.present(token, "owner", "owner").refused is Refusal.UNKNOWN_TOKEN, "I-06"
        world.change_client()
        if authenticates is not None:
            world.change_client(authenticates=authenticates)
        world.enabled = True

    @precondition(lambda self: self.world.keys < 8)
    @rule(between=then, then=then)
    def one_key_after_another_takes_over(self, between: tuple[int, ...], then: tuple[int, ...]) -> None:
        """And the first of them is not trusted any more."""
        self.world.activate_new_key()
        self.follow(between)
        self.world.activate_new_key(distrust=True)
        self.follow(then)

    @precondition(lambda self: self.world.keys < 8)
    @rule(distrust=st.sampled_from([False, False, True]), then=then)
    def another_key_takes_over(self, distrust: bool, then: tuple[int, ...]) -> None:
        self.world.activate_new_key(distrust=distrust)
        self.follow(then)

    @rule(whose=st.sampled_from(["client", "subject"]), before=befores, rarely=st.integers(0, 3), late=late, then=then)
    def an_epoch_is_raised(self, whose: str, before: str, rarely: int, late: int | None, then: tuple[int, ...]) -> None:
        """Most often one that this grant is too young for; at times when it is about to expire, or has."""
        world = self.world
        if not world.history.events:
            return
        idle, _ = world.history.expiry()
        if rarely == 0 and late is not None and idle is not None:
            world.now = idle + late
        issued_at = times.micros(world.history.issued["at"])
        given = {"none": None, "issued": issued_at, "just after": issued_at + 1, "now": world.now}
        moment = given[before] if rarely == 0 else issued_at
        reason_class = "termination" if whose == "client" else "withdrawal"
        world.raise_epoch(whose, None if moment is None else min(moment, world.now), reason_class)
        self.follow(then)

    # ------------------------------------------------------------ acts

    @rule(act=acts)
    def somebody_acts(self, act: str) -> None:
        world = self.go_on()
        if not world.history.events:
            return
        base: dict[str, Any] = world.command()
        said: dict[str, Any] = {"reason": "0f" * 32, "requested_by": "operator:desk"}
        match act:
            case "give back":
                world.submit(commands.RevokeByClient(**base, client_id="www"))
            case "revoke":
                world.submit(commands.RevokeGrant(**base, **said, reason_class="withdrawal"))
            case "suspend":
                world.submit(commands.SuspendGrant(**base, **said, reason_class="termination"))
            case _:
                trust = {"trust": "current", "distrust": "nobody"}.get(act)
                world.submit(commands.ReinstateGrant(**base, **said, trust=trust))

    @precondition(lambda self: self.world.history.of("suspended"))
    @rule(trust=st.sampled_from(["current", "current", None]), then=then)
    def what_was_suspended_goes_on(self, trust: str | None, then: tuple[int, ...]) -> None:
        self.reinstate(trust)
        self.follow(then)

    @rule(back=st.integers(0, 3), twice=st.booleans(), before=then, then=then)
    def an_access_token_is_given_back(
        self, back: int, twice: bool, before: tuple[int, ...], then: tuple[int, ...]
    ) -> None:
        self.follow(before)
        minted = [event["v"] for event in self.world.history.events if "access_token_expires_at" in event]
        for v in minted[::-1][back : back + 1] * (2 if twice else 1):
            self.world.give_back_access_token(v)
        self.follow(then)

    @rule(number=st.sampled_from([1, 1, 2, 3, 5, 100]), at_stop=st.booleans(), over=st.sampled_from([1] * 6 + [40]))
    def presentations_are_told(self, number: int, at_stop: bool, over: int) -> None:
        for _ in range(over if self.world.history.events else 0):
            self.world.count_presentations(number, at_stop=at_stop)

    @rule(back=behind)
    def another_client_presents(self, back: int) -> None:
        token = self.token("owner", back)
        if token is not None:
            assert self.world.another_client_presents(token).refused is Refusal.UNKNOWN_TOKEN, "I-18"

    # ------------------------------------------------------------ the store

    @precondition(lambda self: len(self.world.commits) > 1)
    @rule(lost=st.integers(1, 4), new_key=st.booleans(), refreshed_first=st.booleans(), then=then)
    def a_backup_is_restored(self, lost: int, new_key: bool, refreshed_first: bool, then: tuple[int, ...]) -> None:
        """With or without a new key, and the owner goes on with what it has."""
        world = self.world
        world.restore(lost)
        if new_key and world.keys < 8:
            world.activate_new_key()
        current = world.history.current
        if refreshed_first and current is not None:  # what the restored log calls current, then what was lost
            world.present((current, world.history.made(current)["key_id"]), "thief", "owner")
        self.follow(then)

    # ------------------------------------------------------------ what holds after every step

    @invariant()
    def both_tell_the_same_state(self) -> None:
        self.world.compare_states()

    def teardown(self) -> None:
        if hasattr(self, "world") and self.world.history.events:
            self.world.check_whole()
