"""The configuration of a synthetic log."""

import datetime as dt
from dataclasses import dataclass

from pipelines.calendar import DAY_SECONDS
from pipelines.errors import InputError

GENERATOR_VERSION = 1
"""Raised whenever the same configuration would give other rows; a folder is only extended by its own version."""

GENRES = 20
MAX_TASTES = 5


_ABOVE_ZERO = (
    *("fresh_boost", "style_width", "home_hours", "other_hours", "shortest_session", "longest_session", "weekend"),
)


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
    artist_zipf: float = 0.6  # popularity of artists within a genre falls as rank^-this
    genre_zipf: float = 0.35  # the same for genres
    song_tail: float = 0.45  # popularity of songs within an artist is u^-this, u uniform: a Zipf tail
    fresh_boost: float = 2.0  # so many times as much is a release played in its first week
    style_width: float = 0.15  # of the circle of styles of a genre that a listener likes
    loyalty: float = 0.35  # probability that the next explored play, at once, is of the same artist
    discovery: float = 0.08  # share of explored artists that come from the whole catalogue
    home_hours: float = 11.0  # median dwell in the first taste
    other_hours: float = 6.0  # and in the others
    shortest_session: float = 5.0  # mean plays of a session, of the listener with the shortest
    longest_session: float = 15.0
    morning_hour: float = 8.5  # when most sessions begin, shifted by up to two hours for each listener
    evening_hour: float = 19.0
    weekend: float = 1.0  # sessions on Saturdays and Sundays, as a multiple of those on other days

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
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InputError(f"synthetic {name} is {getattr(self, name)}: it must be above 0")
        for name in ("loyalty", "discovery"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"synthetic {name} is {getattr(self, name)}: it must be at least 0 and below 1")
        for name in (field for field in self.__dataclass_fields__ if field.endswith("_share")):
            if not 0 <= getattr(self, name) <= 0.5:
                raise InputError(f"synthetic {name} is {getattr(self, name)}: it must be between 0 and 0.5")

    @property
    def artists_per_genre(self) -> int:
        """Artists of each genre."""
        return self.artists // GENRES


FROZEN = SyntheticConfig(
    seed=20_261_126,
    songs=2600,
    artists=320,
    first_day=dt.date(2025, 9, 1),
    plays_per_day=9.0,
    new_songs_per_day=9,
    elapsed_time=0.6,
    artist_zipf=0.85,
    genre_zipf=0.2,
    song_tail=0.6,
    fresh_boost=4.0,
    style_width=0.22,
    loyalty=0.15,
    discovery=0.16,
    home_hours=20.0,
    other_hours=3.0,
    shortest_session=3.0,
    longest_session=8.0,
    morning_hour=7.0,
    evening_hour=21.5,
    weekend=1.7,
)
"""The setting that nothing is tuned on: models see it once, for the last table. Never change it, whatever they score.

Written before any model was run on it. Against the default, popularity is more skewed by artist and song and less by
genre, listeners are half as loyal to an artist and discover twice as much, home lasts longer and other tastes are
shorter, sessions are shorter and more of them at other hours and on weekends, and releases matter more.
"""
