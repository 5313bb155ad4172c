"""First-order Markov with decay: songs that used to follow the listener's latest songs.

score(j) = sum over the latest plays i, aged 0, 1, ... of decay^age * P(j | i), where P(j | i) is the share of plays of
i that j came right after. A neural model below this one is broken.

Shapes: `B` listeners, `T` packed tokens, `V` songs and the padding row.
"""

import numpy as np
import torch
from torch import Tensor

from fuxi_beta.baselines.base import ScoredBaseline, ages, or_all_songs, plays_before
from fuxi_beta.config import TrainConfig
from fuxi_beta.data.batches import Batch
from pipelines.histories.shards import Manifest

DECAY = 0.8
LATEST = 10
_AT_ONCE = 32  # listeners whose transitions are added up together: few enough that they stay in the cache
_PRIOR = 1e-4  # popularity decides only between songs that the transitions leave equal


class Markov(ScoredBaseline):
    """Transition shares in compressed rows: row i holds the songs that followed i."""

    def __init__(
        self, starts: Tensor, songs: Tensor, shares: Tensor, *, train: TrainConfig, candidates: Tensor
    ) -> None:
        super().__init__(train=train, candidates=candidates)
        self.starts, self.songs, self.shares = starts, songs, shares  # int64 [V + 1], int64 and float32 [transitions]
        width = len(candidates)
        followed = torch.zeros(width).index_add_(0, songs, torch.ones_like(shares))
        self.prior = _PRIOR * followed / followed.sum().clamp(min=1)

    def scores(self, batch: Batch) -> Tensor:
        """Decayed sum of the transition shares out of the latest plays. float32 [B, V]."""
        scores = self.prior.repeat(batch.num_listeners, 1)
        for start in range(0, batch.num_listeners, _AT_ONCE):
            part = batch.slice(start, min(start + _AT_ONCE, batch.num_listeners))
            cells, values = self._shares(part)
            scores[start : start + _AT_ONCE].view(-1).index_add_(0, cells, values)
        return scores

    def _shares(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cells of [B, V] and the decayed shares to add to them, in the order of the plays."""
        age = ages(batch)
        latest = (age < LATEST).nonzero().squeeze(1)
        item, listener = batch.item_index[latest], batch.listener[latest]
        count = self.starts[item + 1] - self.starts[item]
        token = torch.repeat_interleave(torch.arange(len(item)), count)
        entry = torch.arange(len(token)) + (self.starts[item] - (count.cumsum(0) - count))[token]
        values = self.shares[entry] * (DECAY ** age[latest].float())[token]
        return listener[token] * len(self.candidates) + self.songs[entry], values


def fit_markov(manifest: Manifest, *, end: int, train: TrainConfig, candidates: Tensor | None = None) -> Markov:
    """Count successive plays before `end` (Unix seconds) in one pass. candidates: bool [V], by default every song."""
    from scipy import sparse

    width = manifest.vocabulary_size + 1
    counts = sparse.csr_array((width, width))
    for plays in plays_before(manifest, end=end, train=train):
        same = np.diff(plays.listener) == 0
        pairs = plays.item_index[:-1][same], plays.item_index[1:][same]
        counts += sparse.csr_array((np.ones(len(pairs[0])), pairs), shape=counts.shape)
    shares = counts.data / np.repeat(counts.sum(axis=1), np.diff(counts.indptr))
    return Markov(
        torch.from_numpy(counts.indptr).long(),
        torch.from_numpy(counts.indices).long(),
        torch.from_numpy(shares).float(),
        train=train,
        candidates=or_all_songs(candidates, manifest),
    )
