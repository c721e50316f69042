"""Times that others write: what RFC 3339 5.6 lets a time be, and nothing else that a parser would take."""

import pytest

from ledger import times

NEW_YEAR_1991 = 662_688_000_000_000
IN_2026 = 1_795_600_800_000_000


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("1985-04-12T23:20:50.520000Z", "1985-04-12T23:20:50.52Z"),
        ("1996-12-20T00:39:57.000000Z", "1996-12-19T16:39:57-08:00"),
        ("1991-01-01T00:00:00.000000Z", "1990-12-31T23:59:60Z"),
        ("1991-01-01T00:00:00.000000Z", "1990-12-31T15:59:60-08:00"),
        ("1970-01-01T00:00:00.000000Z", "1937-01-01T12:00:27.87+00:20"),
    ],
)
def test_the_examples_of_rfc_3339_are_taken(expected: str, given: str) -> None:
    """RFC 3339 5.8. A leap second is the moment after it; what lies before 1970 is its first moment."""
    moment = times.parse(given)
    assert moment is not None
    assert expected == times.text(moment)


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (IN_2026, "2026-11-25t10:00:00z"),
        (IN_2026, "2026-11-25T10:00:00-00:00"),
        (IN_2026, "2026-11-26T09:59:00+23:59"),
        (IN_2026 + 123_456, "2026-11-25T10:00:00.123456789Z"),
        (NEW_YEAR_1991 + 500_000, "1990-12-31T23:59:60.5Z"),
        (0, "1970-01-01T00:00:00Z"),
        (0, "0001-01-01T00:00:00Z"),  # what .NET and Go write for no time at all
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_has_any_offset_and_any_fraction(expected: int, given: str) -> None:
    """RFC 3339 5.6; of a fraction six digits count."""
    assert expected == times.parse(given)


@pytest.mark.parametrize(
    "given",
    [
        "2026-W48-3T10:00:00Z",
        "2026-W48T10:00:00Z",
        "20261125T100000Z",
        "2026-11-25T100000Z",
        "2026-11-25T10:00Z",
        "2026-11-25T10Z",
        "2026-11-25T10:00:00,5Z",
        "2026-11-25T10:00:00.Z",
        "2026-11-25T10:00:00+01",
        "2026-11-25T10:00:00+0100",
        "2026-11-25T10:00:00+01:00:30",
        "2026-11-25T10:00:00+24:00",
        "2026-11-25T10:00:00",
        "2026-11-25 10:00:00Z",
        "2026-11-25T24:00:00Z",
        "2026-02-29T10:00:00Z",
        "2026-11-25T10:00:00Z\n",
        "2026-11-25T10:00:0\u0665Z",
        "2026-11-25T10:00:60Z",
        "2026-11-25T23:59:60Z",
        "1990-12-31T23:59:60-08:00",
        "1990-12-31T23:59:61Z",
        "9999-12-31T23:59:60Z",
        "2026-11-25T10:00:00." + "0" * 100 + "Z",
        "",
    ],
)
def test_what_rfc_3339_does_not_write_is_refused(given: str) -> None:
    """ISO 8601 has more: weeks, no separators, no seconds. A leap second ends a month (RFC 3339 5.7)."""
    assert times.parse(given) is None


@pytest.mark.parametrize(
    "altered",
    [
        "",
        "x026-11-25T17:18:50.000000Z",
        "2026-11-25T17:18:50.00000Z",
        "2026-11-25T17:18:50.000000+00:00",
        "2026-13-25T17:18:50.000000Z",
        "0001-01-01T-1:00:00.000000Z",
        "0001-01-01T00:00:00.-00001Z",
    ],
)
def test_a_time_that_was_altered_is_none(altered: str) -> None:
    """Whatever somebody has made of it: nothing is raised."""
    assert times.known(altered) is None
    assert times.known(times.text(1_764_091_130_000_001)) == 1_764_091_130_000_001
