"""Per-user recency: what the listener played lately, again.

score(j) = sum over the listener's plays of j, aged 0, 1, ... from the newest, of decay^age. Every song played scores
above every song that was not; among the latter, popularity decides (`Popularity`), scaled into [-1, 0).

What a row of it measures:
- next_day, mode `all`: how much of a day is replays. Music is mostly that, so a model of mode `all` has to beat it.
- next_day, mode `exclusive`: heard songs are left out of the lists, so it is popularity. So it is under
  leave_one_out, where heard songs do not compete, wherever nobody plays a song twice: a difference from the popularity
  row shows that heard songs compete after all. A held-out replay has no heard rival and ranks first: what the
  row gains over popularity there is the share of replays.

Shapes: `B` listeners, `T` packed tokens, `V` songs and the padding row.
"""

import torch
from torch import Tensor

from fuxi_beta.baselines.base import DecayedBaseline
from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.config import EvaluateConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from pipelines.histories.shards import Manifest

DECAY = 0.95  # a play counts half after 14 more


class Recency(DecayedBaseline):
    """Decayed counts of the plays in a listener's context, above a popularity tail."""

    def __init__(self, listeners: Tensor, *, train: TrainConfig, candidates: Tensor, decay: float = DECAY) -> None:
        super().__init__(decay=decay, train=train, candidates=candidates)
        # + 1 keeps the most popular song below 0, where a play so old that its weight underflows still is.
        self.tail = listeners / (listeners.max() + 1) - 1  # float32 [V]

    def scores(self, batch: Batch) -> Tensor:
        """Decayed counts of played songs, negative popularity of the others. float32 [B, V]."""
        cell = batch.listener * len(self.tail) + batch.item_index
        counts = torch.zeros(batch.num_listeners * len(self.tail)).index_add_(0, cell, self.play_weights(batch))
        scores = self.tail.repeat(batch.num_listeners)
        scores[cell] = counts[cell]
        return scores.view(-1, len(self.tail))


def fit_recency(
    manifest: Manifest,
    *,
    end: int,
    train: TrainConfig,
    candidates: Tensor | None = None,
    config: EvaluateConfig | None = None,
    decay: float = DECAY,
) -> Recency:
    """Nothing to fit but the tail: `fit_popularity` before `end` (Unix seconds) with `config`'s window and cap.

    candidates: bool [V], by default every song; decay in (0, 1], otherwise ValueError.
    """
    popularity = fit_popularity(
        manifest, end=end, train=train, config=config or EvaluateConfig(), candidates=candidates
    )
    return Recency(popularity.listeners, train=train, candidates=popularity.candidates, decay=decay)
