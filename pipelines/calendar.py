"""Days of the configured time zone as Unix seconds: where a day starts and when its lists are requested.

A serving day D starts at D 00:00 and its lists are requested at the request hour of D (08:00 by default), wall
clock, so both follow the zone's daylight saving: days have 23, 24 or 25 hours. An hour that the clocks skip (00:00 in
Santiago, Beirut and Cairo in spring) is the one they jump to; an hour that comes twice (00:00 in Havana in autumn) is
the first. Everything here is vectorised over numpy arrays of Unix seconds.
"""

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from pipelines.errors import InputError

REQUEST_HOUR = 8
"""The request hour unless configured otherwise (`serving.request_hour`), and of models that do not name theirs."""

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Calendar:
    """The days of one time zone, and the hour (0 to 23, wall clock) at which the lists of a day are requested.

    >>> import datetime as dt
    >>> Calendar("UTC").day_start(dt.date(2026, 3, 2))
    1772409600
    >>> Calendar("UTC").request_time(dt.date(2026, 3, 2)) - Calendar("UTC").day_start(dt.date(2026, 3, 2))
    28800
    """

    timezone: str = "UTC"
    request_hour: int = REQUEST_HOUR

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise InputError(
                f"timezone {self.timezone!r} is unknown: use an IANA name such as UTC or Europe/Berlin"
            ) from None
        if not 0 <= self.request_hour <= 23:
            raise InputError(f"the request hour is {self.request_hour}: it must be between 0 and 23")

    def day_start(self, day: dt.date) -> int:
        """Unix second at which `day` starts: its first, so that every second belongs to exactly one day."""
        return self._wall_clock(day, 0)

    def request_time(self, day: dt.date) -> int:
        """Unix second at which the lists of `day` are requested."""
        return self._wall_clock(day, self.request_hour)

    def date_of(self, timestamp: int) -> dt.date:
        """The day a Unix second falls on."""
        return dt.datetime.fromtimestamp(timestamp, ZoneInfo(self.timezone)).date()

    def day_number(self, timestamps: np.ndarray) -> np.ndarray:
        """Days since 1970-01-01, wall clock, for each Unix second. int64, same shape."""
        timestamps = np.asarray(timestamps, np.int64)
        if self.timezone == "UTC" or timestamps.size == 0:
            return timestamps // DAY_SECONDS
        low, high = int(timestamps.min()) // DAY_SECONDS, int(timestamps.max()) // DAY_SECONDS
        starts, _, first = _day_table(self, low, high)
        index = timestamps // DAY_SECONDS - first  # the day in UTC: that of the zone, or the one before or after
        index += timestamps >= starts[index + 1]
        index -= timestamps < starts[index]
        return index + first

    def request_time_of_day_number(self, day_numbers: np.ndarray) -> np.ndarray:
        """Unix second of the request hour on each day number. int64, same shape."""
        day_numbers = np.asarray(day_numbers, np.int64)
        if self.timezone == "UTC" or day_numbers.size == 0:
            return day_numbers * DAY_SECONDS + self.request_hour * 3600
        _, requests, first = _day_table(self, int(day_numbers.min()), int(day_numbers.max()))
        return requests[day_numbers - first]

    def next_request_time(self, timestamps: np.ndarray) -> np.ndarray:
        """The first request time after each Unix second. int64, same shape."""
        day = self.day_number(timestamps)
        today = self.request_time_of_day_number(day)
        return np.where(today > timestamps, today, self.request_time_of_day_number(day + 1))

    def served_next_timestamps(self, timestamps: np.ndarray, next_timestamps: np.ndarray) -> np.ndarray:
        """`t_{i+1}` as the daily job knows it: the time of the next event, if on the same day, else its day's request.

        Lists of a day are computed from events before its 00:00 and for its request hour, so the last event before a
        cut must not have a next time that serving cannot know. Training, evaluation and serving all call this.
        """
        day, next_day = self.day_number(timestamps), self.day_number(next_timestamps)
        return np.where(next_day > day, self.request_time_of_day_number(next_day), next_timestamps)

    def _wall_clock(self, day: dt.date, hour: int) -> int:
        moment = dt.datetime(day.year, day.month, day.day, hour, tzinfo=ZoneInfo(self.timezone))
        return int(moment.timestamp())


@lru_cache(maxsize=32)
def _day_table(calendar: Calendar, low: int, high: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Starts and request times of the days from two before `low` to two after `high`, and the number of the first."""
    first, epoch = low - 2, dt.date(1970, 1, 1)
    days = [epoch + dt.timedelta(days=n) for n in range(first, high + 3)]
    starts = np.array([calendar.day_start(day) for day in days], np.int64)
    requests = np.array([calendar.request_time(day) for day in days], np.int64)
    return starts, requests, first
