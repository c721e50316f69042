"""Guessing secrets gets slower, and only for the one who guesses (RFC 6749 2.3.1, TE-8)."""

from api.throttle import Throttle


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_tenth_failure_waits_and_each_further_one_twice_as_long_up_to_a_minute() -> None:
    """TE-8: nine failures are free, then 1 s doubling to 60."""
    clock = Clock()
    throttle = Throttle(clock)
    waits = []
    for _ in range(19):
        waits.append(throttle.failed("www", "192.0.2.1"))
        clock.now += waits[-1]
    assert [0] * 9 + [1, 2, 4, 8, 16, 32, 60, 60, 60, 60] == waits


def test_the_wait_runs_down_in_whole_seconds_and_then_lets_in() -> None:
    """Retry-After is an integer that is never too short (RFC 9110 10.2.3)."""
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(11):
        throttle.failed("www", "192.0.2.1")
    seen = []
    for _ in range(5):
        seen.append(throttle.wait_seconds("www", "192.0.2.1"))
        clock.now += 0.5
    assert [2, 2, 1, 1, 0] == seen


def test_other_addresses_and_other_clients_do_not_wait() -> None:
    """TE-8: an attacker locks nobody out."""
    throttle = Throttle(Clock())
    for _ in range(20):
        throttle.failed("www", "192.0.2.1")
    assert 60 == throttle.wait_seconds("www", "192.0.2.1")
    assert 0 == throttle.wait_seconds("www", "192.0.2.2")
    assert 0 == throttle.wait_seconds("oth", "192.0.2.1")


def test_the_count_is_forgotten_a_quarter_of_an_hour_after_the_last_failure() -> None:
    """TE-8: and not a second earlier, whatever has succeeded between."""
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(10):
        throttle.failed("www", "192.0.2.1")
    clock.now += 899
    assert 2 == throttle.failed("www", "192.0.2.1")
    clock.now += 900
    assert 0 == throttle.wait_seconds("www", "192.0.2.1")
    assert 0 == throttle.failed("www", "192.0.2.1")


def test_the_map_stays_bounded_and_forgets_whoever_was_quiet_longest() -> None:
    """A limit on everything: a million addresses cost the memory of the bound."""
    throttle = Throttle(Clock(), entries_max=100)
    for _ in range(10):
        throttle.failed("www", "busy")
    for number in range(500):
        throttle.failed("www", f"address-{number}")
        if number % 50 == 0:
            throttle.failed("www", "busy")
    assert 100 == len(throttle)
    assert 60 == throttle.wait_seconds("www", "busy")
