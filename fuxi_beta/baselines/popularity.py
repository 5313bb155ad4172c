"""Popularity: how many distinct listeners played a song lately. Also the list for listeners without history.

Shapes: `B` listeners, `V` songs and the padding row.
"""

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fuxi_beta.baselines.base import ScoredBaseline, or_all_songs, plays_before
from fuxi_beta.config import EvaluateConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.ops import top_k_of_scores
from fuxi_beta.recommender import Candidates, Pairs, Queries, pairs_of_rows
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.histories.shards import Manifest


class Popularity(ScoredBaseline):
    """The same order for everybody."""

    def __init__(self, listeners: Tensor, *, train: TrainConfig, candidates: Tensor) -> None:
        super().__init__(train=train, candidates=candidates)
        self.listeners = listeners  # float32 [V], distinct listeners of each song
        songs = candidates.nonzero().squeeze(1)
        self.order = songs[listeners[songs].argsort(descending=True, stable=True)]  # candidates, best first

    def scores(self, batch: Batch) -> Tensor:
        """Distinct listeners of each song, for everybody. float32 [B, V]."""
        return self.listeners.expand(batch.num_listeners, -1)

    @override
    def queries(self, batch: Batch) -> "OneOrder":
        """Nothing is computed for single listeners."""
        return OneOrder(self, batch.num_listeners)


class OneOrder(Queries):
    """Rankings of one order for a number of listeners."""

    def __init__(self, popularity: Popularity, listeners: int) -> None:
        self.popularity, self.listeners = popularity, listeners

    @override
    def rank(
        self, k: int, *, excluded: Pairs | None = None, candidates: Candidates | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The first songs of the one order that are not excluded; no more of it is looked at than that takes."""
        nothing = torch.zeros(0, dtype=torch.int64)
        listeners, songs = pairs_of_rows(excluded or (nothing, nothing), rows) or (nothing, nothing)
        most = int(listeners.bincount(minlength=1).max())  # songs that may be taken out of a list
        own, order = self.popularity.candidates, self.popularity.order
        if candidates is not None:
            order = order[candidates.among(own)[order]]
        head = torch.zeros(len(own), dtype=torch.bool)
        head[order[: k + most]] = True
        scores = self.popularity.listeners.expand(self.listeners if rows is None else len(rows), -1)
        return top_k_of_scores(scores, candidates=head, k=k, seen=(listeners, songs))


def fit_popularity(
    manifest: Manifest, *, end: int, train: TrainConfig, config: EvaluateConfig, candidates: Tensor | None = None
) -> Popularity:
    """Count distinct listeners over the `popularity_days` before `end` (Unix seconds).

    A listener counts once for a song, and on one day for the first `popularity_daily_cap` songs only, so a bot
    moves no ranking. Under `leave_one_out` the window is the whole history. candidates: bool [V], default every song.
    """
    start = end - config.popularity_days * DAY_SECONDS
    if train.protocol == "leave_one_out":
        start = np.iinfo(np.int64).min
    songs = manifest.vocabulary_size + 1
    calendar, listeners = Calendar(manifest.timezone), np.zeros(songs)
    for plays in plays_before(manifest, end=end, train=train):
        recent = plays.keep(plays.timestamp >= start)
        listener, item = recent.listener, recent.item_index.astype(np.int64)
        counted = _within_cap(listener, calendar.day_number(recent.timestamp), item, config.popularity_daily_cap)
        listeners += np.bincount(np.unique((listener * songs + item)[counted]) % songs, minlength=songs)
    return Popularity(torch.from_numpy(listeners).float(), train=train, candidates=or_all_songs(candidates, manifest))


def _within_cap(listener: np.ndarray, day: np.ndarray, song: np.ndarray, cap: int) -> np.ndarray:
    """Plays of each listener's first `cap` distinct songs of a day. Everything [T], events in time order; bool [T]."""
    if not len(listener):
        return np.zeros(0, bool)
    new_day = np.concatenate([[True], (np.diff(listener) != 0) | (np.diff(day) != 0)])
    run = np.cumsum(new_day) - 1
    _, first = np.unique(run * (int(song.max()) + 1) + song, return_index=True)
    is_first = np.zeros(len(listener), np.int64)
    is_first[first] = 1
    firsts = np.cumsum(is_first)
    before_run = (firsts - is_first)[new_day]
    return (is_first == 1) & (firsts - before_run[run] <= cap)
