"""One training step's loss, from a batch to a sum that may be divided by the number of positions of all ranks.

Shapes: `T` packed tokens, `P` positions with a target, `K` negatives each, `U` unique songs of the batch, `D` width.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.config import TrainConfig
from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.base import l2_normalise


class Lookup(Protocol):
    """The item table, plain or sharded."""

    rows: int
    host_waits: bool

    def __call__(self, item_index: Tensor, /) -> Tensor:
        """Raw vectors [U, D] of songs int64 [U], ascending and distinct, maybe none; differentiable.

        On a device zeros may follow them, unless `host_waits`: padding, whose vectors get no gradient.
        """
        ...


def training_loss(
    model: nn.Module, lookup: Lookup, batch: Batch, *, train: TrainConfig, epoch: int, candidates: Tensor
) -> tuple[Tensor, int]:
    """Sum of the sampled-softmax loss over this rank's positions that have a target, and their number.

    model: a SequenceModel, maybe wrapped. candidates: int64, the songs negatives are drawn from, uniformly and with
    replacement. A negative that equals the target is masked, in mode `exclusive` also one the listener has heard.
    Without positions the sum is a zero that still has a graph through the model and the lookup, so that every rank can
    take every step; the lookup is called exactly once. Nothing here waits for a device, unless the lookup does anyway.
    """
    positions, target = batch.positions, batch.target[batch.positions]
    draws = _draw(batch, train=train, epoch=epoch, below=len(candidates))
    drawn = torch.zeros(len(candidates), dtype=torch.bool, device=draws.device).index_fill_(0, draws.flatten(), True)
    occurs = torch.zeros(lookup.rows, dtype=torch.bool, device=draws.device).index_copy_(0, candidates, drawn)
    occurs.index_fill_(0, batch.item_index, True).index_fill_(0, target, True)

    most = len(batch.item_index) + len(positions) + draws.numel()
    songs, row = _distinct(occurs, most=None if lookup.host_waits or occurs.device.type == "cpu" else most)
    vectors = lookup(songs)
    states = model(F.embedding(row[batch.item_index], vectors), batch, key=DropoutKey(train.seed, epoch))
    table = l2_normalise(vectors)
    if not len(positions):
        return states.sum() * 0 + table.sum() * 0, 0

    target_row, negative_rows = row[target], row[candidates].take(draws)
    masked = negative_rows == target_row[:, None]
    if train.mode == "exclusive":
        masked |= _heard(batch, negative_rows, row, len(songs))
    states = states.index_select(0, positions)
    return ops.sampled_softmax(states, table, target_row, negative_rows, masked, train.temperature), len(positions)


def _draw(batch: Batch, *, train: TrainConfig, epoch: int, below: int) -> Tensor:
    """Keyed uniform draws for each position. int64 [P, K]."""
    positions = batch.positions
    keys = ops.combine(train.seed, epoch, batch.sample)[batch.listener[positions]]
    keys = ops.combine(keys, batch.position[positions], stateless_random.NEGATIVES)
    return ops.integers(keys, train.negatives, below)


def _distinct(occurs: Tensor, *, most: int | None) -> tuple[Tensor, Tensor]:
    """The songs that occur, ascending, and a map from song to its row among them (-1 for those that do not).

    How many there are only the device knows. most: how many there can be; song 0 then fills up these places, so that
    the host need not ask.
    """
    row = occurs.cumsum(0).sub_(1).masked_fill_(~occurs, -1)
    if most is None:
        return occurs.nonzero().squeeze(1), row
    places = min(most, len(occurs))
    songs = torch.zeros(places + 1, dtype=torch.int64, device=occurs.device)
    songs.scatter_(0, row.masked_fill(~occurs, places), torch.arange(len(occurs), device=occurs.device))
    return songs[:places], row


def _heard(batch: Batch, negative_rows: Tensor, row: Tensor, width: int) -> Tensor:
    """Which negatives their listener has heard. bool [P, K]."""
    known = batch.seen_items < len(row)
    rows = row[batch.seen_items.clamp(max=len(row) - 1)]
    cells = batch.num_listeners * width
    cell = torch.where(known & (rows >= 0), batch.seen_listener * width + rows, cells)  # the last one is nobody's
    heard = torch.zeros(cells + 1, dtype=torch.bool, device=row.device).index_fill_(0, cell, True)
    return heard.take(batch.listener[batch.positions][:, None] * width + negative_rows)
