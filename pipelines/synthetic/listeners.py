"""Traits of listeners, which never change: a function of the seed and the listener's number.

Shape legend: `n` listeners of a chunk, `K` tastes (at most five; the first is home), `A` artists of one genre.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.synthetic.config import GENRES, MAX_TASTES, SyntheticConfig
from pipelines.synthetic.stateless_random import Stream, keys, normal, uniform
from pipelines.synthetic.world import Artists

FIRST_USER_ID = 1001
STAY_AROUND, COME_BACK = 0.96, 0.15  # daily probability to stay around, and to come back from being away
ON_SHARE = COME_BACK / (COME_BACK + 1 - STAY_AROUND)

_STARTERS = 0.75  # share of listeners on the first day; the others join after an exponential time
_MEAN_ARRIVAL_DAYS = 28.0
_ACTIVITY_SIGMA = 0.8
_STYLE_FLOOR = 0.02
_FEWEST_TASTES = 2
_REPEAT_LOW = 0.1


@dataclass(frozen=True)
class Traits:
    """The traits of a chunk of listeners (or of replicates of them)."""

    number: np.ndarray  # [n] 0.. listeners - 1
    key: np.ndarray  # [n] uint64, of all random numbers of the listener
    arrival: np.ndarray  # [n] number of the day they join; 0 for listeners of the first day
    is_bot: np.ndarray  # [n]
    rate: np.ndarray  # [n] sessions a day while around
    stay: np.ndarray  # [n] probability that a session continues after a play
    hours: np.ndarray  # [n, 25] cumulative share of sessions that begin before each full hour
    skip: np.ndarray  # [n] share of plays skipped
    repeat: np.ndarray  # [n] share of plays that replay a recent favourite
    tastes: np.ndarray  # [n] number of tastes, 2..5
    genre: np.ndarray  # [n, K] of each taste
    centre: np.ndarray  # [n, K] position on the circle of styles of that genre
    log_dwell: np.ndarray  # [n, K] mean of the logarithm of a dwell time in seconds of the taste clock
    style_width: np.ndarray  # [n] of the circle of styles of a genre that they like
    loyalty: np.ndarray  # [n] probability that the next explored play, at once, is of the same artist
    discovery: np.ndarray  # [n] share of explored artists that come from the whole catalogue
    weekend: np.ndarray  # [n] sessions on Saturdays and Sundays, as a multiple of those on other days

    def take(self, rows: np.ndarray) -> "Traits":
        """The traits of selected rows, which may repeat."""
        return Traits(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def make_listeners(config: SyntheticConfig, low: int, high: int) -> Traits:
    """The traits of listeners number low to high - 1."""
    number = np.arange(low, high)
    key = keys(config.seed ^ 0x5EED, number)
    u = uniform(key, 0, Stream.LISTENER, 10)
    mean_session = config.shortest_session + (config.longest_session - config.shortest_session) * u[3]  # plays
    activity = np.exp(_ACTIVITY_SIGMA * normal(u[2]) - _ACTIVITY_SIGMA**2 / 2)
    arrival = np.where(u[0] < _STARTERS, 0, 1 + (-np.log(u[1]) * _MEAN_ARRIVAL_DAYS).astype(np.int64))
    genre, centre = _tastes(config, key)
    median = np.where(np.arange(MAX_TASTES) == 0, config.home_hours, config.other_hours)
    restless = np.exp(0.3 * normal(u[8]))
    return Traits(
        number=number,
        key=key,
        arrival=arrival,
        is_bot=np.isin(number, bot_numbers(config)),
        rate=config.plays_per_day * activity / (ON_SHARE * mean_session),
        stay=1 - 1 / mean_session,
        hours=_hours(config, u[4], u[5]),
        skip=0.05 + 0.2 * u[6],
        repeat=_REPEAT_LOW + 0.2 * u[7],
        tastes=np.minimum(_FEWEST_TASTES + (u[9] * (MAX_TASTES + 1 - _FEWEST_TASTES)).astype(np.int64), MAX_TASTES),
        genre=genre,
        centre=centre,
        log_dwell=np.log(median * 3600)[None, :] + np.log(restless)[:, None],
        style_width=np.full(len(number), config.style_width),
        loyalty=np.full(len(number), config.loyalty),
        discovery=np.full(len(number), config.discovery),
        weekend=np.full(len(number), config.weekend),
    )


def bot_numbers(config: SyntheticConfig) -> np.ndarray:
    """The numbers of the robots, spread evenly over all listeners."""
    stride = config.listeners // (config.bots + 1) if config.bots else 1
    return (np.arange(config.bots) + 1) * max(stride, 1) - 1 if config.bots else np.zeros(0, np.int64)


def artist_weights(artists: Artists, listeners: Traits) -> np.ndarray:
    """float64 [n, K, A]: probability of each artist of the genre of a taste, given a play in that taste."""
    each = len(artists.weight) // GENRES
    popularity, style = artists.weight.reshape(GENRES, each), artists.style.reshape(GENRES, each)
    distance = np.abs(style[listeners.genre] - listeners.centre[:, :, None])
    distance = np.minimum(distance, 1 - distance)
    width = listeners.style_width[:, None, None]
    weight = popularity[listeners.genre] * (np.exp(-((distance / width) ** 2) / 2) + _STYLE_FLOOR)
    return weight / weight.sum(axis=2, keepdims=True)


def _tastes(config: SyntheticConfig, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct genres by popularity (Gumbel top-k), and a position on the circle of styles of each."""
    u = uniform(key, 0, Stream.TASTE, GENRES + MAX_TASTES)
    log_weight = -0.35 * np.log(np.arange(GENRES) + 1.0)
    score = log_weight[:, None] - np.log(-np.log(u[:GENRES]))
    genre = np.argsort(-score, axis=0, kind="stable")[:MAX_TASTES].T
    return np.ascontiguousarray(genre), np.ascontiguousarray(u[GENRES:].T)


def _hours(config: SyntheticConfig, shift: np.ndarray, evening: np.ndarray) -> np.ndarray:
    """Cumulative hours of session starts: a morning and an evening peak, shifted for each listener."""
    hour = np.arange(24) + 0.5

    def peak(at: np.ndarray, width: float) -> np.ndarray:
        distance = np.abs(hour[None, :] - at[:, None]) % 24
        return np.exp(-((np.minimum(distance, 24 - distance) / width) ** 2) / 2)

    move = 4 * shift - 2
    share = evening[:, None]
    density = (
        0.06
        + (1 - share) * peak(config.morning_hour + move, 1.8)
        + (0.5 + share) * peak(config.evening_hour + move, 2.8)
    )
    cumulative = np.concatenate([np.zeros((len(shift), 1)), density.cumsum(axis=1)], axis=1)
    return cumulative / cumulative[:, -1:]
