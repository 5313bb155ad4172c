"""What a task counts of the lists it makes, for the table of list quality.

Shapes: `B` listeners, `K` list length, `V` songs and the padding row.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from fuxi_beta.evaluation.protocol import Contexts
from fuxi_beta.recommender import Pairs, Recommender
from jobs.serving.rules import ListRules, MadeLists
from jobs.serving.rules.explain import QUOTA, Explanations
from jobs.tables.list_quality import (
    ARTISTS,
    CUT,
    EMPTY_SHARE,
    NEW_ARTIST_SHARE,
    OVERLAP,
    POPULAR_SHARE,
    SHORT_SHARE,
    TOP_ARTIST_SHARE,
    QualitySums,
    SongsOfDay,
)
from pipelines.calendar import DAY_SECONDS
from pipelines.histories.buckets import hash_share
from pipelines.histories.histories import Histories, places_in


@dataclass(frozen=True)
class QualityCount:
    """Counts lists as they are made."""

    rules: ListRules
    recommender: Recommender | None
    popularity: Recommender
    sample: float  # share of the listeners of whom it is counted which rules cut how much

    def count(self, contexts: Contexts, made: MadeLists, own: np.ndarray) -> dict[str, QualitySums]:
        """What is counted of the lists of a batch, by segment. own: bool [B], the recommender's; others are popular."""
        histories, items, artist = contexts.histories, made.items.numpy(), self.rules.songs.artist
        length = (items > 0).sum(axis=1)
        values = {
            POPULAR_SHARE: (~own).astype(float),
            SHORT_SHARE: (length < items.shape[1]).astype(float),
            EMPTY_SHARE: (length == 0).astype(float),
            OVERLAP: _overlap(items, self.rules.listeners.lists_before(histories.user_id), self.rules.songs.size),
        }
        if artist is not None:
            values |= _artists(items, artist.numpy(), histories)
        values |= self._cut(contexts, made, own)
        counted = {}
        for name in np.unique(made.segment.astype(str)).tolist():
            rows = np.flatnonzero(made.segment == name)
            counted[name] = QualitySums.of(items[rows], {metric: value[rows] for metric, value in values.items()})
        return counted

    def _cut(self, contexts: Contexts, made: MadeLists, own: np.ndarray) -> dict[str, np.ndarray]:
        """Better-ranked songs that each rule keeps out of the list, NaN of listeners not in the sample. [B] each."""
        names = [*(rule.name for rule in self.rules.rules), QUOTA]
        values = {f"{CUT}{name}": np.full(len(own), np.nan) for name in names}
        sampled = hash_share(contexts.histories.user_id) < self.sample
        for recommender, theirs in ((self.recommender, own), (self.popularity, ~own)):
            rows = np.flatnonzero(sampled & theirs)
            if recommender is None or not len(rows):
                continue
            passed_over = Explanations(self.rules, recommender, contexts, made).passed_over(rows.tolist())
            for row, songs in zip(rows, passed_over, strict=True):
                cut = Counter(song.rule for song in songs)
                for name in names:
                    values[f"{CUT}{name}"][row] = cut[name]
        return values


def songs_of_day(rules: ListRules, eligible: torch.Tensor, time: int) -> SongsOfDay:
    """What the figures of a day need to know of songs. eligible: bool [V'], of the recommender. time: Unix seconds."""
    songs = rules.songs
    may = np.zeros(songs.size, bool)
    may[: len(eligible)] = eligible[: songs.size].numpy()
    age = None
    if songs.released is not None:
        released = songs.released.numpy()
        known = released > np.iinfo(np.int64).min
        age = np.where(known, (time - np.where(known, released, time)) / DAY_SECONDS, np.nan)
    return SongsOfDay(may, None if songs.popularity is None else songs.popularity.numpy(), age)


def _overlap(items: np.ndarray, before: Pairs, songs: int) -> np.ndarray:
    """Share of each list that was in the listener's earlier list; NaN without one of the two. float [B]."""
    rows, earlier = before[0].numpy(), before[1].numpy()
    had = np.bincount(rows, minlength=len(items)) > 0
    known = places_in(np.sort(rows * songs + earlier), np.arange(len(items))[:, None] * songs + items) >= 0
    return np.where(had, _share(known & (items > 0), items > 0), np.nan)


def _artists(items: np.ndarray, artist: np.ndarray, histories: Histories) -> dict[str, np.ndarray]:
    """Figures of artists of each list, over the songs whose artist is known; NaN without one. float [B] each."""
    by = artist[items]
    there = by > 0
    ordered = np.sort(by, axis=1)
    first = np.diff(ordered, axis=1, prepend=0) > 0  # of each run of one artist; unknown ones stand ahead
    places = np.arange(by.shape[1])
    run = 1 + places - np.maximum.accumulate(np.where(first, places, 0), axis=1)
    commonest = np.where(ordered > 0, run, 0).max(axis=1)
    size = int(artist.max()) + 1
    older = np.repeat(np.arange(len(histories)), np.diff(histories.heard_offsets))
    played = np.concatenate(
        [histories.listener * size + artist[histories.item_index], older * size + artist[histories.heard_items]]
    )
    heard = places_in(np.sort(played), np.arange(len(items))[:, None] * size + by) >= 0
    some = there.any(axis=1)
    return {
        ARTISTS: np.where(some, first.sum(axis=1), np.nan),
        TOP_ARTIST_SHARE: np.where(some, commonest / np.maximum(there.sum(axis=1), 1), np.nan),
        NEW_ARTIST_SHARE: _share(there & ~heard, there),
    }


def _share(some: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Trues of each row as a share of others; NaN where these are none. bool [B, K] each -> float [B]."""
    number = of.sum(axis=1)
    return np.where(number > 0, some.sum(axis=1) / np.maximum(number, 1), np.nan)
