"""The industrial presets: numbers of listeners, songs and plays, and how many rows each day and part has."""

import datetime as dt
import math
from dataclasses import dataclass

from pipelines.calendar import DAY_SECONDS
from pipelines.errors import InputError
from pipelines.synthetic.config import LandingDays

INDUSTRIAL_VERSION = "industrial-1"
"""Renamed whenever the same configuration would give other rows; a folder is only extended by its own version."""

BASE_DAYS = 25
"""Landing days over which the counts of a preset hold exactly; a day is 4 % of the interactions."""

PART_ROWS = 2_000_000
"""At most this many rows a file: the unit of work, about 400 MB of memory."""

MAX_LAG = 3
"""Late plays land one to three days after they happened."""

_FEWEST_SONGS = 1000


@dataclass(frozen=True)
class IndustrialConfig(LandingDays):
    """The rows are a function of these fields. All counts are exact over the first `BASE_DAYS` landing days."""

    preset: str
    listeners: int
    songs: int
    interactions: int
    seed: int = 1
    first_day: dt.date = dt.date(2026, 1, 5)

    def __post_init__(self) -> None:
        if min(self.listeners, self.songs) < 1:
            raise InputError(f"{self.listeners} listeners and {self.songs} songs: at least one of each is needed")
        fewest = max(self.listeners, self.songs) + BASE_DAYS
        if self.interactions < fewest:
            raise InputError(
                f"{self.interactions} interactions are too few for every one of {self.listeners} listeners and "
                f"{self.songs} songs to occur: ask for at least {fewest}"
            )
        if self.period > DAY_SECONDS:
            raise InputError(
                f"{self.interactions} interactions are more than the generator's {PART_ROWS * DAY_SECONDS // 4} a day: "
                "ask for fewer"
            )

    @property
    def parts(self) -> int:
        """Files per day."""
        return math.ceil(math.ceil(self.interactions / BASE_DAYS) / PART_ROWS)

    @property
    def period(self) -> int:
        """Seconds, a divisor of the day with at least one residue for every part and lag."""
        residues = self.parts * (MAX_LAG + 1)
        return next((n for n in range(residues, DAY_SECONDS + 1) if DAY_SECONDS % n == 0), residues)

    def rows(self, day: int, part: int | None = None) -> int:
        """Rows that land on day number `day`, in total or in one of its parts."""
        volume = self.interactions * (day + 1) // BASE_DAYS - self.interactions * day // BASE_DAYS
        return volume if part is None else volume * (part + 1) // self.parts - volume * part // self.parts

    def owned(self, count: int, day: int, part: int) -> tuple[int, int]:
        """The slice of `count` listeners or songs that this part must contain; slices repeat every 25 days."""
        index, parts = day % BASE_DAYS * self.parts + part, BASE_DAYS * self.parts
        return count * index // parts, count * (index + 1) // parts


PRESETS = {
    # FuXi-beta (arXiv 2508.10615), table 2: listeners, songs, interactions.
    "daily-recommendations": (19_252_028, 234_488, 1_023_711_774),
    "all-scenarios": (28_927_689, 476_544, 1_313_729_225),
}


def industrial_config(
    preset: str,
    *,
    scale: float = 1.0,
    interactions: int | None = None,
    seed: int = 1,
    first_day: dt.date = dt.date(2026, 1, 5),
) -> IndustrialConfig:
    """A preset, or a scaled one: songs shrink with the square root of the plays, to 1,000 at least.

    interactions: the number of plays in 25 days instead of a scale. Raises InputError for an unknown preset or scale.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown: use one of {', '.join(PRESETS)}, or frozen")
    listeners, songs, plays = PRESETS[preset]
    if interactions is not None:
        scale = interactions / plays
    if scale <= 0:
        raise InputError(f"the scale is {scale:g}: it must be more than 0")
    return IndustrialConfig(
        preset=preset,
        listeners=max(round(listeners * scale), 1),
        songs=max(round(songs * min(math.sqrt(scale), 1.0)), _FEWEST_SONGS),
        interactions=round(plays * scale) if interactions is None else interactions,
        seed=seed,
        first_day=first_day,
    )
