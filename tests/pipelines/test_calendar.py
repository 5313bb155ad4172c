"""Days of a time zone: starts, request times and the next time that serving could know."""

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.calendar import Calendar
from pipelines.errors import InputError

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "America/Santiago",  # skips 00:00 in spring
    "Asia/Beirut",
    "America/Havana",  # has 00:00 twice in autumn
    "America/Nuuk",  # goes back at 00:00 to 23:00 of the day before
    "Australia/Lord_Howe",  # half an hour
    "Pacific/Apia",  # left out 2011-12-30
)
MOMENTS = st.integers(946_684_800, 1_900_000_000)


@settings(deadline=None)  # the first call for a zone builds a table of days
@given(st.sampled_from(ZONES), st.lists(MOMENTS, min_size=1, max_size=20))
def test_day_numbers_agree_with_the_standard_library(zone: str, moments: list[int]) -> None:
    expected = [
        (dt.datetime.fromtimestamp(moment, ZoneInfo(zone)).date() - dt.date(1970, 1, 1)).days for moment in moments
    ]
    assert Calendar(zone).day_number(np.array(moments)).tolist() == expected


@settings(deadline=None)  # the first call for a zone builds a table of days
@given(st.sampled_from(ZONES), MOMENTS)
def test_request_times_are_eight_in_the_morning(zone: str, moment: int) -> None:
    calendar = Calendar(zone)
    day = calendar.date_of(moment)
    requested = calendar.request_time(day)
    local = dt.datetime.fromtimestamp(requested, ZoneInfo(zone))
    assert (local.date(), local.hour, local.minute) == (day, 8, 0)
    number = calendar.day_number(np.array([moment]))
    assert calendar.request_time_of_day_number(number).tolist() == [requested]


HOURS = st.integers(0, 23)


@settings(deadline=None)  # the first call for a zone builds a table of days
@given(st.sampled_from(ZONES), MOMENTS, HOURS)
def test_request_times_are_at_the_request_hour(zone: str, moment: int, hour: int) -> None:
    calendar = Calendar(zone, hour)
    day = calendar.date_of(moment)
    requested = calendar.request_time(day)
    assert calendar.request_time_of_day_number(calendar.day_number(np.array([moment]))).tolist() == [requested]
    times = [dt.datetime.fromtimestamp(calendar.day_start(day) + 3600 * n, ZoneInfo(zone)) for n in range(25)]
    if hour in [time.hour for time in times if time.date() == day]:  # else the clocks skip it
        assert dt.datetime.fromtimestamp(requested, ZoneInfo(zone)).hour == hour


@settings(deadline=None)  # the first call for a zone builds a table of days
@given(st.sampled_from(ZONES), MOMENTS, HOURS)
def test_the_next_request_time_is_the_first_of_all_that_follows(zone: str, moment: int, hour: int) -> None:
    calendar = Calendar(zone, hour)
    days = [calendar.date_of(moment) + dt.timedelta(days=n) for n in range(-1, 3)]
    following = [time for time in map(calendar.request_time, days) if time > moment]
    assert calendar.next_request_time(np.array([moment])).tolist() == following[:1]


@pytest.mark.parametrize(
    ("zone", "day", "starts", "reads", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00Z", "00:00", 23),
        ("Europe/Berlin", "2026-10-25", "2026-10-24T22:00Z", "00:00", 25),
        ("America/Santiago", "2026-09-06", "2026-09-06T04:00Z", "01:00", 23),  # 23:59:59 is followed by 01:00:00
        ("America/Santiago", "2026-04-04", "2026-04-04T03:00Z", "00:00", 25),  # 23:00 to 24:00 comes twice
        ("America/Santiago", "2026-04-05", "2026-04-05T04:00Z", "00:00", 24),
        ("Asia/Beirut", "2026-03-29", "2026-03-28T22:00Z", "01:00", 23),
        ("America/Havana", "2026-11-01", "2026-11-01T04:00Z", "00:00", 25),  # 00:00 comes twice: at the first
        ("Australia/Lord_Howe", "2026-10-04", "2026-10-03T13:30Z", "00:00", 23.5),
    ],
)
def test_days_on_which_the_clocks_change(zone: str, day: str, starts: str, reads: str, hours: float) -> None:
    calendar, date = Calendar(zone), dt.date.fromisoformat(day)
    start, end = calendar.day_start(date), calendar.day_start(date + dt.timedelta(days=1))
    assert dt.datetime.fromtimestamp(start, dt.UTC) == dt.datetime.fromisoformat(starts)
    assert f"{dt.datetime.fromtimestamp(start, ZoneInfo(zone)):%H:%M}" == reads
    assert end - start == hours * 3600
    number = (date - dt.date(1970, 1, 1)).days
    moments = np.array([start - 1, start, start + 3600, end - 3601, end - 1, end])
    assert (calendar.day_number(moments) - number).tolist() == [-1, 0, 0, 0, 0, 1]
    assert [(calendar.date_of(int(moment)) - date).days for moment in moments] == [-1, 0, 0, 0, 0, 1]


def test_eight_oclock_is_seven_hours_after_the_start_of_a_short_day() -> None:
    berlin, sunday = Calendar("Europe/Berlin"), dt.date(2026, 3, 29)
    assert berlin.request_time(sunday) - berlin.day_start(sunday) == 7 * 3600


def test_a_day_that_was_left_out_is_empty() -> None:
    samoa, left_out = Calendar("Pacific/Apia"), dt.date(2011, 12, 30)  # the clocks went from the 29th to the 31st
    assert samoa.day_start(left_out) == samoa.day_start(dt.date(2011, 12, 31))
    number = (left_out - dt.date(1970, 1, 1)).days
    assert samoa.day_number(samoa.day_start(left_out) + np.array([-1, 0])).tolist() == [number - 1, number + 1]


def test_the_next_time_is_the_next_event_within_a_day_and_eight_oclock_after_a_cut() -> None:
    calendar, day = Calendar("UTC"), 86_400
    times = np.array([10 * 3600, 23 * 3600, 23 * 3600])
    following = np.array([11 * 3600, day + 60, 5 * day + 20 * 3600])
    served = calendar.served_next_timestamps(times, following)
    assert served.tolist() == [11 * 3600, day + 8 * 3600, 5 * day + 8 * 3600]


def test_an_hour_that_no_day_has_is_refused() -> None:
    for hour in (-1, 24):
        with pytest.raises(InputError, match=f"the request hour is {hour}: it must be between 0 and 23"):
            Calendar("UTC", hour)


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(InputError, match="Mars/Olympus"):
        Calendar("Mars/Olympus")
