"""The catalogue: artists in genres, songs of artists, and how likely each is to be played on which day.

Shape legend: `A` artists, `G` genres, `S` songs released so far.
"""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.schema import CATALOGUE_SCHEMA
from pipelines.synthetic import names
from pipelines.synthetic.config import GENRES, SyntheticConfig
from pipelines.synthetic.stateless_random import Stream, keys, normal, uniform

FIRST_ITEM_ID = 100_001
_FIRST_ARTIST_ID = 501
_FRESH_DAYS = 7  # a release is played more in its first week
_OLDEST_DAYS = 6000  # releases before the first day


@dataclass(frozen=True)
class Artists:
    """All artists; artist a belongs to genre a // artists_per_genre."""

    weight: np.ndarray  # [A] popularity within the genre, sums to 1 in each
    style: np.ndarray  # [A] in [0, 1): position on the circle of styles of its genre
    cumulative: np.ndarray  # [A] of weight times that of the genre: for discoveries outside one's tastes


@dataclass(frozen=True)
class Songs:
    """Songs released up to and including one day, grouped by artist for sampling."""

    artist: np.ndarray  # [S]
    duration_ms: np.ndarray  # [S] int32
    release: np.ndarray  # [S] int64, day number relative to the first day
    by_artist: np.ndarray  # [S] song numbers sorted by artist
    cumulative: np.ndarray  # [S + 1] of the weights in that order
    first: np.ndarray  # [A + 1] position of each artist's first song in that order

    def choose(self, artist: np.ndarray, u: np.ndarray) -> np.ndarray:
        """A song of each artist, drawn by weight with uniforms of the same shape."""
        low, high = self.cumulative[self.first[artist]], self.cumulative[self.first[artist + 1]]
        position = np.searchsorted(self.cumulative, low + u * (high - low), side="right") - 1
        return self.by_artist[np.clip(position, self.first[artist], self.first[artist + 1] - 1)]

    def share(self) -> np.ndarray:
        """[S] the probability of each song when its artist is played."""
        weight = np.diff(self.cumulative)
        total = np.diff(self.cumulative[self.first])
        share = np.empty(len(weight))
        share[self.by_artist] = weight / total[self.artist[self.by_artist]]
        return share


def make_artists(config: SyntheticConfig) -> Artists:
    """Every artist of a configuration."""
    each = config.artists_per_genre
    u = uniform(keys(config.seed, np.arange(config.artists)), 0, Stream.ARTIST, 2)
    rank = u[0].reshape(GENRES, each).argsort(axis=1).argsort(axis=1)
    weight = (rank + 1.0) ** -config.artist_zipf
    weight /= weight.sum(axis=1, keepdims=True)
    genre = (np.arange(GENRES) + 1.0) ** -config.genre_zipf
    genre /= genre.sum()
    cumulative = (weight * genre[:, None]).ravel().cumsum()
    return Artists(weight.ravel(), u[1], cumulative / cumulative[-1])


def make_songs(config: SyntheticConfig, artists: Artists, day: int) -> Songs:
    """The songs released up to and including landing day `day`. Only a song's weight depends on the day."""
    count = song_count(config, day)
    number = np.arange(count)
    u = uniform(keys(config.seed, number), 0, Stream.CATALOGUE, 4)
    # Popular artists have released more songs.
    artist = np.minimum(np.searchsorted(artists.cumulative, u[0], side="right"), config.artists - 1)
    artist[: config.artists] = np.arange(config.artists)
    later = (number - config.songs) // max(config.new_songs_per_day, 1) + 1
    release = np.where(number < config.songs, -1 - (u[2] ** 2 * _OLDEST_DAYS).astype(np.int64), later)
    weight = u[1] ** -config.song_tail * np.where(day - release < _FRESH_DAYS, config.fresh_boost, 1.0)
    duration = np.clip(215 + 38 * normal(u[3]), 125, 420) * 1000
    order = np.argsort(artist, kind="stable")
    cumulative = np.concatenate([[0.0], weight[order].cumsum()])
    first = np.searchsorted(artist[order], np.arange(config.artists + 1))
    return Songs(artist, duration.astype(np.int32), release, order, cumulative, first)


def song_count(config: SyntheticConfig, day: int) -> int:
    """Songs released up to and including landing day `day`."""
    return config.songs + max(day, 0) * config.new_songs_per_day


def catalogue_table(config: SyntheticConfig, songs: Songs, day: int) -> pa.Table:
    """The rows that the service's catalogue gains on `day`: all songs on the first day, then the day's releases."""
    low = 0 if day == 0 else song_count(config, day - 1)
    number = np.arange(low, song_count(config, day))
    artist = songs.artist[number]
    released = [config.first_day + dt.timedelta(days=int(d)) for d in songs.release[number]]
    columns = [
        pa.array(FIRST_ITEM_ID + number, pa.int64()),
        pa.array([names.title(int(n)) for n in number], pa.string()),
        pa.array(_FIRST_ARTIST_ID + artist, pa.int64()),
        pa.array([names.artist(int(a)) for a in artist], pa.string()),
        pa.array(songs.duration_ms[number], pa.int32()),
        pa.array(released, pa.date32()),
    ]
    return pa.table(columns, schema=CATALOGUE_SCHEMA)
