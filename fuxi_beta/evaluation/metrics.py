"""Ranking metrics, one value a listener; means over listeners are the caller's.

Shapes: `B` listeners, `K` list length.
"""

from collections.abc import Sequence

import numpy as np

RANK_LIMIT = 2500
"""Leave one out: a rank beyond this counts as the next one (the authors' evaluation keeps no more)."""


def list_metrics(hits: np.ndarray, relevant: np.ndarray, at: Sequence[int]) -> dict[str, np.ndarray]:
    """Metrics of ranked lists against sets of relevant songs.

    hits: bool [B, K], whether each listed song is relevant; relevant: int [B], how many relevant songs there are
    (at least one). Returns for each cut-off k: `hr_k` (any hit), `recall_k` (share of relevant songs found) and
    `ndcg_k` (against the best possible list), and `mrr` (of the first hit in the whole list), float64 [B].
    """
    discount = 1 / np.log2(np.arange(2, max(at) + 2))
    ideal = np.cumsum(discount)
    first = hits.argmax(axis=1)
    metrics = {"mrr": np.where(hits.any(axis=1), 1 / (1 + first), 0.0)}
    for k in at:
        top = hits[:, :k]
        found = top.sum(axis=1)
        metrics[f"hr_{k}"] = (found > 0).astype(float)
        metrics[f"recall_{k}"] = found / relevant
        metrics[f"ndcg_{k}"] = top @ discount[: top.shape[1]] / ideal[np.minimum(relevant, k) - 1]
    return metrics


def rank_metrics(ranks: np.ndarray, at: Sequence[int]) -> dict[str, np.ndarray]:
    """Metrics of one relevant song's rank (1 = first, halves between ties): `hr_k`, `ndcg_k`, `mrr`. float64 [B]."""
    ranks = np.where(ranks > RANK_LIMIT, RANK_LIMIT + 1, ranks)
    metrics = {"mrr": 1 / ranks}
    for k in at:
        metrics[f"hr_{k}"] = (ranks <= k).astype(float)
        metrics[f"ndcg_{k}"] = np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)
    return metrics
