"""One training step's loss, from a batch to a sum that may be divided by the number of positions of all ranks.

Shapes: `T` packed tokens, `P` positions with a target, `K` negatives each, `U` unique songs of the batch, `D` width.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import keyed, ops
from fuxi_beta.batches import Batch
from fuxi_beta.config import TrainConfig
from fuxi_beta.keyed import DropoutKey
from fuxi_beta.models.base import l2_normalise


class Lookup(Protocol):
    """The item table, plain or sharded."""

    def __call__(self, item_index: Tensor, /) -> Tensor:
        """Raw vectors [U, D] of unique songs int64 [U] (ascending, maybe none), differentiable."""
        ...


def training_loss(
    model: nn.Module, lookup: Lookup, batch: Batch, *, train: TrainConfig, epoch: int, candidates: Tensor
) -> tuple[Tensor, int]:
    """Sum of the sampled-softmax loss over this rank's positions that have a target, and their number.

    model: a SequenceModel, maybe wrapped. candidates: int64, the songs negatives are drawn from, uniformly and with
    replacement. A negative that equals the target is masked, in mode `exclusive` also one the listener has heard.
    Without positions the sum is a zero that still has a graph through the model and the lookup, so that every rank can
    take every step; the lookup is called exactly once.
    """
    positions = batch.target.nonzero().squeeze(1)
    target = batch.target[positions]
    draws = _draw(batch, positions, train=train, epoch=epoch, below=len(candidates))
    drawn = torch.zeros(len(candidates), dtype=torch.bool, device=draws.device)
    drawn[draws.flatten()] = True

    songs, row = _unique(batch.item_index, target, candidates[drawn])
    vectors = lookup(songs)
    states = model(F.embedding(row[batch.item_index], vectors), batch, key=DropoutKey(train.seed, epoch))
    table = l2_normalise(vectors)
    if not len(positions):
        return states.sum() * 0 + table.sum() * 0, 0

    row_of_candidate = row[candidates.clamp(max=len(row) - 1)]  # candidates beyond the last row were not drawn
    target_row, negative_rows = row[target], row_of_candidate.take(draws)
    masked = negative_rows == target_row[:, None]
    if train.mode == "exclusive":
        masked |= _heard(batch, positions, negative_rows, row, len(songs))
    states = states.index_select(0, positions)
    return ops.sampled_softmax(states, table, target_row, negative_rows, masked, train.temperature), len(positions)


def _draw(batch: Batch, positions: Tensor, *, train: TrainConfig, epoch: int, below: int) -> Tensor:
    """Keyed uniform draws for each position. int64 [P, K]."""
    listener = batch.listener[positions]
    keys = keyed.combine(train.seed, epoch, batch.sample)[listener]
    keys = keyed.combine(keys, batch.position[positions], keyed.NEGATIVES)
    return ops.integers(keys, train.negatives, below)


def _unique(*ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct songs, ascending, and a map from song to its row among them (-1 for songs that do not occur)."""
    size = 1 + max((int(part.max()) for part in ids if part.numel()), default=0)
    occurs = torch.zeros(size, dtype=torch.bool, device=ids[0].device)
    for part in ids:
        occurs[part.flatten()] = True
    songs = occurs.nonzero().squeeze(1)
    row = torch.full((size,), -1, device=songs.device)
    row[songs] = torch.arange(len(songs), device=songs.device)
    return songs, row


def _heard(batch: Batch, positions: Tensor, negative_rows: Tensor, row: Tensor, width: int) -> Tensor:
    """Which negatives their listener has heard. bool [P, K]."""
    rows = row[batch.seen_items.clamp(max=len(row) - 1)]
    occurs = (rows >= 0) & (batch.seen_items < len(row))
    heard = torch.zeros(batch.num_listeners, width, dtype=torch.bool, device=row.device)
    heard[batch.seen_listener[occurs], rows[occurs]] = True
    return heard.take(batch.listener[positions][:, None] * width + negative_rows)
