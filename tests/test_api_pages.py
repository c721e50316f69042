"""What every list takes: limits that are clamped, cursors of ours alone, times with their offset."""

import pytest

from api.answers import BadRequest
from api.pages import cursor_of, limit_of, moment_of


@pytest.mark.parametrize(
    ("expected", "given"),
    [(100, None), (1, "1"), (1000, "1000"), (1000, "1001"), (1000, "9" * 40), (7, "007"), (5, 5), (1000, 10**30)],
)
def test_a_limit_is_clamped(expected: int, given: str | int | None) -> None:
    """100 where left out, 1000 at most."""
    assert expected == limit_of(given)


@pytest.mark.parametrize("given", ["0", "-1", "x", "1.0", "1e2", " 1", "", "²", "\uff11", -5])
def test_a_limit_that_is_none_is_refused(given: str | int) -> None:
    """Whole numbers in ASCII digits, from 1 on."""
    with pytest.raises(BadRequest):
        limit_of(given)


@pytest.mark.parametrize(("expected", "given"), [(0, None), (0, "0"), (42, "42"), (2**63 - 1, str(2**63 - 1))])
def test_a_cursor_is_a_position(expected: int, given: str | None) -> None:
    """64 bits, as positions are."""
    assert expected == cursor_of(given)


@pytest.mark.parametrize("given", ["", "-1", "x", str(2**63), "9" * 30, "1 ", "²", "\uff11"])
def test_a_cursor_that_no_page_gave_is_refused(given: str) -> None:
    """Nothing of it reaches the store."""
    with pytest.raises(BadRequest):
        cursor_of(given)


@pytest.mark.parametrize(
    "given",
    ["2026-11-25T10:00:00Z", "2026-11-25t10:00:00z", "2026-11-25T11:00:00+01:00", "2026-11-25T11:00:00 01:00"],
)
def test_a_moment_has_any_offset(given: str) -> None:
    """An unescaped plus arrives as a space."""
    assert 1_795_600_800_000_000 == moment_of("at", given)


@pytest.mark.parametrize("given", ["2026-11-25T10:00:00", "2026-11-25", "now", "", "2026-13-01T00:00:00Z", "1" * 100])
def test_what_is_no_moment_is_refused(given: str) -> None:
    """Without an offset nobody knows when it is."""
    with pytest.raises(BadRequest, match=r", such as 20\S*Z$"):
        moment_of("at", given)
