"""Published lists, measured by what listeners did with them on the day they were served.

A *hit* is a listed song that the listener played between the request and the end of the day, a *skip* one that was
played then and always skipped. All songs played count, heard before or not: a list of new songs only cannot reach a
recall of 1 when listeners return to songs they know, so these values are below those of the protocol `next_day`.

Shapes: `B` listeners, `K` list length, `T` plays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fuxi_beta.evaluation.metrics import RankedLists, list_metrics

Key = tuple[str, int | None]
"""A metric, and the position in the list that it is of (1 is the first; None: the whole list)."""

Group = tuple[str, str]
"""Lists that are measured together: their segment and their source."""

RANKING = ("hr", "recall", "ndcg")
"""The metrics of `metrics.METRICS` that need nothing but the lists and the songs played."""
LISTS, PLAYED, ACTIVE = ("lists", None), ("played", None), ("active", None)
_PLAYS, _LISTED_PLAYS = ("plays", None), ("listed_plays", None)
_EXPLORED, _EXPLORED_HITS = ("explored", None), ("explored_hits", None)
_WEIGHTS, _WEIGHTED_HITS = ("weights", None), ("weighted_hits", None)


@dataclass(frozen=True)
class ServedLists:
    """What B listeners were served, best first, and their plays from the request to the end of the day."""

    items: np.ndarray  # int [B, K], any number above 0 for each song; 0 where a list is shorter
    propensity: np.ndarray  # float [B, K]; of a song drawn to explore its probability, NaN for all others
    listener: np.ndarray  # int [T], the row of each play's listener
    song: np.ndarray  # int [T], numbered as `items`
    skipped: np.ndarray  # bool [T]


class HitSums:
    """Sums over listeners by group, and the values that follow from them. Batches of listeners may come in any order.

    at: cut-offs of the ranking metrics.
    """

    def __init__(self, at: Sequence[int]) -> None:
        self.at = at
        self.sums: dict[Group, dict[Key, float]] = {}

    def active(self, group: Group) -> int:
        """Listeners of a group who played or skipped something."""
        return int(self.sums.get(group, {}).get(ACTIVE, 0))

    def add_lists(self, groups: Mapping[Group, np.ndarray]) -> None:
        """Count lists that were there for a listener, whether or not the listener came. groups: bool [lists]."""
        self._add(groups, {LISTS: np.ones(max(map(len, groups.values()), default=0))})

    def add(self, served: ServedLists, groups: Mapping[Group, np.ndarray]) -> None:
        """Add listeners who played or skipped something. groups: members, bool [B]."""
        self._add(groups, _of_listeners(served, self.at))

    def _add(self, groups: Mapping[Group, np.ndarray], values: Mapping[Key, np.ndarray]) -> None:
        for group, members in groups.items():
            sums = self.sums.setdefault(group, {})
            for key, value in values.items():
                sums[key] = sums.get(key, 0.0) + float(value[members].sum())

    def values(self, group: Group) -> dict[Key, tuple[float, int]]:
        """Every value of a group, and the listeners that it is of.

        `lists`: of listeners' own; `played`, `plays`: listeners who played and their plays, skips left out;
        `hr_k`, `recall_k`, `ndcg_k`: means over them; `play_share`: of their plays, of listed songs; `hits`, in all and
        at each position; `skips`, also of listeners who only skipped; `explored`, `explored_hit_share`, `explored_ips`:
        songs drawn to explore, the share of them that were hits, `_self_normalized`. A share of nothing is left out.
        """
        sums = {**dict.fromkeys((LISTS, PLAYED), 0.0), **self.sums[group]}
        played, active = int(sums[PLAYED]), self.active(group)
        found: dict[Key, tuple[float, int]] = {LISTS: (sums[LISTS], int(sums[LISTS])), PLAYED: (played, played)}
        counts = ("hits", "plays")
        found |= {key: (value, played) for key, value in sums.items() if key[0] in counts}
        found |= {key: (value, active) for key, value in sums.items() if key[0] == "skips"}
        if played:
            means = {(f"{name}_{k}", None) for name in RANKING for k in self.at}
            found |= {key: (sums[key] / played, played) for key in sorted(means)}
            found["play_share", None] = (sums[_LISTED_PLAYS] / sums[_PLAYS], played)
        if explored := sums.get(_EXPLORED):
            found[_EXPLORED] = (explored, played)
            found["explored_hit_share", None] = (sums[_EXPLORED_HITS] / explored, played)
            found["explored_ips", None] = (_self_normalized(sums), played)
        return found


def _self_normalized(sums: Mapping[Key, float]) -> float:
    """The hit share that the explored songs would have, were all songs that can be drawn equally likely to be.

    Each is weighted by its inverse propensity, and the sum divided by that of the weights: the self-normalized
    estimator of Swaminathan and Joachims (2015).
    """
    return sums[_WEIGHTED_HITS] / sums[_WEIGHTS]


def _of_listeners(served: ServedLists, at: Sequence[int]) -> dict[Key, np.ndarray]:
    """What is summed up, of each listener. float [B] each."""
    listeners, songs = len(served.items), 1 + max(served.items.max(initial=0), served.song.max(initial=0))
    listed = np.where(served.items > 0, np.arange(listeners)[:, None] * songs + served.items, -1)
    plays = served.listener * songs + served.song
    heard = plays[~served.skipped]
    played = np.unique(heard)
    hits = np.isin(listed, played)
    skips = np.isin(listed, np.setdiff1d(plays[served.skipped], played))
    relevant = np.bincount(played // songs, minlength=listeners)
    found: dict[Key, np.ndarray] = {PLAYED: relevant > 0}
    found[ACTIVE] = np.bincount(served.listener, minlength=listeners) > 0
    found[_PLAYS] = np.bincount(heard // songs, minlength=listeners)
    found[_LISTED_PLAYS] = np.bincount(heard[np.isin(heard, listed)] // songs, minlength=listeners)
    for name, marks in (("hits", hits), ("skips", skips)):
        found[name, None] = marks.sum(axis=1)
        found |= {(name, position + 1): marks[:, position] for position in range(marks.shape[1])}
    found |= _ranking(RankedLists(served.items, hits, relevant, np.zeros_like(hits)), at)
    return found | _exploration(served.propensity, hits, relevant)


def _ranking(lists: RankedLists, at: Sequence[int]) -> dict[Key, np.ndarray]:
    """RANKING at the cut-offs, 0 for listeners who played nothing. What was heard before is not known here."""
    some = lists.relevant > 0
    values = list_metrics(RankedLists(lists.items[some], lists.hits[some], lists.relevant[some], lists.heard[some]), at)
    found = {}
    for name in (f"{metric}_{k}" for metric in RANKING for k in at):
        found[name, None] = np.zeros(len(some))
        found[name, None][some] = values[name]
    return found


def _exploration(propensity: np.ndarray, hits: np.ndarray, relevant: np.ndarray) -> dict[Key, np.ndarray]:
    """Explored songs in the lists of listeners who played, their hits, and both by inverse propensity."""
    explored = ~np.isnan(propensity) & (relevant > 0)[:, None]
    weights = 1 / np.where(explored, propensity, np.inf)
    return {
        _EXPLORED: explored.sum(axis=1),
        _EXPLORED_HITS: (explored & hits).sum(axis=1),
        _WEIGHTS: weights.sum(axis=1),
        _WEIGHTED_HITS: (weights * hits).sum(axis=1),
    }
