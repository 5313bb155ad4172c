"""Days of the configured time zone as Unix seconds: where a day starts and when its lists are requested.

A serving day D starts at D 00:00 and its lists are requested at D 08:00, wall clock, so both follow the
zone's daylight saving: days have 23, 24 or 25 hours. Where the clocks skip 00:00 (Santiago, Beirut and Cairo in
spring) a day starts with the hour they jump to; where 00:00 comes twice (Havana in autumn), at the first.
Everything here is vectorised over numpy arrays of Unix seconds.
"""

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from pipelines.errors import InputError

REQUEST_HOUR = 8
"""The hour of the day, wall clock, for which the lists of a day are computed."""

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Calendar:
    """The days of one time zone.

    >>> import datetime as dt
    >>> Calendar("UTC").day_start(dt.date(2026, 3, 2))
    1772409600
    >>> Calendar("UTC").request_time(dt.date(2026, 3, 2)) - Calendar("UTC").day_start(dt.date(2026, 3, 2))
    28800
    """

    timezone: str = "UTC"

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise InputError(
                f"timezone {self.timezone!r} is unknown: use an IANA name such as UTC or Europe/Berlin"
            ) from None

    def day_start(self, day: dt.date) -> int:
        """Unix second at which `day` starts: its first, so that every second belongs to exactly one day."""
        return self._wall_clock(day, 0)

    def request_time(self, day: dt.date) -> int:
        """Unix second at which the lists of `day` are requested (08:00 wall clock)."""
        return self._wall_clock(day, REQUEST_HOUR)

    def date_of(self, timestamp: int) -> dt.date:
        """The day a Unix second falls on."""
        return dt.datetime.fromtimestamp(timestamp, ZoneInfo(self.timezone)).date()

    def day_number(self, timestamps: np.ndarray) -> np.ndarray:
        """Days since 1970-01-01, wall clock, for each Unix second. int64, same shape."""
        timestamps = np.asarray(timestamps, np.int64)
        if self.timezone == "UTC" or timestamps.size == 0:
            return timestamps // DAY_SECONDS
        starts, _, first = self._span(int(timestamps.min()), int(timestamps.max()))
        index = timestamps // DAY_SECONDS - first  # the day in UTC: that of the zone, or the one before or after
        index += timestamps >= starts[index + 1]
        index -= timestamps < starts[index]
        return index + first

    def request_time_of_day_number(self, day_numbers: np.ndarray) -> np.ndarray:
        """Unix second of 08:00 wall clock on each day number. int64, same shape."""
        day_numbers = np.asarray(day_numbers, np.int64)
        if self.timezone == "UTC" or day_numbers.size == 0:
            return day_numbers * DAY_SECONDS + REQUEST_HOUR * 3600
        low, high = int(day_numbers.min()), int(day_numbers.max())
        _, requests, first = self._span(low * DAY_SECONDS, high * DAY_SECONDS)
        return requests[day_numbers - first]

    def served_next_timestamps(self, timestamps: np.ndarray, next_timestamps: np.ndarray) -> np.ndarray:
        """`t_{i+1}` as the daily job knows it: the time of the next event on the same day, else 08:00 of its day.

        Lists of a day are computed from events before its 00:00 and for its 08:00, so the last event before a
        cut must not have a next time that serving cannot know. Training, evaluation and serving all call this.
        """
        day, next_day = self.day_number(timestamps), self.day_number(next_timestamps)
        return np.where(next_day > day, self.request_time_of_day_number(next_day), next_timestamps)

    def _wall_clock(self, day: dt.date, hour: int) -> int:
        moment = dt.datetime(day.year, day.month, day.day, hour, tzinfo=ZoneInfo(self.timezone))
        return int(moment.timestamp())

    def _span(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray, int]:
        return _day_table(self.timezone, low // DAY_SECONDS - 2, high // DAY_SECONDS + 3)


@lru_cache(maxsize=32)
def _day_table(timezone: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Starts and request times of the day numbers [first, last), and first."""
    calendar, epoch = Calendar(timezone), dt.date(1970, 1, 1)
    days = [epoch + dt.timedelta(days=n) for n in range(first, last)]
    starts = np.array([calendar.day_start(day) for day in days], np.int64)
    requests = np.array([calendar.request_time(day) for day in days], np.int64)
    return starts, requests, first
