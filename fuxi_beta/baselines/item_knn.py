"""Item-based nearest neighbours: songs that the same people listened to (Sarwar et al. 2001; Deshpande, Karypis 2004).

    sim(i, j) = |L_i and L_j| / sqrt(|L_i| |L_j|), L_i the distinct listeners of song i, sim(i, i) = 0
    score(j)  = sum over the listener's plays i, aged 0, 1, ... from the newest, of decay^age sim(i, j)

Only the `neighbours` most similar songs j of each i count. decay = 1 is the method as published, blind to order.
A score is a sum over plays, so the plays that pulled a song into a list are known exactly.

Shapes: `B` listeners of a batch, `R` some of them, `n` plays of the longest, `K` listed songs, `U` listeners of the
shards, `T` packed tokens, `V` songs and the padding row.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fuxi_beta.baselines.base import (
    DecayedBaseline,
    ScoreQueries,
    heard_songs,
    or_all_songs,
    shared_listeners,
    sums_of_rows,
)
from fuxi_beta.config import TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.ops.contributions import CELLS, largest, newest_of_song, packed_tokens
from fuxi_beta.recommender import Queries, Reasons
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from scipy import sparse

NEIGHBOURS = 100
DECAY = 0.7
_PRIOR = 1e-6  # popularity decides only between songs that similarity leaves equal, or so nearly


class ItemKNN(DecayedBaseline):
    """Cosines in compressed rows: row i holds the songs most similar to i."""

    def __init__(
        self,
        similarities: "sparse.csr_array",
        listeners: np.ndarray,
        *,
        train: TrainConfig,
        candidates: Tensor,
        decay: float,
    ) -> None:
        super().__init__(decay=decay, train=train, candidates=candidates)
        self.similarities = similarities  # float32 [V, V]
        self.prior = _PRIOR * torch.from_numpy(listeners / max(listeners.sum(), 1)).float()  # [V]

    def scores(self, batch: Batch) -> Tensor:
        """Decayed sum of the similarities to the plays in the context. float32 [B, V]."""
        return sums_of_rows(batch, self.play_weights(batch), self.similarities).add_(self.prior)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours i, j as i V + j, int64 ascending, the last none, and their cosines, float32."""
        found = self.similarities.tocoo()
        pair = np.append(found.row.astype(np.int64) * len(self.candidates) + found.col, np.iinfo(np.int64).max)
        order = np.argsort(pair)
        return pair[order], np.append(found.data, np.float32(0))[order]

    @override
    def queries(self, batch: Batch) -> Queries:
        """Score every song for every listener, and remember by which plays."""
        return ItemKNNQueries(self, batch)


class ItemKNNQueries(ScoreQueries):
    """Rankings whose reasons are the similar songs that a listener played."""

    def __init__(self, knn: ItemKNN, batch: Batch) -> None:
        super().__init__(knn.scores(batch), knn.candidates)
        self.knn, self.batch = knn, batch

    @override
    def reasons(self, items: Tensor, n: int) -> Reasons | None:
        """The plays with the largest decayed similarity to each song."""
        batch, (count, k) = self.batch, items.shape
        found = Reasons.none(count, k, n, device=items.device, dtype=torch.float32)
        if not k:
            return found
        newest, weights = newest_of_song(batch.offsets, batch.item_index), self.knn.play_weights(batch)
        longest = max(1, int(batch.lengths.max())) if count else 1
        for rows in batch.lengths.nonzero().squeeze(1).split(max(1, CELLS // (longest * k))):
            own = items[rows]
            tokens, weight = largest(*self._contributed(own, rows, weights), newest, n)
            found.put(rows, own, tokens, weight, self.knn.prior[own])
        return found

    def _contributed(self, listed: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Packed tokens of some listeners, int64 [R, n], -1 for none, and what each adds to their songs [R, n, K]."""
        batch = self.batch
        tokens = packed_tokens(batch.offsets, rows)
        played = batch.item_index[tokens.clamp(min=0)]
        wanted = (played[..., None] * len(self.knn.candidates) + listed[:, None]).numpy()
        pairs, cosines = self.knn.pairs
        found = np.searchsorted(pairs, wanted)
        cosine = np.where(pairs[found] == wanted, cosines[found], np.float32(0))
        weight = torch.where(tokens >= 0, weights[tokens.clamp(min=0)], 0)
        return tokens, torch.from_numpy(cosine) * weight[..., None]


def fit_item_knn(
    manifest: Manifest,
    *,
    end: int,
    train: TrainConfig,
    candidates: Tensor | None = None,
    neighbours: int = NEIGHBOURS,
    decay: float = DECAY,
) -> ItemKNN:
    """Cosines between songs by their distinct listeners before `end` (Unix seconds), in one pass.

    candidates: bool [V], by default every song. neighbours kept of each song, equals by lower index; decay in (0, 1].
    ValueError for values outside.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}: it must be at least 1")
    heard, _ = heard_songs(manifest, end=end, train=train)
    return ItemKNN(
        nearest(heard, neighbours),
        heard.sum(axis=0),
        train=train,
        candidates=or_all_songs(candidates, manifest),
        decay=decay,
    )


def nearest(heard: "sparse.csr_array", neighbours: int) -> "sparse.csr_array":
    """The largest cosines between different columns of 0 and 1, `neighbours` a row. [U, V] -> float32 [V, V]."""
    from scipy import sparse

    length = np.sqrt(np.maximum(heard.sum(axis=0), 1))
    parts = []
    for start, block in shared_listeners(heard):
        both = block.tocoo()
        row, column = both.row + start, both.col
        other = row != column
        row, column = row[other], column[other]
        cosine = both.data[other] / (length[row] * length[column])
        order = np.lexsort((column, -cosine, row))
        row, column, cosine = row[order], column[order], cosine[order]
        kept = np.arange(len(row)) - np.searchsorted(row, row) < neighbours
        parts.append((row[kept], column[kept], cosine[kept].astype(np.float32)))
    row, column, cosine = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return sparse.csr_array((cosine, (row, column)), shape=(len(length), len(length)))
