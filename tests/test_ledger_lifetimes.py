"""How long things live: whole seconds, each bound included, the least of all that apply (RF-14, I-17)."""

import pytest

from ledger.lifetimes import access_token_life, idle_end, shortened, window_end
from ledger.policy import SECONDS_MAX
from ledger.refusals import Refusal, Refused
from ledger.times import SECOND, text
from tests.scenario_commands import START, moment


@pytest.mark.parametrize(
    ("wall_clock", "ttl_seconds", "absolute", "life"),
    [
        (0, 300, None, (0, 300)),
        (0.999999, 300, None, (0, 300)),
        (10.5, 300, 1000.0, (10, 310)),
        (10.5, 300, 310.0, (10, 310)),
        (10.5, 300, 309.9, (10, 309)),
        (10.5, 300, 11.5, (10, 11)),
    ],
)
def test_an_access_tokens_life(
    wall_clock: float, ttl_seconds: int, absolute: float | None, life: tuple[float, float]
) -> None:
    """Issued and expiry are rounded down, as a JWT's iat and exp are; never beyond the absolute end (V66)."""
    end = None if absolute is None else moment(absolute)
    assert (moment(life[0]), moment(life[1])) == access_token_life(moment(wall_clock), ttl_seconds, end)


@pytest.mark.parametrize(
    ("own", "clients", "absolute", "end"),
    [
        (None, None, None, None),
        (None, None, 100, 100),
        (None, 50, None, 50),
        (None, 50, 100, 50),
        (None, 50, 40, 40),
        (60, None, None, 60),
        (60, 50, None, 50),
        (60, 70, None, 60),
        (60, 50, 40, 40),
    ],
)
def test_an_idle_end(own: int | None, clients: int | None, absolute: int | None, end: int | None) -> None:
    """The grant's own, the client's of today, the absolute one: whichever is first; null where nothing ends it."""
    absolute_at = None if absolute is None else START + absolute * SECOND
    assert (None if end is None else START + end * SECOND) == idle_end(START, own, clients, absolute_at)


@pytest.mark.parametrize(
    ("asked", "by_policy", "seconds"),
    [
        (None, 50, 50), (None, None, None), (None, 0, 0),
        (1, 50, 1), (50, 50, 50), (51, 50, None), (0, 50, None), (-1, 50, None),
        (SECONDS_MAX, None, SECONDS_MAX), (SECONDS_MAX + 1, None, None), (1, 0, None),
    ],
)  # fmt: skip
def test_a_lifetime_may_be_shortened(asked: int | None, by_policy: int | None, seconds: int | None) -> None:
    """From one second up to the policy's own, which it may equal; the refusal names the member, not the value."""
    if asked is None or seconds is not None:
        assert seconds == shortened("grant_ttl_seconds", asked, by_policy)
        return
    with pytest.raises(Refused, match="grant_ttl_seconds must be at least 1 and no longer") as caught:
        shortened("grant_ttl_seconds", asked, by_policy)
    assert Refusal.INVALID_REQUEST == caught.value.refusal


def test_a_window_of_0_is_off() -> None:
    """It has no last moment, not even its first."""
    assert window_end(START, 0) is None
    assert text(moment(10)) == window_end(START, 10)
