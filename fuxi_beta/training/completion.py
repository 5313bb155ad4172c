"""A second head for training alone: whether the event after a state was played or skipped, given its song.

After ARGUS (arXiv 2507.15994), which splits autoregression over a history into the prediction of the next item and that
of the feedback on it. The head reads the state s that predicts what is next, and the vector v of the song that came,
skipped or not:

    logit = (w . (s * v) + w' . s + w'' . v) / temperature + c

Its loss reaches the network and the songs through s and v. Lists do not use it, so it is in no export; it is in
checkpoints and in what a warm start takes over. It starts at zero, so that the other initial weights stay as they are.

Shapes: `T` packed tokens, `U` unique songs of the batch, `D` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta.data.batches import Batch


class CompletionHead(nn.Module):
    """The logit of a play that is not skipped."""

    def __init__(self, dim: int, temperature: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dim))  # w, w', w''
        self.bias = nn.Parameter(torch.zeros(()))
        self.temperature = temperature

    def forward(self, states: Tensor, songs: Tensor) -> Tensor:
        """L2-normalised states and songs, [P, D] each -> logits [P]."""
        of_both, of_state, of_song = self.weight
        return ((states * songs) @ of_both + states @ of_state + songs @ of_song) / self.temperature + self.bias

    def loss(self, states: Tensor, table: Tensor, row: Tensor, batch: Batch) -> Tensor:
        """The sum of the cross-entropy over the tokens whose next event has a song with a row.

        states: [T, D], L2-normalised. table: [U, D]; row: int64 [V], each song's row in it. Raises ValueError for a
        batch without next events.
        """
        if batch.next_item is None or batch.next_completed is None:
            if len(batch.item_index):
                raise ValueError("the batch does not know the event after each token: make it with completion_weight")
            return states.sum() * 0  # a rank that has no listener in this step
        songs = table[row[batch.next_item].clamp(min=0)]
        logits, wanted = self(states, songs), batch.next_completed.to(states.dtype)
        counts = (batch.next_item > 0).to(states.dtype)
        return F.binary_cross_entropy_with_logits(logits, wanted, weight=counts, reduction="sum")
