"""EASE: a linear model from songs to songs in closed form (Steck 2019, "Embarrassingly Shallow Autoencoders").

    minimise |X - X B|^2 + lambda |B|^2 with diag(B) = 0, X the 0 or 1 of who played what
    P = (X'X + lambda I)^-1,    B = I - P diag(1 / P_jj),    score = x B

x is the listener's row: decay^age of each song's newest play in the context, aged 0, 1, ... from the newest play of
all. decay = 1 is the method as published, blind to order: 1 for every song played. Below 1 only x changes, not B.

Shapes: `B` listeners of a batch, `T` packed tokens, `U` listeners of the shards, `V` songs and the padding row,
`S` songs that anyone played.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fuxi_beta.baselines.base import DecayedBaseline, heard_songs, or_all_songs, shared_listeners
from fuxi_beta.config import TrainConfig
from fuxi_beta.data.batches import Batch
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from scipy import sparse

REGULARISATION = 500.0  # lambda
DECAY = 0.8
MAX_SONGS = 30_000
_BYTES = 25  # a pair of songs at the peak: X'X, its factor and its inverse in float64
_PRIOR = 1e-6  # popularity decides only where the weights say nothing at all


class EASE(DecayedBaseline):
    """Weights between the songs that anyone played; the others score the prior, which is 0."""

    def __init__(
        self, weights: Tensor, songs: Tensor, listeners: Tensor, *, train: TrainConfig, candidates: Tensor, decay: float
    ) -> None:
        super().__init__(decay=decay, train=train, candidates=candidates)
        self.weights, self.songs = weights, songs  # float32 [S, S], int64 [S] ascending
        self.prior = _PRIOR * listeners / listeners.sum().clamp(min=1)  # float32 [V]

    def scores(self, batch: Batch) -> Tensor:
        """x B for the songs of each context. float32 [B, V]."""
        width = len(self.candidates)
        played = torch.zeros(batch.num_listeners * width)
        played.scatter_reduce_(0, batch.listener * width + batch.item_index, self.play_weights(batch), "amax")
        scores = self.prior.repeat(batch.num_listeners, 1)
        scores[:, self.songs] += played.view(-1, width)[:, self.songs] @ self.weights
        return scores


def fit_ease(
    manifest: Manifest,
    *,
    end: int,
    train: TrainConfig,
    candidates: Tensor | None = None,
    regularisation: float = REGULARISATION,
    decay: float = DECAY,
) -> EASE:
    """Solve for the weights on the plays before `end` (Unix seconds), in one pass and in float64.

    candidates: bool [V], by default every song. InputError above MAX_SONGS songs with plays: memory grows with
    their square, time with their cube. ValueError unless regularisation (lambda) is above 0 and decay in (0, 1].
    """
    if not regularisation > 0:
        raise ValueError(f"regularisation is {regularisation}: it must be above 0")
    heard, _ = heard_songs(manifest, end=end, train=train)
    listeners = heard.sum(axis=0)
    songs = np.flatnonzero(listeners)
    if len(songs) > MAX_SONGS:
        raise InputError(
            f"{manifest.folder}: EASE on {len(songs):,} songs with plays needs about "
            f"{_BYTES * len(songs) ** 2 / 1e9:,.0f} GB of memory, and it stops at {MAX_SONGS:,} songs: "
            f"leave this baseline out"
        )
    return EASE(
        ease_weights(heard[:, songs], regularisation).float(),
        torch.from_numpy(songs),
        torch.from_numpy(listeners).float(),
        train=train,
        candidates=or_all_songs(candidates, manifest),
        decay=decay,
    )


def ease_weights(heard: "sparse.csr_array", regularisation: float) -> Tensor:
    """B of the module's formula. heard: X [U, S]; float64 [S, S]."""
    songs = heard.T.shape[0]
    gram = torch.empty(songs, songs, dtype=torch.float64)
    for start, block in shared_listeners(heard):
        gram[start : start + block.shape[0]] = torch.from_numpy(block.toarray())
    gram.diagonal().add_(regularisation)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    inverse /= -inverse.diagonal().clone()
    inverse.diagonal().zero_()
    return inverse
