"""The rules of refresh against their model (RFC 6749 6, RFC 9700 4.14): two readings, one answer, step by step."""

import copy
from collections.abc import Callable
from random import SystemRandom
from typing import Any

import msgspec
import pytest
from hypothesis import settings

from ledger import commands, times
from ledger.policy import STANDARD
from ledger.times import SECOND
from tests.model_checker import Handed, Recorded, check
from tests.model_history import Fact
from tests.model_machine import run_worlds
from tests.model_world import RESOURCES, World

Entries = list[Recorded | Handed]


@pytest.mark.parametrize("batch", range(20))
def test_the_aggregate_answers_and_records_as_the_model_does(batch: int, full: bool) -> None:
    """I-01…I-08, I-16, I-17, I-21 over holders, thieves, clocks that jump, rules that change, backups restored.

    Ten runs of fifty steps a batch; in the full tier a hundred, from seeds that were never tried before.
    """
    seeds = [SystemRandom().randrange(1 << 32) for _ in range(10)] if full else [batch]
    run_worlds(seeds, settings())


# ---------------------------------------------------------------- the checker of histories, and its broken twins


def a_lawful_life() -> Entries:
    """Ten refreshes, one of them retried, a narrowing, a fork under `alert`, a suspension, a reinstatement, an end."""
    world = World("confidential", msgspec.structs.replace(STANDARD, on_reuse="alert", concurrent_seconds=1), RESOURCES)
    world.issue(("read", "openid", "profile"), None, None, None)
    for _ in range(9):
        world.present(world.held["owner"][-1], "owner", "owner")
        world.now += 60 * SECOND
    world.present(world.held["owner"][-1], "owner", "owner", scope=("read",))
    world.present(world.held["owner"][-2], "owner", "owner")
    world.now += 2 * SECOND
    world.present(world.held["owner"][0], "thief", "thief")
    world.count_presentations(1, at_stop=False)
    said: dict[str, Any] = {"reason": None, "requested_by": "operator:desk"}
    world.submit(commands.SuspendGrant(**world.command(), **said, reason_class="termination"))
    world.submit(commands.ReinstateGrant(**world.command(), **said, trust=None))
    world.present(world.held["owner"][-1], "owner", "owner")
    world.submit(commands.RevokeGrant(**world.command(), **said, reason_class="termination"))
    return world.entries


def last(entries: Entries, topic: str) -> Fact:
    return next(one.event for one in entries[::-1] if isinstance(one, Recorded) and one.event["topic"] == topic)


def after(entries: Entries, topic: str, added: Recorded | Handed) -> None:
    """Put an entry right after the last event of a topic, and count versions anew."""
    event = last(entries, topic)
    at = next(number for number, one in enumerate(entries) if isinstance(one, Recorded) and one.event is event)
    entries.insert(at + 1, added)
    for v, one in enumerate([one for one in entries if isinstance(one, Recorded)], 1):
        one.event["v"] = v


def tell(entries: Entries, topic: str, where: str) -> None:
    """Tell the last event of a topic once more."""
    event = copy.deepcopy(last(entries, topic)) | {"at": last(entries, where)["at"]}
    after(entries, where, Recorded(event, {"read", "openid", "profile"}))


def hand(
    entries: Entries, presented: int, given: int, where: str, *, key_id: int = 1, minted_v: int = 1, seconds: int = 0
) -> None:
    """Give tokens once more, so many seconds later."""
    at = times.micros(last(entries, where)["at"]) + seconds * SECOND
    after(entries, where, Handed((presented, 1), (given, key_id), minted_v, {"read"}, {"read"}, at))


def rotated_twice(entries: Entries) -> None:
    last(entries, "grant.token_rotated")["generation"] += 1


def minted_by_nothing(entries: Entries) -> None:
    hand(entries, 9, 10, "grant.retry_served", minted_v=3)


def sibling(entries: Entries) -> None:
    hand(entries, 9, 10, "grant.retry_served", key_id=2)


def old_one_served(entries: Entries) -> None:
    hand(entries, 8, 10, "grant.retry_served")


def old_one_redeemed(entries: Entries) -> None:
    last(entries, "grant.token_redeemed")["generation"] -= 1


def served_while_suspended(entries: Entries) -> None:
    hand(entries, 9, 10, "grant.suspended")


def redeemed_while_suspended(entries: Entries) -> None:
    tell(entries, "grant.token_redeemed", "grant.suspended")


def reinstated_after_the_end(entries: Entries) -> None:
    tell(entries, "grant.reinstated", "grant.revoked")


def served_after_the_end(entries: Entries) -> None:
    hand(entries, 10, 11, "grant.revoked")


def beyond_the_ceiling(entries: Entries) -> None:
    assert isinstance(entries[0], Recorded)
    entries[0].ceiling.clear()


def more_than_granted(entries: Entries) -> None:
    last(entries, "grant.scope_reduced")["scope_after"] = ["write"]


def time_runs_back(entries: Entries) -> None:
    last(entries, "grant.revoked")["at"] = times.text(0)


def served_when_all_is_shut(entries: Entries) -> None:
    hand(entries, 9, 10, "grant.retry_served", seconds=2 * 86_400)


def redeemed_after_idling(entries: Entries) -> None:
    last(entries, "grant.issued")["idle_expires_at"] = last(entries, "grant.issued")["at"]


def idle_passes_absolute(entries: Entries) -> None:
    last(entries, "grant.token_rotated")["idle_expires_at"] = "2100-01-01T00:00:00.000000Z"


def alerted_again(entries: Entries) -> None:
    tell(entries, "grant.reuse_detected", "grant.reuse_detected")


def counted_without_end(entries: Entries) -> None:
    for _ in range(64):
        tell(entries, "grant.presentations_counted", "grant.presentations_counted")


def minted_without_end(entries: Entries) -> None:
    for _ in range(16):
        tell(entries, "grant.retry_served", "grant.retry_served")


@pytest.mark.parametrize(
    ("invariant", "alter"),
    [
        ("I-01", rotated_twice),
        ("I-02", minted_by_nothing),
        ("I-03", sibling),
        ("I-04", old_one_served),
        ("I-04", old_one_redeemed),
        ("I-05", served_while_suspended),
        ("I-05", redeemed_while_suspended),
        ("I-07", reinstated_after_the_end),
        ("I-07", served_after_the_end),
        ("I-08", beyond_the_ceiling),
        ("I-08", more_than_granted),
        ("I-16", time_runs_back),
        ("I-16", served_when_all_is_shut),
        ("I-16", redeemed_after_idling),
        ("I-17", idle_passes_absolute),
        ("I-21", alerted_again),
        ("I-21", counted_without_end),
        ("I-21", minted_without_end),
    ],
)
def test_a_history_that_breaks_an_invariant_is_caught(invariant: str, alter: Callable[[Entries], None]) -> None:
    """The checker knows no verdict; each of these altered lives of one grant breaks the invariant it is named for."""
    lawful = a_lawful_life()
    check(lawful)
    altered = copy.deepcopy(lawful)
    alter(altered)
    with pytest.raises(AssertionError, match=invariant):
        check(altered)
