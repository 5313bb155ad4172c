"""Ranking metrics, one value a listener; means over listeners are the caller's.

Evaluation, the Delta table of metrics, the daily report and `fuxi reproduce` take every metric of `METRICS`.

Shapes: `B` listeners, `K` list length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RANK_LIMIT = 2500
"""Leave one out: a rank beyond this counts as the next one (the authors' evaluation keeps no more)."""
RANK_AT = (10, 50)
"""Cut-offs of leave one out, the paper's protocol."""
SERVED = "served_"
"""Prefix of the names of metrics of lists as listeners get them, under list rules; without it they are of raw lists."""


@dataclass(frozen=True)
class RankedLists:
    """Lists of songs, best first, and which of these songs are relevant.

    items: int [B, K], 0 where a list is shorter. hits: bool [B, K], whether the song is relevant. relevant: int [B],
    how many relevant songs there are, at least one. heard: bool [B, K], whether the listener had heard the song.
    """

    items: np.ndarray
    hits: np.ndarray
    relevant: np.ndarray
    heard: np.ndarray


@dataclass(frozen=True)
class Metric:
    """How a metric is computed and shown. Its values are in [0, 1].

    of_lists: of ranked lists at cut-off k. of_ranks: of the rank of one relevant song (float [B], 1 = first, halves
    between ties) at cut-off k. Each returns float [B]; without one, the metric is not measured there. title: in tables
    for people. at_cut_offs: whether there is a value for each cut-off, or one of the whole list (k is 0 then).
    """

    title: str
    of_lists: Callable[[RankedLists, int], np.ndarray] | None = None
    of_ranks: Callable[[np.ndarray, int], np.ndarray] | None = None
    at_cut_offs: bool = True


def _discount(k: int) -> np.ndarray:
    return 1 / np.log2(np.arange(2, k + 2))


def _ndcg_of_lists(lists: RankedLists, k: int) -> np.ndarray:
    """Discounted hits over those of the best possible list."""
    top, discount = lists.hits[:, :k], _discount(k)
    return top @ discount[: top.shape[1]] / np.cumsum(discount)[np.minimum(lists.relevant, k) - 1]


def _ndcg_of_ranks(ranks: np.ndarray, k: int) -> np.ndarray:
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def _mrr_of_lists(lists: RankedLists, _: int) -> np.ndarray:
    """Of the first hit in the whole list."""
    return np.where(lists.hits.any(axis=1), 1 / (1 + lists.hits.argmax(axis=1)), 0.0)


def _repeats(lists: RankedLists, k: int) -> np.ndarray:
    """Share of the listed songs that the listener had heard."""
    return lists.heard[:, :k].sum(axis=1) / np.maximum((lists.items[:, :k] > 0).sum(axis=1), 1)


METRICS = {
    "ndcg": Metric("NDCG", _ndcg_of_lists, _ndcg_of_ranks),
    "recall": Metric("Recall", lambda lists, k: lists.hits[:, :k].sum(axis=1) / lists.relevant),
    "hr": Metric(
        "HR",
        lambda lists, k: lists.hits[:, :k].any(axis=1).astype(float),
        lambda ranks, k: (ranks <= k).astype(float),
    ),
    "mrr": Metric("MRR", _mrr_of_lists, lambda ranks, _: 1 / ranks, at_cut_offs=False),
    "coverage": Metric("Coverage"),  # of all lists together, so `next_day` computes it
    "repeats": Metric("Repeats", _repeats),
}
"""Name -> metric, in the order of the report's columns. A name has no "_": tables call a value `name_k`, or `name`."""


def list_metrics(lists: RankedLists, at: Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric of ranked lists at the cut-offs `at`: name in tables -> float64 [B]."""
    return {name: metric.of_lists(lists, k) for name, metric, k in _columns(at) if metric.of_lists}


def rank_metrics(ranks: np.ndarray, at: Sequence[int] = RANK_AT) -> dict[str, np.ndarray]:
    """Every metric of one relevant song's rank (1 = first, halves between ties): name in tables -> float64 [B]."""
    ranks = np.where(ranks > RANK_LIMIT, RANK_LIMIT + 1, ranks)
    return {name: metric.of_ranks(ranks, k) for name, metric, k in _columns(at) if metric.of_ranks}


def _columns(at: Sequence[int]) -> Iterator[tuple[str, Metric, int]]:
    for name, metric in METRICS.items():
        yield from ((f"{name}_{k}", metric, k) for k in at) if metric.at_cut_offs else [(name, metric, 0)]


def metric_of(column: str) -> Metric:
    """The metric of a name in tables. One that is not in METRICS (of an older table) is titled by its name."""
    name = column.removeprefix(SERVED).partition("_")[0]
    return METRICS.get(name, Metric(name.capitalize()))


def metric_title(column: str) -> str:
    """A name in tables as people read it.

    >>> metric_title("ndcg_30"), metric_title("served_coverage_30"), metric_title("mrr")
    ('NDCG@30', 'Coverage@30', 'MRR')
    """
    at = column.removeprefix(SERVED).partition("_")[2]
    return metric_of(column).title + (f"@{at}" if at else "")


def metric_order(column: str) -> tuple[int, int, str]:
    """A sort key of names in tables: the order of METRICS, then by cut-off."""
    name, _, at = column.removeprefix(SERVED).partition("_")
    return list(METRICS).index(name) if name in METRICS else len(METRICS), int(at) if at.isdigit() else 0, column
