"""The configuration of a synthetic log."""

import datetime as dt
from dataclasses import dataclass

from pipelines.calendar import DAY_SECONDS
from pipelines.errors import InputError

GENERATOR_VERSION = 1
"""Raised whenever the same configuration would give other rows; a folder is only extended by its own version."""

GENRES = 20
MAX_TASTES = 5


class LandingDays:
    """Dates and times of a log's landing days, which are numbered from 0."""

    first_day: dt.date

    def day(self, number: int) -> dt.date:
        """The landing day `number` days after the first."""
        return self.first_day + dt.timedelta(days=number)

    def day_start(self, number: int) -> int:
        """Unix second at which that day starts, UTC."""
        return (self.day(number) - dt.date(1970, 1, 1)).days * DAY_SECONDS


@dataclass(frozen=True)
class SyntheticConfig(LandingDays):
    """The rows are a function of these fields. Shares are shares of the clean plays."""

    seed: int = 1
    listeners: int = 3000  # in the long run: three quarters are there on the first day, the others join later
    songs: int = 5000  # released before the first day
    artists: int = 600  # a multiple of the 20 genres
    first_day: dt.date = dt.date(2026, 1, 5)
    days: int = 57  # landing days; the only field that may differ when a folder is extended
    plays_per_day: float = 7.0  # mean plays of a listener and day
    new_songs_per_day: int = 15
    elapsed_time: float = 1.0  # the dial: tastes change with 0 the number of plays, 1 the wall clock
    late_share: float = 0.02  # land one to three days after they happened
    like_share: float = 0.01  # extra rows of event type "like": known, and not a play
    null_share: float = 0.002  # dirt, each kind as extra rows: user_id, item_id or timestamp missing
    duplicate_share: float = 0.004  # exact copies
    far_share: float = 0.001  # timestamps three months to three years away from the landing day
    negative_share: float = 0.001  # negative play_ms and duration_ms
    unknown_share: float = 0.001  # undocumented event types
    bots: int = 1  # listeners replaced by robots
    bot_factor: float = 100.0  # plays of a robot, in listeners of mean activity

    def __post_init__(self) -> None:
        for name in ("listeners", "songs", "artists", "days"):
            if getattr(self, name) < 1:
                raise InputError(f"synthetic {name} is {getattr(self, name)}: it must be at least 1")
        if self.artists % GENRES:
            raise InputError(f"synthetic artists is {self.artists}: it must be a multiple of the {GENRES} genres")
        if self.songs < self.artists:
            raise InputError(f"synthetic songs is {self.songs}: every one of the {self.artists} artists needs a song")
        if not 0 <= self.elapsed_time <= 1:
            raise InputError(f"elapsed_time is {self.elapsed_time}: it must be between 0 and 1")
        if self.bots >= self.listeners:
            raise InputError(f"synthetic bots is {self.bots}: it must be less than listeners ({self.listeners})")
        for name in (field for field in self.__dataclass_fields__ if field.endswith("_share")):
            if not 0 <= getattr(self, name) <= 0.5:
                raise InputError(f"synthetic {name} is {getattr(self, name)}: it must be between 0 and 0.5")

    @property
    def artists_per_genre(self) -> int:
        """Artists of each genre."""
        return self.artists // GENRES
