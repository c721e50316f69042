"""Finding a generation's first redemption in a grant's own history, whatever stands between, however old it is."""

import random

import pytest

from ledger import times
from ledger.commands import FirstRedemption
from ledger.events import (
    AccessTokenRevoked,
    AnyEvent,
    GrantIssued,
    PresentationsCounted,
    RetryServed,
    TokenRedeemed,
    TokenRotated,
)
from ledger.history import first_redemption, revocation

STREAM = "grant:" + "0" * 32
PAGE_EVENTS = 10


class Kept:
    """A list of events that counts how often it is asked."""

    def __init__(self, events: list[AnyEvent]) -> None:
        self.events = events
        self.asked = 0

    def event_at(self, name: str, v: int) -> AnyEvent:
        assert name == STREAM
        self.asked += 1
        return self.events[v - 1]

    def page(self, name: str, from_v: int) -> list[AnyEvent]:
        assert name == STREAM
        return self.events[from_v - 1 :][:PAGE_EVENTS]


class Grown:
    """A grant's history, grown act by act; `first` notes what any reader would say of each generation."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.first: dict[int, FirstRedemption] = {}
        self.generation = 0
        self._append(
            GrantIssued, client_id="www", subject_id="s", client_epoch=0, subject_epoch=0, nonce_sha256="n", key_id=1,
            generation=0, policy_rotation="rotate", policy_concurrent_seconds=0, policy_retry_window_seconds=0,
            policy_retry_budget=0, policy_unconfirmed_seconds=0, policy_on_reuse="revoke", policy_scope_mode="sticky",
            policy_access_token_ttl_seconds=300, policy_access_token_format="opaque", issued_by="operator:o",
            **self._access(),
        )  # fmt: skip

    def _access(self) -> dict[str, object]:
        return {
            "scope": (), "format": "opaque", "signing_key_id": 1, "client_v": 1,
            "access_token_issued_at": times.text(0), "access_token_expires_at": times.text(0),
        }  # fmt: skip

    def _append(self, topic: type, /, **members: object) -> AnyEvent:
        v = len(self.events) + 1
        common = {"stream": STREAM, "v": v, "at": times.text(v * 1000), "command_id": "c", "control": 0}
        event: AnyEvent = topic(**common | members)
        self.events.append(event)
        return event

    def redeem(self, context: str, *, rotate: bool) -> None:
        redeemed = self._append(
            TokenRedeemed, generation=self.generation, context=context, auth_method="none", **self._access()
        )
        before = self.first.get(self.generation)
        if before is None:
            before = FirstRedemption(context=context, at=times.micros(redeemed.at), rotation_event_id=redeemed.event_id)
        if rotate:
            rotated = self._append(TokenRotated, generation=self.generation + 1, key_id=1, retry_budget=0)
            before = FirstRedemption(context=before.context, at=before.at, rotation_event_id=rotated.event_id)
        self.first[self.generation] = before
        self.generation += rotate

    def retry(self) -> None:
        self._append(
            RetryServed, presented_generation=self.generation - 1, kind="concurrent", counts=False, context="r",
            auth_method="none",
        )  # fmt: skip

    def count(self) -> None:
        self._append(PresentationsCounted, count=1, first_at="", last_at="", last_generation=0, last_context="")

    def give_back(self, issued_v: int, **members: object) -> AnyEvent:
        return self._append(AccessTokenRevoked, issued_v=issued_v, requested_by="client:www", **members)


@pytest.mark.parametrize("seed", range(8))
def test_every_generation_of_a_random_history_is_found(seed: int) -> None:
    """Rotating and reusing, with retries and counted presentations between: the same answer as reading all of it."""
    chance = random.Random(seed)
    grown = Grown()
    for _ in range(120):
        act = chance.random()
        if act < 0.2 and grown.generation:
            grown.retry()
        elif act < 0.3:
            grown.count()
        else:
            grown.redeem(f"context {chance.randrange(5)}", rotate=chance.random() < 0.7)
    kept, last_v = Kept(grown.events), len(grown.events)
    found = {g: first_redemption(kept, STREAM, last_v, g) for g in range(-1, grown.generation + 3)}
    assert {g: grown.first.get(g) for g in found} == found


def test_an_unredeemed_generation_was_never_redeemed() -> None:
    """The current token of a fresh grant has no first redemption yet."""
    assert None is first_redemption(Kept(Grown().events), STREAM, 1, 0)


def test_a_long_history_costs_few_questions() -> None:
    """I-22: one generation of twenty thousand is found with some dozens of questions, a near one with fewer."""
    grown = Grown()
    for _ in range(20_000):
        grown.redeem("c", rotate=True)
    kept, last_v = Kept(grown.events), len(grown.events)
    assert grown.first[9_999] == first_redemption(kept, STREAM, last_v, 9_999)
    assert 120 > kept.asked
    kept.asked = 0
    assert grown.first[19_998] == first_redemption(kept, STREAM, last_v, 19_998)
    assert 30 > kept.asked


@pytest.mark.parametrize("given_back", [50, 1000])
def test_access_tokens_given_back_in_a_row_are_read_twice_at_most(given_back: int) -> None:
    """A client that gives very many of its access tokens back at once makes no later decision dear: once on the way
    back to what was current, once on the way to the redemption."""
    grown = Grown()
    for _ in range(given_back):
        grown.redeem("c", rotate=True)
    for number in range(given_back):
        grown.give_back(2 + 2 * number)
    grown.redeem("d", rotate=True)
    for generation in (0, given_back // 2, given_back - 1, given_back):
        kept = Kept(grown.events)
        assert grown.first[generation] == first_redemption(kept, STREAM, len(grown.events), generation)
        assert 2 * given_back + 60 > kept.asked


def test_when_an_access_token_was_given_back_is_found() -> None:
    """I-22: with the moment that the grant remembers, among others of that moment, in some dozens of questions however
    much lies between; without it in one page of what followed, or not at all."""
    grown = Grown()
    for _ in range(5_000):
        grown.redeem("c", rotate=True)
    other = grown.give_back(4)
    said = grown.give_back(2, at=other.at)
    for _ in range(5_000):
        grown.redeem("c", rotate=True)
    kept, last_v = Kept(grown.events), len(grown.events)
    assert said == revocation(kept, STREAM, last_v, 2, times.micros(said.at))
    assert 30 > kept.asked
    assert None is revocation(kept, STREAM, last_v, 2, None)
    assert said == revocation(Kept([*grown.events[:5], other, said]), STREAM, 7, 2, None)
