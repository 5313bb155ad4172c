"""First-order Markov with decay: songs that used to follow the listener's latest songs.

score(j) = sum over the latest plays i, aged 0, 1, ... of decay^age * P(j | i), where P(j | i) is the share of plays of
i that j came right after. A neural model below this one is broken.

Shapes: `B` listeners, `T` packed tokens, `V` songs and the padding row.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fuxi_beta.baselines.base import ScoredBaseline, ages, or_all_songs, plays_before, sums_of_rows
from fuxi_beta.config import TrainConfig
from fuxi_beta.data.batches import Batch
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from scipy import sparse

DECAY = 0.8
LATEST = 10
_PRIOR = 1e-4  # popularity decides only between songs that the transitions leave equal


class Markov(ScoredBaseline):
    """Transition shares in compressed rows: row i holds the songs that followed i."""

    def __init__(self, transitions: "sparse.csr_array", *, train: TrainConfig, candidates: Tensor) -> None:
        """transitions: float32 [V, V], rows sum to 1 or are empty."""
        super().__init__(train=train, candidates=candidates)
        self.transitions = transitions
        followed = torch.from_numpy(np.bincount(transitions.indices, minlength=len(candidates))).float()
        self.prior = _PRIOR * followed / followed.sum().clamp(min=1)

    def scores(self, batch: Batch) -> Tensor:
        """Decayed sum of the transition shares out of the latest plays. float32 [B, V]."""
        age = ages(batch)
        weight = DECAY ** age.float() * (age < LATEST)
        return sums_of_rows(batch, weight, self.transitions).add_(self.prior)


def fit_markov(manifest: Manifest, *, end: int, train: TrainConfig, candidates: Tensor | None = None) -> Markov:
    """Count successive plays before `end` (Unix seconds) in one pass. candidates: bool [V], by default every song."""
    from scipy import sparse

    width = manifest.vocabulary_size + 1
    counts = sparse.csr_array((width, width))
    for plays in plays_before(manifest, end=end, train=train):
        same = np.diff(plays.listener) == 0
        pairs = plays.item_index[:-1][same], plays.item_index[1:][same]
        counts += sparse.csr_array((np.ones(len(pairs[0])), pairs), shape=counts.shape)
    counts.data = (counts.data / np.repeat(counts.sum(axis=1), np.diff(counts.indptr))).astype(np.float32)
    return Markov(counts, train=train, candidates=or_all_songs(candidates, manifest))
