"""The loss of one training step, as a sum that is then divided by the number of positions of all ranks.

Shapes: `T` packed tokens, `P` positions with a target, `K` negatives each, `U` unique songs of the batch, `D` width,
`V` rows of the item table.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.config import TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import NEGATIVES, DropoutKey
from fuxi_beta.models.base import l2_normalise


class ItemLookup(Protocol):
    """What the loss needs of an item table, plain or sharded."""

    rows: int
    host_waits: bool

    def __call__(self, item_index: Tensor, /) -> Tensor:
        """Raw vectors [U, D] of songs int64 [U], ascending and distinct, maybe none; differentiable.

        On a device padding (0) may follow them, unless `host_waits`; its vectors get no gradient.
        """
        ...


def training_loss(
    model: nn.Module, lookup: ItemLookup, batch: Batch, *, train: TrainConfig, epoch: int, candidates: Tensor
) -> tuple[Tensor, int]:
    """Sum of the sampled-softmax loss over this rank's positions that have a target, and their number.

    model: a SequenceModel, maybe wrapped. candidates: int64, the songs that negatives are drawn from, uniformly and
    with replacement. A negative that equals the target is masked; learning from `first_listens`, where no target is a
    song heard before, also one that the listener has heard. Without positions the sum is a zero that still has a graph
    through the model and the lookup, so that every rank can take every step. The lookup is called exactly once. Nothing
    waits for a device, unless the lookup does.
    """
    positions, target = batch.positions, batch.target[batch.positions]
    draws = _draw_negatives(batch, train=train, epoch=epoch, below=len(candidates))
    drawn = torch.zeros(len(candidates), dtype=torch.bool, device=draws.device).index_fill_(0, draws.flatten(), True)
    occurs = torch.zeros(lookup.rows, dtype=torch.bool, device=draws.device).index_copy_(0, candidates, drawn)
    occurs.index_fill_(0, batch.item_index, True).index_fill_(0, target, True)

    at_most = len(batch.item_index) + len(positions) + draws.numel()
    songs, row = _unique_songs(occurs, at_most=None if lookup.host_waits or occurs.device.type == "cpu" else at_most)
    vectors = lookup(songs)
    states = model(F.embedding(row[batch.item_index], vectors), batch, key=DropoutKey(train.seed, epoch))
    table = l2_normalise(vectors)
    if not len(positions):
        return states.sum() * 0 + table.sum() * 0, 0

    target_row, negative_rows = row[target], row[candidates].take(draws)
    masked = negative_rows == target_row[:, None]
    if train.learn_from == "first_listens":
        masked |= _heard_negatives(batch, negative_rows, row, len(songs))
    states = states.index_select(0, positions)
    return ops.sampled_softmax(states, table, target_row, negative_rows, masked, train.temperature), len(positions)


def _draw_negatives(batch: Batch, *, train: TrainConfig, epoch: int, below: int) -> Tensor:
    """Counter-based uniform integers in [0, below) for each position. int64 [P, K]."""
    positions = batch.positions
    keys = ops.combine(train.seed, epoch, batch.sample)[batch.listener[positions]]
    keys = ops.combine(keys, batch.position[positions], NEGATIVES)
    return ops.integers(keys, train.negatives, below)


def _unique_songs(occurs: Tensor, *, at_most: int | None) -> tuple[Tensor, Tensor]:
    """The songs that occur, ascending, int64 [U], and each song's row among them, -1 for none, int64 [V].

    Only the device knows U. at_most: an upper bound of it, to which the songs are padded with song 0, so that the host
    need not wait for U.
    """
    row = occurs.cumsum(0).sub_(1).masked_fill_(~occurs, -1)
    if at_most is None:
        return occurs.nonzero().squeeze(1), row
    places = min(at_most, len(occurs))
    songs = torch.zeros(places + 1, dtype=torch.int64, device=occurs.device)
    songs.scatter_(0, row.masked_fill(~occurs, places), torch.arange(len(occurs), device=occurs.device))
    return songs[:places], row


def _heard_negatives(batch: Batch, negative_rows: Tensor, row: Tensor, width: int) -> Tensor:
    """Which negatives their listener has heard. bool [P, K]."""
    known = batch.seen_items < len(row)
    rows = row[batch.seen_items.clamp(max=len(row) - 1)]
    cells = batch.num_listeners * width
    cell = torch.where(known & (rows >= 0), batch.seen_listener * width + rows, cells)  # one spare cell for other songs
    heard = torch.zeros(cells + 1, dtype=torch.bool, device=row.device).index_fill_(0, cell, True)
    return heard.take(batch.listener[batch.positions][:, None] * width + negative_rows)
