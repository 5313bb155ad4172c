"""Ranking metrics: one registered function each, one value a listener. Means over listeners are the caller's.

Evaluation, the Delta table of metrics, the daily report and `fuxi reproduce` take every metric that is registered here.

Shapes: `B` listeners, `K` list length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RANK_LIMIT = 2500
"""Leave one out: a rank beyond this counts as the next one (the authors' evaluation keeps no more)."""
RANK_AT = (10, 50)
"""Cut-offs of the paper's protocol, leave one out."""


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
    """A metric, whose name in tables is `name_k` at cut-off k.

    of_lists: of `RankedLists` at k; of_ranks: of the rank of one relevant song (float [B], 1 = first, halves between
    ties) at k; each returns a number in [0, 1] a listener, float [B]. None: not measured. title: in tables for people.
    more_is_better: whether the report sets off the largest value. at_cut_offs: False for a metric of the whole list,
    which has no k (0 is passed).
    """

    name: str
    title: str
    of_lists: Callable[[RankedLists, int], np.ndarray] | None = None
    of_ranks: Callable[[np.ndarray, int], np.ndarray] | None = None
    more_is_better: bool = True
    at_cut_offs: bool = True

    def columns(self, at: Sequence[int]) -> dict[str, int]:
        """Name in tables -> cut-off."""
        return {f"{self.name}_{k}": k for k in at} if self.at_cut_offs else {self.name: 0}


METRICS: dict[str, Metric] = {}
"""By name, in the order of the report's columns."""


def register(metric: Metric) -> None:
    """Make a metric known. Raises ValueError if its name is taken, or would not tell name from cut-off."""
    if metric.name in METRICS or not metric.name.isalnum():
        raise ValueError(f"the name of metric {metric.name!r} must be new, of letters and digits")
    METRICS[metric.name] = metric


def list_metrics(lists: RankedLists, at: Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric of ranked lists at the cut-offs `at`: name in tables -> float64 [B]."""
    return {
        name: metric.of_lists(lists, k)
        for metric in METRICS.values()
        if metric.of_lists
        for name, k in metric.columns(at).items()
    }


def rank_metrics(ranks: np.ndarray, at: Sequence[int] = RANK_AT) -> dict[str, np.ndarray]:
    """Every metric of one relevant song's rank (1 = first, halves between ties): name in tables -> float64 [B]."""
    ranks = np.where(ranks > RANK_LIMIT, RANK_LIMIT + 1, ranks)
    return {
        name: metric.of_ranks(ranks, k)
        for metric in METRICS.values()
        if metric.of_ranks
        for name, k in metric.columns(at).items()
    }


def metric_of(column: str) -> Metric:
    """The metric of a name in tables; one of that name and no functions if it is not registered (an older table's).

    >>> metric_of("ndcg_30").title, metric_of("serendipity_30").title
    ('NDCG', 'Serendipity')
    """
    name = column.partition("_")[0]
    return METRICS.get(name) or Metric(name, name.capitalize(), more_is_better=False)


def metric_title(column: str) -> str:
    """A name in tables as people read it.

    >>> metric_title("ndcg_30"), metric_title("coverage_30"), metric_title("mrr")
    ('NDCG@30', 'Coverage@30', 'MRR')
    """
    at = column.partition("_")[2]
    return f"{metric_of(column).title}@{at}" if at else metric_of(column).title


def metric_order(column: str) -> tuple[int, int, str]:
    """A sort key of names in tables: as registered, then by cut-off."""
    name, _, at = column.partition("_")
    return list(METRICS).index(name) if name in METRICS else len(METRICS), int(at) if at.isdigit() else 0, column


def _discount(k: int) -> np.ndarray:
    return 1 / np.log2(np.arange(2, k + 2))


def _ndcg_of_lists(lists: RankedLists, k: int) -> np.ndarray:
    """Discounted hits against those of the best possible list."""
    top, discount = lists.hits[:, :k], _discount(k)
    return top @ discount[: top.shape[1]] / np.cumsum(discount)[np.minimum(lists.relevant, k) - 1]


def _mrr_of_lists(lists: RankedLists, _: int) -> np.ndarray:
    """Of the first hit in the whole list."""
    return np.where(lists.hits.any(axis=1), 1 / (1 + lists.hits.argmax(axis=1)), 0.0)


def _repeats(lists: RankedLists, k: int) -> np.ndarray:
    """Share of the listed songs that the listener had heard."""
    return lists.heard[:, :k].sum(axis=1) / np.maximum((lists.items[:, :k] > 0).sum(axis=1), 1)


register(
    Metric(
        "ndcg",
        "NDCG",
        of_lists=_ndcg_of_lists,
        of_ranks=lambda ranks, k: np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0),
    )
)
register(Metric("recall", "Recall", of_lists=lambda lists, k: lists.hits[:, :k].sum(axis=1) / lists.relevant))
register(
    Metric(
        "hr",
        "HR",
        of_lists=lambda lists, k: lists.hits[:, :k].any(axis=1).astype(float),
        of_ranks=lambda ranks, k: (ranks <= k).astype(float),
    )
)
register(Metric("mrr", "MRR", of_lists=_mrr_of_lists, of_ranks=lambda ranks, _: 1 / ranks, at_cut_offs=False))
register(Metric("coverage", "Coverage", more_is_better=False))  # of all lists together: `next_day` measures it
register(Metric("repeats", "Repeats", of_lists=_repeats, more_is_better=False))
