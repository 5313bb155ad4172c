"""Days of a time zone: starts, request times and the next time that serving could know."""

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.calendar import Calendar
from pipelines.schema import InputError

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")
MOMENTS = st.integers(946_684_800, 1_900_000_000)


@given(st.sampled_from(ZONES), st.lists(MOMENTS, min_size=1, max_size=20))
def test_day_numbers_agree_with_the_standard_library(zone: str, moments: list[int]) -> None:
    expected = [
        (dt.datetime.fromtimestamp(moment, ZoneInfo(zone)).date() - dt.date(1970, 1, 1)).days for moment in moments
    ]
    assert Calendar(zone).day_number(np.array(moments)).tolist() == expected


@given(st.sampled_from(ZONES), MOMENTS)
def test_request_times_are_eight_in_the_morning(zone: str, moment: int) -> None:
    calendar = Calendar(zone)
    day = calendar.date_of(moment)
    requested = calendar.request_time(day)
    local = dt.datetime.fromtimestamp(requested, ZoneInfo(zone))
    assert (local.date(), local.hour, local.minute) == (day, 8, 0)
    number = calendar.day_number(np.array([moment]))
    assert calendar.request_time_of_day_number(number).tolist() == [requested]


def test_a_day_of_the_clock_change_has_23_hours() -> None:
    berlin, sunday = Calendar("Europe/Berlin"), dt.date(2026, 3, 29)
    assert berlin.day_start(dt.date(2026, 3, 30)) - berlin.day_start(sunday) == 23 * 3600
    assert berlin.request_time(sunday) - berlin.day_start(sunday) == 7 * 3600


def test_the_next_time_is_the_next_event_within_a_day_and_eight_oclock_after_a_cut() -> None:
    calendar, day = Calendar("UTC"), 86_400
    times = np.array([10 * 3600, 23 * 3600, 23 * 3600])
    following = np.array([11 * 3600, day + 60, 5 * day + 20 * 3600])
    served = calendar.served_next_timestamps(times, following)
    assert served.tolist() == [11 * 3600, day + 8 * 3600, 5 * day + 8 * 3600]


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(InputError, match="Mars/Olympus"):
        Calendar("Mars/Olympus")
